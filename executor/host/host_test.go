package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/executor/journal"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const ms = time.Millisecond

var quiet = slog.New(slog.DiscardHandler)

// bench is a simulated host, and the control plane's side of it.
type bench struct {
	t   *testing.T
	dir string
	sim *sim.Host

	mu sync.Mutex
	// got has the reports by command and Seq; a report that comes again must be equal.
	got map[string][]fleet.Report
	// away makes the control plane unreachable.
	away bool
}

func newBench(t *testing.T) *bench {
	return &bench{t: t, dir: t.TempDir(), got: map[string][]fleet.Report{}, sim: sim.New(sim.Config{
		Units: []string{"a.service", "b.service"}, Start: 30 * ms, VMs: []fleet.VM{{ID: "vm1", MemoryBytes: 1 << 30}, {ID: "vm2", MemoryBytes: 1 << 30}},
	})}
}

func (b *bench) PublishReport(_ context.Context, r fleet.Report) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return errors.New("the bus is away")
	}
	got := b.got[r.Command]
	switch {
	case r.Seq <= len(got) && !reflect.DeepEqual(got[r.Seq-1], r):
		b.t.Errorf("report %d of %s changed from %+v to %+v", r.Seq, r.Command, got[r.Seq-1], r)
	case r.Seq == len(got)+1:
		b.got[r.Command] = append(got, r)
	case r.Seq > len(got)+1:
		b.t.Errorf("report %d of %s after %d", r.Seq, r.Command, len(got))
	}
	return nil
}

// final returns the last report of a command, if it is one.
func (b *bench) final(id string) (fleet.Report, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.got[id]
	if len(got) == 0 || got[len(got)-1].Result == "" {
		return fleet.Report{}, false
	}
	return got[len(got)-1], true
}

func (b *bench) config() Config {
	return Config{Host: "h", Dir: b.dir, Services: b.sim, Guests: b.sim, Diagnostics: b.sim, Reports: b, Units: b.sim.Names, Boot: "boot1", Log: quiet}
}

func (b *bench) command(id string, token uint64) fleet.Command {
	now := time.Now().UTC()
	return fleet.Command{ID: id, Execution: "x", Host: "h", Phase: fleet.PhaseRecycle, Attempt: 1, Token: token, Issued: now, NotAfter: now.Add(15 * time.Second), Deadline: now.Add(time.Minute)}
}

// run runs a runner until stop is called, which returns what Run did.
func (b *bench) run(cfg Config) (r *Runner, stop func() error) {
	b.t.Helper()
	r, err := New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() error {
		cancel()
		err := <-done
		r.Close()
		time.Sleep(time.Second) // the simulated services finish
		return err
	}
}

func (b *bench) wait(id string) fleet.Report {
	b.t.Helper()
	for range 3000 {
		if rep, ok := b.final(id); ok {
			return rep
		}
		time.Sleep(100 * ms)
	}
	b.t.Fatalf("command %s never ends: %+v", id, b.got[id])
	panic("unreachable")
}

// once carries out one command and returns its final report.
func (b *bench) once(cfg Config, c fleet.Command) fleet.Report {
	b.t.Helper()
	r, stop := b.run(cfg)
	defer stop()
	if err := r.Handle(b.t.Context(), c); err != nil {
		b.t.Fatal(err)
	}
	return b.wait(c.ID)
}

// errCrash is what everything answers once the agent is dead.
var errCrash = errors.New("the agent is dead")

// crash is an agent that dies at its k-th sync: of that record, before = only a part
// is on disk; otherwise all of it is.
type crash struct {
	mu     sync.Mutex
	k      int
	before bool
	dead   bool
	happen chan struct{}
}

func (c *crash) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

func (c *crash) die() {
	c.dead = true
	close(c.happen)
}

type crashFile struct {
	journal.File
	c         *crash
	off, size int64
}

