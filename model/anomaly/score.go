package anomaly

import (
	"math"
	"slices"
)

// gauss is one part: a Mahalanobis distance and what it is while learning.
type gauss struct {
	mean      []float32
	precision []float32 // lower triangle with the diagonal, row by row
	median    float64
	scale     float64 // 99th percentile minus median
}

// Model is the normal of a host, or of many that are alike. It does not change and may
// be shared by scorers.
type Model struct {
	columns  int
	mean     []float32
	inverse  []float32 // of the deviation; 0 for a column that was never there
	coef     []float32 // for each column: of order samples, the latest first, and the constant
	calm     []float32 // means of the moving deviations, a window after the other
	spread   gauss     // of the slower moving deviations' distances from their slow means
	surprise gauss
	excess   [kinds]excess
	period   int     // samples of a day; 0 where there is no daily course
	phase    int     // which of them the first learned sample was
	profile  []int16 // the day as it was learned, a slot after the other
	slow     float64 // mean of the parts' sum, at the end of learning
}

// Bytes is the memory that the model holds.
func (m *Model) Bytes() int {
	n := len(m.mean) + len(m.inverse) + len(m.coef) + len(m.calm)
	for _, g := range []*gauss{&m.spread, &m.surprise} {
		n += len(g.mean) + len(g.precision)
	}
	for k := range m.excess {
		n += 2 * len(m.excess[k].base)
	}
	return 4*n + 2*len(m.profile)
}

// Scorer scores the samples of one host, in order. It is not safe for concurrent use.
type Scorer struct {
	m *Model

	ring   []int16 // window rows of logarithmic z-scores
	head   int     // the latest row
	seen   int     // samples, up to window
	sum    [len(windows)][]int32
	square [len(windows)][]int64
	drift  []float32 // slow means of the moving deviations
	day    day
	slow   float64
	held   [len(holds)][]float64 // exponential means of the parts
	parts  []float64             // of the last score
	total  float64

	lags, feature, residual, product, step, strength []float32
	absent                                           []bool
}

// Scorer returns one at the begin of a stream, at the time of day at which learning began.
func (m *Model) Scorer() *Scorer {
	columns := m.columns
	l := &Scorer{
		m: m, slow: m.slow, parts: make([]float64, columns), drift: slices.Clone(m.calm), day: newDay(m),
		ring: make([]int16, window*columns),
		lags: vector(order*columns + 1), feature: vector(len(windows) * columns), step: make([]float32, columns),
		residual: vector(columns), product: vector(len(windows) * columns), absent: make([]bool, columns),
		strength: make([]float32, len(windows)*columns),
	}
	for k := range holds {
		l.held[k] = make([]float64, columns)
	}
	for k := range windows {
		l.sum[k], l.square[k] = make([]int32, columns), make([]int64, columns)
	}
	return l
}

// vector is of n zeros, aligned to 16 bytes, as everything is that takes at least 32: gonum's dot
// product adds up in an order that depends on the alignment, and a score must not
// depend on where it is computed.
func vector(n int) []float32 { return make([]float32, n, max(n, 8)) }

// Bytes is the memory that the scorer holds beside its model.
func (l *Scorer) Bytes() int {
	c := len(l.parts)
	return 2*len(l.ring) + len(windows)*12*c + (8*len(holds)+9)*c + l.day.bytes() +
		4*(len(l.drift)+len(l.lags)+len(l.feature)+len(l.residual)+len(l.product)+len(l.step)+len(l.strength))
}

// row is the row so many samples ago.
func (l *Scorer) row(ago int) []int16 {
	r := l.head - ago
	if r < 0 {
		r += window
	}
	c := len(l.parts)
	return l.ring[r*c : (r+1)*c]
}

// push takes in a sample: lags become the samples before it, residual its logarithmic
// z-scores, step their distances from the last ones, and feature the distances of the
// moving deviations from their slow means.
func (l *Scorer) push(x []float64) {
	m := l.m
	c := m.columns
	last := l.row(0)
	var before [len(windows)][]int16
	if l.seen > 0 {
		for k := range order {
			for i, q := range l.row(k) {
				l.lags[k*c+i] = float32(q) * (1.0 / steps)
			}
		}
		for k, w := range windows {
			before[k] = l.row(w - 1)
		}
	}
	l.lags[order*c] = 1
	l.head = (l.head + 1) % window
	now := l.row(0)
	for i := range c {
		v := math.NaN()
		if i < len(x) {
			v = x[i]
		}
		q := last[i]
		z := (v - float64(m.mean[i])) * float64(m.inverse[i])
		if l.absent[i] = math.IsNaN(z) || math.IsInf(v, 0); !l.absent[i] {
			y := math.Copysign(bend*math.Log1p(math.Abs(z)/bend), z)
			q = int16(math.RoundToEven(max(-127, min(127, y)) * steps))
		}
		l.residual[i] = float32(q) * (1.0 / steps)
		l.step[i] = float32(abs(int32(q)-int32(last[i]))) * (1.0 / steps)
		n := int64(q)
		for k := range windows {
			if l.seen > 0 {
				o := int64(before[k][i])
				l.sum[k][i] += int32(n - o)
				l.square[k][i] += n*n - o*o
				w := int64(windows[k])
				s := int64(l.sum[k][i])
				l.feature[k*c+i] = float32(math.Sqrt(float64(w*l.square[k][i]-s*s))) / float32(w*steps)
			} else {
				l.sum[k][i] = int32(n) * int32(windows[k])
				l.square[k][i] = n * n * int64(windows[k])
				l.feature[k*c+i] = 0
			}
		}
		now[i] = q
	}
	if l.seen++; l.seen == 1 {
		// The first sample stands for those before it.
		for r := range window {
			copy(l.ring[r*c:(r+1)*c], now)
		}
		clear(l.step)
		for k := range order {
			copy(l.lags[k*c:(k+1)*c], l.residual)
		}
	}
	l.seen = min(l.seen, window)
	if m.calm == nil {
		return
	}
	for k, w := range windows {
		if l.seen < w { // too young to be judged
			clear(l.feature[k*c : (k+1)*c])
			continue
		}
		for i := k * c; i < (k+1)*c; i++ {
			l.feature[i] -= l.drift[i]
		}
	}
}

