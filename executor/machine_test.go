package executor

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

var update = flag.Bool("update", false, "write the golden files anew")

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// situation is what a condition can look at.
type situation struct {
	action fleet.Action
	can    []fleet.Action
	// cancelledBy is who cancelled before, and bound the phase of a binding step.
	cancelledBy string
	bound       fleet.Phase
}

// every combination of what a condition can look at.
func contexts() (out []situation) {
	for _, a := range fleet.Actions() {
		for _, can := range [][]fleet.Action{nil, {a}, {fleet.ActionPreservingReset}, {fleet.ActionLiveMigrate}, {fleet.ActionPreservingReset, fleet.ActionLiveMigrate}} {
			for _, by := range []string{"", "ann"} {
				for _, bound := range []fleet.Phase{"", fleet.PhaseReset} {
					out = append(out, situation{a, can, by, bound})
				}
			}
		}
	}
	return out
}

func TestEveryStateAndEvent(t *testing.T) {
	taken := map[string]bool{}
	states := append(States(), "", "made-up")
	for _, s := range states {
		for _, kind := range append(EventKinds(), "", "made-up") {
			for _, c := range contexts() {
				e := fleet.Execution{ID: "x", Host: "h", State: s, Action: c.action, CancelledBy: c.cancelledBy, Steps: []fleet.Step{{Name: "a", State: fleet.StepRunning, Phase: c.bound, Binding: c.bound != ""}}}
				before := e
				ev := Event{Kind: kind, By: "bob", Can: c.can, Detail: "d", Why: "w"}
				next, effects := Next(e, ev, start, DefaultLimits())
				if !reflect.DeepEqual(e, before) || e.Steps[0].State != fleet.StepRunning {
					t.Fatalf("%s on %s: the input was changed", s, kind)
				}
				again, effects2 := Next(e, ev, start, DefaultLimits())
				if !reflect.DeepEqual(next, again) || !reflect.DeepEqual(effects, effects2) {
					t.Fatalf("%s on %s: two answers to the same input", s, kind)
				}
				r, found := match(&e, &ev)
				switch {
				case s.Final():
					if !reflect.DeepEqual(next, e) || effects != nil {
						t.Fatalf("%s on %s: a final state changed to %+v with %v", s, kind, next, effects)
					}
					continue
				case !found:
					if next.State != fleet.ExecutionHandedOver {
						t.Fatalf("%s on %s: not foreseen, but not parked: %s", s, kind, next.State)
					}
				default:
					taken[string(s)+string(kind)+r.When] = true
					if next.State != r.To {
						t.Fatalf("%s on %s: %s, not %s", s, kind, next.State, r.To)
					}
				}
				if next.State.Final() {
					if next.Outcome == "" || next.Ended != start || !next.Deadline.IsZero() || next.Steps[0].State != fleet.StepUnknown {
						t.Fatalf("%s on %s: not ended properly: %+v", s, kind, next)
					}
					if effects[0].Kind != EffectRelease {
						t.Fatalf("%s on %s: the lease is kept", s, kind)
					}
					alert := len(effects) > 1 && effects[1].Kind == EffectAlert
					if want := next.State == fleet.ExecutionDegraded || next.State == fleet.ExecutionHandedOver; alert != want {
						t.Fatalf("%s on %s to %s: alert is %v", s, kind, next.State, alert)
					}
				} else if next.State != s {
					if phase := PhaseOf(next.State); len(effects) != 1 || effects[0] != (Effect{EffectCommand, phase}) || !next.Deadline.After(start) {
						t.Fatalf("%s on %s: %v, deadline %v", s, kind, effects, next.Deadline)
					}
				} else if stops := kind == EventCancel && c.cancelledBy == "" && (c.bound == "" || s != fleet.ExecutionResetting); stops {
					if next.CancelledBy != "bob" || len(effects) != 1 || effects[0] != (Effect{EffectStop, PhaseOf(s)}) {
						t.Fatalf("%s on %s: %v, cancelled by %q", s, kind, effects, next.CancelledBy)
					}
				} else if len(effects) != 0 || next.CancelledBy != c.cancelledBy {
					t.Fatalf("%s on %s: %v, cancelled by %q", s, kind, effects, next.CancelledBy)
				}
				// What a person has stopped changes nothing further.
				if c.cancelledBy != "" && s != fleet.ExecutionPending && s != fleet.ExecutionDiagnosing && next.State != s && !next.State.Final() {
					t.Fatalf("%s on %s: it goes on with %s though %s cancelled it", s, kind, next.State, c.cancelledBy)
				}
			}
		}
	}
	for _, r := range Transitions() {
		if !taken[string(r.From)+string(r.On)+r.When] {
			t.Errorf("rule %q (%s on %s if %q) is never taken", r.Name, r.From, r.On, r.When)
		}
	}
}

