package a

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const (
	vms = 8
	// rounds is how often the figures of one guest are taken.
	rounds = 3
)

// figures is what the rig comes to. Times are in milliseconds. A freeze is the time from
// the stop of a guest to its going on.
type figures struct {
	Rig string `json:"rig"`
	VMs int    `json:"vms"`
	RAM int    `json:"ram_mib"`
	// FreezeP50 and FreezeMax are of all guests moved together.
	FreezeP50 float64 `json:"freeze_ms_p50"`
	FreezeMax float64 `json:"freeze_ms_max"`
	// OneFreeze is the median of one guest moved alone, and QEMUOnlyFreeze of the same guest
	// with the same commands given by hand.
	OneFreeze      float64 `json:"one_freeze_ms"`
	QEMUOnlyFreeze float64 `json:"qemu_only_freeze_ms"`
	// GuestGapMax is the longest time between two ticks of a guest, of which there are 100
	// a second, while eight were moved: it has the waits for a processor, too.
	GuestGapMax float64 `json:"guest_gap_ms_max"`
	Lost        int     `json:"lost"`
	Corrupt     int     `json:"corrupt"`
}

// ram is how many MiB each guest gets: 1024, or less where this machine has no room for
// eight of them.
func ram(t *testing.T) int {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil {
		t.Fatal(err)
	}
	room := int(int64(fs.Bavail) * fs.Bsize >> 20)
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(meminfo)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			room = min(room, kib>>10)
		}
	}
	mib := 1024
	for mib > 64 && mib*vms*5/4 > room {
		mib /= 2
	}
	if mib < 1024 {
		t.Logf("there is room for %d MiB: the guests get %d MiB each", room, mib)
	}
	return mib
}

func TestPreserve(t *testing.T) {
	dir, ramMiB := shortDir(t), ram(t)
	var guests []*rigtest.QEMU
	start := func(i int) {
		g := rigtest.StartQEMU(t, dir, fmt.Sprintf("vm%d", i), ramMiB)
		guests = append(guests, g)
	}
	start(0)
	guests[0].AwaitTicks(50, 2*time.Minute)
	f := figures{Rig: "a", VMs: vms, RAM: ramMiB}
	r := newRunner(t, dir)
	var byHand, one []float64
	for range rounds {
		byHand = append(byHand, moveByHand(t, dir, guests[0]))
		guests[0].AwaitTicks(20, time.Minute)
		one = append(one, r.reset()...)
		guests[0].AwaitTicks(20, time.Minute)
	}
	f.QEMUOnlyFreeze, f.OneFreeze = median(byHand), median(one)
	for i := 1; i < vms; i++ {
		start(i)
	}
	for _, g := range guests {
		g.AwaitTicks(50, 5*time.Minute)
	}
	var all []float64
	for range 2 {
		for _, g := range guests {
			g.Watch.Reset()
		}
		all = append(all, r.reset()...)
		for _, g := range guests {
			g.AwaitTicks(20, time.Minute)
			f.GuestGapMax = max(f.GuestGapMax, ms(g.Watch.Account().MaxGap))
		}
	}
	f.FreezeP50, f.FreezeMax = median(all), slices.Max(all)
	for _, g := range guests {
		a := g.Watch.Account()
		if a.Boots != 1 || a.Jumps != 0 || len(g.PIDs()) != 1 {
			t.Errorf("guest %s: %+v in processes %v", g.ID, a, g.PIDs())
			f.Lost++
		}
		f.Corrupt += int(a.Corrupt) + g.Corrupt(ramMiB)
	}
	if f.Corrupt != 0 {
		t.Errorf("%d words of RAM are wrong", f.Corrupt)
	}
	line, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(line))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rig")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// runner is the agent's, with a control plane that only reads its reports.
type runner struct {
	t    *testing.T
	run  *host.Runner
	data string

	ended chan fleet.Report

	mu    sync.Mutex
	count int
}

// idle is a host without services.
type idle struct{}

func (idle) Observe(context.Context, string) (driver.UnitState, error) {
	return driver.UnitState{}, nil
}
func (idle) Restart(context.Context, string) error { return nil }
func (idle) Verify(context.Context, string) error  { return nil }

