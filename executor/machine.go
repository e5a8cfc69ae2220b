package executor

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// EventKind is what can happen to an execution.
type EventKind string

// The events. An event that no rule of [Transitions] foresees parks the
// execution: it is handed over to a person.
const (
	EventAllowed   EventKind = "allowed"   // the guard let the action through, just before its first effect
	EventBlocked   EventKind = "blocked"   // the guard refused it
	EventCancel    EventKind = "cancel"    // a person wants it to stop
	EventProgress  EventKind = "progress"  // a report of a step
	EventSucceeded EventKind = "succeeded" // the phase ended well
	EventFailed    EventKind = "failed"    // the phase did not reach its aim; the VMs run
	EventDegraded  EventKind = "degraded"  // a VM is missing or changed
	EventUnknown   EventKind = "unknown"   // the agent cannot find out what happened
	EventStopped   EventKind = "stopped"   // the agent ended the phase early, as a person wished; each VM runs exactly once
	EventRefused   EventKind = "refused"   // the agent refused the command: nothing was done
	EventDeadline  EventKind = "deadline"  // the phase's time is over
	EventFenced    EventKind = "fenced"    // somebody else holds the host's lease
)

// EventKinds lists every event, in the order above.
func EventKinds() []EventKind {
	return []EventKind{EventAllowed, EventBlocked, EventCancel, EventProgress, EventSucceeded, EventFailed,
		EventDegraded, EventUnknown, EventStopped, EventRefused, EventDeadline, EventFenced}
}

// Event is one input of the state machine.
type Event struct {
	Kind EventKind
	// By is who cancels.
	By string
	// Detail is for a person: the guard's reasons, the agent's words.
	Detail string
	// Can lists the actions that the host is able to do and the guard allows at
	// this instant, and Why says for the others what is in their way.
	Can []fleet.Action
	Why string
	// Targets says where the VMs would go, if Can has a live migration.
	Targets []fleet.Target
	// Report is what the agent said, if the event comes from it.
	Report *fleet.Report
}

// Effect is something to do after the new state is stored. All effects may be
// carried out twice.
type Effect struct {
	Kind EffectKind
	// Phase is set for EffectCommand.
	Phase fleet.Phase
}

// EffectKind is a kind of effect.
type EffectKind string

// The effects.
const (
	EffectCommand EffectKind = "command" // send the phase's command to the host agent
	EffectStop    EffectKind = "stop"    // send it again, with the wish to stop
	EffectRelease EffectKind = "release" // give up the host's lease
	EffectAlert   EffectKind = "alert"   // call a person
)

// Limits says how long each phase may take.
type Limits struct {
	// Start is the time from the request to the first effect, and from each
	// command to its begin on the host.
	Start                             time.Duration
	Recycle, Diagnose, Reset, Migrate time.Duration
}

// DefaultLimits is 15 s to begin, 2 minutes for a recycle, 2 for a diagnosis, 10
// for a reset and 30 for a migration.
func DefaultLimits() Limits {
	return Limits{Start: 15 * time.Second, Recycle: 2 * time.Minute, Diagnose: 2 * time.Minute, Reset: 10 * time.Minute, Migrate: 30 * time.Minute}
}

// Phase is the limit of one phase.
func (l Limits) Phase(p fleet.Phase) time.Duration {
	switch p {
	case fleet.PhaseRecycle:
		return l.Recycle
	case fleet.PhaseDiagnose:
		return l.Diagnose
	case fleet.PhaseReset:
		return l.Reset
	case fleet.PhaseMigrate:
		return l.Migrate
	}
	return 0
}

// condition is a named test that a rule may put on the execution and its event.
type condition struct {
	name  string
	holds func(e *fleet.Execution, ev *Event) bool
}

func wants(a fleet.Action) condition {
	return condition{fmt.Sprintf("%s was asked for and can be done", a), func(e *fleet.Execution, ev *Event) bool {
		return e.Action == a && slices.Contains(ev.Can, a)
	}}
}

