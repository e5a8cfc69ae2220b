package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

func TestWhatCameOfAPromise(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	minute := func(n int) time.Time { return at.Add(time.Duration(n) * time.Minute) }
	incident := func(from, to int, failed bool, s fleet.IncidentSource) fleet.Incident {
		return fleet.Incident{From: minute(from), To: minute(to), Failed: failed, Source: s}
	}
	for name, c := range map[string]struct {
		incidents []fleet.Incident
		seen      int
		came      drift.Outcome
		known     bool
	}{
		"sound":                         {nil, 60, drift.Sound, true},
		"lost on the way":               {nil, 59, drift.Sound, false},
		"a crash":                       {[]fleet.Incident{incident(30, 35, true, fleet.IncidentCrash)}, 40, drift.Failed, true},
		"a crash after the horizon":     {[]fleet.Incident{incident(61, 65, true, fleet.IncidentCrash)}, 70, drift.Sound, true},
		"a crash before":                {[]fleet.Incident{incident(-9, -5, true, fleet.IncidentCrash)}, 70, drift.Sound, true},
		"it was failing already":        {[]fleet.Incident{incident(-9, 5, true, fleet.IncidentPerson)}, 70, drift.Sound, false},
		"somebody acted":                {[]fleet.Incident{incident(10, 12, false, fleet.IncidentExecution)}, 70, drift.Averted, true},
		"somebody acted, and it failed": {[]fleet.Incident{incident(10, 12, false, fleet.IncidentExecution), incident(20, 25, true, fleet.IncidentCrash)}, 70, drift.Failed, true},
		"a fault that was none":         {[]fleet.Incident{incident(10, 12, false, fleet.IncidentPerson)}, 70, drift.Sound, true},
	} {
		came, known := promise{at, time.Hour, 0.5}.came(c.incidents, minute(c.seen))
		if known != c.known || known && came != c.came {
			t.Errorf("%s: %v, known %v", name, came, known)
		}
	}
}

// A promise is kept for each stretch of a horizon, and judged when its incidents are known.
func TestPromisesAreSettledOnce(t *testing.T) {
	var o promises
	at := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for n := range 200 { // three hours and twenty minutes
		o.say("h1", promise{at.Add(time.Duration(n) * time.Minute), time.Hour, 0.25})
	}
	seen := func(fleet.HostID) time.Time { return at.Add(200 * time.Minute) }
	crash := []fleet.Incident{{Host: "h1", From: at.Add(90 * time.Minute), To: at.Add(91 * time.Minute), Failed: true}}
	for _, c := range []struct {
		after  time.Duration
		judged int
	}{{119 * time.Minute, 0}, {2 * time.Hour, 1}, {2 * time.Hour, 1}, {3 * time.Hour, 2}, {24 * time.Hour, 3}} { // of the fourth stretch the end was not seen
		o.settle(at.Add(c.after), crash, seen)
		if got := o.outcomes().Judged; got != c.judged {
			t.Errorf("after %v: %d", c.after, got)
		}
	}
	if got := o.outcomes(); got.Failed != 1 || got.Expected != 0.75 || len(o.open) != 0 {
		t.Errorf("%+v, %v", got, o.open)
	}
}

// A champion failure model whose probabilities do not come true asks for a training; one whose
// hosts were acted on does not.
func TestProbabilitiesAreHeldAgainstIncidents(t *testing.T) {
	w := newWorld(t)
	w.pressed()
	w.cfg.Model.Jobs = "automatic"
	w.cfg.Model.Drift.Samples, w.cfg.Model.Drift.PSI, w.cfg.Model.Drift.KS = 20, 1e6, 2 // the data themselves are as they may be
	w.up()
	w.learned()
	file := w.imports(foreseeing(t, false))
	w.promoted(file.ID, true)
	champion := await(w, "the champion has seen enough", func() (*seated, bool) {
		all, _ := w.plane.Drifts(t.Context())
		return w.plane.roster.of(registry.KindFailure).champion, len(all) == 1 && all[0].Ready
	})
	now := time.Now().UTC()
	begin := now.Add(-48 * time.Hour)
	say := func(group string, p float64, acted bool) {
		for i := range 40 {
			id := fleet.HostID(fmt.Sprint(group, i))
			champion.said.say(id, promise{begin, time.Hour, p})
			h := w.plane.predictions.state(id)
			h.mu.Lock()
			h.last = now
			h.mu.Unlock()
			if acted {
				w.plane.labelled(t.Context(), fleet.Incident{ID: "execution-" + string(id), Host: id, From: begin.Add(time.Minute), To: begin.Add(2 * time.Minute),
					Signature: fleet.SignatureDisk, Source: fleet.IncidentExecution}, "test")
			}
		}
	}
	drifted := func() api.Drift {
		t.Helper()
		all, err := w.plane.Drifts(t.Context())
		if err != nil || len(all) != 1 || all[0].Outcomes == nil {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0]
	}
	say("acted", 0.5, true)
	await(w, "the incidents", func() (any, bool) { all, _ := w.plane.Incidents(t.Context()); return nil, len(all) == 40 })
	w.plane.lookAtModels(t.Context(), begin.Add(90*time.Minute))
	if d := drifted(); d.Outcomes.Judged != 0 {
		t.Errorf("judged before the incidents are known: %+v", d.Outcomes)
	}
	w.plane.lookAtModels(t.Context(), begin.Add(2*time.Hour))
	if d := drifted(); d.Drifted || d.Outcomes.Judged != 40 || d.Outcomes.Averted != 40 || d.Outcomes.Expected != 20 {
		t.Errorf("%+v, %+v", d, d.Outcomes)
	}
	if all, _ := w.plane.Jobs(t.Context()); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	for i := range 20 { // 400 hosts that should fail one time in two, and none does
		say(fmt.Sprint("quiet", i, "-"), 0.5+0.01*float64(i), false)
	}
	w.plane.lookAtModels(t.Context(), begin.Add(3*time.Hour))
	w.plane.lookAtModels(t.Context(), begin.Add(3*time.Hour+time.Minute))
	d := drifted()
	if !d.Drifted || d.Calibration < 1 || !strings.Contains(d.Why, "powers of ten") || d.Outcomes.Failed != 0 {
		t.Errorf("%+v, %+v", d, d.Outcomes)
	}
	all, err := w.plane.Jobs(t.Context())
	if err != nil || len(all) != 1 || all[0].By != "model:"+file.ID || all[0].Kind != "failure" || !strings.Contains(all[0].Why, "drift") {
		t.Errorf("%+v, %v", all, err)
	}
}
