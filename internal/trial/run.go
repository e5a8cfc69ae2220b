package trial

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// Result is what a policy made of a fleet.
type Result struct {
	// Policy is one of [Policies].
	Policy string `json:"policy"`
	// VMSeconds is the interruption of all VMs together.
	VMSeconds float64              `json:"vm_seconds"`
	Tally     simulator.Tally      `json:"of_which"`
	Crashes   int                  `json:"crashes"`
	Actions   map[fleet.Action]int `json:"actions"`
	// FalseActions were on hosts without a fault, and cost so many VM-seconds.
	FalseActions int     `json:"false_actions"`
	FalseCost    float64 `json:"false_cost_vm_s"`
	// LaterVMSeconds is the interruption in the second half of the time, when a policy has learned.
	LaterVMSeconds float64 `json:"later_vm_seconds"`
}

// Policies lists the policies that can be tried. Reactive waits for the crash. Static goes through the
// phases in order. Bandit learns cure rates without knowing signatures, ours with them: both have
// kept another fleet before, the [Trial.School], and bring its outcomes along. A cold one begins
// without any. Oracle knows the faults that there are, hindsight also what will come of them.
func Policies() []string {
	return []string{"reactive", "static", "bandit", "ours", "ours" + cold, "oracle", "hindsight"}
}

// cold ends the name of a policy that learns, where it begins without outcomes.
const cold = "-cold"

// Trial is what policies are tried on.
type Trial struct {
	// Fleet is the one that they are judged on.
	Fleet
	// School is the one that policies that learn keep before.
	School Fleet
	// Model is what policies see fleets through; reactive, oracle and hindsight need none.
	Model *failure.Model
	Costs predictor.Costs
}

const (
	// outcomeAfter is how long a host must stay sound for an action to count as a cure.
	outcomeAfter = 24 * time.Hour
	// suspect is the probability from which something is taken to be wrong with a host, certain that from
	// which one sample is enough, and perhaps that from which it is looked at how much time there is.
	suspect = 0.8
	certain = 0.98
	perhaps = 0.5
	// triedLately is for how long after an action one sample is enough, too.
	triedLately = time.Hour
	// inVain is what an action costs a sound host, in VM-seconds: as much as a live migration of eight VMs. Where
	// the next sample is cheaper to wait for, it is waited for, unless something has seemed to be wrong for persists
	// samples already.
	inVain   = 5.0
	persists = 30
	// vainFor is for how long nothing but a unit's health is believed of a host that was emptied and found sound.
	vainFor = time.Hour
	// noise is the share of its time that a VM loses to a noisy neighbour, about.
	noise = 0.2
)

// decider is a policy that sees predictions.
type decider interface {
	// decide is asked about a host that seems to have a fault.
	decide(s predictor.Situation) predictor.Decision
	// outcome tells of an earlier action.
	outcome(s fleet.Signature, a fleet.Action, again, cured bool)
}

// member is what the trial's control plane knows of a host.
type member struct {
	follow *feature.Extractor
	x      []float64 // the features of the last sample
	over   int
	// unhealthy is for how many samples in a row a unit has failed its health check.
	unhealthy int
	recycled  bool   // since the last sample
	boot      string // of the last sample; "" after a reset
	tried     *predictor.Tried
	away      bool      // its VMs were moved off it
	repaired  time.Time // until when a person is at it
	vain      time.Time // when its VMs were moved off it last, and back at once, since there was nothing to repair
}

// watch runs a policy that sees telemetry through a model.
type watch struct {
	f       *simulator.Fleet
	model   *failure.Model
	policy  decider
	costs   predictor.Costs
	members []member
	ids     map[fleet.HostID]int
	p, s    []float64
	result  *Result

	scorer  *failure.Scorer
	numbers []int // of the hosts of a step's samples, as the following
	rows    [][]float64
	odd     []float64
}

var phaseOf = map[fleet.Action]fleet.Phase{fleet.ActionRecycle: fleet.PhaseRecycle, fleet.ActionPreservingReset: fleet.PhaseReset, fleet.ActionLiveMigrate: fleet.PhaseMigrate}

// NeedsModel tells whether a policy sees telemetry through a model.
func NeedsModel(policy string) bool {
	return policy != "reactive" && policy != "oracle" && policy != "hindsight"
}

