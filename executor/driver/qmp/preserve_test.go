package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// bench is two guests and what preserves them.
func bench(t *testing.T) ([]*rigtest.QEMU, *qmp.Preserver) {
	t.Helper()
	dir := shortDir(t)
	var guests []*rigtest.QEMU
	for i := range 2 {
		guests = append(guests, rigtest.StartQEMU(t, dir, fmt.Sprintf("g%d", i), 4))
	}
	for _, g := range guests {
		g.AwaitTicks(20, time.Minute)
	}
	return guests, &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan")}
}

func settled(t *testing.T, guests []*rigtest.QEMU, p *qmp.Preserver) {
	t.Helper()
	if err := p.Forget(); err != nil {
		t.Error(err)
	}
	for _, g := range guests {
		g.AwaitTicks(60, time.Minute) // once around the RAM
		g.Unharmed()
	}
	if entries, err := os.ReadDir(p.Dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestPreserve(t *testing.T) {
	t.Parallel()
	guests, p := bench(t)
	for range 2 { // a guest that came this way can go it again
		plan, err := p.Check(t.Context())
		if err != nil || len(plan.Guests) != 2 {
			t.Fatalf("%+v, %v", plan, err)
		}
		before := guests[0].PIDs()
		if err := p.Save(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
		for _, g := range guests {
			if pids := g.PIDs(); len(pids) != 0 {
				t.Fatalf("guest %s still has processes %v", g.ID, pids)
			}
		}
		if err := p.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.Forget(); err != nil {
			t.Fatal(err)
		}
		if after := guests[0].PIDs(); len(after) != 1 || after[0] == before[0] {
			t.Errorf("processes %v before, %v after", before, after)
		}
	}
	settled(t, guests, p)
}

func TestMove(t *testing.T) {
	t.Parallel()
	guests, p := bench(t)
	for range 2 { // a guest that came this way can go it again
		plan, err := p.Check(t.Context())
		if err != nil || len(plan.Guests) != 2 || plan.Guests[0].Next == "" {
			t.Fatalf("%+v, %v", plan, err)
		}
		plan.Guests[1].Next = "" // one is started only after the end of the old one
		before := append(guests[0].PIDs(), guests[1].PIDs()...)
		moved, err := p.Move(t.Context(), plan)
		if err != nil || len(moved) != 2 || moved["g0"] <= 0 || moved["g1"] <= 0 {
			t.Fatalf("%+v, %v", moved, err)
		}
		t.Logf("frozen for %v with the new process started before, %v otherwise", moved["g0"], moved["g1"])
		after := append(guests[0].PIDs(), guests[1].PIDs()...)
		if len(after) != 2 || after[0] == before[0] || after[1] == before[1] {
			t.Errorf("processes %v before, %v after", before, after)
		}
		if err := p.Forget(); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, guests, p)
}

// A guest whose RAM is private to its process goes the long way, where that is allowed.
func TestFullSave(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	g := rigtest.StartQEMU(t, dir, "private", 8, func(arg string) string { return strings.Replace(arg, "share=on", "share=off", 1) })
	g.AwaitTicks(20, time.Minute)
	p := &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan"), FullSave: true}
	for _, way := range []string{"move", "save and resume"} {
		plan, err := p.Check(t.Context())
		if err != nil || plan.Guests[0].Way != qmp.WayFull {
			t.Fatalf("%+v, %v", plan, err)
		}
		if way == "move" {
			_, err = p.Move(t.Context(), plan)
		} else if err = p.Save(t.Context(), plan); err == nil {
			err = p.Resume(t.Context())
		}
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		settled(t, []*rigtest.QEMU{g}, p)
	}
}

// A guest as Proxmox VE starts it: a daemon, with its monitor on a character device.
func TestDaemon(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	sector, err := rigtest.BootSector(4)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "boot.img")
	if err := os.WriteFile(image, sector, 0o644); err != nil {
		t.Fatal(err)
	}
	out, in := io.Pipe()
	g := rigtest.StartMachine(t, dir, "other", 4, in, []string{"-drive", "file=" + image + ",format=raw,if=floppy,readonly=on", "-daemonize",
		"-chardev", "socket,id=qmp,path=" + dir + "/guest.qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control"})
	g.Watch = rigtest.NewWatch(out)
	g.AwaitTicks(20, time.Minute)
	if err := os.Remove(filepath.Join(dir, "other.qmp")); err != nil { // its second monitor is nobody's business
		t.Fatal(err)
	}
	p := &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan")}
	for range 2 {
		plan, err := p.Check(t.Context())
		if err != nil || len(plan.Guests) != 1 || plan.Guests[0].ID != "guest" {
			t.Fatalf("%+v, %v", plan, err)
		}
		if _, err := p.Move(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
		g.AwaitTicks(60, time.Minute)
		g.Unharmed()
		if err := p.Forget(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "other.qmp")); err != nil {
			t.Fatal(err)
		}
	}
}

// The new process must not have more rights than the old one.
func TestRightsAreKept(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("this test starts a guest as another user: run it as root")
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	g := rigtest.StartQEMUAs(t, dir, "low", 4, 65534)
	g.AwaitTicks(20, time.Minute)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", g.PIDs()[0]), []byte("321"), 0); err != nil {
		t.Fatal(err)
	}
	p := &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan")}
	for _, prestart := range []bool{true, false} {
		plan, err := p.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !prestart {
			plan.Guests[0].Next = ""
		}
		if _, err := p.Move(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"status": "\nUid:\t65534\t65534\t65534\t65534\n", "oom_score_adj": "321"} {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", g.PIDs()[0], name)); err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: %v\n%s", name, err, b)
			}
		}
		settled(t, []*rigtest.QEMU{g}, p)
	}
}

