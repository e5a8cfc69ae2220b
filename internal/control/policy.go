package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/oklog/ulid/v2"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// changing are the actions that change a host.
var changing = []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate}

// auditor is the audit trail.
type auditor interface {
	Append(ctx context.Context, actor, event, subject string, detail any) error
}

// policies is the policy in force. Where it has a file of its own, [policies.watch]
// takes over each new version of it; one that is wrong is refused, and the old one goes
// on. It is safe for concurrent use.
type policies struct {
	audit auditor
	log   *slog.Logger
	every time.Duration // between two looks at the file
	// seen is what the file said at the last look, or why it could not be read.
	seen string

	mu       sync.RWMutex
	policy   config.Policy
	revision string
	since    time.Time
	refused  *api.RefusedPolicy
}

func newPolicies(p config.Policy, audit auditor, log *slog.Logger) *policies {
	return &policies{policy: p, revision: p.Revision(), since: time.Now().UTC(), audit: audit, log: log, every: time.Second}
}

func (p *policies) current() config.Policy {
	c, _ := p.inForce()
	return c
}

// limits is how long each phase of an execution may take.
func (p *policies) limits() executor.Limits {
	d := p.current().Deadlines
	return executor.Limits{Start: d.Begin.D(), Recycle: d.Recycle.D(), Diagnose: d.Diagnose.D(), Reset: d.Reset.D(), Migrate: d.Migrate.D()}
}

func (p *policies) inForce() (config.Policy, string) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.policy, p.revision
}

// source is where the policy comes from.
func (p *policies) source() string {
	if f := p.current().File; f != "" {
		return f
	}
	return "the configuration"
}

// view is the policy for people.
func (p *policies) view() (api.PolicyView, error) {
	source := p.source()
	p.mu.RLock()
	defer p.mu.RUnlock()
	shown := p.policy
	shown.File = ""
	text, err := yaml.Marshal(shown)
	if err != nil {
		return api.PolicyView{}, fmt.Errorf("write the policy: %w", err)
	}
	return api.PolicyView{Revision: p.revision, Source: source, Since: p.since, Document: string(text), Refused: p.refused}, nil
}

// watch reads the file again whenever it changes, until ctx ends. It looks at what the
// file says, since neither names nor times tell of a change on every file system. A change
// counts once two looks have seen the same, so that nothing half-written is in force.
func (p *policies) watch(ctx context.Context) error {
	if err := p.audit.Append(ctx, "configuration", "policy.loaded", p.revision, map[string]any{"source": p.source()}); err != nil {
		p.log.Error("the audit trail could not be written", "event", "policy.loaded", "err", err)
	}
	file := p.current().File
	if file == "" {
		return nil
	}
	return regularly(ctx, p.every, func(time.Time) { p.reload(ctx, file) })
}

// reload takes over what the file says now.
func (p *policies) reload(ctx context.Context, file string) {
	data, err := config.ReadPolicy(file)
	now := string(data)
	if err != nil {
		now = err.Error()
	}
	if now != p.seen {
		p.seen = now
		return
	}
	var next config.Policy
	if err == nil {
		if next, err = config.ParsePolicy(data); err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
	}
	_, old := p.inForce()
	if err != nil {
		p.mu.Lock()
		known := p.refused != nil && p.refused.Reason == err.Error()
		if !known {
			p.refused = &api.RefusedPolicy{Time: time.Now().UTC(), Reason: err.Error()}
		}
		p.mu.Unlock()
		if known {
			return
		}
		p.log.Error("a new version of the policy is refused, the old one goes on", "file", file, "in_force", old, "err", err)
		if err := p.audit.Append(ctx, "configuration", "policy.refused", old, map[string]any{"source": file, "mistakes": err.Error()}); err != nil {
			p.log.Error("the audit trail could not be written", "event", "policy.refused", "err", err)
		}
		return
	}
	next.File = file
	revision := next.Revision()
	if revision != old {
		// What cannot be audited is not done: it is tried again at the next look.
		if err := p.audit.Append(ctx, "configuration", "policy.loaded", revision, map[string]any{"source": file, "replaces": old}); err != nil {
			p.log.Error("a new version of the policy waits for the audit trail", "revision", revision, "err", err)
			return
		}
		p.log.Info("a new version of the policy is in force", "file", file, "revision", revision, "replaces", old)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if revision != old {
		p.policy, p.revision, p.since = next, revision, time.Now().UTC()
	}
	p.refused = nil
}

// degraded says that the newest version of the file is not the one in force, "" if it is.
func (p *policies) degraded() string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.refused == nil {
		return ""
	}
	return "the newest version is refused, the old one goes on: " + p.refused.Reason
}

