package anomaly

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func newDetector(t testing.TB, columns, learn int) *Detector {
	t.Helper()
	d, err := New(columns, Config{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func observe(d *Detector, rows [][]float64) (learned float64, tails []float64) {
	for _, x := range rows {
		l, tail := d.Observe(time.Time{}, x)
		learned, tails = l, append(tails, tail)
	}
	return learned, tails
}

func TestDetectorLearnsThenScores(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 5000, 6)
	d := newDetector(t, 6, 1000)
	learned, tails := observe(d, rows[:500])
	if learned != 0.5 || tails[0] != 1 || slices.Min(tails) < 2.0/500 {
		t.Errorf("half way: %v, first %v, least %v", learned, tails[0], slices.Min(tails))
	}
	if learned, _ = observe(d, rows[500:1000]); learned != 1 {
		t.Errorf("at the end: %v", learned)
	}
	_, tails = observe(d, rows[1000:])
	episodes, last := 0, -apart
	for i, p := range tails {
		if p < 0.001 {
			if i-last >= apart {
				episodes++
			}
			last = i
		}
	}
	if episodes > 12 {
		t.Errorf("%d episodes of one in a thousand began in 4000 ordinary samples", episodes)
	}
	x := slices.Clone(rows[4999])
	x[2] += 5
	if _, tail := d.Observe(time.Time{}, x); tail > 1e-4 {
		t.Errorf("a jump: %v", tail)
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

func TestGrow(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	d := newDetector(t, 3, 200)
	rows := host(r, 800, 5)
	for _, x := range rows[:300] {
		d.Observe(time.Time{}, x[:3])
	}
	if err := d.Grow(5); err != nil {
		t.Fatal(err)
	}
	// What was learned goes on counting at once.
	loud := slices.Clone(rows[300])
	loud[0] += 10
	if learned, tail := d.Observe(time.Time{}, loud); learned != 1 || tail > 1e-4 {
		t.Errorf("an old column that jumps: %v, %v", learned, tail)
	}
	observe(d, rows[301:])
	x := slices.Clone(rows[799])
	x[4] += 20
	if _, tail := d.Observe(time.Time{}, x); tail > 1e-4 {
		t.Errorf("a new column that jumps: %v", tail)
	}
	parts := make([]float64, 5)
	if total := d.Explain(parts); parts[4] < total/2 {
		t.Errorf("the new column has %v of %v", parts[4], total)
	}
	if err := d.Grow(4); err == nil {
		t.Error("columns went away")
	}
	if err := d.Grow(mostColumns + 1); err == nil {
		t.Error("columns without bound")
	}
}

func TestAnIncidentIsNotLearned(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	d := newDetector(t, 4, 1000)
	rows := host(r, 6000, 4)
	observe(d, rows[:5000])
	for i, x := range rows[5000:5500] {
		x[1] += float64(i%2*2-1) * 2
		if _, tail := d.Observe(time.Time{}, x); i > 5 && tail > 1e-3 {
			t.Fatalf("after %d samples of an incident the tail is %v", i, tail)
		}
	}
	quiet := 0
	_, tails := observe(d, rows[5500:])
	for _, p := range tails[300:] {
		if p > 1e-3 {
			quiet++
		}
	}
	if quiet < 190 {
		t.Errorf("after the incident %d of 200 samples are usual", quiet)
	}
}

func TestSlowDriftIsFollowed(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 22_000, 6)
	d := newDetector(t, 6, 2000)
	observe(d, rows[:2000])
	episodes, last := 0, -apart
	for i, x := range rows[2000:] {
		// Within two weeks at a sample a minute, by ten and by two deviations.
		x[1] += float64(i) / 20_000
		x[4] -= 2 * float64(i) / 20_000
		if _, tail := d.Observe(time.Time{}, x); tail < 1e-3 {
			if i-last >= apart {
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

func TestReset(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	d := newDetector(t, 4, 400)
	d.Reset()
	rows := host(r, 800, 4)
	observe(d, rows[:500])
	x := slices.Clone(rows[500])
	for i := range x {
		x[i] += 3
	}
	d.Observe(time.Time{}, x)
	before := d.Explain(make([]float64, 4))
	d.Reset()
	d.Observe(time.Time{}, rows[501])
	if after := d.Explain(make([]float64, 4)); after > before/10 {
		t.Errorf("%v before the reset, %v after it", before, after)
	}
}

func TestDaysSurvive(t *testing.T) {
	r := rand.New(rand.NewPCG(25, 26))
	start := time.Date(2026, 3, 1, 7, 0, 0, 0, time.UTC)
	rows := make([][]float64, 600)
	for i := range rows {
		rows[i] = []float64{math.Sin(2*math.Pi*float64(i)/96) + 0.1*r.NormFloat64(), r.NormFloat64()}
	}
	d, err := New(2, Config{Learn: 100, Interval: 15 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.FitFrom(start, rows[:500]); err != nil {
		t.Fatal(err)
	}
	if d.live.m.period != 96 {
		t.Fatalf("a day of %d samples", d.live.m.period)
	}
	state, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unmarshal(state)
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

func TestDetectorStateSurvives(t *testing.T) {
	for _, samples := range []int{0, 30, 70, 100, 300} {
		r := rand.New(rand.NewPCG(3, uint64(samples)))
		rows := host(r, samples+200, 4)
		d := newDetector(t, 4, 100)
		observe(d, rows[:samples])
		state, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		again := newDetector(t, 4, 20)
		if err := again.UnmarshalBinary(state); err != nil {
			t.Fatal(err)
		}
		p, q := make([]float64, 4), make([]float64, 4)
		for i, x := range rows[samples:] {
			l1, t1 := d.Observe(time.Time{}, x)
			l2, t2 := again.Observe(time.Time{}, x)
			d.Explain(p)
			again.Explain(q)
			if l1 != l2 || t1 != t2 || !slices.Equal(p, q) {
				t.Fatalf("%d samples after %d: %v %v %v, restored %v %v %v", i, samples, l1, t1, p, l2, t2, q)
			}
		}
	}
}

func TestRefusesOtherStates(t *testing.T) {
	d := newDetector(t, 4, 100)
	observe(d, host(rand.New(rand.NewPCG(1, 1)), 150, 4))
	state, _ := d.MarshalBinary()
	for name, change := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut":       func(b []byte) []byte { return b[:len(b)-1] },
		"longer":    func(b []byte) []byte { return append(b, 0) },
		"a bit":     func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"not a one": func(b []byte) []byte { b[0]++; return b },
	} {
		if _, err := Unmarshal(change(slices.Clone(state))); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := slices.Clone(state)
	binary.LittleEndian.PutUint32(other[len(magic):], stateVersion+1)
	if _, err := Unmarshal(other); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("another version: %v", err)
	}
	if err := newDetector(t, 3, 100).UnmarshalBinary(state); err == nil {
		t.Error("a state of four columns was taken for three")
	}
}

func FuzzUnmarshal(f *testing.F) {
	rows := host(rand.New(rand.NewPCG(1, 1)), 60, 2)
	for _, n := range []int{0, 15, 40, 60} {
		d := newDetector(f, 2, 50)
		observe(d, rows[:n])
		state, err := d.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(state[headBytes : len(state)-sha256.Size])
	}
	d, daily := newDetector(f, 1, 50), make([][]float64, 100)
	for i := range daily {
		daily[i] = []float64{math.Sin(2 * math.Pi * float64(i) / 24)}
	}
	if err := d.Fit(daily); err != nil || d.live.m.period != 24 {
		f.Fatalf("a day of 24 samples was not found: %v", err)
	}
	state, err := d.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state[headBytes : len(state)-sha256.Size])
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is made to match, so that the decoder itself is tried.
		b := append(binary.LittleEndian.AppendUint32([]byte(magic), stateVersion), body...)
		sum := sha256.Sum256(b)
		d, err := Unmarshal(append(b, sum[:]...))
		if err != nil {
			return
		}
		for range 70 {
			if _, tail := d.Observe(time.Time{}, []float64{1, math.NaN()}); math.IsNaN(tail) || tail < 0 || tail > 1 {
				t.Fatalf("tail %v", tail)
			}
		}
	})
}

func TestDetectorRefuses(t *testing.T) {
	for _, c := range []Config{{Learn: 5}, {Learn: mostLearn + 1}, {Learn: 100, Memory: -1}, {Learn: 100, Memory: math.NaN()}, {Learn: 100, Memory: math.Inf(1)}} {
		if _, err := New(3, c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	if _, err := New(-1, Config{Learn: 100}); err == nil {
		t.Error("less than no columns")
	}
	d := newDetector(t, 3, 100)
	if err := d.Fit(host(rand.New(rand.NewPCG(1, 1)), 100, 4)); err == nil {
		t.Error("samples of four values for three columns")
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	d := newDetector(t, 38, 200)
	rows := host(rand.New(rand.NewPCG(1, 1)), 300, 38)
	observe(d, rows)
	parts := make([]float64, 38)
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		d.Observe(time.Time{}, rows[i%len(rows)])
		d.Explain(parts)
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
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
	if err := d.Fit(rows); err != nil || d.live.m.period != 288 {
		t.Fatalf("a day of %d samples: %v", d.live.m.period, err)
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
		fresh := func() *Detector {
			d, err := New(2, Config{Learn: 1000, Interval: interval})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.FitFrom(start, rows); err != nil {
				t.Fatal(err)
			}
			return d
		}
		// The day after, one on which the backup comes six hours late, and one that is
		// known from four o'clock on only.
		run := func(first, late int) (untimely float64) {
			d := fresh()
			for i := first; i < day; i++ {
				x := sample(len(rows) + i)
				x[0] = sample(len(rows) + (i-late+day)%day)[0]
				d.Observe(at(len(rows)+i), x)
				untimely += dailyExcess(d.live)
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
	d, err := New(2, Config{Learn: len(rows)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Fit(rows); err != nil {
		t.Fatal(err)
	}
	below := false
	for _, b := range d.live.m.excess[restless].base {
		below = below || b < 0
	}
	state, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unmarshal(state); err != nil || !below {
		t.Errorf("%v; a quantile below 0: %v", err, below)
	}
}
