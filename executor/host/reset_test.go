package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

// world is a host with two VMs that can be taken out, and a kernel that can be reset.
// What is out survives a reset, what runs does not.
type world struct {
	mu     sync.Mutex
	boot   int
	loaded string
	resets int
	// stopping is true from the begin of a reset.
	stopping bool
	plan     string
	out      []bool // of each VM: its state is saved, it has no process
	lost     []bool
	moves    []int
	c        *crash
	// check, move, save, load, reset and resume are errors to be met.
	check, move, save, load, reset, resume error
	// loses leaves a VM out after a move.
	loses bool
	// onCheck and so on, if not nil, are called in their midst.
	onCheck, onMove, onLoad, onSave func()
}

func newWorld() *world {
	return &world{boot: 1, out: make([]bool, 2), lost: make([]bool, 2), moves: make([]int, 2)}
}

func (w *world) bootID() string { return fmt.Sprint("boot", w.boot) }

// enter is the begin of every effect: a dead agent has none.
func (w *world) enter() error {
	if w.c != nil && w.c.isDead() {
		return errCrash
	}
	return nil
}

func (w *world) Check(context.Context) error {
	if w.onCheck != nil {
		w.onCheck()
	}
	return w.check
}

func (w *world) Move(_ context.Context, mark string) (map[string]time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter(); err != nil {
		return nil, err
	}
	if w.plan != "" {
		return nil, errors.New("an earlier plan is there")
	}
	w.plan = mark
	if w.onMove != nil {
		w.onMove()
	}
	for i := range w.moves {
		w.moves[i]++
	}
	w.out[0] = w.loses
	return map[string]time.Duration{"vm0": time.Second}, w.move
}

func (w *world) Save(_ context.Context, mark string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter(); err != nil {
		return err
	}
	if w.plan != "" {
		return errors.New("an earlier plan is there")
	}
	if w.save != nil {
		return w.save
	}
	w.plan, w.out[0], w.out[1] = mark, true, true
	if w.onSave != nil {
		w.onSave()
	}
	return nil
}

func (w *world) Saved() (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.plan != "", nil
}

func (w *world) Resume(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter(); err != nil {
		return err
	}
	if w.stopping {
		panic("VMs are started on a host that is about to end")
	}
	if w.plan == "" {
		return errors.New("no plan")
	}
	if w.resume != nil {
		return w.resume
	}
	w.out[0], w.out[1] = false, false
	return nil
}

func (w *world) Forget() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter(); err != nil {
		return err
	}
	w.plan = ""
	return nil
}

func (w *world) Guests(context.Context) ([]fleet.GuestReport, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := []fleet.GuestReport{}
	for i := range w.out {
		g := fleet.GuestReport{VM: fleet.VM{ID: fmt.Sprint("vm", i), State: "running", MemoryBytes: 1 << 30}, Alive: true}
		if w.out[i] || w.lost[i] {
			g.State, g.Alive = "shut-off", false
		}
		out = append(out, g)
	}
	return out, nil
}

// kernel is the world's, as the runner resets it.
type kernel struct{ *world }

func (k kernel) Load(_ context.Context, mark string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.enter(); err != nil {
		return err
	}
	k.loaded = mark
	if k.onLoad != nil {
		k.onLoad()
	}
	return k.load
}

func (k kernel) Unload(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.enter(); err != nil {
		return err
	}
	k.loaded = ""
	return nil
}

func (k kernel) Underway(context.Context) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stopping, nil
}

// Reset begins: the host ends two seconds later, and the agent with it.
func (k kernel) Reset(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.enter(); err != nil {
		return err
	}
	if k.world.reset != nil {
		return k.world.reset
	}
	k.stopping = true
	go func() {
		time.Sleep(2 * time.Second)
		k.c.mu.Lock()
		if !k.c.dead {
			k.c.die()
		}
		k.c.mu.Unlock()
		k.restart()
	}()
	return nil
}

func (w *world) underway() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopping
}

