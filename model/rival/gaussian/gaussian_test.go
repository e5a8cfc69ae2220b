package gaussian

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestWindowMoves compares with mean and deviation taken from the values themselves.
func TestWindowMoves(t *testing.T) {
	d, r := New(), rand.New(rand.NewPCG(1, 2))
	var all []float64
	for i := range window + 3*step + 7 {
		v := 1000 + float64(i)/100 + r.NormFloat64()
		if i > 0 {
			from := all
			if moved := len(all) - window; moved > 0 {
				moved -= moved % step
				from = all[moved : moved+window]
			}
			if i%97 == 0 || i > window-3 {
				mean, m2 := 0.0, 0.0
				for _, x := range from {
					mean += x / float64(len(from))
				}
				for _, x := range from {
					m2 += (x - mean) * (x - mean) / float64(len(from))
				}
				want := 1 - 0.5*math.Erfc(math.Abs(v-mean)/math.Sqrt(m2)/math.Sqrt2)
				if got := d.Observe(v); math.Abs(got-want) > 1e-6 {
					t.Fatalf("value %d: %v, not %v", i, got, want)
				}
				all = append(all, v)
				continue
			}
		}
		d.Observe(v)
		all = append(all, v)
	}
}

func TestByHand(t *testing.T) {
	d := New()
	if got := d.Observe(5); got != 0 {
		t.Errorf("the first value: %v", got)
	}
	d.Observe(7) // mean 6, deviation 1
	if got := d.Observe(7); math.Abs(got-0.841344746069) > 1e-12 {
		t.Errorf("one deviation out: %v", got)
	}
	flat := New()
	flat.Observe(3)
	if got := flat.Observe(3.001); got != 1 {
		t.Errorf("a step in what was constant: %v", got)
	}
}