func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	if f.c.isDead() {
		return 0, errCrash
	}
	f.off, f.size = off, int64(len(p))
	return f.File.WriteAt(p, off)
}

func (f *crashFile) Truncate(n int64) error {
	if f.c.isDead() {
		return errCrash
	}
	return f.File.Truncate(n)
}

func (f *crashFile) Sync() error {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.c.dead {
		return errCrash
	}
	if f.c.k--; f.c.k == 0 {
		if f.c.before {
			f.File.Truncate(f.off + f.size/2)
		} else if err := f.File.Sync(); err != nil {
			return err
		}
		f.c.die()
		return errCrash
	}
	return f.File.Sync()
}

// mortal lets a dead agent have no effects.
type mortal struct {
	*sim.Host
	c *crash
	b *bench
}

func (m mortal) Restart(ctx context.Context, unit string) error {
	if m.c.isDead() {
		return errCrash
	}
	return m.Host.Restart(ctx, unit)
}

func (m mortal) PublishReport(ctx context.Context, r fleet.Report) error {
	if m.c.isDead() {
		return errCrash
	}
	return m.b.PublishReport(ctx, r)
}

func (b *bench) mortal(c *crash) Config {
	cfg := b.config()
	m := mortal{b.sim, c, b}
	cfg.Services, cfg.Reports = m, m
	cfg.Journal.Wrap = func(f journal.File) journal.File { return &crashFile{File: f, c: c} }
	return cfg
}

// everyWrite calls point for a crash at the first write, the second, and so on, before and
// after each, until point says that there is no such write.
func everyWrite(t *testing.T, least int, point func(t *testing.T, c *crash) (over bool)) {
	t.Helper()
	for _, before := range []bool{true, false} {
		points := 0
		for k := 1; ; k++ {
			over := false
			synctest.Test(t, func(t *testing.T) {
				over = point(t, &crash{k: k, before: before, happen: make(chan struct{})})
			})
			if t.Failed() {
				t.Fatalf("a crash at write %d (before it: %v)", k, before)
			}
			if over {
				break
			}
			points++
		}
		if points < least {
			t.Errorf("only %d crash points", points)
		}
		t.Logf("before the write %v: %d crash points", before, points)
	}
}

// until runs an agent, which do gives its commands, to its crash, or for a while without
// one: then it is over.
func (b *bench) until(c *crash, cfg Config, do func(ctx context.Context, r *Runner)) (over bool) {
	b.t.Helper()
	r, err := New(cfg)
	if err != nil {
		if !c.isDead() {
			b.t.Fatal(err)
		}
		return false
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	do(ctx, r)
	select {
	case <-c.happen:
	case <-time.After(20 * time.Second):
		over = true
	}
	cancel()
	<-done
	r.Close()
	return over
}

// The agent dies at every one of its writes, comes back and finishes: every service
// is restarted exactly once, no VM is lost, and the command has one result.
func TestCrashAtEveryWrite(t *testing.T) {
	for phase, least := range map[fleet.Phase]int{fleet.PhaseRecycle: 10, fleet.PhaseDiagnose: 4} {
		everyWrite(t, least, func(t *testing.T, c *crash) bool {
			b := newBench(t)
			cmd := b.command("c1", 1)
			cmd.Phase = phase
			over := b.until(c, b.mortal(c), func(ctx context.Context, r *Runner) { r.Handle(ctx, cmd) })
			time.Sleep(time.Second)
			// The bus delivers what was not acknowledged, or is not sure of.
			rep := b.once(b.config(), cmd)
			if rep.Result != fleet.ResultSucceeded {
				t.Errorf("%s: %s", rep.Result, rep.Detail)
			}
			if phase == fleet.PhaseRecycle {
				for _, u := range b.sim.Names() {
					if n := b.sim.Restarts(u); n != 1 {
						t.Errorf("%s was restarted %d times", u, n)
					}
				}
				if lost := driver.Lost(rep.GuestsBefore, rep.GuestsAfter); len(lost) > 0 || len(rep.GuestsAfter) != 2 {
					t.Errorf("%v", lost)
				}
			}
			return over
		})
	}
}

// The host itself restarts in the middle: nothing more is restarted, and the VMs are
// counted.
func TestHostRestartsMidway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		c := &crash{k: 4, happen: make(chan struct{})} // the intent of the first restart
		r, err := New(b.mortal(c))
		if err != nil {
			t.Fatal(err)
		}
		go r.Run(t.Context())
		r.Handle(t.Context(), b.command("c1", 1))
		<-c.happen
		cfg := b.config()
		cfg.Boot = "boot2" // in which the VMs were started anew
		_, stop := b.run(cfg)
		rep := b.wait("c1")
		stop()
		for _, want := range []string{"vm1 was on the host", "vm2 was on the host", "restarted in the middle"} {
			if rep.Result != fleet.ResultDegraded || !strings.Contains(rep.Detail, want) {
				t.Errorf("%s: %s", rep.Result, rep.Detail)
			}
		}
		if b.sim.Restarts("a.service")+b.sim.Restarts("b.service") != 0 {
			t.Error("restarted services after the host had restarted")
		}
	})
}