func can(a fleet.Action) condition {
	return condition{fmt.Sprintf("%s can be done", a), func(_ *fleet.Execution, ev *Event) bool { return slices.Contains(ev.Can, a) }}
}

// asked means that the phase is the first one, since it is what was asked for.
func asked(a fleet.Action) condition {
	return condition{fmt.Sprintf("%s is what was asked for", a), func(e *fleet.Execution, _ *Event) bool { return e.Action == a }}
}

var (
	// unwanted means that a person has cancelled the execution.
	unwanted = condition{"it was cancelled", func(e *fleet.Execution, _ *Event) bool { return e.CancelledBy != "" }}
	// bound means that its phase can not be stopped any more.
	bound = condition{"a binding step has begun", func(e *fleet.Execution, _ *Event) bool {
		return slices.ContainsFunc(e.Steps, func(s fleet.Step) bool { return s.Binding && s.Phase == PhaseOf(e.State) })
	}}
)

var always = condition{"", func(*fleet.Execution, *Event) bool { return true }}

// Rule is one edge of the state machine. Of the rules for a state and an event
// the first whose condition holds is taken.
type Rule struct {
	Name string
	From fleet.ExecutionState
	On   EventKind
	// When is the condition in words, "" if there is none.
	When string
	To   fleet.ExecutionState
	// Outcome is the sentence that a final state gets; the event's detail is added.
	Outcome string

	holds func(*fleet.Execution, *Event) bool
	// stops means that the agent is told to stop the phase.
	stops bool
}

func rule(name string, from fleet.ExecutionState, on EventKind, when condition, to fleet.ExecutionState, outcome string) Rule {
	return Rule{Name: name, From: from, On: on, When: when.name, To: to, Outcome: outcome, holds: when.holds}
}

// stop is a rule by which a phase that is under way is asked to stop; it goes on until
// the agent says what became of it.
func stop(name string, in fleet.ExecutionState) Rule {
	r := rule(name, in, EventCancel, always, in, "")
	r.stops = true
	return r
}

// Transitions returns the rules of the state machine; ARCHITECTURE.md's table and
// diagram are rendered from it.
func Transitions() []Rule { return slices.Clone(transitions) }

