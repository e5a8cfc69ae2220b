package tail

import (
	"math"
	"math/rand/v2"
	"testing"
)

// scores are of a host that is calm but for an episode in 200 samples, whose peak over 1 is
// exponential with this mean.
func scores(r *rand.Rand, n int, mean float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = r.Float64()
		if i%200 == 100 {
			peak := 1 + mean*r.ExpFloat64()
			for k := range 30 { // it takes half an hour to pass
				out[i-k] = peak * (1 - float64(k)/30)
			}
		}
	}
	return out
}

// begins is the probability that an episode at least as high begins with a sample.
func begins(score, mean float64) float64 { return math.Exp(-(score-1)/mean) / 200 }

func TestTailIsTheRateOfEpisodes(t *testing.T) {
	d, err := New(scores(rand.New(rand.NewPCG(1, 2)), 100_000, 2))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []float64{2, 5, 8} {
		want := begins(s, 2)
		if got := d.Of(s); got < 0.7*want || got > 3*want {
			t.Errorf("a score of %v: tail %v, episodes that high begin %v times a sample", s, got, want)
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
	for _, s := range [][]float64{{0}, {-1e-9}, {1, 1, 1}, {0, 0, 5}} {
		d, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		if p := d.Of(100); !(p > 0 && p < 0.1) || !d.Sound() {
			t.Errorf("%v: tail %v", s, p)
		}
	}
	for _, s := range [][]float64{nil, {math.NaN()}, {math.Inf(-1)}, {1, math.Inf(1)}} {
		if _, err := New(s); err == nil {
			t.Errorf("%v was taken", s)
		}
	}
}

func TestAdaptFollowsTheScores(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	d, err := New(scores(r, 2000, 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scores(r, 100_000, 2) { // the host is twice as loud by now
		d.Adapt(s, 20_000)
	}
	for _, s := range []float64{2, 5, 8} {
		want := begins(s, 2)
		if got := d.Of(s); got < 0.4*want || got > 3*want {
			t.Errorf("a score of %v: tail %v, episodes that high begin %v times a sample", s, got, want)
		}
	}
	before := d.Of(8)
	d.Adapt(1e9, 20_000)
	for range Apart {
		d.Adapt(0, 20_000)
	}
	if after := d.Of(8); after > 1.5*before {
		t.Errorf("one score moved a tail of %v to %v", before, after)
	}
	bad := d
	bad.Base = math.NaN()
	if !d.Sound() || (&Tail{}).Sound() || bad.Sound() {
		t.Error("what is sound, and what is not")
	}
}

// TestAnEpisodeThatLastsTeachesLittle: while it lasts, and after it, a score means what it meant before.
func TestAnEpisodeThatLastsTeachesLittle(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	d, err := New(scores(r, 20_000, 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scores(r, 40_000, 1) {
		d.Adapt(s, 20_000)
	}
	before := d
	for i := range 100_000 { // more than a day, at a sample a second
		if p := d.Of(30); p > 1e-6 {
			t.Fatalf("after %d samples of it a tail of %v", i, p)
		}
		d.Adapt(30+r.NormFloat64(), 20_000)
	}
	for range Apart {
		d.Adapt(0.5, 20_000)
	}
	for _, s := range []float64{2, 4, 6} {
		if was, is := before.Of(s), d.Of(s); is < 0.8*was || is > 1.5*was {
			t.Errorf("a score of %v had the tail %v, and after the episode %v", s, was, is)
		}
	}
	if d.Episodes > before.Episodes+1 || !d.Sound() {
		t.Errorf("before %+v, after %+v", before, d)
	}
}
