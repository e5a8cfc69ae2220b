package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// migration is two simulated hosts: the bench's own, and its target.
type migration struct {
	*bench
	there *sim.Host
}

func newMigration(t *testing.T) *migration {
	b := newBench(t)
	b.sim = sim.New(sim.Config{Units: []string{"a.service"}, MoveTime: 200 * ms, VMs: []fleet.VM{
		{ID: "vm1", MemoryBytes: 1 << 30}, {ID: "vm2", Name: "two", MemoryBytes: 1 << 30}, {ID: "vm3", State: "paused"}, {ID: "vm4", State: "shut-off"}}})
	m := &migration{b, sim.New(sim.Config{})}
	b.sim.Join("there", m.there)
	return m
}

func (m *migration) config() Config {
	cfg := m.bench.config()
	cfg.Mover, cfg.ParallelMoves = m.sim, 2
	return cfg
}

func (m *migration) command(id string, token uint64) fleet.Command {
	c := m.bench.command(id, token)
	c.Phase = fleet.PhaseMigrate
	for _, vm := range []string{"vm1", "vm2", "vm3"} {
		c.Targets = append(c.Targets, fleet.Target{VM: vm, Host: "there", Address: "192.0.2.2"})
	}
	return c
}

// places counts on how many hosts a VM is.
func (m *migration) places(vm string) (here, there string) {
	m.t.Helper()
	for h, to := range map[*sim.Host]*string{m.sim: &here, m.there: &there} {
		guests, err := h.Guests(context.Background())
		if err != nil {
			m.t.Fatal(err)
		}
		for _, g := range guests {
			if g.ID == vm {
				*to = g.State
			}
		}
	}
	return here, there
}

func TestMigration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMigration(t)
		rep := m.once(m.config(), m.command("c1", 1))
		if rep.Result != fleet.ResultSucceeded || len(rep.GuestsBefore) != 4 || len(rep.GuestsAfter) != 4 {
			t.Fatalf("%+v", rep)
		}
		if lost := driver.Lost(rep.GuestsBefore, rep.GuestsAfter); len(lost) != 0 {
			t.Error(lost)
		}
		for vm, want := range map[string][2]string{"vm1": {"", "running"}, "vm2": {"", "running"}, "vm3": {"", "paused"}, "vm4": {"shut-off", ""}} {
			if here, there := m.places(vm); here != want[0] || there != want[1] {
				t.Errorf("%s is %q here and %q there", vm, here, there)
			}
		}
		for _, g := range rep.GuestsAfter {
			if (g.Host == "there") != (g.ID != "vm4") {
				t.Errorf("%+v", g)
			}
		}
		steps := 0
		for _, r := range m.got["c1"] {
			if r.Step != nil && r.Step.State == fleet.StepSucceeded && strings.HasPrefix(r.Step.Name, "move VM ") && strings.Contains(r.Step.Detail, "stood still for 50 ms") {
				steps++
			}
		}
		if steps != 3 {
			t.Errorf("%d steps of moves: %+v", steps, m.got["c1"])
		}
	})
}

// The host restarts while its VMs are moved: what runs on it after that is not what ran before, and nothing more
// is moved.
func TestHostRestartsDuringAMigration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMigration(t)
		c := &crash{k: 5, happen: make(chan struct{})} // the intents of the first moves are written
		cfg := m.config()
		cfg.ParallelMoves = 1
		cfg.Journal.Wrap = m.mortal(c).Journal.Wrap
		m.until(c, cfg, func(ctx context.Context, r *Runner) { r.Handle(ctx, m.command("c1", 1)) })
		time.Sleep(10 * time.Second)
		before := map[string]string{}
		for _, vm := range []string{"vm1", "vm2", "vm3"} {
			_, before[vm] = m.places(vm)
		}
		cfg = m.config()
		cfg.Boot = "boot2" // in which the VMs that were left were started anew
		_, stop := m.run(cfg)
		defer stop()
		rep := m.wait("c1")
		if rep.Result != fleet.ResultDegraded || !strings.Contains(rep.Detail, "the host restarted") {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
		n := 0
		for vm, was := range before {
			if _, there := m.places(vm); there != was || strings.Contains(rep.Detail, "VM "+vm+" (") != (was == "") {
				t.Errorf("%s was %q there and is %q: %s", vm, was, there, rep.Detail)
			}
			if was != "" {
				n++
			}
		}
		if n == 0 || n == 3 {
			t.Errorf("%d VMs moved before the restart", n)
		}
	})
}

func TestMigrationIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*migration, *Config, *fleet.Command)
		want   string
	}{
		"not able":     {func(_ *migration, cfg *Config, _ *fleet.Command) { cfg.Mover = nil }, "not enabled"},
		"dry run":      {func(_ *migration, cfg *Config, _ *fleet.Command) { cfg.DryRun = true }, "dry-run"},
		"no targets":   {func(_ *migration, _ *Config, c *fleet.Command) { c.Targets = nil }, "no host was chosen for VM vm1"},
		"one is new":   {func(_ *migration, _ *Config, c *fleet.Command) { c.Targets = c.Targets[:2] }, "no host was chosen for VM vm3"},
		"itself":       {func(_ *migration, _ *Config, c *fleet.Command) { c.Targets[1].Host = "h" }, "VM vm2 (two) was to be moved to the host on which it is"},
		"cannot count": {func(_ *migration, cfg *Config, _ *fleet.Command) { cfg.Guests = blind{} }, "no view"},
		"pinned": {func(m *migration, _ *Config, _ *fleet.Command) {
			m.sim = sim.New(sim.Config{VMs: []fleet.VM{{ID: "vm1", Pinned: "a pci device is passed through"}}})
		}, "VM vm1 () cannot leave the host: a pci device"},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMigration(t)
			cfg, cmd := m.config(), m.command("c1", 1)
			c.change(m, &cfg, &cmd)
			if name == "pinned" {
				cfg.Guests, cfg.Mover = m.sim, m.sim
			}
			rep := m.once(cfg, cmd)
			if rep.Result != fleet.ResultRefused || !strings.Contains(rep.Detail, c.want) {
				t.Errorf("%s: %s: %s", name, rep.Result, rep.Detail)
			}
			if here, there := m.places("vm1"); here != "running" || there != "" {
				t.Errorf("%s: it moved", name)
			}
		})
	}
}

// mortalMover lets a dead agent begin no moves.
type mortalMover struct {
	*sim.Host
	c     *crash
	moves map[string]int
}

func (m mortalMover) Move(ctx context.Context, vm string, to fleet.Target, progress func(driver.Progress)) (driver.Progress, error) {
	m.c.mu.Lock()
	if m.c.dead {
		m.c.mu.Unlock()
		return driver.Progress{}, errCrash
	}
	m.moves[vm]++
	m.c.mu.Unlock()
	return m.Host.Move(ctx, vm, to, progress)
}

// The agent dies at every one of its writes and comes back: every VM is moved, and
// none is moved that was there already.
func TestMigrationCrashAtEveryWrite(t *testing.T) {
	everyWrite(t, 10, func(t *testing.T, c *crash) bool {
		m := newMigration(t)
		cmd := m.command("c1", 1)
		cfg := m.mortal(c)
		mover := mortalMover{m.sim, c, map[string]int{}}
		cfg.Mover, cfg.ParallelMoves = mover, 2
		over := m.until(c, cfg, func(ctx context.Context, r *Runner) { r.Handle(ctx, cmd) })
		// The agent is back at once, while moves go on.
		cfg = m.config()
		mover.c = immortal()
		cfg.Mover = mover
		rep := m.once(cfg, cmd)
		if rep.Result != fleet.ResultSucceeded || len(driver.Lost(rep.GuestsBefore, rep.GuestsAfter)) != 0 {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
		for _, vm := range []string{"vm1", "vm2", "vm3"} {
			here, there := m.places(vm)
			if here != "" || there == "" || mover.moves[vm] != 1 {
				t.Errorf("%s is %q here and %q there after %d moves", vm, here, there, mover.moves[vm])
			}
		}
		return over
	})
}

func TestMigrationToAHostThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMigration(t)
		go func() {
			time.Sleep(100 * ms)
			m.there.Vanish(true)
		}()
		rep := m.once(m.config(), m.command("c1", 1))
		if rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "3 of 3 VMs stayed, each runs exactly once") {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
		if lost := driver.Lost(rep.GuestsBefore, rep.GuestsAfter); len(lost) != 0 {
			t.Error(lost)
		}
	})
}

