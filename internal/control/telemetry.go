package control

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// history reads telemetry back, for graphs and for training, in bounded memory: see
// [influx.Client.Query], whose words hold for the stream too.
type history interface {
	Query(ctx context.Context, host fleet.HostID, metrics []string, from, to time.Time, step time.Duration) iter.Seq2[influx.Row, error]
}

// streamHistory reads what the stream of samples still has. Its rows come in the order of
// time, all series of an instant together, but for single values that came late.
type streamHistory struct {
	bus *bus.Bus
	// hosts lists the hosts, for queries about all of them.
	hosts func() []fleet.HostID
}

func (h streamHistory) Query(ctx context.Context, host fleet.HostID, metrics []string, from, to time.Time, step time.Duration) iter.Seq2[influx.Row, error] {
	hosts := []fleet.HostID{host}
	if host == "" {
		hosts = h.hosts()
	}
	return func(yield func(influx.Row, error) bool) {
		for _, id := range hosts {
			w := windows{host: id, step: step, from: from, yield: yield, open: make(map[time.Time]map[string]*mean)}
			err := h.bus.History(ctx, id, from, to, func(s fleet.Sample) bool {
				for i, name := range s.Schema.Names() {
					if v := s.Values[i]; v == v && wanted(metrics, name) && !w.add(s.Time, name, v) {
						return false
					}
				}
				return true
			})
			if w.stopped || err == nil && !w.flush(to.Add(1)) {
				return
			}
			if err != nil {
				yield(influx.Row{}, err)
				return
			}
		}
	}
}

// wanted tells whether a series was asked for: by its name, by its metric, or because
// everything was.
func wanted(metrics []string, series string) bool {
	return len(metrics) == 0 || slices.ContainsFunc(metrics, func(m string) bool {
		return m == series || strings.HasPrefix(series, m) && series[len(m)] == '{'
	})
}

// lateness is how much later than newer samples one may come and still count in its
// window.
const lateness = time.Hour

// windows averages the series of a host over windows of time.
type windows struct {
	host    fleet.HostID
	step    time.Duration
	from    time.Time
	yield   func(influx.Row, error) bool
	open    map[time.Time]map[string]*mean
	newest  time.Time
	stopped bool
}

type mean struct {
	sum float64
	n   int
}

// add takes a value and returns false once nobody wants more. With a step of 0 every
// value is a row.
func (w *windows) add(at time.Time, series string, v float64) bool {
	if w.step <= 0 {
		w.stopped = !w.yield(influx.Row{Host: w.host, Series: series, Time: at, Value: v}, nil)
		return !w.stopped
	}
	begin := at.Truncate(w.step)
	if begin.After(w.newest) {
		w.newest = begin
		if !w.flush(begin.Add(-lateness)) {
			return false
		}
	}
	window := w.open[begin]
	if window == nil {
		window = make(map[string]*mean)
		w.open[begin] = window
	}
	m := window[series]
	if m == nil {
		m = &mean{}
		window[series] = m
	}
	m.sum += v
	m.n++
	return true
}

// flush gives out the windows that begin before an instant, in order.
func (w *windows) flush(before time.Time) bool {
	var rows []influx.Row
	for begin, window := range w.open {
		if !begin.Before(before) {
			continue
		}
		at := begin
		if at.Before(w.from) {
			at = w.from
		}
		for series, m := range window {
			rows = append(rows, influx.Row{Host: w.host, Series: series, Time: at, Value: m.sum / float64(m.n)})
		}
		delete(w.open, begin)
	}
	slices.SortFunc(rows, func(a, b influx.Row) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Series, b.Series)) })
	for _, r := range rows {
		if !w.yield(r, nil) {
			w.stopped = true
			return false
		}
	}
	return true
}

// influxHistory reads from InfluxDB, and from the stream while that does not answer.
type influxHistory struct {
	client *influx.Client
	stream history
}

func (h influxHistory) Query(ctx context.Context, host fleet.HostID, metrics []string, from, to time.Time, step time.Duration) iter.Seq2[influx.Row, error] {
	return func(yield func(influx.Row, error) bool) {
		some := false
		for row, err := range h.client.Query(ctx, host, metrics, from, to, step) {
			if err == nil {
				some = true
				if !yield(row, nil) {
					return
				}
				continue
			}
			if some { // a part of the answer cannot be taken back
				yield(row, err)
				return
			}
			for row, failed := range h.stream.Query(ctx, host, metrics, from, to, step) {
				if failed != nil {
					failed = errors.Join(err, failed)
				}
				if !yield(row, failed) {
					return
				}
			}
			return
		}
	}
}
