package collector

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a moment on the three clocks that matter.
type instant struct {
	wall time.Time
	// running is the time that the machine ran, without suspension.
	running time.Duration
	// boot is the time since boot, with suspension.
	boot time.Duration
}

func now() instant {
	wall := time.Now()
	return instant{wall: wall, running: wall.Sub(programStart), boot: bootTime()}
}

func bootTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// clockState is what the kernel says of its clock's discipline.
type clockState struct {
	offset       time.Duration // that is still to be slewed
	synchronized bool
	maxError     time.Duration
}

func adjtimex() (clockState, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return clockState{}, err
	}
	unit := time.Microsecond
	if t.Status&unix.STA_NANO != 0 {
		unit = time.Nanosecond
	}
	return clockState{
		offset:       time.Duration(t.Offset) * unit,
		synchronized: t.Status&unix.STA_UNSYNC == 0,
		maxError:     time.Duration(t.Maxerror) * time.Microsecond,
	}, nil
}

var clockMetrics = []Metric{
	gauge("clock_offset_seconds", "seconds", "what the kernel still has to slew the clock by", "adjtimex(2)"),
	gauge("clock_max_error_seconds", "seconds", "bound of the clock's error as the kernel estimates it", "adjtimex(2)"),
	state("clock_synchronized", "whether a time service keeps the clock in step", "adjtimex(2)"),
	gauge("clock_step_seconds", "seconds", "by how much the clock was set forward (or back, negative) since the sample before", "clock_gettime(2)"),
	gauge("clock_suspended_seconds", "seconds", "how long the machine was suspended since the sample before", "clock_gettime(2)"),
	gauge("uptime_seconds", "seconds", "time since boot", "/proc/uptime"),
}

type clockSource struct {
	h      *host
	uptime *file
	last   instant
}

func newClockSource(h *host) source {
	return &clockSource{h: h, uptime: h.kept(filepath.Join(h.proc, "uptime"))}
}

func (s *clockSource) close() error { s.uptime.close(); return nil }

func (s *clockSource) collect(_ context.Context, f *frame) error {
	t := s.h.clock()
	if !s.last.wall.IsZero() && t.boot > s.last.boot {
		// Round strips the monotonic reading, so that the wall clock's steps show.
		wall := t.wall.Round(0).Sub(s.last.wall.Round(0))
		f.set("clock_step_seconds", quiet((wall - (t.boot - s.last.boot)).Seconds()))
		f.set("clock_suspended_seconds", quiet(((t.boot - s.last.boot) - (t.running - s.last.running)).Seconds()))
	}
	s.last = t
	b, uptimeErr := s.uptime.read()
	if uptimeErr == nil {
		field, _ := cutField(b)
		if v, ok := parseDecimal(field); ok {
			f.set("uptime_seconds", v)
		}
	}
	state, err := s.h.adjust()
	if err == nil {
		f.set("clock_offset_seconds", state.offset.Seconds())
		f.set("clock_synchronized", b2f(state.synchronized))
		if state.synchronized { // the kernel's bound means nothing else
			f.set("clock_max_error_seconds", state.maxError.Seconds())
		}
	}
	return errors.Join(err, uptimeErr)
}

// quiet takes the time between two readings of different clocks for 0.
func quiet(seconds float64) float64 {
	if math.Abs(seconds) < 0.001 {
		return 0
	}
	return seconds
}

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