// No run of events goes round: every execution ends after at most five changes.
func TestAlwaysEnds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	kinds := EventKinds()
	all := contexts()
	for range 20000 {
		c := all[rnd.IntN(len(all))]
		e := fleet.Execution{State: fleet.ExecutionPending, Action: c.action}
		changes := 0
		for i := 0; i < 200 && !e.State.Final(); i++ {
			next, _ := Next(e, Event{Kind: kinds[rnd.IntN(len(kinds))], Can: all[rnd.IntN(len(all))].can}, start, DefaultLimits())
			if next.State != e.State {
				changes++
			}
			e = next
		}
		if !e.State.Final() || changes > 5 {
			t.Fatalf("%s after %d changes", e.State, changes)
		}
	}
}

func TestMergeIsIdempotentAndKeepsOrder(t *testing.T) {
	at := func(s fleet.StepState) *fleet.Report {
		return &fleet.Report{Step: &fleet.Step{Phase: fleet.PhaseRecycle, Name: "restart a", Attempt: 1, State: s}}
	}
	e := fleet.Execution{State: fleet.ExecutionRecycling, Action: fleet.ActionRecycle}
	for _, s := range []fleet.StepState{fleet.StepRunning, fleet.StepSucceeded, fleet.StepRunning, fleet.StepFailed} {
		e, _ = Next(e, Event{Kind: EventProgress, Report: at(s)}, start, DefaultLimits())
	}
	if len(e.Steps) != 1 || e.Steps[0].State != fleet.StepSucceeded {
		t.Errorf("the first end of a step counts: %+v", e.Steps)
	}
	full := &fleet.Report{GuestsBefore: []fleet.GuestReport{{VM: fleet.VM{ID: "a"}}}}
	e, _ = Next(e, Event{Kind: EventProgress, Report: full}, start, DefaultLimits())
	e, _ = Next(e, Event{Kind: EventProgress, Report: &fleet.Report{GuestsBefore: []fleet.GuestReport{}}}, start, DefaultLimits())
	if len(e.GuestsBefore) != 1 {
		t.Errorf("the first count counts: %+v", e.GuestsBefore)
	}
}

func TestOutcomeSaysWhy(t *testing.T) {
	e := fleet.Execution{State: fleet.ExecutionDiagnosing, Action: fleet.ActionRecycle}
	e, _ = Next(e, Event{Kind: EventSucceeded, Detail: "libvirtd ran out of memory", Why: "preserving-reset is not possible here"}, start, DefaultLimits())
	for _, want := range []string{"Libvirtd ran out of memory.", "Preserving-reset is not possible here."} {
		if !strings.Contains(e.Outcome, want) {
			t.Errorf("%q lacks %q", e.Outcome, want)
		}
	}
}

func TestTransitionsGolden(t *testing.T) {
	var b bytes.Buffer
	if err := WriteTransitions(&b); err != nil {
		t.Fatal(err)
	}
	const path, begin, end = "../ARCHITECTURE.md", "<!-- transitions -->\n", "<!-- end of transitions -->\n"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	documented, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the transitions", path)
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if documented != b.String() {
		t.Errorf("the transitions are not those of %s; run go test ./executor -run Golden -update", path)
	}
}