var transitions = []Rule{
	rule("begin recycle", fleet.ExecutionPending, EventAllowed, wants(fleet.ActionRecycle), fleet.ExecutionRecycling, ""),
	rule("begin reset", fleet.ExecutionPending, EventAllowed, wants(fleet.ActionPreservingReset), fleet.ExecutionResetting, ""),
	rule("begin migration", fleet.ExecutionPending, EventAllowed, wants(fleet.ActionLiveMigrate), fleet.ExecutionMigrating, ""),
	rule("call a person", fleet.ExecutionPending, EventAllowed, asked(fleet.ActionHandOver), fleet.ExecutionHandedOver, "A person was asked to take over the host; nothing was changed on it."),
	rule("not capable", fleet.ExecutionPending, EventAllowed, always, fleet.ExecutionHandedOver, "The host cannot do the action, so a person has to; nothing was changed on it."),
	rule("blocked", fleet.ExecutionPending, EventBlocked, always, fleet.ExecutionCancelled, "The guard refused the action; nothing was changed on the host."),
	rule("taken back", fleet.ExecutionPending, EventCancel, always, fleet.ExecutionCancelled, "The action was cancelled before it began."),
	rule("never began", fleet.ExecutionPending, EventDeadline, always, fleet.ExecutionCancelled, "The action did not begin in time; nothing was changed on the host."),
	rule("lost before the begin", fleet.ExecutionPending, EventFenced, always, fleet.ExecutionCancelled, "Another execution holds the host; nothing was changed on it."),

	rule("step", fleet.ExecutionRecycling, EventProgress, always, fleet.ExecutionRecycling, ""),
	stop("stop after this service", fleet.ExecutionRecycling),
	rule("recycle stopped", fleet.ExecutionRecycling, EventStopped, always, fleet.ExecutionCancelled, "The recycle was cancelled: what had begun was finished and is healthy, the other services were left alone, and every VM runs on."),
	rule("recycled", fleet.ExecutionRecycling, EventSucceeded, always, fleet.ExecutionSucceeded, "Every service was restarted and is healthy, and every VM runs on."),
	rule("service did not come back, stopped", fleet.ExecutionRecycling, EventFailed, unwanted, fleet.ExecutionHandedOver, "A service did not come back, and nothing further was begun since the execution was cancelled."),
	rule("service did not come back", fleet.ExecutionRecycling, EventFailed, always, fleet.ExecutionDiagnosing, ""),
	rule("recycle lost a VM", fleet.ExecutionRecycling, EventDegraded, always, fleet.ExecutionDegraded, "A VM is missing or changed after the services were restarted."),
	rule("recycle unclear", fleet.ExecutionRecycling, EventUnknown, always, fleet.ExecutionDegraded, "Nobody could find out how the restart of the services ended."),
	rule("agent refused recycle", fleet.ExecutionRecycling, EventRefused, always, fleet.ExecutionCancelled, "The host agent refused the recycle; nothing was changed on the host."),
	rule("recycle overdue", fleet.ExecutionRecycling, EventDeadline, always, fleet.ExecutionDegraded, "The host agent did not report the end of the recycle in time, so the state of the VMs is unknown."),
	rule("fenced in recycle", fleet.ExecutionRecycling, EventFenced, always, fleet.ExecutionHandedOver, "Another execution took the host during the recycle."),

	rule("step", fleet.ExecutionDiagnosing, EventProgress, always, fleet.ExecutionDiagnosing, ""),
	rule("diagnosed, reset", fleet.ExecutionDiagnosing, EventSucceeded, can(fleet.ActionPreservingReset), fleet.ExecutionResetting, ""),
	rule("diagnosed, migrate", fleet.ExecutionDiagnosing, EventSucceeded, can(fleet.ActionLiveMigrate), fleet.ExecutionMigrating, ""),
	rule("diagnosed, no way on", fleet.ExecutionDiagnosing, EventSucceeded, always, fleet.ExecutionHandedOver, "A service did not come back. The diagnostics are collected, and no further action is possible here."),
	rule("not diagnosed, reset", fleet.ExecutionDiagnosing, EventFailed, can(fleet.ActionPreservingReset), fleet.ExecutionResetting, ""),
	rule("not diagnosed, migrate", fleet.ExecutionDiagnosing, EventFailed, can(fleet.ActionLiveMigrate), fleet.ExecutionMigrating, ""),
	rule("not diagnosed, no way on", fleet.ExecutionDiagnosing, EventFailed, always, fleet.ExecutionHandedOver, "A service did not come back, the diagnosis failed, and no further action is possible here."),
	rule("diagnosis refused, reset", fleet.ExecutionDiagnosing, EventRefused, can(fleet.ActionPreservingReset), fleet.ExecutionResetting, ""),
	rule("diagnosis refused, migrate", fleet.ExecutionDiagnosing, EventRefused, can(fleet.ActionLiveMigrate), fleet.ExecutionMigrating, ""),
	rule("diagnosis refused, no way on", fleet.ExecutionDiagnosing, EventRefused, always, fleet.ExecutionHandedOver, "A service did not come back, the host agent refused the diagnosis, and no further action is possible here."),
	rule("VM lost meanwhile", fleet.ExecutionDiagnosing, EventDegraded, always, fleet.ExecutionDegraded, "A VM went missing while the diagnostics were collected."),
	rule("diagnosis unclear", fleet.ExecutionDiagnosing, EventUnknown, always, fleet.ExecutionHandedOver, "A service did not come back, and nobody could find out how the diagnosis ended."),
	rule("stopped by a person", fleet.ExecutionDiagnosing, EventCancel, always, fleet.ExecutionHandedOver, "A service did not come back, and a person stopped the execution before its next phase."),
	rule("diagnosis overdue", fleet.ExecutionDiagnosing, EventDeadline, always, fleet.ExecutionHandedOver, "A service did not come back, and the host agent fell silent during the diagnosis."),
	rule("fenced in diagnosis", fleet.ExecutionDiagnosing, EventFenced, always, fleet.ExecutionHandedOver, "Another execution took the host during the diagnosis."),

	rule("step", fleet.ExecutionResetting, EventProgress, always, fleet.ExecutionResetting, ""),
	rule("too late to stop", fleet.ExecutionResetting, EventCancel, bound, fleet.ExecutionResetting, ""),
	stop("stop before the freeze", fleet.ExecutionResetting),
	rule("reset stopped at once", fleet.ExecutionResetting, EventStopped, asked(fleet.ActionPreservingReset), fleet.ExecutionCancelled, "The preserving reset was cancelled before a VM was frozen."),
	rule("reset stopped", fleet.ExecutionResetting, EventStopped, always, fleet.ExecutionHandedOver, "A service did not come back, and the preserving reset was cancelled before a VM was frozen."),
	rule("reset", fleet.ExecutionResetting, EventSucceeded, always, fleet.ExecutionSucceeded, "The host's OS was reset under its VMs, and every VM runs on."),
	rule("reset failed, stopped", fleet.ExecutionResetting, EventFailed, unwanted, fleet.ExecutionHandedOver, "The preserving reset failed, and nothing further was begun since the execution was cancelled; the VMs run on."),
	rule("reset failed, migrate", fleet.ExecutionResetting, EventFailed, can(fleet.ActionLiveMigrate), fleet.ExecutionMigrating, ""),
	rule("reset failed", fleet.ExecutionResetting, EventFailed, always, fleet.ExecutionHandedOver, "The preserving reset failed, the VMs run, and no further action is possible here."),
	rule("reset refused at once", fleet.ExecutionResetting, EventRefused, asked(fleet.ActionPreservingReset), fleet.ExecutionCancelled, "The host agent refused the preserving reset; nothing was changed on the host."),
	rule("reset refused, stopped", fleet.ExecutionResetting, EventRefused, unwanted, fleet.ExecutionHandedOver, "The host agent refused the preserving reset, and nothing further was begun since the execution was cancelled."),
	rule("reset refused, migrate", fleet.ExecutionResetting, EventRefused, can(fleet.ActionLiveMigrate), fleet.ExecutionMigrating, ""),
	rule("reset refused", fleet.ExecutionResetting, EventRefused, always, fleet.ExecutionHandedOver, "The host agent refused the preserving reset, and no further action is possible here."),
	rule("reset lost a VM", fleet.ExecutionResetting, EventDegraded, always, fleet.ExecutionDegraded, "A VM is missing or changed after the preserving reset."),
	rule("reset unclear", fleet.ExecutionResetting, EventUnknown, always, fleet.ExecutionDegraded, "Nobody could find out how the preserving reset ended."),
	rule("reset overdue", fleet.ExecutionResetting, EventDeadline, always, fleet.ExecutionDegraded, "The host did not come back from the preserving reset in time, so the state of its VMs is unknown."),
	rule("fenced in reset", fleet.ExecutionResetting, EventFenced, always, fleet.ExecutionDegraded, "Another execution took the host during the preserving reset, so the state of its VMs is unknown."),

	rule("step", fleet.ExecutionMigrating, EventProgress, always, fleet.ExecutionMigrating, ""),
	stop("stop the moves", fleet.ExecutionMigrating),
	rule("migration stopped at once", fleet.ExecutionMigrating, EventStopped, asked(fleet.ActionLiveMigrate), fleet.ExecutionCancelled, "The migration was cancelled; every VM runs exactly once."),
	rule("migration stopped", fleet.ExecutionMigrating, EventStopped, always, fleet.ExecutionHandedOver, "The migration was cancelled after the other actions did not help; every VM runs exactly once."),
	rule("migrated", fleet.ExecutionMigrating, EventSucceeded, always, fleet.ExecutionSucceeded, "Every VM runs on another host."),
	rule("migration failed", fleet.ExecutionMigrating, EventFailed, always, fleet.ExecutionHandedOver, "The migration failed; every VM runs exactly once."),
	rule("migration refused at once", fleet.ExecutionMigrating, EventRefused, asked(fleet.ActionLiveMigrate), fleet.ExecutionCancelled, "The host agent refused the migration; nothing was changed on the host."),
	rule("migration refused", fleet.ExecutionMigrating, EventRefused, always, fleet.ExecutionHandedOver, "The host agent refused the migration, and no further action is possible here."),
	rule("migration lost a VM", fleet.ExecutionMigrating, EventDegraded, always, fleet.ExecutionDegraded, "A VM is missing or changed after the migration."),
	rule("migration unclear", fleet.ExecutionMigrating, EventUnknown, always, fleet.ExecutionDegraded, "Nobody could find out how the migration ended."),
	rule("migration overdue", fleet.ExecutionMigrating, EventDeadline, always, fleet.ExecutionDegraded, "The host agent did not report the end of the migration in time, so the state of the VMs is unknown."),
	rule("fenced in migration", fleet.ExecutionMigrating, EventFenced, always, fleet.ExecutionDegraded, "Another execution took the host during the migration, so the state of the VMs is unknown."),
}

