// Package sim is a host that does not exist: services that can hang or break and
// come back when they are restarted, and guests that can get lost. It has the same
// methods as the drivers of real hosts and passes the same tests.
package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Config says what the host has.
type Config struct {
	Units []string
	VMs   []fleet.VM
	// Start is how long a service takes to start.
	Start time.Duration
	// Restarted, if not nil, is called after a restart of a unit that helped.
	Restarted func(unit string)
	// MoveTime is how long the move of a guest to another host takes.
	MoveTime time.Duration
	// CommitAfter is after how long a move can not be stopped any more, as one that goes on
	// by post-copy; 0 means never.
	CommitAfter time.Duration
}

// Host is a simulated host. It is safe for concurrent use.
type Host struct {
	cfg Config

	mu     sync.Mutex
	units  map[string]*unit
	guests []fleet.GuestReport
	moves  map[string]*move       // by guest, while they last
	peers  map[fleet.HostID]*Host // where guests can be moved to
	gone   bool                   // it does not answer other hosts
}

type unit struct {
	active, busy, hung bool
	// restarts counts the starts; broken is true where a start never helps.
	restarts int
	broken   bool
	refusal  string
}

// New returns a host on which everything works.
func New(cfg Config) *Host {
	h := &Host{cfg: cfg, units: map[string]*unit{}}
	for _, u := range cfg.Units {
		h.units[u] = &unit{active: true}
	}
	for _, vm := range cfg.VMs {
		if vm.State == "" {
			vm.State = "running"
		}
		h.guests = append(h.guests, fleet.GuestReport{VM: vm, Alive: vm.State == "running"})
	}
	return h
}

// Hang makes a service stop working until it is restarted.
func (h *Host) Hang(name string) { h.change(name, func(u *unit) { u.hung = true }) }

// Stop ends a service, as a crash would.
func (h *Host) Stop(name string) { h.change(name, func(u *unit) { u.active = false }) }

// Break makes every further start of a service fail.
func (h *Host) Break(name string) { h.change(name, func(u *unit) { u.broken, u.hung = true, true }) }

// Mend undoes Break and Hang.
func (h *Host) Mend(name string) { h.change(name, func(u *unit) { u.broken, u.hung = false, false }) }

// Refuse makes a service one that must not be restarted.
func (h *Host) Refuse(name, why string) { h.change(name, func(u *unit) { u.refusal = why }) }

func (h *Host) change(name string, f func(*unit)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if u := h.units[name]; u != nil {
		f(u)
	}
}

// Restarts is how often the unit was started again.
func (h *Host) Restarts(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if u := h.units[name]; u != nil {
		return u.restarts
	}
	return 0
}

// Lose ends a guest, as a crash of its QEMU would.
func (h *Host) Lose(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.guests {
		if h.guests[i].ID == id {
			h.guests[i].State, h.guests[i].Alive = "shut-off", false
		}
	}
}

// Guests counts the guests.
func (h *Host) Guests(ctx context.Context) ([]fleet.GuestReport, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("probe the guests: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]fleet.GuestReport{}, h.guests...), nil
}

// Names lists the units, in order.
func (h *Host) Names() []string { return slices.Clone(h.cfg.Units) }

// Healthy tells of each unit whether it works.
func (h *Host) Healthy(context.Context) map[string]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]bool, len(h.units))
	for name, u := range h.units {
		out[name] = u.active && !u.busy && !u.hung
	}
	return out
}

// Observe returns the unit as it is now.
func (h *Host) Observe(ctx context.Context, name string) (driver.UnitState, error) {
	if err := ctx.Err(); err != nil {
		return driver.UnitState{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.units[name]
	if u == nil {
		return driver.UnitState{Refusal: "the unit does not exist", Detail: "not-found"}, nil
	}
	s := driver.UnitState{Active: u.active && !u.busy, Busy: u.busy, Refusal: u.refusal, Detail: "inactive/dead"}
	if u.active {
		s.Detail, s.Invocation = "active/running", fmt.Sprintf("%s-%d", name, u.restarts)
	}
	return s, nil
}

// Restart restarts the unit. Like systemd, it goes on with that when ctx ends.
func (h *Host) Restart(ctx context.Context, name string) error {
	h.mu.Lock()
	u := h.units[name]
	if u == nil || u.refusal != "" {
		h.mu.Unlock()
		return driver.As(driver.ClassPermanent, fmt.Errorf("%s must not be restarted", name))
	}
	u.busy, u.active = true, false
	h.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		time.Sleep(h.cfg.Start)
		h.mu.Lock()
		u.busy, u.active = false, !u.broken
		u.restarts++
		helped := u.active
		if helped {
			u.hung = false
		}
		h.mu.Unlock()
		if helped && h.cfg.Restarted != nil {
			h.cfg.Restarted(name)
		}
		if !helped {
			done <- driver.As(driver.ClassPermanent, fmt.Errorf("restart %s: the start failed", name))
		}
		close(done)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("restart %s: %w", name, ctx.Err())
	}
}

// verifyFor bounds the wait for a simulated service.
const verifyFor = 5 * time.Second

// Verify waits until the unit works.
func (h *Host) Verify(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, verifyFor)
	defer cancel()
	for {
		h.mu.Lock()
		u := h.units[name]
		var ok, hopeless bool
		if u != nil {
			ok = u.active && !u.busy && !u.hung
			hopeless = !u.active && !u.busy
		}
		h.mu.Unlock()
		switch {
		case u == nil:
			return fmt.Errorf("%s does not exist", name)
		case ok:
			return nil
		case hopeless:
			return fmt.Errorf("%s is inactive", name)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not healthy: %w", name, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Diagnose says which services do not work; there is no archive.
func (h *Host) Diagnose(ctx context.Context, _ fleet.Command) (bundle, summary string, err error) {
	if err := ctx.Err(); err != nil {
		return "", "", err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	summary = "Simulated: every service works."
	for _, name := range h.cfg.Units {
		if u := h.units[name]; !u.active || u.hung {
			return "", "Simulated: " + name + " does not work.", nil
		}
	}
	return "", summary, nil
}
