package predictor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Beta is what is believed of a probability: the distribution after so many successes and
// failures, which need not be whole numbers.
type Beta struct {
	Cured  float64 `json:"cured"`
	Failed float64 `json:"failed"`
}

// Mean is the expected probability; one half where nothing is known.
func (b Beta) Mean() float64 {
	if n := b.Cured + b.Failed; n > 0 {
		return b.Cured / n
	}
	return 0.5
}

// beliefs is the probability that an action ends a fault of a signature for the VMs, as a
// deployment believes before it has seen any outcome: chosen by what each action touches. A
// recycle cures what lives in one process, a reset also what lives in the kernel, and only
// leaving the host escapes from hardware.
var beliefs = map[fleet.Signature]map[fleet.Action]float64{
	fleet.SignatureServiceHang:    {fleet.ActionRecycle: 0.9, fleet.ActionPreservingReset: 0.95, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureMemoryLeak:     {fleet.ActionRecycle: 0.85, fleet.ActionPreservingReset: 0.95, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureKernelFault:    {fleet.ActionRecycle: 0.1, fleet.ActionPreservingReset: 0.85, fleet.ActionLiveMigrate: 0.8},
	fleet.SignatureDisk:           {fleet.ActionRecycle: 0.05, fleet.ActionPreservingReset: 0.1, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureMemoryHardware: {fleet.ActionRecycle: 0.01, fleet.ActionPreservingReset: 0.05, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureNetwork:        {fleet.ActionRecycle: 0.3, fleet.ActionPreservingReset: 0.5, fleet.ActionLiveMigrate: 0.7},
	fleet.SignatureThermal:        {fleet.ActionRecycle: 0.02, fleet.ActionPreservingReset: 0.02, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureNoisyNeighbour: {fleet.ActionRecycle: 0.02, fleet.ActionPreservingReset: 0.02, fleet.ActionLiveMigrate: 0.85},
	fleet.SignatureUnknown:        {fleet.ActionRecycle: 0.3, fleet.ActionPreservingReset: 0.5, fleet.ActionLiveMigrate: 0.7},
}

// cureActions are the actions that may cure, from the gentlest on; the index is used below.
var cureActions = [...]fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate}

func cureIndex(a fleet.Action) int {
	for i, c := range cureActions {
		if a == c {
			return i
		}
	}
	return -1
}

// BeliefWeight is how many outcomes a stated belief is worth: after as many real ones of a
// signature and an action they count as much as the belief.
const BeliefWeight = 4

// Cures is what is known of the cure rates of actions: for each signature and action a Beta
// distribution, which begins with the stated beliefs and is updated by outcomes. It is safe for
// concurrent use.
type Cures struct {
	mu      sync.RWMutex
	weight  float64
	learned map[fleet.Signature]*[2][len(cureActions)]Beta // of the first attempt, and of further ones
}

// againBelief is how much less a further attempt of an action is believed to cure than the first: what
// failed once has a reason to. How much less it really is, is learned for each action over all
// other signatures, since few faults of one signature need a second attempt.
const againBelief = 0.3

// NewCures returns the stated beliefs, each worth weight outcomes; with weight 0 every rate is as
// probable as any other.
func NewCures(weight float64) *Cures {
	return &Cures{weight: weight, learned: make(map[fleet.Signature]*[2][len(cureActions)]Beta)}
}

// Learned is what the outcomes of an action against a signature amount to, without the belief.
type Learned struct {
	Signature fleet.Signature `json:"signature"`
	Action    fleet.Action    `json:"action"`
	// Again is true for attempts after the same action has failed against the same fault.
	Again bool `json:"again"`
	Beta
}

// Add takes outcomes: so many cured and so many failed. An error means that the signature or the
// action can't have any, or that a number is none.
func (c *Cures) Add(l Learned) error {
	i := cureIndex(l.Action)
	if _, ok := beliefs[l.Signature]; !ok || i < 0 {
		return fmt.Errorf("cure rates: %s has no rate against %q", l.Action, l.Signature)
	}
	for _, v := range []float64{l.Cured, l.Failed} {
		if !(v >= 0) || math.IsInf(v, 0) {
			return fmt.Errorf("cure rates: %s against %s: %v outcomes", l.Action, l.Signature, v)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.learned[l.Signature]
	if of == nil {
		of = new([2][len(cureActions)]Beta)
		c.learned[l.Signature] = of
	}
	b := &of[place(l.Again)][i]
	b.Cured += l.Cured
	b.Failed += l.Failed
	return nil
}

func place(again bool) int {
	if again {
		return 1
	}
	return 0
}

// Rate is what is believed of the first attempt of an action against a signature, or of one after
// it has failed, outcomes included.
func (c *Cures) Rate(s fleet.Signature, a fleet.Action, again bool) Beta {
	i := cureIndex(a)
	if i < 0 {
		return Beta{Failed: 1}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.rate(s, i, place(again))
}

// rate is Rate under the lock.
func (c *Cures) rate(s fleet.Signature, i, turn int) Beta {
	of, ok := beliefs[s]
	if !ok {
		s, of = fleet.SignatureUnknown, beliefs[fleet.SignatureUnknown]
	}
	b := Beta{Cured: 1, Failed: 1} // every rate is as probable
	if c.weight > 0 {
		p := of[cureActions[i]]
		if turn == 1 {
			p = min(c.rate(s, i, 0).Mean()*c.again(s, i), 1)
		}
		b = Beta{Cured: c.weight * p, Failed: c.weight * (1 - p)}
	}
	if l := c.learned[s]; l != nil {
		b.Cured += l[turn][i].Cured
		b.Failed += l[turn][i].Failed
	}
	return b
}

// again is how much less further attempts of an action cure than first ones, over all signatures but one, whose
// outcomes are counted as its own: the cures that there were, by those that there would have been at the rates of
// first attempts.
func (c *Cures) again(but fleet.Signature, i int) float64 {
	cured, first := c.weight*againBelief, c.weight
	for _, s := range signatures { // in order, so that the same outcomes give the same sums
		if l := c.learned[s]; l != nil && s != but {
			b := l[1][i]
			cured += b.Cured
			first += (b.Cured + b.Failed) * c.rate(s, i, 0).Mean()
		}
	}
	return cured / first
}

// All lists what was learned, ordered by signature and action as they are declared.
func (c *Cures) All() []Learned {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []Learned
	for _, s := range signatures {
		l := c.learned[s]
		if l == nil {
			continue
		}
		for i, a := range cureActions {
			for turn, again := range []bool{false, true} {
				if b := l[turn][i]; b.Cured+b.Failed > 0 {
					out = append(out, Learned{s, a, again, b})
				}
			}
		}
	}
	return out
}

// signatures lists those that have cure rates.
var signatures = []fleet.Signature{
	fleet.SignatureServiceHang, fleet.SignatureMemoryLeak, fleet.SignatureKernelFault, fleet.SignatureDisk, fleet.SignatureMemoryHardware,
	fleet.SignatureNetwork, fleet.SignatureThermal, fleet.SignatureNoisyNeighbour, fleet.SignatureUnknown,
}

// draw is a rate drawn from what is believed.
func (b Beta) draw(r *rand.Rand) float64 {
	x, y := gamma(r, b.Cured), gamma(r, b.Failed)
	if x+y == 0 { // both so small that they underflow: it is one end or the other
		if r.Float64() < b.Mean() {
			return 1
		}
		return 0
	}
	return x / (x + y)
}

// gamma draws from a gamma distribution of a shape and scale 1 (Marsaglia and Tsang, "A simple
// method for generating gamma variables", ACM TOMS 2000).
func gamma(r *rand.Rand, shape float64) float64 {
	if shape <= 0 {
		return 0
	}
	boost := 1.0
	if shape < 1 {
		boost = math.Pow(r.Float64(), 1/shape)
		shape++
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if u := r.Float64(); u < 1-0.0331*x*x*x*x || math.Log(u) < 0.5*x*x+d*(1-v+math.Log(v)) {
			return d * v * boost
		}
	}
}
