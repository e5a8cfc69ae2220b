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
// # Intervals
//
// Costs are skewed: most episodes cost little, and a log may well have none of those that cost very much. No interval
// can tell from the log alone what it has not seen. So the estimators are told the most that an episode
// can cost, and the intervals, for 95 %, are those of Learned-Miller and Thomas ("A new confidence interval for the mean of a
// bounded random variable", arXiv:1905.06208, 2019): the limit above counts one more episode, which costs the
// most, the one below one more that costs nothing, and each is a quantile of the mean where episodes have random shares
// (uniform spacings). For costs that are all or nothing these are the exact limits of Clopper and Pearson; for
// many episodes they are the normal ones. The quantiles are not drawn but computed, by the saddlepoint approximation of Lugannani
// and Rice ("Saddle point approximation for the distribution of the sum of independent random variables", Advances in
// Applied Probability, 1980). Episodes must be independent of one another.
//
// An episode that the new policy might have had weighs more than one of the log: the log is worth Estimate.Effective of them, so
// that each weighs as much as the number of episodes over that. This is the weight of the episode that is added above. Where the mean of the weights
// is so far below 1 that chance does not explain it, the log lacks decisions that the new policy would take, and the
// limits move apart by what their share can cost at most. Still, an interval cannot know of
// what is dear only where the weights are far above the rest: 95 % are for a log that is typical of what it is judged on.
package ope

import (
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
	// Cost is what the step cost, without what followed; 0 or more.
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
	// (Kish), as far as the weights that came up show.
	Effective float64 `json:"effective_episodes"`
	// Weight is the mean of the episodes' weights, 1 but for chance. Far below, the log lacks what the new policy
	// would do.
	Weight float64 `json:"mean_weight"`
}

// Quantiles of the normal distribution: 95 % lie within the first, and all but one of three millions below the second.
const (
	quantile = 1.959963984540054
	certain  = 5.0
)

// ErrFew is returned where there are not two episodes.
var ErrFew = errors.New("off-policy evaluation: at least two episodes are needed")

// weighed is what the estimators share of some episodes.
type weighed struct {
	weights []float64 // of whole episodes
	dearest float64   // what the dearest costs
}

// weigh checks episodes, and says the weight of each.
func weigh(episodes []Episode, most float64) (weighed, error) {
	var none weighed
	if !(most >= 0) || math.IsInf(most, 0) {
		return none, fmt.Errorf("off-policy evaluation: the most that an episode can cost is %v; it must be a number from 0, which means not known", most)
	}
	if len(episodes) < 2 {
		return none, ErrFew
	}
	x := weighed{weights: make([]float64, len(episodes))}
	for i, e := range episodes {
		if len(e) == 0 {
			return none, fmt.Errorf("off-policy evaluation: episode %d has no step", i)
		}
		weight, cost := 1.0, 0.0
		for j := range e {
			s := &e[j]
			switch {
			case !(s.Propensity > 0 && s.Propensity <= 1):
				return none, fmt.Errorf("off-policy evaluation: episode %d, step %d: the logged propensity is %v; it must be above 0 and at most 1", i, j, s.Propensity)
			case s.Action < 0 || s.Action >= len(s.Target):
				return none, fmt.Errorf("off-policy evaluation: episode %d, step %d: there is no action %d; the new policy has the probabilities of %d, from 0 on", i, j, s.Action, len(s.Target))
			case s.Cell < 0 || s.Cell >= mostCells:
				return none, fmt.Errorf("off-policy evaluation: episode %d, step %d: cell %d; 0 to %d are possible", i, j, s.Cell, mostCells-1)
			case !(s.Cost >= 0) || math.IsInf(s.Cost, 0):
				return none, fmt.Errorf("off-policy evaluation: episode %d, step %d: the cost is %v; it must be a number from 0", i, j, s.Cost)
			}
			weight, cost = weight*s.ratio(), cost+s.Cost
			sum := 0.0
			for _, p := range s.Target {
				if !(p >= 0) {
					sum = math.NaN()
				}
				sum += p
			}
			if !(math.Abs(sum-1) < 1e-6) {
				return none, fmt.Errorf("off-policy evaluation: episode %d, step %d: the new policy's probabilities are %v; they must add up to 1", i, j, s.Target)
			}
		}
		if most > 0 && cost > most*(1+1e-9) {
			return none, fmt.Errorf("off-policy evaluation: episode %d costs %v, and %v was said to be the most that one can cost", i, cost, most)
		}
		x.weights[i], x.dearest = weight, max(x.dearest, cost)
	}
	return x, nil
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

// estimate is the mean of values, one for each episode, with its interval.
func (w *weighed) estimate(values []float64, most float64) (Estimate, error) {
	n := float64(len(values))
	var x Estimate
	squares := 0.0
	for i, v := range values {
		x.Value += v
		x.Weight += w.weights[i]
		squares += w.weights[i] * w.weights[i]
	}
	x.Value, x.Weight = x.Value/n, x.Weight/n
	one := 1.0 // the weight of the episode that is added
	if squares > 0 {
		x.Effective = x.Weight * n / squares * x.Weight * n
		one = n / x.Effective
	}
	possible := math.Inf(1)
	if most > 0 {
		possible = most
	} else {
		most = w.dearest
	}
	missing := 0.0
	if x.Weight+math.Sqrt(max(squares-n*x.Weight*x.Weight, 0))/n < 1 { // more than a standard error below
		missing = max(0, 1-limit(w.weights, 0, certain)) * most
	}
	x.High = limit(values, one*most, quantile) + missing
	for i := range values {
		values[i] = -values[i]
	}
	x.Low = -limit(values, 0, quantile) - missing
	x.Low, x.High = max(0, min(x.Low, possible)), max(0, min(x.High, possible))
	for _, v := range []float64{x.Value, x.Low, x.High, x.Effective, x.Weight} {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return Estimate{}, errors.New("off-policy evaluation: costs, or ratios of probabilities, are too large to be computed with")
		}
	}
	return x, nil
}

