package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// recommender keeps at most one open recommendation for each host, true to the
// newest prediction, and carries its state from pending to final.
type recommender struct {
	table *bus.Table[fleet.Recommendation]
	audit *bus.Audit
	// policy is the one in force.
	policy func() config.Policy
	log    *slog.Logger
	// execute starts the execution of an approved recommendation.
	execute func(context.Context, fleet.Recommendation) (fleet.Execution, error)

	mu   sync.Mutex
	open map[fleet.HostID]string // host to its open recommendation
	// standing says for how long that one stands; of one from before a restart it is made anew.
	standing map[fleet.HostID]*predictor.Standing
	// quiet says until when a host is not recommended anything: after a person
	// said no, and after an execution.
	quiet map[fleet.HostID]time.Time
	tried map[fleet.HostID]*predictor.Tried
	// lessons is what was learned of the actions; nil where nothing is.
	lessons *lessons
	// failed are attempts that the fault came back after, to be learned from.
	failed []predictor.Attempt
	// luck is drawn once for each recommendation of a host, so that a decision that is
	// made again with every sample does not change by chance alone.
	luck map[fleet.HostID]uint64
}

// triedFor is how long an action counts as tried, see [predictor.Tried].
const triedFor = time.Hour

var errNotOpen = errors.New("the recommendation is not open any more")

func newRecommender(table *bus.Table[fleet.Recommendation], audit *bus.Audit, policy func() config.Policy, log *slog.Logger) *recommender {
	r := &recommender{table: table, audit: audit, policy: policy, log: log, open: make(map[fleet.HostID]string), standing: make(map[fleet.HostID]*predictor.Standing), quiet: make(map[fleet.HostID]time.Time), tried: make(map[fleet.HostID]*predictor.Tried), luck: make(map[fleet.HostID]uint64)}
	for _, rec := range table.All() {
		if !rec.State.Final() {
			r.open[rec.Host] = rec.ID
		}
	}
	return r
}

// carriedOut notes what an execution that ended has tried.
func (r *recommender) carriedOut(ctx context.Context, rec fleet.Recommendation, e fleet.Execution) {
	now := attempts(rec, e)
	r.mu.Lock()
	for i, a := range now {
		now[i] = r.triedOn(rec.Host).Add(a)
	}
	r.mu.Unlock()
	for _, a := range now {
		if a.Known {
			r.learn(ctx, a, false)
		}
	}
}

// triedOn is what was tried on a host. r.mu is held.
func (r *recommender) triedOn(host fleet.HostID) *predictor.Tried {
	t := r.tried[host]
	if t == nil {
		t = predictor.NewTried(triedFor)
		r.tried[host] = t
	}
	return t
}

// handedOver notes that an execution ended with a person being called.
func (r *recommender) handedOver(rec fleet.Recommendation, e fleet.Execution) {
	if (e.State != fleet.ExecutionHandedOver && e.State != fleet.ExecutionDegraded) || time.Since(e.Ended) > triedFor {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.triedOn(rec.Host).Add(predictor.Attempt{Action: fleet.ActionHandOver, Signature: rec.Prediction.Signature, Culprit: rec.Prediction.Culprit, At: e.Ended, Known: true})
}

// crashed notes that a host crashed.
func (r *recommender) crashed(host fleet.HostID, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, r.triedOn(host).Crashed(at)...)
}

