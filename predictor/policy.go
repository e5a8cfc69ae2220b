package predictor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Costs are the figures by which the policy prices an action, in seconds of
// interruption of one VM of weight 1. The zero value of a freeze takes the default.
type Costs struct {
	// CrashSeconds is lost by a VM when its host fails under it.
	CrashSeconds float64
	// HandOverSeconds is what a VM on a failing host is expected to lose until a
	// person has dealt with it.
	HandOverSeconds float64
	// ResetFreezeSeconds and MigrateFreezeSeconds are for how long a VM stands still in a
	// preserving reset, the host's kexec included, and in a live migration; 20 and 0.5 by default.
	ResetFreezeSeconds   float64
	MigrateFreezeSeconds float64
	// NoiseRatio is the share of its time that a VM loses to a noisy neighbour; 0.2 by default.
	NoiseRatio float64
	// VMs says which VMs differ from others. The first rule that matches counts.
	VMs []VMRule
}

// VMRule says how VMs whose name or id matches differ from others.
type VMRule struct {
	// Match is a pattern as [path.Match] has them: "db-*".
	Match string
	// Weight is how many others one of these counts as; 0 means 1.
	Weight float64
	// FreezeSeconds is how long it may stand still at most: an action that takes longer is not
	// chosen. 0 means without limit.
	FreezeSeconds float64
	// NoLiveMigration means that it must stay on its host.
	NoLiveMigration bool
}

// price is what an action costs where it works, and the chance that it harms.
type price struct {
	freezeSeconds float64 // of each VM, where all goes well
	harm          float64 // probability that the action itself does harm
	one           bool    // the harm is to one VM, not to all
}

// prices: a recycle does not touch the guests; the freeze of a preserving reset
// includes the kexec of the host, that of a live migration is its downtime.
func (c *Costs) prices() [len(cureActions)]price {
	or := func(v, otherwise float64) float64 {
		if v > 0 {
			return v
		}
		return otherwise
	}
	return [len(cureActions)]price{{0, 0.0005, false}, {or(c.ResetFreezeSeconds, 20), 0.01, false}, {or(c.MigrateFreezeSeconds, 0.5), 0.005, true}}
}

// actUnder is the failure probability under which nothing is recommended.
const actUnder = 0.15

// PolicyName identifies the policy in recommendations, and RuleName the one that
// knows no outcomes.
const (
	PolicyName = "thompson-vm-seconds/1"
	RuleName   = "expected-vm-seconds/1"
)

// Decision is what the policy makes of a prediction.
type Decision struct {
	Action        fleet.Action
	CostVMSeconds float64
	Alternatives  []fleet.Alternative
	Reason        string
	// Propensity is the probability with which the policy chose the action, and Propensities
	// that of each, in the order of Alternatives.
	Propensity   float64
	Propensities []float64
	// Policy is the name of what decided: [PolicyName] or, where it was unsure, [RuleName].
	Policy string
}

// Situation is what a decision is made on.
type Situation struct {
	Prediction fleet.Prediction
	Host       fleet.Host
	// Tried has the actions that were carried out against this fault a short while ago, and
	// when: they did not cure it, see [Tried]. nil means none.
	Tried map[fleet.Action]time.Time
	// Attempts says how often each was; an action in Tried that is not here was tried once.
	Attempts map[fleet.Action]int
	// SoonProbability is that of the host failing within five minutes; 0 where nobody can tell.
	SoonProbability float64
	// FaultProbability is that of there being a fault at all, whether the host fails of it within the
	// horizon or later; 0 where nobody can tell: then that of failing stands for it. A person who is
	// called interrupts the VMs of a host that has a fault.
	FaultProbability float64
	// SignatureProbability is how sure the signature is; 0 where nobody can tell.
	SignatureProbability float64
}

