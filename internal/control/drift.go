package control

import (
	"context"
	"errors"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// driftCount is what the champion of a kind has counted of drift, as the table DRIFT keeps it over a
// restart: one record for each kind, of bounded size.
type driftCount struct {
	Model string    `json:"model"`
	Since time.Time `json:"since"`
	// Seen is for how long of the time since then there were samples.
	Seen time.Duration `json:"seen_ns"`
	// Asked says for what a training was asked, and when.
	Asked    map[string]time.Time       `json:"asked"`
	Window   drift.Counts               `json:"window"`
	Tails    drift.Tails                `json:"tails"`
	Outcomes drift.Outcomes             `json:"outcomes"`
	Promises map[fleet.HostID][]promise `json:"promises"`
}

// count is what a model has counted; ok is false where it counts nothing.
func (m *seated) count() (c driftCount, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.window == nil {
		return driftCount{}, false
	}
	c = driftCount{Model: m.version.ID, Since: m.since, Seen: m.seen, Asked: make(map[string]time.Time), Window: m.window.Counts(), Tails: m.tails}
	for why, at := range m.asked {
		if !m.refused[why] { // after a restart it is asked for again
			c.Asked[why] = at
		}
	}
	c.Promises, c.Outcomes = m.said.stored()
	return c, true
}

// restore lets a model that has counted nothing yet go on with what it had counted before a restart. What
// cannot be that is refused, and it counts anew.
func (m *seated) restore(c driftCount) error {
	future := time.Now().Add(time.Hour)
	late := c.Since.IsZero() || c.Since.After(future) || c.Seen < 0 || c.Seen > future.Sub(c.Since) || len(c.Asked) > 2
	for _, at := range c.Asked {
		late = late || at.After(future)
	}
	if late {
		return errors.New("it was begun, or a training was asked for, at a time that cannot be")
	}
	if err := c.Tails.Check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.window == nil {
		return errors.New("the model has nothing to compare live data with")
	}
	if err := m.window.Restore(c.Window); err != nil {
		return err
	}
	if err := m.said.restore(c.Promises, c.Outcomes); err != nil {
		m.window.Reset()
		return err
	}
	m.since, m.seen, m.tails = c.Since, c.Seen, c.Tails
	for why, at := range c.Asked {
		m.asked[why] = at
	}
	return nil
}

// askAgain is after how long a training is asked for again that was asked for and changed nothing.
const askAgain = 24 * time.Hour

// asks tells whether a training is to be asked for, since none was within a day or that was refused, and
// whether that is to be said too, and notes it.
func (m *seated) asks(why string, now time.Time) (ask, say bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if last, asked := m.asked[why]; asked && now.Sub(last) < askAgain {
		return m.refused[why], false
	}
	m.asked[why] = now
	return true, true
}

// refuses notes whether the training that was asked for was refused.
func (m *seated) refuses(why string, refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused[why] = refused
}

// restoreDrift lets a champion go on counting where it was before a restart.
func (p *Plane) restoreDrift(kind registry.Kind, m *seated) {
	if p.drifts == nil {
		return
	}
	c, _, ok := p.drifts.Find(string(kind))
	if !ok || c.Model != m.version.ID { // of another champion
		return
	}
	if err := m.restore(c); err != nil {
		p.log.Warn("what was counted of a model's drift is not used, it is counted anew", "model", m.version.ID, "table", "DRIFT", "key", kind, "err", err)
	}
}

// saveCounts stores what champions have counted, and how shadows compare with them.
func (p *Plane) saveCounts(ctx context.Context) {
	if p.drifts == nil {
		return
	}
	for _, k := range registry.Kinds() {
		if m := p.roster.of(k).champion; m != nil {
			if c, ok := m.count(); ok {
				if _, err := p.drifts.Put(ctx, string(k), c); err != nil {
					p.log.Error("what was counted of a model's drift was not stored; a restart counts anew since the last time that it was", "model", m.version.ID, "err", err)
				}
			}
		}
		if c, ok := p.roster.comparing(k); ok {
			if _, err := p.shadows.Put(ctx, string(k), c); err != nil {
				p.log.Error("how a shadow compares was not stored; a restart compares anew since the last time that it was", "model", c.Shadow, "err", err)
			}
		}
	}
}
