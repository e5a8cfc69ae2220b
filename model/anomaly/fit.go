package anomaly

import (
	"errors"
	"math"
	"slices"

	blaslib "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/mat"
)

// block is the number of rows that are added to a covariance at once.
const block = 256

// moments gathers the products of rows: xᵀx and, where there is a y, xᵀy.
type moments struct {
	p, q   int
	n      int
	xx, xy []float64
	x, y   []float64 // a block
	rows   int
}

func newMoments(p, q int) *moments {
	return &moments{p: p, q: q, xx: make([]float64, p*p), xy: make([]float64, p*q), x: make([]float64, block*p), y: make([]float64, block*q)}
}

func (s *moments) add(x, y []float32) {
	for i, v := range x {
		s.x[s.rows*s.p+i] = float64(v)
	}
	for i, v := range y {
		s.y[s.rows*s.q+i] = float64(v)
	}
	s.n++
	if s.rows++; s.rows == block {
		s.flush()
	}
}

func (s *moments) flush() {
	if s.rows == 0 {
		return
	}
	blas.Dsyrk(blaslib.Upper, blaslib.Trans, s.p, s.rows, 1, s.x, s.p, 1, s.xx, s.p)
	if s.q > 0 {
		blas.Dgemm(blaslib.Trans, blaslib.NoTrans, s.p, s.q, s.rows, 1, s.x, s.p, s.y, s.q, 1, s.xy, s.q)
	}
	s.rows = 0
}

var errDegenerate = errors.New("anomaly detector: the samples have no covariance that can be inverted")

// gauss makes the part of rows whose last value is the constant 1.
func (s *moments) gauss() (gauss, error) {
	s.flush()
	p := s.p - 1
	n := float64(s.n)
	g := gauss{mean: make([]float32, p), precision: make([]float32, 0, p*(p+1)/2)}
	mean := make([]float64, p)
	for i := range p {
		mean[i] = s.xx[i*s.p+p] / n
		g.mean[i] = float32(mean[i])
	}
	c := mat.NewSymDense(p, nil)
	for i := range p {
		for j := i; j < p; j++ {
			v := s.xx[i*s.p+j]/n - mean[i]*mean[j]
			if i == j {
				v = max(v, 0) + ridge
			}
			c.SetSym(i, j, v)
		}
	}
	var ch mat.Cholesky
	if !ch.Factorize(c) {
		return gauss{}, errDegenerate
	}
	if err := ch.InverseTo(c); err != nil {
		return gauss{}, errDegenerate
	}
	for i := range p {
		for j := range i + 1 {
			g.precision = append(g.precision, float32(c.At(i, j)))
		}
	}
	return g, nil
}

// fit learns a model from rows of so many columns, and returns it with the state
// after the last of them.
func fit(rows []float32, columns int) (*Model, *Scorer, error) {
	n := len(rows) / columns
	m := &Model{columns: columns}
	m.locate(rows)
	x := make([]float64, columns)
	each := func(f func(*Scorer)) {
		l := m.Scorer()
		for r := range n {
			for i, v := range rows[r*columns : (r+1)*columns] {
				x[i] = float64(v)
			}
			l.push(x)
			f(l)
		}
	}

	p := order*columns + 1
	calm, ripe := make([]float64, len(windows)*columns), 0.0
	each(func(l *Scorer) {
		if l.seen == window || n < 2*window {
			ripe++
			for i, v := range l.feature {
				calm[i] += (float64(v) - calm[i]) / ripe
			}
		}
	})
	m.calm = make([]float32, len(calm))
	for i, v := range calm {
		m.calm[i] = float32(v)
	}

	feature := make([]float32, len(windows)*columns+1)
	spread, course := newMoments(len(feature), 0), newMoments(p, columns)
	feature[len(feature)-1] = 1
	each(func(l *Scorer) {
		if l.seen == window || n < 2*window {
			copy(feature, l.feature)
			spread.add(feature, nil)
		}
		course.add(l.lags, l.residual)
	})
	var err error
	if m.spread, err = spread.gauss(); err != nil {
		return nil, nil, err
	}
	if m.coef, err = course.regression(); err != nil {
		return nil, nil, err
	}
	residual := make([]float32, columns+1)
	residual[columns] = 1
	surprise := newMoments(columns+1, 0)
	each(func(l *Scorer) {
		l.predict()
		copy(residual, l.residual)
		surprise.add(residual, nil)
	})
	if m.surprise, err = surprise.gauss(); err != nil {
		return nil, nil, err
	}

	a, b := make([]float64, 0, n), make([]float64, 0, n)
	each(func(l *Scorer) {
		l.predict()
		a = append(a, m.spread.distance(l.feature, l.product))
		b = append(b, m.surprise.distance(l.residual, l.product[:columns]))
	})
	m.usual(a, b)
	l := m.Scorer()
	for r := range n {
		for i, v := range rows[r*columns : (r+1)*columns] {
			x[i] = float64(v)
		}
		l.Score(x)
	}
	return m, l, nil
}

// locate learns the columns' means and deviations.
func (m *Model) locate(rows []float32) {
	c := m.columns
	m.mean, m.inverse = make([]float32, c), make([]float32, c)
	for i := range c {
		n, mean, m2 := 0.0, 0.0, 0.0
		for at := i; at < len(rows); at += c {
			v := float64(rows[at])
			if math.IsNaN(v) {
				continue
			}
			n++
			d := v - mean
			mean += d / n
			m2 += d * (v - mean)
		}
		if n == 0 {
			continue
		}
		m.mean[i] = float32(mean)
		m.inverse[i] = float32(1 / max(math.Sqrt(m2/n), floorRate*math.Abs(mean), floor))
	}
}

// regression solves the ridge regression of y on x: for each y its coefficients.
func (s *moments) regression() ([]float32, error) {
	s.flush()
	g := mat.NewSymDense(s.p, s.xx)
	for i := range s.p {
		g.SetSym(i, i, g.At(i, i)+courseRidge*float64(s.n))
	}
	var ch mat.Cholesky
	if !ch.Factorize(g) {
		return nil, errDegenerate
	}
	var b mat.Dense
	if err := ch.SolveTo(&b, mat.NewDense(s.p, s.q, s.xy)); err != nil {
		return nil, errDegenerate
	}
	coef := make([]float32, 0, s.p*s.q)
	for j := range s.q {
		for i := range s.p {
			coef = append(coef, float32(b.At(i, j)))
		}
	}
	return coef, nil
}

// usual learns what the distances are while learning.
func (m *Model) usual(spread, surprise []float64) {
	m.spread.usual(spread)
	m.surprise.usual(surprise)
	for i := range spread {
		m.slow += min(m.spread.units(spread[i])+surpriseWeight*m.surprise.units(surprise[i]), slowCap) / float64(len(spread))
	}
}

func (g *gauss) usual(distances []float64) {
	s := slices.Clone(distances)
	slices.Sort(s)
	last := float64(len(s) - 1)
	g.median = s[int(0.5*last)]
	g.scale = max(s[int(0.99*last)]-g.median, 0.05)
}
