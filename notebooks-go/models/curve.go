package models

import (
	"cmp"
	"math"
	"slices"
)

// Point is what an alarm does that comes from Threshold on.
type Point struct {
	Threshold, Precision, Recall float64
	// FalseRatio is the share of the negatives that it comes for.
	FalseRatio float64
}

// Curve lists the points for each value of p, from the highest on. Recall and FalseRatio are NaN where there is
// nothing that they are a share of.
func Curve(p []float64, y []bool) []Point {
	order := make([]int, len(p))
	positives := 0.0
	for i := range order {
		order[i] = i
		if y[i] {
			positives++
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(p[b], p[a]) })
	var out []Point
	hit, bad := 0.0, 0.0
	for n, i := range order {
		if y[i] {
			hit++
		} else {
			bad++
		}
		if n+1 == len(order) || p[order[n+1]] != p[i] {
			out = append(out, Point{p[i], hit / (hit + bad), hit / positives, bad / (float64(len(p)) - positives)})
		}
	}
	return out
}

// Bin is what was said and what came of the instants of which about the same was said. Said and Came are NaN where there are none.
type Bin struct {
	N          int
	Said, Came float64
}

// Reliability puts probabilities into ten bins of equal width. The error is the mean difference of what was
// said and what came, weighted by instants (expected calibration error).
func Reliability(p []float64, y []bool) (bins [10]Bin, err float64) {
	for i, v := range p {
		b := &bins[min(int(v*10), 9)]
		b.N++
		b.Said += v
		if y[i] {
			b.Came++
		}
	}
	for i := range bins {
		b := &bins[i]
		err += math.Abs(b.Said-b.Came) / float64(len(p))
		b.Said, b.Came = b.Said/float64(b.N), b.Came/float64(b.N)
	}
	return bins, err
}

// logLoss is the mean of -log of what was said of what came; certainty in the wrong costs 35 at most.
func logLoss(p []float64, y []bool) float64 {
	sum := 0.0
	for i, q := range p {
		if q = min(max(q, 1e-15), 1-1e-15); !y[i] {
			q = 1 - q
		}
		sum -= math.Log(q)
	}
	return sum / float64(len(p))
}