// schooled tells whether a policy keeps the school first.
func schooled(policy string) bool { return policy == "bandit" || policy == "ours" }

// Steps is how many samples of a fleet a policy is tried on.
func (t *Trial) Steps(policy string) int {
	n := t.Fleet.steps(time.Minute)
	if schooled(policy) {
		n += t.School.steps(time.Minute)
	}
	return n
}

// Run tries a policy. step, if not nil, is called after each sample of a fleet.
func (t *Trial) Run(ctx context.Context, policy string, step func()) (Result, error) {
	if !NeedsModel(policy) {
		return t.keep(ctx, t.Fleet, policy, nil, step)
	}
	p, err := newDecider(strings.TrimSuffix(policy, cold), t.Costs, t.Seed)
	if err != nil {
		return Result{}, err
	}
	if schooled(policy) {
		if _, err := t.keep(ctx, t.School, "school", p, step); err != nil {
			return Result{}, fmt.Errorf("before %s is tried: %w", policy, err)
		}
	}
	return t.keep(ctx, t.Fleet, policy, p, step)
}

// keep lets a policy keep a fleet; p is what sees telemetry, nil where the name says what else it is.
func (t *Trial) keep(ctx context.Context, c Fleet, name string, p decider, step func()) (Result, error) {
	f, err := simulator.New(simulator.Config{Hosts: c.Hosts, Seed: c.Seed, FaultRate: c.FaultRate, CrashSeconds: t.Costs.CrashSeconds, HandOverSeconds: t.Costs.HandOverSeconds})
	if err != nil {
		return Result{}, err
	}
	r := Result{Policy: name, Actions: map[fleet.Action]int{}}
	var each func(samples []fleet.Sample) error
	switch {
	case p != nil:
		each = newWatch(f, t.Model, p, t.Costs, &r).step
	case name == "reactive":
		each = func([]fleet.Sample) error { return nil }
	default:
		each = newOracle(f, name == "hindsight", t.Costs, &r).step
	}
	var samples []fleet.Sample
	steps, half := c.steps(f.Interval()), 0.0
	for n := range steps {
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		samples = f.Step(samples)
		if err := each(samples); err != nil {
			return Result{}, err
		}
		if n == steps/2 {
			half = f.Tally().VMSeconds()
		}
		if step != nil {
			step()
		}
	}
	r.Tally = f.Tally()
	r.VMSeconds, r.Crashes = r.Tally.VMSeconds(), r.Tally.Crashes
	r.LaterVMSeconds = r.VMSeconds - half
	return r, nil
}

func newWatch(f *simulator.Fleet, m *failure.Model, p decider, costs predictor.Costs, r *Result) *watch {
	w := &watch{f: f, model: m, policy: p, costs: costs, ids: map[fleet.HostID]int{}, result: r, scorer: m.Scorer(),
		p: make([]float64, len(m.Horizons())), s: make([]float64, len(m.Signatures()))}
	for i, h := range f.Hosts() {
		w.ids[h.ID] = i
		w.members = append(w.members, member{follow: feature.New(), x: make([]float64, feature.Size), tried: predictor.NewTried(outcomeAfter)})
	}
	return w
}

