// Package knn scores a sample by its distance to the fifth nearest of at most 1,500 samples of
// the training data, evenly chosen, in z-scores (Ramaswamy, Rastogi and Shim, "Efficient
// Algorithms for Mining Outliers from Large Data Sets", SIGMOD 2000).
package knn

import (
	"math"

	"github.com/tardigrade-recovery/tardigrade/model/rival"
)

const (
	neighbours = 5
	references = 1500
)

// Model is the references. It may be shared.
type Model struct {
	scale rival.Scale
	refs  []float64 // row by row
}

// Fit chooses the references.
func Fit(rows [][]float64) (*Model, error) {
	scale, err := rival.Learn(rows)
	if err != nil {
		return nil, err
	}
	m := &Model{scale: scale}
	d, n := scale.Columns(), min(references, len(rows))
	m.refs = make([]float64, n*d)
	for i := range n {
		scale.To(m.refs[i*d:(i+1)*d], rows[i*len(rows)/n])
	}
	return m, nil
}

// Bytes is the memory that the model holds.
func (m *Model) Bytes() int { return 8*len(m.refs) + m.scale.Bytes() }

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
	var near [neighbours]float64 // ascending
	for i := range near {
		near[i] = math.Inf(1)
	}
	worst, d := math.Inf(1), len(s.z)
	for at := 0; at < len(s.m.refs); at += d {
		square := 0.0
		for i, v := range s.m.refs[at : at+d] {
			t := s.z[i] - v
			square += t * t
			if i&7 == 7 && square >= worst {
				break
			}
		}
		if square >= worst {
			continue
		}
		k := neighbours - 1
		for ; k > 0 && near[k-1] > square; k-- {
			near[k] = near[k-1]
		}
		near[k] = square
		worst = near[neighbours-1]
	}
	for k := neighbours - 1; ; k-- { // fewer references than neighbours
		if k == 0 || !math.IsInf(near[k], 1) {
			return math.Sqrt(near[k])
		}
	}
}
