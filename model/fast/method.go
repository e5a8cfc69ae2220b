package fast

import (
	"fmt"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

// Method is this way to score. It knows no days.
var Method stream.Method = method{}

type method struct{}

func (method) Name() string { return "fast" }

func (method) Fit(rows []float32, columns int, _ stream.Days) (stream.Scorer, error) {
	_, s, err := fit(rows, columns)
	if err != nil {
		return nil, err
	}
	return live{s}, nil
}

func (method) Empty(columns, period int) (stream.Scorer, error) {
	if period > 0 {
		return nil, fmt.Errorf("a day of %d samples", period)
	}
	return live{newModel(columns).Scorer()}, nil
}

// live is a scorer under a [stream.Detector].
type live struct{ *Scorer }

func (l live) Seek(time.Time)              {}
func (l live) Reset()                      { l.Rewind() }
func (l live) Rewind()                     { *l.Scorer = *l.m.Scorer() }
func (l live) Size() (columns, period int) { return l.m.columns, 0 }
func (l live) Sound() bool                 { return l.seen <= warm && l.sound() }
func (l live) Bytes() (model, state int)   { return l.m.Bytes(), l.Scorer.Bytes() }

func (l live) Visit(v stream.Visitor) {
	for _, numbers := range l.m.numbers() {
		v.F32(numbers)
	}
	v.F32(l.state)
	s, m := l.Scorer, l.m
	for _, n := range []*float32{&m.spread.median, &m.spread.unit, &m.surprise.median, &m.surprise.unit, &m.slow, &s.rate, &s.slow} {
		one := []float32{*n}
		v.F32(one)
		*n = one[0]
	}
	v.Ints(&s.seen)
	v.Floats(&s.total)
}

// sound says whether all values are possible, so that no score is ever not a number.
func (s *Scorer) sound() bool {
	m := s.m
	for _, c := range []struct {
		values    []float32
		low, high float32
	}{
		{m.mean, -math.MaxFloat32, math.MaxFloat32}, {m.inverse, 0, stream.MostInverse}, {m.calm, 0, 1e3},
		{m.a, -1e6, 1e6}, {m.b, -1.01, 1.01}, {m.bias, -1e6, 1e6},
		{m.spread.scale, 0, 10.01}, {m.spread.u, -1.01, 1.01}, {m.surprise.scale, 0, 10.01}, {m.surprise.u, -1.01, 1.01},
		{s.past, -100, 100}, {s.variance, 0, 1e5}, {s.drift, -1e3, 1e3}, {s.held, -1e9, 1e9}, {s.parts, -1e9, 1e9},
		{s.spread, -1e9, 1e9}, {s.rest, -1e15, 1e15},
		{[]float32{m.spread.unit, m.surprise.unit}, 0.05, 1e9}, {[]float32{m.spread.median, m.surprise.median}, 0, 1e9},
		{[]float32{m.slow, s.slow}, 0, slowCap}, {[]float32{s.rate}, 0, 1.01 / driftTau},
	} {
		for _, v := range c.values {
			if !(v >= c.low && v <= c.high) {
				return false
			}
		}
	}
	return s.total >= -1e12 && s.total <= 1e12
}
