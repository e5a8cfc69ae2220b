package trial

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
	"github.com/tardigrade-recovery/tardigrade/predictor/ope"
)

// OffPolicy is how well the value of a new policy is estimated from the decisions that another
// one logged, by one estimator, over many logs.
type OffPolicy struct {
	Estimator string `json:"estimator"`
	// Truth is what the new policy costs a fault, Logged what the logging one costs.
	Truth  float64 `json:"truth_vm_s"`
	Logged float64 `json:"logging_policy_vm_s"`
	// Mean is the mean of the estimates; ErrorRatio the mean of |estimate/truth - 1|, and WorstRatio the largest.
	Mean       float64 `json:"mean_estimate_vm_s"`
	ErrorRatio float64 `json:"mean_error_ratio"`
	Within     float64 `json:"within_5_percent_ratio"`
	WorstRatio float64 `json:"worst_error_ratio"`
	// Coverage is the share of the 95 % intervals that have the truth in them. The others lie Above it, or below.
	Coverage float64 `json:"coverage_ratio"`
	Above    float64 `json:"interval_above_ratio"`
	// Width is the mean width of the intervals, and TypicalWidth its median, as shares of the truth.
	Width        float64 `json:"mean_interval_ratio"`
	TypicalWidth float64 `json:"median_interval_ratio"`
	Logs         int     `json:"logs"`
	Faults       int     `json:"faults_a_log"`
}

// table is a policy on the situations of a decision about a case: by the signature that is seen
// and the actions that were tried, the probability of each action.
type table [][]float64

const (
	triedMasks  = 8
	seenWrongly = 0.1 // share of the faults whose signature is taken for another
	actions     = 5
)

var casePhases = [actions]fleet.Phase{1: fleet.PhaseRecycle, 2: fleet.PhaseReset, 3: fleet.PhaseMigrate}
var caseActions = [actions]fleet.Action{fleet.ActionNone, fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate, fleet.ActionHandOver}

// tabulate asks a policy about each situation.
func tabulate(p predictor.Policy, vms int, r *rand.Rand) table {
	var t table
	host := fleet.Host{ID: "case", Actions: fleet.Actions()}
	for range vms {
		host.VMs = append(host.VMs, fleet.VM{State: "running"})
	}
	for _, s := range kindsOf() {
		for mask := range triedMasks {
			situation := predictor.Situation{Host: host, Tried: map[fleet.Action]time.Time{},
				Prediction: fleet.Prediction{Host: "case", State: fleet.PredictionScoring, FailureProbability: 0.9, HorizonSeconds: 86400, Signature: s}}
			for i := range 3 {
				if mask&(1<<i) != 0 {
					situation.Tried[caseActions[i+1]] = time.Unix(1, 0)
				}
			}
			t = append(t, p.Decide(situation, r).Propensities)
		}
	}
	return t
}

// play follows a policy through one fault and logs its decisions, with what another would do.
func play(c *simulator.Case, seen int, logging, target table, r *rand.Rand, dst ope.Episode) ope.Episode {
	for mask := 0; ; {
		cell := seen*triedMasks + mask
		a, u := 0, r.Float64()
		for a < actions-1 && u >= logging[cell][a] {
			u -= logging[cell][a]
			a++
		}
		s := ope.Step{Cell: cell, Action: a, Propensity: logging[cell][a], Target: target[cell]}
		cured := true
		switch caseActions[a] {
		case fleet.ActionNone:
			s.Cost = alone(c, r)
		case fleet.ActionHandOver:
			s.Cost = c.Person()
		default:
			s.Cost, cured = c.Attempt(r, casePhases[a], false)
		}
		dst = append(dst, s)
		if cured {
			return dst
		}
		mask |= 1 << (a - 1)
	}
}

// alone is what a fault costs this time where nobody acts.
func alone(c *simulator.Case, r *rand.Rand) float64 {
	if c.Kind == simulator.NoisyNeighbour {
		return c.Alone()
	}
	if p := c.Kind.FatalProbability(); r.Float64() < p {
		return c.Alone() / p
	}
	return 0
}

// value is what a policy is expected to cost on a case.
func value(c *simulator.Case, seen, mask int, t table) float64 {
	v := 0.0
	for a, p := range t[seen*triedMasks+mask] {
		if p == 0 {
			continue
		}
		switch caseActions[a] {
		case fleet.ActionNone:
			v += p * c.Alone()
		case fleet.ActionHandOver:
			v += p * c.Person()
		default:
			own, cure := c.Try(casePhases[a], false)
			v += p * (own + (1-cure)*value(c, seen, mask|1<<(a-1), t))
		}
	}
	return v
}

// deck draws cases, and the signature that is seen of each.
type deck struct {
	draw   func(*rand.Rand) simulator.Case
	strata []simulator.Stratum
	kinds  []fleet.Signature
	most   float64 // that a case can cost
}

