package anomaly

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/stream"
	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

func newDetector(t testing.TB, columns, learn int) *stream.Detector {
	t.Helper()
	d, err := stream.New(Method, columns, stream.Config{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func observe(d *stream.Detector, rows [][]float64) {
	for _, x := range rows {
		d.Observe(time.Time{}, x)
	}
}

func TestPartsAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	d := newDetector(t, 8, 1000)
	rows := host(r, 1400, 8)
	observe(d, rows[:1300])
	parts := make([]float64, 8)
	for _, x := range rows[1300:] {
		x[5] += 4 * float64(r.IntN(2))
		d.Observe(time.Time{}, x)
		total := d.Explain(parts)
		sum := 0.0
		for _, p := range parts {
			sum += p
		}
		if math.Abs(sum-total) > 1e-9*(1+total) {
			t.Fatalf("parts of %v add up to %v", total, sum)
		}
	}
	if total := d.Explain(parts); parts[5] < total/2 {
		t.Errorf("the column that misbehaved has %v of %v", parts[5], total)
	}
}

func TestMissingColumn(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	d := newDetector(t, 4, 300)
	rows := host(r, 900, 4)
	observe(d, rows[:600])
	parts := make([]float64, 4)
	for _, x := range rows[600:] {
		x[1] = math.NaN()
		_, tail := d.Observe(time.Time{}, x[:3]) // the last is left out
		if math.IsNaN(tail) || tail <= 0 || tail > 1 {
			t.Fatalf("tail %v", tail)
		}
	}
	// Held for longer than the longest window, they say that they are quiet, and no more.
	if total := d.Explain(parts); math.IsNaN(total) || math.IsInf(total, 0) {
		t.Errorf("score %v", total)
	}
}

func TestSlowDriftIsFollowed(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 22_000, 6)
	d := newDetector(t, 6, 2000)
	observe(d, rows[:2000])
	episodes, last := 0, -tail.Apart
	for i, x := range rows[2000:] {
		// Within two weeks at a sample a minute, by ten and by two deviations.
		x[1] += float64(i) / 20_000
		x[4] -= 2 * float64(i) / 20_000
		if _, p := d.Observe(time.Time{}, x); p < 1e-3 {
			if i-last >= tail.Apart {
				episodes++
			}
			last = i
		}
	}
	if episodes > 60 {
		t.Errorf("%d episodes of one in a thousand in 20,000 samples", episodes)
	}
}

func BenchmarkObserve(b *testing.B) {
	d := newDetector(b, 38, 1000)
	rows := host(rand.New(rand.NewPCG(1, 2)), 3000, 38)
	observe(d, rows)
	model, state := d.Bytes()
	for i := 0; b.Loop(); i++ {
		d.Observe(time.Time{}, rows[i%len(rows)])
	}
	b.ReportMetric(float64(model+state), "bytes/host")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "samples/s")
}