func TestMigrationIsStopped(t *testing.T) {
	for name, stop := range map[string]func(*migration, *Runner, fleet.Command){
		"by its deadline": func(*migration, *Runner, fleet.Command) {},
		"by a newer execution": func(m *migration, r *Runner, c fleet.Command) {
			time.Sleep(300 * ms)
			next := m.bench.command("c2", 2)
			if err := r.Handle(m.t.Context(), next); err != nil {
				m.t.Error(err)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMigration(t)
			m.sim = sim.New(sim.Config{Units: []string{"a.service"}, MoveTime: time.Hour, VMs: []fleet.VM{{ID: "vm1"}, {ID: "vm2"}, {ID: "vm3"}}})
			m.sim.Join("there", m.there)
			cmd := m.command("c1", 1)
			cfg := m.config()
			cfg.Mover = talking{m.sim}
			r, end := m.run(cfg)
			if err := r.Handle(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			stop(m, r, cmd)
			rep := m.wait("c1")
			end()
			if rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "each runs exactly once") {
				t.Errorf("%s: %s: %s", name, rep.Result, rep.Detail)
			}
			for i := range 3 {
				if here, there := m.places(fmt.Sprint("vm", i+1)); here != "running" || there != "" {
					t.Errorf("%s: vm%d is %q here and %q there", name, i+1, here, there)
				}
			}
		})
	}
}

// talking tells of its progress all the time.
type talking struct{ *sim.Host }

func (m talking) Move(ctx context.Context, vm string, to fleet.Target, progress func(driver.Progress)) (driver.Progress, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for sleep(ctx, 100*ms) {
			progress(driver.Progress{})
		}
	}()
	return m.Host.Move(ctx, vm, to, nil)
}

// odd finds every VM where the test wants it.
type odd struct {
	*sim.Host
	at  driver.Location
	err error
}

func (o odd) Locate(context.Context, string, fleet.Target) (driver.Location, error) {
	return o.at, o.err
}

func TestMigrationThatGoesWrong(t *testing.T) {
	for name, c := range map[string]struct {
		at   driver.Location
		err  error
		want fleet.Result
		says string
	}{
		"twice":       {driver.Location{Here: "running", There: "running"}, nil, fleet.ResultDegraded, "runs twice"},
		"nowhere":     {driver.Location{}, nil, fleet.ResultDegraded, "missing"},
		"crashed":     {driver.Location{Here: "shut-off", There: "shut-off"}, nil, fleet.ResultDegraded, "missing"},
		"paused here": {driver.Location{Here: "paused", There: "running"}, nil, fleet.ResultUnknown, "here it is paused, on the target running"},
		"no answer":   {driver.Location{There: driver.Unknown, Trouble: "no route"}, nil, fleet.ResultUnknown, "no route"},
		"blind":       {driver.Location{}, errors.New("libvirt is away"), fleet.ResultUnknown, "libvirt is away"},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMigration(t)
			m.sim = sim.New(sim.Config{VMs: []fleet.VM{{ID: "vm1"}}})
			m.sim.Join("there", m.there)
			cfg := m.config()
			cfg.Mover = odd{m.sim, c.at, c.err}
			rep := m.once(cfg, m.command("c1", 1))
			if rep.Result != c.want || !strings.Contains(rep.Detail, c.says) || !strings.Contains(rep.Detail, "vm1") {
				t.Errorf("%s: %s: %s", name, rep.Result, rep.Detail)
			}
		})
	}
}