func newDeck(costs predictor.Costs) (*deck, error) {
	cfg := simulator.Config{CrashSeconds: costs.CrashSeconds, HandOverSeconds: costs.HandOverSeconds}
	draw, err := simulator.Cases(cfg)
	if err != nil {
		return nil, err
	}
	strata, err := simulator.Strata(cfg)
	if err != nil {
		return nil, err
	}
	most, err := simulator.MostVMSeconds(cfg)
	return &deck{draw, strata, kindsOf(), most}, err
}

// value is what a policy costs a case of the deck, in expectation. It is exact: what is drawn
// would be off in the same direction for all logs that are compared with it.
func (d *deck) value(t table) float64 {
	v := 0.0
	for i := range d.strata {
		s := &d.strata[i]
		for seen, kind := range d.kinds {
			p := seenWrongly / float64(len(d.kinds))
			if kind == s.Case.Signature() {
				p += 1 - seenWrongly
			}
			v += s.Share * p * value(&s.Case, seen, 0, t)
		}
	}
	return v
}

func (d *deck) next(r *rand.Rand) (c simulator.Case, seen int) {
	c = d.draw(r)
	seen = slices.Index(d.kinds, c.Signature())
	if r.Float64() < seenWrongly {
		seen = r.IntN(len(d.kinds))
	}
	return c, seen
}

// EvaluateOffPolicy logs the decisions of the policy that learns, as it begins: with stated
// beliefs that are worth one outcome, and a tenth of its choices left to chance. From each of so many logs it estimates what the policy would cost
// once it has learned, within what the first might do, and compares that with the truth. step, if not nil, is called after each log, by several
// goroutines.
func EvaluateOffPolicy(ctx context.Context, logs, faults int, seed uint64, costs predictor.Costs, step func()) ([]OffPolicy, error) {
	const vms = 8
	deck, err := newDeck(costs)
	if err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(seed, 0x0ff))
	begin := predictor.Policy{Costs: costs, Cures: predictor.NewCures(1), Explore: 0.1}
	logging := tabulate(begin, vms, r)

	// What is learned from a log of its own.
	learned := predictor.NewCures(predictor.BeliefWeight)
	for range 2000 {
		c, seen := deck.next(r)
		for _, s := range play(&c, seen, logging, logging, r, nil) {
			if casePhases[s.Action] == "" {
				continue
			}
			_, cured := c.Attempt(r, casePhases[s.Action], false)
			b := predictor.Beta{Failed: 1}
			if cured {
				b = predictor.Beta{Cured: 1}
			}
			if err := learned.Add(predictor.Learned{Signature: deck.kinds[seen], Action: caseActions[s.Action], Beta: b}); err != nil {
				return nil, err
			}
		}
	}
	target := tabulate(predictor.Policy{Costs: costs, Cures: learned, Explore: 0.02}, vms, r)
	for cell := range target {
		target[cell] = ope.Within(target[cell], logging[cell])
	}

	truth, before := deck.value(target), deck.value(logging)
	estimators := []struct {
		name string
		f    func([]ope.Episode, float64) (ope.Estimate, error)
	}{{"ips", ope.IPS}, {"snips", ope.SNIPS}, {"dr", ope.DR}}
	estimates := make([][]ope.Estimate, logs)
	var failed error
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			episodes := make([]ope.Episode, faults)
			for n := range next {
				err := ctx.Err()
				r := rand.New(rand.NewPCG(seed, 1<<32+uint64(n))) // far from the one that the policies learned from
				for i := range episodes {
					if err != nil {
						break
					}
					c, seen := deck.next(r)
					episodes[i] = play(&c, seen, logging, target, r, episodes[i][:0])
				}
				for _, e := range estimators {
					var x ope.Estimate
					if err == nil {
						x, err = e.f(episodes, deck.most)
					}
					estimates[n] = append(estimates[n], x)
				}
				if err != nil {
					mu.Lock()
					failed = fmt.Errorf("log %d: %w", n, err)
					mu.Unlock()
				}
				if step != nil {
					step()
				}
			}
		})
	}
	for n := range logs {
		next <- n
	}
	close(next)
	wg.Wait()
	if failed != nil {
		return nil, failed
	}
	out := make([]OffPolicy, len(estimators))
	for i, e := range estimators {
		o := &out[i]
		*o = OffPolicy{Estimator: e.name, Truth: truth, Logged: before, Logs: logs, Faults: faults}
		within, covered, above := 0, 0, 0
		var widths []float64
		for _, of := range estimates {
			x := of[i]
			off := math.Abs(x.Value/truth - 1)
			o.Mean += x.Value / float64(logs)
			o.ErrorRatio += off / float64(logs)
			o.WorstRatio = max(o.WorstRatio, off)
			widths = append(widths, (x.High-x.Low)/truth)
			o.Width += (x.High - x.Low) / truth / float64(logs)
			if off <= 0.05 {
				within++
			}
			switch {
			case x.Low > truth:
				above++
			case truth <= x.High:
				covered++
			}
		}
		slices.Sort(widths)
		o.TypicalWidth = widths[len(widths)/2]
		o.Within, o.Coverage, o.Above = float64(within)/float64(logs), float64(covered)/float64(logs), float64(above)/float64(logs)
	}
	return out, nil
}
