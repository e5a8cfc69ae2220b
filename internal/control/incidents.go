package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// openIncidents opens the table of labels.
func (p *Plane) openIncidents(ctx context.Context) (err error) {
	p.incidents, err = bus.OpenTable(ctx, p.bus, "INCIDENTS", func(id string, i fleet.Incident) { p.events.emit("incident", id, i) })
	return err
}

// Incidents lists the labels, newest first.
func (p *Plane) Incidents(context.Context) ([]fleet.Incident, error) {
	all := p.incidents.All()
	slices.SortFunc(all, func(a, b fleet.Incident) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// labels are those from which models learn.
func (p *Plane) labels() []fleet.Incident {
	return slices.DeleteFunc(p.incidents.All(), func(i fleet.Incident) bool { return i.Simulated })
}

// AddIncident takes the word of a person.
func (p *Plane) AddIncident(ctx context.Context, i fleet.Incident, who string) (fleet.Incident, error) {
	h, ok := p.hosts.find(i.Host)
	if !ok {
		return i, api.ErrNotFound.Errorf("there is no host %q; /api/v1/hosts lists those that are known", i.Host)
	}
	i.ID, i.Simulated = ulid.Make().String(), h.Simulated
	return p.label(ctx, i, who)
}

// label stores an incident once, and writes it down.
func (p *Plane) label(ctx context.Context, i fleet.Incident, who string) (fleet.Incident, error) {
	i.By, i.Created = who, time.Now().UTC()
	if _, err := p.incidents.Create(ctx, i.ID, i); err != nil {
		return i, problem(err)
	}
	return i, problem(p.audit.Append(ctx, who, "incident", i.ID, map[string]any{
		"host": i.Host, "from": i.From, "to": i.To, "failed": i.Failed, "signature": i.Signature, "source": i.Source, "note": i.Note,
	}))
}

// labelled is label where nobody waits for the answer; that it is known already is no error.
func (p *Plane) labelled(ctx context.Context, i fleet.Incident, who string) {
	if _, err := p.label(ctx, i, who); err != nil && !errors.Is(err, bus.ErrConflict) {
		p.log.Error("an incident could not be stored", "host", i.Host, "source", i.Source, "err", err)
	}
}

// labelOutcome learns from an execution that a recommendation led to: what was predicted was
// there, and whether the host failed its VMs.
func (p *Plane) labelOutcome(ctx context.Context, e fleet.Execution) {
	if e.Recommendation == "" || e.Simulated || e.DryRun || e.State == fleet.ExecutionCancelled {
		return
	}
	rec, _, err := p.recommender.table.Load(ctx, e.Recommendation)
	if err != nil {
		return
	}
	i := fleet.Incident{
		ID: "execution-" + e.ID, Host: e.Host, From: rec.Prediction.Time, To: e.Ended, Signature: rec.Prediction.Signature,
		Failed: e.State == fleet.ExecutionDegraded, Source: fleet.IncidentExecution, Execution: e.ID, Note: string(e.State) + ": " + e.Outcome,
	}
	if i.Failed {
		i.Seen, i.From = rec.Prediction.Time, e.Created
	}
	if i.To.Before(i.From) {
		i.To = i.From
	}
	p.labelled(ctx, i, "execution:"+e.ID)
}

// resetGrace is how long after a reset of ours a new boot is still its.
const resetGrace = 15 * time.Minute

// rebooted learns from a new boot that no execution brought about: the host crashed between
// its last sample and the first of the new boot, or somebody restarted it.
func (p *Plane) rebooted(ctx context.Context, last time.Time, s *fleet.Sample) {
	if s.Simulated {
		return
	}
	executions, err := p.coordinator.Executions(ctx)
	if err != nil {
		p.log.Warn("a new boot cannot be told from a reset", "host", s.Host, "err", err)
		return
	}
	for _, e := range executions {
		resets := e.State == fleet.ExecutionResetting || slices.ContainsFunc(e.Steps, func(s fleet.Step) bool { return s.Phase == fleet.PhaseReset })
		if e.Host == s.Host && resets && e.Created.Before(s.Time) && (!e.State.Final() || s.Time.Sub(e.Ended) < resetGrace) {
			return
		}
	}
	p.recommender.crashed(s.Host, s.Time)
	sum := sha256.Sum256([]byte(s.Boot))
	p.labelled(ctx, fleet.Incident{
		ID: fmt.Sprintf("crash-%s-%s", s.Host, hex.EncodeToString(sum[:6])), Host: s.Host, From: last, To: s.Time, Failed: true,
		Signature: fleet.SignatureUnknown, Source: fleet.IncidentCrash, Note: "the host has another boot than before, and nobody had asked for a reset",
	}, "agent:"+string(s.Host))
}
