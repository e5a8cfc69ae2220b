package fast

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

var errDegenerate = errors.New("fast model: the samples have no covariance that can be inverted")

// Fit learns the normal from samples in order, at least 20, each with the same number of
// values; NaN is missing.
func Fit(samples [][]float64) (*Model, error) {
	rows, columns, err := stream.Rows(samples)
	if err != nil {
		return nil, fmt.Errorf("fast model: %w", err)
	}
	m, _, err := fit(rows, columns)
	return m, err
}

// moments gathers the products of rows, each of p values, in blocks.
type moments struct {
	p, n  int
	sum   []float64
	xx    blas64.Symmetric
	block []float64
}

func newMoments(p int) *moments {
	return &moments{p: p, sum: make([]float64, p), xx: blas64.Symmetric{N: p, Stride: p, Uplo: blas.Upper, Data: make([]float64, p*p)}, block: make([]float64, 0, 256*p)}
}

func (s *moments) add(parts ...[]float32) {
	at := len(s.block)
	for _, part := range parts {
		for _, v := range part {
			s.block = append(s.block, float64(v))
		}
	}
	for i, v := range s.block[at:] {
		s.sum[i] += v
	}
	if s.n++; len(s.block) == cap(s.block) {
		s.flush()
	}
}

func (s *moments) flush() {
	if rows := len(s.block) / s.p; rows > 0 {
		blas64.Syrk(blas.Trans, 1, blas64.General{Rows: rows, Cols: s.p, Stride: s.p, Data: s.block}, 1, s.xx)
		s.block = s.block[:0]
	}
}

// covariance is that of the values from i to j.
func (s *moments) covariance(i, j int) *mat.SymDense {
	s.flush()
	n := float64(max(s.n, 1))
	c := mat.NewSymDense(j-i, nil)
	for a := i; a < j; a++ {
		for b := a; b < j; b++ {
			c.SetSym(a-i, b-i, s.xx.Data[a*s.p+b]/n-s.sum[a]/n*s.sum[b]/n)
		}
	}
	return c
}

// leading returns the k directions of the largest variance, as columns of unit length, by subspace
// iteration from a fixed begin (Golub and Van Loan, "Matrix Computations", 4th edition, 8.2.4).
func leading(c *mat.SymDense, k int) *mat.Dense {
	p := c.SymmetricDim()
	k = min(k, p)
	r := rand.New(rand.NewPCG(uint64(p), uint64(k)))
	q, next := mat.NewDense(p, k, nil), mat.NewDense(p, k, nil)
	for i := range p {
		for j := range k {
			q.Set(i, j, r.NormFloat64())
		}
	}
	for range 40 {
		next.Mul(c, q)
		for j := range k { // Gram and Schmidt
			v := next.ColView(j).(*mat.VecDense)
			for l := range j {
				v.AddScaledVec(v, -mat.Dot(v, next.ColView(l)), next.ColView(l))
			}
			norm := mat.Norm(v, 2)
			if norm < 1e-9 { // fewer directions than k have any variance
				v.Zero()
				continue
			}
			v.ScaleVec(1/norm, v)
		}
		q, next = next, q
	}
	return q
}

// learn takes the covariance apart into a diagonal and the leading directions.
func (g *gauss) learn(c *mat.SymDense) error {
	p := c.SymmetricDim()
	v := leading(c, directions)
	_, k := v.Dims()
	var cv mat.Dense
	cv.Mul(c, v)
	variance := make([]float64, k)
	for j := range k {
		variance[j] = max(mat.Dot(v.ColView(j), cv.ColView(j)), 0)
	}
	for i := range p {
		d := c.At(i, i)
		for j := range k {
			d -= variance[j] * v.At(i, j) * v.At(i, j)
		}
		g.scale[i] = float32(1 / math.Sqrt(max(d, 0)+ridge))
	}
	// With Q the scaled directions, the precision is 1 - Q(Λ⁻¹+QᵀQ)⁻¹Qᵀ, and with LLᵀ the
	// inner matrix, U is L⁻¹Qᵀ.
	q := mat.NewDense(p, k, nil)
	for i := range p {
		for j := range k {
			q.Set(i, j, v.At(i, j)*float64(g.scale[i]))
		}
	}
	var inner mat.Dense
	inner.Mul(q.T(), q)
	sym := mat.NewSymDense(k, nil)
	for i := range k {
		for j := i; j < k; j++ {
			sym.SetSym(i, j, inner.At(i, j))
		}
		sym.SetSym(i, i, sym.At(i, i)+1/max(variance[i], 1e-9))
	}
	var ch mat.Cholesky
	if !ch.Factorize(sym) {
		return errDegenerate
	}
	var l mat.TriDense
	ch.LTo(&l)
	var u mat.Dense
	if err := u.Solve(&l, q.T()); err != nil {
		return errDegenerate
	}
	for j := range k {
		for i := range p {
			g.u[j*p+i] = float32(u.At(j, i))
		}
	}
	return nil
}