// consider takes a new prediction and the host it is of.
func (r *recommender) consider(ctx context.Context, p fleet.Prediction, h fleet.Host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.triedOn(h.ID).Observe(p.Time, p.State == fleet.PredictionScoring && !p.Anomalous)
	h.Actions = permitted(r.policy(), h.Actions)
	d := r.propose(p, h)
	if id := r.open[h.ID]; id != "" {
		r.reconsider(ctx, id, p, d)
		if r.open[h.ID] != "" {
			return
		}
		d = r.propose(p, h)
	}
	if d.Action == fleet.ActionNone || p.Time.Before(r.quiet[h.ID]) {
		return
	}
	now, policy := time.Now().UTC(), r.policy()
	rec := fleet.Recommendation{
		ID: ulid.Make().String(), Host: h.ID, Time: now, Expires: now.Add(policy.Expires(d.Action)),
		Simulated: h.Simulated, DryRun: h.DryRun || policy.Mode == "dry-run", State: fleet.RecommendationPending,
		Action: d.Action, Prediction: p, CostVMSeconds: d.CostVMSeconds, Alternatives: d.Alternatives,
		Reason: d.Reason, Propensity: d.Propensity, Policy: d.Policy,
	}
	if rec.DryRun {
		rec.State = fleet.RecommendationDryRun
	}
	if _, err := r.table.Create(ctx, rec.ID, rec); err != nil {
		r.log.Error("a recommendation could not be stored", "host", h.ID, "err", err)
		return
	}
	r.open[h.ID] = rec.ID
	r.failed = append(r.failed, r.triedOn(h.ID).Back(p.Signature, p.Culprit, p.Time)...)
	r.record(ctx, "policy:"+rec.Policy, "recommend", rec)
	r.log.Info("recommendation", "host", h.ID, "action", rec.Action, "signature", p.Signature, "culprit", p.Culprit, "dry_run", rec.DryRun, "id", rec.ID)
}

// propose is what the policy would do about a host now. r.mu is held.
func (r *recommender) propose(p fleet.Prediction, h fleet.Host) predictor.Decision {
	at, times := r.triedOn(h.ID).Against(p.Signature, p.Culprit, time.Now())
	luck, ok := r.luck[h.ID]
	if !ok {
		luck = rand.Uint64()
		r.luck[h.ID] = luck
	}
	return r.policyFor(r.policy(), h.Simulated).Decide(situation(p, h, at, times), rand.New(rand.NewPCG(luck, 0)))
}

// permitted leaves out the actions that the policy rules out, so that none of them is
// recommended.
func permitted(policy config.Policy, actions []fleet.Action) []fleet.Action {
	return slices.DeleteFunc(slices.Clone(actions), func(a fleet.Action) bool { return policy.Approval(a) == "never" })
}

// reconsider closes an open recommendation that the evidence no longer carries. r.mu is held.
func (r *recommender) reconsider(ctx context.Context, id string, p fleet.Prediction, d predictor.Decision) {
	rec, _, ok := r.table.Find(id)
	if !ok || rec.State != fleet.RecommendationPending && rec.State != fleet.RecommendationDryRun {
		return
	}
	standing := r.standing[rec.Host]
	if standing == nil {
		standing = predictor.Stand(rec.Action, rec.Prediction)
		r.standing[rec.Host] = standing
	}
	note := standing.Over(p, d)
	if note == "" {
		return
	}
	r.close(ctx, id, fleet.RecommendationSuperseded, "policy:"+predictor.PolicyName, note)
}

// forget is done with the open recommendation of a host. r.mu is held.
func (r *recommender) forget(host fleet.HostID) {
	delete(r.open, host)
	delete(r.standing, host)
	delete(r.luck, host)
}

// close ends a recommendation unless it went on meanwhile. r.mu is held.
func (r *recommender) close(ctx context.Context, id string, to fleet.RecommendationState, who, note string) {
	rec, err := r.table.Change(ctx, id, func(rec *fleet.Recommendation) error {
		if rec.State != fleet.RecommendationPending && rec.State != fleet.RecommendationDryRun {
			return errNotOpen
		}
		rec.State, rec.Note, rec.DecidedBy, rec.DecidedAt = to, note, who, time.Now().UTC()
		return nil
	})
	if errors.Is(err, errNotOpen) {
		return
	}
	if err != nil {
		r.log.Error("a recommendation could not be closed", "id", id, "err", err)
		return
	}
	r.forget(rec.Host)
	r.record(ctx, who, string(to), rec)
}