// phases maps the states in which an agent works to its phase.
var phases = map[fleet.ExecutionState]fleet.Phase{
	fleet.ExecutionRecycling:  fleet.PhaseRecycle,
	fleet.ExecutionDiagnosing: fleet.PhaseDiagnose,
	fleet.ExecutionResetting:  fleet.PhaseReset,
	fleet.ExecutionMigrating:  fleet.PhaseMigrate,
}

// PhaseOf is the phase that an agent carries out while an execution is in the
// state, or "".
func PhaseOf(s fleet.ExecutionState) fleet.Phase { return phases[s] }

// Next is the state machine: the execution after the event, and what to do once
// that is stored. The same input always gives the same output; exec is not
// changed. A final execution stays as it is, whatever the event. An event that no
// rule foresees hands the execution over to a person and says so in the outcome.
func Next(exec fleet.Execution, ev Event, now time.Time, limits Limits) (fleet.Execution, []Effect) {
	if exec.State.Final() {
		return exec, nil
	}
	next := exec
	next.Steps = slices.Clone(exec.Steps)
	next.Updated = now
	if ev.Report != nil {
		merge(&next, ev.Report)
	}
	r, found := match(&exec, &ev)
	if !found {
		r = Rule{To: fleet.ExecutionHandedOver, Outcome: fmt.Sprintf("The event %q is not possible in the state %q; the execution was stopped for a person to look at.", ev.Kind, exec.State)}
		if _, active := phases[exec.State]; !active && exec.State != fleet.ExecutionPending {
			r.Outcome = fmt.Sprintf("The execution was in the unknown state %q; it was stopped for a person to look at.", exec.State)
		}
	}
	if r.To == exec.State {
		if r.stops && exec.CancelledBy == "" {
			next.CancelledBy = ev.By
			return next, []Effect{{Kind: EffectStop, Phase: phases[r.To]}}
		}
		return next, nil
	}
	next.State = r.To
	if phase, active := phases[r.To]; active {
		next.Deadline = now.Add(limits.Phase(phase))
		return next, []Effect{{Kind: EffectCommand, Phase: phase}}
	}
	next.Ended = now
	if ev.Kind == EventCancel {
		next.CancelledBy = ev.By
	}
	next.Deadline = time.Time{}
	next.Outcome = sentence(r.Outcome, ev.Detail)
	if ev.Kind == EventSucceeded && exec.CancelledBy != "" {
		next.Outcome = sentence(next.Outcome, fmt.Sprintf("That %s cancelled it came too late.", exec.CancelledBy))
	}
	if r.To == fleet.ExecutionHandedOver {
		next.Outcome = sentence(next.Outcome, ev.Why)
	}
	for i := range next.Steps {
		if next.Steps[i].State == fleet.StepRunning {
			next.Steps[i].State = fleet.StepUnknown
			next.Steps[i].Ended = now
		}
	}
	effects := []Effect{{Kind: EffectRelease}}
	if r.To == fleet.ExecutionDegraded || r.To == fleet.ExecutionHandedOver {
		effects = append(effects, Effect{Kind: EffectAlert})
	}
	return next, effects
}

