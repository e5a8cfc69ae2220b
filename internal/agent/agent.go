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
)

// Guests counts and probes the VMs of the host.
type Guests interface {
	Guests(ctx context.Context) ([]fleet.GuestReport, error)
}

// Options is what an agent works with.
type Options struct {
	// Host describes the host; the agent fills in what changes.
	Host     fleet.Host
	Interval time.Duration
	Bus      *bus.Agent
	// Sample takes one sample.
	Sample func(context.Context) (fleet.Sample, error)
	// Guests may be nil where the host has no VMs that could be counted.
	Guests Guests
	Runner *host.Runner
	Log    *slog.Logger
}

// announceEvery is how often the host's inventory is sent.
const announceEvery = 5 * time.Second

// outboxSamples bounds the samples that wait for the bus.
const outboxSamples = 900

// Run works until ctx ends, or the executor's journal breaks.
func Run(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := newOutbox(outboxSamples)
	var wg sync.WaitGroup
	wg.Go(func() { o.sampling(ctx, out) })
	wg.Go(func() { o.sending(ctx, out) })
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

// sending stores samples on the bus in order, each until the bus has it.
func (o *Options) sending(ctx context.Context, out *outbox) {
	for {
		s, lost := out.next(ctx)
		if s == nil {
			return
		}
		if lost > 0 {
			o.Log.Warn("the bus was away for too long: the oldest samples were dropped", "host", o.Host.ID, "dropped", lost)
		}
		for {
			limited, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := o.Bus.PublishSample(limited, s)
			cancel()
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(500 * time.Millisecond):
			}
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
		h.VMs = []fleet.VM{}
		if o.Guests != nil {
			guests, err := o.Guests.Guests(ctx)
			if err != nil {
				o.Log.Warn("the guests could not be counted", "host", h.ID, "err", err)
			}
			for _, g := range guests {
				h.VMs = append(h.VMs, g.VM)
			}
		}
		if err := o.Bus.PublishHost(h); err != nil && ctx.Err() == nil {
			o.Log.Debug("the host could not be announced", "host", h.ID, "err", err)
		}
		wait := tick.C
		var soon <-chan time.Time
		if !o.Bus.Connected() {
			soon = time.After(500 * time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return
		case <-wait:
		case <-soon:
		}
	}
}

// outbox is a bounded queue that drops its oldest sample when it is full.
type outbox struct {
	mu      sync.Mutex
	samples []*fleet.Sample
	limit   int
	lost    int
	some    chan struct{}
}

func newOutbox(limit int) *outbox { return &outbox{limit: limit, some: make(chan struct{}, 1)} }

func (b *outbox) put(s *fleet.Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.samples) == b.limit {
		b.samples = append(b.samples[:0], b.samples[1:]...)
		b.lost++
	}
	b.samples = append(b.samples, s)
	select {
	case b.some <- struct{}{}:
	default:
	}
}

// next waits for the oldest sample, nil when ctx ends; lost is how many were
// dropped since the last call.
func (b *outbox) next(ctx context.Context) (s *fleet.Sample, lost int) {
	for {
		b.mu.Lock()
		if len(b.samples) > 0 {
			s, lost = b.samples[0], b.lost
			b.samples = append(b.samples[:0], b.samples[1:]...)
			b.lost = 0
			b.mu.Unlock()
			return s, lost
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, 0
		case <-b.some:
		}
	}
}
