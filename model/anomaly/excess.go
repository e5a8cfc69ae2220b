package anomaly

import (
	"math"
	"slices"
)

// The kinds of excess, each over features of one metric at a time.
const (
	restless = iota // the moving deviations
	strayed         // the size of the forecast's residual
	jumped          // the size of the step from the last sample
	untimely        // the distance from what the days before had at this time
	kinds
)

// excess is one part: how far each feature is in its own tail, added up. Above base, the
// quantile, a feature's tail is taken for a generalised Pareto distribution, and its
// strength is -log10 of what is left of that tail's probability. So a metric that is loud
// on calm days counts little when it is loud, and what moves many metrics at once counts
// for each.
type excess struct {
	base, size []float32
	median     float64 // of the sum, while learning
	scale      float64 // its 99th percentile minus median
}

func newExcess(n int) excess {
	return excess{base: make([]float32, n), size: make([]float32, n)}
}

// strengths fills dst with the strength of each feature of x, 0 for most, and returns the sum.
func (e *excess) strengths(dst, x []float32) float64 {
	sum := 0.0
	base, size := e.base[:len(x)], e.size[:len(x)]
	dst = dst[:len(x)]
	for i, v := range x {
		over := v - base[i]
		if !(over > 0) {
			dst[i] = 0
			continue
		}
		s := math.Log1p(float64(tailShape*over/size[i])) * (1 / (math.Ln10 * tailShape))
		dst[i] = float32(s)
		sum += float64(dst[i])
	}
	return sum
}

// learn makes the tail of feature i from its values, which it sorts.
func (e *excess) learn(i int, values []float32, least float32) {
	slices.Sort(values)
	at := tailQuantile * float64(len(values)-1)
	j := int(at)
	q := float64(values[j])
	if j+1 < len(values) {
		q += (at - float64(j)) * float64(values[j+1]-values[j])
	}
	over, n := 0.0, 0
	for k := len(values) - 1; k >= 0 && float64(values[k]) > q; k-- {
		over += float64(values[k]) - q
		n++
	}
	e.base[i], e.size[i] = float32(q), least
	if n > 0 {
		e.size[i] = max(least, float32(over/float64(n)))
	}
}

// middle returns the median and the way from there to the 99th percentile, of values that
// it sorts.
func middle(values []float64) (median, scale float64) {
	slices.Sort(values)
	last := float64(len(values) - 1)
	median = values[int(0.5*last)]
	return median, max(values[int(0.99*last)]-median, 0.05)
}

func (e *excess) sound() bool {
	for _, size := range e.size { // a base below 0 is one of moving deviations less their slow means
		if !(size > 0) {
			return false
		}
	}
	return e.median >= 0 && e.scale > 0
}