func match(e *fleet.Execution, ev *Event) (Rule, bool) {
	for _, r := range transitions {
		if r.From == e.State && r.On == ev.Kind && r.holds(e, ev) {
			return r, true
		}
	}
	return Rule{}, false
}

func sentence(a, b string) string {
	if b = strings.TrimSpace(b); b == "" {
		return a
	}
	if !strings.HasSuffix(b, ".") {
		b += "."
	}
	first, _, _ := strings.Cut(b, " ")
	if !strings.ContainsAny(strings.TrimRight(first, "."), "./_0123456789") { // not the name of a unit or a file
		b = strings.ToUpper(b[:1]) + b[1:]
	}
	return a + " " + b
}

// merge takes over what a report says. Merging a report twice, or an older one
// after a newer one, changes nothing.
func merge(e *fleet.Execution, r *fleet.Report) {
	if r.Step != nil {
		e.Steps = mergeStep(e.Steps, *r.Step)
	}
	if r.GuestsBefore != nil && len(e.GuestsBefore) == 0 {
		e.GuestsBefore = slices.Clone(r.GuestsBefore)
	}
	if r.GuestsAfter != nil {
		e.GuestsAfter = slices.Clone(r.GuestsAfter)
	}
	if r.Bundle != "" {
		e.Bundle = r.Bundle
	}
}

