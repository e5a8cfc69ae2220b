package staged

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const width = 60 // host-level columns, then 4 of instances

func flags(n int) []bool {
	out := make([]bool, n)
	for i := range out {
		out[i] = i < width
	}
	return out
}

// source makes samples of a host: columns follow three loads, some are constant or copies,
// the last four are instances.
type source struct {
	r    *rand.Rand
	load [3]float64
}

func newSource(seed uint64) *source { return &source{r: rand.New(rand.NewPCG(seed, 7))} }

func (s *source) next() []float64 {
	x := make([]float64, width+4)
	for k := range s.load {
		s.load[k] += 0.05*(1-s.load[k]) + 0.03*s.r.NormFloat64()
	}
	for c := range x {
		switch {
		case c < 5:
			x[c] = 64 // constant
		case c < 10:
			continue // copies, below
		default:
			x[c] = float64(c) * (s.load[c%3] + 0.05*s.r.NormFloat64())
		}
	}
	for c := 5; c < 10; c++ {
		x[c] = 2 * x[c+5]
	}
	return x
}

func grown(t *testing.T, cfg Config) *Detector {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Grow(flags(width + 4)); err != nil {
		t.Fatal(err)
	}
	return d
}

func feed(d *Detector, s *source, n int, each func(Result)) {
	for range n {
		r := d.Observe(time.Time{}, s.next())
		if each != nil {
			each(r)
		}
	}
}

var usual = Config{Learn: 100, Strong: 400}

func TestFromPlainToStrong(t *testing.T) {
	d, s := grown(t, usual), newSource(1)
	feed(d, s, 99, func(r Result) {
		if r.Learned >= 1 || r.Strong || r.Rest != 1 {
			t.Fatalf("while learning: %+v", r)
		}
	})
	feed(d, s, 300, func(r Result) {
		if r.Learned != 1 || r.Strong {
			t.Fatalf("between the stages: %+v", r)
		}
	})
	low := 0
	feed(d, s, 1000, func(r Result) {
		if min(r.Lead, r.Rest) < 1e-4 {
			low++
		}
	})
	if !d.last.Strong || low > 10 {
		t.Errorf("strong %v, %d of 1000 usual samples have a tail below 1e-4", d.last.Strong, low)
	}
	if n := len(d.Chosen()); n < 10 || n > 40 {
		t.Errorf("%d columns chosen", n)
	}
	for _, c := range d.Chosen() {
		if c < 5 || c >= width {
			t.Errorf("column %d is constant or of an instance, and was chosen", c)
		}
	}
}

// What the strong detector does not look at is still seen.
func TestNothingGoesUnseen(t *testing.T) {
	for name, change := range map[string]func(i int, x []float64){
		"constant columns move": func(_ int, x []float64) { x[1], x[2] = 1e6, 0 },
		"a unit goes wild":      func(i int, x []float64) { x[width], x[width+1], x[width+2], x[width+3] = 1e3, 1e4, -1e3, 1e4 },
		"columns are restless": func(i int, x []float64) {
			for c := 30; c < 34; c++ {
				x[c] += float64(i%2*40 - 20)
			}
		},
	} {
		d, s := grown(t, usual), newSource(2)
		feed(d, s, 1000, nil)
		r, parts := Result{Lead: 1, Rest: 1}, make([]float64, width+4)
		for i := range 30 {
			x := s.next()
			change(i, x)
			if got := d.Observe(time.Time{}, x); min(got.Lead, got.Rest) < min(r.Lead, r.Rest) {
				r = got
			}
		}
		if min(r.Lead, r.Rest) > 1e-3 {
			t.Errorf("%s: %+v", name, r)
		}
		total, sum := d.Explain(parts), 0.0
		for _, v := range parts {
			sum += v
		}
		if !(total > 0) || math.Abs(sum-total) > 1e-6*total {
			t.Errorf("%s: the parts add up to %v, the score is %v", name, sum, total)
		}
	}
}

func TestSavedInEveryStage(t *testing.T) {
	for _, n := range []int{0, 50, 100, 250, 400, 700} {
		d, s := grown(t, Config{Learn: 100, Strong: 400, Again: 200}), newSource(3)
		feed(d, s, n, nil)
		state, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		back := grown(t, Config{Learn: 100, Strong: 400, Again: 200})
		if err := back.UnmarshalBinary(state); err != nil {
			t.Fatalf("after %d samples: %v", n, err)
		}
		again, err := back.MarshalBinary()
		if err != nil || !bytes.Equal(state, again) {
			t.Errorf("after %d samples: saved again it differs (%v)", n, err)
		}
		for range 500 {
			x := s.next()
			if a, b := d.Observe(time.Time{}, x), back.Observe(time.Time{}, x); a != b {
				t.Fatalf("after %d samples: %+v and restored %+v", n, a, b)
			}
		}
	}
}

