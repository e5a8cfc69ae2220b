package trial

import (
	"context"
	"fmt"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/failure"
)

// TrainingFleet is what a model for trials is trained on: a fleet with many faults on which
// somebody acts now and then.
func TrainingFleet(seed uint64) Training {
	return Training{Fleet: Fleet{Hosts: 300, Days: 20, Seed: seed, FaultRate: 6}, Operated: true, Sound: 40_000}
}

// School is the fleet that policies keep for a month before they are judged: a few hosts with as many faults as 500
// hosts have in a month, of a seed of its own.
func School(seed uint64) Fleet {
	return Fleet{Hosts: 125, Days: 30, Seed: seed ^ 0x5c00_15c0_015c_0015, FaultRate: 4}
}

// Horizons are those of a model for trials. Policies act on the last, since a fault that will last
// for days is best dealt with at its begin.
func Horizons() []time.Duration { return append(failure.Horizons(), 7*24*time.Hour) }

// Learn trains a failure model on a simulated fleet. step, if not nil, is called after each sample of the
// fleet, and trained after each part of the model.
func Learn(ctx context.Context, c Training, step func(), trained func(done, of int)) (*failure.Model, error) {
	examples, err := Collect(ctx, c, step)
	if err != nil {
		return nil, err
	}
	m, err := failure.Train(ctx, examples, failure.Config{Horizons: Horizons(), Seed: c.Seed, Progress: trained})
	if err != nil {
		return nil, fmt.Errorf("training on a simulated fleet of %d hosts and %g days: %w", c.Hosts, c.Days, err)
	}
	if n := len(m.Horizons()); n != len(Horizons()) {
		return nil, fmt.Errorf("a simulated fleet of %d hosts and %g days teaches %d of the horizons %v: take more hosts or days", c.Hosts, c.Days, n, Horizons())
	}
	return m, nil
}
