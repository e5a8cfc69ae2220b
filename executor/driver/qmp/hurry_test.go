package qmp_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

// urgent counts the real-time threads of processes.
func urgent(t *testing.T, pids ...int) (n, all int) {
	t.Helper()
	for _, pid := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(filepath.Base(task))
			if err != nil {
				t.Fatal(err)
			}
			if a, err := unix.SchedGetAttr(tid, 0); err == nil {
				all++
				if a.Policy == unix.SCHED_RR {
					n++
				}
			}
		}
	}
	return n, all
}

// A frozen guest goes before all else on a busy host, and none that runs does, not even
// after a crash of the agent at that point.
func TestAFrozenGuestIsUrgent(t *testing.T) {
	for _, crash := range []string{"", "frozen", "going", "resumed"} {
		t.Run("crash at "+crash, func(t *testing.T) {
			dir := shortDir(t)
			g := rigtest.StartQEMU(t, dir, "g", 4)
			g.AwaitTicks(20, time.Minute)
			p := &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan")}
			plan, err := p.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			old := g.PIDs()
			p.Station = func(name string) error {
				n, all := urgent(t, g.PIDs()...)
				frozen, about := name == "frozen" || name == "loaded", name == "written" || name == "ended" || name == "going"
				if frozen && n != all || !frozen && !about && n > 0 {
					t.Errorf("%s: %d of %d threads go before others", name, n, all)
				}
				// It is about to run, though the rest of its QEMU is not calm yet.
				next := slices.DeleteFunc(g.PIDs(), func(pid int) bool { return slices.Contains(old, pid) })
				if n, all := urgent(t, next...); name == "going" && (n == 0 || n >= all) {
					t.Error("its processors are to run in a hurry")
				}
				// Its end, with all its mapped RAM, keeps no other guest from running.
				if n, _ := urgent(t, old...); name == "ended" && n != 0 {
					t.Errorf("%d threads of the old process end in a hurry", n)
				}
				if name == crash {
					return errors.New("crash")
				}
				return nil
			}
			if _, err := p.Move(t.Context(), plan); (err != nil) != (crash != "") {
				t.Fatal(err)
			}
			if crash != "" {
				// Unlike this test, a process that ends leaves the others in their hurry.
				for _, pid := range g.PIDs() {
					attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 7}
					if err := unix.SchedSetAttr(pid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) { // the old one ends
						t.Fatal(err)
					}
				}
				again := &qmp.Preserver{Sockets: p.Sockets, Dir: p.Dir}
				if err := again.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n, _ := urgent(t, g.PIDs()...); n != 0 {
				t.Errorf("%d threads go before others for ever", n)
			}
			if a, err := unix.SchedGetAttr(os.Getpid(), 0); err != nil || a.Policy != unix.SCHED_NORMAL {
				t.Errorf("this process still does: %+v, %v", a, err)
			}
			settled(t, []*rigtest.QEMU{g}, p)
		})
	}
}
