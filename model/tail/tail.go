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
	mostExcess = 10 // that teaches, in scales
)

// Tail is the distribution of the scores of a healthy host.
type Tail struct {
	Base  float64 // the quantile
	Scale float64 // of the Pareto tail beyond
	N     float64 // scores that it is known from
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
	t := Tail{N: float64(len(s)), Base: s[int(quantile*float64(len(s)-1))]}
	excess, n := 0.0, 0
	for _, v := range s {
		if v > t.Base {
			excess += v - t.Base
			n++
		}
	}
	t.Scale = max(0.05*t.Base, leastScale)
	if n > 0 {
		// With few peaks the scale is uncertain: it is widened by one standard error.
		t.Scale = max(t.Scale, excess/float64(n)*(1+1/math.Sqrt(float64(n))))
	}
	return t, nil
}

// Of is the probability, 0..1, that a healthy host's score is at least as large.
func (t Tail) Of(score float64) float64 {
	if score <= t.Base {
		return 1 - quantile*max(score, 0)/max(t.Base, 1e-300)
	}
	return (1 - quantile) * math.Pow(1+shape*(score-t.Base)/t.Scale, -1/shape)
}

// Adapt moves the quantile and the scale by one score's worth, which is bounded, so that an
// incident moves them little; what is older than so many scores is forgotten to 1/e.
func (t *Tail) Adapt(score, memory float64) {
	t.N = min(t.N+1, memory)
	// The density at the quantile is about (1-quantile)/scale.
	step := t.Scale / (1 - quantile) / t.N
	if score <= t.Base {
		t.Base = max(0, t.Base-(1-quantile)*step)
		return
	}
	excess := min(score-t.Base, mostExcess*t.Scale)
	t.Base += quantile * step
	t.Scale = max(t.Scale+(excess-t.Scale)/max(1, t.N*(1-quantile)), leastScale)
}

// Sound says whether the values are possible, as after loading them.
func (t Tail) Sound() bool {
	return t.Base >= 0 && t.Scale >= leastScale && t.N >= 1 && t.Base < 1e12 && t.Scale < 1e12 && t.N < 1e12
}