// predict takes the forecast off the residual. What is missing has no residual.
func (l *Scorer) predict() {
	m := l.m
	p := len(l.lags)
	for i := range m.columns {
		if l.absent[i] {
			l.residual[i] = 0
			continue
		}
		l.residual[i] -= blas.Sdot(p, m.coef[i*p:(i+1)*p], 1, l.lags, 1)
	}
}

// distance centres x and returns its Mahalanobis distance; product becomes the
// precision times x.
func (g *gauss) distance(x, product []float32) float64 {
	for i, v := range g.mean {
		x[i] -= v
	}
	at := 0
	for i, v := range x {
		row := g.precision[at : at+i+1]
		at += i + 1
		product[i] = blas.Sdot(i+1, row, 1, x, 1)
		if i > 0 {
			blas.Saxpy(i, v, row, 1, product, 1)
		}
	}
	return math.Sqrt(max(0, float64(blas.Sdot(len(x), x, 1, product, 1))))
}

// units is the distance in units of the learning period.
func (g *gauss) units(distance float64) float64 {
	return max(0, (distance-g.median)/g.scale)
}

// split adds each column's part of the value to parts.
func split(value float64, x, product []float32, parts []float64) {
	if value == 0 {
		return
	}
	q := 0.0
	for i, v := range x {
		q += float64(v) * float64(product[i])
	}
	if q <= 0 {
		return
	}
	k, c := value/q, len(parts)
	for at := 0; at < len(x); at += c {
		p := product[at:]
		for i, v := range x[at : at+c] {
			parts[i] += k * float64(v) * float64(p[i])
		}
	}
}

// add adds the weighted part of the excesses of some features to the columns' parts, and
// returns what it added.
func (l *Scorer) add(kind int, e excess, x []float32) float64 {
	sum := e.strengths(l.strength[:len(x)], x)
	v := weights[kind] * max(0, (sum-e.median)/e.scale)
	if v == 0 {
		return 0
	}
	k, c := v/sum, len(l.parts)
	for at := 0; at < len(x); at += c {
		for i, s := range l.strength[at : at+c] {
			if s != 0 {
				l.parts[i] += k * float64(s)
			}
		}
	}
	return v
}

// Score takes the next sample; NaN and infinities are missing, and so is what is left
// out at the end. The score is 0 where all is as while learning, and has no unit.
func (l *Scorer) Score(x []float64) float64 {
	m, parts := l.m, l.parts
	clear(parts)
	l.push(x)
	l.predict()
	sum := l.add(restless, m.excess[restless], l.feature)
	sum += l.add(jumped, m.excess[jumped], l.step)
	for i, r := range l.residual {
		l.step[i] = float32(math.Abs(float64(r)))
	}
	sum += l.add(strayed, m.excess[strayed], l.step)
	if m.period > 0 {
		l.day.compare(l.row(0), l.step)
		sum += l.add(untimely, excess{l.day.base, l.day.size, m.excess[untimely].median, m.excess[untimely].scale}, l.step)
		l.day.adapt(l.step)
	}
	slower := l.feature[m.columns:]
	spread := spreadWeight * m.spread.units(m.spread.distance(slower, l.product))
	split(spread, slower, l.product, parts)
	surprise := surpriseWeight * m.surprise.units(m.surprise.distance(l.residual, l.product[:m.columns]))
	split(surprise, l.residual, l.product[:m.columns], parts)
	sum += spread + surprise
	k := 1 / (1 + slowWeight*l.slow)
	l.slow += (min(sum, slowCap) - l.slow) / slowTau
	now := k * sum
	l.follow(m, float32(min(1, 1/max(now, 1e-9))/driftTau))
	l.total = 0
	var capped [len(holds)]float64
	for j, h := range holds {
		capped[j] = k * min(1, h.limit/max(now, 1e-9))
	}
	for i, p := range parts {
		parts[i] = k * p
		for j, h := range holds {
			l.held[j][i] += h.rate * (capped[j]*p - l.held[j][i])
			parts[i] += h.weight * l.held[j][i]
		}
		l.total += parts[i]
	}
	return l.total
}

// follow moves the slow means towards the features, which the spread has centred.
func (l *Scorer) follow(m *Model, rate float32) {
	for k, w := range windows {
		if l.seen >= w {
			for i := k * m.columns; i < (k+1)*m.columns; i++ {
				v := l.feature[i]
				if k > 0 { // the spread has centred it
					v += m.spread.mean[i-m.columns]
				}
				l.drift[i] += rate * v
			}
		}
	}
}

// Explain fills dst, of as many values as the model has columns, with each column's part
// of the last score and returns the score, which is the sum of the parts.
func (l *Scorer) Explain(dst []float64) float64 {
	copy(dst, l.parts)
	return l.total
}

func abs(v int32) int32 {
	if v < 0 {
		return -v
	}
	return v
}