func TestAGuestThatCannotMoveGoesOn(t *testing.T) {
	t.Parallel()
	guests, p := bench(t)
	plan, err := p.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The new QEMU has another machine than the state.
	for i, a := range plan.Guests[0].Args {
		plan.Guests[0].Args[i] = strings.Replace(a, "pc-i440fx-7.2", "pc-q35-7.2", 1)
	}
	before := guests[0].PIDs()
	moved, err := p.Move(t.Context(), plan)
	if err == nil || !strings.Contains(err.Error(), "VM g0: it goes on in its old QEMU") || len(moved) != 1 || moved["g1"] == 0 {
		t.Fatalf("%+v, %v", moved, err)
	}
	if err := p.Forget(); err != nil {
		t.Fatal(err)
	}
	// Its new QEMU does not start at all.
	image := filepath.Join(p.Sockets, "g0.img")
	if err := os.Rename(image, image+".away"); err != nil {
		t.Fatal(err)
	}
	if plan, err = p.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if moved, err = p.Move(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "VM g0: it goes on in its old QEMU") || !strings.Contains(err.Error(), "g0.img") || len(moved) != 1 {
		t.Fatalf("%+v, %v", moved, err)
	}
	if err := p.Forget(); err != nil {
		t.Fatal(err)
	}
	// So nothing is frozen for a reset either.
	if err := p.Save(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "VM g0: no new QEMU can be started for it") || strings.Contains(err.Error(), "VM g1") {
		t.Fatal(err)
	}
	if after := guests[0].PIDs(); len(after) != 1 || after[0] != before[0] {
		t.Errorf("processes %v before, %v after", before, after)
	}
	settled(t, guests, p)
}

// TestMoveIsFinishedFromAnywhere interrupts it at each of its stations.
func TestMoveIsFinishedFromAnywhere(t *testing.T) {
	for _, at := range []string{"planned", "launched", "frozen", "written", "loaded", "ended", "going", "resumed"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			guests, p := bench(t)
			plan, err := p.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			died := errors.New("died here")
			p.Station = func(station string) error {
				if station == at {
					return died
				}
				return nil
			}
			if _, err := p.Move(t.Context(), plan); !errors.Is(err, died) {
				t.Fatalf("%v", err)
			}
			again := &qmp.Preserver{Sockets: p.Sockets, Dir: p.Dir}
			for range 2 { // the second time there is nothing left to do
				if err := again.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			settled(t, guests, p)
		})
	}
}

