package control

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
)

// promises are what a failure model has said of hosts, until it is known what came. Of each host one
// is kept for each stretch of a horizon, so that a failure counts once.
type promises struct {
	mu   sync.Mutex
	open map[fleet.HostID][]promise
	kept drift.Outcomes
}

// promise is the probability that a host fails within horizon from then on.
type promise struct {
	At      time.Time     `json:"at"`
	Horizon time.Duration `json:"horizon_ns"`
	P       float64       `json:"p"`
}

// end is when it is known whether the host failed.
func (s promise) end() time.Time { return s.At.Add(s.Horizon) }

// labelledAfter is how long after a stretch has ended its incidents are known: crashes are
// when the host is back, and what a person adds takes longer.
const labelledAfter = time.Hour

// say takes what a model says of a host now.
func (o *promises) say(host fleet.HostID, now promise) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of := o.open[host]
	if n := len(of); n > 0 && now.At.Before(of[n-1].end()) {
		return
	}
	if o.open == nil {
		o.open = make(map[fleet.HostID][]promise)
	}
	o.open[host] = append(of, now)
}

// settle holds what was said against what happened. seen is when a host was last sampled: nobody knows
// what came of one that was lost within the stretch.
func (o *promises) settle(now time.Time, incidents []fleet.Incident, seen func(fleet.HostID) time.Time) {
	of := make(map[fleet.HostID][]fleet.Incident)
	for _, i := range incidents {
		of[i.Host] = append(of[i.Host], i)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for host, all := range o.open {
		n := 0
		for _, said := range all {
			if now.Before(said.end().Add(labelledAfter)) {
				break
			}
			n++
			if came, known := said.came(of[host], seen(host)); known {
				o.kept.Add(said.P, came)
			}
		}
		switch last := len(all) - 1; {
		case n == 0:
		case n <= last:
			o.open[host] = append([]promise(nil), all[n:]...)
		default:
			delete(o.open, host)
		}
	}
}

// came is what came of a host; known is false where nobody can tell, or where it was failing already.
func (s promise) came(incidents []fleet.Incident, seen time.Time) (came drift.Outcome, known bool) {
	end := s.end()
	came, known = drift.Sound, !seen.Before(end)
	for _, i := range incidents {
		switch {
		case i.To.Before(s.At) || i.From.After(end):
		case i.Failed && !i.From.After(s.At):
			return came, false
		case i.Failed:
			return drift.Failed, true
		case i.Source == fleet.IncidentExecution:
			came, known = drift.Averted, true
		}
	}
	return came, known
}

// outcomes are those known so far.
func (o *promises) outcomes() drift.Outcomes {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept
}

// mostPromises is how many are stored, so that a record stays well under the megabyte that the bus takes:
// those of some two thousand hosts.
const mostPromises = 4000

// stored is a copy of what is open, of no more hosts than can be stored, and the outcomes.
func (o *promises) stored() (map[fleet.HostID][]promise, drift.Outcomes) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out, n := make(map[fleet.HostID][]promise), 0
	for _, host := range slices.Sorted(maps.Keys(o.open)) {
		if n += len(o.open[host]); n > mostPromises {
			break
		}
		out[host] = slices.Clone(o.open[host])
	}
	return out, o.kept
}

// restore takes the place of all that was said before.
func (o *promises) restore(open map[fleet.HostID][]promise, kept drift.Outcomes) error {
	if err := kept.Check(); err != nil {
		return err
	}
	n := 0
	for host, of := range open {
		n += len(of)
		for i, s := range of {
			if !(s.P >= 0 && s.P <= 1) || s.Horizon <= 0 || s.At.After(time.Now().Add(time.Hour)) || i > 0 && s.At.Before(of[i-1].end()) {
				return fmt.Errorf("of host %.100s it was said that it fails with probability %v within %v of %v", host, s.P, s.Horizon, s.At)
			}
		}
	}
	if n > mostPromises {
		return fmt.Errorf("%d probabilities, where %d may be", n, mostPromises)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open, o.kept = maps.Clone(open), kept
	return nil
}
