package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Run looks after the executions until ctx ends: those that a crash left, deadlines,
// leases, and what could not be sent. It returns nil.
func (c *Coordinator) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.cfg.Tick)
	defer ticker.Stop()
	var complained time.Time
	for {
		if err := c.Tick(ctx); err != nil && ctx.Err() == nil && time.Since(complained) > 10*time.Second {
			complained = time.Now()
			c.cfg.Log.Error("cannot look after the executions, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Tick looks after every execution once. Run calls it.
func (c *Coordinator) Tick(ctx context.Context) error {
	if err := c.load(ctx, false); err != nil {
		return err
	}
	c.mu.Lock()
	var todo []Stored
	for id, s := range c.records {
		if _, busy := c.live[id]; busy || !s.State.Final() || s.Unaudited {
			todo = append(todo, s)
		}
	}
	c.mu.Unlock()
	slices.SortFunc(todo, func(a, b Stored) int { return a.Created.Compare(b.Created) })
	errs := make([]error, len(todo))
	var wg sync.WaitGroup
	for i, s := range todo {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			defer c.lock(s.Host)()
			if err := c.look(ctx, s.ID); err != nil {
				errs[i] = fmt.Errorf("host %s: execution %s: %w", s.Host, s.ID, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// look is Tick for one execution. The host is locked.
func (c *Coordinator) look(ctx context.Context, id string) error {
	s, _ := c.find(id)
	l := c.of(id)
	if s.State.Final() {
		if s.Unaudited && !l.resumed && len(l.unaudited) == 0 { // a crash came between its end and the audit trail
			l.resumed = true
			l.unaudited = append(l.unaudited, auditEntry{"coordinator", "execution." + string(s.State), s.Execution})
		}
		return c.tend(ctx, id)
	}
	if !l.resumed {
		l.resumed = true
		l.unaudited = append(l.unaudited, auditEntry{"coordinator", "execution.resumed", s.Execution})
	}
	var unrenewed error // which keeps from beginning, and not from ending
	if now := c.now(); now.Sub(l.renewed) >= c.cfg.Renew {
		if unrenewed = c.renew(ctx, s); unrenewed == nil {
			l.renewed = now
		}
		if s, _ = c.find(id); s.State.Final() {
			return errors.Join(unrenewed, c.tend(ctx, id))
		}
	}
	if s.State == fleet.ExecutionPending && (unrenewed == nil || c.now().After(s.Deadline)) {
		return errors.Join(unrenewed, c.advance(ctx, id))
	}
	if c.now().After(s.Deadline.Add(c.cfg.Grace)) {
		err := c.apply(ctx, id, "coordinator", func(s Stored) Event {
			if !c.now().After(s.Deadline.Add(c.cfg.Grace)) {
				return Event{}
			}
			return Event{Kind: EventDeadline, Detail: fmt.Sprintf("the phase was to end by %s", s.Deadline.Format(time.RFC3339))}
		})
		if err != nil {
			return errors.Join(unrenewed, err)
		}
	}
	return errors.Join(unrenewed, c.tend(ctx, id))
}

// renew keeps the lease, takes it anew where it ended, and gives the execution up
// where somebody else has it.
func (c *Coordinator) renew(ctx context.Context, s Stored) error {
	err := c.cfg.Leases.Renew(ctx, s.Host, s.ID, s.Token)
	if err == nil || !errors.Is(err, ErrLeaseLost) {
		return err
	}
	token, err := c.cfg.Leases.Acquire(ctx, s.Host, s.ID)
	if errors.Is(err, ErrBusy) {
		return c.apply(ctx, s.ID, "coordinator", func(Stored) Event { return Event{Kind: EventFenced} })
	}
	if err != nil {
		return fmt.Errorf("take the lease again: %w", err)
	}
	c.cfg.Log.Warn("took the host's lease again", "host", s.Host, "execution", s.ID, "token", token)
	for range 10 {
		rec := s.Record
		rec.Token, rec.Command.Token = token, token
		revision, err := c.cfg.Store.Update(ctx, rec, s.Revision)
		if err == nil {
			c.keep(Stored{rec, revision})
			c.of(s.ID).sent = time.Time{}
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("store the new token: %w", err)
		}
		if err := c.load(ctx, true); err != nil {
			return err
		}
		if s, _ = c.find(s.ID); s.State.Final() {
			return nil
		}
	}
	return fmt.Errorf("store the new token: %w, ten times in a row", ErrConflict)
}
