package control

import (
	"slices"
	"testing"
	"time"

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
	if len(got) != 2 || got[0].action != fleet.ActionRecycle || !got[0].failed || got[1].action != fleet.ActionPreservingReset || got[1].failed {
		t.Errorf("%+v", got)
	}
	through.State = fleet.ExecutionHandedOver
	if got := attempts(rec, through); len(got) != 2 || !got[1].failed {
		t.Errorf("%+v", got)
	}
	through.CancelledBy = "ann"
	if got := attempts(rec, through); len(got) != 1 || got[0].action != fleet.ActionRecycle || !got[0].failed {
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
