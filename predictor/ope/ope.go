// Package ope judges a policy on the decisions of another one: what would the new policy have
// cost, had it decided where the old one did? It needs of each logged decision the probability
// with which the old policy chose as it did, and the probability with which the new one would.
//
// A decision leads to the next: an action that fails is followed by another. An episode is such a
// sequence, from the first decision about a fault to its end, with a cost at each step. Weights
// are products of the ratios of probabilities up to a step, so each cost is weighted by what
// led to it and not by what came after.
//
//   - [IPS] is inverse propensity per decision (Precup, Sutton, Singh, "Eligibility traces for
//     off-policy policy evaluation", ICML 2000): without bias, wide where the policies differ.
//   - [SNIPS] divides by the sum of the weights instead of their number (Swaminathan and
//     Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015): slightly
//     biased, narrower.
//   - [DR] is doubly robust (Jiang and Li, "Doubly robust off-policy value evaluation for
//     reinforcement learning", ICML 2016): a model of the costs, corrected by the weights where it
//     is wrong. It has no bias if either is right. The model is the mean cost for each cell and
//     action, fitted on the other episodes than those that it is used on.
//
// None of them can say what an action costs that the old policy never took where the new one would: the
// log has nothing of it, and does not show that it is missing. So a new policy is judged [Within] the old one.
//
// Intervals are for 95 %, over episodes, which are independent of one another, with a correction
// for skewness; that of SNIPS by the delta method. They hold for many episodes: see
// Estimate.Effective.
package ope

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
)

// Step is one logged decision.
type Step struct {
	// Cell tells situations apart that the model of costs shall treat alike, 0 and up.
	Cell int
	// Action is the index of what was chosen.
	Action int
	// Propensity is the probability with which the old policy chose it, above 0.
	Propensity float64
	// Target has the probability of each action under the new policy. It may be shared.
	Target []float64
	// Cost is what the step cost, without what followed.
	Cost float64
}

// Episode is a sequence of decisions, of which each followed from the one before.
type Episode []Step

// Estimate is what a policy would have cost an episode, in the unit of the costs.
type Estimate struct {
	Value float64 `json:"value"`
	// Low and High bound it with 95 % confidence.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Effective is how many episodes of the new policy's own the weighted ones are worth
	// (Kish): with under some hundred the interval is not to be relied on.
	Effective float64 `json:"effective_episodes"`
}

// quantile is that of the normal distribution for 95 % in the middle.
const quantile = 1.959963984540054

// ErrFew is returned where there are not two episodes.
var ErrFew = errors.New("off-policy evaluation: at least two episodes are needed")

func check(episodes []Episode) error {
	if len(episodes) < 2 {
		return ErrFew
	}
	for i, e := range episodes {
		for j, s := range e {
			switch {
			case !(s.Propensity > 0 && s.Propensity <= 1):
				return fmt.Errorf("off-policy evaluation: episode %d, step %d: the logged propensity is %v; it must be above 0 and at most 1", i, j, s.Propensity)
			case s.Action < 0 || s.Action >= len(s.Target) || s.Cell < 0 || s.Cell >= mostCells:
				return fmt.Errorf("off-policy evaluation: episode %d, step %d: action %d of %d in cell %d", i, j, s.Action, len(s.Target), s.Cell)
			case math.IsNaN(s.Cost) || math.IsInf(s.Cost, 0):
				return fmt.Errorf("off-policy evaluation: episode %d, step %d: the cost is %v", i, j, s.Cost)
			}
			sum := 0.0
			for _, p := range s.Target {
				if !(p >= 0) {
					sum = math.NaN()
				}
				sum += p
			}
			if !(math.Abs(sum-1) < 1e-6) {
				return fmt.Errorf("off-policy evaluation: episode %d, step %d: the new policy's probabilities are %v; they must add up to 1", i, j, s.Target)
			}
		}
	}
	return nil
}

const mostCells = 1 << 20

// Within is a new policy's probabilities of the actions in one situation, restricted to what an old policy,
// with the probabilities logged, may do there: the others' share goes to those that are left, in
// proportion. Where nothing is left, it is the old policy. Both have a probability for each action.
func Within(target, logged []float64) []float64 {
	out := make([]float64, len(target))
	sum := 0.0
	for a, p := range target {
		if logged[a] > 0 {
			out[a] = p
			sum += p
		}
	}
	if sum == 0 {
		copy(out, logged)
		return out
	}
	for a := range out {
		out[a] /= sum
	}
	return out
}

