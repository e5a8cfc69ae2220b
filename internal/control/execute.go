package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// store keeps executions in a table of the bus.
type store struct{ table *bus.Table[executor.Record] }

func (s store) Create(ctx context.Context, r executor.Record) (uint64, error) {
	revision, err := s.table.Create(ctx, r.ID, r)
	return revision, conflict(err)
}

func (s store) Update(ctx context.Context, r executor.Record, revision uint64) (uint64, error) {
	revision, err := s.table.Update(ctx, r.ID, r, revision)
	return revision, conflict(err)
}

func (s store) List(context.Context) ([]executor.Stored, error) {
	var out []executor.Stored
	s.table.Each(func(_ string, r executor.Record, revision uint64) {
		out = append(out, executor.Stored{Record: r, Revision: revision})
	})
	return out, nil
}

func conflict(err error) error {
	if errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("%w: %w", executor.ErrConflict, err)
	}
	return err
}

// leases gives each host's lease to one execution at a time.
type leases struct {
	bus *bus.Leases

	mu   sync.Mutex
	held map[fleet.HostID]*bus.Lease
}

func (l *leases) Acquire(ctx context.Context, host fleet.HostID, owner string) (uint64, error) {
	lease, err := l.bus.Acquire(ctx, string(host), owner)
	if errors.Is(err, bus.ErrConflict) {
		return 0, fmt.Errorf("%w: %w", executor.ErrBusy, err)
	}
	if err != nil {
		return 0, err
	}
	l.keep(host, lease)
	return lease.Token, nil
}

func (l *leases) Renew(ctx context.Context, host fleet.HostID, owner string, token uint64) error {
	lease, err := l.lease(ctx, host, owner, token)
	if err == nil {
		err = l.bus.Renew(ctx, lease, owner)
	}
	if errors.Is(err, bus.ErrConflict) {
		// Our own renewal may have been stored though its answer did not come.
		l.keep(host, nil)
		if lease, err = l.lease(ctx, host, owner, token); err == nil {
			err = l.bus.Renew(ctx, lease, owner)
		}
	}
	if errors.Is(err, bus.ErrConflict) || errors.Is(err, bus.ErrNotFound) {
		l.keep(host, nil)
		return fmt.Errorf("%w: %w", executor.ErrLeaseLost, err)
	}
	return err
}

func (l *leases) Release(ctx context.Context, host fleet.HostID, owner string, token uint64) error {
	lease, err := l.lease(ctx, host, owner, token)
	if errors.Is(err, bus.ErrConflict) || errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	l.keep(host, nil)
	return l.bus.Release(ctx, lease)
}

// lease is the one that this process holds, or held before it restarted.
func (l *leases) lease(ctx context.Context, host fleet.HostID, owner string, token uint64) (*bus.Lease, error) {
	l.mu.Lock()
	lease := l.held[host]
	l.mu.Unlock()
	if lease != nil && lease.Token == token {
		return lease, nil
	}
	lease, err := l.bus.Adopt(ctx, string(host), owner, token)
	if err == nil {
		l.keep(host, lease)
	}
	return lease, err
}

func (l *leases) keep(host fleet.HostID, lease *bus.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lease == nil {
		delete(l.held, host)
		return
	}
	l.held[host] = lease
}

// releaseOrphans gives up the leases of executions that are not under way: this process
// ended just before such a one was stored, or just after its end was. Their hosts need not
// wait until the time of the lease is over. Where none is left, tokens begin anew above all before: agents refuse
// what is older, and a data directory may be new, or a backup. No other control plane may be running.
func (l *leases) releaseOrphans(ctx context.Context, underway func(execution string) bool) error {
	holders, err := l.bus.Holders(ctx)
	if err != nil {
		return err
	}
	for host, owner := range holders {
		if underway(owner) {
			continue
		}
		lease, err := l.bus.Adopt(ctx, host, owner, 0)
		if err == nil {
			err = l.bus.Release(ctx, lease)
		}
		if err != nil && !errors.Is(err, bus.ErrNotFound) && !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
	if holders, err = l.bus.Holders(ctx); err != nil || len(holders) > 0 {
		return err
	}
	return l.bus.Outgrow(ctx, time.Now())
}

// execute begins the execution of an approved recommendation.
func execute(c *executor.Coordinator) func(context.Context, fleet.Recommendation) (fleet.Execution, error) {
	return func(ctx context.Context, rec fleet.Recommendation) (fleet.Execution, error) {
		return c.Submit(ctx, executor.Request{
			Host: rec.Host, Action: rec.Action, Reason: rec.Reason, Recommendation: rec.ID, RequestedBy: rec.DecidedBy,
			EvidenceAt: rec.Prediction.Time, Prediction: &rec.Prediction,
			Approval: consent(rec.DecidedBy, rec.DecidedAt, rec.Action),
		})
	}
}

// consent is what an approval allows: the action itself and nothing further.
func consent(by string, at time.Time, action fleet.Action) *guard.Approval {
	return &guard.Approval{By: by, At: at, Actions: []fleet.Action{action}}
}