// restart ends what runs.
func (w *world) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boot++
	w.resets++
	w.stopping, w.loaded = false, ""
	for i := range w.out {
		if !w.out[i] {
			w.lost[i] = true
		}
	}
}

// resetConfig is a runner's in the world, which dies as c says.
func (b *bench) resetConfig(w *world, kexec bool, c *crash) Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.c = c
	cfg := b.mortal(c)
	cfg.Guests, cfg.VMs, cfg.Boot = w, w, w.bootID()
	if kexec {
		cfg.Kernel = kernel{w}
	}
	return cfg
}

func immortal() *crash { return &crash{k: -1, happen: make(chan struct{})} }

// through carries out a command over any number of deaths of the agent, which begins
// with cfg, and returns its last report.
func (b *bench) through(w *world, kexec bool, c *crash, cmd fleet.Command) fleet.Report {
	b.t.Helper()
	for range 10 {
		r, err := New(b.resetConfig(w, kexec, c))
		if err == nil {
			ctx, cancel := context.WithCancel(b.t.Context())
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx) }()
			r.Handle(ctx, cmd)
			over := false
			for !over && !c.isDead() {
				time.Sleep(100 * ms)
				_, over = b.final(cmd.ID)
			}
			for w.underway() { // a reset that has begun goes on without the agent
				time.Sleep(100 * ms)
			}
			cancel()
			<-done
			r.Close()
			if over {
				rep, _ := b.final(cmd.ID)
				return rep
			}
		} else if !c.isDead() {
			b.t.Fatal(err)
		}
		c = immortal()
	}
	b.t.Fatalf("command %s never ends: %+v", cmd.ID, b.got[cmd.ID])
	panic("unreachable")
}

func (b *bench) resetCommand(id string, token uint64) fleet.Command {
	cmd := b.command(id, token)
	cmd.Phase = fleet.PhaseReset
	return cmd
}

func TestReset(t *testing.T) {
	for _, kexec := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b, w := newBench(t), newWorld()
			rep := b.through(w, kexec, immortal(), b.resetCommand("c1", 3))
			if rep.Result != fleet.ResultSucceeded || len(rep.GuestsBefore) != 2 || len(rep.GuestsAfter) != 2 || w.plan != "" {
				t.Fatalf("%+v", rep)
			}
			if want := map[bool][2]int{false: {0, 1}, true: {1, 0}}[kexec]; w.resets != want[0] || w.moves[0] != want[1] {
				t.Errorf("%d resets, moved %d times", w.resets, w.moves[0])
			}
			if g := rep.GuestsAfter[0].MaxGapSeconds; !kexec && g != 1 || kexec && g < 1 {
				t.Errorf("frozen for %v s", g)
			}
			// The token survives the reset.
			if rep := b.through(w, kexec, immortal(), b.resetCommand("old", 2)); rep.Result != fleet.ResultRefused {
				t.Errorf("%+v", rep)
			}
		})
	}
}

// The agent dies at every one of its writes. The kernel is reset once at most, and the
// VMs run in the end.
func TestResetCrashAtEveryWrite(t *testing.T) {
	for _, kexec := range []bool{false, true} {
		for _, before := range []bool{true, false} {
			points := 0
			for k := 1; ; k++ {
				dead := false
				synctest.Test(t, func(t *testing.T) {
					b, w := newBench(t), newWorld()
					c := &crash{k: k, before: before, happen: make(chan struct{})}
					rep := b.through(w, kexec, c, b.resetCommand("c1", 1))
					dead = c.isDead() && c.k == 0
					switch {
					case rep.Result != fleet.ResultSucceeded && (rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "interrupted") && !strings.Contains(rep.Detail, "was not reset")):
						t.Errorf("crash at write %d: %s: %s", k, rep.Result, rep.Detail)
					case w.resets > 1, slices.Contains(w.out, true), slices.Contains(w.lost, true), w.plan != "", w.loaded != "", w.stopping:
						t.Errorf("crash at write %d: %+v", k, w)
					case !kexec && rep.Result != fleet.ResultSucceeded:
						t.Errorf("crash at write %d: nothing hindered the move: %s", k, rep.Detail)
					case kexec && (rep.Result == fleet.ResultSucceeded) != (w.resets == 1):
						t.Errorf("crash at write %d: %s after %d resets", k, rep.Result, w.resets)
					}
				})
				if !dead || t.Failed() {
					break
				}
				points++
			}
			if least := map[bool]int{false: 7, true: 9}[kexec]; points < least {
				t.Errorf("kexec %v: only %d crash points", kexec, points)
			}
			t.Logf("kexec %v, before the write %v: %d crash points", kexec, before, points)
		}
	}
}