func (s *Step) ratio() float64 { return s.Target[s.Action] / s.Propensity }

// estimate is the mean of values with its interval. Costs are skewed: most faults cost little and
// a few very much, so that the mean of those that were seen is rather too low, and its standard
// error too. Hall's transformation corrects for that ("On the removal of skewness by
// transformation", Journal of the Royal Statistical Society B, 1992).
func estimate(center float64, values []float64) (mean, low, high float64) {
	n := float64(len(values))
	for _, v := range values {
		mean += v
	}
	mean /= n
	m2, m3 := 0.0, 0.0
	for _, v := range values {
		d := v - mean
		m2 += d * d
		m3 += d * d * d
	}
	deviation := math.Sqrt(m2 / (n - 1))
	mean += center
	if deviation == 0 {
		return mean, mean, mean
	}
	skew := m3 / n / (deviation * deviation * deviation) / math.Sqrt(n)
	unskew := func(z float64) float64 {
		if math.Abs(skew) < 1e-6 {
			return z
		}
		a := skew / 3
		return (math.Cbrt(1+3*a*(z-skew/6)) - 1) / a
	}
	e := deviation / math.Sqrt(n)
	return mean, mean - e*unskew(quantile), mean - e*unskew(-quantile)
}

// effective is Kish's number for the weights of whole episodes.
func effective(episodes []Episode) float64 {
	sum, squares := 0.0, 0.0
	for _, e := range episodes {
		w := 1.0
		for i := range e {
			w *= e[i].ratio()
		}
		sum += w
		squares += w * w
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / squares
}

// IPS estimates by inverse propensity, decision by decision.
func IPS(episodes []Episode) (Estimate, error) {
	if err := check(episodes); err != nil {
		return Estimate{}, err
	}
	values := make([]float64, len(episodes))
	for i, e := range episodes {
		w := 1.0
		for j := range e {
			w *= e[j].ratio()
			values[i] += w * e[j].Cost
		}
	}
	mean, low, high := estimate(0, values)
	return Estimate{mean, low, high, effective(episodes)}, nil
}

// SNIPS estimates by inverse propensity with normalised weights, decision by decision. An episode
// that has ended costs nothing more and keeps its weight.
func SNIPS(episodes []Episode) (Estimate, error) {
	if err := check(episodes); err != nil {
		return Estimate{}, err
	}
	longest := 0
	for _, e := range episodes {
		longest = max(longest, len(e))
	}
	n := float64(len(episodes))
	weights := make([]float64, len(episodes))
	influence := make([]float64, len(episodes))
	for i := range weights {
		weights[i] = 1
	}
	value := 0.0
	for t := range longest {
		sum, cost := 0.0, 0.0
		for i, e := range episodes {
			if t < len(e) {
				weights[i] *= e[t].ratio()
				cost += weights[i] * e[t].Cost
			}
			sum += weights[i]
		}
		if sum == 0 {
			break
		}
		mean := cost / sum
		value += mean
		for i, e := range episodes {
			c := 0.0
			if t < len(e) {
				c = e[t].Cost
			}
			influence[i] += weights[i] * (c - mean) / (sum / n)
		}
	}
	_, low, high := estimate(value, influence)
	return Estimate{value, low, high, effective(episodes)}, nil
}

// folds is into how many parts the episodes are split for the model of costs.
const folds = 5

// DR is the doubly robust estimate.
func DR(episodes []Episode) (Estimate, error) {
	if err := check(episodes); err != nil {
		return Estimate{}, err
	}
	values := make([]float64, len(episodes))
	parts := make([]counts, min(folds, len(episodes)))
	for i, e := range episodes {
		parts[i%len(parts)].add(e)
	}
	for part := range parts {
		q := fit(parts, part)
		for i := part; i < len(episodes); i += len(parts) {
			values[i] = q.doubly(episodes[i])
		}
	}
	mean, low, high := estimate(0, values)
	return Estimate{mean, low, high, effective(episodes)}, nil
}

// costs is the model: what an action in a cell is expected to cost until the end of the
// episode, if the new policy goes on.
type costs struct {
	actions int
	q       []float64 // by cell and action
	overall float64   // where a cell has never been seen
}

func (c *costs) of(cell, action int) float64 {
	if i := cell*c.actions + action; i < len(c.q) && action < c.actions && c.q[i] == c.q[i] {
		return c.q[i]
	}
	return c.overall
}

func (c *costs) value(s *Step) float64 {
	v := 0.0
	for a, p := range s.Target {
		if p > 0 {
			v += p * c.of(s.Cell, a)
		}
	}
	return v
}

// doubly is the doubly robust value of an episode, from its end to its begin.
func (c *costs) doubly(e Episode) float64 {
	v := 0.0
	for i := len(e) - 1; i >= 0; i-- {
		s := &e[i]
		v = c.value(s) + s.ratio()*(s.Cost+v-c.of(s.Cell, s.Action))
	}
	return v
}

// counts is what a part of the episodes says of each cell and action.
type counts struct {
	cost, n float64 // of all episodes
	longest int
	choice  map[choice]*tally
	target  map[int]*mean // by cell, what the new policy does there
}

type choice struct{ cell, action int }

// tally is what an action in a cell cost, how often it was taken, and which cells followed.
type tally struct {
	cost, n float64
	next    map[int]float64
}

type mean struct {
	n   float64
	sum []float64
}

func (c *counts) add(e Episode) {
	if c.choice == nil {
		c.choice, c.target = map[choice]*tally{}, map[int]*mean{}
	}
	c.n++
	c.longest = max(c.longest, len(e))
	for i := range e {
		s := &e[i]
		c.cost += s.Cost
		k := choice{s.Cell, s.Action}
		t := c.choice[k]
		if t == nil {
			t = &tally{next: map[int]float64{}}
			c.choice[k] = t
		}
		t.cost += s.Cost
		t.n++
		if i+1 < len(e) {
			t.next[e[i+1].Cell]++
		}
		m := c.target[s.Cell]
		if m == nil {
			m = &mean{}
			c.target[s.Cell] = m
		}
		for len(m.sum) < len(s.Target) {
			m.sum = append(m.sum, 0)
		}
		m.n++
		for a, p := range s.Target {
			m.sum[a] += p
		}
	}
}

// fit evaluates the new policy on cells, from all parts but one (fitted Q evaluation): the cost
// of an action is the mean of its own cost and of the value of the cell that followed.
func fit(parts []counts, without int) *costs {
	var all counts
	all.choice, all.target = map[choice]*tally{}, map[int]*mean{}
	cells, actions := 0, 0
	for i := range parts {
		for k := range parts[i].choice {
			cells = max(cells, k.cell+1)
		}
		for _, m := range parts[i].target {
			actions = max(actions, len(m.sum))
		}
		if i == without {
			continue
		}
		all.cost, all.n, all.longest = all.cost+parts[i].cost, all.n+parts[i].n, max(all.longest, parts[i].longest)
		for k, t := range parts[i].choice {
			to := all.choice[k]
			if to == nil {
				to = &tally{next: map[int]float64{}}
				all.choice[k] = to
			}
			to.cost, to.n = to.cost+t.cost, to.n+t.n
			for cell, n := range t.next {
				to.next[cell] += n
			}
		}
		for cell, m := range parts[i].target {
			to := all.target[cell]
			if to == nil {
				to = &mean{sum: make([]float64, actions)}
				all.target[cell] = to
			}
			for len(to.sum) < len(m.sum) {
				to.sum = append(to.sum, 0)
			}
			to.n += m.n
			for a, p := range m.sum {
				to.sum[a] += p
			}
		}
	}
	c := &costs{actions: actions, q: make([]float64, cells*actions)}
	for i := range c.q {
		c.q[i] = math.NaN()
	}
	if all.n > 0 {
		c.overall = all.cost / all.n
	}
	// In order, so that the same episodes give the same sums.
	order := slices.SortedFunc(maps.Keys(all.choice), func(a, b choice) int {
		return cmp.Or(cmp.Compare(a.cell, b.cell), cmp.Compare(a.action, b.action))
	})
	value := make([]float64, cells)
	for range all.longest { // each sweep carries costs one step further back
		for _, k := range order {
			t := all.choice[k]
			v := t.cost
			for _, cell := range slices.Sorted(maps.Keys(t.next)) {
				v += t.next[cell] * value[cell]
			}
			c.q[k.cell*actions+k.action] = v / t.n
		}
		for cell, m := range all.target {
			v := 0.0
			for a, p := range m.sum {
				if p > 0 {
					v += p / m.n * c.of(cell, a)
				}
			}
			value[cell] = v
		}
	}
	return c
}
