package control

import (
	"context"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// point is one value of a series, the mean over a step that begins at Time.
type point struct {
	Time  time.Time
	Value float64
}

// history reads one series of a host.
type history interface {
	read(ctx context.Context, host fleet.HostID, series string, from, to time.Time, step time.Duration) ([]point, error)
}

// streamHistory reads what the sample stream still has.
type streamHistory struct{ bus *bus.Bus }

func (h streamHistory) read(ctx context.Context, host fleet.HostID, series string, from, to time.Time, step time.Duration) ([]point, error) {
	var m meaner
	m.step = step
	err := h.bus.History(ctx, host, from, to, func(s fleet.Sample) bool {
		if v, ok := s.Value(series); ok {
			m.add(s.Time, v)
		}
		return true
	})
	return m.done(), err
}

// meaner averages values in order of time over steps. With a step of 0 every
// value stands for itself.
type meaner struct {
	step   time.Duration
	points []point
	begin  time.Time
	sum    float64
	n      int
}

func (m *meaner) add(at time.Time, v float64) {
	if m.step <= 0 {
		m.points = append(m.points, point{at, v})
		return
	}
	if begin := at.Truncate(m.step); m.n == 0 || !begin.Equal(m.begin) {
		m.flush()
		m.begin = begin
	}
	m.sum += v
	m.n++
}

func (m *meaner) flush() {
	if m.n > 0 && !math.IsNaN(m.sum) {
		m.points = append(m.points, point{m.begin, m.sum / float64(m.n)})
	}
	m.sum, m.n = 0, 0
}

func (m *meaner) done() []point {
	m.flush()
	return m.points
}
