package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) policy() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check the policy, and explain what it allows now and why not",
		Long: `The policy says what may be done to hosts, and when: who approves which action, how many
at once, how many hosts must be healthy, when the storm brake stops everything, and in
which hours. It is the section 'policy' of the configuration, or a file of its own that
policy.file names. The file is read again whenever it changes: a version that is wrong is
refused, and the old one goes on (the log, the audit trail, /readyz and
'tardigrade policy show' say so). A policy file:

  version: 1
  mode: approve                       # or automatic, or dry-run
  approval_expires: 15m
  actions:                            # where an action differs from the mode
    recycle: {approval: automatic}    # or person, or never
    preserving-reset: {approval_expires: 5m}
  evidence_max_age: 1m
  cooldown: 10m
  deadlines: {begin: 15s, recycle: 2m, diagnose: 2m, reset: 10m, migrate: 30m}
  max_concurrent: 1
  max_concurrent_per_domain: 1
  min_healthy_ratio: 0.5
  storm_hosts: 5
  storm_ratio: 0.2
  maintenance_windows:                # in UTC; none means always
    - {days: [sat, sun], begin: "22:00", end: "06:00"}

'tardigrade freeze' stops everything at once, whatever the policy says.`,
	}
	cmd.AddCommand(a.policyCheck(), a.policyExplain(), a.policyShow())
	return cmd
}

func (a *app) policyCheck() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check FILE", Short: "Say whether a policy file is right, or each mistake with its line",
		Example: `  tardigrade policy check /etc/tardigrade/policy.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("policy check needs the name of one file")}
			}
			p, err := config.LoadPolicy(args[0])
			mistakes, wrong := errors.AsType[config.Mistakes](err)
			if err != nil && !wrong {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				answer := map[string]any{"file": args[0], "valid": !wrong, "mistakes": append(config.Mistakes{}, mistakes...)}
				if !wrong {
					answer["revision"] = p.Revision()
				}
				if err := json.NewEncoder(out).Encode(answer); err != nil {
					return err
				}
			} else if !wrong {
				fmt.Fprintf(out, "%s is right, revision %s:\n%s", args[0], p.Revision(), words(p))
			}
			if !wrong {
				return nil
			}
			lines := make([]string, len(mistakes))
			for i, m := range mistakes {
				at := args[0]
				if m.Line > 0 {
					at = fmt.Sprintf("%s:%d:%d", args[0], m.Line, m.Column)
				}
				m.Line = 0
				lines[i] = at + ": " + m.String()
			}
			return fmt.Errorf("the policy cannot be used:\n%s", strings.Join(lines, "\n"))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

// words says what a policy allows.
func words(p config.Policy) string {
	var b strings.Builder
	if p.Freeze {
		b.WriteString("  Everything is frozen (freeze: true).\n")
	}
	if p.Mode == "dry-run" {
		b.WriteString("  Nothing is done to a host that exists (mode: dry-run).\n")
	}
	for _, a := range []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
		switch p.Approval(a) {
		case "never":
			fmt.Fprintf(&b, "  %s is never done.\n", a)
		case "automatic":
			fmt.Fprintf(&b, "  %s needs no approval.\n", a)
		default:
			fmt.Fprintf(&b, "  %s needs a person's approval, which holds for %v.\n", a, p.Expires(a))
		}
	}
	fmt.Fprintf(&b, "  At most %d at once, %d in a fault domain, and %v between two on a host.\n", p.MaxConcurrent, p.MaxConcurrentPerDomain, p.Cooldown.D())
	d := p.Deadlines
	fmt.Fprintf(&b, "  An action begins within %v; a recycle has %v, a diagnosis %v, a reset %v and a migration %v.\n", d.Begin.D(), d.Recycle.D(), d.Diagnose.D(), d.Reset.D(), d.Migrate.D())
	fmt.Fprintf(&b, "  At least %.0f %% of the other hosts are healthy, and the evidence is at most %v old.\n", 100*p.MinHealthyRatio, p.EvidenceMaxAge.D())
	if p.StormHosts > 0 {
		fmt.Fprintf(&b, "  %d failing hosts, if they are more than %.0f %% of the fleet, stop everything.\n", p.StormHosts, 100*p.StormRatio)
	} else {
		b.WriteString("  There is no storm brake (storm_hosts: 0).\n")
	}
	for _, w := range p.Windows {
		days := "every day"
		if len(w.Days) > 0 {
			days = strings.Join(w.Days, ", ")
		}
		fmt.Fprintf(&b, "  Actions begin from %s to %s UTC on %s.\n", w.Begin, w.End, days)
	}
	return b.String()
}

// supposed is the fleet that `policy explain --file` asks about.
type supposed struct {
	domain                          string
	hosts, healthy, failing, active int
	evidence                        time.Duration
	at                              string
}

// explained are the actions that can be asked about.
var explained = []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate, fleet.ActionHandOver}

func (a *app) policyExplain() *cobra.Command {
	c := &client{}
	var host, action, file string
	var approved, asJSON bool
	s := supposed{}
	cmd := &cobra.Command{
		Use: "explain", Short: "Say what would be allowed on a host now, and why not", Args: noArgs,
		Long: `Ask the running control plane what its guard would say to an action on a host at this
