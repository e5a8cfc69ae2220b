package executor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	ms     = time.Millisecond
	minute = time.Minute
	hour   = time.Hour
)

var quiet = slog.New(slog.DiscardHandler)

// rig is a coordinator and the agent of a simulated host, in virtual time.
type rig struct {
	t     *testing.T
	w     *world
	c     *Coordinator
	sim   *sim.Host
	agent *host.Runner
}

// newRig must be called inside a synctest bubble.
func newRig(t *testing.T, change func(*host.Config, *world)) *rig {
	t.Helper()
	r := &rig{t: t, w: newWorld()}
	r.sim = sim.New(sim.Config{
		Units: []string{"a.service", "b.service", "c.service"}, Start: 50 * ms,
		VMs: []fleet.VM{{ID: "vm1", MemoryBytes: 1 << 20}, {ID: "vm2", MemoryBytes: 1 << 20}},
	})
	hc := host.Config{
		Host: "h1", Dir: t.TempDir(), Services: r.sim, Guests: r.sim, Diagnostics: r.sim, Units: r.sim.Names, Boot: "boot", Log: quiet, Reports: r,
	}
	if change != nil {
		change(&hc, r.w)
	}
	var err error
	if r.c, err = New(r.w.config()); err != nil {
		t.Fatal(err)
	}
	if r.agent, err = host.New(hc); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	r.w.deliver = func(c fleet.Command) {
		wg.Go(func() { r.agent.Handle(ctx, c) })
	}
	wg.Go(func() { r.c.Run(ctx) })
	wg.Go(func() { r.agent.Run(ctx) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
		time.Sleep(time.Second) // simulated services finish what they were told
		r.agent.Close()
	})
	return r
}

// PublishReport delivers each report twice.
func (r *rig) PublishReport(ctx context.Context, rep fleet.Report) error {
	if err := r.c.HandleReport(ctx, rep); err != nil {
		return err
	}
	return r.c.HandleReport(ctx, rep)
}

func (r *rig) submit(change func(*Request)) fleet.Execution {
	r.t.Helper()
	req := Request{Host: "h1", Action: fleet.ActionRecycle, Reason: "it hangs", RequestedBy: "policy:automatic", EvidenceAt: time.Now()}
	if change != nil {
		change(&req)
	}
	e, err := r.c.Submit(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// wait returns the execution once it is final.
func (r *rig) wait(id string) fleet.Execution {
	r.t.Helper()
	for range 10000 {
		e, err := r.c.Execution(r.t.Context(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if e.State.Final() {
			return e
		}
		time.Sleep(100 * ms)
	}
	r.t.Fatal("the execution never ends")
	panic("unreachable")
}

func names(steps []fleet.Step) (out []string) {
	for _, s := range steps {
		out = append(out, s.Name+": "+string(s.State))
	}
	return out
}

func TestRecycleWholeWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.sim.Hang("b.service")
		e := r.wait(r.submit(nil).ID)
		if e.State != fleet.ExecutionSucceeded {
			t.Fatalf("%s: %s %v", e.State, e.Outcome, names(e.Steps))
		}
		want := []string{"count VMs before: succeeded", "restart a.service: succeeded", "restart b.service: succeeded", "restart c.service: succeeded",
			"all services stay healthy: succeeded", "count VMs after: succeeded"}
		if got := names(e.Steps); !slices.Equal(got, want) {
			t.Errorf("steps %q", got)
		}
		if len(e.GuestsBefore) != 2 || len(e.GuestsAfter) != 2 || !r.sim.Healthy(t.Context())["b.service"] {
			t.Errorf("guests %v, %v", e.GuestsBefore, e.GuestsAfter)
		}
		synctest.Wait()
		if len(r.w.owner) != 0 {
			t.Errorf("the lease is kept: %v", r.w.owner)
		}
		if want := []string{"execution.requested", "execution.recycling", "execution.succeeded"}; !slices.Equal(r.w.audit, want) {
			t.Errorf("audit %v", r.w.audit)
		}
	})
}

func TestServiceThatStaysDownIsDiagnosedAndHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.sim.Break("b.service")
		e := r.wait(r.submit(nil).ID)
		if e.State != fleet.ExecutionHandedOver || !strings.Contains(e.Outcome, "b.service does not work") || !strings.Contains(e.Outcome, "cannot do it") {
			t.Fatalf("%s: %s %v", e.State, e.Outcome, names(e.Steps))
		}
		if r.sim.Restarts("c.service") != 0 {
			t.Error("went on with the next service")
		}
	})
}