func TestDaysSurvive(t *testing.T) {
	r := rand.New(rand.NewPCG(25, 26))
	start := time.Date(2026, 3, 1, 7, 0, 0, 0, time.UTC)
	rows := make([][]float64, 600)
	for i := range rows {
		rows[i] = []float64{math.Sin(2*math.Pi*float64(i)/96) + 0.1*r.NormFloat64(), r.NormFloat64()}
	}
	d, err := stream.New(Method, 2, stream.Config{Learn: 100, Interval: 15 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.FitFrom(start, rows[:500]); err != nil {
		t.Fatal(err)
	}
	flat, _, err := stream.Rows(rows[:500])
	if err != nil {
		t.Fatal(err)
	}
	if m, _, err := fit(flat, 2, phaseOf(start, 96), []int{96}); err != nil || m.period != 96 {
		t.Fatalf("a day of %d samples: %v", m.period, err)
	}
	state, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := stream.Unmarshal(Method, state)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range rows[500:] {
		at := start.Add(time.Duration(500+i) * 15 * time.Minute)
		_, a := d.Observe(at, x)
		_, b := again.Observe(at, x)
		if a != b {
			t.Fatalf("%d samples later: tail %v, restored %v", i, a, b)
		}
	}
}

func TestAHostFitsIn64KiB(t *testing.T) {
	d := newDetector(t, 38, 200)
	rows := host(rand.New(rand.NewPCG(1, 1)), 1000, 38)
	for i, x := range rows {
		for j := range x {
			x[j] += 3 * math.Sin(2*math.Pi*float64(i)/288)
		}
	}
	if m, err := Fit(rows); err != nil || m.period != 288 {
		t.Fatalf("a day of %d samples: %v", m.period, err)
	}
	if err := d.Fit(rows); err != nil {
		t.Fatal(err)
	}
	if model, state := d.Bytes(); model+state > 64<<10 {
		t.Errorf("model %d and state %d bytes", model, state)
	} else {
		t.Logf("model %d and state %d bytes", model, state)
	}
}

// dailyExcess is how far the last sample was from what the days before had.
func dailyExcess(l *Scorer) float64 {
	e := excess{base: l.day.base, size: l.day.size}
	before := l.day
	before.profile, before.total = slices.Clone(before.profile), slices.Clone(before.total)
	before.phase = (before.phase + before.period - 1) % before.period
	x := make([]float32, len(l.parts))
	before.compare(l.row(0), x)
	return e.strengths(make([]float32, len(x)), x)
}

func TestKnowsTheTimeOfDay(t *testing.T) {
	// A backup runs from 2:00 to 3:00, at one sample in five minutes.
	r := rand.New(rand.NewPCG(21, 22))
	const day = 288
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	at := func(i int) time.Time { return start.Add(time.Duration(i) * 5 * time.Minute) }
	sample := func(i int) []float64 {
		busy := 0.0
		if n := i % day; n >= 24 && n < 36 {
			busy = 1
		}
		return []float64{busy + 0.05*r.NormFloat64(), 0.5 + 0.3*math.Sin(2*math.Pi*float64(i)/day) + 0.05*r.NormFloat64()}
	}
	rows := make([][]float64, 8*day)
	for i := range rows {
		rows[i] = sample(i)
	}
	for name, interval := range map[string]time.Duration{"the interval is known": 5 * time.Minute, "it is not": 0} {
		samples, _, err := stream.Rows(rows)
		if err != nil {
			t.Fatal(err)
		}
		fresh := func() live {
			s, err := Method.Fit(samples, 2, stream.Days{Search: interval == 0, Start: start, Interval: interval})
			if err != nil {
				t.Fatal(err)
			}
			return s.(live)
		}
		// The day after, one on which the backup comes six hours late, and one that is
		// known from four o'clock on only.
		run := func(first, late int) (untimely float64) {
			l := fresh()
			for i := first; i < day; i++ {
				x := sample(len(rows) + i)
				x[0] = sample(len(rows) + (i-late+day)%day)[0]
				if interval > 0 {
					l.Seek(at(len(rows) + i))
				}
				l.Score(x)
				untimely += dailyExcess(l.Scorer)
			}
			return untimely
		}
		usual, late := run(0, 0), run(0, 72)
		if late < 20 || usual > late/5 {
			t.Errorf("%s: a day with the backup at its time is untimely by %v, six hours late by %v", name, usual, late)
		}
		if gap := run(48, 0); interval > 0 && gap > late/5 {
			t.Errorf("after a gap an ordinary day is untimely by %v", gap)
		}
	}
}

func TestFindsTheLengthOfADay(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 24))
	for _, day := range []int{96, 288, 1440} {
		levels := make([]int16, 0, 8*day*3)
		walk := 0.0
		for i := range 8 * day {
			walk += 0.1 * r.NormFloat64()
			s := 3 * math.Sin(2*math.Pi*float64(i)/float64(day))
			levels = append(levels, int16(steps*(s+r.NormFloat64())), int16(steps*(max(s, 1)+r.NormFloat64())), int16(steps*walk))
		}
		if got := findPeriod(levels, 3, days[:]); got != day {
			t.Errorf("a day of %d samples: found %d", day, got)
		}
	}
	noise := make([]int16, 3000)
	for i := range noise {
		noise[i] = int16(steps * r.NormFloat64())
	}
	if got := findPeriod(noise, 1, days[:]); got != 0 {
		t.Errorf("noise has a day of %d samples", got)
	}
}

// Moving deviations less their slow means have quantiles below 0, where a metric was
// loud at first and calm for most of the time.
func TestAQuantileBelowZeroIsRestored(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	rows := make([][]float64, 1200)
	for i := range rows {
		rows[i] = []float64{r.NormFloat64(), 0.01 * r.NormFloat64()}
		if i < 50 {
			rows[i][1] *= 1000
		}
	}
	d, err := stream.New(Method, 2, stream.Config{Learn: len(rows)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Fit(rows); err != nil {
		t.Fatal(err)
	}
	m, err := Fit(rows)
	if err != nil {
		t.Fatal(err)
	}
	below := false
	for _, b := range m.excess[restless].base {
		below = below || b < 0
	}
	state, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Unmarshal(Method, state); err != nil || !below {
		t.Errorf("%v; a quantile below 0: %v", err, below)
	}
}