func TestResetThatGoesWrong(t *testing.T) {
	broken := errors.New("it is broken")
	for name, c := range map[string]struct {
		kexec  bool
		change func(*world)
		result fleet.Result
		resets int
		says   string
		plan   bool
	}{
		"a VM that cannot be preserved": {true, func(w *world) { w.check = errors.New("VM web cannot be preserved: vfio") }, fleet.ResultRefused, 0, "VM web", false},
		"an earlier reset":              {true, func(w *world) { w.plan = "earlier" }, fleet.ResultRefused, 0, "agent resume", true},
		"no kernel":                     {true, func(w *world) { w.load = broken }, fleet.ResultFailed, 0, "broken", false},
		"VMs that cannot be saved":      {true, func(w *world) { w.save = broken }, fleet.ResultFailed, 0, "broken", false},
		"a reset that does not begin":   {true, func(w *world) { w.reset = broken }, fleet.ResultFailed, 0, "broken", false},
		"a VM that does not come back":  {true, func(w *world) { w.resume = errors.New("VM vm0: its state does not load") }, fleet.ResultDegraded, 1, "VM vm0: its state does not load", true},
		"a VM that stays where it was":  {false, func(w *world) { w.move = broken }, fleet.ResultFailed, 0, "broken", false},
		"a VM that is not as it was":    {false, func(w *world) { w.move, w.resume = broken, errors.New("VM vm0: another QEMU") }, fleet.ResultDegraded, 0, "VM vm0: another QEMU", true},
		"a move that loses a VM":        {false, func(w *world) { w.move, w.loses, w.resume = broken, true, broken }, fleet.ResultDegraded, 0, "broken", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, w := newBench(t), newWorld()
				c.change(w)
				rep := b.through(w, c.kexec, immortal(), b.resetCommand("c1", 1))
				if rep.Result != c.result || !strings.Contains(rep.Detail, c.says) || w.resets != c.resets || (w.plan != "") != c.plan || w.loaded != "" && c.result != fleet.ResultRefused {
					t.Errorf("%s: %s; %+v", rep.Result, rep.Detail, w)
				}
			})
		})
	}
}

func TestHostDiesDuringASave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, w := newBench(t), newWorld()
		c := &crash{k: 7, happen: make(chan struct{})} // the intent of the save is written
		r, err := New(b.resetConfig(w, true, c))
		if err != nil {
			t.Fatal(err)
		}
		go r.Run(t.Context())
		r.Handle(t.Context(), b.resetCommand("c1", 1))
		<-c.happen
		w.restart()
		rep := b.through(w, true, immortal(), b.resetCommand("c1", 1))
		if rep.Result != fleet.ResultDegraded || w.resets != 1 || !strings.Contains(rep.Detail, "vm0") {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
	})
}

// The agent comes back while the host is about to end, and is ended with it.
func TestAgentEndsWithItsHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, w := newBench(t), newWorld()
		c := &crash{k: 9, happen: make(chan struct{})} // the intent of the reset is written
		r, err := New(b.resetConfig(w, true, c))
		if err != nil {
			t.Fatal(err)
		}
		go r.Run(t.Context())
		r.Handle(t.Context(), b.resetCommand("c1", 1))
		<-c.happen
		w.mu.Lock()
		w.stopping = true
		w.mu.Unlock()
		_, stop := b.run(b.resetConfig(w, true, immortal()))
		time.Sleep(10 * time.Second)
		stop()
		w.restart()
		rep := b.through(w, true, immortal(), b.resetCommand("c1", 1))
		if rep.Result != fleet.ResultSucceeded || w.resets != 1 || slices.Contains(w.out, true) || slices.Contains(w.lost, true) {
			t.Errorf("%s: %s; %+v", rep.Result, rep.Detail, w)
		}
	})
}

