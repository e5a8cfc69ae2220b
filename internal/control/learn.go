package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// lessons keeps what was learned of the actions: how often each cured what it was carried
// out against, in a table of the bus, from which it comes back after a restart. What happens
// to simulated hosts is learned apart from that, and forgotten.
type lessons struct {
	table     *bus.Table[predictor.Learned]
	real      *predictor.Cures
	simulated *predictor.Cures
}

func openLessons(ctx context.Context, b *bus.Bus, log *slog.Logger) (*lessons, error) {
	table, err := bus.OpenTable[predictor.Learned](ctx, b, "CURES", nil)
	if err != nil {
		return nil, err
	}
	l := &lessons{table: table, real: predictor.NewCures(predictor.BeliefWeight), simulated: predictor.NewCures(predictor.BeliefWeight)}
	for _, x := range table.All() {
		if err := l.real.Add(x); err != nil {
			log.Warn("what was learned of an action is not used", "err", err)
		}
	}
	return l, nil
}

// of are the cure rates that hold for a host.
func (l *lessons) of(simulated bool) *predictor.Cures {
	if simulated {
		return l.simulated
	}
	return l.real
}

// add takes one outcome.
func (l *lessons) add(ctx context.Context, x predictor.Learned, simulated bool) error {
	if err := l.of(simulated).Add(x); err != nil || simulated {
		return err
	}
	key := fmt.Sprintf("%s.%s.%v", x.Signature, x.Action, x.Again)
	_, err := l.table.Change(ctx, key, func(have *predictor.Learned) error {
		have.Cured += x.Cured
		have.Failed += x.Failed
		return nil
	})
	if errors.Is(err, bus.ErrNotFound) {
		_, err = l.table.Create(ctx, key, x)
		if errors.Is(err, bus.ErrConflict) { // somebody else was first
			_, err = l.table.Change(ctx, key, func(have *predictor.Learned) error {
				have.Cured += x.Cured
				have.Failed += x.Failed
				return nil
			})
		}
	}
	return err
}

// policyFor is the policy that decides about a host. Where a person approves, it proposes what is
// best as far as is known; where the configuration approves, chance has a part, so that
// something is learned of the other actions too.
func (r *recommender) policyFor(c config.Policy, simulated bool) predictor.Policy {
	p := policyOf(c, c.Mode == "automatic" && !simulated)
	if r.lessons != nil {
		p.Cures = r.lessons.of(simulated)
	}
	return p
}

// policyOf is the policy of a configuration, with the stated beliefs; chance says whether it
// draws rates and explores.
func policyOf(c config.Policy, chance bool) predictor.Policy {
	p := predictor.Policy{Costs: costs(c), Attempts: c.Attempts, Greedy: true}
	if chance && c.Explore > 0 {
		p.Greedy, p.Explore = false, c.Explore
	}
	return p
}

// situation is what the policy decides on: what is predicted of a host, and what was tried.
func situation(p fleet.Prediction, h fleet.Host, tried map[fleet.Action]time.Time, attempts map[fleet.Action]int) predictor.Situation {
	return predictor.Situation{Prediction: p, Host: h, Tried: tried, Attempts: attempts,
		SoonProbability: p.SoonProbability, FaultProbability: p.FaultProbability, SignatureProbability: p.SignatureProbability}
}

// costs are the figures of the configuration as the policy wants them.
func costs(c config.Policy) predictor.Costs {
	out := predictor.Costs{
		CrashSeconds: c.CrashSeconds, HandOverSeconds: c.HandOverSeconds,
		ResetFreezeSeconds: c.ResetFreezeSeconds, MigrateFreezeSeconds: c.MigrateFreezeSeconds, NoiseRatio: c.NoiseRatio,
	}
	for _, v := range c.VMs {
		out.VMs = append(out.VMs, predictor.VMRule{Match: v.Match, Weight: v.Weight, FreezeSeconds: v.MaxFreezeSeconds, NoLiveMigration: v.NoLiveMigration})
	}
	return out
}

// phaseActions are the actions that phases belong to.
var phaseActions = map[fleet.Phase]fleet.Action{fleet.PhaseRecycle: fleet.ActionRecycle, fleet.PhaseReset: fleet.ActionPreservingReset, fleet.PhaseMigrate: fleet.ActionLiveMigrate}

// attempts says what an execution that has ended tried, and against what. All but the last have
// failed; the last has too, unless the execution succeeded: then it counts as a cure if the
// fault does not come back within triedFor. What a person stopped does not count.
func attempts(rec fleet.Recommendation, e fleet.Execution) []predictor.Attempt {
	if e.State == fleet.ExecutionCancelled {
		return nil
	}
	var out []predictor.Attempt
	for _, s := range e.Steps {
		a, ok := phaseActions[s.Phase]
		if !ok || len(out) > 0 && out[len(out)-1].Action == a {
			continue
		}
		out = append(out, predictor.Attempt{Action: a, Signature: rec.Prediction.Signature, Culprit: rec.Prediction.Culprit, At: e.Ended, Recommendation: rec.ID, Simulated: rec.Simulated, Known: true})
	}
	if n := len(out); n > 0 && e.State == fleet.ExecutionSucceeded {
		out[n-1].Known = false
	} else if n > 1 && e.CancelledBy != "" {
		out = out[:n-1] // a person stopped it, which says nothing of what it would have done
	}
	return out
}

// learn takes the outcome of an attempt, once.
func (r *recommender) learn(ctx context.Context, a predictor.Attempt, cured bool) {
	outcome, b := "failed", predictor.Beta{Failed: 1}
	if cured {
		outcome, b = "cured", predictor.Beta{Cured: 1}
	}
	if r.lessons == nil {
		return
	}
	// The outcome goes into the recommendation first: after a crash in between it is not counted, which
	// is better than twice.
	first := false
	_, err := r.table.Change(ctx, a.Recommendation, func(rec *fleet.Recommendation) error {
		first = !learned(rec.Outcomes, a.Action)
		if first {
			rec.Outcomes = append(rec.Outcomes, string(a.Action)+": "+outcome)
		}
		return nil
	})
	if err == nil && first {
		err = r.lessons.add(ctx, predictor.Learned{Signature: a.Signature, Action: a.Action, Again: a.Again, Beta: b}, a.Simulated)
	}
	if err != nil {
		r.log.Error("the outcome of an action was not learned", "recommendation", a.Recommendation, "action", a.Action, "outcome", outcome, "err", err)
	}
}

func learned(outcomes []string, a fleet.Action) bool {
	for _, o := range outcomes {
		if strings.HasPrefix(o, string(a)+":") {
			return true
		}
	}
	return false
}

// outcomes settles attempts: those after which the fault did not come back have cured. Those
// that are old are forgotten.
func (r *recommender) outcomes(ctx context.Context, now time.Time) {
	var cured []predictor.Attempt
	r.mu.Lock()
	failed := r.failed
	r.failed = nil
	for _, t := range r.tried {
		cured = append(cured, t.Settle(now)...)
	}
	r.mu.Unlock()
	for _, a := range failed {
		r.learn(ctx, a, false)
	}
	for _, a := range cured {
		r.learn(ctx, a, true)
	}
}