// limit is the upper limit of the mean of values and of one more, which is worst or the largest of them: the
// t at which the sum of (v - t) times exponential draws, one for each v, is below 0 with the probability of the
// normal distribution's quantile.
//
// The cumulant generating function of that sum at s is the sum of -log(1 - s (v - t)), and it is flat at s = 1/(a - t), where
// s is the mean of 1/(a - v). So each a above all values is a saddlepoint, its t follows without a search, and 1 - s (v - t)
// is s (a - v). What is searched for is the a that has the right probability.
func limit(values []float64, worst, quantile float64) float64 {
	for _, v := range values {
		worst = max(worst, v)
	}
	n := float64(len(values) + 1)
	mean := worst
	for _, v := range values {
		mean += v
	}
	mean /= n
	squares := (worst - mean) * (worst - mean)
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	if squares <= 1e-24*worst*worst { // they are equal but for rounding
		return mean
	}
	at := func(a float64) (t, z float64) {
		unit := 1 / (a - mean) // keeps the products near 1
		product := (a - worst) * unit
		x := 1 / product
		sum, sumSquares, logs := x, x*x, 0.0
		for i, v := range values {
			y := (a - v) * unit
			x := 1 / y
			sum += x
			sumSquares += x * x
			if product *= y; i%32 == 31 { // a logarithm for many
				logs, product = logs+math.Log(product), 1
			}
		}
		s := sum / n // in units
		r := math.Sqrt(2 * max(logs+math.Log(product)+n*math.Log(s), 0))
		u := math.Sqrt(sumSquares/s/s - n) // s times the root of the second derivative
		return a - 1/(unit*s), r + math.Log(u/r)/r
	}
	// z falls as a grows. It is searched for over the logarithm of a's distance from the worst, by the secant, and by
	// halves where that leaves the bounds. The first guess is that of a normal distribution.
	spread := math.Sqrt(squares)
	x := math.Log(max(spread/quantile-(worst-mean), spread/5))
	low, high := math.Inf(-1), math.Inf(1)
	lastX, lastZ, step := 0.0, 0.0, 0.0
	for i := 0; ; i++ {
		t, z := at(worst + math.Exp(x))
		off := z - quantile
		if math.Abs(off) < 5e-4 || i == 60 {
			return t
		}
		if off > 0 {
			low = x
		} else {
			high = x
		}
		if i == 0 {
			step = max(-1, min(2*off, 1))
		} else {
			step = max(-3, min(-off*(x-lastX)/(z-lastZ), 3))
		}
		lastX, lastZ = x, z
		if x += step; !(x > low && x < high) {
			switch {
			case math.IsInf(high, 1):
				x = lastX + 1
			case math.IsInf(low, -1):
				x = lastX - 1
			default:
				x = (low + high) / 2
			}
		}
	}
}

// IPS estimates by inverse propensity, decision by decision. most is the most that an episode can cost; 0 means that nobody can tell,
// and then the dearest in the log stands for it: the interval holds if nothing dearer can happen.
func IPS(episodes []Episode, most float64) (Estimate, error) {
	w, err := weigh(episodes, most)
	if err != nil {
		return Estimate{}, err
	}
	values := make([]float64, len(episodes))
	for i, e := range episodes {
		weight := 1.0
		for j := range e {
			weight *= e[j].ratio()
			values[i] += weight * e[j].Cost
		}
	}
	return w.estimate(values, most)
}

