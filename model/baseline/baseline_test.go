package baseline

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// feed observes n samples of noise around 10 in each column.
func feed(d *Detector, r *rand.Rand, columns, n int) (learned, tail float64) {
	x := make([]float64, columns)
	for range n {
		for i := range x {
			x[i] = 10 + r.NormFloat64()
		}
		learned, tail = d.Observe(time.Time{}, x)
	}
	return learned, tail
}

func TestLearnsThenScores(t *testing.T) {
	d, err := New(3, Config{Learn: 100})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	if learned, tail := feed(d, r, 3, 50); learned != 0.5 || tail != 1 {
		t.Errorf("half way: %v, %v", learned, tail)
	}
	if learned, _ := feed(d, r, 3, 50); learned != 1 {
		t.Errorf("at the end: %v", learned)
	}
	loud := 0
	for range 2000 {
		if _, tail := feed(d, r, 3, 1); tail < 0.001 {
			loud++
		}
	}
	if loud > 20 {
		t.Errorf("%d of 2000 ordinary samples were called one in a thousand", loud)
	}
	_, tail := d.Observe(time.Time{}, []float64{10, 60, math.NaN()})
	if tail > 1e-4 {
		t.Errorf("fifty deviations off: %v", tail)
	}
	parts := make([]float64, 3)
	total := d.Explain(parts)
	if sum := parts[0] + parts[1] + parts[2]; math.Abs(sum-total) > 1e-12 || parts[1] < 0.9*total || parts[2] != 0 {
		t.Errorf("parts %v of %v", parts, total)
	}
}

func TestAConstantColumnThatMoves(t *testing.T) {
	d, err := New(1, Config{Learn: 100})
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		d.Observe(time.Time{}, []float64{5})
	}
	if _, tail := d.Observe(time.Time{}, []float64{6}); tail > 1e-3 {
		t.Errorf("tail %v", tail)
	}
}

func TestStateSurvives(t *testing.T) {
	for _, samples := range []int{0, 30, 70, 300} {
		d, _ := New(4, Config{Learn: 100})
		feed(d, rand.New(rand.NewPCG(3, uint64(samples))), 4, samples)
		state, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		again, _ := New(4, Config{Learn: 100})
		if err := again.UnmarshalBinary(state); err != nil {
			t.Fatal(err)
		}
		a, b := rand.New(rand.NewPCG(5, 6)), rand.New(rand.NewPCG(5, 6))
		for range 200 {
			l1, t1 := feed(d, a, 4, 1)
			l2, t2 := feed(again, b, 4, 1)
			if l1 != l2 || t1 != t2 {
				t.Fatalf("after %d samples: %v %v, restored %v %v", samples, l1, t1, l2, t2)
			}
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	d, _ := New(2, Config{Learn: 20})
	feed(d, rand.New(rand.NewPCG(1, 1)), 2, 15)
	state, _ := d.MarshalBinary()
	f.Add(state)
	f.Add(state[:len(state)-1])
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, _ := New(2, Config{Learn: 20})
		before, _ := d.MarshalBinary()
		if err := d.UnmarshalBinary(b); err != nil {
			if after, _ := d.MarshalBinary(); !slices.Equal(before, after) {
				t.Error("a refused state left a trace")
			}
			return
		}
		d.Observe(time.Time{}, []float64{1, math.NaN()})
	})
}

func TestRefuses(t *testing.T) {
	if _, err := New(3, Config{Learn: 5}); err == nil {
		t.Error("five samples are not enough to learn from")
	}
	d, _ := New(3, Config{Learn: 20})
	if err := d.Grow(2); err == nil {
		t.Error("columns went away")
	}
	small, _ := New(2, Config{Learn: 20})
	state, _ := small.MarshalBinary()
	if err := d.UnmarshalBinary(state); err == nil {
		t.Error("a state of two columns was taken for three")
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	d, _ := New(38, Config{Learn: 20})
	x := make([]float64, 38)
	feed(d, rand.New(rand.NewPCG(1, 1)), 38, 30)
	if n := testing.AllocsPerRun(100, func() { d.Observe(time.Time{}, x) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