// Policy decides what is done about a failing host: what is expected to cost the VMs least,
// over the sequence of actions that follows where one does not cure.
//
// It learns cure rates by Thompson sampling: rates are drawn from what is believed of
// them, and the action is chosen that would be best if they were true, so that what is not known
// well is tried as often as it may be the best. Beyond that, Explore of all choices fall on the
// other actions that can be done here and have a cure rate to learn, more on those that cost
// little more than the best. Where the signature is unsure the rule decides: the
// stated beliefs of an unknown fault, with as much exploration.
//
// A Policy is safe for concurrent use as long as its fields are not changed.
type Policy struct {
	Costs Costs
	// Cures is what is known of the actions; nil means the stated beliefs alone.
	Cures *Cures
	// Explore is the share of choices that is left to chance, 0..1. With 0 and Greedy the
	// policy is not random.
	Explore float64
	// Greedy takes expected rates instead of drawn ones.
	Greedy bool
	// Attempts is how often an action may be tried against the same fault; 0 means once.
	Attempts int
	// ActAt is the failure probability from which anything is recommended; 0 means 0.15.
	ActAt float64
}

const (
	// draws is how many sets of rates are drawn for the propensities. The choice is then made
	// with just these propensities, so what is logged is exact, however few they are.
	draws = 200
	// attemptSeconds is how long it takes until the outcome of an action is known.
	attemptSeconds = 120
	// personSeconds is how long it takes a person to deal with a host, and noiseSeconds how long a
	// noisy neighbour goes on where nobody does.
	personSeconds = 900
	noiseSeconds  = 3600
	// soonSeconds is the horizon of Situation.SoonProbability.
	soonSeconds = 300.0
	// sureAt is the probability of the signature from which its cure rates are used.
	sureAt = 0.5
)

var statedBeliefs = NewCures(BeliefWeight)

// pricing is a situation in numbers.
type pricing struct {
	vms, weight   float64 // how many VMs, and what they weigh together
	crash, person float64 // expected VM-seconds where nothing is done, and where a person is called
	soon          float64 // of the host failing before the next action
	wait          float64 // what is lost until the next action, where this one doesn't cure
	whole         float64 // VM-seconds of a crash
	prices        [len(cureActions)]price
	open          [len(cureActions)]bool
	why           [len(cureActions)]string // not open
	left          turns                    // how often each may still be tried
	failed        [len(cureActions)]bool   // it was tried already
	more          [len(cureActions)]bool   // beyond those in left, many more attempts are allowed
}

// rates are cure rates, of a first attempt and of further ones.
type rates [2][len(cureActions)]float64

// turns are how often each action may still be tried.
type turns [len(cureActions)]int8

// mostAttempts is how many further attempts of an action are thought through.
const mostAttempts = 4

// Decide prices every action for a host and chooses one. It is a function of its arguments and
// what the source gives; r may be nil for a policy that is greedy and does not explore.
//
// An action's cost is its own interruption plus the probability that it does not cure the fault
// times the cost of the best of what is left, down to a person, and of the host failing
// meanwhile. A host without VMs is priced as if it had one, since the next VM may be placed
// there at any time.
func (p Policy) Decide(s Situation, r *rand.Rand) Decision {
	cures, sure := p.Cures, true
	if cures == nil {
		cures = statedBeliefs
	}
	signature := s.Prediction.Signature
	if s.SignatureProbability > 0 && s.SignatureProbability < sureAt && signature != fleet.SignatureNone || signature == fleet.SignatureUnknown && !p.Greedy {
		sure, cures, signature = false, statedBeliefs, fleet.SignatureUnknown
	}
	x := p.price(s)
	var known [2][len(cureActions)]Beta
	var mean rates
	cures.mu.RLock()
	for turn := range known {
		for i := range cureActions {
			known[turn][i] = cures.rate(signature, i, turn)
			mean[turn][i] = known[turn][i].Mean()
		}
	}
	cures.mu.RUnlock()
	costs := x.costs(mean)
	d := Decision{Policy: PolicyName, Alternatives: x.alternatives(&p.Costs, s.Prediction.FailureProbability, mean, costs), Propensities: make([]float64, numActions)}
	if !sure {
		d.Policy = RuleName
	}
	act := p.ActAt
	if act == 0 {
		act = actUnder
	}
	only := func(i int) Decision {
		d.Action, d.CostVMSeconds, d.Propensity, d.Propensities[i] = d.Alternatives[i].Action, costs[i], 1, 1
		return d
	}
	if s.Prediction.State != fleet.PredictionScoring || s.Prediction.FailureProbability < act || s.Prediction.Signature == fleet.SignatureNone {
		d.Reason = fmt.Sprintf("%s shows nothing that calls for action.", s.Prediction.Host)
		return only(none)
	}
	best := x.best(costs)
	if at := s.Tried[fleet.ActionHandOver]; !at.IsZero() && best == person {
		d.Reason = fmt.Sprintf("%s was handed over to a person at %s.", s.Prediction.Host, at.UTC().Format("15:04:05"))
		return only(none)
	}
	if p.Greedy || !sure {
		d.Propensities[best] = 1
	} else {
		for range draws {
			for turn := range known {
				for i, b := range known[turn] {
					mean[turn][i] = b.draw(r)
				}
			}
			drawn := x.best(x.costs(mean))
			if drawn == none || drawn == person { // teaches nothing of any rate: it must be the best as far as is known
				drawn = best
			}
			d.Propensities[drawn]++
		}
		for i := range d.Propensities {
			d.Propensities[i] /= draws
		}
	}
	p.explore(&x, &d, costs, best)
	choice := best
	if r != nil {
		u := r.Float64()
		for i, q := range d.Propensities {
			if u -= q; u < 0 {
				choice = i
				break
			}
		}
	}
	d.Action, d.CostVMSeconds, d.Propensity = d.Alternatives[choice].Action, costs[choice], d.Propensities[choice]
	d.Reason = reason(s.Prediction, d, x.vms)
	return d
}