func TestLostGuestDegrades(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		id := r.submit(nil).ID
		time.Sleep(60 * ms)
		r.sim.Lose("vm2")
		e := r.wait(id)
		if e.State != fleet.ExecutionDegraded || !strings.Contains(e.Outcome, "VM vm2") {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
	})
}

func TestDryRunAgentRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *host.Config, _ *world) { c.DryRun = true })
		e := r.wait(r.submit(nil).ID)
		if e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, "dry-run") || r.sim.Restarts("a.service") != 0 {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
	})
}

func TestDryRunRequestTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		e := r.submit(func(q *Request) { q.DryRun = true })
		if e.State != fleet.ExecutionCancelled || !e.DryRun || !strings.Contains(e.Outcome, "would have been carried out") {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
		time.Sleep(minute)
		if len(r.w.commands) != 0 || r.sim.Restarts("a.service") != 0 {
			t.Error("a dry run acted")
		}
	})
}

func TestSilentAgentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.w.change(func() { r.w.deliver = nil })
		e := r.wait(r.submit(nil).ID)
		if e.State != fleet.ExecutionDegraded || !strings.Contains(e.Outcome, "did not report") {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
		if len(r.w.commands) < 3 {
			t.Errorf("the command was sent %d times", len(r.w.commands))
		}
		for _, c := range r.w.commands {
			if !reflect.DeepEqual(c, r.w.commands[0]) {
				t.Errorf("sent again, but not the same: %+v", c)
			}
		}
	})
}

func TestCommandThatComesLateIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		deliver := r.w.deliver
		r.w.change(func() { r.w.deliver = func(c fleet.Command) { time.AfterFunc(20*time.Second, func() { deliver(c) }) } })
		e := r.wait(r.submit(nil).ID)
		if e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, "stale") || r.sim.Restarts("a.service") != 0 {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
	})
}

func TestGuardRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		for name, c := range map[string]struct {
			change func()
			want   string
		}{
			"blind":  {func() { r.w.blind = errors.New("the bus is away") }, "the bus is away"},
			"frozen": {func() { r.w.blind = nil; r.w.state.Freezes = []fleet.Freeze{{By: "ann", Reason: "audit"}} }, "frozen by ann: audit"},
		} {
			r.w.change(c.change)
			_, err := r.c.Submit(t.Context(), Request{Host: "h1", Action: fleet.ActionRecycle, RequestedBy: "bob", EvidenceAt: time.Now()})
			if refusal, ok := errors.AsType[*guard.Refusal](err); !ok || !strings.Contains(refusal.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(r.w.records) != 0 || len(r.w.owner) != 0 {
			t.Error("a refused request left something behind")
		}
	})
}

// What changes between the two looks of the guard stops the action.
func TestGuardLooksAgainBeforeTheFirstEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.w.change(func() {
			r.w.fail = func(what string) error {
				if what == "create" {
					r.w.state.Freezes = []fleet.Freeze{{Host: "h1"}}
				}
				return nil
			}
		})
		e := r.wait(r.submit(nil).ID)
		if e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, "frozen") || len(r.w.commands) != 0 {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
	})
}

func TestOneExecutionPerHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		begun, refused := 0, 0
		for range 20 {
			wg.Go(func() {
				_, err := r.c.Submit(t.Context(), Request{Host: "h1", Action: fleet.ActionRecycle, RequestedBy: "bob", EvidenceAt: time.Now()})
				mu.Lock()
				defer mu.Unlock()
				_, guarded := errors.AsType[*guard.Refusal](err)
				switch {
				case err == nil:
					begun++
				case errors.Is(err, ErrBusy) || guarded:
					refused++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if begun != 1 || refused != 19 {
			t.Errorf("%d began, %d were refused", begun, refused)
		}
	})
}

func TestLimitLetsExactlyOneThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *host.Config, w *world) { w.policy.MaxConcurrent = 1 })
		r.w.change(func() { r.w.deliver = nil })
		var wg sync.WaitGroup
		for _, h := range []fleet.HostID{"h1", "h2"} {
			wg.Go(func() {
				r.c.Submit(t.Context(), Request{Host: h, Action: fleet.ActionRecycle, RequestedBy: "bob", EvidenceAt: time.Now()})
			})
		}
		wg.Wait()
		synctest.Wait()
		if len(r.w.commands) != 1 {
			t.Errorf("%d commands were sent", len(r.w.commands))
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		e := r.submit(nil)
		time.Sleep(20 * ms) // the first service is being restarted
		for range 2 {
			e, err := r.c.Cancel(t.Context(), e.ID, "ann")
			if err != nil || e.State != fleet.ExecutionRecycling || e.CancelledBy != "ann" {
				t.Errorf("%+v, %v", e, err)
			}
		}
		if _, err := r.c.Cancel(t.Context(), "nope", "ann"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		e = r.wait(e.ID)
		if e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, "after 1 of 3 services") || r.sim.Restarts("a.service") != 1 || r.sim.Restarts("b.service") != 0 {
			t.Errorf("%s: %s, %d and %d restarts", e.State, e.Outcome, r.sim.Restarts("a.service"), r.sim.Restarts("b.service"))
		}
		if _, err := r.c.Cancel(t.Context(), e.ID, "ann"); !errors.Is(err, ErrTooLate) {
			t.Errorf("cancelled after its end: %v", err)
		}
		if n := len(r.w.commands); n != 2 || r.w.commands[1].CancelledBy != "ann" || r.w.commands[1].ID != r.w.commands[0].ID {
			t.Errorf("%+v", r.w.commands)
		}
		if want := "execution.stopping"; !slices.Contains(r.w.audit, want) {
			t.Errorf("%v lacks %s", r.w.audit, want)
		}
	})
}

