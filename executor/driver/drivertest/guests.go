package drivertest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// guests is what a driver of a hypervisor has.
type guests interface {
	Guests(ctx context.Context) ([]fleet.GuestReport, error)
}

// GuestBench is a host with guests for [Guests] to work on.
type GuestBench struct {
	Guests guests
	// A and B are the IDs of two guests that run, with so much memory each.
	A, B        string
	MemoryBytes int64
	// Pause stops a guest, Unpause lets it run on, and End ends its hypervisor.
	Pause, Unpause, End func(t *testing.T, id string)
}

// Guests tests a driver of a hypervisor. All tests work on one host, one after the
// other; in the end A does not run.
func Guests(t *testing.T, b GuestBench) {
	all := func(t *testing.T) (list []fleet.GuestReport, by map[string]fleet.GuestReport) {
		t.Helper()
		list, err := b.Guests.Guests(t.Context())
		if err != nil || list == nil {
			t.Fatal(list, err)
		}
		by = map[string]fleet.GuestReport{}
		for _, g := range list {
			if _, twice := by[g.ID]; twice {
				t.Errorf("the guest %s is there twice: %+v", g.ID, list)
			}
			by[g.ID] = g
		}
		return list, by
	}
	// A guest may need a moment to be seen as what it is.
	becomes := func(t *testing.T, id, state string, alive bool) []fleet.GuestReport {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			list, by := all(t)
			if g := by[id]; g.State == state && g.Alive == alive {
				return list
			}
			if time.Now().After(end) {
				t.Fatalf("%s is not %s (alive: %v): %+v", id, state, alive, list)
			}
		}
	}
	t.Run("guests that run are counted and alive", func(t *testing.T) {
		becomes(t, b.A, "running", true)
		becomes(t, b.B, "running", true)
		_, by := all(t)
		for _, id := range []string{b.A, b.B} {
			if g := by[id]; g.MemoryBytes != b.MemoryBytes || g.Name == "" || g.Host != "" {
				t.Errorf("%+v", g)
			}
		}
	})
	t.Run("a guest that is paused is not alive", func(t *testing.T) {
		before, _ := all(t)
		b.Pause(t, b.A)
		after := becomes(t, b.A, "paused", false)
		if lost := driver.Lost(before, after); len(lost) != 1 || !strings.Contains(lost[0], b.A) {
			t.Errorf("%q", lost)
		}
		b.Unpause(t, b.A)
		if lost := driver.Lost(before, becomes(t, b.A, "running", true)); len(lost) != 0 {
			t.Errorf("%q", lost)
		}
	})
	t.Run("nothing outlives its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		if list, err := b.Guests.Guests(ctx); err == nil {
			t.Errorf("counted %+v", list)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("a guest that ended is lost, and the other is not", func(t *testing.T) {
		before, _ := all(t)
		b.End(t, b.A)
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			after, by := all(t)
			a, there := by[b.A]
			if lost := driver.Lost(before, after); len(lost) == 1 && strings.Contains(lost[0], b.A) && !a.Alive && (!there || a.State == "shut-off") {
				break
			} else if time.Now().After(end) {
				t.Fatalf("%q: %+v", lost, after)
			}
		}
	})
}

// mover is what a driver has that moves guests to other hosts.
type mover interface {
	guests
	Move(ctx context.Context, guest string, to fleet.Target, progress func(driver.Progress)) (driver.Progress, error)
	Locate(ctx context.Context, guest string, to fleet.Target) (driver.Location, error)
	Abort(ctx context.Context, guest string) error
}

// MoveBench is two hosts for [Moves] to work on.
type MoveBench struct {
	// From and To are the hosts, FromTarget and ToTarget what each is called by the
	// other; Nowhere cannot be reached.
	From, To                      mover
	FromTarget, ToTarget, Nowhere fleet.Target
	// Guest runs on From.
	Guest string
	// Slow makes moves take at least a second, Fast lets them go on quickly.
	Slow, Fast func(t *testing.T)
	// Once fails the test if the guest does not run exactly once, or was harmed.
	Once func(t *testing.T)
}

