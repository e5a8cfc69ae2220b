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
	loud := 0
	for _, p := range tails {
		if p < 0.001 {
			loud++
		}
	}
	if loud > 40 {
		t.Errorf("%d of 4000 ordinary samples were called one in a thousand", loud)
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
	observe(d, host(rand.New(rand.NewPCG(1, 1)), 300, 38))
	if model, state := d.Bytes(); model+state > 64<<10 {
		t.Errorf("model %d and state %d bytes", model, state)
	} else {
		t.Logf("model %d and state %d bytes", model, state)
	}
}
