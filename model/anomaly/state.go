package anomaly

import "github.com/tardigrade-recovery/tardigrade/model/stream"

func (m *Model) visit(v stream.Visitor) {
	v.Floats(&m.slow)
	v.Ints(&m.phase)
	v.I16(m.profile)
	for _, s := range [][]float32{m.mean, m.inverse, m.coef, m.calm} {
		v.F32(s)
	}
	for k := range m.excess {
		e := &m.excess[k]
		v.F32(e.base)
		v.F32(e.size)
		v.Floats(&e.median, &e.scale)
	}
	for _, g := range []*gauss{&m.spread, &m.surprise} {
		v.F32(g.mean)
		v.F32(g.precision)
		v.Floats(&g.median, &g.scale)
	}
}

func (l *Scorer) visit(v stream.Visitor) {
	v.Ints(&l.head, &l.seen)
	v.I16(l.ring)
	v.F32(l.drift)
	for k := range windows {
		v.I32(l.sum[k])
		v.I64(l.square[k])
	}
	v.Floats(&l.slow, &l.total)
	for k := range holds {
		v.F64(l.held[k])
	}
	v.F64(l.parts)
	d, count := &l.day, int(l.day.count)
	v.Ints(&d.phase, &count)
	d.count = int32(count)
	v.I16(d.profile)
	v.I32(d.total)
	v.F32(d.base)
	v.F32(d.size)
}

// Visit walks over the model's numbers, and then over the scorer's.
func (l live) Visit(v stream.Visitor) {
	l.m.visit(v)
	l.Scorer.visit(v)
}

// Sound also says that all later scores are finite.
func (l live) Sound() bool {
	return l.head < window && l.seen <= window && l.m.sound() && l.Scorer.sound()
}

func newModel(columns, period int) *Model {
	part := func(p int) gauss {
		return gauss{mean: make([]float32, p), precision: make([]float32, p*(p+1)/2)}
	}
	m := &Model{
		columns: columns, period: period, mean: make([]float32, columns), inverse: make([]float32, columns),
		coef: make([]float32, columns*(order*columns+1)), calm: make([]float32, len(windows)*columns), spread: part((len(windows) - 1) * columns), surprise: part(columns),
	}
	m.excess[restless], m.excess[strayed], m.excess[jumped] = newExcess(len(windows)*columns), newExcess(columns), newExcess(columns)
	if period > 0 {
		m.excess[untimely] = newExcess(columns)
		m.profile = make([]int16, min(mostSlots, period)*columns)
	}
	return m
}

func (m *Model) sound() bool {
	for k := range m.excess {
		if e := &m.excess[k]; len(e.base) > 0 && !e.sound() {
			return false
		}
	}
	return m.spread.sound() && m.surprise.sound() && m.phase <= max(0, m.period-1) && m.slow >= 0
}

func (g *gauss) sound() bool { return g.median >= 0 && g.scale > 0 }

// sound says whether the sums are those of the ring: all later sums come from them.
func (l *Scorer) sound() bool {
	if !l.day.sound() {
		return false
	}
	if l.seen == 0 {
		return l.slow >= 0
	}
	c := l.m.columns
	for k, w := range windows {
		for i := range c {
			var sum int32
			var square int64
			for ago := range w {
				q := l.row(ago)[i]
				sum += int32(q)
				square += int64(q) * int64(q)
			}
			if sum != l.sum[k][i] || square != l.square[k][i] {
				return false
			}
		}
	}
	return l.slow >= 0
}

// sound says whether the day can be gone on with.
func (d *day) sound() bool {
	if d.period == 0 {
		return d.phase == 0 && d.count == 0
	}
	for i, b := range d.base {
		if b < 0 || !(d.size[i] > 0) {
			return false
		}
	}
	// A slot has so many samples at most, or is left before.
	return d.phase < d.period && int(d.count) <= d.period/d.slots+1
}
