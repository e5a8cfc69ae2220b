package tail

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestTailIsTheShareOfScores(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	learn := make([]float64, 20_000)
	for i := range learn {
		learn[i] = r.ExpFloat64()
	}
	d, err := New(learn)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []float64{0.1, 0.01, 0.001} {
		score := -math.Log(p)
		if got := d.Of(score); got < 0.9*p || got > 5*p {
			t.Errorf("a score that one in %v has: tail %v", 1/p, got)
		}
	}
	last := 2.0
	for s := 0.0; s < 40; s += 0.25 {
		p := d.Of(s)
		if p <= 0 || p > 1 || p >= last {
			t.Fatalf("tail %v at %v after %v", p, s, last)
		}
		last = p
	}
}

func TestFewAndEqualScores(t *testing.T) {
	for _, s := range [][]float64{{0}, {1, 1, 1}, {0, 0, 5}} {
		d, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		if p := d.Of(100); !(p > 0 && p < 0.1) {
			t.Errorf("%v: tail %v", s, p)
		}
	}
	for _, s := range [][]float64{nil, {-1}, {math.NaN()}, {1, math.Inf(1)}} {
		if _, err := New(s); err == nil {
			t.Errorf("%v was taken", s)
		}
	}
}

func TestAdaptFollowsTheScores(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	learn := make([]float64, 500)
	for i := range learn {
		learn[i] = r.ExpFloat64()
	}
	d, err := New(learn)
	if err != nil {
		t.Fatal(err)
	}
	for range 50_000 { // the host is twice as loud by now
		d.Adapt(2*r.ExpFloat64(), 5000)
	}
	for _, p := range []float64{0.1, 0.01} {
		if got := d.Of(-2 * math.Log(p)); got < 0.5*p || got > 3*p {
			t.Errorf("a score that one in %v has: tail %v", 1/p, got)
		}
	}
	before := d.Of(30)
	d.Adapt(1e9, 5000)
	if after := d.Of(30); after > 1.2*before {
		t.Errorf("one score moved a tail of %v to %v", before, after)
	}
	if !d.Sound() || (Tail{}).Sound() || (Tail{Base: math.NaN(), Scale: 1, N: 1}).Sound() {
		t.Error("what is sound, and what is not")
	}
}