// sweep expires what nobody decided, and carries out what the configuration
// approves by itself.
func (r *recommender) sweep(ctx context.Context, now time.Time) {
	policy := r.policy()
	r.outcomes(ctx, now)
	r.mu.Lock()
	var approve []string
	for _, id := range r.open {
		rec, _, ok := r.table.Find(id)
		switch {
		case !ok:
		case (rec.State == fleet.RecommendationPending || rec.State == fleet.RecommendationDryRun) && now.After(rec.Expires):
			r.close(ctx, id, fleet.RecommendationExpired, "clock", "nobody decided in time")
		case r.standing[rec.Host].Calm(): // it may be over
		case rec.State == fleet.RecommendationPending && (policy.Approval(rec.Action) == "automatic" || rec.Simulated && now.Sub(rec.Time) > simulatedApproval):
			approve = append(approve, id)
		}
	}
	r.mu.Unlock()
	for _, id := range approve {
		who := "policy:automatic"
		if _, err := r.approve(ctx, id, who, ""); err != nil {
			r.log.Warn("an automatic approval was not carried out", "id", id, "err", err)
		}
	}
}

// simulatedApproval is how long a recommendation for a simulated host can be
// seen pending before the demonstration goes on by itself.
const simulatedApproval = 4 * time.Second

// decision errors are told apart by the API.
var (
	errDecided = errors.New("already decided")
	errExpired = errors.New("expired")
)

// decide moves a pending recommendation to a decided state, once.
func (r *recommender) decide(ctx context.Context, id, who, note string, to fleet.RecommendationState) (fleet.Recommendation, error) {
	rec, err := r.table.Change(ctx, id, func(rec *fleet.Recommendation) error {
		now := time.Now().UTC()
		switch {
		case rec.State == fleet.RecommendationDryRun && to == fleet.RecommendationApproved:
			return fmt.Errorf("recommendation %s is a dry run: nothing may act on host %s (allow it with agent.act and policy.mode): %w", id, rec.Host, errDecided)
		case rec.State == fleet.RecommendationExpired || !rec.State.Final() && now.After(rec.Expires) && rec.State != fleet.RecommendationExecuting:
			return fmt.Errorf("recommendation %s expired at %s: its evidence is too old to act on; wait for a new one: %w", id, rec.Expires.Format(time.RFC3339), errExpired)
		case rec.State != fleet.RecommendationPending && rec.State != fleet.RecommendationDryRun:
			return fmt.Errorf("recommendation %s is %s since %s, by %s: %w", id, rec.State, rec.DecidedAt.Format(time.RFC3339), orNobody(rec.DecidedBy), errDecided)
		}
		rec.State, rec.DecidedBy, rec.DecidedAt, rec.Note = to, who, now, note
		return nil
	})
	if errors.Is(err, bus.ErrNotFound) {
		err = fmt.Errorf("there is no recommendation %q; /api/v1/recommendations lists them: %w", id, err)
	}
	return rec, err
}

// begin writes the approval down and then starts the execution: what cannot be
// audited is not done.
func (r *recommender) begin(ctx context.Context, who string, rec fleet.Recommendation) (fleet.Execution, error) {
	if err := r.record(ctx, who, "approve", rec); err != nil {
		return fleet.Execution{}, err
	}
	return r.execute(ctx, rec)
}

// resume settles what a restart of the control plane interrupted. An approval
// whose execution did not begin is not carried out any more: its evidence is old.
func (r *recommender) resume(ctx context.Context, executions []fleet.Execution) {
	byRecommendation := make(map[string]fleet.Execution)
	for _, e := range executions {
		byRecommendation[e.Recommendation] = e
	}
	for _, rec := range r.table.All() {
		e, begun := byRecommendation[rec.ID]
		switch {
		case rec.State.Final():
			r.handedOver(rec, e)
			if begun && rec.State == fleet.RecommendationDone && e.State.Final() && time.Since(e.Ended) <= triedFor {
				r.carriedOut(ctx, rec, e)
			}
		case begun && e.State.Final():
			r.finished(ctx, e)
		case rec.State != fleet.RecommendationApproved:
		case begun:
			r.settle(ctx, rec.ID, underWay(e), nil)
		default:
			r.settle(ctx, rec.ID, func(rec *fleet.Recommendation) {
				rec.State, rec.Note = fleet.RecommendationSuperseded, "the control plane restarted before it began, and the evidence is old now"
			}, nil)
		}
	}
}

