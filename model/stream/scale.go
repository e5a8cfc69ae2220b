package stream

import "math"

// A deviation is at least floor times the range of the column, and floorRate times the size of its
// mean: what moved less while learning is noise of the last digits. A column that did not move
// has the floor of its mean or, where that is 0, of 1.
const (
	floor     = 0.03
	floorRate = 0.01
)

// MostInverse is the largest inverse that [Scales] returns.
const MostInverse = 1e30

// Scales returns the mean of each column of rows, and the inverse of its deviation: of a
// multiple of the column they are those of the multiple, unless it is always 0. Both are 0 for a column that
// was never there.
func Scales(rows []float32, columns int) (mean, inverse []float32) {
	mean, inverse = make([]float32, columns), make([]float32, columns)
	for i := range columns {
		n, m, m2, low, high := 0.0, 0.0, 0.0, math.Inf(1), math.Inf(-1)
		for at := i; at < len(rows); at += columns {
			v := float64(rows[at])
			if math.IsNaN(v) {
				continue
			}
			n++
			d := v - m
			m += d / n
			m2 += d * (v - m)
			low, high = min(low, v), max(high, v)
		}
		if n == 0 {
			continue
		}
		least := 1.0
		if high > low {
			least = high - low
		} else if m != 0 {
			least = math.Abs(m)
		}
		mean[i] = float32(m)
		inverse[i] = float32(1 / max(math.Sqrt(m2/n), floorRate*math.Abs(m), floor*least, 1/MostInverse))
	}
	return mean, inverse
}
