package univariate

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var start = time.Date(2024, 3, 4, 0, 0, 0, 0, time.UTC)

// at is the time of a sample: one every 5 minutes, 288 a day.
func at(i int) time.Time { return start.Add(time.Duration(i) * 5 * time.Minute) }

// office is the load of a machine that people use by day, with noise.
func office(seed uint64) func(i int) float64 {
	r := rand.New(rand.NewPCG(seed, 1))
	return func(i int) float64 {
		v := 20.0
		if hour := i % 288 / 12; hour >= 8 && hour < 18 {
			v = 70
		}
		return v + 2*r.NormFloat64()
	}
}

type alarmAt struct {
	sample int
	why    string
}

// watch returns the alarms of a series.
func watch(t *testing.T, learn, n int, series func(i int) float64) []alarmAt {
	t.Helper()
	d, err := New(Config{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	var out []alarmAt
	for i := range n {
		d.Observe(at(i), series(i))
		if began, why := d.Alarm(); began {
			out = append(out, alarmAt{i, why})
		}
	}
	return out
}

func TestFindsWhatIsUnusual(t *testing.T) {
	const from, n = 2880 + 12*11, 2880 + 288 // at 11 o'clock of the eleventh day
	normal := office(7)
	for _, c := range []struct {
		name   string
		change func(i int, v float64) float64
		within int // samples
	}{
		{"a spike", func(i int, v float64) float64 {
			if i == from {
				return v + 60
			}
			return v
		}, 1},
		{"a drop to zero", func(i int, v float64) float64 {
			if i >= from && i < from+6 {
				return 0
			}
			return v
		}, 1},
		{"the level of the night by day, seen before at another time", func(i int, v float64) float64 {
			if i >= from {
				return v - 50
			}
			return v
		}, 12},
		{"unrest", func(i int, v float64) float64 {
			if i >= from {
				return v + float64(i%2*2-1)*12
			}
			return v
		}, 12},
		{"a slow rise", func(i int, v float64) float64 { return v + max(0, float64(i-from))/2 }, 60},
	} {
		alarms := watch(t, 864, n, func(i int) float64 { return c.change(i, normal(i)) })
		got := slices.IndexFunc(alarms, func(a alarmAt) bool { return a.sample >= from })
		if got < 0 || alarms[got].sample >= from+c.within || alarms[got].why == "" {
			t.Errorf("%s at %d: alarms %v", c.name, from, alarms)
		}
	}
}

// TestSeldomCriesWolf watches metrics of which nothing is wrong for 100 days each.
func TestSeldomCriesWolf(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	walk := 0.0
	for name, series := range map[string]func(i int) float64{
		"noise":    func(int) float64 { return 10 + r.NormFloat64() },
		"office":   office(3),
		"constant": func(int) float64 { return 42 },
		"heavy":    func(int) float64 { return math.Exp(1.5 * r.NormFloat64()) },
		"drifting": func(int) float64 { walk += 0.02*r.NormFloat64() - 0.001*walk; return walk + 0.2*r.NormFloat64() },
		"counts":   func(int) float64 { return math.Floor(r.ExpFloat64() * 3) },
	} {
		alarms := watch(t, 864, 28800, series)
		// The number grows with the logarithm of the time: 33 times the learning period.
		if len(alarms) > 25 {
			t.Errorf("%s: %d alarms in 100 days: %v", name, len(alarms), alarms)
		}
		late := 0
		for _, a := range alarms {
			if a.sample >= 14400 {
				late++
			}
		}
		if late > 10 {
			t.Errorf("%s: %d alarms in the last 50 days", name, late)
		}
		if name == "constant" && len(alarms) > 0 {
			t.Errorf("a metric that never moves: %v", alarms)
		}
	}
}

func TestOneAlarmForWhatLasts(t *testing.T) {
	normal := office(9)
	alarms := watch(t, 864, 4000, func(i int) float64 {
		if i >= 3000 && i < 3150 {
			return 200 + normal(i)/10
		}
		return normal(i)
	})
	during := 0
	for _, a := range alarms {
		if a.sample >= 3000 && a.sample < 3150 {
			during++
		}
	}
	if during < 1 || during > 2 {
		t.Errorf("%d alarms for one thing: %v", during, alarms)
	}
}

func TestNothingWhileLearning(t *testing.T) {
	d, err := New(Config{Learn: 100})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		learned, _ := d.Observe(at(i), float64(i*i))
		if want := float64(i+1) / 100; learned != want {
			t.Fatalf("after %d samples %v is learned", i+1, learned)
		}
		if began, why := d.Alarm(); began {
			t.Fatalf("alarm at sample %d: %s", i, why)
		}
	}
	if learned, expected := d.Observe(at(100), 1e6); learned != 1 || expected > 0.1 {
		t.Errorf("%v learned, %v expected", learned, expected)
	}
	if began, _ := d.Alarm(); !began {
		t.Error("no alarm after learning")
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []Config{{Learn: 19}, {Learn: 100, Surprise: -1}, {Learn: 100, Surprise: math.NaN()}, {Learn: 2e9}, {Learn: 100, Quiet: -1}, {Learn: 100, Quiet: math.Inf(1)}, {Learn: 100, Without: []string{"phase"}}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	// Without the views that see a spike there is none.
	spike := func(i int) float64 {
		if i == 500 {
			return 30
		}
		return float64(i % 7)
	}
	d, err := New(Config{Learn: 300, Without: Views()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		if _, expected := d.Observe(at(i), spike(i)); !math.IsInf(expected, 1) {
			t.Fatalf("sample %d: %v, without any view", i, expected)
		}
	}
	if got := watch(t, 300, 600, spike); !slices.ContainsFunc(got, func(a alarmAt) bool { return a.sample == 500 }) {
		t.Errorf("with all views: %v", got)
	}
}

func TestHostileValues(t *testing.T) {
	normal := office(11)
	plain, odd := mustNew(t, 300), mustNew(t, 300)
	var want, got []float64
	for i := range 2000 {
		v := normal(i)
		_, expected := plain.Observe(at(i), v)
		want = append(want, expected)
		for _, missing := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			if _, expected := odd.Observe(at(i), missing); !math.IsInf(expected, 1) {
				t.Fatalf("%v gave %v", missing, expected)
			}
			if began, _ := odd.Alarm(); began {
				t.Fatalf("%v made an alarm", missing)
			}
		}
		_, expected = odd.Observe(at(i), v)
		got = append(got, expected)
	}
	if !slices.Equal(want, got) {
		t.Error("missing samples changed the scores of others")
	}
	// What is as large as a number can be does no harm that lasts.
	d := mustNew(t, 300)
	values := []float64{math.MaxFloat64, -math.MaxFloat64, 5e-324, 0, 1}
	for i := range 5000 {
		v := normal(i)
		if i%50 == 7 && i < 1000 {
			v = values[i%len(values)]
		}
		when := at(i)
		switch i % 97 {
		case 3:
			when = time.Time{}
		case 5:
			when = time.Unix(math.MinInt64/4, 0)
		case 6:
			when = at(i - 500)
		}
		if _, expected := d.Observe(when, v); math.IsNaN(expected) || expected < 0 {
			t.Fatalf("sample %d, value %v: %v", i, v, expected)
		}
	}
}

func TestIsCausal(t *testing.T) {
	normal := office(13)
	var values []float64
	for i := range 1500 {
		values = append(values, normal(i))
	}
	scores := func(v []float64) (out []float64) {
		d := mustNew(t, 300)
		for i, x := range v {
			_, expected := d.Observe(at(i), x)
			out = append(out, expected)
		}
		return out
	}
	if !slices.Equal(scores(values)[:1000], scores(values[:1000])) {
		t.Error("the first scores depend on later values")
	}
}

func TestAllocatesNothing(t *testing.T) {
	d, normal, i := mustNew(t, 300), office(15), 0
	if n := testing.AllocsPerRun(5000, func() {
		d.Observe(at(i), normal(i))
		d.Alarm()
		i++
	}); n != 0 {
		t.Errorf("%v allocations a sample", n)
	}
}

func TestWindow(t *testing.T) {
	w, r := newWindow(7), rand.New(rand.NewPCG(1, 2))
	var all []float64
	for range 100 {
		v := 1e6 + r.NormFloat64()
		all = append(all, v)
		w.add(v)
		sum, last := 0.0, all[max(0, len(all)-7):]
		for _, x := range last {
			sum += x
		}
		if want := sum / float64(len(last)); math.Abs(w.mean()-want) > 1e-8 {
			t.Fatalf("after %d values %v, not %v", len(all), w.mean(), want)
		}
	}
}

func TestTail(t *testing.T) {
	// A peak every 10 samples, of 1 to 100: the past should have had about one as high as
	// 100, about ten as high as 90, and none as high as 200.
	var x tail
	r := rand.New(rand.NewPCG(1, 2))
	order := r.Perm(100)
	for i := range 1000 {
		v := 0.0
		if i%10 == 9 {
			v = float64(order[i/10] + 1)
		}
		x.observe(v, int64(i+burn), 5, 1e9)
	}
	if x.n != kept || x.peaks[0].value != 100 || x.peaks[kept-1].value != 101-kept {
		t.Fatalf("%+v", x.peaks)
	}
	for _, c := range []struct{ value, least, most float64 }{{90, 8, 13}, {100, 0.5, 4}, {150, 0, 0.1}} {
		if got := math.Exp(-x.surprise(c.value)); got < c.least || got > c.most {
			t.Errorf("%v: %.3f peaks expected, not %v to %v", c.value, got, c.least, c.most)
		}
	}
	// Old peaks are forgotten.
	for i := range 20 {
		x.observe(float64(i%3), int64(5000+10*i), 5, 1000)
	}
	if x.peaks[0].value != 2 {
		t.Errorf("%+v", x.peaks)
	}
}

func mustNew(t testing.TB, learn int) *Detector {
	t.Helper()
	d, err := New(Config{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func BenchmarkObserve(b *testing.B) {
	d, normal, i := mustNew(b, 864), office(1), 0
	values := make([]float64, 4096)
	for k := range values {
		values[k] = normal(k)
	}
	for b.Loop() {
		d.Observe(at(i), values[i%len(values)])
		i++
	}
}