// TestResumeFromAnywhere interrupts the way at each of its stations.
func TestResumeFromAnywhere(t *testing.T) {
	died := errors.New("died here")
	stopAt := func(p *qmp.Preserver, at string) {
		p.Station = func(station string) error {
			if station == at {
				return died
			}
			return nil
		}
	}
	for _, at := range []string{"planned", "launched", "frozen", "written", "saved", "ended"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			guests, p := bench(t)
			plan, err := p.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stopAt(p, at)
			if err := p.Save(t.Context(), plan); !errors.Is(err, died) {
				t.Fatalf("%v", err)
			}
			again := &qmp.Preserver{Sockets: p.Sockets, Dir: p.Dir}
			if err := again.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			settled(t, guests, p)
		})
	}
	for _, at := range []string{"launched", "loaded", "going"} {
		t.Run("back "+at, func(t *testing.T) {
			t.Parallel()
			guests, p := bench(t)
			plan, err := p.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Save(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			stopAt(p, at)
			if err := p.Resume(t.Context()); !errors.Is(err, died) {
				t.Fatalf("%v", err)
			}
			again := &qmp.Preserver{Sockets: p.Sockets, Dir: p.Dir}
			if err := again.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			settled(t, guests, p)
		})
	}
}

func TestAGuestWhoseStateIsDamagedIsNeverBootedAfresh(t *testing.T) {
	t.Parallel()
	guests, p := bench(t)
	plan, err := p.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Save(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(p.Dir, "g0.state"), 1000); err != nil {
		t.Fatal(err)
	}
	// That there is no room for what QEMU says is no hindrance.
	if err := errors.Join(os.Remove(filepath.Join(p.Dir, "g1.log")), os.Mkdir(filepath.Join(p.Dir, "g1.log"), 0o700)); err != nil {
		t.Fatal(err)
	}
	err = p.Resume(t.Context())
	if err == nil || !strings.Contains(err.Error(), "VM g0") || strings.Contains(err.Error(), "VM g1") {
		t.Fatalf("%v", err)
	}
	if pids := guests[0].PIDs(); len(pids) != 0 {
		t.Errorf("it has processes: %v", pids)
	}
	guests[1].AwaitTicks(50, time.Minute)
	guests[1].Unharmed()
	for _, name := range []string{"plan.json", "g0.state"} {
		if _, err := os.Stat(filepath.Join(p.Dir, name)); err != nil {
			t.Errorf("not kept: %v", err)
		}
	}
	// The other one ran since: its state does not fit any more.
	if _, err := os.Stat(filepath.Join(p.Dir, "g1.state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a state that is over was kept: %v", err)
	}
}

// tell gives a guest's QEMU a command.
func tell(t *testing.T, p *qmp.Preserver, id, command string) {
	t.Helper()
	c, err := qmp.Dial(t.Context(), filepath.Join(p.Sockets, id+".qmp"))
	if err == nil {
		defer c.Close()
		err = c.Execute(command, nil, nil)
	}
	if err != nil {
		t.Error(err)
	}
}

// A guest that its owner pauses, or lets go on, in the midst of it stays as the owner wants it.
func TestOwnersHaveTheLastWord(t *testing.T) {
	t.Parallel()
	guests, p := bench(t)
	state := func() string {
		t.Helper()
		list, err := qmp.New(p.Sockets).Guests(t.Context())
		if err != nil || len(list) != 2 || list[1].State != "running" {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0].State
	}
	for _, step := range []struct{ command, state string }{{"stop", "paused"}, {"cont", "running"}} {
		for name, way := range map[string]func(context.Context, qmp.Plan) error{
			"move": func(ctx context.Context, plan qmp.Plan) error { _, err := p.Move(ctx, plan); return err }, "save": p.Save,
		} {
			p.Station = nil
			if state() == step.state {
				tell(t, p, "g0", map[string]string{"stop": "cont", "cont": "stop"}[step.command])
			}
			plan, err := p.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p.Station = func(station string) error {
				if station == "planned" {
					tell(t, p, "g0", step.command)
				}
				return nil
			}
			if err := way(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "VM g0") || strings.Contains(err.Error(), "VM g1") {
				t.Errorf("%s, %s: %v", name, step.command, err)
			}
			if got := state(); got != step.state {
				t.Errorf("%s, %s: it is %s", name, step.command, got)
			}
			if err := p.Forget(); err != nil {
				t.Fatal(err)
			}
		}
	}
	settled(t, guests, p)
}

