package control

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// hosts is the inventory: what each agent says of its host. It is stored when it
// changes, and the time of the last word is kept in memory.
type hosts struct {
	table *bus.Table[fleet.Host]
	admit func(context.Context, fleet.HostID) error
	log   *slog.Logger

	mu       sync.Mutex
	seen     map[fleet.HostID]time.Time
	told     map[fleet.HostID]time.Time // when the agent said something last
	admitted map[fleet.HostID]bool
}

func newHosts(table *bus.Table[fleet.Host], admit func(context.Context, fleet.HostID) error, log *slog.Logger) *hosts {
	return &hosts{table: table, admit: admit, log: log, seen: make(map[fleet.HostID]time.Time), told: make(map[fleet.HostID]time.Time), admitted: make(map[fleet.HostID]bool)}
}

// forgetSimulated takes the simulated hosts out of the inventory.
func (h *hosts) forgetSimulated(ctx context.Context) error {
	for _, host := range h.table.All() {
		if !host.Simulated {
			continue
		}
		if err := h.table.Delete(ctx, string(host.ID)); err != nil {
			return fmt.Errorf("forget the simulated host %s: %w", host.ID, err)
		}
	}
	return nil
}

// announce takes the word of an agent on its host. The times are the control
// plane's, since a host's clock may be wrong.
func (h *hosts) announce(ctx context.Context, said fleet.Host) {
	now := time.Now().UTC()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[said.ID] = now
	if !h.admitted[said.ID] {
		if err := h.admit(ctx, said.ID); err != nil {
			h.log.Error("a host cannot be given commands", "host", said.ID, "err", err)
			return
		}
		h.admitted[said.ID] = true
	}
	old, _, known := h.table.Find(string(said.ID))
	said.FirstSeen, said.LastSeen = now, now
	counted := said.VMs != nil
	if !counted {
		said.VMs = append([]fleet.VM{}, old.VMs...) // those that were there before still are, most likely
	}
	if known {
		said.FirstSeen = old.FirstSeen
	} else {
		h.log.Info("a host joined", "host", said.ID, "version", said.Version, "simulated", said.Simulated)
	}
	if !known || changed(old, said) {
		if _, err := h.table.Put(ctx, string(said.ID), said); err != nil {
			h.log.Error("the inventory could not be stored", "host", said.ID, "err", err)
			return
		}
	}
	if counted {
		h.told[said.ID] = now
	}
}

func changed(a, b fleet.Host) bool {
	return a.FaultDomain != b.FaultDomain || a.Simulated != b.Simulated || a.Version != b.Version || a.DryRun != b.DryRun ||
		a.Address != b.Address || a.CPU != b.CPU || a.MemoryBytes != b.MemoryBytes || a.AcceptsVMs != b.AcceptsVMs ||
		!slices.Equal(a.VMs, b.VMs) || !slices.Equal(a.Actions, b.Actions) || !slices.Equal(a.Units, b.Units)
}

// counted is when the agent of a host last said which VMs it has; what it said is in
// the table by then.
func (h *hosts) counted(id fleet.HostID) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told[id]
}

// remove takes a host out of the inventory; its agent makes it join again.
func (h *hosts) remove(ctx context.Context, id fleet.HostID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.table.Delete(ctx, string(id)); err != nil {
		return err
	}
	delete(h.seen, id)
	delete(h.told, id)
	delete(h.admitted, id)
	return nil
}

// sampled notes that a sample of the host came in, which was taken then by the host's clock.
func (h *hosts) sampled(id fleet.HostID, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now().UTC(); at.After(now) {
		at = now
	}
	if at.After(h.seen[id]) {
		h.seen[id] = at
	}
}

// find returns a host with the time of its last word.
func (h *hosts) find(id fleet.HostID) (fleet.Host, bool) {
	host, _, ok := h.table.Find(string(id))
	if !ok {
		return host, false
	}
	return h.fresh(host), true
}

func (h *hosts) all() []fleet.Host {
	out := h.table.All()
	for i := range out {
		out[i] = h.fresh(out[i])
	}
	return out
}

func (h *hosts) fresh(host fleet.Host) fleet.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at := h.seen[host.ID]; at.After(host.LastSeen) {
		host.LastSeen = at
	}
	return host
}
