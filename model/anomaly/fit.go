package anomaly

import (
	"errors"
	"math"
	"slices"

	blaslib "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/mat"

	"github.com/tardigrade-recovery/tardigrade/model/stream"
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

// most is how many values the tails of the features are learned from.
const most = 32 << 20

// fit learns a model from rows of so many columns, the first of them so many samples after
// midnight, and returns it with the state after the last of them. among are the lengths
// that a day may have.
func fit(rows []float32, columns, phase int, among []int) (*Model, *Scorer, error) {
	n := len(rows) / columns
	m := &Model{columns: columns}
	m.mean, m.inverse = stream.Scales(rows, columns)
	x := make([]float64, columns)
	each := func(f func(r int, l *Scorer)) {
		l := m.Scorer()
		for r := range n {
			for i, v := range rows[r*columns : (r+1)*columns] {
				x[i] = float64(v)
			}
			l.push(x)
			f(r, l)
		}
	}
	ripe := func(l *Scorer) bool { return l.seen == window || n < 2*window }

	p := order*columns + 1
	calm, count := make([]float64, len(windows)*columns), 0.0
	levels := make([]int16, 0, n*columns)
	each(func(_ int, l *Scorer) {
		levels = append(levels, l.row(0)...)
		if ripe(l) {
			count++
			for i, v := range l.feature {
				calm[i] += (float64(v) - calm[i]) / count
			}
		}
	})
	m.calm = make([]float32, len(calm))
	for i, v := range calm {
		m.calm[i] = float32(v)
	}

	slower := make([]float32, (len(windows)-1)*columns+1)
	spread, course := newMoments(len(slower), 0), newMoments(p, columns)
	slower[len(slower)-1] = 1
	each(func(_ int, l *Scorer) {
		if ripe(l) {
			copy(slower, l.feature[columns:])
			spread.add(slower, nil)
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
	each(func(_ int, l *Scorer) {
		l.predict()
		copy(residual, l.residual)
		surprise.add(residual, nil)
	})
	if m.surprise, err = surprise.gauss(); err != nil {
		return nil, nil, err
	}

	untimelies := m.days(levels, phase, among)
	kept := [kinds][]float32{restless: nil}
	features := len(windows) + kinds - 1
	stride := 1 + (n-1)/max(1, min(n, most/(features*columns)))
	each(func(r int, l *Scorer) {
		if r%stride != 0 || !ripe(l) {
			return
		}
		l.predict()
		kept[restless] = append(kept[restless], l.feature...)
		kept[jumped] = append(kept[jumped], l.step...)
		for i, v := range l.residual {
			l.step[i] = float32(math.Abs(float64(v)))
		}
		kept[strayed] = append(kept[strayed], l.step...)
		if m.period > 0 && r >= m.period {
			kept[untimely] = append(kept[untimely], untimelies[r*columns:(r+1)*columns]...)
		}
	})
	for kind, values := range kept {
		width, least := columns, float32(leastTail)
		switch kind {
		case restless:
			width = len(windows) * columns
		case untimely:
			least = dayLeast
			if m.period == 0 {
				continue
			}
		}
		m.excess[kind] = newExcess(width)
		column := make([]float32, len(values)/width)
		for i := range width {
			for r := range column {
				column[r] = values[r*width+i]
			}
			m.excess[kind].learn(i, column, least)
		}
	}
	kept = [kinds][]float32{}

	var spreads, surprises []float64
	var sums [kinds][]float64
	each(func(r int, l *Scorer) {
		if !ripe(l) {
			return
		}
		sum := func(kind int, x []float32) {
			sums[kind] = append(sums[kind], m.excess[kind].strengths(l.strength[:len(x)], x))
		}
		l.predict()
		sum(restless, l.feature)
		sum(jumped, l.step)
		for i, v := range l.residual {
			l.step[i] = float32(math.Abs(float64(v)))
		}
		sum(strayed, l.step)
		if m.period > 0 {
			sum(untimely, untimelies[r*columns:(r+1)*columns])
		}
		spreads = append(spreads, m.spread.distance(l.feature[columns:], l.product))
		surprises = append(surprises, m.surprise.distance(l.residual, l.product[:columns]))
	})
	all := make([]float64, len(spreads))
	usual := func(values []float64, weight float64) (median, scale float64) {
		median, scale = middle(slices.Clone(values))
		for i, v := range values {
			all[i] += weight * max(0, (v-median)/scale)
		}
		return median, scale
	}
	m.spread.median, m.spread.scale = usual(spreads, spreadWeight)
	m.surprise.median, m.surprise.scale = usual(surprises, surpriseWeight)
	for kind := range sums {
		if len(sums[kind]) > 0 {
			m.excess[kind].median, m.excess[kind].scale = usual(sums[kind], weights[kind])
		}
	}
	for _, v := range all {
		m.slow += min(v, slowCap) / float64(len(all))
	}
	l := m.Scorer()
	for r := range n {
		for i, v := range rows[r*columns : (r+1)*columns] {
			x[i] = float64(v)
		}
		l.Score(x)
	}
	return m, l, nil
}

// days learns the daily course, if there is one, and returns how far each of the levels
// was from it, 0 where nothing was known yet.
func (m *Model) days(levels []int16, phase int, among []int) []float32 {
	c := m.columns
	if m.period = findPeriod(levels, c, among); m.period == 0 {
		return nil
	}
	n := len(levels) / c
	m.excess[untimely] = newExcess(c)
	m.profile = make([]int16, min(mostSlots, m.period)*c)
	for i := range m.profile {
		m.profile[i] = unseen
	}
	m.phase = phase % m.period
	d := newDay(m)
	out := make([]float32, len(levels))
	for r := range n {
		d.compare(levels[r*c:(r+1)*c], out[r*c:(r+1)*c])
	}
	m.profile = d.profile
	return out
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
