package predictor

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func learner() Policy {
	return Policy{Costs: costs, Cures: NewCures(BeliefWeight), Explore: 0.02}
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func situation(s fleet.Signature, p float64, h fleet.Host) Situation {
	return Situation{Prediction: fleet.Prediction{Host: "h1", State: fleet.PredictionScoring, Signature: s, FailureProbability: p, HorizonSeconds: 3600}, Host: h}
}

func propensity(d Decision, a fleet.Action) float64 {
	return d.Propensities[slices.IndexFunc(d.Alternatives, func(x fleet.Alternative) bool { return x.Action == a })]
}

func teach(t *testing.T, c *Cures, s fleet.Signature, a fleet.Action, cured, failed float64) {
	t.Helper()
	if err := c.Add(Learned{Signature: s, Action: a, Beta: Beta{Cured: cured, Failed: failed}}); err != nil {
		t.Fatal(err)
	}
}

// TestThePropensityIsHowOftenItIsChosen: what is logged is what a policy can be judged by.
func TestThePropensityIsHowOftenItIsChosen(t *testing.T) {
	for _, s := range signatures {
		x := situation(s, 0.8, host(4, fleet.Actions()...))
		chosen := map[fleet.Action]float64{}
		said := map[fleet.Action]float64{}
		const n = 300
		for seed := range uint64(n) {
			d := learner().Decide(x, seeded(seed))
			chosen[d.Action] += 1.0 / n
			sum := 0.0
			for i, q := range d.Propensities {
				sum += q
				said[d.Alternatives[i].Action] += q / n
				if d.Alternatives[i].Action == d.Action && q != d.Propensity {
					t.Fatalf("%s: %v and %v", s, q, d.Propensity)
				}
			}
			if math.Abs(sum-1) > 1e-9 || d.Propensity <= 0 {
				t.Fatalf("%s: the propensities add up to %v, that of the choice is %v", s, sum, d.Propensity)
			}
		}
		for a, q := range said {
			if math.Abs(chosen[a]-q) > 4*math.Sqrt(q*(1-q)/n)+1e-9 {
				t.Errorf("%s: %s is chosen in %.4f of all cases, and said to be in %.4f", s, a, chosen[a], q)
			}
		}
	}
}

func TestTheSameSourceGivesTheSameDecision(t *testing.T) {
	x := situation(fleet.SignatureNetwork, 0.8, host(4, fleet.Actions()...))
	a, b := learner().Decide(x, seeded(3)), learner().Decide(x, seeded(3))
	if a.Action != b.Action || !slices.Equal(a.Propensities, b.Propensities) {
		t.Errorf("%+v and %+v", a, b)
	}
}

// TestEveryActionThatCuresIsTriedNowAndThen: even where the policy has no doubt.
func TestEveryActionThatCuresIsTriedNowAndThen(t *testing.T) {
	p := learner()
	for _, a := range cureActions {
		teach(t, p.Cures, fleet.SignatureServiceHang, a, 1000, 10)
	}
	d := p.Decide(situation(fleet.SignatureServiceHang, 0.9, host(4, fleet.Actions()...)), seeded(1))
	other := 0.0
	for _, a := range []fleet.Action{fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
		if q := propensity(d, a); q <= 0 {
			t.Errorf("%s is never tried", a)
		} else {
			other += q
		}
	}
	if other < 0.02-1e-9 || propensity(d, fleet.ActionRecycle) < 0.9 {
		t.Errorf("%v", d.Propensities)
	}
	for _, a := range []fleet.Action{fleet.ActionNone, fleet.ActionHandOver} {
		if q := propensity(d, a); q != 0 {
			t.Errorf("%s teaches nothing and is chosen with %v", a, q)
		}
	}
}

// TestItLearnsWhatCures: a deployment where recycling does not help with leaks.
func TestItLearnsWhatCures(t *testing.T) {
	p := learner()
	x := situation(fleet.SignatureMemoryLeak, 0.9, host(4, fleet.Actions()...))
	before := propensity(p.Decide(x, seeded(1)), fleet.ActionRecycle)
	teach(t, p.Cures, fleet.SignatureMemoryLeak, fleet.ActionRecycle, 0, 60)
	teach(t, p.Cures, fleet.SignatureMemoryLeak, fleet.ActionLiveMigrate, 60, 0)
	d := p.Decide(x, seeded(1))
	if after := propensity(d, fleet.ActionRecycle); before < 0.5 || after > 0.1 {
		t.Errorf("recycle is chosen with %.3f before and %.3f after", before, after)
	}
	if propensity(d, fleet.ActionLiveMigrate) < 0.9 {
		t.Errorf("%v", d.Propensities)
	}
	other := p.Decide(situation(fleet.SignatureServiceHang, 0.9, host(4, fleet.Actions()...)), seeded(1))
	if propensity(other, fleet.ActionRecycle) < 0.4 {
		t.Errorf("what was learned of leaks changed what is done about hangs: %v", other.Propensities)
	}
}

func TestWhereItIsUnsureTheRuleDecides(t *testing.T) {
	p := learner()
	teach(t, p.Cures, fleet.SignatureDisk, fleet.ActionLiveMigrate, 0, 100)
	x := situation(fleet.SignatureDisk, 0.9, host(4, fleet.Actions()...))
	x.SignatureProbability = 0.3
	d := p.Decide(x, seeded(1))
	if d.Policy != RuleName || len(slices.DeleteFunc(slices.Clone(d.Propensities), func(q float64) bool { return q < 0.5 })) != 1 {
		t.Errorf("%s with %v", d.Policy, d.Propensities)
	}
	if sum := 1 - slices.Max(d.Propensities); math.Abs(sum-0.02) > 1e-9 {
		t.Errorf("%v is left to chance", sum)
	}
	x.SignatureProbability = 0.9
	if d := p.Decide(x, seeded(1)); d.Policy != PolicyName {
		t.Errorf("sure, and %s decides", d.Policy)
	}
}

// TestItThinksInSequences: an action is as good as what follows where it fails.
func TestItThinksInSequences(t *testing.T) {
	cost := func(d Decision, a fleet.Action) float64 {
		return d.Alternatives[slices.IndexFunc(d.Alternatives, func(x fleet.Alternative) bool { return x.Action == a })].CostVMSeconds
	}
	rule := Policy{Costs: costs, Greedy: true}
	alone := rule.Decide(situation(fleet.SignatureKernelFault, 0.9, host(4, fleet.ActionRecycle)), nil)
	followed := rule.Decide(situation(fleet.SignatureKernelFault, 0.9, host(4, fleet.ActionRecycle, fleet.ActionLiveMigrate)), nil)
	if a, b := cost(alone, fleet.ActionRecycle), cost(followed, fleet.ActionRecycle); b > a/2 {
		t.Errorf("a recycle costs %v alone and %v with a migration to follow", a, b)
	}
	// With little time left a gentle action that hardly cures is a waste of it.
	x := situation(fleet.SignatureKernelFault, 0.9, host(4, fleet.Actions()...))
	x.SoonProbability = 0.5
	if d := rule.Decide(x, nil); d.Action != fleet.ActionLiveMigrate {
		t.Errorf("with minutes to go: %s", d.Action)
	}
	// With time a migration that failed is tried again and again; without, what is dear and likely to cure.
	patient := Policy{Costs: costs, Greedy: true, Attempts: 20}
	x.Tried = map[fleet.Action]time.Time{fleet.ActionLiveMigrate: time.Unix(1, 0)}
	for soon, want := range map[float64]bool{0: false, 0.5: true} {
		x.SoonProbability = soon
		if d := patient.Decide(x, nil); (d.Action == fleet.ActionPreservingReset) != want {
			t.Errorf("it fails within five minutes with probability %v: %s", soon, d.Action)
		}
	}
	// A person who comes too late is no better than a crash.
	x.SoonProbability = 0.5
	if a, b := cost(patient.Decide(x, nil), fleet.ActionHandOver), 0.8*costs.CrashSeconds*4; a < b {
		t.Errorf("a person costs %v, where the host is likely to fail before one comes", a)
	}
	// The expected cost is that of the sequence, by hand: recycle, then a person.
	want := 0.0005*costs.CrashSeconds*4 + (1-0.1)*0.9*costs.HandOverSeconds*4
	if got := cost(alone, fleet.ActionRecycle); math.Abs(got-want) > 1e-9 {
		t.Errorf("a recycle and then a person cost %v, not %v", got, want)
	}
}

func TestAFurtherAttemptIsAllowedAndLessHopeful(t *testing.T) {
	p := Policy{Costs: costs, Greedy: true, Attempts: 3}
	x := situation(fleet.SignatureDisk, 0.9, host(4, fleet.Actions()...))
	x.Tried = map[fleet.Action]time.Time{fleet.ActionLiveMigrate: time.Unix(1, 0)}
	x.Attempts = map[fleet.Action]int{fleet.ActionLiveMigrate: 1}
	d := p.Decide(x, nil)
	again := d.Alternatives[3]
	if !again.Available || again.CureProbability > 0.5 {
		t.Errorf("%+v", again)
	}
	x.Attempts[fleet.ActionLiveMigrate] = 3
	if again := p.Decide(x, nil).Alternatives[3]; again.Available || !strings.Contains(again.Why, "the fault is back") {
		t.Errorf("%+v", again)
	}
}

// TestFurtherAttemptsAreLearnedOverAllSignatures: of each signature alone there are too few.
func TestFurtherAttemptsAreLearnedOverAllSignatures(t *testing.T) {
	c := NewCures(BeliefWeight)
	rate := func(a fleet.Action) float64 { return c.Rate(fleet.SignatureThermal, a, true).Mean() }
	migrate, recycle := rate(fleet.ActionLiveMigrate), rate(fleet.ActionRecycle)
	for _, s := range []fleet.Signature{fleet.SignatureDisk, fleet.SignatureKernelFault} {
		if err := c.Add(Learned{Signature: s, Action: fleet.ActionLiveMigrate, Again: true, Beta: Beta{Failed: 40}}); err != nil {
			t.Fatal(err)
		}
	}
	if after := rate(fleet.ActionLiveMigrate); after > 0.3*migrate {
		t.Errorf("further migrations are believed to cure overheating with %.3f, and with %.3f after they have not cured other faults", migrate, after)
	}
	if after := rate(fleet.ActionRecycle); after != recycle {
		t.Errorf("that of recycles went from %v to %v", recycle, after)
	}
	if first := c.Rate(fleet.SignatureThermal, fleet.ActionLiveMigrate, false).Mean(); math.Abs(first-0.9) > 1e-9 {
		t.Errorf("that of first attempts went to %v", first)
	}
}

func TestVMsDiffer(t *testing.T) {
	h := host(3, fleet.Actions()...)
	for i, name := range []string{"web-1", "db-1", "web-2"} {
		h.VMs[i].Name = name
	}
	decide := func(rules ...VMRule) Decision {
		c := costs
		c.VMs = rules
		return byRule(situation(fleet.SignatureMemoryHardware, 0.9, h).Prediction, h, c, nil)
	}
	plain, weighty := decide(), decide(VMRule{Match: "db-*", Weight: 10})
	if a, b := plain.Alternatives[0].CostVMSeconds, weighty.Alternatives[0].CostVMSeconds; math.Abs(b-4*a) > 1e-9 {
		t.Errorf("a crash costs %v, and %v with a VM that counts as ten", a, b)
	}
	if plain.Action != fleet.ActionLiveMigrate {
		t.Fatalf("%s", plain.Action)
	}
	d := decide(VMRule{Match: "db-*", NoLiveMigration: true})
	if d.Action == fleet.ActionLiveMigrate || d.Alternatives[3].Available || !strings.Contains(d.Alternatives[3].Why, "db-1") {
		t.Errorf("%s, %+v", d.Action, d.Alternatives[3])
	}
	d = decide(VMRule{Match: "web-*", FreezeSeconds: 2})
	if d.Alternatives[2].Available || !d.Alternatives[3].Available || !strings.Contains(d.Alternatives[2].Why, "web-1") {
		t.Errorf("with 2 s at most: %+v", d.Alternatives)
	}
	if d := decide(VMRule{Match: "db-*"}, VMRule{Match: "*", NoLiveMigration: true}); d.Alternatives[3].Available {
		t.Error("the first rule that matches one VM was applied to all")
	}
}

func TestCuresAreCounted(t *testing.T) {
	c := NewCures(BeliefWeight)
	if m := c.Rate(fleet.SignatureServiceHang, fleet.ActionRecycle, false).Mean(); math.Abs(m-0.9) > 1e-9 {
		t.Errorf("the belief is %v", m)
	}
	teach(t, c, fleet.SignatureServiceHang, fleet.ActionRecycle, 1, 3)
	if b := c.Rate(fleet.SignatureServiceHang, fleet.ActionRecycle, false); math.Abs(b.Mean()-(3.6+1)/8) > 1e-9 {
		t.Errorf("after one success and three failures: %+v", b)
	}
	if err := c.Add(Learned{Signature: fleet.SignatureDisk, Action: fleet.ActionLiveMigrate, Again: true, Beta: Beta{Cured: 1}}); err != nil {
		t.Fatal(err)
	}
	again := NewCures(BeliefWeight)
	for _, l := range c.All() {
		if err := again.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(c.All(), again.All()) || len(c.All()) != 2 {
		t.Errorf("%+v and %+v", c.All(), again.All())
	}
	for _, bad := range []Learned{
		{Signature: fleet.SignatureNone, Action: fleet.ActionRecycle}, {Signature: fleet.SignatureDisk, Action: fleet.ActionHandOver},
		{Signature: fleet.SignatureDisk, Action: fleet.ActionRecycle, Beta: Beta{Cured: -1}},
		{Signature: fleet.SignatureDisk, Action: fleet.ActionRecycle, Beta: Beta{Failed: math.NaN()}},
	} {
		if err := c.Add(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestBetaDraws compares mean and variance with what they are.
func TestBetaDraws(t *testing.T) {
	r := seeded(9)
	for _, b := range []Beta{{0.04, 3.96}, {1, 1}, {3.6, 0.4}, {50, 20}} {
		const n = 20000
		sum, squares := 0.0, 0.0
		for range n {
			x := b.draw(r)
			if x < 0 || x > 1 || math.IsNaN(x) {
				t.Fatalf("%+v: %v", b, x)
			}
			sum += x
			squares += x * x
		}
		mean := sum / n
		variance := squares/n - mean*mean
		k := b.Cured + b.Failed
		want := b.Cured * b.Failed / (k * k * (k + 1))
		if math.Abs(mean-b.Mean()) > 5*math.Sqrt(want/n) || math.Abs(variance-want) > 0.1*want {
			t.Errorf("%+v: mean %v and variance %v, not %v and %v", b, mean, variance, b.Mean(), want)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	x := situation(fleet.SignatureNetwork, 0.8, host(8, fleet.Actions()...))
	p, r := learner(), seeded(1)
	for b.Loop() {
		p.Decide(x, r)
	}
}

func BenchmarkDecideOnASoundHost(b *testing.B) {
	x := situation(fleet.SignatureNone, 0, host(8, fleet.Actions()...))
	p, r := learner(), seeded(1)
	for b.Loop() {
		p.Decide(x, r)
	}
}

// byRule decides by the stated beliefs, without chance.
func byRule(p fleet.Prediction, h fleet.Host, c Costs, tried map[fleet.Action]time.Time) Decision {
	return Policy{Costs: c, Greedy: true}.Decide(Situation{Prediction: p, Host: h, Tried: tried}, nil)
}