func orNobody(s string) string {
	if s == "" {
		return "nobody"
	}
	return s
}

// approve lets a recommendation be carried out and starts the execution.
func (r *recommender) approve(ctx context.Context, id, who, note string) (fleet.Recommendation, error) {
	rec, err := r.decide(ctx, id, who, note, fleet.RecommendationApproved)
	if err != nil {
		return rec, err
	}
	execution, err := r.begin(ctx, who, rec)
	return r.settle(ctx, id, func(rec *fleet.Recommendation) {
		if err != nil {
			rec.State, rec.Note = fleet.RecommendationBlocked, err.Error()
			return
		}
		underWay(execution)(rec)
	}, err)
}

// underWay notes the execution of an approved recommendation, which may have ended by now.
func underWay(e fleet.Execution) func(*fleet.Recommendation) {
	return func(rec *fleet.Recommendation) {
		if rec.State == fleet.RecommendationApproved {
			rec.State, rec.Execution = fleet.RecommendationExecuting, e.ID
		}
	}
}

// settle records what became of an approved recommendation. why is returned
// where there is one, beside the record.
func (r *recommender) settle(ctx context.Context, id string, f func(*fleet.Recommendation), why error) (fleet.Recommendation, error) {
	rec, err := r.table.Change(ctx, id, func(rec *fleet.Recommendation) error { f(rec); return nil })
	if err != nil {
		return rec, errors.Join(why, err)
	}
	if rec.State.Final() {
		r.mu.Lock()
		if r.open[rec.Host] == id {
			r.forget(rec.Host)
		}
		r.quiet[rec.Host] = time.Now().Add(r.policy().Cooldown.D())
		r.mu.Unlock()
	}
	return rec, why
}

// reject says no, for as long as the cool-down lasts.
func (r *recommender) reject(ctx context.Context, id, who, note string) (fleet.Recommendation, error) {
	rec, err := r.decide(ctx, id, who, note, fleet.RecommendationRejected)
	if err != nil {
		return rec, err
	}
	r.record(ctx, who, "reject", rec)
	return r.settle(ctx, id, func(*fleet.Recommendation) {}, nil)
}

// finished closes the recommendation behind an execution that ended.
func (r *recommender) finished(ctx context.Context, e fleet.Execution) {
	if e.Recommendation == "" || !e.State.Final() {
		return
	}
	rec, _, err := r.table.Load(ctx, e.Recommendation)
	if err != nil || rec.State.Final() {
		return
	}
	r.handedOver(rec, e)
	r.carriedOut(ctx, rec, e)
	if _, err := r.settle(ctx, e.Recommendation, func(rec *fleet.Recommendation) {
		rec.State, rec.Execution, rec.Note = fleet.RecommendationDone, e.ID, string(e.State)+": "+e.Outcome
	}, nil); err != nil {
		r.log.Error("the outcome of a recommendation could not be stored", "id", e.Recommendation, "err", err)
	}
}

func (r *recommender) record(ctx context.Context, who, event string, rec fleet.Recommendation) error {
	err := r.audit.Append(ctx, who, event, rec.ID, map[string]any{
		"host": rec.Host, "action": rec.Action, "signature": rec.Prediction.Signature, "reason": rec.Reason, "propensity": rec.Propensity, "note": rec.Note,
	})
	if err != nil {
		r.log.Error("the audit trail could not be written", "event", event, "id", rec.ID, "err", err)
	}
	return err
}