// The places of the actions in Alternatives, those that cure from 1 on.
const (
	none       = 0
	firstCure  = 1
	person     = firstCure + len(cureActions)
	numActions = person + 1
)

// explore moves a share of the propensities to the actions that may cure but are not the best, the
// more to each the less it is expected to cost beyond the best.
func (p Policy) explore(x *pricing, d *Decision, costs [numActions]float64, best int) {
	if p.Explore <= 0 {
		return
	}
	var share [numActions]float64
	sum := 0.0
	for i := range cureActions {
		if j := firstCure + i; x.open[i] && j != best {
			share[j] = 1 / (1 + costs[j] - costs[best])
			sum += share[j]
		}
	}
	if sum == 0 {
		return
	}
	for i := range d.Propensities {
		d.Propensities[i] = min((1-p.Explore)*d.Propensities[i]+p.Explore*share[i]/sum, 1)
	}
}

func (p *Policy) price(s Situation) pricing {
	c := &p.Costs
	survives := 1 - min(max(s.SoonProbability, 0), 1)
	x := pricing{prices: c.prices(), soon: 1 - math.Pow(survives, attemptSeconds/soonSeconds)}
	for i, a := range cureActions {
		tried := 0
		at := s.Tried[a]
		if !at.IsZero() {
			x.failed[i], tried = true, max(s.Attempts[a], 1)
		}
		x.open[i], x.left[i] = true, int8(min(max(max(p.Attempts, 1)-tried, 0), mostAttempts))
		x.more[i] = max(p.Attempts, 1)-tried > mostAttempts
		if tried > 0 {
			if x.left[i] == 0 {
				x.open[i], x.why[i] = false, fmt.Sprintf("it was done at %s and the fault is back", at.UTC().Format("15:04:05"))
			}
		}
		if !can(s.Host, a) {
			x.open[i], x.why[i] = false, "this host cannot do it: its agent does not offer "+string(a)
		}
	}
	for _, v := range s.Host.VMs {
		if v.State == "shut-off" {
			continue
		}
		x.vms++
		rule := c.rule(v)
		weight := rule.Weight
		if weight == 0 {
			weight = 1
		}
		x.weight += weight
		for i, a := range cureActions {
			switch f := x.prices[i].freezeSeconds; {
			case !x.open[i]:
			case a == fleet.ActionLiveMigrate && rule.NoLiveMigration:
				x.open[i], x.why[i] = false, fmt.Sprintf("%s must not be migrated (policy.vms)", vmName(v))
			case rule.FreezeSeconds > 0 && f > rule.FreezeSeconds:
				x.open[i], x.why[i] = false, fmt.Sprintf("%s may stand still for %.3g s at most, and it takes some %.3g s (policy.vms)", vmName(v), rule.FreezeSeconds, f)
			}
		}
	}
	for i, open := range x.open {
		if !open {
			x.left[i], x.more[i] = 0, false
		}
	}
	x.vms, x.weight = math.Max(x.vms, 1), math.Max(x.weight, 1)
	x.whole = c.CrashSeconds * x.weight
	x.wait = x.soon * x.whole
	if s.Prediction.Signature == fleet.SignatureNoisyNeighbour { // it takes time all the while, and no host
		noise := c.NoiseRatio
		if noise == 0 {
			noise = 0.2
		}
		x.soon, x.wait = 0, noise*attemptSeconds*x.weight
	}
	x.crash = s.Prediction.FailureProbability * x.whole
	fault := max(s.FaultProbability, s.Prediction.FailureProbability)
	// The host may fail before the person has dealt with it.
	soon := 1 - math.Pow(survives, personSeconds/soonSeconds)
	x.person = (1-soon)*fault*c.HandOverSeconds*x.weight + soon*x.whole
	if s.Prediction.Signature == fleet.SignatureNoisyNeighbour { // and goes on until somebody ends it
		perSecond := x.wait / attemptSeconds
		x.person += fault * personSeconds * perSecond
		x.crash = max(x.crash, s.Prediction.FailureProbability*noiseSeconds*perSecond)
	}
	return x
}

