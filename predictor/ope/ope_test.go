package ope

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
)

var estimators = map[string]func([]Episode, float64) (Estimate, error){"IPS": IPS, "SNIPS": SNIPS, "DR": DR}

// world has three kinds of faults and two actions: the first is cheap and cures one of the kinds,
// the second is dear and cures all. What is not cured is decided again, in another cell, and then ends.
type world struct{ r *rand.Rand }

var cure = [3][2]float64{{0.9, 0.95}, {0.2, 0.9}, {0.05, 0.8}}
var price = [2]float64{1, 10}

const (
	last = 100.0 // where the second action fails too
	most = 120.0 // that an episode can cost
)

func (w world) episode(logging, target func(cell int) []float64) Episode {
	kind := w.r.IntN(3)
	var e Episode
	for round := range 2 {
		cell := kind + 3*round
		p := logging(cell)
		a := 0
		if w.r.Float64() >= p[0] {
			a = 1
		}
		s := Step{Cell: cell, Action: a, Propensity: p[a], Target: target(cell), Cost: price[a]}
		done := w.r.Float64() < cure[kind][a]
		if !done && round == 1 {
			s.Cost += last
		}
		e = append(e, s)
		if done {
			break
		}
	}
	return e
}

func truth(target func(int) []float64) float64 {
	sum := 0.0
	for kind := range 3 {
		var value func(round int) float64
		value = func(round int) float64 {
			v := 0.0
			for a, p := range target(kind + 3*round) {
				then := last
				if round == 0 {
					then = value(1)
				}
				v += p * (price[a] + (1-cure[kind][a])*then)
			}
			return v
		}
		sum += value(0) / 3
	}
	return sum
}

func logging(cell int) []float64 { return []float64{0.7, 0.3} }
func target(cell int) []float64 {
	if cell%3 == 0 {
		return []float64{0.98, 0.02}
	}
	return []float64{0.05, 0.95}
}

func TestTheyFindTheTruthAndKnowHowWell(t *testing.T) {
	want := truth(target)
	for name, estimate := range estimators {
		covered, off, width := 0, 0.0, 0.0
		const runs, n = 200, 2000
		for run := range runs {
			w := world{rand.New(rand.NewPCG(uint64(run), 7))}
			var all []Episode
			for range n {
				all = append(all, w.episode(logging, target))
			}
			e, err := estimate(all, most)
			if err != nil {
				t.Fatal(err)
			}
			if e.Low <= want && want <= e.High {
				covered++
			}
			off += (e.Value - want) / runs
			width += (e.High - e.Low) / runs
			if e.Effective < n/10 || e.Effective > n {
				t.Fatalf("%s: %v of %d episodes are effective", name, e.Effective, n)
			}
		}
		if share := float64(covered) / runs; share < 0.91 || share > 0.99 {
			t.Errorf("%s: the intervals cover the truth in %.1f %% of the runs", name, 100*share)
		}
		if math.Abs(off) > 0.02*want || width > want {
			t.Errorf("%s: off by %.3f of %.3f on average, with intervals of %.2f", name, off, want, width)
		}
	}
}

// TestTheSamePolicyIsItsOwnMean: with equal probabilities nothing is weighted.
func TestTheSamePolicyIsItsOwnMean(t *testing.T) {
	w := world{rand.New(rand.NewPCG(1, 1))}
	var all []Episode
	mean := 0.0
	for range 500 {
		e := w.episode(logging, logging)
		for _, s := range e {
			mean += s.Cost / 500
		}
		all = append(all, e)
	}
	for name, estimate := range map[string]func([]Episode, float64) (Estimate, error){"IPS": IPS, "SNIPS": SNIPS} {
		if e, err := estimate(all, most); err != nil || math.Abs(e.Value-mean) > 1e-9 || math.Abs(e.Effective-500) > 1e-6 {
			t.Errorf("%s: %+v, %v; the mean is %v", name, e, err, mean)
		}
	}
}

// TestDRHoldsWhereTheModelIsWrong: with one cell for everything the model of costs is useless.
func TestDRHoldsWhereTheModelIsWrong(t *testing.T) {
	w := world{rand.New(rand.NewPCG(3, 1))}
	var all []Episode
	for range 20000 {
		e := w.episode(logging, target)
		for i := range e {
			e[i].Cell = 0
		}
		all = append(all, e)
	}
	want := truth(target)
	if e, err := DR(all, most); err != nil || math.Abs(e.Value-want) > 0.1*want || e.Low > want || e.High < want {
		t.Errorf("%+v, %v; the truth is %v", e, err, want)
	}
}

