// Package guard has the last word on every action: [Check] says whether it is
// allowed now, and why not. It is pure, so that what it would say can be asked at
// any time, and it fails closed: what it does not know counts as forbidden.
package guard

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Policy says what is allowed. The zero value allows nothing.
type Policy struct {
	// Revision identifies the policy in decisions and in the audit trail.
	Revision string
	// DryRun refuses every action on hosts that exist.
	DryRun bool
	// Automatic lists the actions that need no approval, and Never those that are not
	// allowed whoever approves them.
	Automatic, Never []fleet.Action
	// ApprovalExpires is for how long an approval holds, and ApprovalExpiresFor for
	// how long that of an action does where it differs.
	ApprovalExpires    time.Duration
	ApprovalExpiresFor map[fleet.Action]time.Duration
	// EvidenceMaxAge is how old the evidence may be when an action begins.
	EvidenceMaxAge time.Duration
	// Cooldown is the least time between two executions on a host.
	Cooldown time.Duration
	// MaxConcurrent and MaxConcurrentPerDomain bound the executions under way.
	MaxConcurrent          int
	MaxConcurrentPerDomain int
	// MinHealthyRatio is the share of the other hosts that must be healthy, 0..1.
	MinHealthyRatio float64
	// StormHosts stops everything once so many hosts are predicted to fail at the
	// same time, as long as they are also more than StormRatio (0..1) of the fleet:
	// then the cause is not in the hosts. 0 switches the brake off.
	StormHosts int
	StormRatio float64
	// Windows, if there are any, are the only times at which actions begin.
	Windows []Window
}

// Expires is for how long the approval of an action holds.
func (p Policy) Expires(a fleet.Action) time.Duration {
	if d, ok := p.ApprovalExpiresFor[a]; ok {
		return d
	}
	return p.ApprovalExpires
}

// Window is a time of the week, in UTC. A window that ends before it begins goes
// over midnight.
type Window struct {
	// Days on which the window begins; none means every day.
	Days []time.Weekday
	// Begin and End are times since midnight, in 0..24 h.
	Begin, End time.Duration
}

// Contains tells whether t is in the window.
func (w Window) Contains(t time.Time) bool {
	t = t.UTC()
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	at := t.Sub(midnight)
	on := func(d time.Weekday) bool { return len(w.Days) == 0 || slices.Contains(w.Days, d) }
	if w.Begin <= w.End {
		return on(t.Weekday()) && at >= w.Begin && at < w.End
	}
	return on(t.Weekday()) && at >= w.Begin || on((t.Weekday()+6)%7) && at < w.End
}