func vmName(v fleet.VM) string {
	if v.Name != "" {
		return "VM " + v.Name
	}
	return "VM " + v.ID
}

func (c *Costs) rule(v fleet.VM) VMRule {
	for _, r := range c.VMs {
		for _, name := range []string{v.Name, v.ID} {
			if ok, err := path.Match(r.Match, name); ok && err == nil {
				return r
			}
		}
	}
	return VMRule{}
}

// costs are the expected VM-seconds of each action, in the order of Alternatives, with these
// cure rates. Those of an action that is not open are what it would cost if it were.
func (x *pricing) costs(cure rates) (out [numActions]float64) {
	t := thought{x: x, cure: cure}
	out[none], out[person] = x.crash, x.person
	for i := range cureActions {
		left := x.left
		left[i] = max(left[i]-1, 0)
		out[firstCure+i] = t.after(i, x.failed[i], left)
	}
	return out
}

// thought goes through sequences of actions, with these cure rates.
type thought struct {
	x     *pricing
	cure  rates
	known [(mostAttempts + 1) * (mostAttempts + 1) * (mostAttempts + 1)]float64 // cost of the best by what is left, plus 1
}

// own is what an action costs by itself.
func (x *pricing) own(i int) float64 {
	p := &x.prices[i]
	if p.one {
		return p.freezeSeconds*x.weight + p.harm*x.whole/x.vms
	}
	return p.freezeSeconds*x.weight + p.harm*x.whole
}

// end is the cost of the best of what does not change the turns: a person, nothing, or to try an
// action again and again until it cures.
func (t *thought) end() float64 {
	x := t.x
	best := min(x.person, x.crash)
	for i, more := range x.more {
		if more {
			fails := 1 - t.cure[1][i]
			best = min(best, (x.own(i)+fails*x.wait)/(1-fails*(1-x.soon)+1e-9))
		}
	}
	return best
}

// after is the cost of an action and of what follows, with the turns that are left then.
func (t *thought) after(i int, failed bool, left turns) float64 {
	x := t.x
	return x.own(i) + (1-t.cure[place(failed)][i])*(x.wait+(1-x.soon)*t.best(left))
}

// best is the cost of the best of what can be done with the turns that are left.
func (t *thought) best(left turns) float64 {
	key := 0
	for _, n := range left {
		key = key*(mostAttempts+1) + int(n)
	}
	if v := t.known[key]; v > 0 {
		return v - 1
	}
	best := t.end()
	for i, n := range left {
		if n > 0 {
			then := left
			then[i]--
			best = min(best, t.after(i, t.x.failed[i] || n < t.x.left[i], then))
		}
	}
	t.known[key] = best + 1
	return best
}

