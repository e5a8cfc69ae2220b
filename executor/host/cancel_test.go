package host

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// hooked calls at as a restart begins.
type hooked struct {
	Services
	at func(unit string)
}

func (h hooked) Restart(ctx context.Context, unit string) error {
	h.at(unit)
	return h.Services.Restart(ctx, unit)
}

func cancelled(c fleet.Command) fleet.Command {
	c.CancelledBy = "ann"
	return c
}

func TestARecycleIsCancelledAfterTheServiceThatItIsAt(t *testing.T) {
	for at, want := range map[string]struct {
		result fleet.Result
		says   string
		b      int
	}{
		"a.service": {fleet.ResultCancelled, "cancelled by ann after 1 of 2 services", 0},
		"b.service": {fleet.ResultSucceeded, "", 1}, // there is nothing left to leave alone
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			cmd := b.command("c1", 1)
			cfg := b.config()
			var r *Runner
			cfg.Services = hooked{b.sim, func(unit string) {
				if unit == at {
					if err := r.Handle(t.Context(), cancelled(cmd)); err != nil {
						t.Error(err)
					}
				}
			}}
			r, stop := b.run(cfg)
			defer stop()
			if err := r.Handle(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			rep := b.wait("c1")
			if rep.Result != want.result || !strings.Contains(rep.Detail, want.says) || len(rep.GuestsAfter) != 2 {
				t.Errorf("at %s: %+v", at, rep)
			}
			if b.sim.Restarts("a.service") != 1 || b.sim.Restarts("b.service") != want.b {
				t.Errorf("at %s: %d and %d restarts", at, b.sim.Restarts("a.service"), b.sim.Restarts("b.service"))
			}
			// A service that does not come back is not covered up.
			b.sim.Break("a.service")
			if at == "a.service" {
				cmd.ID, cmd.Token = "c2", 2
				if err := r.Handle(t.Context(), cmd); err != nil {
					t.Fatal(err)
				}
				if rep := b.wait("c2"); rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "a.service") {
					t.Errorf("%+v", rep)
				}
			}
		})
	}
}

