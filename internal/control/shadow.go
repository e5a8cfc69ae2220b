package control

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// mostCompared is how many hosts and alarms of them are stored, so that a record stays well under the
// megabyte that the bus takes.
const mostCompared = 4000

// comparing is a copy of what was compared of a kind, to be kept over a restart in the table SHADOWS; ok is
// false where there is no shadow.
func (r *roster) comparing(k registry.Kind) (out comparing, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.compared[k]
	if c == nil {
		return comparing{}, false
	}
	return c.copied(), true
}

// copied is a copy, of no more hosts than can be stored.
func (c *comparing) copied() comparing {
	out, n := comparing{Comparison: c.Comparison, ByHost: make(map[fleet.HostID]*compared)}, 0
	for _, id := range slices.Sorted(maps.Keys(c.ByHost)) {
		h := *c.ByHost[id]
		if n += 1 + len(h.Alarms[0]) + len(h.Alarms[1]); n > mostCompared {
			break
		}
		h.Alarms = [2][]time.Time{slices.Clone(h.Alarms[0]), slices.Clone(h.Alarms[1])}
		out.ByHost[id] = &h
	}
	return out
}

// check says what is wrong with what was stored.
func (c *comparing) check() error {
	future := time.Now().Add(time.Hour)
	if c.Since.IsZero() || c.Since.After(future) {
		return fmt.Errorf("it was begun at %s", c.Since.Format(time.RFC3339))
	}
	if most := c.Samples; most < 0 || c.AlarmsChampion < 0 || c.AlarmsShadow < 0 || c.AlarmsChampion > most || c.AlarmsShadow > most || int64(len(c.ByHost)) > most {
		return fmt.Errorf("%d and %d alarms of %d samples of %d hosts", c.AlarmsChampion, c.AlarmsShadow, c.Samples, len(c.ByHost))
	}
	for id, h := range c.ByHost {
		if h == nil || h.To.Before(h.From) || h.To.After(future) || len(h.Alarms[0]) > mostAlarms || len(h.Alarms[1]) > mostAlarms {
			return fmt.Errorf("of host %.100s it says what cannot be", id)
		}
	}
	return nil
}

// storedShadow is what was compared of a crew before a restart, nil where nothing was.
func (p *Plane) storedShadow(k registry.Kind, crew *crew) *comparing {
	c, _, ok := p.shadows.Find(string(k))
	shadow, champion := crew.ids()
	if !ok || c.Shadow != shadow || c.Champion != champion || c.Since.Before(crew.shadow.version.Since) || champion != "" && c.Since.Before(crew.champion.version.Since) {
		return nil // of others, or of these at another time
	}
	if err := c.check(); err != nil {
		p.log.Warn("what a shadow was compared with its champion is not used, it is compared anew", "model", shadow, "table", "SHADOWS", "key", k, "err", err)
		return nil
	}
	c = c.copied() // the table keeps its own
	return &c
}