// Moves tests a driver that moves guests. The guest ends where it began.
func Moves(t *testing.T, b MoveBench) {
	here := driver.Location{Here: "running"}
	settled := func(t *testing.T, want driver.Location) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			at, err := b.From.Locate(t.Context(), b.Guest, b.ToTarget)
			if err == nil && at == want {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the guest is at %+v, not %+v (%v)", at, want, err)
			}
		}
		b.Once(t)
	}
	back := func(t *testing.T) {
		t.Helper()
		if _, err := b.To.Move(t.Context(), b.Guest, b.FromTarget, nil); err != nil {
			t.Fatal(err)
		}
		settled(t, here)
	}
	t.Run("a move that cannot begin leaves the guest", func(t *testing.T) {
		settled(t, here)
		if _, err := b.From.Move(t.Context(), b.Guest, b.Nowhere, nil); err == nil {
			t.Fatal("moved to nowhere")
		}
		at, err := b.From.Locate(t.Context(), b.Guest, b.Nowhere)
		if err != nil || at.Here != "running" || at.There != driver.Unknown || at.Trouble == "" || at.Moving {
			t.Errorf("%+v, %v", at, err)
		}
		settled(t, here)
	})
	t.Run("a guest that does not exist is not moved", func(t *testing.T) {
		const no = "00000000-0000-4000-8000-000000000000"
		if _, err := b.From.Move(t.Context(), no, b.ToTarget, nil); err == nil {
			t.Error("moved")
		}
		if at, err := b.From.Locate(t.Context(), no, b.ToTarget); err != nil || at != (driver.Location{}) {
			t.Errorf("%+v, %v", at, err)
		}
	})
	t.Run("there and back", func(t *testing.T) {
		told, err := b.From.Move(t.Context(), b.Guest, b.ToTarget, nil)
		if err != nil {
			t.Fatal(err)
		}
		settled(t, driver.Location{There: "running"})
		t.Logf("%+v", told)
		if told.TotalBytes == 0 || told.DowntimeSeconds <= 0 {
			t.Errorf("nothing is known of the move: %+v", told)
		}
		back(t)
	})
	t.Run("a move that is stopped leaves the guest", func(t *testing.T) {
		b.Slow(t)
		defer b.Fast(t)
		begun := make(chan struct{})
		result := make(chan error, 1)
		go func() {
			once := false
			_, err := b.From.Move(t.Context(), b.Guest, b.ToTarget, func(driver.Progress) {
				if !once {
					once = true
					close(begun)
				}
			})
			result <- err
		}()
		select {
		case <-begun:
		case err := <-result:
			t.Fatal("it ended at once: ", err)
		}
		if at, err := b.From.Locate(t.Context(), b.Guest, b.ToTarget); err != nil || !at.Moving {
			t.Errorf("%+v, %v", at, err)
		}
		if err := b.From.Abort(t.Context(), b.Guest); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err == nil {
			t.Fatal("it moved")
		}
		settled(t, here)
		if err := b.From.Abort(t.Context(), b.Guest); err != nil {
			t.Error("there was nothing to stop: ", err)
		}
	})
	t.Run("a move goes on without who asked for it", func(t *testing.T) {
		b.Slow(t)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := b.From.Move(ctx, b.Guest, b.ToTarget, func(driver.Progress) { cancel() })
		cancel()
		if err == nil {
			t.Fatal("it was over before it could be left alone")
		}
		at, err := b.From.Locate(t.Context(), b.Guest, b.ToTarget)
		if err != nil || !at.Moving {
			t.Errorf("%+v, %v", at, err)
		}
		b.Fast(t)
		settled(t, driver.Location{There: "running"})
		back(t)
	})
}
