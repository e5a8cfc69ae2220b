// Package pca is the detector PCA of TSB-AD (Liu and Paparrizos, NeurIPS 2024), for
// comparison: it sees a whole series, z-scores its columns, keeps as many principal
// components as explain a quarter of the variance, and scores a sample by the sum, over
// these, of its distance to the component divided by the component's share of the variance.
package pca

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"
)

// keep is the share of the variance that the components must explain.
const keep = 0.25

// Scores returns the scores of all samples of a series.
func Scores(rows [][]float64) ([]float64, error) {
	if len(rows) < 2 || len(rows[0]) == 0 {
		return nil, fmt.Errorf("pca: %d samples are too few", len(rows))
	}
	n, d := len(rows), len(rows[0])
	x := mat.NewDense(n, d, nil)
	for j := range d {
		mean, square := 0.0, 0.0
		for _, r := range rows {
			if len(r) != d || math.IsNaN(r[j]) {
				return nil, fmt.Errorf("pca: column %d has a missing value", j)
			}
			mean += r[j] / float64(n)
		}
		for _, r := range rows {
			square += (r[j] - mean) * (r[j] - mean) / float64(n)
		}
		sd := math.Sqrt(square)
		if sd < 1e-12 {
			sd = 1
		}
		for i, r := range rows {
			x.Set(i, j, (r[j]-mean)/sd)
		}
	}
	cov := mat.NewSymDense(d, nil)
	cov.SymOuterK(1/float64(n-1), x.T())
	var e mat.EigenSym
	if !e.Factorize(cov, true) {
		return nil, fmt.Errorf("pca: the covariance cannot be decomposed")
	}
	values := e.Values(nil) // ascending
	var vectors mat.Dense
	e.VectorsTo(&vectors)
	total := 0.0
	for _, v := range values {
		total += max(v, 0)
	}
	out := make([]float64, n)
	explained := 0.0
	for k := d - 1; k >= 0 && explained < keep; k-- {
		share := values[k] / total
		explained += share
		for i := range n {
			distance := 0.0
			row := x.RawRowView(i)
			for j, v := range row {
				t := v - vectors.At(j, k)
				distance += t * t
			}
			out[i] += math.Sqrt(distance) / share
		}
	}
	return out, nil
}