func (w *watch) step(samples []fleet.Sample) error {
	w.rows = w.rows[:0]
	w.numbers = w.numbers[:0]
	for i := range samples {
		n := w.ids[samples[i].Host]
		w.numbers = append(w.numbers, n)
		m := &w.members[n]
		if m.boot != "" && m.boot != samples[i].Boot {
			w.tell(m.tried.Crashed(samples[i].Time), false) // no reset brought the new boot about
		}
		m.boot = samples[i].Boot
		m.follow.Observe(&samples[i])
		m.follow.Vector(m.x)
		w.rows = append(w.rows, m.x)
	}
	w.odd = append(w.odd[:0], make([]float64, len(w.rows))...)
	w.scorer.Odd(w.odd, w.rows)
	for i := range samples {
		s, odd := &samples[i], w.odd[i]
		n := w.numbers[i]
		m := &w.members[n]
		if bad, ok := s.Value("units_unhealthy"); ok && bad > 0 {
			m.unhealthy++
		} else {
			m.unhealthy = 0
		}
		w.settle(m, s.Time)
		if m.away {
			if len(w.f.Host(n).VMs) > 0 { // it was repaired: what was seen before says nothing any more
				m.away, m.over, m.tried = false, 0, predictor.NewTried(outcomeAfter)
				m.follow.Recovered()
			}
			continue
		}
		// A recycle ends with a look at the health of what was restarted: that it failed is known at
		// once. And a unit that stays unhealthy needs no model.
		hangs := m.unhealthy >= 2 || m.unhealthy > 0 && m.recycled
		m.recycled = false
		sound := odd < suspect && !hangs && !w.urgent(n, odd)
		m.tried.Observe(s.Time, sound)
		if sound {
			m.over = 0
			continue
		}
		if !hangs && !m.vain.IsZero() && s.Time.Sub(m.vain) < vainFor {
			continue
		}
		m.over++
		// Where an action was just tried, that it failed is nearer than that a sound host seems to have a fault.
		tried := s.Time.Sub(m.tried.Newest()) < triedLately
		if m.over < 2 && odd < certain && !hangs && !tried {
			continue
		}
		if err := w.consider(n, s, odd, hangs); err != nil {
			return err
		}
	}
	return nil
}

// settle counts actions as cures after which a host was sound for long enough.
func (w *watch) settle(m *member, now time.Time) {
	w.tell(m.tried.Settle(now), true)
}

// tell tells the policy what came of attempts.
func (w *watch) tell(all []predictor.Attempt, cured bool) {
	for _, a := range all {
		w.policy.outcome(a.Signature, a.Action, a.Again, cured)
	}
}

// consider asks the policy about a host that seems to have a fault, and does what it says.
func (w *watch) consider(n int, s *fleet.Sample, odd float64, hangs bool) error {
	m := &w.members[n]
	if s.Time.Before(m.repaired) {
		return nil
	}
	h := w.f.Host(n)
	w.model.Failure(w.p, m.x)
	best := w.model.Signature(w.s, m.x)
	signature := fleet.Signature(w.model.Signatures()[best])
	if !hangs && m.over < persists && !w.hurries(odd, signature, len(h.VMs)) {
		return nil
	}
	if hangs {
		signature, w.s[best], odd = fleet.SignatureServiceHang, 1, max(odd, 0.95)
		w.p[len(w.p)-1] = max(w.p[len(w.p)-1], 0.9)
	}
	situation := predictor.Situation{
		Prediction: fleet.Prediction{Host: s.Host, Time: s.Time, State: fleet.PredictionScoring, FailureProbability: w.p[len(w.p)-1],
			HorizonSeconds: w.model.Horizons()[len(w.p)-1].Seconds(), Signature: signature},
		Host: h, SoonProbability: w.p[0], FaultProbability: odd, SignatureProbability: w.s[best],
	}
	w.tell(m.tried.Back(signature, "", s.Time), false)
	situation.Tried, situation.Attempts = m.tried.Against(signature, "", s.Time)
	d := w.policy.decide(situation)
	if d.Action == fleet.ActionNone {
		return nil
	}
	return w.act(n, m, d.Action, signature, s.Time)
}

// urgent tells whether to wait until it is surer that anything is wrong is expected to cost more than to act in vain.
func (w *watch) urgent(n int, odd float64) bool {
	if odd < perhaps {
		return false
	}
	w.model.Failure(w.p, w.members[n].x)
	return w.hurries(odd, "", len(w.f.Host(n).VMs))
}

// hurries tells whether to wait for another sample is expected to cost more than to act in vain: the former
// where there is a fault, of which the host fails or which takes the VMs' time, the latter where there is none.
func (w *watch) hurries(odd float64, signature fleet.Signature, vms int) bool {
	perMinute := max(w.p[0]/5, w.p[1]/60) * w.costs.CrashSeconds
	if signature == fleet.SignatureNoisyNeighbour {
		perMinute += noise * 60
	}
	return odd*perMinute*float64(max(vms, 1)) > (1-odd)*inVain
}

