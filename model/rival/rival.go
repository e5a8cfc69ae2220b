// Package rival has what the detectors under it share. They are published methods in
// their plain form, to compare the default detector with: causal, learned from the training
// rows alone, and neither saved nor explained.
package rival

import (
	"fmt"
	"math"
)

// Scale makes z-scores.
type Scale struct{ mean, inverse []float64 }

// floor is the least deviation of a column, absolute and as a share of the mean's size.
const floor = 0.01

// Learn learns the columns' means and deviations from at least two rows of as many values;
// NaN is missing.
func Learn(rows [][]float64) (Scale, error) {
	if len(rows) < 2 || len(rows[0]) == 0 {
		return Scale{}, fmt.Errorf("%d rows are too few to learn from", len(rows))
	}
	d := len(rows[0])
	s := Scale{mean: make([]float64, d), inverse: make([]float64, d)}
	n, m2 := make([]float64, d), make([]float64, d)
	for i, r := range rows {
		if len(r) != d {
			return Scale{}, fmt.Errorf("row %d has %d values, the first has %d", i, len(r), d)
		}
		for j, v := range r {
			if math.IsNaN(v) {
				continue
			}
			n[j]++
			delta := v - s.mean[j]
			s.mean[j] += delta / n[j]
			m2[j] += delta * (v - s.mean[j])
		}
	}
	for j := range d {
		s.inverse[j] = 1 / max(math.Sqrt(m2[j]/max(n[j], 1)), floor*math.Abs(s.mean[j]), floor)
	}
	return s, nil
}

// Columns is the number of values of a row.
func (s Scale) Columns() int { return len(s.mean) }

// To fills dst with the z-scores of x, from -50 to 50; what is missing is 0.
func (s Scale) To(dst, x []float64) {
	for i := range dst {
		z := (x[i] - s.mean[i]) * s.inverse[i]
		if math.IsNaN(z) {
			z = 0
		}
		dst[i] = min(max(z, -50), 50)
	}
}

// All returns the z-scores of rows.
func (s Scale) All(rows [][]float64) [][]float64 {
	flat := make([]float64, len(rows)*len(s.mean))
	out := make([][]float64, len(rows))
	for i, r := range rows {
		out[i] = flat[i*len(s.mean) : (i+1)*len(s.mean)]
		s.To(out[i], r)
	}
	return out
}

// Bytes is the memory that the scale holds.
func (s Scale) Bytes() int { return 16 * len(s.mean) }