func mergeStep(steps []fleet.Step, s fleet.Step) []fleet.Step {
	for i, old := range steps {
		if old.Phase == s.Phase && old.Name == s.Name && old.Attempt == s.Attempt {
			if old.State == fleet.StepRunning {
				steps[i] = s
			}
			return steps
		}
	}
	return append(steps, s)
}

// WriteTransitions writes the transition table in Markdown and the diagram in
// Mermaid, as they stand in ARCHITECTURE.md.
func WriteTransitions(w io.Writer) error {
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n    [*] --> pending\n")
	drawn := map[string]bool{}
	for _, r := range transitions {
		if r.From == r.To {
			continue
		}
		edge := fmt.Sprintf("    %s --> %s: %s\n", id(r.From), id(r.To), r.On)
		if !drawn[edge] {
			drawn[edge] = true
			b.WriteString(edge)
		}
	}
	for _, s := range States() {
		if s.Final() {
			fmt.Fprintf(&b, "    %s --> [*]\n", id(s))
		}
	}
	b.WriteString("```\n\n| state | event | if | next state | rule |\n|---|---|---|---|---|\n")
	for _, r := range transitions {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.From, r.On, r.When, r.To, r.Name)
	}
	b.WriteString("| any that is not final | any other | | handed-over | not foreseen |\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// States lists every state of an execution.
func States() []fleet.ExecutionState {
	return []fleet.ExecutionState{fleet.ExecutionPending, fleet.ExecutionRecycling, fleet.ExecutionDiagnosing, fleet.ExecutionResetting,
		fleet.ExecutionMigrating, fleet.ExecutionSucceeded, fleet.ExecutionDegraded, fleet.ExecutionHandedOver, fleet.ExecutionCancelled}
}

func id(s fleet.ExecutionState) string { return strings.ReplaceAll(string(s), "-", "_") }