func (w *watch) act(n int, m *member, a fleet.Action, signature fleet.Signature, now time.Time) error {
	faults, _, _ := w.f.Stage(n)
	before := w.f.Tally().VMSeconds()
	id := w.f.Host(n).ID
	w.result.Actions[a]++
	if a == fleet.ActionHandOver {
		lasts, err := w.f.HandOver(id)
		if err != nil {
			return err
		}
		if lasts == 0 { // there was nothing to repair, which takes a person a while to see
			lasts = time.Hour
		}
		m.repaired = now.Add(lasts + 10*time.Minute)
		m.tried, m.over = predictor.NewTried(outcomeAfter), 0
	} else {
		out, err := w.f.Apply(id, phaseOf[a], nil)
		if err != nil {
			return err
		}
		t := predictor.Attempt{Action: a, Signature: signature, At: now}
		left := len(out.Moved) > 0 && out.Detail == ""
		m.away = a == fleet.ActionLiveMigrate && len(w.f.Host(n).VMs) == 0
		switch {
		case left && !m.away: // a false alarm, which teaches nothing of what was done
			m.vain, m.tried, m.over = now, predictor.NewTried(outcomeAfter), 0
		case a == fleet.ActionLiveMigrate:
			t.Known = true // whether the VMs left is known at once
			w.tell([]predictor.Attempt{m.tried.Add(t)}, left)
		default:
			m.follow.Recovered()
			m.over, m.recycled = 0, a == fleet.ActionRecycle
			if a == fleet.ActionPreservingReset && !out.Harmed {
				m.boot = ""
			}
			m.tried.Add(t)
		}
	}
	if faults == 0 {
		w.result.FalseActions++
		w.result.FalseCost += w.f.Tally().VMSeconds() - before
	}
	return nil
}

// newDecider makes a policy by its name.
func newDecider(name string, costs predictor.Costs, seed uint64) (decider, error) {
	src := rand.New(rand.NewPCG(seed, 0xdec1de))
	switch name {
	case "static":
		return static{}, nil
	case "bandit":
		return &learner{policy: predictor.Policy{Costs: costs, Cures: predictor.NewCures(0), Explore: 0.02, ActAt: actAt, Attempts: 20}, src: src, blind: true}, nil
	case "ours":
		return &learner{policy: predictor.Policy{Costs: costs, Cures: predictor.NewCures(predictor.BeliefWeight), Explore: 0.02, ActAt: actAt, Attempts: 20}, src: src}, nil
	}
	return nil, fmt.Errorf("trial: policy %q is unknown", name)
}

// actAt is the failure probability from which the policies under trial act.
const actAt = 0.02

// static goes through the phases in order, whatever is wrong.
type static struct{}

func (static) decide(s predictor.Situation) predictor.Decision {
	for _, a := range []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate, fleet.ActionHandOver} {
		if s.Tried[a].IsZero() {
			return predictor.Decision{Action: a, Propensity: 1}
		}
	}
	return predictor.Decision{Action: fleet.ActionNone, Propensity: 1}
}

func (static) outcome(fleet.Signature, fleet.Action, bool, bool) {}

// learner is predictor's policy. A blind one sees no signature: one set of rates is for all.
type learner struct {
	policy predictor.Policy
	src    *rand.Rand
	blind  bool
}

const blindSignature = fleet.SignatureServiceHang // any one will do

func (l *learner) decide(s predictor.Situation) predictor.Decision {
	if l.blind {
		s.Prediction.Signature, s.SignatureProbability = blindSignature, 0
	}
	return l.policy.Decide(s, l.src)
}

func (l *learner) outcome(s fleet.Signature, a fleet.Action, again, cured bool) {
	if l.blind {
		s = blindSignature
	}
	b := predictor.Beta{Failed: 1}
	if cured {
		b = predictor.Beta{Cured: 1}
	}
	_ = l.policy.Cures.Add(predictor.Learned{Signature: s, Action: a, Again: again, Beta: b}) // hand-over has no rate
}

// oracle sees the faults themselves from the moment on at which the metrics show them. It knows
// what each is, how far it has got, and with which probability each action would cure it, and
// chooses the sequence of actions that is expected to cost least. It does not know what has yet
// to be drawn: whether an action will cure, and whether a fault that is left alone will be fatal.
// With hindsight it knows that too.
type oracle struct {
	f         *simulator.Fleet
	hindsight bool
	costs     predictor.Costs
	result    *Result
	hosts     []fleet.Host
	handed    map[fleet.HostID]time.Time
}

