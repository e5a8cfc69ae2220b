package executor

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

var errCrash = errors.New("the control plane is dead")

// frail is the world as a control plane sees it that dies at its k-th write: just
// before the write, or just after.
type frail struct {
	*world
	mu     sync.Mutex
	k      int
	before bool
	dead   bool
	happen chan struct{}
}

// write lets the k-th write be the last.
func (f *frail) write(do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errCrash
	}
	if f.k--; f.k != 0 {
		return do()
	}
	f.dead = true
	close(f.happen)
	if !f.before {
		do()
	}
	return errCrash
}

func (f *frail) Create(ctx context.Context, r Record) (rev uint64, err error) {
	err = f.write(func() error { rev, err = f.world.Create(ctx, r); return err })
	return rev, err
}

func (f *frail) Update(ctx context.Context, r Record, revision uint64) (rev uint64, err error) {
	err = f.write(func() error { rev, err = f.world.Update(ctx, r, revision); return err })
	return rev, err
}

func (f *frail) Send(ctx context.Context, c fleet.Command) error {
	return f.write(func() error { return f.world.Send(ctx, c) })
}

func (f *frail) Append(ctx context.Context, actor, event, subject string, detail any) error {
	return f.write(func() error { return f.world.Append(ctx, actor, event, subject, detail) })
}

type frailLeases struct{ f *frail }

func (l frailLeases) Acquire(ctx context.Context, h fleet.HostID, owner string) (token uint64, err error) {
	err = l.f.write(func() error { token, err = leases{l.f.world}.Acquire(ctx, h, owner); return err })
	return token, err
}

func (l frailLeases) Renew(ctx context.Context, h fleet.HostID, owner string, token uint64) error {
	return l.f.write(func() error { return leases{l.f.world}.Renew(ctx, h, owner, token) })
}

func (l frailLeases) Release(ctx context.Context, h fleet.HostID, owner string, token uint64) error {
	return l.f.write(func() error { return leases{l.f.world}.Release(ctx, h, owner, token) })
}

