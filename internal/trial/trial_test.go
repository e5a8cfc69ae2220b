package trial

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

var costs = predictor.Costs{CrashSeconds: 300, HandOverSeconds: 120}

// trained is a model of a small fleet; it serves all tests.
var trained = sync.OnceValues(func() (*failure.Model, error) {
	return Learn(context.Background(), Training{Fleet: Fleet{Hosts: 60, Days: 10, Seed: 404, FaultRate: 12}, Operated: true, Sound: 6000}, nil, nil)
})

func model(t *testing.T) *failure.Model {
	t.Helper()
	m, err := trained()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestWhoKnowsMoreLosesLess runs the policies through one small fleet. The model is a small one, so the
// margins are wide: what is asserted is the order.
func TestWhoKnowsMoreLosesLess(t *testing.T) {
	m := model(t)
	lost := map[string]Result{}
	try := Trial{Fleet: Fleet{Hosts: 60, Days: 10, Seed: 7}, School: Fleet{Hosts: 30, Days: 10, Seed: 9, FaultRate: 4}, Model: m, Costs: costs}
	for _, name := range Policies() {
		r, err := try.Run(t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		lost[name] = r
		if math.Abs(r.Tally.VMSeconds()-r.VMSeconds) > 1e-6 || r.LaterVMSeconds > r.VMSeconds {
			t.Errorf("%s: %+v", name, r)
		}
		t.Logf("%s: %.0f VM-seconds, %d crashes, %v, %d false", name, r.VMSeconds, r.Crashes, r.Actions, r.FalseActions)
	}
	if len(lost["reactive"].Actions) != 0 || lost["reactive"].Crashes == 0 {
		t.Fatalf("nobody acts and nothing crashes: %+v", lost["reactive"])
	}
	for _, pair := range [][2]string{{"ours", "reactive"}, {"ours", "static"}, {"static", "reactive"}, {"oracle", "reactive"}, {"oracle", "static"}} {
		if a, b := lost[pair[0]].VMSeconds, lost[pair[1]].VMSeconds; a > b {
			t.Errorf("%s loses %.0f VM-seconds and %s %.0f", pair[0], a, pair[1], b)
		}
	}
	if a, b := lost["ours"].VMSeconds, lost["reactive"].VMSeconds; a > 0.4*b {
		t.Errorf("ours loses %.0f VM-seconds of the %.0f without it", a, b)
	}
	if lost["oracle"].FalseActions != 0 {
		t.Errorf("the oracle acts on sound hosts: %+v", lost["oracle"])
	}
	again, err := try.Run(t.Context(), "ours", nil)
	if err != nil || again.VMSeconds != lost["ours"].VMSeconds {
		t.Errorf("the same once more: %v VM-seconds, and %v before; %v", again.VMSeconds, lost["ours"].VMSeconds, err)
	}
	if _, err := try.Run(t.Context(), "chance", nil); err == nil {
		t.Error("an unknown policy was tried")
	}

	lines, err := EvaluateHorizon(t.Context(), Fleet{Hosts: 60, Days: 10, Seed: 8}, m, nil)
	if err != nil || len(lines) != 3*(1+len(m.Signatures())) {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	for _, l := range lines {
		for _, v := range []float64{l.Precision, l.Recall, l.AUCPR, l.SignatureRight} {
			if !(v >= 0 && v <= 1+1e-9) {
				t.Errorf("%+v", l)
			}
		}
		if l.Foreseen > l.Failures {
			t.Errorf("%d of %d failures are foreseen", l.Foreseen, l.Failures)
		}
		if l.Signature != "all" {
			continue
		}
		if l.CalibrationError == nil || *l.CalibrationError > 0.15 || l.Failures == 0 {
			t.Errorf("%+v", l)
		}
		// A failure within the day shows long before that, one within five minutes is hard to tell
		// from one within ten.
		if l.HorizonSeconds >= 3600 && (l.AUCPR < 0.2 || float64(l.Foreseen) < 0.5*float64(l.Failures) || l.MedianLead <= 0) {
			t.Errorf("%+v", l)
		}
	}
}

// does is a policy that always does the same, and writes down what it is asked and told.
type does struct {
	action fleet.Action
	asked  int
	told   []string
}

func (d *does) decide(predictor.Situation) predictor.Decision {
	d.asked++
	return predictor.Decision{Action: d.action}
}

func (d *does) outcome(s fleet.Signature, a fleet.Action, again, cured bool) {
	d.told = append(d.told, fmt.Sprintf("%s %s %v %v", s, a, again, cured))
}

// watching is a fleet of four hosts on which nothing happens but what is planned, and who watches it.
func watching(t *testing.T, d decider, script ...simulator.Planned) (*simulator.Fleet, *watch, func(minutes int)) {
	t.Helper()
	f, err := simulator.New(simulator.Config{Hosts: 4, Seed: 5, FaultRate: -1, BenignRate: -1, Script: script})
	if err != nil {
		t.Fatal(err)
	}
	w := newWatch(f, model(t), d, costs, &Result{Actions: map[fleet.Action]int{}})
	return f, w, func(minutes int) {
		t.Helper()
		for range minutes {
			if err := w.step(f.Step(nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestAFalseAlarmIsNotRepeated: a host that was emptied and found sound is left alone for an hour.
func TestAFalseAlarmIsNotRepeated(t *testing.T) {
	for _, alarm := range []bool{false, true} {
		d := &does{action: fleet.ActionNone}
		f, w, pass := watching(t, d, simulator.Planned{Host: 2, Kind: simulator.ECCStorm, After: 61 * time.Minute, Lasts: 100 * time.Minute})
		pass(60)
		if alarm {
			if err := w.act(2, &w.members[2], fleet.ActionLiveMigrate, fleet.SignatureMemoryHardware, f.Now()); err != nil {
				t.Fatal(err)
			}
			if len(d.told) != 0 || w.result.FalseActions != 1 {
				t.Errorf("a migration of a sound host taught %v; %+v", d.told, w.result)
			}
		}
		pass(58)
		if (d.asked == 0) != alarm {
			t.Errorf("with a false alarm before: %v; the policy was asked %d times within the hour", alarm, d.asked)
		}
		if pass(persists + 5); d.asked == 0 { // on a host without VMs one can wait
			t.Error("the policy is not asked after the hour either")
		}
	}
}

// TestTheNextFaultOfARepairedHost is seen as soon as if it had never been away: what is new about it began when its VMs came
// back, not with the fault.
func TestTheNextFaultOfARepairedHost(t *testing.T) {
	var seen [2]time.Time
	for i, away := range []bool{false, true} {
		d := &does{action: fleet.ActionNone}
		f, w, pass := watching(t, d, simulator.Planned{Host: 2, Kind: simulator.LockUp, After: 3 * time.Hour, Lasts: 20 * time.Minute})
		pass(60)
		w.members[2].away = away // and its VMs have just come back
		for d.asked == 0 && f.Tally().Crashes == 0 {
			pass(1)
		}
		seen[i] = f.Now()
	}
	if late := seen[1].Sub(seen[0]); late > time.Minute {
		t.Errorf("it is seen %v later than if the host had never been away", late)
	}
}

func TestACrashIsNoCure(t *testing.T) {
	d := &does{action: fleet.ActionNone}
	f, w, pass := watching(t, d, simulator.Planned{Host: 2, Kind: simulator.ECCStorm, After: time.Minute, Lasts: 20 * time.Minute})
	pass(10)
	if err := w.act(2, &w.members[2], fleet.ActionRecycle, fleet.SignatureMemoryHardware, f.Now()); err != nil {
		t.Fatal(err)
	}
	pass(50)
	if want := []string{"memory-hardware recycle false false"}; f.Tally().Crashes != 1 || !slices.Equal(d.told, want) {
		t.Errorf("after %d crashes the policy was told %v, not %v", f.Tally().Crashes, d.told, want)
	}
}

func TestExamplesAreLabelledByWhatCame(t *testing.T) {
	e, err := Collect(t.Context(), Training{Fleet: Fleet{Hosts: 20, Days: 5, Seed: 3, FaultRate: 30}, Operated: true, Sound: 500}, nil)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for i := range e.X {
		count[e.Signature[i]]++
		if e.Failure[i] < 0 || e.Known[i] < 0 || !(e.Weight[i] > 0) || len(e.X[i]) != len(e.Features) {
			t.Fatalf("example %d: fails in %v of %v known, weight %v", i, e.Failure[i], e.Known[i], e.Weight[i])
		}
	}
	if count[failure.Sound] < 100 || len(count) < 6 {
		t.Errorf("%v", count)
	}
}

func TestOffPolicyEstimatesFindTheTruth(t *testing.T) {
	out, err := EvaluateOffPolicy(t.Context(), 20, 10_000, 5, costs, nil)
	if err != nil || len(out) != 3 {
		t.Fatalf("%v, %v", out, err)
	}
	for _, x := range out {
		if x.Coverage < 0.8 || math.Abs(x.Mean/x.Truth-1) > 0.1 || x.Truth >= x.Logged {
			t.Errorf("%+v", x)
		}
	}
	i := slices.IndexFunc(out, func(x OffPolicy) bool { return x.Estimator == "dr" })
	if out[i].Width > out[0].Width {
		t.Errorf("the doubly robust intervals are wider (%v) than those of inverse propensity (%v)", out[i].Width, out[0].Width)
	}
}

// TestShortLogsSayHowLittleTheySay: some hundred faults, where the dearest are mostly not among them, with a seed
// whose policies differ much (106).
func TestShortLogsSayHowLittleTheySay(t *testing.T) {
	for _, faults := range []int{100, 1000, 3000} {
		out, err := EvaluateOffPolicy(t.Context(), 200, faults, 106, costs, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range out {
			if x.Coverage < 0.93 || x.Above > 1-x.Coverage || x.TypicalWidth <= 0 {
				t.Errorf("%d faults: %+v", faults, x)
			}
		}
	}
}

// TestTheTruthIsExact: it is what drawn cases cost on average, but for chance.
func TestTheTruthIsExact(t *testing.T) {
	d, err := newDeck(costs)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(6, 6))
	policy := tabulate(predictor.Policy{Costs: costs, Cures: predictor.NewCures(1), Explore: 0.1}, 8, r)
	const n = 400_000
	sum, squares := 0.0, 0.0
	for range n {
		c, seen := d.next(r)
		v := value(&c, seen, 0, policy)
		sum += v
		squares += v * v
	}
	mean := sum / n
	e := math.Sqrt((squares/n - mean*mean) / n)
	if got := d.value(policy); math.Abs(got-mean) > 4*e {
		t.Errorf("the truth is said to be %v, and %d drawn cases have %v, known to within %v", got, n, mean, e)
	}
	if _, err := EvaluateOffPolicy(t.Context(), 1, 100, 1, predictor.Costs{CrashSeconds: math.NaN()}, nil); err == nil {
		t.Error("costs that are no number were taken")
	}
}