// A service that does not come back is a person's business once the recycle was cancelled.
func TestCancelOfARecycleThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.sim.Break("a.service")
		e := r.submit(nil)
		time.Sleep(20 * ms)
		if _, err := r.c.Cancel(t.Context(), e.ID, "ann"); err != nil {
			t.Fatal(err)
		}
		if e = r.wait(e.ID); e.State != fleet.ExecutionHandedOver || !strings.Contains(e.Outcome, "since the execution was cancelled") || e.Bundle != "" {
			t.Errorf("%s: %s", e.State, e.Outcome)
		}
	})
}

// The control plane dies once it has stored that an execution is to stop, and before the
// agent knows: the next one tells it.
func TestCancelOutlivesTheControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		e := r.submit(nil)
		time.Sleep(20 * ms)
		r.w.change(func() {
			r.w.fail = func(what string) error {
				if what == "send" || what == "audit" {
					return errors.New("dead")
				}
				return nil
			}
		})
		if _, err := r.c.Cancel(t.Context(), e.ID, "ann"); err != nil {
			t.Fatal(err)
		}
		next, err := New(r.w.config())
		if err != nil {
			t.Fatal(err)
		}
		r.w.change(func() { r.w.fail = func(string) error { return nil } })
		if err := next.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		if e = r.wait(e.ID); e.State != fleet.ExecutionCancelled || r.sim.Restarts("b.service") != 0 {
			t.Errorf("%s: %s", e.State, e.Outcome)
		}
	})
}

// An agent that says more than can be stored holds nobody up, and its execution ends.
func TestAnAgentThatTalksTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(*host.Config, *world) {})
		r.w.change(func() { r.w.deliver = nil }) // this agent is played
		e := r.submit(nil)
		command := r.w.commands[0]
		report := fleet.Report{Command: command.ID, Execution: e.ID, Host: e.Host, Phase: command.Phase, Token: command.Token}
		for i := range 400 {
			report.Seq, report.Time = i+1, time.Now()
			report.Step = &fleet.Step{Phase: command.Phase, Name: fmt.Sprint(i, strings.Repeat("n", 4000)), State: fleet.StepSucceeded, Detail: strings.Repeat("d", 4000)}
			if err := r.c.HandleReport(t.Context(), report); err != nil {
				t.Fatalf("report %d: %v", i, err)
			}
		}
		var many []fleet.GuestReport
		for i := range 5000 {
			many = append(many, fleet.GuestReport{VM: fleet.VM{ID: fmt.Sprint("vm", i), Name: strings.Repeat("n", 100), State: "running"}})
		}
		report.Seq, report.Step, report.Result, report.GuestsBefore, report.GuestsAfter = 401, nil, fleet.ResultDegraded, many, many
		if err := r.c.HandleReport(t.Context(), report); err != nil {
			t.Fatal(err)
		}
		if e = r.wait(e.ID); e.State != fleet.ExecutionDegraded || len(e.Steps) < 50 {
			t.Errorf("%s after %d steps", e.State, len(e.Steps))
		}
	})
}

// Nobody can renew the lease: what is under way ends at its deadline all the same, and nothing begins.
func TestALeaseThatCannotBeRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.w.change(func() { r.w.deliver = nil })
		e := r.submit(nil)
		r.w.change(func() {
			r.w.fail = func(what string) error {
				if what == "renew" || what == "acquire" {
					return errors.New("the table of leases is broken")
				}
				return nil
			}
		})
		if e = r.wait(e.ID); e.State != fleet.ExecutionDegraded || e.Ended.Sub(e.Created) > 10*minute {
			t.Errorf("%s after %v", e.State, e.Ended.Sub(e.Created))
		}
	})
}

