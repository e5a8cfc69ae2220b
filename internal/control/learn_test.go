package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// outcome waits until the outcomes of a recommendation are known.
func (w *world) outcome(id string) []string {
	w.t.Helper()
	return await(w, "an outcome", func() ([]string, bool) {
		rec, _, ok := w.plane.recommender.table.Find(id)
		return rec.Outcomes, ok && len(rec.Outcomes) > 0
	})
}

func (w *world) recycles() predictor.Beta {
	for _, l := range w.plane.recommender.lessons.real.All() {
		if l.Signature == fleet.SignatureServiceHang && l.Action == fleet.ActionRecycle && !l.Again {
			return l.Beta
		}
	}
	return predictor.Beta{}
}

func (w *world) approved() fleet.Recommendation {
	w.t.Helper()
	rec := w.recommended(fleet.RecommendationPending)
	if _, err := w.plane.Approve(w.t.Context(), rec.ID, "ann", ""); err != nil {
		w.t.Fatal(err)
	}
	return w.recommended(fleet.RecommendationDone)
}

func TestAnActionThatFailsIsLearnedAndNotForgotten(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Break(unit)
	rec := w.approved()
	if got := w.outcome(rec.ID); !slices.Equal(got, []string{"recycle: failed"}) {
		t.Errorf("%v", got)
	}
	want := predictor.Beta{Failed: 1}
	await(w, "the lesson", func() (any, bool) { return nil, w.recycles() == want })
	w.down()
	w.up()
	w.learned()
	if got := w.recycles(); got != want {
		t.Errorf("after a restart: %+v", got)
	}
}

func TestAnActionAfterWhichAllIsWellHasCured(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.approved()
	if len(rec.Outcomes) != 0 || w.recycles() != (predictor.Beta{}) {
		t.Fatalf("too early: %v, %+v", rec.Outcomes, w.recycles())
	}
	for range 2 { // the second time there is nothing more to learn
		w.plane.recommender.outcomes(t.Context(), time.Now().Add(2*triedFor))
	}
	if got := w.outcome(rec.ID); !slices.Equal(got, []string{"recycle: cured"}) || w.recycles() != (predictor.Beta{Cured: 1}) {
		t.Errorf("%v, %+v", got, w.recycles())
	}
}

func TestAFaultThatComesBackWasNotCured(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	first := w.approved()
	w.host.Hang(unit)
	await(w, "another recommendation", func() (any, bool) {
		all, err := w.plane.Recommendations(t.Context())
		return nil, err == nil && len(all) == 2
	})
	if got := w.outcome(first.ID); !slices.Equal(got, []string{"recycle: failed"}) {
		t.Errorf("%v", got)
	}
}

// TestEachServiceIsRecycledOnce has a service hang, after the recycle another one, which is another fault, and then that one
// again, against which the recycle did not help.
func TestEachServiceIsRecycledOnce(t *testing.T) {
	const other = "network.service"
	w := newWorld(t)
	w.host = sim.New(sim.Config{Units: []string{other, unit}, VMs: []fleet.VM{{ID: "vm1", Name: "web"}}})
	w.label.Units = []string{other, unit}
	w.names = []string{"load_1m", fleet.SeriesName("unit_active", other), fleet.SeriesName("unit_healthy", other), fleet.SeriesName("unit_active", unit), fleet.SeriesName("unit_healthy", unit)}
	w.moving = func() []float64 {
		if w.host.Healthy(t.Context())[other] {
			return []float64{0.5, 1, 1}
		}
		return []float64{0.5, 1, 0}
	}
	w.up()
	w.learned()
	w.host.Hang(unit)
	first := w.approved()
	w.down() // what was tried comes back after a restart
	w.up()
	w.learned()
	w.host.Hang(other)
	second := w.approved()
	w.down()
	w.up()
	w.learned()
	w.host.Hang(other)
	third := await(w, "a third recommendation", func() (fleet.Recommendation, bool) {
		all, err := w.plane.Recommendations(t.Context())
		return all[0], err == nil && len(all) == 3
	})
	for i, c := range []struct {
		fleet.Recommendation
		culprit string
		action  fleet.Action
	}{{first, unit, fleet.ActionRecycle}, {second, other, fleet.ActionRecycle}, {third, other, fleet.ActionHandOver}} {
		if c.Prediction.Culprit != c.culprit || c.Action != c.action {
			t.Errorf("%d: %s of %s", i, c.Action, c.Prediction.Culprit)
		}
	}
	if got := w.outcome(second.ID); !slices.Equal(got, []string{"recycle: failed"}) {
		t.Errorf("%v", got)
	}
	if rec, _, _ := w.plane.recommender.table.Find(first.ID); len(rec.Outcomes) != 0 {
		t.Errorf("that another service hangs has taught of the first: %v", rec.Outcomes)
	}
}