// TestTheModelKnowsNothingOfTheEpisode that it is used on: with a cell for each, one that did would agree with all that was seen, and
// correct nothing.
func TestTheModelKnowsNothingOfTheEpisode(t *testing.T) {
	var all []Episode
	for i := range 1000 {
		all = append(all, Episode{{Cell: i, Action: i / 5 % 2, Propensity: 0.5, Target: []float64{0, 1}, Cost: 1 + 9*float64(i/5%2)}})
	}
	if e, err := DR(all, 0); err != nil || math.Abs(e.Value-10) > 0.1 {
		t.Errorf("%+v, %v; the truth is 10", e, err)
	}
}

// TestWithinTheOldPolicyTheTruthIsFound: the old policy never takes the dear action where the cheap one failed, and
// the new one mostly would.
func TestWithinTheOldPolicyTheTruthIsFound(t *testing.T) {
	never := func(cell int) []float64 {
		if cell >= 3 {
			return []float64{1, 0}
		}
		return logging(cell)
	}
	within := func(cell int) []float64 { return Within(target(cell), never(cell)) }
	want := truth(within)
	w := world{rand.New(rand.NewPCG(5, 1))}
	var all []Episode
	for range 20000 {
		all = append(all, w.episode(never, within))
	}
	for name, estimate := range estimators {
		if e, err := estimate(all, most); err != nil || math.Abs(e.Value-want) > 0.1*want {
			t.Errorf("%s: %+v, %v; the truth is %v", name, e, err, want)
		}
	}
	if p := Within([]float64{0, 0, 1}, []float64{0.25, 0.75, 0}); p[0] != 0.25 || p[1] != 0.75 || p[2] != 0 {
		t.Errorf("where nothing is left of the new policy: %v", p)
	}
}

// rare is a world of one decision, in which the first action crashes the host now and then and the second one hardly does.
// crash has the probabilities, and the costs are those of a crash and of an action.
type rare struct {
	logging, target [2]float64
	crash           [2]float64
}

const (
	crashed = 2400.0
	small   = 5.0
)

func (w *rare) truth() float64 {
	return w.target[0]*(crashed*w.crash[0]+small) + w.target[1]*(crashed*w.crash[1]+small)
}

func (w *rare) log(r *rand.Rand, n int) []Episode {
	var all []Episode
	for range n {
		a := 0
		if r.Float64() >= w.logging[0] {
			a = 1
		}
		s := Step{Action: a, Propensity: w.logging[a], Target: w.target[:], Cost: small}
		if r.Float64() < w.crash[a] {
			s.Cost += crashed
		}
		all = append(all, Episode{s})
	}
	return all
}

// TestShortLogsOfRareCrashes: the limits hold for some hundred decisions with a crash or two or none among them, and where
// the new policy mostly does what the old one hardly ever did.
func TestShortLogsOfRareCrashes(t *testing.T) {
	for _, c := range []struct {
		name  string
		world rare
		n     int
	}{
		{"100 decisions, 1 % crash", rare{[2]float64{0.5, 0.5}, [2]float64{0.5, 0.5}, [2]float64{0.01, 0.01}}, 100},
		{"100 decisions, 3 % crash", rare{[2]float64{0.5, 0.5}, [2]float64{0.1, 0.9}, [2]float64{0.05, 0.03}}, 100},
		{"300 decisions, another policy", rare{[2]float64{0.8, 0.2}, [2]float64{0.1, 0.9}, [2]float64{0.03, 0.01}}, 300},
		{"2000 decisions, another policy", rare{[2]float64{0.8, 0.2}, [2]float64{0.1, 0.9}, [2]float64{0.03, 0.003}}, 2000},
		{"300 decisions, hardly ever its own", rare{[2]float64{0.998, 0.002}, [2]float64{0.1, 0.9}, [2]float64{0.03, 0.01}}, 300},
		{"2000 decisions, hardly ever its own", rare{[2]float64{0.998, 0.002}, [2]float64{0.1, 0.9}, [2]float64{0.03, 0.01}}, 2000},
	} {
		want := c.world.truth()
		for name, estimate := range estimators {
			const runs = 1000
			covered, calm := 0, 0
			for run := range runs {
				all := c.world.log(rand.New(rand.NewPCG(uint64(run), 11)), c.n)
				e, err := estimate(all, crashed+small)
				if err != nil {
					t.Fatal(err)
				}
				if e.Low <= want && want <= e.High {
					covered++
				}
				seen := 0.0
				for _, x := range all {
					seen = max(seen, x[0].Cost)
				}
				if seen == small {
					if calm++; e.High < want {
						t.Errorf("%s, %s: a log without a crash has the limit %v, and the truth is %v", c.name, name, e.High, want)
					}
				}
			}
			if share := float64(covered) / runs; share < 0.93 {
				t.Errorf("%s, %s: the intervals cover the truth in %.1f %% of the logs", c.name, name, 100*share)
			}
			t.Logf("%s, %s: %.1f %%, %d without a crash", c.name, name, float64(covered)/runs*100, calm)
		}
	}
}

