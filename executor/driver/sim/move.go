package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// move is a guest on its way from a host.
type move struct {
	begun time.Time
	abort chan struct{}
	once  sync.Once
	done  chan struct{}
	err   error
}

// Join lets guests be moved from this host to another.
func (h *Host) Join(id fleet.HostID, to *Host) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.peers == nil {
		h.peers = map[fleet.HostID]*Host{}
	}
	h.peers[id] = to
}

// Vanish makes the host one that other hosts cannot reach.
func (h *Host) Vanish(gone bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = gone
}

// Pause stops a running guest, and Unpause lets it run on.
func (h *Host) Pause(id string)   { h.set(id, "running", "paused") }
func (h *Host) Unpause(id string) { h.set(id, "paused", "running") }

func (h *Host) set(id, from, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.guests {
		if g := &h.guests[i]; g.ID == id && g.State == from {
			g.State, g.Alive = to, to == "running"
		}
	}
}

// Move moves a guest to another host, as a live migration would. Like libvirt's
// daemons, the hosts go on with that when ctx ends.
func (h *Host) Move(ctx context.Context, guest string, to fleet.Target, progress func(driver.Progress)) (driver.Progress, error) {
	fail := func(err error) (driver.Progress, error) {
		return driver.Progress{}, fmt.Errorf("move guest %s to %s: %w", guest, to.Host, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	h.mu.Lock()
	peer, m := h.peers[to.Host], h.moves[guest]
	i := h.index(guest)
	if peer == nil || peer.unreachable() || m != nil || i < 0 || h.guests[i].State != "running" && h.guests[i].State != "paused" {
		h.mu.Unlock()
		return fail(errors.New("it is not possible here and now"))
	}
	m = &move{begun: time.Now(), abort: make(chan struct{}), done: make(chan struct{})}
	if h.moves == nil {
		h.moves = map[string]*move{}
	}
	h.moves[guest] = m
	size := h.guests[i].MemoryBytes
	h.mu.Unlock()
	if progress != nil {
		progress(driver.Progress{TotalBytes: size, Iteration: 1})
	}
	go h.carry(guest, peer, m)
	select {
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	case <-m.done:
	}
	if m.err != nil {
		return fail(m.err)
	}
	return driver.Progress{TotalBytes: size, Iteration: 2, DowntimeSeconds: 0.05}, nil
}

// carry ends a move: the guest leaves here and appears there in one instant.
func (h *Host) carry(guest string, peer *Host, m *move) {
	defer close(m.done)
	select {
	case <-time.After(h.cfg.MoveTime):
	case <-m.abort:
		m.err = errors.New("it was stopped")
	}
	both.Lock()
	defer both.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.moves, guest)
	i := h.index(guest)
	if m.err == nil && (i < 0 || h.guests[i].State == "shut-off") {
		m.err = errors.New("the guest ended")
	}
	if m.err == nil && peer.unreachable() {
		m.err = errors.New("the target is gone")
	}
	if m.err != nil {
		return
	}
	peer.mu.Lock()
	defer peer.mu.Unlock()
	peer.guests = append(peer.guests, h.guests[i])
	h.guests = slices.Delete(h.guests, i, i+1)
}

// both keeps two hosts that move guests to each other from waiting for each other.
var both sync.Mutex

func (h *Host) index(guest string) int {
	return slices.IndexFunc(h.guests, func(g fleet.GuestReport) bool { return g.ID == guest })
}

func (h *Host) unreachable() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

// Abort ends a move; the guest stays.
func (h *Host) Abort(ctx context.Context, guest string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	m := h.moves[guest]
	h.mu.Unlock()
	if m != nil && !h.committed(m) {
		m.once.Do(func() { close(m.abort) })
	}
	return nil
}

func (h *Host) committed(m *move) bool {
	return h.cfg.CommitAfter > 0 && time.Since(m.begun) >= h.cfg.CommitAfter
}

// Locate looks for a guest on both sides of a move.
func (h *Host) Locate(ctx context.Context, guest string, to fleet.Target) (driver.Location, error) {
	if err := ctx.Err(); err != nil {
		return driver.Location{}, err
	}
	both.Lock()
	defer both.Unlock()
	h.mu.Lock()
	var at driver.Location
	if m := h.moves[guest]; m != nil {
		at.Moving, at.Committed = true, h.committed(m)
	}
	if i := h.index(guest); i >= 0 {
		at.Here = h.guests[i].State
	}
	peer := h.peers[to.Host]
	h.mu.Unlock()
	if peer == nil || peer.unreachable() {
		at.There, at.Trouble = driver.Unknown, "the target does not answer"
		return at, nil
	}
	peer.mu.Lock()
	defer peer.mu.Unlock()
	if i := peer.index(guest); i >= 0 {
		at.There = peer.guests[i].State
	}
	return at, nil
}