// GuardPolicy is a policy in the words of the guard.
func GuardPolicy(c config.Policy, revision string) guard.Policy {
	p := guard.Policy{
		Revision: revision, DryRun: c.Mode == "dry-run",
		ApprovalExpires: c.ApprovalExpires.D(), ApprovalExpiresFor: make(map[fleet.Action]time.Duration),
		EvidenceMaxAge: c.EvidenceMaxAge.D(), Cooldown: c.Cooldown.D(),
		MaxConcurrent: c.MaxConcurrent, MaxConcurrentPerDomain: c.MaxConcurrentPerDomain,
		MinHealthyRatio: c.MinHealthyRatio, StormHosts: c.StormHosts, StormRatio: c.StormRatio,
	}
	for _, a := range changing {
		switch c.Approval(a) {
		case "automatic":
			p.Automatic = append(p.Automatic, a)
		case "never":
			p.Never = append(p.Never, a)
		}
		p.ApprovalExpiresFor[a] = c.Expires(a)
	}
	for _, w := range c.Windows {
		days, begin, end := w.Times()
		p.Windows = append(p.Windows, guard.Window{Days: days, Begin: begin, End: end})
	}
	return p
}

// surroundings shows the guard the policy and the fleet as they are now.
type surroundings struct {
	policies    *policies
	hosts       *hosts
	predictions *predictions
	freezes     *bus.Table[fleet.Freeze]
}

func (s surroundings) Surroundings(context.Context) (guard.Policy, guard.State, error) {
	c, revision := s.policies.inForce()
	state := guard.State{Hosts: make(map[fleet.HostID]guard.Host), Freezes: s.freezes.All()}
	if c.Freeze {
		state.Freezes = append(state.Freezes, fleet.Freeze{By: "the policy", Reason: "policy.freeze is set"})
	}
	for _, h := range s.hosts.all() {
		g := guard.Host{FaultDomain: h.FaultDomain, Simulated: h.Simulated, DryRun: h.DryRun, Actions: h.Actions}
		if prediction, sample, ok := s.predictions.find(h.ID, c.EvidenceMaxAge.D()); ok {
			g.EvidenceAt = sample.Time
			g.Failing = prediction.State == fleet.PredictionScoring && prediction.Signature != fleet.SignatureNone
			g.Healthy = prediction.State != fleet.PredictionStale && !g.Failing
		}
		state.Hosts[h.ID] = g
	}
	return GuardPolicy(c, revision), state, nil
}

// Policy is the policy in force.
func (p *Plane) Policy(context.Context) (api.PolicyView, error) { return p.policies.view() }

// Explain says what the guard would say to an action on a host now, or to each of them
// where action is "". approved asks as if a person had approved it at this instant.
func (p *Plane) Explain(ctx context.Context, host fleet.HostID, action fleet.Action, approved bool) ([]api.Explanation, error) {
	view, err := p.Host(ctx, host)
	if err != nil {
		return nil, err
	}
	actions := append(slices.Clone(changing), fleet.ActionHandOver)
	if action != "" {
		actions = []fleet.Action{action}
	}
	var evidence time.Time
	if _, sample, ok := p.predictions.find(host, 0); ok {
		evidence = sample.Time
	}
	out := []api.Explanation{}
	for _, a := range actions {
		r := executor.Request{Host: host, Action: a, EvidenceAt: evidence}
		if approved {
			r.Approval = consent("the person who asks", time.Now().UTC(), a)
		}
		d, err := p.coordinator.Explain(ctx, r)
		if err != nil {
			return nil, problem(err)
		}
		e := api.Explanation{
			Host: host, Simulated: view.Simulated, Action: a, Allowed: d.Allowed, Possible: slices.Contains(view.Actions, a) || a == fleet.ActionHandOver,
			Reasons: append([]string{}, d.Reasons...), Policy: d.Policy, Rules: []api.RuleFinding{},
		}
		for _, f := range d.Rules {
			e.Rules = append(e.Rules, api.RuleFinding{Rule: string(f.Rule), Passed: f.Passed})
		}
		out = append(out, e)
	}
	return out, nil
}

// Freezes lists the freezes that are in force, oldest first.
func (p *Plane) Freezes(context.Context) ([]fleet.Freeze, error) {
	return slices.DeleteFunc(p.freezes.All(), func(f fleet.Freeze) bool { return over(f, time.Now()) }), nil
}