// TestTheLogLacksWhatTheNewPolicyDoes: the weights that came up are all alike, and nothing but their mean shows that most of the new policy is
// not in the log.
func TestTheLogLacksWhatTheNewPolicyDoes(t *testing.T) {
	s := Step{Propensity: 0.999, Target: []float64{0.1, 0.9}, Cost: 1}
	all := make([]Episode, 5000)
	for i := range all {
		all[i] = Episode{s}
	}
	for name, estimate := range estimators {
		e, err := estimate(all, 100)
		if err != nil || math.Abs(e.Weight-0.1) > 0.001 || e.Low > 1 || e.High < 80 {
			t.Errorf("%s: %+v, %v; nine of ten decisions may cost up to 100", name, e, err)
		}
	}
	// And where it never does what was done, nothing is known.
	s.Target = []float64{0, 1}
	for i := range all {
		all[i] = Episode{s}
	}
	for name, estimate := range estimators {
		if e, err := estimate(all, 100); err != nil || e.Effective != 0 || e.Weight != 0 || e.Low != 0 || e.High != 100 {
			t.Errorf("%s: %+v, %v; it may cost anything", name, e, err)
		}
	}
}

// TestLimitsOfAllOrNothing: they are those of Clopper and Pearson, which are quantiles of a Beta distribution.
func TestLimitsOfAllOrNothing(t *testing.T) {
	for _, c := range []struct{ n, ones int }{{20, 0}, {300, 0}, {100, 1}, {300, 4}, {5000, 60}, {50, 25}} {
		all := make([]Episode, c.n)
		for i := range all {
			s := Step{Propensity: 1, Target: []float64{1}}
			if i < c.ones {
				s.Cost = 1
			}
			all[i] = Episode{s}
		}
		e, err := IPS(all, 1)
		if err != nil {
			t.Fatal(err)
		}
		low, high := 0.0, distuv.Beta{Alpha: float64(c.ones + 1), Beta: float64(c.n - c.ones)}.Quantile(0.975)
		if c.ones > 0 {
			low = distuv.Beta{Alpha: float64(c.ones), Beta: float64(c.n - c.ones + 1)}.Quantile(0.025)
		}
		if width := high - low; math.Abs(e.High-high) > 0.01*width || math.Abs(e.Low-low) > 0.01*width {
			t.Errorf("%d of %d: %v to %v, and Clopper and Pearson have %v to %v", c.ones, c.n, e.Low, e.High, low, high)
		}
	}
}

// TestLimitIsTheQuantileOfRandomShares checks the saddlepoint approximation against draws.
func TestLimitIsTheQuantileOfRandomShares(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	values := make([]float64, 40)
	for i := range values {
		values[i] = math.Exp(2 * r.NormFloat64())
	}
	const worst, draws = 300.0, 100_000
	high := limit(values, worst, quantile)
	under := 0.0
	for range draws {
		w := r.ExpFloat64()
		sum, all := w*worst, w
		for _, v := range values {
			w := r.ExpFloat64()
			sum, all = sum+w*v, all+w
		}
		if sum/all <= high {
			under++
		}
	}
	if share := under / draws; math.Abs(share-0.975) > 0.003 {
		t.Errorf("%.2f %% of the draws are under the limit", 100*share)
	}
	// Of many values it is that of a normal distribution.
	many := make([]float64, 1_000_000)
	for i := range many {
		many[i] = r.Float64()
	}
	if got, want := limit(many, 1, quantile), 0.5+1.96*math.Sqrt(1.0/12/1e6); math.Abs(got-want) > 0.0015 {
		t.Errorf("of many values the limit is %v, not %v", got, want)
	}
}

