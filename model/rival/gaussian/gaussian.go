// Package gaussian is the simplest detector of the Numenta Anomaly Benchmark, its windowed
// Gaussian: a value is as unusual as it is far out in a normal distribution with mean and
// deviation of the values before. It has the published scores, so it shows that the road from the
// benchmark's files to its score is the right one.
package gaussian

import "math"

const (
	window = 6400 // values that the distribution is taken from, at most
	step   = 100  // values by which a full window moves on
)

// Detector scores the values of one metric. It is not safe for concurrent use.
type Detector struct {
	values    []float64 // in the window, and up to step after it
	mean, dev float64
	sum, sum2 float64 // of the values less the first
	first     float64
}

// New returns a detector that has seen nothing.
func New() *Detector { return &Detector{dev: 1} }

// Observe returns the probability of a value less far out on the same side: 0.5 in the middle,
// 1 far out, and 0 for the first value. It has twelve decimals, as the published scores have, which
// decides from where it is 1. Values must be finite.
func (d *Detector) Observe(value float64) float64 {
	score := 0.0
	if len(d.values) > 0 {
		score = 1 - 0.5*math.Erfc(math.Abs(value-d.mean)/d.dev/math.Sqrt2)
		score = math.Round(score*1e12) / 1e12
	} else {
		d.first = value
	}
	d.values = append(d.values, value)
	switch n := len(d.values); {
	case n <= window:
		d.add(value, 1)
		d.update(n)
	case n == window+step:
		for _, v := range d.values[:step] {
			d.add(v, -1)
		}
		for _, v := range d.values[window:] {
			d.add(v, 1)
		}
		d.values = append(d.values[:0], d.values[step:]...)
		d.update(window)
	}
	return score
}

func (d *Detector) add(v, sign float64) {
	v -= d.first
	d.sum += sign * v
	d.sum2 += sign * v * v
}

func (d *Detector) update(n int) {
	mean := d.sum / float64(n)
	d.mean = mean + d.first
	d.dev = math.Sqrt(max(d.sum2/float64(n)-mean*mean, 0))
	if d.dev == 0 {
		d.dev = 1e-6
	}
}