func newOracle(f *simulator.Fleet, hindsight bool, costs predictor.Costs, r *Result) *oracle {
	return &oracle{f: f, hindsight: hindsight, costs: costs, result: r, hosts: f.Hosts(), handed: map[fleet.HostID]time.Time{}}
}

func (o *oracle) step([]fleet.Sample) error {
	now := o.f.Now()
	for n, h := range o.hosts {
		if faults, _, _ := o.f.Stage(n); faults == 0 || now.Before(o.handed[h.ID]) {
			continue
		}
		var seen []simulator.Fault
		for _, x := range o.f.Truth(h.ID) {
			if !x.Effect.IsZero() {
				seen = append(seen, x)
			}
		}
		vms := float64(len(o.f.Host(n).VMs))
		if len(seen) == 0 || vms == 0 {
			continue
		}
		a := o.choose(seen, vms)
		if a == fleet.ActionNone {
			continue
		}
		o.result.Actions[a]++
		if a == fleet.ActionHandOver {
			lasts, err := o.f.HandOver(h.ID)
			if err != nil {
				return err
			}
			o.handed[h.ID] = now.Add(lasts)
		} else if _, err := o.f.Apply(h.ID, phaseOf[a], nil); err != nil {
			return err
		}
	}
	return nil
}

// plan is the state of a host's faults in numbers.
type plan struct {
	first, again [3]float64 // cure probability of the next attempt and of those after it, by action
	cost         [3]float64
	none, person float64
}

func (o *oracle) choose(seen []simulator.Fault, vms float64) fleet.Action {
	p := plan{first: [3]float64{1, 1, 1}, again: [3]float64{1, 1, 1}, person: math.Inf(1)}
	sure := [3]bool{true, true, true}
	harmless := true
	for _, x := range seen {
		none := x.Kind.FatalProbability() * o.costs.CrashSeconds * vms
		person := math.Inf(1)
		for _, w := range x.Would {
			switch w.Action {
			case fleet.ActionNone:
				if x.Kind == simulator.NoisyNeighbour {
					none = w.CostVMSeconds
				}
				if o.hindsight && w.Cures && x.Kind != simulator.NoisyNeighbour {
					none = 0
				}
			case fleet.ActionHandOver:
				person = none
				if w.Cures {
					person = min(none, o.costs.HandOverSeconds*vms)
				}
			default:
				i := map[fleet.Action]int{fleet.ActionRecycle: 0, fleet.ActionPreservingReset: 1, fleet.ActionLiveMigrate: 2}[w.Action]
				unit := ""
				if x.Kind == simulator.MemoryLeak || x.Kind == simulator.ServiceHang || x.Kind == simulator.DescriptorLeak {
					unit = x.Culprit
				}
				full := x.Kind.CureProbability(phaseOf[w.Action], unit, x.Level)
				p.first[i] *= w.CureProbability
				p.again[i] *= full / 4
				p.cost[i] = max(p.cost[i], w.CostVMSeconds)
				sure[i] = sure[i] && w.Cures
			}
		}
		harmless = harmless && none == 0
		p.none += none
		if math.IsInf(p.person, 1) {
			p.person = 0
		}
		p.person = max(p.person, person)
	}
	if o.hindsight {
		if harmless {
			return fleet.ActionNone
		}
		best, cost := fleet.ActionNone, math.Inf(1)
		for i, a := range []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
			if sure[i] && p.cost[i] < cost {
				best, cost = a, p.cost[i]
			}
		}
		if best != fleet.ActionNone && cost < min(p.none, p.person) {
			return best
		}
	}
	a, _ := p.best([3]int{}, 0)
	return a
}

// best is the best next action after so many attempts of each, and its expected cost.
func (p *plan) best(done [3]int, depth int) (fleet.Action, float64) {
	best, cost := fleet.ActionNone, p.none
	if p.person < cost {
		best, cost = fleet.ActionHandOver, p.person
	}
	if depth == 5 {
		return best, cost
	}
	for i, a := range []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
		cure := p.first[i]
		if done[i] > 0 {
			cure = p.again[i]
		}
		if cure < 0.005 || p.cost[i] >= cost {
			continue
		}
		next := done
		next[i]++
		_, then := p.best(next, depth+1)
		if c := p.cost[i] + (1-cure)*then; c < cost {
			best, cost = a, c
		}
	}
	return best, cost
}