// The agent is told to end while VMs are out, and nobody knows for how long.
func TestAgentEndsWhileVMsAreOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, w := newBench(t), newWorld()
		r, err := New(b.resetConfig(w, true, immortal()))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.onSave = cancel
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Handle(ctx, b.resetCommand("c1", 1))
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.Close()
		if slices.Contains(w.out, true) {
			t.Errorf("%+v", w)
		}
		rep := b.through(w, true, immortal(), b.resetCommand("c1", 1))
		if rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "interrupted") || w.resets != 0 || slices.Contains(w.lost, true) || w.plan != "" || w.loaded != "" {
			t.Errorf("%s: %s; %+v", rep.Result, rep.Detail, w)
		}
	})
}

// Somebody brings the VMs back between their save and the reset.
func TestNothingRunsWhenTheKernelIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, w := newBench(t), newWorld()
		c := &crash{k: 9, before: true, happen: make(chan struct{})} // the save is written, the intent of the reset is not
		if over := b.until(c, b.resetConfig(w, true, c), func(ctx context.Context, r *Runner) { r.Handle(ctx, b.resetCommand("c1", 1)) }); over || !slices.Contains(w.out, true) {
			t.Fatalf("%+v", w)
		}
		w.mu.Lock()
		w.out, w.plan = make([]bool, 2), ""
		w.mu.Unlock()
		rep := b.through(w, true, immortal(), b.resetCommand("c1", 1))
		if rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "would end with the kernel") || w.resets != 0 || slices.Contains(w.lost, true) || w.loaded != "" {
			t.Errorf("%s: %s; %+v", rep.Result, rep.Detail, w)
		}
	})
}

// The disk is full from the moment on in which the VMs are out of the way: they come back all the same, and
// nothing is done twice.
func TestFullDiskKeepsNoVMOut(t *testing.T) {
	for _, kexec := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b, w := newBench(t), newWorld()
			smalldisk.Mount(t, b.dir, "size=256k")
			fill := func() { smalldisk.Fill(t, b.dir, 0) }
			w.onMove, w.onSave = fill, fill
			rep := b.through(w, kexec, immortal(), b.resetCommand("c1", 1))
			if rep.Result != fleet.ResultSucceeded || slices.Contains(w.out, true) || w.moves[0]+w.resets != 1 {
				t.Errorf("%s: %s; %+v", rep.Result, rep.Detail, w)
			}
			// With no room at all, nothing is frozen.
			r, stop := b.run(b.resetConfig(w, kexec, immortal()))
			defer stop()
			if err := r.Handle(t.Context(), b.resetCommand("c2", 2)); err == nil {
				time.Sleep(time.Minute)
			}
			if w.moves[0]+w.resets != 1 || w.plan != "" {
				t.Errorf("%+v", w)
			}
		})
	}
}

// Early in the boot there is no control plane and there are no services.
func TestResumeAloneFinishesResetsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, w := newBench(t), newWorld()
		c := immortal()
		r, err := New(b.resetConfig(w, true, c))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go r.Run(ctx)
		r.Handle(ctx, b.resetCommand("c1", 1))
		<-c.happen // the host ends
		for w.underway() {
			time.Sleep(100 * ms)
		}
		cancel()
		r.Close()
		b.away = true
		cfg := b.resetConfig(w, true, immortal())
		if r, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		later := b.command("c2", 2)
		if err := r.Handle(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		if err := r.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(w.out, true) || w.plan != "" || b.sim.Restarts("a.service") != 0 {
			t.Errorf("%+v, %d restarts", w, b.sim.Restarts("a.service"))
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		b.away = false
		_, stop := b.run(cfg)
		defer stop()
		if rep := b.wait("c1"); rep.Result != fleet.ResultSucceeded || w.resets != 1 {
			t.Errorf("%+v", rep)
		}
	})
}