func over(f fleet.Freeze, now time.Time) bool { return !f.Until.IsZero() && !now.Before(f.Until) }

// Freeze stops actions. Only what f says of where, why, who and until when counts.
func (p *Plane) Freeze(ctx context.Context, f fleet.Freeze) (fleet.Freeze, error) {
	now := time.Now().UTC()
	if over(f, now) {
		return f, api.ErrInvalid.Errorf("the freeze is to end at %s and it is %s now", f.Until.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	f.ID, f.Since, f.Simulated = ulid.Make().String(), now, false
	if f.Host != "" {
		h, err := p.Host(ctx, f.Host)
		if err != nil {
			return f, err
		}
		f.Simulated = h.Simulated
	}
	if f.FaultDomain != "" && !slices.ContainsFunc(p.hosts.all(), func(h fleet.Host) bool { return h.FaultDomain == f.FaultDomain }) {
		return f, api.ErrNotFound.Errorf("no known host is in the fault domain %q, so nothing would be frozen; /api/v1/hosts lists them with theirs", f.FaultDomain)
	}
	// A freeze only ever makes things safer: it is in force before it is written down.
	if _, err := p.freezes.Create(ctx, f.ID, f); err != nil {
		return f, problem(err)
	}
	p.events.emit("freeze", f.ID, f)
	p.log.Warn("actions are frozen", "id", f.ID, "host", f.Host, "fault_domain", f.FaultDomain, "by", f.By, "reason", f.Reason)
	return f, problem(p.audit.Append(ctx, f.By, "freeze", f.ID, f))
}

// Lift ends a freeze.
func (p *Plane) Lift(ctx context.Context, id, who string) (fleet.Freeze, error) {
	f, _, err := p.freezes.Load(ctx, id)
	if errors.Is(err, bus.ErrNotFound) {
		return f, api.ErrNotFound.Errorf("there is no freeze %q; /api/v1/freezes lists those that are in force", id)
	}
	if err == nil {
		err = p.audit.Append(ctx, who, "freeze.lifted", id, f)
	}
	if err == nil {
		err = p.freezes.Delete(ctx, id)
	}
	if err != nil {
		return f, problem(err)
	}
	f.Until = time.Now().UTC()
	p.events.emit("freeze", id, f)
	p.log.Info("a freeze was lifted", "id", id, "by", who)
	return f, nil
}

// stormBrake is who froze the fleet after too many predictions at once.
const stormBrake = "the storm brake"

// brake watches for storms until ctx ends. When one begins, the fleet is frozen until a
// person lifts that, and a person is called; the guard alone would let actions through
// again as soon as the predictions ease.
func (p *Plane) brake(ctx context.Context) error {
	storming := false
	return regularly(ctx, time.Second, func(time.Time) {
		p.forgetFreezes(ctx)
		policy, state, err := p.surroundings.Surroundings(ctx)
		if err != nil {
			return
		}
		storm, failing, hosts := guard.Storm(state, policy, false)
		if !storm || storming {
			storming = storm
			return
		}
		frozen := slices.ContainsFunc(state.Freezes, func(f fleet.Freeze) bool { return f.By == stormBrake })
		if !frozen {
			reason := fmt.Sprintf("%d of %d hosts were predicted to fail at once: look for a common cause (power, cooling, network, an update, a faulty model), then lift this freeze", failing, hosts)
			f, err := p.Freeze(ctx, fleet.Freeze{By: stormBrake, Reason: reason})
			if err != nil {
				p.log.Error("the storm brake could not freeze the fleet, trying again; the guard refuses all actions meanwhile", "err", err)
				return
			}
			p.log.Error("a person is needed: a storm of predictions, every action is stopped", "freeze", f.ID, "failing", failing, "hosts", hosts)
			if err := p.audit.Append(ctx, stormBrake, "person.called", f.ID, map[string]any{"failing": failing, "hosts": hosts, "outcome": reason}); err != nil {
				p.log.Error("the audit trail could not be written", "event", "person.called", "err", err)
			}
		}
		storming = true
	})
}

// forgetFreezes removes those whose time is over.
func (p *Plane) forgetFreezes(ctx context.Context) {
	for _, f := range p.freezes.All() {
		if !over(f, time.Now()) {
			continue
		}
		if err := p.freezes.Delete(ctx, f.ID); err != nil {
			p.log.Warn("a freeze that is over stays in the table", "id", f.ID, "err", err)
		}
	}
}
