// Package subspace scores a sample by its squared distance to the principal subspace that
// holds 90 % of the training data's variance: the Q statistic of Jackson and Mudholkar
// ("Control Procedures for Residuals Associated with Principal Component Analysis",
// Technometrics 1979), in z-scores. The score is its root.
package subspace

import (
	"errors"
	"math"

	"gonum.org/v1/gonum/mat"

	"github.com/tardigrade-recovery/tardigrade/model/rival"
)

const keep = 0.9

// Model is the subspace. It may be shared.
type Model struct {
	scale rival.Scale
	axes  []float64 // row by row
}

// Fit learns from rows.
func Fit(rows [][]float64) (*Model, error) {
	scale, err := rival.Learn(rows)
	if err != nil {
		return nil, err
	}
	d := scale.Columns()
	cov := mat.NewSymDense(d, nil)
	z := make([]float64, d)
	for _, r := range rows {
		scale.To(z, r)
		cov.SymRankOne(cov, 1/float64(len(rows)), mat.NewVecDense(d, z))
	}
	var e mat.EigenSym
	if !e.Factorize(cov, true) {
		return nil, errors.New("the covariance cannot be decomposed")
	}
	values, total := e.Values(nil), 0.0 // ascending
	for _, v := range values {
		total += max(v, 0)
	}
	var vectors mat.Dense
	e.VectorsTo(&vectors)
	m := &Model{scale: scale}
	for k, sum := d-1, 0.0; k >= 0 && sum < keep*total; k-- {
		sum += values[k]
		for j := range d {
			m.axes = append(m.axes, vectors.At(j, k))
		}
	}
	return m, nil
}

// Bytes is the memory that the model holds.
func (m *Model) Bytes() int { return 8*len(m.axes) + m.scale.Bytes() }

// Scorer scores samples; it is not safe for concurrent use.
type Scorer struct {
	m *Model
	z []float64
}

// Scorer returns one.
func (m *Model) Scorer() *Scorer { return &Scorer{m, make([]float64, m.scale.Columns())} }

// Bytes is the memory that the scorer holds beside its model.
func (s *Scorer) Bytes() int { return 8 * len(s.z) }

// Score is the distance.
func (s *Scorer) Score(x []float64) float64 {
	s.m.scale.To(s.z, x)
	square, d := 0.0, len(s.z)
	for _, v := range s.z {
		square += v * v
	}
	for at := 0; at < len(s.m.axes); at += d {
		p := 0.0
		for i, v := range s.m.axes[at : at+d] {
			p += v * s.z[i]
		}
		square -= p * p
	}
	return math.Sqrt(max(square, 0))
}