// usual learns what the distances are while learning.
func (g *gauss) usual(distances []float32) {
	s := slices.Clone(distances)
	slices.Sort(s)
	last := float64(len(s) - 1)
	g.median = s[int(0.5*last)]
	g.unit = max(s[int(0.99*last)]-g.median, 0.05)
}

// fit learns a model from rows of so many columns, and returns it with the state after the
// last of them.
func fit(rows []float32, c int) (*Model, *Scorer, error) {
	n := len(rows) / c
	m := newModel(c)
	m.mean, m.inverse = stream.Scales(rows, c)
	x := make([]float64, c)
	each := func(f func(*Scorer)) {
		s := m.Scorer()
		for r := range n {
			for i, v := range rows[r*c : (r+1)*c] {
				x[i] = float64(v)
			}
			s.push(x)
			f(s)
		}
	}
	ripe := func(s *Scorer) bool { return s.seen == warm || n < 2*warm }
	for i := range m.surprise.scale {
		m.surprise.scale[i] = 1
	}
	for i := range m.spread.scale {
		m.spread.scale[i] = 1
	}

	p := (scales + 1) * c
	spread, course := newMoments(scales*c), newMoments(p+c)
	past := make([]float32, p)
	each(func(s *Scorer) {
		if s.seen > 1 {
			course.add(past, s.past[:c])
		}
		copy(past, s.past)
		if ripe(s) {
			for i, v := range s.variance {
				s.spread[i] = float32(math.Sqrt(float64(v)))
			}
			spread.add(s.spread)
		}
	})
	if err := m.course(course); err != nil {
		return nil, nil, err
	}
	if err := m.spread.learn(spread.covariance(0, scales*c)); err != nil {
		return nil, nil, err
	}
	for i, v := range spread.sum {
		m.calm[i] = float32(v / float64(max(spread.n, 1)))
	}

	surprise := newMoments(c)
	each(func(s *Scorer) { surprise.add(s.rest) })
	if err := m.surprise.learn(surprise.covariance(0, c)); err != nil {
		return nil, nil, err
	}
	a, b := make([]float32, 0, n), make([]float32, 0, n)
	var unused [directions]float32
	each(func(s *Scorer) {
		a = append(a, m.spread.distance(s.spread, &unused))
		b = append(b, m.surprise.distance(s.rest, &unused))
	})
	m.spread.usual(a)
	m.surprise.usual(b)
	slow := 0.0
	for i := range a {
		slow += float64(min(m.spread.units(a[i])+surpriseWeight*m.surprise.units(b[i]), slowCap))
	}
	m.slow = float32(slow / float64(n))
	s := m.Scorer()
	for r := range n {
		for i, v := range rows[r*c : (r+1)*c] {
			x[i] = float64(v)
		}
		s.Score(x)
	}
	return m, s, nil
}

// course learns the forecast from the moments of the past and the samples after it.
func (m *Model) course(s *moments) error {
	c := m.columns
	p := (scales + 1) * c
	n := float64(max(s.n, 1))
	all := s.covariance(0, p+c)
	g, xy := mat.NewSymDense(p, nil), mat.NewDense(p, c, nil)
	for i := range p {
		for j := i; j < p; j++ {
			g.SetSym(i, j, all.At(i, j))
		}
		g.SetSym(i, i, g.At(i, i)+forecastRidge)
		for j := range c {
			xy.Set(i, j, all.At(i, p+j))
		}
	}
	var ch mat.Cholesky
	if !ch.Factorize(g) {
		return errDegenerate
	}
	var coef, gc, cov, a mat.Dense
	if err := ch.SolveTo(&coef, xy); err != nil {
		return errDegenerate
	}
	// Of what is forecast, the leading directions.
	gc.Mul(g, &coef)
	cov.Mul(coef.T(), &gc)
	sym := mat.NewSymDense(c, nil)
	for i := range c {
		for j := i; j < c; j++ {
			sym.SetSym(i, j, cov.At(i, j))
		}
	}
	v := leading(sym, forecastRank)
	a.Mul(&coef, v)
	_, rank := v.Dims()
	for i := range c {
		m.bias[i] = float32(s.sum[p+i] / n)
	}
	for k := range rank {
		h := 0.0
		for i := range p {
			m.a[k*p+i] = float32(a.At(i, k))
			h += a.At(i, k) * s.sum[i] / n
		}
		for i := range c {
			m.b[k*c+i] = float32(v.At(i, k))
			m.bias[i] -= float32(h * v.At(i, k))
		}
	}
	return nil
}
