package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
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
		guests = append(guests, rigtest.StartQEMU(t, dir, fmt.Sprintf("g%d", i), 16))
	}
	for _, g := range guests {
		g.AwaitTicks(20, time.Minute)
	}
	return guests, &qmp.Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan")}
}

func settled(t *testing.T, guests []*rigtest.QEMU, p *qmp.Preserver) {
	t.Helper()
	for _, g := range guests {
		g.AwaitTicks(250, time.Minute) // once around the RAM
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
		reports, err := p.Resume(t.Context())
		if err != nil || len(reports) != 2 || !reports[0].Alive || !reports[1].Alive {
			t.Fatalf("%+v, %v", reports, err)
		}
		if after := guests[0].PIDs(); len(after) != 1 || after[0] == before[0] {
			t.Errorf("processes %v before, %v after", before, after)
		}
	}
	settled(t, guests, p)
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
	for _, at := range []string{"planned", "frozen", "written", "saved", "ended"} {
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
			if _, err := again.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			settled(t, guests, p)
		})
	}
	for _, at := range []string{"launched", "loaded"} {
		t.Run(at, func(t *testing.T) {
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
			if _, err := p.Resume(t.Context()); !errors.Is(err, died) {
				t.Fatalf("%v", err)
			}
			again := &qmp.Preserver{Sockets: p.Sockets, Dir: p.Dir}
			if _, err := again.Resume(t.Context()); err != nil {
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
	_, err = p.Resume(t.Context())
	if err == nil || !strings.Contains(err.Error(), "VM g0") || strings.Contains(err.Error(), "VM g1") {
		t.Fatalf("%v", err)
	}
	if pids := guests[0].PIDs(); len(pids) != 0 {
		t.Errorf("it has processes: %v", pids)
	}
	guests[1].AwaitTicks(50, time.Minute)
	guests[1].Unharmed()
	for _, name := range []string{"plan.json", "g0.state", "g1.state"} {
		if _, err := os.Stat(filepath.Join(p.Dir, name)); err != nil {
			t.Errorf("not kept: %v", err)
		}
	}
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