// best is the cheapest of what can be done; of equals the gentlest.
func (x *pricing) best(costs [numActions]float64) int {
	best := none
	for i := range costs {
		if c := i - firstCure; c >= 0 && c < len(cureActions) && !x.open[c] {
			continue
		}
		if costs[i] < costs[best] {
			best = i
		}
	}
	return best
}

func (x *pricing) alternatives(c *Costs, probability float64, cure rates, costs [numActions]float64) []fleet.Alternative {
	vms := count(x.vms)
	out := []fleet.Alternative{{Action: fleet.ActionNone, Available: true, CostVMSeconds: costs[none],
		Why: fmt.Sprintf("a crash costs %s %.0f s each and comes with probability %.2f", vms, c.CrashSeconds, probability)}}
	for i, a := range cureActions {
		alt := fleet.Alternative{Action: a, Available: x.open[i], CostVMSeconds: costs[firstCure+i], CureProbability: cure[place(x.failed[i])][i], Why: x.why[i]}
		if x.open[i] {
			alt.Why = during[i] + "; if it fails, " + x.follows(cure, i) + " follows"
		}
		out = append(out, alt)
	}
	return append(out, fleet.Alternative{Action: fleet.ActionHandOver, Available: true, CostVMSeconds: costs[person],
		Why: fmt.Sprintf("until a person has acted, %s may lose %.0f s each", vms, c.HandOverSeconds)})
}

// during says what guests notice of each action.
var during = [len(cureActions)]string{"guests do not notice", "guests freeze for the reset and go on", "guests move to a healthy host"}

// follows names what is best after action i has failed.
func (x *pricing) follows(cure rates, i int) string {
	t := thought{x: x, cure: cure}
	left := x.left
	left[i]--
	next, name := t.end(), "a person"
	for j, words := range []string{"a recycle", "a preserving reset", "live migration"} {
		if left[j] == 0 {
			continue
		}
		then := left
		then[j]--
		if c := t.after(j, j == i || x.failed[j], then); c < next {
			next, name = c, words
		}
	}
	return name
}

func can(h fleet.Host, a fleet.Action) bool {
	for _, have := range h.Actions {
		if have == a {
			return true
		}
	}
	return false
}

func count(n float64) string {
	if n == 1 {
		return "1 VM"
	}
	return fmt.Sprintf("%.0f VMs", n)
}

var words = map[fleet.Signature]string{
	fleet.SignatureServiceHang:    "a hanging service",
	fleet.SignatureMemoryLeak:     "a memory leak",
	fleet.SignatureKernelFault:    "a kernel fault",
	fleet.SignatureDisk:           "a failing disk",
	fleet.SignatureMemoryHardware: "failing memory",
	fleet.SignatureNetwork:        "a network fault",
	fleet.SignatureThermal:        "overheating",
	fleet.SignatureNoisyNeighbour: "a noisy neighbour",
	fleet.SignatureUnknown:        "an unknown fault",
}

var doing = map[fleet.Action]string{
	fleet.ActionNone:            "doing nothing",
	fleet.ActionRecycle:         "restarting its services",
	fleet.ActionPreservingReset: "a preserving reset",
	fleet.ActionLiveMigrate:     "live migration",
	fleet.ActionHandOver:        "handing it over to a person",
}

func reason(p fleet.Prediction, d Decision, vms float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s shows %s", p.Host, words[p.Signature])
	if p.Culprit != "" {
		fmt.Fprintf(&b, " in %s", p.Culprit)
	}
	if len(p.Evidence) > 0 {
		fmt.Fprintf(&b, " (%s)", p.Evidence[0])
	}
	fmt.Fprintf(&b, " and fails with probability %.2f within %s; %s is expected to cost %s %.1f VM-seconds, doing nothing %.1f.",
		p.FailureProbability, horizonWords(p.HorizonSeconds), doing[d.Action], count(vms), d.CostVMSeconds, d.Alternatives[0].CostVMSeconds)
	return b.String()
}

func horizonWords(seconds float64) string {
	switch {
	case seconds == 3600:
		return "the hour"
	case seconds >= 3600:
		return fmt.Sprintf("%.3g h", seconds/3600)
	case seconds >= 60:
		return fmt.Sprintf("%.3g min", seconds/60)
	}
	return fmt.Sprintf("%.3g s", seconds)
}
