// Package tail turns scores into tail probabilities by the peaks over a high quantile
// (Siffer et al., "Anomaly Detection in Streams with Extreme Value Theory", KDD 2017): scores
// up to the 0.9 quantile are taken as uniform, those above as a generalised Pareto
// distribution. Its shape is set, since a short learning period does not suffice to estimate
// it.
package tail

import (
	"errors"
	"math"
	"slices"
)

const (
	quantile   = 0.9 // from where the tail begins
	shape      = 0.2 // of the generalised Pareto tail
	leastScale = 1e-3
)

// Tail is the distribution of the scores of a healthy host.
type Tail struct {
	base, scale float64
}

// New learns from scores, which must be at least 0, and should not have been learned from by what
// gave them.
func New(scores []float64) (Tail, error) {
	if len(scores) == 0 {
		return Tail{}, errors.New("tail: no scores to learn from")
	}
	s := slices.Clone(scores)
	slices.Sort(s)
	if math.IsNaN(s[0]) || s[0] < 0 || math.IsInf(s[len(s)-1], 0) {
		return Tail{}, errors.New("tail: a score is negative or not a number")
	}
	t := Tail{base: s[int(quantile*float64(len(s)-1))]}
	excess, n := 0.0, 0
	for _, v := range s {
		if v > t.base {
			excess += v - t.base
			n++
		}
	}
	t.scale = max(0.05*t.base, leastScale)
	if n > 0 {
		// With few peaks the scale is uncertain: it is widened by one standard error.
		t.scale = max(t.scale, excess/float64(n)*(1+1/math.Sqrt(float64(n))))
	}
	return t, nil
}

// Of is the probability, 0..1, that a healthy host's score is at least as large.
func (t Tail) Of(score float64) float64 {
	if score <= t.base {
		return 1 - quantile*max(score, 0)/max(t.base, 1e-300)
	}
	return (1 - quantile) * math.Pow(1+shape*(score-t.base)/t.scale, -1/shape)
}