// The agent dies at every one of its writes around a cancelled recycle: what had begun
// is finished once, the rest is left alone, and it ends.
func TestCancelledRecycleCrashAtEveryWrite(t *testing.T) {
	everyWrite(t, 8, func(t *testing.T, c *crash) bool {
		b := newBench(t)
		cmd := b.command("c1", 1)
		cfg := b.mortal(c)
		var r *Runner
		cfg.Services = hooked{cfg.Services, func(string) { r.Handle(t.Context(), cancelled(cmd)) }}
		over := b.until(c, cfg, func(ctx context.Context, running *Runner) {
			r = running
			r.Handle(ctx, cmd)
		})
		time.Sleep(time.Second)
		rep := b.once(b.config(), cancelled(cmd))
		if rep.Result != fleet.ResultCancelled || len(driver.Lost(rep.GuestsBefore, rep.GuestsAfter)) > 0 {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
		begun := 0
		for _, rep := range b.got["c1"] {
			if rep.Step != nil && rep.Step.Name == stepRestart("a.service") {
				begun = 1
			}
		}
		if b.sim.Restarts("a.service") != begun || b.sim.Restarts("b.service") != 0 {
			t.Errorf("%d and %d restarts", b.sim.Restarts("a.service"), b.sim.Restarts("b.service"))
		}
		return over
	})
}

// slowMigration is one whose VMs take a second each, one after the other.
func slowMigration(t *testing.T, commitAfter time.Duration) (*migration, Config) {
	m := newMigration(t)
	m.sim = sim.New(sim.Config{Units: []string{"a.service"}, MoveTime: time.Second, CommitAfter: commitAfter, VMs: []fleet.VM{{ID: "vm1"}, {ID: "vm2"}, {ID: "vm3"}}})
	m.sim.Join("there", m.there)
	cfg := m.config()
	cfg.ParallelMoves = 1
	return m, cfg
}

func TestAMigrationIsCancelled(t *testing.T) {
	for name, c := range map[string]struct {
		after, commitAfter time.Duration
		moved              int
	}{
		"in the first move":                      {500 * ms, 0, 0},
		"in the second move":                     {1500 * ms, 0, 1},
		"in a move that cannot be stopped":       {500 * ms, 200 * ms, 1},
		"in a second one that cannot be stopped": {1500 * ms, 200 * ms, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			m, cfg := slowMigration(t, c.commitAfter)
			cmd := m.command("c1", 1)
			r, stop := m.run(cfg)
			defer stop()
			if err := r.Handle(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			time.Sleep(c.after)
			if err := r.Handle(t.Context(), cancelled(cmd)); err != nil {
				t.Fatal(err)
			}
			rep := m.wait("c1")
			moved := 0
			for _, vm := range []string{"vm1", "vm2", "vm3"} {
				here, there := m.places(vm)
				if here == there || here != "" && there != "" {
					t.Errorf("%s: %s is %q here and %q there", name, vm, here, there)
				}
				if there == "running" {
					moved++
				}
			}
			if rep.Result != fleet.ResultCancelled || !strings.Contains(rep.Detail, "cancelled by ann") || moved != c.moved {
				t.Errorf("%s: %d moved, %s: %s", name, moved, rep.Result, rep.Detail)
			}
			if lost := driver.Lost(rep.GuestsBefore, rep.GuestsAfter); len(lost) != 0 {
				t.Errorf("%s: %v", name, lost)
			}
		})
	}
}

// The agent dies at every one of its writes around a cancelled migration: each VM is in
// one place, and the second has not left.
func TestCancelledMigrationCrashAtEveryWrite(t *testing.T) {
	everyWrite(t, 8, func(t *testing.T, c *crash) bool {
		m, cfg := slowMigration(t, 0)
		cmd := m.command("c1", 1)
		mortal := m.mortal(c)
		mortal.Mover = mortalMover{m.sim, c, map[string]int{}}
		over := m.until(c, mortal, func(ctx context.Context, r *Runner) {
			r.Handle(ctx, cmd)
			go func() {
				if sleep(ctx, 500*ms) {
					r.Handle(ctx, cancelled(cmd))
				}
			}()
		})
		rep := m.once(cfg, cancelled(cmd))
		if rep.Result != fleet.ResultCancelled || len(driver.Lost(rep.GuestsBefore, rep.GuestsAfter)) > 0 {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
		for _, vm := range []string{"vm1", "vm2", "vm3"} {
			if here, there := m.places(vm); here != "running" || there != "" {
				t.Errorf("%s is %q here and %q there", vm, here, there)
			}
		}
		return over
	})
}

func TestAResetIsCancelledUntilAVMIsFrozen(t *testing.T) {
	for name, c := range map[string]struct {
		kexec         bool
		set           func(w *world, cancel func())
		result        fleet.Result
		moves, resets int
	}{
		"before the new hypervisor":  {false, func(w *world, cancel func()) { w.onCheck = cancel }, fleet.ResultCancelled, 0, 0},
		"while VMs are moved":        {false, func(w *world, cancel func()) { w.onMove = cancel }, fleet.ResultSucceeded, 1, 0},
		"before the kernel":          {true, func(w *world, cancel func()) { w.onCheck = cancel }, fleet.ResultCancelled, 0, 0},
		"while the kernel is loaded": {true, func(w *world, cancel func()) { w.onLoad = cancel }, fleet.ResultCancelled, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b, w := newBench(t), newWorld()
			cmd := b.resetCommand("c1", 1)
			r, stop := b.run(b.resetConfig(w, c.kexec, immortal()))
			defer stop()
			c.set(w, func() { r.Handle(t.Context(), cancelled(cmd)) })
			if err := r.Handle(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			rep := b.wait("c1")
			if rep.Result != c.result || w.moves[0] != c.moves || w.resets != c.resets || w.plan != "" || w.loaded != "" {
				t.Errorf("%s: %s: %s: %+v", name, rep.Result, rep.Detail, w)
			}
			if c.result == fleet.ResultCancelled && rep.Detail != "cancelled by ann before a VM was frozen" {
				t.Errorf("%s: %s", name, rep.Detail)
			}
			if lost := driver.Lost(rep.GuestsBefore, rep.GuestsAfter); len(lost) != 0 || len(rep.GuestsAfter) != 2 {
				t.Errorf("%s: %v", name, lost)
			}
		})
	}
}