// SNIPS estimates by inverse propensity with normalised weights, decision by decision. An episode
// that has ended costs nothing more and keeps its weight. most is that of [IPS].
func SNIPS(episodes []Episode, most float64) (Estimate, error) {
	w, err := weigh(episodes, most)
	if err != nil {
		return Estimate{}, err
	}
	longest := 0
	for _, e := range episodes {
		longest = max(longest, len(e))
	}
	n := float64(len(episodes))
	weights := make([]float64, len(episodes))
	for i := range weights {
		weights[i] = 1
	}
	// The values are the estimate and what each episode moved it by (the delta method).
	values := make([]float64, len(episodes))
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
			values[i] += weights[i] * (c - mean) / (sum / n)
		}
	}
	for i := range values {
		values[i] += value
	}
	return w.estimate(values, most)
}

// folds is into how many parts the episodes are split for the model of costs.
const folds = 5

// DR is the doubly robust estimate. most is that of [IPS].
func DR(episodes []Episode, most float64) (Estimate, error) {
	w, err := weigh(episodes, most)
	if err != nil {
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
	return w.estimate(values, most)
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

// counts is what some episodes say of each cell and action.
type counts struct {
	cost, n float64 // of all episodes
	longest int
	cells   []cell
}

// cell is a situation: how often it came up, and the sum of the new policy's probabilities there.
type cell struct {
	n       float64
	target  []float64
	choices []choice
}

// choice is what an action in a cell cost, how often it was taken, and which cells followed.
type choice struct {
	cost, n float64
	next    map[int]float64
}

// at is a cell with room for as many actions.
func (c *counts) at(i, actions int) *cell {
	for len(c.cells) <= i {
		c.cells = append(c.cells, cell{})
	}
	x := &c.cells[i]
	for len(x.target) < actions {
		x.target, x.choices = append(x.target, 0), append(x.choices, choice{})
	}
	return x
}

func (c *counts) add(e Episode) {
	c.n++
	c.longest = max(c.longest, len(e))
	for i := range e {
		s := &e[i]
		c.cost += s.Cost
		x := c.at(s.Cell, len(s.Target))
		x.n++
		for a, p := range s.Target {
			x.target[a] += p
		}
		t := &x.choices[s.Action]
		t.cost += s.Cost
		t.n++
		if i+1 < len(e) {
			if t.next == nil {
				t.next = map[int]float64{}
			}
			t.next[e[i+1].Cell]++
		}
	}
}

func (c *counts) merge(o *counts) {
	c.cost, c.n, c.longest = c.cost+o.cost, c.n+o.n, max(c.longest, o.longest)
	for i := range o.cells {
		from := &o.cells[i]
		to := c.at(i, len(from.target))
		to.n += from.n
		for a, p := range from.target {
			to.target[a] += p
			x, y := &to.choices[a], &from.choices[a]
			x.cost, x.n = x.cost+y.cost, x.n+y.n
			for next, n := range y.next {
				if x.next == nil {
					x.next = map[int]float64{}
				}
				x.next[next] += n
			}
		}
	}
}

// fit evaluates the new policy on cells, from all parts but one (fitted Q evaluation): the cost
// of an action is the mean of its own cost and of the value of the cell that followed.
func fit(parts []counts, without int) *costs {
	var all counts
	for i := range parts {
		if i != without {
			all.merge(&parts[i])
		}
	}
	c := &costs{}
	for _, x := range all.cells {
		c.actions = max(c.actions, len(x.target))
	}
	c.q = make([]float64, len(all.cells)*c.actions)
	for i := range c.q {
		c.q[i] = math.NaN()
	}
	if all.n > 0 {
		c.overall = all.cost / all.n
	}
	value := make([]float64, len(all.cells))
	for range all.longest { // each sweep carries costs one step further back
		for i, x := range all.cells {
			for a, t := range x.choices {
				if t.n == 0 {
					continue
				}
				v := t.cost
				for _, next := range slices.Sorted(maps.Keys(t.next)) { // in order, so that the same episodes give the same sums
					v += t.next[next] * value[next]
				}
				c.q[i*c.actions+a] = v / t.n
			}
		}
		for i, x := range all.cells {
			value[i] = 0
			for a, p := range x.target {
				if p > 0 {
					value[i] += p / x.n * c.of(i, a)
				}
			}
		}
	}
	return c
}