// What had not begun before the host restarted does not begin after that, whatever its clock says.
func TestNothingBeginsAfterARestart(t *testing.T) {
	for _, phase := range []fleet.Phase{fleet.PhaseRecycle, fleet.PhaseMigrate} {
		synctest.Test(t, func(t *testing.T) {
			m := newMigration(t)
			cmd := m.command("c1", 1)
			cmd.Phase = phase
			r, err := New(m.config())
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Handle(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			r.Close()
			cfg := m.config()
			cfg.Boot = "boot2"
			_, stop := m.run(cfg)
			defer stop()
			if rep := m.wait("c1"); rep.Result != fleet.ResultRefused || !strings.Contains(rep.Detail, "has restarted") {
				t.Errorf("%s: %s", rep.Result, rep.Detail)
			}
		})
	}
}

// A command that is refused may come again with another token, before its refusal is known.
func TestRefusedCommandComesAgainWithANewerToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.once(b.config(), b.command("c1", 7))
		b.away = true
		r, stop := b.run(b.config())
		for token := range uint64(9) {
			if err := r.Handle(t.Context(), b.command("old", token)); err != nil {
				t.Errorf("token %d: %v", token, err)
			}
		}
		stop()
		b.away = false
		r, stop = b.run(b.config())
		defer stop()
		if rep := b.once2(r, b.command("c2", 8)); rep.Result != fleet.ResultSucceeded {
			t.Errorf("%+v", rep)
		}
	})
}

func TestStaleTokenIsRefusedAcrossRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.once(b.config(), b.command("c1", 7))
		if rep := b.once(b.config(), b.command("old", 6)); rep.Result != fleet.ResultRefused || !strings.Contains(rep.Detail, "older than 7") {
			t.Errorf("%+v", rep)
		}
		r, stop := b.run(b.config())
		defer stop()
		if r.Token() != 7 || b.sim.Restarts("a.service") != 1 {
			t.Errorf("token %d, %d restarts", r.Token(), b.sim.Restarts("a.service"))
		}
	})
}