// A guest that somebody starts anew while it is out is not taken for the one that was saved.
func TestAGuestThatIsStartedAnewIsNotTheSavedOne(t *testing.T) {
	t.Parallel()
	guests, p := bench(t)
	plan, err := p.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Save(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	anew := exec.Command(guests[0].Args[0], guests[0].Args[1:]...)
	if err := anew.Start(); err != nil {
		t.Fatal(err)
	}
	defer anew.Wait()
	defer anew.Process.Kill()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := qmp.Dial(t.Context(), filepath.Join(p.Sockets, "g0.qmp"))
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := p.Resume(t.Context()); err == nil || !strings.Contains(err.Error(), "VM g0: somebody else started a QEMU") || strings.Contains(err.Error(), "VM g1") {
			t.Errorf("%v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(p.Dir, "g0.state")); err != nil {
		t.Errorf("not kept: %v", err)
	}
	guests[1].AwaitTicks(60, time.Minute)
	guests[1].Unharmed()
}

// A VM that is started while the others are on their way out would end with the kernel.
func TestSaveFindsWhatWasStartedMeanwhile(t *testing.T) {
	t.Parallel()
	guests, real := bench(t)
	// Guests of other tests are none of this host's.
	proc := filepath.Join(real.Sockets, "proc")
	if err := os.Mkdir(proc, 0o755); err != nil {
		t.Fatal(err)
	}
	show := func(names ...string) {
		for _, name := range names {
			if err := os.Symlink("/proc/"+name, filepath.Join(proc, name)); err != nil {
				t.Error(err)
			}
		}
	}
	show("sys", "self", "cmdline", fmt.Sprint(guests[0].PIDs()[0]), fmt.Sprint(guests[1].PIDs()[0]))
	p := &qmp.Preserver{Sockets: real.Sockets, Dir: real.Dir, Proc: proc, Reset: true, FullSave: true}
	plan, err := p.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range plan.Guests {
		plan.Guests[i].Next = ""
	}
	p.Station = func(station string) error {
		if station == "saved" {
			show(fmt.Sprint(rigtest.StartQEMU(t, shortDir(t), "late", 4).PIDs()[0]))
		}
		return nil
	}
	if err := p.Save(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "it would end with the kernel") {
		t.Errorf("%v", err)
	}
	if err := real.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	settled(t, guests, real)
}

func TestCheckNamesWhatCannotBePreserved(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	good := rigtest.StartQEMU(t, dir, "good", 16)
	edit := func(old, new string) func(string) string {
		return func(arg string) string { return strings.Replace(arg, old, new, 1) }
	}
	rigtest.StartQEMU(t, dir, "unversioned", 16, edit("pc-i440fx-7.2", "pc"))
	rigtest.StartQEMU(t, dir, "private", 16, edit("share=on", "share=off"))
	good.AwaitTicks(5, time.Minute)
	p := &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan")}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := p.Check(ctx)
	if err == nil {
		t.Fatal("all can be preserved")
	}
	for _, want := range []string{"VM unversioned cannot be preserved: its machine type is pc, without a version", "VM private cannot be preserved: its RAM"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "VM good") {
		t.Error(err)
	}
	p.Reset = true
	if _, err := p.Check(ctx); err == nil || !strings.Contains(err.Error(), "VM good cannot be preserved: its RAM lies in /dev/shm") {
		t.Errorf("RAM that a reset takes away: %v", err)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	g := rigtest.StartQEMU(t, dir, "busy", 16)
	g.AwaitTicks(10, time.Minute)
	guests := qmp.New(dir)
	first, err := guests.Stats(t.Context())
	if err != nil || len(first) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	if s := first[0]; s.ID != "busy" || !s.Running || s.MemoryBytes < 1<<20 || s.CPUSeconds <= 0 || !(s.StealSeconds >= 0) || !(s.BlockReadBytes >= 0) || s.BlockError != 0 {
		t.Errorf("%+v", s)
	}
	g.AwaitTicks(200, time.Minute)
	second, err := guests.Stats(t.Context())
	if err != nil || second[0].CPUSeconds <= first[0].CPUSeconds {
		t.Errorf("%+v then %+v, %v", first, second, err)
	}
}
