package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/executor/diagnose"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// The methods below make a Plane the api's Fleet.
var _ api.Fleet = (*Plane)(nil)

// Hosts returns every host that ever announced itself, by name.
func (p *Plane) Hosts(context.Context) ([]api.HostView, error) {
	out := []api.HostView{}
	for _, h := range p.hosts.all() {
		out = append(out, p.view(h))
	}
	return out, nil
}

// Host returns one host.
func (p *Plane) Host(_ context.Context, id fleet.HostID) (api.HostView, error) {
	h, ok := p.hosts.find(id)
	if !ok {
		return api.HostView{}, api.ErrNotFound.Errorf("there is no host %q; /api/v1/hosts lists those that are known", id)
	}
	return p.view(h), nil
}

// RemoveHost takes a host out of the fleet that is there no more, with its credentials and what was
// learned of it. What was decided about it stays in the audit trail.
func (p *Plane) RemoveHost(ctx context.Context, id fleet.HostID, who string) (api.HostView, error) {
	h, err := p.Host(ctx, id)
	if err != nil {
		return h, err
	}
	if ago, limit := time.Since(h.LastSeen), p.policies.current().EvidenceMaxAge.D(); ago < limit {
		return h, api.ErrConflict.Errorf("host %s was heard of %s ago and would join again: stop its agent, and try again %s later", id, ago.Round(time.Second), limit)
	}
	executions, err := p.coordinator.Executions(ctx)
	if err != nil {
		return h, problem(err)
	}
	for _, e := range executions {
		if e.Host == id && !e.State.Final() {
			return h, api.ErrConflict.Errorf("the execution %s is under way on host %s: wait for its end, or cancel it", e.ID, id)
		}
	}
	if err := p.audit.Append(ctx, who, "host.removed", string(id), nil); err != nil {
		return h, problem(err)
	}
	// The inventory comes last, so that what fails before can be tried again.
	for _, f := range []func() error{
		func() error { return p.tokens.revoke(id) },
		func() error { return p.cordons.table.Delete(ctx, string(id)) },
		func() error { p.predictions.remove(id); return p.models.remove(id) },
		func() error { return p.hosts.remove(ctx, id) },
	} {
		if err := f(); err != nil {
			return h, problem(fmt.Errorf("remove host %s: %w", id, err))
		}
	}
	p.log.Info("a host was removed", "host", id, "by", who)
	p.events.emit("host.removed", string(id), h)
	return h, nil
}

func (p *Plane) view(h fleet.Host) api.HostView {
	v := api.HostView{Host: h}
	if prediction, _, ok := p.predictions.find(h.ID, p.policies.current().EvidenceMaxAge.D()); ok {
		v.Prediction = &prediction
	}
	if cordon, ok := p.cordons.find(h.ID); ok {
		v.Cordon = &cordon
	}
	return v
}

// Series lists the series of a host's newest sample.
func (p *Plane) Series(_ context.Context, id fleet.HostID) ([]string, error) {
	_, sample, ok := p.predictions.find(id, 0)
	if !ok {
		return []string{}, nil
	}
	return sample.Schema.Names(), nil
}

// Telemetry reads the history of a series.
func (p *Plane) Telemetry(ctx context.Context, host fleet.HostID, series string, from, to time.Time, step time.Duration) ([]api.Point, error) {
	out := []api.Point{}
	for row, err := range p.history.Query(ctx, host, []string{series}, from, to, step) {
		if err != nil {
			return nil, api.ErrNotReady.Errorf("%w", err)
		}
		if row.Series == series {
			out = append(out, api.Point{Time: row.Time, Value: row.Value})
		}
	}
	slices.SortStableFunc(out, func(a, b api.Point) int { return a.Time.Compare(b.Time) })
	return out, nil
}

// Recommendations returns all of them, newest first.
func (p *Plane) Recommendations(context.Context) ([]fleet.Recommendation, error) {
	all := p.recommender.table.All()
	slices.Reverse(all) // the IDs are ULIDs, which sort by time
	return all, nil
}

// Approve lets a recommendation be carried out, and begins.
func (p *Plane) Approve(ctx context.Context, id, who, note string) (fleet.Recommendation, error) {
	rec, err := p.recommender.approve(ctx, id, who, note)
	return rec, problem(err)
}

// Reject says no to a recommendation.
func (p *Plane) Reject(ctx context.Context, id, who, note string) (fleet.Recommendation, error) {
	rec, err := p.recommender.reject(ctx, id, who, note)
	return rec, problem(err)
}