func TestSameCommandTwiceActsOnceAndReportsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		cmd := b.command("c1", 1)
		first := b.once(b.config(), cmd)
		b.mu.Lock()
		b.got = map[string][]fleet.Report{} // the control plane has forgotten
		b.mu.Unlock()
		time.Sleep(time.Hour) // long expired; it was accepted in time
		again := b.once(b.config(), cmd)
		if !reflect.DeepEqual(first, again) || b.sim.Restarts("a.service") != 1 {
			t.Errorf("%+v then %+v, %d restarts", first, again, b.sim.Restarts("a.service"))
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.sim.Refuse("b.service", "a VM lives in it")
		for i, c := range []struct {
			change func(*fleet.Command)
			config func(*Config)
			want   string
		}{
			{func(c *fleet.Command) { c.NotAfter = c.NotAfter.Add(-time.Minute) }, nil, "stale"},
			{func(c *fleet.Command) { c.Host = "other" }, nil, "for host other"},
			{func(c *fleet.Command) { c.Token = 0 }, nil, "no fencing token"},
			{func(c *fleet.Command) { c.Deadline = time.Time{} }, nil, "until when"},
			{func(c *fleet.Command) { c.Phase = "explode" }, nil, "cannot carry out"},
			{func(c *fleet.Command) { c.Phase = fleet.PhaseReset }, nil, "not enabled"},
			{func(c *fleet.Command) { c.Execution = "" }, nil, "no ID or no execution"},
			{nil, func(c *Config) { c.DryRun = true }, "dry-run"},
			{nil, func(c *Config) { c.Units = nil }, "no services"},
			{func(c *fleet.Command) { c.Phase = fleet.PhaseDiagnose }, func(c *Config) { c.Diagnostics = nil }, "no diagnostics"},
			{nil, nil, "b.service must not be restarted: a VM lives in it"},
			{func(c *fleet.Command) { c.Units = []string{"nope.service"} }, nil, "nope.service must not be restarted"},
			{func(c *fleet.Command) { c.Units = []string{"a.service"} }, func(c *Config) { c.Guests = blind{} }, "cannot be counted"},
		} {
			cmd, cfg := b.command(fmt.Sprint("c", i), uint64(100)), b.config()
			if c.change != nil {
				c.change(&cmd)
			}
			if c.config != nil {
				c.config(&cfg)
			}
			rep := b.once(cfg, cmd)
			if rep.Result != fleet.ResultRefused || !strings.Contains(rep.Detail, c.want) {
				t.Errorf("%q: %s: %s", c.want, rep.Result, rep.Detail)
			}
		}
		if b.sim.Restarts("a.service")+b.sim.Restarts("b.service") != 0 {
			t.Error("a refused command acted")
		}
	})
}

type blind struct{}

func (blind) Guests(context.Context) ([]fleet.GuestReport, error) { return nil, errors.New("no view") }

// Reports wait while the control plane is away, across a restart of the agent.
func TestReportsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.away = true
		r, stop := b.run(b.config())
		if err := r.Handle(t.Context(), b.command("c1", 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		stop()
		if _, ok := b.final("c1"); ok || b.sim.Restarts("b.service") != 1 {
			t.Fatal("the agent did not finish by itself, or reported to nobody")
		}
		b.mu.Lock()
		b.away = false
		b.mu.Unlock()
		_, stop = b.run(b.config())
		if rep := b.wait("c1"); rep.Result != fleet.ResultSucceeded {
			t.Errorf("%+v", rep)
		}
		stop()
	})
}

// A command with a newer token stops one that is under way before its next effect.
func TestNewerTokenStopsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		r, stop := b.run(b.config())
		if err := r.Handle(t.Context(), b.command("c1", 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * ms) // a.service restarts
		if err := r.Handle(t.Context(), b.command("c2", 2)); err != nil {
			t.Fatal(err)
		}
		one, two := b.wait("c1"), b.wait("c2")
		stop()
		if one.Result != fleet.ResultFailed || !strings.Contains(one.Detail, "newer execution") || two.Result != fleet.ResultSucceeded {
			t.Errorf("%s (%s), then %s", one.Result, one.Detail, two.Result)
		}
		if b.sim.Restarts("b.service") != 1 {
			t.Errorf("b.service was restarted %d times", b.sim.Restarts("b.service"))
		}
	})
}

func TestServiceThatNeverReturnsEndsAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.sim = sim.New(sim.Config{Units: []string{"a.service"}, Start: time.Hour})
		rep := b.once(b.config(), b.command("c1", 1))
		if rep.Result != fleet.ResultFailed || !strings.Contains(rep.Detail, "time for the recycle is over") {
			t.Errorf("%s: %s", rep.Result, rep.Detail)
		}
		time.Sleep(time.Hour)
	})
}

// full is a disk with room for so many writes more; -1 is any number.
type full struct {
	journal.File
	left *atomic.Int64
}

func (f full) WriteAt(p []byte, off int64) (int, error) {
	if f.left.Load() == 0 {
		return 0, syscall.ENOSPC
	}
	f.left.Add(-1)
	return f.File.WriteAt(p, off)
}

func TestFullDiskStopsBeforeTheEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var left atomic.Int64
		left.Store(-1)
		cfg := b.config()
		cfg.Journal.Wrap = func(f journal.File) journal.File { return full{f, &left} }
		r, stop := b.run(cfg)
		left.Store(0)
		if err := r.Handle(t.Context(), b.command("c1", 1)); !errors.Is(err, journal.ErrFull) {
			t.Errorf("%v", err)
		}
		left.Store(1) // for the command alone
		if err := r.Handle(t.Context(), b.command("c2", 2)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if b.sim.Restarts("a.service") != 0 {
			t.Error("acted without a journal")
		}
		left.Store(-1)
		if rep := b.wait("c2"); rep.Result != fleet.ResultSucceeded {
			t.Errorf("%+v", rep)
		}
		stop()
	})
}

// After thousands of commands the journal is still short, and the newest token known.
func TestJournalStaysShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		r, stop := b.run(b.config())
		for i := range 1200 {
			c := b.command(fmt.Sprint("c", i), uint64(i+1))
			c.NotAfter = c.NotAfter.Add(-time.Hour)
			c.Reason = strings.Repeat("r", 1000)
			if err := r.Handle(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		b.wait("c1199")
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(filepath.Join(b.dir, journalName))
		if err != nil || fi.Size() > compactAt+64<<10 {
			t.Fatal(fi.Size(), err)
		}
		r, stop = b.run(b.config())
		defer stop()
		if r.Token() != 1200 {
			t.Errorf("token %d", r.Token())
		}
		if rep := b.once2(r, b.command("c1", 2)); rep.Result != fleet.ResultRefused {
			t.Errorf("%+v", rep)
		}
	})
}

func (b *bench) once2(r *Runner, c fleet.Command) fleet.Report {
	b.mu.Lock()
	delete(b.got, c.ID)
	b.mu.Unlock()
	if err := r.Handle(b.t.Context(), c); err != nil {
		b.t.Fatal(err)
	}
	return b.wait(c.ID)
}

func TestDamagedAndNewerJournals(t *testing.T) {
	for name, c := range map[string]struct {
		entry string
		want  error
	}{
		"not JSON":        {"{", journal.ErrCorrupt},
		"newer":           {`{"v":3,"kind":"accepted"}`, journal.ErrNewer},
		"no command":      {`{"v":1,"kind":"accepted"}`, journal.ErrCorrupt},
		"orphan":          {`{"v":1,"kind":"report","id":"c","report":{"seq":1}}`, journal.ErrCorrupt},
		"unknown":         {`{"v":1,"kind":"dance"}`, journal.ErrCorrupt},
		"nothing, but ok": {`{"v":1,"kind":"token","token":3}`, nil},
	} {
		b := newBench(t)
		root, err := os.OpenRoot(b.dir)
		if err != nil {
			t.Fatal(err)
		}
		j, _, err := journal.Open(root, journalName, journal.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Append([]byte(c.entry)); err != nil {
			t.Fatal(err)
		}
		j.Close()
		root.Close()
		r, err := New(b.config())
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			r.Close()
		}
	}
}

