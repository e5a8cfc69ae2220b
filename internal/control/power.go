package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/power"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// cycler takes a host's power away and gives it back.
type cycler interface {
	Cycle(ctx context.Context) error
}

// powerLimit bounds a power cycle.
const powerLimit = 2 * time.Minute

// mains cycles the power of hosts that a migration emptied, where the configuration
// allows that. The intent is in the host's cordon before the effect; one of which the
// outcome is not known is left to a person, never repeated.
type mains struct {
	bmcs    map[fleet.HostID]cycler
	cordons *cordons
	hosts   *hosts
	// blocked says why nothing may be done to a host now, "" if it may.
	blocked func(context.Context, fleet.Host) string
	audit   auditor
	log     *slog.Logger
}

// newMains reads the passwords; without power.cycle_emptied there are no controllers.
func newMains(c config.Power, cordons *cordons, hosts *hosts, blocked func(context.Context, fleet.Host) string, audit auditor, log *slog.Logger) (*mains, error) {
	m := &mains{bmcs: make(map[fleet.HostID]cycler), cordons: cordons, hosts: hosts, blocked: blocked, audit: audit, log: log}
	if !c.CycleEmptied {
		return m, nil
	}
	for id, b := range c.Hosts {
		password, err := os.ReadFile(b.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("power.hosts.%s.password_file: %w", id, err)
		}
		if m.bmcs[id], err = power.New(b.Address, b.User, strings.TrimSpace(string(password))); err != nil {
			return nil, fmt.Errorf("power.hosts.%s: %w", id, err)
		}
	}
	return m, nil
}

// watch looks after the emptied hosts until ctx ends.
func (m *mains) watch(ctx context.Context) error {
	if len(m.bmcs) == 0 {
		return nil
	}
	m.resume(ctx)
	return regularly(ctx, time.Second, func(time.Time) {
		for id, bmc := range m.bmcs {
			if m.due(ctx, id) {
				m.cycle(ctx, id, bmc)
			}
		}
	})
}

// resume leaves power cycles that an earlier control plane began to a person.
func (m *mains) resume(ctx context.Context) {
	for _, c := range m.cordons.table.All() {
		if c.Lifted.IsZero() && c.Power == fleet.PowerIntended {
			m.settle(ctx, c.Host, fleet.PowerFailed, "the control plane was interrupted in the power cycle, so it may or may not have happened: look at the host")
		}
	}
}

// due tells whether a host was emptied, has no VM that runs, and was not cycled yet.
func (m *mains) due(ctx context.Context, id fleet.HostID) bool {
	c, ok := m.cordons.find(id)
	if !ok || !c.Emptied || c.Power != "" {
		return false
	}
	h, ok := m.hosts.find(id)
	if !ok || h.Simulated || h.DryRun || !m.hosts.counted(id).After(c.Since) {
		return false
	}
	for _, vm := range h.VMs {
		if vm.State != "shut-off" {
			return false
		}
	}
	return m.blocked(ctx, h) == ""
}

// powerBlocked says why the power of a host must not be cycled now: a freeze, a dry run,
// or an execution that is under way on it.
func (p *Plane) powerBlocked(ctx context.Context, h fleet.Host) string {
	policy, state, err := p.surroundings.Surroundings(ctx)
	if err != nil {
		return err.Error()
	}
	if policy.DryRun {
		return "the policy is a dry run"
	}
	for _, f := range state.Freezes {
		if !over(f, time.Now()) && (f.Host == "" || f.Host == h.ID) && (f.FaultDomain == "" || f.FaultDomain == h.FaultDomain) {
			return "it is frozen: " + f.Reason
		}
	}
	for _, r := range p.executions.All() {
		if r.Host == h.ID && !r.State.Final() {
			return "an execution is under way on it: " + r.ID
		}
	}
	return ""
}

// cycle cycles the power of an emptied host once.
func (m *mains) cycle(ctx context.Context, id fleet.HostID, bmc cycler) {
	errDone := errors.New("it was begun already")
	intent := func(c *fleet.Cordon) error {
		if c.Power != "" || !c.Lifted.IsZero() {
			return errDone
		}
		c.Power = fleet.PowerIntended
		return nil
	}
	if err := m.audit.Append(ctx, automatic, "power.cycle", string(id), nil); err != nil {
		m.log.Error("the power of an emptied host is not cycled without an audit trail, trying again", "host", id, "err", err)
		return
	}
	if _, err := m.cordons.table.Change(ctx, string(id), intent); err != nil {
		if !errors.Is(err, errDone) {
			m.log.Error("the power of an emptied host is not cycled yet, trying again", "host", id, "err", err)
		}
		return
	}
	m.log.Warn("the power of an emptied host is cycled", "host", id)
	limited, cancel := context.WithTimeout(ctx, powerLimit)
	err := bmc.Cycle(limited)
	cancel()
	switch {
	case ctx.Err() != nil: // the next start says that it is not known
	case err != nil:
		m.settle(ctx, id, fleet.PowerFailed, "the power cycle failed, so the host may be off: "+err.Error())
	default:
		m.settle(ctx, id, fleet.PowerCycled, "it had no power for a moment")
	}
}

// settle writes down what became of a power cycle, and calls a person if that is needed.
func (m *mains) settle(ctx context.Context, id fleet.HostID, state fleet.PowerState, detail string) {
	_, err := m.cordons.table.Change(ctx, string(id), func(c *fleet.Cordon) error {
		c.Power, c.PowerDetail = state, detail
		return nil
	})
	event := "power." + string(state)
	if state == fleet.PowerFailed {
		m.log.Error("a person is needed", "host", id, "outcome", detail)
		event = "person.called"
	}
	if err := errors.Join(err, m.audit.Append(ctx, automatic, event, string(id), map[string]any{"outcome": detail})); err != nil {
		m.log.Error("the outcome of a power cycle could not be stored", "host", id, "err", err)
	}
}