func newRunner(t *testing.T, sockets string) *runner {
	t.Helper()
	r := &runner{t: t, data: t.TempDir(), ended: make(chan fleet.Report, 1)}
	c := config.Default().Agent
	c.Guests.QMPDir, c.Reset.Enabled, c.Act = sockets, true, true
	cfg := host.Config{Host: "rig-a", Dir: filepath.Join(r.data, "journal"), Services: idle{}, Guests: qmp.New(sockets), Reports: r, Log: slog.New(slog.DiscardHandler)}
	agent.OfferReset(&cfg, c, r.data, cfg.Log)
	var err error
	if r.run, err = host.New(cfg); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(r.run.Actions(), fleet.ActionPreservingReset) {
		t.Fatalf("not offered: %v", r.run.Actions())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.run.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.run.Close()
	})
	return r
}

func (r *runner) PublishReport(_ context.Context, rep fleet.Report) error {
	if rep.Result != "" {
		r.ended <- rep
	}
	return nil
}

// reset has the runner carry out a preserving reset, and returns for how many
// milliseconds each guest was frozen.
func (r *runner) reset() []float64 {
	r.mu.Lock()
	r.count++
	id, now := fmt.Sprint("reset-", r.count), time.Now().UTC()
	cmd := fleet.Command{ID: id, Execution: id, Host: "rig-a", Phase: fleet.PhaseReset, Attempt: 1, Token: uint64(r.count), Issued: now,
		NotAfter: now.Add(15 * time.Second), Deadline: now.Add(2 * time.Minute)}
	r.mu.Unlock()
	if err := r.run.Handle(context.Background(), cmd); err != nil {
		r.t.Error(err)
		return nil
	}
	select {
	case rep := <-r.ended:
		if rep.Command != id || rep.Result != fleet.ResultSucceeded {
			r.t.Errorf("%s: %s: %s", rep.Command, rep.Result, rep.Detail)
		}
		var frozen []float64
		for _, g := range rep.GuestsAfter {
			frozen = append(frozen, math.Round(g.MaxGapSeconds*1e6)/1e3)
		}
		return frozen
	case <-time.After(3 * time.Minute):
		r.t.Error("the preserving reset never ends")
		return nil
	}
}

// moveByHand is what a person would do with QMP and a shell. It returns for how many
// milliseconds the guest was frozen.
func moveByHand(t *testing.T, dir string, g *rigtest.QEMU) float64 {
	t.Helper()
	socket, state := filepath.Join(dir, g.ID+".qmp"), filepath.Join(dir, g.ID+".by-hand")
	defer os.Remove(state)
	dial := func() *qmp.Conn {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			t.Cleanup(cancel)
			c, err := qmp.Dial(ctx, socket)
			if err == nil {
				return c
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	do := func(c *qmp.Conn, command, arguments string) map[string]any {
		t.Helper()
		var result map[string]any
		if err := c.Execute(command, json.RawMessage(arguments), &result); err != nil {
			t.Fatal(err)
		}
		return result
	}
	await := func(c *qmp.Conn, command, field string, while ...string) {
		for slices.Contains(while, fmt.Sprint(do(c, command, "{}")[field])) {
			time.Sleep(time.Millisecond)
		}
	}
	const capability = `{"capabilities": [{"capability": "x-ignore-shared", "state": true}]}`
	old := dial()
	do(old, "migrate-set-capabilities", capability)
	do(old, "migrate-set-parameters", `{"max-bandwidth": 68719476736}`)
	pid := g.PIDs()[0]
	begin := time.Now()
	do(old, "stop", "{}")
	do(old, "migrate", fmt.Sprintf(`{"uri": "exec:cat > %s"}`, state))
	await(old, "query-migrate", "status", "setup", "active", "device", "<nil>")
	do(old, "quit", "{}")
	old.Close()
	for syscall.Kill(pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
	cmd := exec.Command(g.Args[0], append(slices.Clone(g.Args[1:]), "-incoming", "defer")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	next := dial()
	defer next.Close()
	do(next, "migrate-set-capabilities", capability)
	do(next, "migrate-incoming", fmt.Sprintf(`{"uri": "exec:cat %s"}`, state))
	await(next, "query-status", "status", "inmigrate")
	do(next, "cont", "{}")
	return ms(time.Since(begin))
}