// opens is when the next of the windows begins.
func opens(windows []Window, now time.Time) (next time.Time) {
	now = now.UTC()
	for day := range 8 {
		midnight := time.Date(now.Year(), now.Month(), now.Day()+day, 0, 0, 0, 0, time.UTC)
		for _, w := range windows {
			on := len(w.Days) == 0 || slices.Contains(w.Days, midnight.Weekday())
			if at := midnight.Add(w.Begin); on && at.After(now) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// Approval is a person's consent.
type Approval struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
	// Actions are those that the person agreed to.
	Actions []fleet.Action `json:"actions"`
}

// Request is an action that somebody wants.
type Request struct {
	// Execution is the execution that asks, so that it is not counted against
	// itself; "" before there is one.
	Execution string
	Host      fleet.HostID
	Action    fleet.Action
	// EvidenceAt is when the evidence for the action was seen last.
	EvidenceAt time.Time
	Approval   *Approval
	DryRun     bool
}

// Host is what the guard needs to know of a host.
type Host struct {
	FaultDomain string
	Simulated   bool
	// DryRun is what the host's agent says of itself.
	DryRun bool
	// Healthy is false for a host that is predicted to fail, or not heard of.
	Healthy bool
	// Failing is true while the host is predicted to fail.
	Failing bool
	// EvidenceAt is when the host's prediction was made last.
	EvidenceAt time.Time
	// Actions lists what the host's agent can do. The guard does not look at it: an
	// action that a host cannot do is for a person.
	Actions []fleet.Action
}

// State is what the guard decides on.
type State struct {
	Hosts   map[fleet.HostID]Host
	Freezes []fleet.Freeze
	// Executions are all that are under way, and those that ended within the
	// policy's cool-down.
	Executions []fleet.Execution
}

// Decision is the guard's word. Reasons says what is in the way, one sentence each;
// there are none if the action is allowed.
type Decision struct {
	Allowed bool     `json:"allowed"`
	Reasons []string `json:"reasons"`
	// Policy is the revision of the policy that decided.
	Policy string `json:"policy"`
	// Rules tells of every rule whether it lets the action through, in the order in
	// which they are asked.
	Rules []Finding `json:"rules"`
}

// Finding is what one rule says.
type Finding struct {
	Rule   Rule `json:"rule"`
	Passed bool `json:"passed"`
}

// Rule names a thing that the guard looks at.
type Rule string

// The rules.
const (
	RuleHost     Rule = "host"               // the host is known
	RuleAction   Rule = "action"             // it is an action, and the policy does not rule it out
	RuleDryRun   Rule = "dry-run"            // neither the request, nor the policy, nor the agent is a dry run
	RuleFreeze   Rule = "freeze"             // nothing that the host belongs to is frozen
	RuleApproval Rule = "approval"           // a person approved it, where that is needed
	RuleEvidence Rule = "evidence"           // the evidence is fresh
	RuleWindow   Rule = "maintenance-window" // it is a time at which actions begin
	RuleOne      Rule = "one-at-a-time"      // nothing else is under way on the host
	RuleCooldown Rule = "cool-down"          // nothing was a short while ago
	RuleFleet    Rule = "fleet-limit"        // not too much is under way in the fleet
	RuleDomain   Rule = "fault-domain-limit" // nor in the fault domain
	RuleHealthy  Rule = "healthy-share"      // enough of the other hosts are healthy
	RuleStorm    Rule = "storm"              // not too many hosts are predicted to fail at once
)

// Rules lists all of them, in the order in which they are asked.
func Rules() []Rule {
	return []Rule{RuleHost, RuleAction, RuleDryRun, RuleFreeze, RuleApproval, RuleEvidence, RuleWindow, RuleOne, RuleCooldown, RuleFleet, RuleDomain, RuleHealthy, RuleStorm}
}

// Refusal is the error of a request that the guard refused.
type Refusal struct {
	Host    fleet.HostID
	Action  fleet.Action
	Reasons []string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("the guard refused %s on host %s: %s", r.Action, r.Host, strings.Join(r.Reasons, "; "))
}

// changes tells whether an action changes the host.
func changes(a fleet.Action) bool {
	return a == fleet.ActionRecycle || a == fleet.ActionPreservingReset || a == fleet.ActionLiveMigrate
}

// verdict collects what the rules say.
type verdict struct {
	reasons []string
	against map[Rule]bool
}

func (v *verdict) no(rule Rule, format string, args ...any) {
	v.reasons = append(v.reasons, fmt.Sprintf(format, args...))
	v.against[rule] = true
}

// decision is what follows from the rules that were asked.
func (v *verdict) decision(policy string, asked ...Rule) Decision {
	d := Decision{Allowed: len(v.reasons) == 0, Reasons: v.reasons, Policy: policy, Rules: make([]Finding, len(asked))}
	for i, r := range asked {
		d.Rules[i] = Finding{r, !v.against[r]}
	}
	return d
}

// Check decides. Handing a host over to a person changes nothing on it, so that only
// the host must be known; everything else is checked against all rules.
func Check(r Request, s State, p Policy, now time.Time) Decision {
	v := &verdict{against: make(map[Rule]bool)}
	host, known := s.Hosts[r.Host]
	switch {
	case !known:
		v.no(RuleHost, "host %s is not known", r.Host)
		return v.decision(p.Revision, RuleHost)
	case r.Action == fleet.ActionHandOver:
		return v.decision(p.Revision, RuleHost)
	case !changes(r.Action):
		v.no(RuleAction, "%q is not an action that can be carried out", r.Action)
		return v.decision(p.Revision, RuleHost, RuleAction)
	case slices.Contains(p.Never, r.Action):
		v.no(RuleAction, "the policy rules %s out", r.Action)
	}
	if r.DryRun {
		v.no(RuleDryRun, "the request is a dry run")
	}
	if p.DryRun && !host.Simulated {
		v.no(RuleDryRun, "the policy is in dry-run mode")
	}
	if host.DryRun {
		v.no(RuleDryRun, "the agent of host %s is in dry-run mode: agent.act of its configuration is not set", r.Host)
	}
	for _, f := range s.Freezes {
		if !f.Until.IsZero() && !now.Before(f.Until) {
			continue
		}
		switch {
		case f.Host == "" && f.FaultDomain == "":
			v.no(RuleFreeze, "the whole fleet is frozen%s", because(f))
		case f.Host != "" && f.Host == r.Host:
			v.no(RuleFreeze, "host %s is frozen%s", r.Host, because(f))
		case f.Host == "" && f.FaultDomain == host.FaultDomain:
			v.no(RuleFreeze, "the fault domain %s is frozen%s", f.FaultDomain, because(f))
		}
	}
	approve(r, p, now, v)
	evidence(r, p, now, v)
	if len(p.Windows) > 0 && !slices.ContainsFunc(p.Windows, func(w Window) bool { return w.Contains(now) }) {
		v.no(RuleWindow, "it is outside the maintenance windows: the next one begins at %s", opens(p.Windows, now).Format(time.RFC3339))
	}
	limits(r, host, s, p, now, v)
	return v.decision(p.Revision, Rules()...)
}

func because(f fleet.Freeze) string {
	var b strings.Builder
	if f.By != "" {
		b.WriteString(" by " + f.By)
	}
	if f.Reason != "" {
		b.WriteString(": " + f.Reason)
	}
	return b.String()
}

func approve(r Request, p Policy, now time.Time, v *verdict) {
	switch a := r.Approval; {
	case slices.Contains(p.Automatic, r.Action):
	case a == nil:
		v.no(RuleApproval, "%s needs the approval of a person", r.Action)
	case !slices.Contains(a.Actions, r.Action):
		v.no(RuleApproval, "%s needs an approval of its own: %s approved something else", r.Action, a.By)
	case a.At.After(now.Add(maxSkew)):
		v.no(RuleApproval, "the approval by %s is from the future", a.By)
	case now.Sub(a.At) > p.Expires(r.Action):
		v.no(RuleApproval, "the approval by %s is %v old and expired after %v", a.By, now.Sub(a.At).Round(time.Second), p.Expires(r.Action))
	}
}

// maxSkew is by how much a clock may be ahead.
const maxSkew = 5 * time.Second

func evidence(r Request, p Policy, now time.Time, v *verdict) {
	switch age := now.Sub(r.EvidenceAt); {
	case r.EvidenceAt.IsZero():
		v.no(RuleEvidence, "there is no evidence")
	case age > p.EvidenceMaxAge:
		v.no(RuleEvidence, "the evidence is %v old, at most %v is allowed", age.Round(time.Second), p.EvidenceMaxAge)
	case age < -maxSkew:
		v.no(RuleEvidence, "the evidence is from the future: compare the clocks of the hosts")
	}
}

// limits checks what the action means for the fleet. Simulated hosts and those that
// exist are fleets of their own.
func limits(r Request, host Host, s State, p Policy, now time.Time, v *verdict) {
	active, inDomain := 0, 0
	for _, e := range s.Executions {
		if e.ID == r.Execution && r.Execution != "" || e.Action == fleet.ActionHandOver {
			continue
		}
		if e.State.Final() {
			// One that never began did not touch the host.
			if e.Host == r.Host && (e.State != fleet.ExecutionCancelled || e.CancelledBy != "") && now.Sub(e.Ended) < p.Cooldown {
				v.no(RuleCooldown, "host %s had an execution %v ago, at least %v must lie between", r.Host, now.Sub(e.Ended).Round(time.Second), p.Cooldown)
			}
			continue
		}
		if e.Host == r.Host {
			v.no(RuleOne, "the execution %s is under way on host %s", e.ID, r.Host)
		}
		if other := s.Hosts[e.Host]; e.Simulated == host.Simulated {
			active++
			if other.FaultDomain == host.FaultDomain {
				inDomain++
			}
		}
	}
	if active >= p.MaxConcurrent {
		v.no(RuleFleet, "%d executions are under way, at most %d are allowed", active, p.MaxConcurrent)
	}
	if inDomain >= p.MaxConcurrentPerDomain {
		v.no(RuleDomain, "%d executions are under way in the fault domain %q, at most %d are allowed", inDomain, host.FaultDomain, p.MaxConcurrentPerDomain)
	}
	others, healthy := 0, 0
	for id, h := range s.Hosts {
		if h.Simulated != host.Simulated || id == r.Host {
			continue
		}
		others++
		if h.Healthy {
			healthy++
		}
	}
	// Written so that a ratio that is not a number refuses.
	if others > 0 && !(float64(healthy) >= p.MinHealthyRatio*float64(others)) {
		v.no(RuleHealthy, "%d of the %d other hosts are healthy, at least %.0f %% must be", healthy, others, 100*p.MinHealthyRatio)
	}
	if storm, failing, all := Storm(s, p, host.Simulated); storm {
		v.no(RuleStorm, "%d of %d hosts are predicted to fail at once: that is a storm, and a person has to look for its cause", failing, all)
	}
}

// Storm tells whether so many hosts are predicted to fail at once that the cause is
// not in the hosts, and how many of how many are. Simulated hosts and those that exist
// are fleets of their own.
func Storm(s State, p Policy, simulated bool) (storm bool, failing, hosts int) {
	for _, h := range s.Hosts {
		if h.Simulated != simulated {
			continue
		}
		hosts++
		if h.Failing {
			failing++
		}
	}
	// Written so that a ratio that is not a number is a storm.
	return p.StormHosts > 0 && failing >= p.StormHosts && !(float64(failing) <= p.StormRatio*float64(hosts)), failing, hosts
}
