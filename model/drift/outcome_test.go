package drift

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		n               int
		p               float64
		failed, averted int
		least, most     float64
	}{
		"nothing yet":                      {0, 0, 0, 0, 0, 0},
		"as foretold":                      {1000, 0.02, 20, 0, 0, 0},
		"by chance":                        {1000, 0.02, 14, 0, 0, 0},
		"too few to say":                   {100, 0.05, 0, 0, 0, 0},
		"nothing comes of it":              {40, 0.5, 0, 0, 1.5, 1.7},
		"ten times as many":                {1000, 0.002, 20, 0, 0.9, 1.1},
		"many that nobody foretold":        {1000, 1e-5, 50, 0, 1.9, 2.1},
		"all averted, as foretold":         {40, 0.5, 0, 40, 0, 0},
		"few averted of many foretold":     {400, 0.5, 0, 20, 0.9, 1.1},
		"more failed than foretold at all": {400, 0.05, 200, 10, 0.9, 1.1},
	} {
		var o Outcomes
		for i := range c.n {
			came := Sound
			if i < c.failed {
				came = Failed
			} else if i < c.failed+c.averted {
				came = Averted
			}
			o.Add(c.p, came)
		}
		o.Add(math.NaN(), Failed) // nothing was said
		if e := o.Error(); e < c.least || e > c.most || o.Judged != c.n || o.Failed != c.failed || o.Averted != c.averted {
			t.Errorf("%s: %.3f, %+v", name, e, o)
		}
	}
}

// True probabilities hardly ever look wrong, however many are judged.
func TestTrueProbabilitiesAreNoDrift(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	wrong := 0
	for range 300 {
		var o Outcomes
		for range 3000 {
			p := 0.02 * r.Float64()
			came := Sound
			if r.Float64() < p {
				came = Failed
			}
			o.Add(p, came)
		}
		if o.Error() >= 0.3 {
			wrong++
		}
	}
	if wrong > 3 {
		t.Errorf("%d of 300 times", wrong)
	}
}
