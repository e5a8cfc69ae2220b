package drivertest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// preserver is what a driver has that takes guests out of the way of a reset.
type preserver interface {
	Check(ctx context.Context) error
	Move(ctx context.Context, mark string) (map[string]time.Duration, error)
	Save(ctx context.Context, mark string) error
	Saved() (bool, error)
	Resume(ctx context.Context) error
	Forget() error
}

// PreserveBench is a host with guests for [Preserves] to work on.
type PreserveBench struct {
	Preserver preserver
	Guests    guests
	// IDs are its guests, which run: two at least.
	IDs []string
	// Block makes a guest one that cannot be preserved, until undo is called.
	Block func(t *testing.T, id string) (undo func())
	// Damage makes the saved state of a guest useless.
	Damage func(t *testing.T, id string)
	// Unharmed fails the test if one of these guests was harmed, or runs twice.
	Unharmed func(t *testing.T, ids []string)
}

// Preserves tests a driver that takes guests out of the way of a reset. In the end
// the first guest is lost.
func Preserves(t *testing.T, b PreserveBench) {
	p := b.Preserver
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	saved := func(t *testing.T, want bool) {
		t.Helper()
		if got, err := p.Saved(); err != nil || got != want {
			t.Fatalf("saved: %v, %v", got, err)
		}
	}
	// running fails unless exactly these guests run, of which a busy one may miss a probe.
	running := func(t *testing.T, ids []string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			list, err := b.Guests.Guests(t.Context())
			must(t, err)
			n := 0
			for _, g := range list {
				if g.State == "running" && g.Alive {
					n++
				}
			}
			if n == len(ids) {
				return
			}
			if n > len(ids) || time.Now().After(end) {
				t.Fatalf("%d guests run, not %v: %+v", n, ids, list)
			}
		}
	}
	// kept fails if a guest was lost since.
	kept := func(t *testing.T, before []fleet.GuestReport) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			after, err := b.Guests.Guests(t.Context())
			must(t, err)
			lost := driver.Lost(before, after)
			if len(lost) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatal(lost)
			}
		}
	}
	t.Run("looking changes nothing", func(t *testing.T) {
		saved(t, false)
		must(t, p.Check(t.Context()))
		must(t, p.Forget())
		if p.Resume(t.Context()) == nil {
			t.Error("resumed what was not out")
		}
		saved(t, false)
		running(t, b.IDs)
	})
	t.Run("what cannot be preserved is named and blocks everything", func(t *testing.T) {
		undo := b.Block(t, b.IDs[0])
		defer undo()
		_, moved := p.Move(t.Context(), "m0")
		for _, err := range []error{p.Check(t.Context()), moved, p.Save(t.Context(), "m0")} {
			if err == nil || !strings.Contains(err.Error(), "VM "+b.IDs[0]+" cannot be preserved") || strings.Contains(err.Error(), "VM "+b.IDs[1]) {
				t.Errorf("%v", err)
			}
		}
		saved(t, false)
		running(t, b.IDs)
	})
	t.Run("a move is known until it is forgotten", func(t *testing.T) {
		before, err := b.Guests.Guests(t.Context())
		must(t, err)
		frozen, err := p.Move(t.Context(), "m1")
		must(t, err)
		for _, id := range b.IDs {
			if f := frozen[id]; f <= 0 || f > time.Minute {
				t.Errorf("%s was frozen for %v", id, f)
			}
		}
		saved(t, true)
		if _, err := p.Move(t.Context(), "m2"); err == nil {
			t.Error("moved again before the end")
		}
		if p.Save(t.Context(), "m2") == nil {
			t.Error("saved before the end")
		}
		must(t, p.Resume(t.Context())) // there is nothing to do
		must(t, p.Forget())
		saved(t, false)
		kept(t, before)
		b.Unharmed(t, b.IDs)
	})
	t.Run("what is saved is out until it is resumed", func(t *testing.T) {
		before, err := b.Guests.Guests(t.Context())
		must(t, err)
		must(t, p.Save(t.Context(), "m3"))
		saved(t, true)
		running(t, nil)
		must(t, p.Resume(t.Context()))
		running(t, b.IDs)
		must(t, p.Resume(t.Context()))
		saved(t, true)
		must(t, p.Forget())
		saved(t, false)
		kept(t, before)
		b.Unharmed(t, b.IDs)
	})
	t.Run("a guest whose state is damaged is lost alone and never started afresh", func(t *testing.T) {
		must(t, p.Save(t.Context(), "m4"))
		b.Damage(t, b.IDs[0])
		for range 2 {
			err := p.Resume(t.Context())
			if err == nil || !strings.Contains(err.Error(), "VM "+b.IDs[0]) || strings.Contains(err.Error(), "VM "+b.IDs[1]) {
				t.Fatalf("%v", err)
			}
			running(t, b.IDs[1:])
			saved(t, true)
		}
		b.Unharmed(t, b.IDs[1:])
	})
}
