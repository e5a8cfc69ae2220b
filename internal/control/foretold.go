package control

import (
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
	at      time.Time
	horizon time.Duration
	p       float64
}

// labelledAfter is how long after a stretch has ended its incidents are known: crashes are
// when the host is back, and what a person adds takes longer.
const labelledAfter = time.Hour

// say takes what a model says of a host now.
func (o *promises) say(host fleet.HostID, now promise) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of := o.open[host]
	if n := len(of); n > 0 && now.at.Before(of[n-1].at.Add(of[n-1].horizon)) {
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
			if end := said.at.Add(said.horizon); now.Before(end.Add(labelledAfter)) {
				break
			}
			n++
			if came, known := said.came(of[host], seen(host)); known {
				o.kept.Add(said.p, came)
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
	end := s.at.Add(s.horizon)
	came, known = drift.Sound, !seen.Before(end)
	for _, i := range incidents {
		switch {
		case i.To.Before(s.at) || i.From.After(end):
		case i.Failed && !i.From.After(s.at):
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