instant, rule by rule. Nothing is done.

With --file no control plane is asked: the file is held against a fleet as the other flags
describe it.`,
		Example: `  tardigrade policy explain --host rack3-host12
  tardigrade policy explain --host rack3-host12 --action recycle --approved
  tardigrade policy explain --file new.yaml --host h --action recycle --hosts 20 --failing 6`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fleet.HostID(host).Validate(); err != nil {
				return usageError{fmt.Errorf("--host: %w", err)}
			}
			if action != "" && !slices.Contains(explained, fleet.Action(action)) {
				return usageError{fmt.Errorf("--action %q is not one of %v", action, explained)}
			}
			var all struct {
				Explanations []api.Explanation `json:"explanations"`
			}
			if file == "" {
				for _, only := range []string{"fault-domain", "hosts", "healthy", "failing", "active", "evidence-age", "at"} {
					if cmd.Flags().Changed(only) {
						return usageError{fmt.Errorf("--%s describes a fleet, which is for --file; the control plane knows its own", only)}
					}
				}
				q := url.Values{"host": {host}}
				if action != "" {
					q.Set("action", action)
				}
				if approved {
					q.Set("approved", "true")
				}
				if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/policy/explain?"+q.Encode(), nil, &all); err != nil {
					return err
				}
			} else {
				var err error
				if all.Explanations, err = s.explain(file, fleet.HostID(host), fleet.Action(action), approved); err != nil {
					return err
				}
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(all)
			}
			printExplanations(out, all.Explanations)
			return nil
		},
	}
	c.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&host, "host", "", "the `host` (required)")
	f.StringVar(&action, "action", "", "recycle, preserving-reset, live-migrate or hand-over; all of them without it")
	f.BoolVar(&approved, "approved", false, "suppose that a person approved it at this instant")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	f.StringVar(&file, "file", "", "hold this policy `file` against a supposed fleet, without a control plane")
	f.StringVar(&s.domain, "fault-domain", "", "with --file: the host's fault domain")
	f.IntVar(&s.hosts, "hosts", 1, "with --file: how many hosts there are")
	f.IntVar(&s.healthy, "healthy", -1, "with --file: how many of them are healthy; all that do not fail without it")
	f.IntVar(&s.failing, "failing", 1, "with --file: how many are predicted to fail, this one included")
	f.IntVar(&s.active, "active", 0, "with --file: how many actions are under way on other hosts")
	f.DurationVar(&s.evidence, "evidence-age", 0, "with --file: how old the evidence is")
	f.StringVar(&s.at, "at", "", "with --file: the `time`, as 2026-03-04T12:00:00Z; now without it")
	return cmd
}

// explain asks the guard about a supposed fleet.
func (s *supposed) explain(file string, host fleet.HostID, action fleet.Action, approved bool) ([]api.Explanation, error) {
	c, err := config.LoadPolicy(file)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	if s.at != "" {
		if now, err = time.Parse(time.RFC3339, s.at); err != nil {
			return nil, usageError{fmt.Errorf("--at %q is not a time such as 2026-03-04T12:00:00Z", s.at)}
		}
	}
	if s.hosts < 1 || s.hosts > 1_000_000 || s.failing < 0 || s.failing > s.hosts || s.healthy > s.hosts || s.active < 0 || s.active > s.hosts-1 {
		return nil, usageError{fmt.Errorf("--hosts %d, --failing %d, --healthy %d and --active %d do not fit together", s.hosts, s.failing, s.healthy, s.active)}
	}
	if s.evidence < 0 {
		return nil, usageError{fmt.Errorf("--evidence-age %v is negative", s.evidence)}
	}
	if s.healthy < 0 {
		s.healthy = s.hosts - s.failing
	}
	state := guard.State{Hosts: map[fleet.HostID]guard.Host{host: {FaultDomain: s.domain, Failing: s.failing > 0, Healthy: s.failing == 0, EvidenceAt: now.Add(-s.evidence)}}}
	if c.Freeze {
		state.Freezes = []fleet.Freeze{{By: "the policy", Reason: "freeze is set"}}
	}
	for i := 1; i < s.hosts; i++ {
		id := fleet.HostID(fmt.Sprintf("%s-other-%d", host, i))
		state.Hosts[id] = guard.Host{FaultDomain: fmt.Sprint("other-", i), Failing: i < s.failing, Healthy: s.hosts-i <= s.healthy}
		if i <= s.active {
			state.Executions = append(state.Executions, fleet.Execution{ID: string(id), Host: id, State: fleet.ExecutionRecycling, Action: fleet.ActionRecycle})
		}
	}
	actions := explained
	if action != "" {
		actions = []fleet.Action{action}
	}
	var out []api.Explanation
	for _, a := range actions {
		r := guard.Request{Host: host, Action: a, EvidenceAt: now.Add(-s.evidence)}
		if approved {
			r.Approval = &guard.Approval{By: "the person who asks", At: now, Actions: []fleet.Action{a}}
		}
		d := guard.Check(r, state, control.GuardPolicy(c, c.Revision()), now)
		e := api.Explanation{Host: host, Action: a, Allowed: d.Allowed, Possible: true, Reasons: append([]string{}, d.Reasons...), Policy: d.Policy}
		for _, f := range d.Rules {
			e.Rules = append(e.Rules, api.RuleFinding{Rule: string(f.Rule), Passed: f.Passed})
		}
		out = append(out, e)
	}
	return out, nil
}

func printExplanations(out io.Writer, all []api.Explanation) {
	for i, e := range all {
		if i == 0 {
			fmt.Fprintf(out, "host %s, policy %s\n", e.Host, e.Policy)
		}
		switch {
		case !e.Allowed:
			fmt.Fprintf(out, "\n%s: refused\n", e.Action)
		case !e.Possible:
			fmt.Fprintf(out, "\n%s: allowed, but the host's agent cannot do it, so a person would be called\n", e.Action)
		default:
			fmt.Fprintf(out, "\n%s: allowed\n", e.Action)
		}
		for _, r := range e.Reasons {
			fmt.Fprintf(out, "  no: %s\n", r)
		}
		var passed []string
		for _, f := range e.Rules {
			if f.Passed {
				passed = append(passed, f.Rule)
			}
		}
		if len(passed) > 0 {
			fmt.Fprintf(out, "  passed: %s\n", strings.Join(passed, ", "))
		}
	}
}

func (a *app) policyShow() *cobra.Command {
	c := &client{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show", Short: "Print the policy that the running control plane has in force", Args: noArgs,
		Example: `  tardigrade policy show`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var p api.PolicyView
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/policy", nil, &p); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(p)
			}
			fmt.Fprintf(out, "# revision %s from %s, in force since %s\n%s", p.Revision, p.Source, p.Since.Format(time.RFC3339), p.Document)
			if p.Refused != nil {
				fmt.Fprintf(os.Stderr, "tardigrade: a newer version was refused at %s and is not in force: %s\n", p.Refused.Time.Format(time.RFC3339), p.Refused.Reason)
			}
			return nil
		},
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}
