// Package demo runs a small simulated fleet beside the real one: each of its hosts
// has an agent like any other, over the same bus, and is labelled as simulated in
// all that it says. Faults develop on them within minutes, and what the executor
// does about them has its effect in the simulator.
package demo

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Options says what the fleet is connected to.
type Options struct {
	// Dial connects the agent of a host to the bus.
	Dial func(fleet.HostID) (*bus.Agent, error)
	// HandedOver delivers the hosts that a person was called to: in a simulation
	// the person comes, and repairs them.
	HandedOver <-chan fleet.HostID
	// Dir holds what the agents keep on disk.
	Dir  string
	Seed uint64
	Log  *slog.Logger
}

const (
	// startUnit is how long a simulated service takes to start.
	startUnit = 300 * time.Millisecond
	// stable is for how long services must stay healthy after a recycle: over two
	// steps, so that a fault which was not cured shows again.
	stable = 2500 * time.Millisecond
)

// Run works until ctx ends.
func Run(ctx context.Context, o Options) error {
	f, err := simulator.New(simulator.Demo(o.Seed, time.Now()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	members := make(map[fleet.HostID]*member)
	for _, h := range f.Hosts() {
		m := newMember(f, h)
		members[h.ID] = m
		wg.Go(func() {
			if err := m.run(ctx, o, h); err != nil {
				cancel(err)
			}
		})
	}
	tick := time.NewTicker(f.Interval())
	defer tick.Stop()
	var samples []fleet.Sample
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); err != ctx.Err() {
				return err
			}
			return nil
		case id := <-o.HandedOver:
			if members[id] == nil {
				continue
			}
			if _, err := f.HandOver(id); err != nil {
				return err
			}
		case <-tick.C:
			// The simulator's clock is not the wall's: a step that came late is not made
			// up for, and the samples are as old as they look.
			samples = f.Step(samples)
			now := time.Now().UTC()
			for _, s := range samples {
				s.Time, s.Values = now, slices.Clone(s.Values)
				members[s.Host].step(s)
			}
		}
	}
}

// member is one host of the fleet.
type member struct {
	fleet   *simulator.Fleet
	id      fleet.HostID
	host    *sim.Host
	samples chan fleet.Sample
}

func newMember(f *simulator.Fleet, h fleet.Host) *member {
	m := &member{fleet: f, id: h.ID, samples: make(chan fleet.Sample, 1)}
	m.host = sim.New(sim.Config{Units: h.Units, VMs: h.VMs, Start: startUnit, Restarted: m.restarted})
	return m
}

// restarted lets a restart have its effect on the fault. The unit exists, and a host
// that is down restarts nothing, so there is no error to handle.
func (m *member) restarted(unit string) {
	_, _ = m.fleet.Apply(m.id, fleet.PhaseRecycle, []string{unit})
}

// step shows the services as the simulator has them, and hands the newest sample
// to the agent.
func (m *member) step(s fleet.Sample) {
	for _, name := range m.host.Names() {
		u, err := m.fleet.Unit(m.id, name)
		switch {
		case err != nil:
		case u.Active && !u.Healthy:
			m.host.Hang(name)
		case u.Active:
			m.host.Mend(name)
		}
	}
	select {
	case <-m.samples: // the agent is behind
	default:
	}
	m.samples <- s
}

// run is the agent of the host.
func (m *member) run(ctx context.Context, o Options, h fleet.Host) error {
	b, err := o.Dial(m.id)
	if err != nil {
		return err
	}
	defer b.Close()
	dir := filepath.Join(o.Dir, string(m.id))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("simulated host %s: %w", m.id, err)
	}
	runner, err := host.New(host.Config{
		Host: m.id, Dir: dir, Services: m.host, Guests: m.host, Diagnostics: m.host, Reports: b,
		Units: m.host.Names, Stable: stable, Boot: "simulated", Log: o.Log.With("simulated", true),
	})
	if err != nil {
		return fmt.Errorf("simulated host %s: %w", m.id, err)
	}
	defer runner.Close()
	h.Actions = runner.Actions()
	return agent.Run(ctx, agent.Options{
		Host: h, Interval: m.fleet.Interval(), Bus: b, Guests: m.host, Runner: runner, Log: o.Log,
		Sample: func(ctx context.Context) (fleet.Sample, error) {
			select {
			case s := <-m.samples:
				return s, nil
			case <-ctx.Done():
				return fleet.Sample{}, ctx.Err()
			}
		},
	})
}
