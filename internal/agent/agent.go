// Package agent is the host agent: it samples its host, announces it, and hands
// the control plane's commands to the executor's host side. The same code runs
// on its own, inside the control plane, and for simulated hosts.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/spool"
)

// Guests counts and probes the VMs of the host.
type Guests interface {
	Guests(ctx context.Context) ([]fleet.GuestReport, error)
}

// Options is what an agent works with.
type Options struct {
	// Host describes the host; the agent fills in what changes.
	Host fleet.Host
	// Units, if not nil, lists the services that a recycle would restart now.
	Units    func() []string
	Interval time.Duration
	Bus      *bus.Agent
	// Sample takes one sample.
	Sample func(context.Context) (fleet.Sample, error)
	// Guests may be nil where the host has no VMs that could be counted.
	Guests Guests
	// Changed, if not nil, says when a guest changed, so that the control plane hears of
	// it at once.
	Changed <-chan struct{}
	Runner  *host.Runner
	// Spool, if not nil, keeps samples on disk while the bus is away. Without it they
	// wait in memory only.
	Spool *spool.Spool
	Log   *slog.Logger
}

// announceEvery is how often the host's inventory is sent.
const announceEvery = 5 * time.Second

// Run works until ctx ends, or the executor's journal breaks.
func Run(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &outbox{host: o.Host.ID, spool: o.Spool, log: o.Log, some: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { o.sampling(ctx, out) })
	wg.Go(func() { out.send(ctx, o.Bus.PublishSamples) })
	wg.Go(func() { o.announcing(ctx) })
	wg.Go(func() { o.Bus.Commands(ctx, o.Runner.Handle) })
	wg.Go(func() {
		if err := o.Runner.Run(ctx); err != nil {
			cancel(fmt.Errorf("the executor on host %s stopped: %w", o.Host.ID, err))
		}
	})
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// sampling takes a sample at each tick of the interval. A tick that comes while
// a sample is being taken is left out, never made up for.
func (o *Options) sampling(ctx context.Context, out *outbox) {
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	for {
		s, err := o.Sample(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			o.Log.Warn("no sample", "host", o.Host.ID, "err", err)
		default:
			out.put(&s)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// announcing sends the inventory at once and then regularly.
func (o *Options) announcing(ctx context.Context) {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		h := o.Host
		h.LastSeen = time.Now().UTC()
		if o.Units != nil {
			h.Units = o.Units()
		}
		h.VMs = []fleet.VM{}
		if o.Guests != nil {
			guests, err := o.Guests.Guests(ctx)
			for _, g := range guests {
				h.VMs = append(h.VMs, g.VM)
			}
			if err != nil {
				h.VMs = nil // not known: a hypervisor that restarts does not make a host empty
				if ctx.Err() == nil {
					o.Log.Warn("the guests could not be counted", "host", h.ID, "err", err)
				}
			}
		}
		if err := o.Bus.PublishHost(h); err != nil && ctx.Err() == nil {
			o.Log.Debug("the host could not be announced", "host", h.ID, "err", err)
		}
		wait := tick.C
		var soon <-chan time.Time
		if !o.Bus.Connected() || h.VMs == nil {
			soon = time.After(500 * time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return
		case <-wait:
		case <-o.Changed:
		case <-soon:
		}
	}
}