func TestBadConfig(t *testing.T) {
	b := newBench(t)
	for _, change := range []func(*Config){
		func(c *Config) { c.Host = "" }, func(c *Config) { c.Services = nil }, func(c *Config) { c.Reports = nil }, func(c *Config) { c.Dir = "" },
	} {
		cfg := b.config()
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%v", err)
		}
	}
	cfg := b.config()
	cfg.Dir = "/proc/nope"
	if _, err := New(cfg); err == nil {
		t.Error("made a directory in /proc")
	}
}

// flaky is services whose restarts end in errors of a class before they work; with
// behind, the restart was done all the same.
type flaky struct {
	*sim.Host
	class  driver.Class
	behind bool
	left   int
	tried  int
}

func (f *flaky) Restart(ctx context.Context, unit string) error {
	f.tried++
	if f.left--; f.left < 0 {
		return f.Host.Restart(ctx, unit)
	}
	if f.behind {
		f.Host.Restart(ctx, unit)
	}
	return driver.As(f.class, errors.New("the connection is gone"))
}

// What follows an error is in its class: a transient one is tried again, after an
// unknown one the unit is looked at first, and a permanent one ends it.
func TestErrorClasses(t *testing.T) {
	for name, c := range map[string]struct {
		services flaky
		result   fleet.Result
		tried    int
		restarts int
	}{
		"transient":                  {flaky{class: driver.ClassTransient, left: 2}, fleet.ResultSucceeded, 3, 1},
		"transient for ever":         {flaky{class: driver.ClassTransient, left: 100}, fleet.ResultFailed, attempts, 0},
		"unknown, and done":          {flaky{class: driver.ClassUnknown, behind: true, left: 1}, fleet.ResultSucceeded, 1, 1},
		"unknown, and not done":      {flaky{class: driver.ClassUnknown, left: 1}, fleet.ResultSucceeded, 2, 1},
		"permanent":                  {flaky{class: driver.ClassPermanent, left: 1}, fleet.ResultFailed, 1, 0},
		"permanent, and comes right": {flaky{class: driver.ClassPermanent, behind: true, left: 1}, fleet.ResultSucceeded, 1, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			b.sim = sim.New(sim.Config{Units: []string{"a.service"}, Start: 30 * ms})
			if c.result == fleet.ResultFailed {
				b.sim.Hang("a.service") // so that only a restart makes it right
			}
			cfg := b.config()
			f := c.services
			f.Host = b.sim
			cfg.Services = &f
			rep := b.once(cfg, b.command("c1", 1))
			if rep.Result != c.result || f.tried != c.tried || b.sim.Restarts("a.service") != c.restarts {
				t.Errorf("%s: %s (%s), tried %d times, %d restarts", name, rep.Result, rep.Detail, f.tried, b.sim.Restarts("a.service"))
			}
		})
	}
}

// pausing is guests that do not run for a while.
type pausing struct {
	*sim.Host
	from, to time.Time
}

func (p pausing) Guests(ctx context.Context) ([]fleet.GuestReport, error) {
	all, err := p.Host.Guests(ctx)
	if now := time.Now(); now.After(p.from) && now.Before(p.to) {
		for i := range all {
			all[i].Alive = false
		}
	}
	return all, err
}

// The guests are watched throughout, and what they were not seen to do is reported.
func TestGuestsAreWatchedThroughout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		cfg := b.config()
		now := time.Now()
		cfg.Guests = pausing{b.sim, now.Add(20 * ms), now.Add(180 * ms)}
		rep := b.once(cfg, b.command("c1", 1))
		if rep.Result != fleet.ResultSucceeded || len(rep.GuestsAfter) != 2 {
			t.Fatalf("%+v", rep)
		}
		for _, g := range rep.GuestsAfter {
			if g.MaxGapSeconds < 0.16 || g.MaxGapSeconds > 0.27 {
				t.Errorf("%s was not seen for %v s", g.ID, g.MaxGapSeconds)
			}
		}
	})
}
