// Package trial tries failure models and policies on simulated fleets: it makes the examples
// that a model learns from, and runs one policy after the other through the same faults, with
// the same luck. A policy sees telemetry through a model, as it would on real hosts.
package trial

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
)

// Fleet is the size of a simulated fleet.
type Fleet struct {
	Hosts int
	Days  float64
	Seed  uint64
	// FaultRate is the number of faults per host in 30 days; 0 means one.
	FaultRate float64
}

func (f Fleet) steps(interval time.Duration) int {
	return max(1, int(f.Days*float64(24*time.Hour)/float64(interval)))
}

// Training says what examples are drawn from.
type Training struct {
	// Fleet is the one they are drawn from. What is learned is corrected for one fault per host in 30
	// days.
	Fleet
	// Operated makes somebody act on random hosts now and then, so that a model knows what
	// hosts look like after that.
	Operated bool
	// Sound is about how many examples are drawn from hosts without a fault.
	Sound int
}

// operatedEvery is the mean time between two actions on a host of an operated fleet.
const operatedEvery = 6 * 24 * time.Hour

// warm is how long a host is followed before examples of it are drawn.
const warm = 6 * time.Hour

// example is one drawn instant, before it is known what came of it.
type example struct {
	host   int
	at     time.Time
	weight float64
	sound  bool
	x      []float64
}

// Collect draws examples from a simulated fleet. step, if not nil, is called after each sample.
func Collect(ctx context.Context, c Training, step func()) (failure.Examples, error) {
	if c.FaultRate == 0 {
		c.FaultRate = 1
	}
	f, err := simulator.New(simulator.Config{Hosts: c.Hosts, Seed: c.Seed, FaultRate: c.FaultRate})
	if err != nil {
		return failure.Examples{}, err
	}
	r := rand.New(rand.NewPCG(c.Seed, 0x5eed))
	hosts := f.Hosts()
	number := make(map[fleet.HostID]int, len(hosts))
	follow := make([]*feature.Extractor, len(hosts))
	operated := make([]time.Time, len(hosts))
	for i, h := range hosts {
		number[h.ID], follow[i] = i, feature.New()
	}
	steps, interval := c.steps(f.Interval()), f.Interval()
	sound := float64(c.Sound) / float64(steps*len(hosts))
	act := interval.Seconds() / operatedEvery.Seconds()
	var drawn []example
	var samples []fleet.Sample
	for n := range steps {
		if ctx.Err() != nil {
			return failure.Examples{}, ctx.Err()
		}
		samples = f.Step(samples)
		for i := range samples {
			s := &samples[i]
			h := number[s.Host]
			follow[h].Observe(s)
			p, faults := sound, 0
			if time.Duration(n)*interval < warm {
				continue
			}
			faults, age, left := f.Stage(h)
			if faults > 0 {
				// Dense where a fault begins and where it ends: on each doubling of the time as many.
				p = min(1, 8*interval.Seconds()/max(age.Seconds(), 60)+8*interval.Seconds()/max(left.Seconds(), 60))
			} else if s.Time.Sub(operated[h]) < 2*time.Hour {
				p = max(p, 0.05)
			}
			if r.Float64() < p {
				e := example{host: h, at: s.Time, weight: 1 / p, sound: faults == 0, x: make([]float64, feature.Size)}
				follow[h].Vector(e.x)
				drawn = append(drawn, e)
			}
		}
		if c.Operated {
			for h, host := range hosts {
				if r.Float64() >= act {
					continue
				}
				phase := []fleet.Phase{fleet.PhaseRecycle, fleet.PhaseRecycle, fleet.PhaseReset, fleet.PhaseMigrate}[r.IntN(4)]
				if _, err := f.Apply(host.ID, phase, nil); err != nil {
					return failure.Examples{}, err
				}
				follow[h].Recovered()
				operated[h] = f.Now()
			}
		}
		if step != nil {
			step()
		}
	}
	return label(drawn, hosts, f.History(), f.Now(), c.FaultRate), nil
}

// incident is a fault as it concerns the VMs.
type incident struct {
	start, effect, end time.Time // effect and end are zero where there is none
	// seen is half way from the start to when the metrics are sure to show it.
	seen time.Time
	// fails is when the host fails its VMs, if nobody acts; zero where it never does.
	fails     time.Time
	signature fleet.Signature
	kind      simulator.Kind
	crashed   bool
}

// incidents turns the truth into what happened on each host, by its number.
func incidents(hosts []fleet.Host, history []simulator.Fault) [][]incident {
	number := make(map[fleet.HostID]int, len(hosts))
	for i, h := range hosts {
		number[h.ID] = i
	}
	out := make([][]incident, len(hosts))
	for _, x := range history {
		if x.Benign {
			continue
		}
		e := incident{start: x.Start, effect: x.Effect, seen: x.Start.Add(x.Effect.Sub(x.Start) / 2), end: x.End, signature: x.Signature, kind: x.Kind, crashed: x.Ending == simulator.Crashed}
		switch {
		case x.Ending == simulator.Crashed:
			e.fails = x.End
		case x.Kind == simulator.NoisyNeighbour:
			e.fails = x.Effect // it takes from the VMs from the first moment on
		case x.Fatal && x.Ending != simulator.Swept:
			e.fails = x.Due
		}
		out[number[x.Host]] = append(out[number[x.Host]], e)
	}
	return out
}

// label says what came of each drawn instant.
func label(drawn []example, hosts []fleet.Host, history []simulator.Fault, end time.Time, rate float64) failure.Examples {
	all := incidents(hosts, history)
	out := failure.Examples{Features: feature.Names()}
	for _, e := range drawn {
		next, signature := outlook(all[e.host], e.at)
		// With so many faults there are as many times fewer sound instants as there should be, but for
		// those before a fault.
		if e.sound && next > 86400 {
			e.weight *= rate
		}
		out.X = append(out.X, e.x)
		out.Failure = append(out.Failure, next)
		out.Known = append(out.Known, end.Sub(e.at).Seconds())
		out.Signature = append(out.Signature, string(signature))
		out.Host = append(out.Host, string(hosts[e.host].ID))
		out.Weight = append(out.Weight, e.weight)
	}
	return out
}

// outlook says in how many seconds a host fails next, and which fault shows most at an instant.
func outlook(all []incident, at time.Time) (float64, fleet.Signature) {
	next, signature, nearest := math.Inf(1), fleet.Signature(failure.Sound), math.Inf(1)
	for _, x := range all {
		over := !x.end.IsZero() && !at.Before(x.end)
		if !x.fails.IsZero() && !over {
			left := x.fails.Sub(at).Seconds()
			if x.start.After(at) && x.kind == simulator.NoisyNeighbour || left > 0 || x.kind == simulator.NoisyNeighbour || x.crashed {
				next = min(next, max(left, 0))
			} else { // overdue: the fault takes its time under less load
				next = min(next, 60)
			}
		}
		if x.effect.IsZero() || over || at.Before(x.seen) {
			continue
		}
		left := 365 * 86400.0
		if !x.fails.IsZero() {
			left = max(x.fails.Sub(at).Seconds(), 0)
		}
		if left < nearest {
			nearest, signature = left, x.signature
		}
	}
	return next, signature
}

// kindsOf lists the signatures that simulated faults have, in order.
func kindsOf() []fleet.Signature {
	var out []fleet.Signature
	for _, k := range simulator.Kinds() {
		if !slices.Contains(out, k.Signature()) {
			out = append(out, k.Signature())
		}
	}
	return out
}
