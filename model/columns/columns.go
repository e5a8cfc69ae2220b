// Package columns chooses, out of the many columns of a host's samples, the few that say
// most about all of them: for models whose cost grows with the square of the columns.
//
// The choice is McCabe's forward selection of principal variables ("Principal Variables",
// Technometrics 26, 1984): the next column is the one that explains most of what the
// columns chosen so far leave unexplained in all of them. So of a group that moves together
// one column comes first, what moves alone comes after the groups, and near duplicates of
// what was chosen do not come at all. Constant columns, and those that are missing in more
// than a tenth of the samples, are left out: they have no normal to depart from jointly.
package columns

import "math"

const (
	// leastLeft is the share of a column's variance that the chosen ones must leave
	// unexplained, or it is a near duplicate of them.
	leastLeft = 0.01
	clip      = 5   // deviations, so that one spike does not make a correlation
	present   = 0.9 // share of the samples
	leastRows = 16
	leastRate = 1e-6 // of the mean's size, below which a deviation is rounding
)

// Most is how many columns fit a host's share of memory in package anomaly.
const Most = 40

// Choose returns at most so many columns, in ascending order, of the rows' columns;
// value gives one of their values, NaN where it is missing. It is deterministic, returns
// nothing for less than 16 rows, and costs time with the square of the columns.
func Choose(rows, columns, most int, value func(row, column int) float64) []int {
	if rows < leastRows || most < 1 {
		return nil
	}
	var usable []int
	var mean, inverse []float64
	for c := range columns {
		m, sd, ok := moments(rows, c, value)
		if ok {
			usable, mean, inverse = append(usable, c), append(mean, m), append(inverse, 1/sd)
		}
	}
	p := len(usable)
	left := correlations(rows, usable, mean, inverse, value)
	chosen := make([]bool, p)
	for range min(most, p) {
		best, explains := -1, 0.0
		for i := range p {
			own := left[i*p+i]
			if chosen[i] || own < leastLeft {
				continue
			}
			sum := 0.0
			for j := range p {
				sum += left[i*p+j] * left[i*p+j]
			}
			if sum /= own; sum > explains+1e-9 {
				best, explains = i, sum
			}
		}
		if best < 0 {
			break
		}
		chosen[best] = true
		sweep(left, p, best)
	}
	var out []int
	for i, c := range usable {
		if chosen[i] {
			out = append(out, c)
		}
	}
	return out
}

func moments(rows, c int, value func(row, column int) float64) (mean, sd float64, ok bool) {
	n, m2 := 0.0, 0.0
	for r := range rows {
		v := value(r, c)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		n++
		d := v - mean
		mean += d / n
		m2 += d * (v - mean)
	}
	sd = math.Sqrt(m2 / max(n, 1))
	ok = n >= present*float64(rows) && sd > leastRate*math.Abs(mean) && sd > 0 && !math.IsInf(sd, 0)
	return mean, sd, ok
}

// correlations is the correlation matrix of clipped deviations, with a missing value as
// the mean.
func correlations(rows int, usable []int, mean, inverse []float64, value func(row, column int) float64) []float64 {
	p := len(usable)
	out := make([]float64, p*p)
	z := make([]float64, p)
	for r := range rows {
		for i, c := range usable {
			z[i] = 0
			if v := (value(r, c) - mean[i]) * inverse[i]; !math.IsNaN(v) {
				z[i] = max(-clip, min(clip, v))
			}
		}
		for i := range p {
			for j := range i + 1 {
				out[i*p+j] += z[i] * z[j]
			}
		}
	}
	size := make([]float64, p)
	for i := range p {
		size[i] = math.Sqrt(out[i*p+i])
	}
	for i := range p {
		for j := range i + 1 {
			v := 0.0
			if s := size[i] * size[j]; s > 0 {
				v = out[i*p+j] / s
			}
			out[i*p+j], out[j*p+i] = v, v
		}
	}
	return out
}

// sweep takes what column k explains out of all columns.
func sweep(left []float64, p, k int) {
	own := left[k*p+k]
	row := append([]float64(nil), left[k*p:(k+1)*p]...)
	for i := range p {
		f := row[i] / own
		for j := range p {
			left[i*p+j] -= f * row[j]
		}
	}
}