// gate is a host whose VMs wait for leave to get their new processes.
type gate struct {
	*sim.Preserver
	check, move chan struct{}
}

func (g gate) Check(ctx context.Context) error {
	<-g.check
	return g.Preserver.Check(ctx)
}

func (g gate) Move(ctx context.Context, mark string) (map[string]time.Duration, error) {
	<-g.move
	return g.Preserver.Move(ctx, mark)
}

func TestCancelOfAReset(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := gate{check: make(chan struct{}), move: make(chan struct{})}
			r := newRig(t, func(c *host.Config, w *world) {
				g.Preserver = c.Services.(*sim.Host).Preserver()
				c.VMs = g
				w.policy.Automatic = []fleet.Action{fleet.ActionPreservingReset}
				w.state.Hosts = map[fleet.HostID]guard.Host{"h1": {Actions: w.policy.Automatic}, "h2": {Healthy: true}}
			})
			e := r.submit(func(q *Request) { q.Action = fleet.ActionPreservingReset })
			if late {
				close(g.check)
				time.Sleep(time.Second) // the step that freezes has begun, and is reported
			}
			got, err := r.c.Cancel(t.Context(), e.ID, "ann")
			if late && (!errors.Is(err, ErrTooLate) || !strings.Contains(err.Error(), "its VMs are being frozen")) || !late && (err != nil || got.CancelledBy != "ann") {
				t.Errorf("late %v: %+v, %v", late, got, err)
			}
			if !late {
				synctest.Wait() // the agent has been told
				close(g.check)
			}
			close(g.move)
			want := map[bool]fleet.ExecutionState{false: fleet.ExecutionCancelled, true: fleet.ExecutionSucceeded}[late]
			if e = r.wait(e.ID); e.State != want || late == strings.Contains(e.Outcome, "before a VM was frozen") {
				t.Errorf("late %v: %s: %s", late, e.State, e.Outcome)
			}
		})
	}
}

// Another process has taken the host: the execution gives up.
func TestFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.w.change(func() { r.w.deliver = nil })
		e := r.submit(nil)
		r.w.change(func() { r.w.owner["h1"], r.w.until["h1"] = "somebody else", time.Now().Add(hour) })
		if e = r.wait(e.ID); e.State != fleet.ExecutionHandedOver || !strings.Contains(e.Outcome, "Another execution") {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
		if r.w.owner["h1"] != "somebody else" {
			t.Error("released what was not its own")
		}
	})
}

// The lease ran out, but nobody took it: the execution goes on with a newer token.
func TestLeaseTakenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		deliver := r.w.deliver
		r.w.change(func() { r.w.deliver = nil })
		e := r.submit(nil)
		r.w.change(func() { delete(r.w.owner, "h1"); r.w.deliver = deliver })
		got := r.wait(e.ID)
		if got.State != fleet.ExecutionSucceeded || got.Token <= e.Token || r.agent.Token() != got.Token {
			t.Fatalf("%s: %s, token %d after %d, agent has %d", got.State, got.Outcome, got.Token, e.Token, r.agent.Token())
		}
	})
}

func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		e := r.submit(func(q *Request) { q.Action = fleet.ActionHandOver })
		if e.State != fleet.ExecutionHandedOver || len(r.w.commands) != 0 {
			t.Fatalf("%s", e.State)
		}
	})
}

func TestActionThatTheHostCannotDoIsHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *host.Config, w *world) {
			w.policy.Automatic = append(w.policy.Automatic, fleet.ActionPreservingReset)
		})
		e := r.submit(func(q *Request) { q.Action = fleet.ActionPreservingReset })
		if e.State != fleet.ExecutionHandedOver || !strings.Contains(e.Outcome, "cannot do preserving-reset") {
			t.Fatalf("%s: %s", e.State, e.Outcome)
		}
	})
}

func TestBadRequests(t *testing.T) {
	c, err := New(newWorld().config())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Request{
		{}, {Host: "h1", Action: "explode", RequestedBy: "a"}, {Host: "h1", Action: fleet.ActionNone, RequestedBy: "a"},
		{Host: "h 1", Action: fleet.ActionRecycle, RequestedBy: "a"}, {Host: "h1", Action: fleet.ActionRecycle},
	} {
		if _, err := c.Submit(t.Context(), r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a coordinator of nothing")
	}
}