func TestFewLearnAtOnce(t *testing.T) {
	slots := NewSlots(1)
	cfg := usual
	cfg.Slots = slots
	a, b, s := grown(t, cfg), grown(t, cfg), newSource(4)
	feed(a, s, 200, nil)
	feed(b, s, 200, nil)
	if a.next == nil || b.next != nil {
		t.Fatal("both learn, and there is one slot")
	}
	feed(a, s, 300, nil)
	feed(b, s, 500, nil)
	if a.strong == nil || b.strong == nil {
		t.Error("the slot was not given on")
	}
}

func TestLearnsAnew(t *testing.T) {
	d, s := grown(t, Config{Learn: 100, Strong: 200, Again: 300}), newSource(5)
	feed(d, s, 400, nil)
	before := d.strong
	feed(d, s, 300, func(r Result) {
		if !r.Strong {
			t.Fatal("not scored while it learns anew")
		}
	})
	if d.strong == before {
		t.Error("it was not learned anew")
	}
}

// TestAHostThatHasChangedForGood is unusual until it is learned anew as it is now, also over a restart; one that is unusual for
// less than that is not learned from.
func TestAHostThatHasChangedForGood(t *testing.T) {
	cfg := Config{Learn: 100, Strong: 200, Again: 1000}
	s := newSource(11)
	wild := func() []float64 { // each load swings by itself, far more than it did
		x := s.next()
		for c := 10; c < width+4; c++ {
			x[c] += 50 * float64(c) * s.r.NormFloat64()
		}
		return x
	}
	odd := func(r Result) bool { return min(r.Lead, r.Rest) < 1e-4 }
	after := func(d *Detector, sample func() []float64, n int) (unusual int) {
		for range n {
			if r := d.Observe(time.Time{}, sample()); odd(r) {
				unusual++
			}
			d.Explain(make([]float64, width+4))
		}
		return unusual
	}
	d := grown(t, cfg)
	feed(d, s, 900, nil)
	if n := after(d, wild, 900); n < 890 {
		t.Fatalf("%d of 900 samples are unusual", n)
	}
	if after(d, s.next, 500); d.odd > 600 {
		t.Fatalf("it is calm again, and counts as unusual by %d samples", d.odd)
	}
	if n := after(d, wild, 300); n < 290 {
		t.Fatalf("what was unusual for less than a lesson has become normal: %d of 300 samples are unusual", n)
	}
	data, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	old := append(bytes.Clone(data[:16]), data[20:]...) // as version 2, which had no count
	old[0] = 2
	d = grown(t, cfg)
	if err := d.UnmarshalBinary(old); err != nil || d.odd != 0 || d.strong == nil {
		t.Errorf("the state of version 2: %v, %d unusual samples", err, d.odd)
	}
	d = grown(t, cfg)
	if err := d.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
	if n := after(d, wild, 1000); n < 100 || n > 900 {
		t.Errorf("%d samples are unusual before it is learned anew", n)
	}
	if n := after(d, wild, 1000); n > 5 || !d.last.Strong {
		t.Errorf("%d of 1000 samples are unusual when it has been learned anew; %+v", n, d.last)
	}
}

func TestFallsBackWhereColumnsGo(t *testing.T) {
	d, s := grown(t, usual), newSource(6)
	feed(d, s, 600, nil)
	for range goneAfter + 1 {
		x := s.next()
		for c := range 50 {
			x[c] = math.NaN()
		}
		d.Observe(time.Time{}, x)
		d.Explain(make([]float64, width+4)) // also of the sample that ends it
	}
	if d.strong != nil || d.last.Strong {
		t.Fatal("it scores columns that are gone")
	}
	feed(d, s, 600, nil)
	if !d.last.Strong {
		t.Error("it did not begin again")
	}
}

func TestGrows(t *testing.T) {
	for _, n := range []int{50, 300, 700} {
		d, s := grown(t, usual), newSource(7)
		feed(d, s, n, nil)
		if err := d.Grow(append(flags(width+4), true, false)); err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			d.Observe(time.Time{}, append(s.next(), float64(i%7), 5))
		}
		if !d.last.Strong {
			t.Errorf("after %d samples and two columns more it is not strong", n)
		}
		state, _ := d.MarshalBinary()
		back, _ := New(usual)
		back.Grow(append(flags(width+4), true, false))
		if err := back.UnmarshalBinary(state); err != nil {
			t.Error(err)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	cfg := Config{Learn: 20, Strong: 64}
	make_ := func() *Detector {
		d, _ := New(cfg)
		d.Grow(flags(width + 4))
		return d
	}
	for _, n := range []int{0, 10, 40, 100} {
		d := make_()
		feed(d, newSource(8), n, nil)
		state, _ := d.MarshalBinary()
		f.Add(state)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := make_()
		if d.UnmarshalBinary(b) == nil {
			feed(d, newSource(9), 100, nil)
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	d, _ := New(usual)
	d.Grow(flags(width + 4))
	s := newSource(1)
	feed(d, s, 600, nil)
	x := s.next()
	b.ReportAllocs()
	for b.Loop() {
		d.Observe(time.Time{}, x)
	}
}