// TestLimitsAreBetweenTheMeanAndTheWorst, whatever the values are.
func TestLimitsAreBetweenTheMeanAndTheWorst(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 3000 {
		values := make([]float64, 2+r.IntN(40))
		scale := math.Pow(10, 16*r.Float64()-8)
		most, mean := math.Inf(-1), 0.0
		for i := range values {
			switch r.IntN(4) {
			case 0:
				values[i] = scale
			case 1:
				values[i] = -scale * r.Float64()
			case 2:
				values[i] = scale * math.Exp(3*r.NormFloat64())
			}
			most = max(most, values[i])
			mean += values[i] / float64(len(values))
		}
		worst := most + scale*float64(r.IntN(2))*math.Exp(5*r.NormFloat64())
		got := limit(values, worst, quantile)
		if again := limit(values, worst+scale, quantile); !(got >= mean-1e-9*scale && got <= worst && again >= got) {
			t.Fatalf("the limit of %v with %v is %v, and with one that is worse by %v it is %v", values, worst, got, scale, again)
		}
	}
}

func TestWithoutChanceThereIsNoInterval(t *testing.T) {
	all := []Episode{{{Propensity: 1, Target: []float64{1}, Cost: 0.1}}, {{Propensity: 1, Target: []float64{1}, Cost: 0.1}}, {{Propensity: 1, Target: []float64{1}, Cost: 0.1}}}
	for name, estimate := range estimators {
		if e, err := estimate(all, 0); err != nil || math.Abs(e.Value-0.1) > 1e-12 || math.Abs(e.High-0.1) > 1e-9 || e.Low > 0.1 {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	good := Step{Action: 1, Propensity: 0.5, Target: []float64{0.5, 0.5}, Cost: 1}
	change := func(f func(*Step)) []Episode {
		s := good
		f(&s)
		return []Episode{{good}, {good, s}}
	}
	fine := []Episode{{good}, {good}}
	for _, c := range []struct {
		all  []Episode
		most float64
		says string
	}{
		{change(func(s *Step) { s.Propensity = 0 }), 0, "episode 1, step 1: the logged propensity is 0"},
		{change(func(s *Step) { s.Propensity = 1.5 }), 0, "the logged propensity is 1.5"},
		{change(func(s *Step) { s.Propensity = math.NaN() }), 0, "the logged propensity is NaN"},
		{change(func(s *Step) { s.Action = 2 }), 0, "episode 1, step 1: there is no action 2"},
		{change(func(s *Step) { s.Action = -1 }), 0, "there is no action -1"},
		{change(func(s *Step) { s.Target = nil }), 0, "there is no action 1"},
		{change(func(s *Step) { s.Cell = -1 }), 0, "cell -1"},
		{change(func(s *Step) { s.Cell = 1 << 40 }), 0, "cell 1099511627776"},
		{change(func(s *Step) { s.Target = []float64{0.4, 0.5} }), 0, "must add up to 1"},
		{change(func(s *Step) { s.Target = []float64{-0.5, 1.5} }), 0, "must add up to 1"},
		{change(func(s *Step) { s.Target = []float64{math.NaN(), 1} }), 0, "must add up to 1"},
		{change(func(s *Step) { s.Cost = math.NaN() }), 0, "episode 1, step 1: the cost is NaN"},
		{change(func(s *Step) { s.Cost = math.Inf(1) }), 0, "the cost is +Inf"},
		{change(func(s *Step) { s.Cost = -1 }), 0, "the cost is -1"},
		{change(func(s *Step) { s.Cost = 9.5 }), 10, "episode 1 costs 10.5, and 10 was said to be the most"},
		{fine, math.NaN(), "the most that an episode can cost is NaN"},
		{fine, -1, "the most that an episode can cost is -1"},
		{fine, math.Inf(1), "the most that an episode can cost is +Inf"},
		{change(func(s *Step) { s.Cost = 1e200 }), 0, "too large"},
		{change(func(s *Step) { s.Propensity = 1e-300 }), 0, "too large"},
		{[]Episode{{good}, {}}, 0, "episode 1 has no step"},
		{[]Episode{{good}}, 0, ErrFew.Error()},
		{nil, 0, ErrFew.Error()},
	} {
		for name, estimate := range estimators {
			if e, err := estimate(c.all, c.most); err == nil || !strings.Contains(err.Error(), c.says) || e != (Estimate{}) {
				t.Errorf("%s: %+v, %v; it should say: %s", name, e, err, c.says)
			}
		}
	}
	if _, err := DR(nil, 0); !errors.Is(err, ErrFew) {
		t.Errorf("no episode: %v", err)
	}
}