// The control plane dies at every one of its writes and is started anew: the
// execution ends, no service is restarted twice, and the host is free afterwards.
func TestControlPlaneDiesAtEveryWrite(t *testing.T) {
	for name, c := range map[string]struct {
		broken bool
		pause  time.Duration
		least  int
	}{
		"recycle, back at once":          {false, 0, 9},
		"recycle, back after the lease":  {false, 20 * time.Second, 9},
		"escalation, back at once":       {true, 0, 12},
		"escalation, back after an hour": {true, time.Hour, 12},
	} {
		for _, before := range []bool{true, false} {
			points := 0
			for k := 1; ; k++ {
				over := false
				synctest.Test(t, func(t *testing.T) {
					w := newWorld()
					s := sim.New(sim.Config{Units: []string{"a.service", "b.service"}, Start: 50 * ms, VMs: []fleet.VM{{ID: "vm1"}}})
					if c.broken {
						s.Break("b.service")
					}
					f := &frail{world: w, k: k, before: before, happen: make(chan struct{})}
					var current *Coordinator
					var mu sync.Mutex
					agent, err := host.New(host.Config{
						Host: "h1", Dir: t.TempDir(), Services: s, Guests: s, Diagnostics: s, Units: s.Names, Boot: "boot", Log: quiet,
						Reports: reportTo(func(ctx context.Context, r fleet.Report) error {
							mu.Lock()
							c := current
							mu.Unlock()
							return c.HandleReport(ctx, r)
						}),
					})
					if err != nil {
						t.Fatal(err)
					}
					ctx, stop := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					defer func() {
						stop()
						wg.Wait()
						time.Sleep(time.Second)
						agent.Close()
					}()
					w.deliver = func(c fleet.Command) { wg.Go(func() { agent.Handle(ctx, c) }) }
					wg.Go(func() { agent.Run(ctx) })

					cfg := w.config()
					cfg.Store, cfg.Commands, cfg.Leases, cfg.Audit = f, f, frailLeases{f}, f
					first, err := New(cfg)
					if err != nil {
						t.Fatal(err)
					}
					current = first
					firstCtx, kill := context.WithCancel(ctx)
					wg.Go(func() { first.Run(firstCtx) })
					request := Request{Host: "h1", Action: fleet.ActionRecycle, RequestedBy: "policy:automatic", EvidenceAt: time.Now()}
					e, submitErr := first.Submit(ctx, request)
					select {
					case <-f.happen:
					case <-time.After(2 * time.Minute):
						over = true
					}
					kill()
					time.Sleep(c.pause)
					second, err := New(w.config())
					if err != nil {
						t.Fatal(err)
					}
					mu.Lock()
					current = second
					mu.Unlock()
					wg.Go(func() { second.Run(ctx) })
					time.Sleep(5 * time.Minute)
					all, err := second.Executions(ctx)
					if err != nil || len(all) > 1 || submitErr == nil && len(all) != 1 {
						t.Fatalf("%d executions, %v, %v", len(all), err, submitErr)
					}
					for _, e := range all {
						if !slices.Contains(w.audit, "execution."+string(e.State)) {
							t.Errorf("%s, %d, before %v: the audit trail does not say that it is %s: %q", name, k, before, e.State, w.audit)
						}
						if !e.State.Final() || e.Outcome == "" {
							t.Errorf("%s, %d, before %v: %s for ever", name, k, before, e.State)
						}
						if e.State == fleet.ExecutionDegraded && c.pause == 0 {
							t.Errorf("%s, %d, before %v: %s: %s", name, k, before, e.State, e.Outcome)
						}
					}
					if n := s.Restarts("a.service"); n > 1 {
						t.Errorf("%s, %d, before %v: restarted %d times", name, k, before, n)
					}
					if w.held("h1") != "" {
						t.Errorf("%s, %d, before %v: the host is still held", name, k, before)
					}
					// The host can be acted on again.
					s.Mend("b.service")
					request.EvidenceAt = time.Now()
					if e, err = second.Submit(ctx, request); err != nil {
						t.Fatalf("%s, %d, before %v: %v", name, k, before, err)
					}
					time.Sleep(time.Minute)
					if e, _ = second.Execution(ctx, e.ID); e.State != fleet.ExecutionSucceeded {
						t.Errorf("%s, %d, before %v: afterwards %s: %s", name, k, before, e.State, e.Outcome)
					}
				})
				if over || t.Failed() {
					break
				}
				points++
			}
			if points < c.least {
				t.Errorf("%s: only %d crash points", name, points)
			}
			t.Logf("%s, before the write %v: %d crash points", name, before, points)
		}
	}
}

type reportTo func(context.Context, fleet.Report) error

func (f reportTo) PublishReport(ctx context.Context, r fleet.Report) error { return f(ctx, r) }

// Two coordinators at once, as after a leader was thought dead: one execution.
func TestTwoCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		other, err := New(r.w.config())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { other.Run(ctx) })
		e := r.submit(nil)
		if _, err := other.Submit(t.Context(), Request{Host: "h1", Action: fleet.ActionRecycle, RequestedBy: "x", EvidenceAt: time.Now()}); !errors.Is(err, ErrBusy) {
			if _, refused := errors.AsType[*guard.Refusal](err); !refused {
				t.Errorf("a second execution on the host: %v", err)
			}
		}
		e = r.wait(e.ID)
		time.Sleep(minute)
		stop()
		wg.Wait()
		if e.State != fleet.ExecutionSucceeded || r.sim.Restarts("a.service") != 1 {
			t.Errorf("%s: %s, %d restarts", e.State, e.Outcome, r.sim.Restarts("a.service"))
		}
		if got, _ := other.Execution(t.Context(), e.ID); got.State != fleet.ExecutionSucceeded {
			t.Errorf("the other one believes it is %s", got.State)
		}
	})
}