// problem turns the errors of other packages into the api's.
func problem(err error) error {
	var refusal *guard.Refusal
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	var kind api.Kind
	switch {
	case is(errExpired):
		kind = api.ErrExpired
	case is(errDecided, executor.ErrBusy, executor.ErrTooLate, bus.ErrConflict, registry.ErrState, registry.ErrConflict, jobs.ErrEnded, jobs.ErrFull), errors.As(err, &refusal):
		kind = api.ErrConflict
	case is(bus.ErrNotFound, executor.ErrNotFound, registry.ErrNotFound, jobs.ErrNotFound):
		kind = api.ErrNotFound
	case is(executor.ErrInvalid, registry.ErrFile):
		kind = api.ErrInvalid
	case is(context.DeadlineExceeded, bus.ErrFull, bus.ErrUnwritable):
		kind = api.ErrNotReady
	default:
		return err
	}
	return kind.Errorf("%w", err)
}

// Executions returns all of them, newest first.
func (p *Plane) Executions(ctx context.Context) ([]fleet.Execution, error) {
	all, err := p.coordinator.Executions(ctx)
	slices.Reverse(all)
	return all, problem(err)
}

// Execute asks for an action that no recommendation proposed: the person who asks
// is both the witness and the approval.
func (p *Plane) Execute(ctx context.Context, host fleet.HostID, action fleet.Action, reason, who string, dryRun bool) (fleet.Execution, error) {
	if _, err := p.Host(ctx, host); err != nil {
		return fleet.Execution{}, err
	}
	now := time.Now().UTC()
	e, err := p.coordinator.Submit(ctx, executor.Request{
		Host: host, Action: action, Reason: reason, RequestedBy: who, EvidenceAt: now, Approval: consent(who, now, action), DryRun: dryRun,
	})
	return e, problem(err)
}

// Cancel stops an execution, at once or as soon as its agent can.
func (p *Plane) Cancel(ctx context.Context, id, who string) (fleet.Execution, error) {
	e, err := p.coordinator.Cancel(ctx, id, who)
	return e, problem(err)
}

// Bundle opens the diagnostics of an execution.
func (p *Plane) Bundle(ctx context.Context, e fleet.Execution) (io.ReadCloser, error) {
	r, err := p.bundles.Open(ctx, e.Host, e.Bundle)
	return r, problem(err)
}

// RootCause reads what the diagnostics of an execution conclude.
func (p *Plane) RootCause(ctx context.Context, e fleet.Execution) (api.RootCause, string, error) {
	out := api.RootCause{Simulated: e.Simulated, Suspects: []api.Suspect{}}
	r, err := p.Bundle(ctx, e)
	if err != nil {
		return out, "", err
	}
	defer r.Close()
	cause, text, err := diagnose.ReadRootCause(r)
	if errors.Is(err, diagnose.ErrNoConclusion) {
		return out, "", api.ErrNotFound.Errorf("execution %s: %w", e.ID, err)
	}
	if err != nil {
		return out, "", fmt.Errorf("execution %s: %w", e.ID, err)
	}
	// The archive speaks for the host that sent it, whatever is in it.
	out.Host, out.Execution = e.Host, e.ID
	out.From, out.To, out.Lines, out.BaselineLines = cause.From, cause.To, cause.Lines, cause.BaselineLines
	for _, s := range cause.Suspects {
		suspect := api.Suspect{
			Rule: s.Rule, Class: s.Class, Title: s.Title, Score: s.Score, Count: s.Count, Culprits: append([]string{}, s.Culprits...),
			First: s.First, Last: s.Last, Advice: s.Advice, Evidence: []api.Evidence{},
		}
		for _, v := range s.Evidence {
			suspect.Evidence = append(suspect.Evidence, api.Evidence{File: v.File, Line: v.Line, Time: v.Time, Text: v.Text})
		}
		out.Suspects = append(out.Suspects, suspect)
	}
	return out, text, nil
}

// NotReady says which parts do not work now, and why. Without InfluxDB all goes
// on: samples wait on the bus.
func (p *Plane) NotReady(ctx context.Context) (essential, degraded map[string]string) {
	essential, degraded = make(map[string]string), make(map[string]string)
	if !p.bus.Conn.IsConnected() {
		essential["bus"] = "not connected to NATS"
	} else if why := p.bus.Leaderless(ctx); why != "" {
		essential["bus"] = why
	}
	if why := p.bus.Full(); why != "" {
		degraded["disk"] = why
	}
	if why := p.bus.Unwritable(); why != "" {
		degraded["bus"] = why
	}
	if why := expiring(p.cfg, time.Now()); why != "" {
		degraded["certificates"] = why
	}
	if why := p.policies.degraded(); why != "" {
		degraded["policy"] = why
	}
	if why := p.roster.troubles(); why != "" {
		degraded["models"] = why
	}
	if p.ingest != nil {
		if err := p.ingest.err(); err != nil {
			degraded["influx"] = err.Error()
		}
	}
	return essential, degraded
}

// Follow returns events until stop is called.
func (p *Plane) Follow() (<-chan api.Event, func()) { return p.events.follow() }