// TestWhatWasTriedCountsUntilTheHostIsSound goes through what a fault can look like after a recycle.
func TestWhatWasTriedCountsUntilTheHostIsSound(t *testing.T) {
	hangs := fleet.Prediction{Anomalous: true, Signature: fleet.SignatureServiceHang, Culprit: unit, FailureProbability: 0.9}
	leaks := fleet.Prediction{Anomalous: true, Signature: fleet.SignatureMemoryLeak, Culprit: unit, FailureProbability: 0.9}
	odd := fleet.Prediction{Anomalous: true, Signature: fleet.SignatureNone}
	calm := fleet.Prediction{Signature: fleet.SignatureNone}
	w := newWorld(t)
	w.up()
	for name, x := range map[string]struct {
		between []fleet.Prediction // a sample each, for 50 minutes
		every   time.Duration
		then    fleet.Prediction
		again   bool
	}{
		"it looks different at once":                {nil, time.Minute, leaks, false},
		"it comes and goes":                         {[]fleet.Prediction{calm, calm, calm, odd}, 5 * time.Minute, leaks, false},
		"it is calm, as far as anybody saw":         {[]fleet.Prediction{calm}, 20 * time.Minute, leaks, false},
		"the same comes back, however long it took": {[]fleet.Prediction{calm}, time.Minute, hangs, false},
		"another one after the cure has held":       {[]fleet.Prediction{calm}, time.Minute, leaks, true},
	} {
		h := fleet.Host{ID: fleet.HostID("h-" + strings.ReplaceAll(strings.ReplaceAll(name, ",", ""), " ", "-")), Actions: []fleet.Action{fleet.ActionRecycle, fleet.ActionLiveMigrate}, VMs: []fleet.VM{{ID: "vm2"}}}
		at := time.Now().Add(w.cfg.Policy.Cooldown.D()) // of the host's clock, which runs fast
		see := func(p fleet.Prediction) fleet.Recommendation {
			t.Helper()
			p.Host, p.Time, p.State, p.HorizonSeconds = h.ID, at, fleet.PredictionScoring, 3600
			w.plane.recommender.consider(t.Context(), p, h)
			all, err := w.plane.Recommendations(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(all, func(r fleet.Recommendation) bool { return r.Host == h.ID })
			if i < 0 {
				t.Fatalf("%s: nothing is recommended", name)
			}
			return all[i]
		}
		first := see(hangs)
		w.plane.recommender.finished(t.Context(), fleet.Execution{ID: "e-" + string(h.ID), Host: h.ID, Recommendation: first.ID, Action: first.Action,
			State: fleet.ExecutionSucceeded, Steps: []fleet.Step{{Phase: fleet.PhaseRecycle}}, Ended: time.Now()})
		at = at.Add(time.Minute)
		for end, i := at.Add(50*time.Minute), 0; len(x.between) > 0 && at.Before(end); i++ {
			see(x.between[i%len(x.between)])
			at = at.Add(x.every)
		}
		second := see(x.then)
		if first.Action != fleet.ActionRecycle || second.ID == first.ID || (second.Action == fleet.ActionRecycle) != x.again {
			t.Errorf("%s: first %s, then %s", name, first.Action, second.Action)
		}
	}
}

func TestAHostThatCrashesAfterAnActionWasNotCured(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.approved()
	w.setBoot("another")
	if got := w.outcome(rec.ID); !slices.Equal(got, []string{"recycle: failed"}) {
		t.Errorf("%v", got)
	}
}

func TestAttempts(t *testing.T) {
	rec := fleet.Recommendation{ID: "r", Prediction: fleet.Prediction{Signature: fleet.SignatureKernelFault}}
	through := fleet.Execution{State: fleet.ExecutionSucceeded, Steps: []fleet.Step{{Phase: fleet.PhaseRecycle}, {Phase: fleet.PhaseRecycle}, {Phase: fleet.PhaseDiagnose}, {Phase: fleet.PhaseReset}}}
	got := attempts(rec, through)
	if len(got) != 2 || got[0].Action != fleet.ActionRecycle || !got[0].Known || got[1].Action != fleet.ActionPreservingReset || got[1].Known {
		t.Errorf("%+v", got)
	}
	through.State = fleet.ExecutionHandedOver
	if got := attempts(rec, through); len(got) != 2 || !got[1].Known {
		t.Errorf("%+v", got)
	}
	through.CancelledBy = "ann"
	if got := attempts(rec, through); len(got) != 1 || got[0].Action != fleet.ActionRecycle || !got[0].Known {
		t.Errorf("a reset that was stopped has taught %+v", got)
	}
	through.State = fleet.ExecutionCancelled
	if got := attempts(rec, through); len(got) != 0 {
		t.Errorf("what was cancelled has taught %+v", got)
	}
}

func TestChanceHasAPartOnlyWhereNobodyApproves(t *testing.T) {
	r := &recommender{lessons: &lessons{real: predictor.NewCures(4), simulated: predictor.NewCures(4)}}
	c := config.DefaultPolicy()
	if p := r.policyFor(c, false); !p.Greedy || p.Explore != 0 || p.Cures != r.lessons.real {
		t.Errorf("approve: %+v", p)
	}
	c.Mode = "automatic"
	if p := r.policyFor(c, false); p.Greedy || p.Explore != 0.02 {
		t.Errorf("automatic: %+v", p)
	}
	if p := r.policyFor(c, true); p.Cures != r.lessons.simulated {
		t.Error("what is done to simulated hosts is learned with the rest")
	}
	c.VMs = []config.VMRule{{Match: "db-*", Weight: 3, MaxFreezeSeconds: 2, NoLiveMigration: true}}
	if got := costs(c).VMs; len(got) != 1 || got[0] != (predictor.VMRule{Match: "db-*", Weight: 3, FreezeSeconds: 2, NoLiveMigration: true}) {
		t.Errorf("%+v", got)
	}
}
