// Package forecast scores a sample by the residual of a linear forecast: a ridge vector
// autoregression of order 5 on z-scores (Lütkepohl, "New Introduction to Multiple Time Series
// Analysis", 2005). The score is the norm of the residual in units of its deviations.
package forecast

import (
	"errors"
	"math"

	"gonum.org/v1/gonum/mat"

	"github.com/tardigrade-recovery/tardigrade/model/rival"
)

const (
	order = 5
	ridge = 0.01 // for each sample
)

// Model is the coefficients. It may be shared.
type Model struct {
	scale rival.Scale
	coef  []float64 // for each column: of order samples, the latest first, and the constant
	sigma []float64 // inverse deviations of the residual
}

// Fit learns from rows in order.
func Fit(rows [][]float64) (*Model, error) {
	scale, err := rival.Learn(rows)
	if err != nil {
		return nil, err
	}
	if len(rows) <= order {
		return nil, errors.New("too few rows for a forecast")
	}
	z := scale.All(rows)
	d := scale.Columns()
	p := order*d + 1
	g, c := make([]float64, p*p), mat.NewDense(p, d, nil)
	gram := mat.NewSymDense(p, g)
	lags := make([]float64, p)
	for t := order; t < len(z); t++ {
		past(lags, z, t)
		gram.SymRankOne(gram, 1, mat.NewVecDense(p, lags))
		c.RankOne(c, 1, mat.NewVecDense(p, lags), mat.NewVecDense(d, z[t]))
	}
	for i := range p {
		gram.SetSym(i, i, gram.At(i, i)+ridge*float64(len(z)))
	}
	var ch mat.Cholesky
	if !ch.Factorize(gram) {
		return nil, errors.New("the regression cannot be solved")
	}
	var b mat.Dense
	if err := ch.SolveTo(&b, c); err != nil {
		return nil, errors.New("the regression cannot be solved")
	}
	m := &Model{scale: scale, coef: make([]float64, 0, p*d), sigma: make([]float64, d)}
	for j := range d {
		for i := range p {
			m.coef = append(m.coef, b.At(i, j))
		}
	}
	for t := order; t < len(z); t++ {
		past(lags, z, t)
		for j := range d {
			e := z[t][j] - dot(m.coef[j*p:(j+1)*p], lags)
			m.sigma[j] += e * e / float64(len(z)-order)
		}
	}
	for j, v := range m.sigma {
		m.sigma[j] = 1 / max(math.Sqrt(v), 0.05)
	}
	return m, nil
}

func past(lags []float64, z [][]float64, t int) {
	d := len(z[0])
	for k := range order {
		copy(lags[k*d:(k+1)*d], z[t-1-k])
	}
	lags[order*d] = 1
}

func dot(a, b []float64) float64 {
	s := 0.0
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

// Bytes is the memory that the model holds.
func (m *Model) Bytes() int { return 8*(len(m.coef)+len(m.sigma)) + m.scale.Bytes() }

// Scorer scores the samples of one host in order; it is not safe for concurrent use.
type Scorer struct {
	m       *Model
	z, lags []float64
	seen    int
}

// Scorer returns one at the begin of a stream.
func (m *Model) Scorer() *Scorer {
	d := m.scale.Columns()
	return &Scorer{m: m, z: make([]float64, d), lags: make([]float64, order*d+1)}
}

// Bytes is the memory that the scorer holds beside its model.
func (s *Scorer) Bytes() int { return 8 * (len(s.z) + len(s.lags)) }

// Score is the norm; 0 for the first samples.
func (s *Scorer) Score(x []float64) float64 {
	s.m.scale.To(s.z, x)
	d, p, score := len(s.z), len(s.lags), 0.0
	s.lags[p-1] = 1
	if s.seen < order {
		s.seen++
	} else {
		for j, v := range s.z {
			e := (v - dot(s.m.coef[j*p:(j+1)*p], s.lags)) * s.m.sigma[j]
			score += e * e
		}
	}
	copy(s.lags[d:p-1], s.lags)
	copy(s.lags, s.z)
	return math.Sqrt(score)
}
