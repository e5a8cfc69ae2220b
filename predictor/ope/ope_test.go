package ope

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// world has three kinds of faults and two actions: the first is cheap and cures one of the kinds,
// the second is dear and cures all. What is not cured is decided again, in another cell, and then ends.
type world struct{ r *rand.Rand }

var cure = [3][2]float64{{0.9, 0.95}, {0.2, 0.9}, {0.05, 0.8}}
var price = [2]float64{1, 10}

const last = 100.0 // where the second action fails too

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
	for name, estimate := range map[string]func([]Episode) (Estimate, error){"IPS": IPS, "SNIPS": SNIPS, "DR": DR} {
		covered, off, width := 0, 0.0, 0.0
		const runs, n = 200, 2000
		for run := range runs {
			w := world{rand.New(rand.NewPCG(uint64(run), 7))}
			var all []Episode
			for range n {
				all = append(all, w.episode(logging, target))
			}
			e, err := estimate(all)
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
	for name, estimate := range map[string]func([]Episode) (Estimate, error){"IPS": IPS, "SNIPS": SNIPS} {
		if e, err := estimate(all); err != nil || math.Abs(e.Value-mean) > 1e-9 || math.Abs(e.Effective-500) > 1e-6 {
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
	if e, err := DR(all); err != nil || math.Abs(e.Value-want) > 0.1*want || e.Low > want || e.High < want {
		t.Errorf("%+v, %v; the truth is %v", e, err, want)
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
	for name, estimate := range map[string]func([]Episode) (Estimate, error){"IPS": IPS, "SNIPS": SNIPS, "DR": DR} {
		if e, err := estimate(all); err != nil || math.Abs(e.Value-want) > 0.1*want {
			t.Errorf("%s: %+v, %v; the truth is %v", name, e, err, want)
		}
	}
	if p := Within([]float64{0, 0, 1}, []float64{0.25, 0.75, 0}); p[0] != 0.25 || p[1] != 0.75 || p[2] != 0 {
		t.Errorf("where nothing is left of the new policy: %v", p)
	}
}

func TestRefuses(t *testing.T) {
	good := Step{Action: 1, Propensity: 0.5, Target: []float64{0.5, 0.5}, Cost: 1}
	change := func(f func(*Step)) []Episode {
		s := good
		f(&s)
		return []Episode{{good}, {s}}
	}
	for name, all := range map[string][]Episode{
		"propensity 0":           change(func(s *Step) { s.Propensity = 0 }),
		"propensity over 1":      change(func(s *Step) { s.Propensity = 1.5 }),
		"propensity not known":   change(func(s *Step) { s.Propensity = math.NaN() }),
		"no such action":         change(func(s *Step) { s.Action = 2 }),
		"a negative cell":        change(func(s *Step) { s.Cell = -1 }),
		"a cell beyond all":      change(func(s *Step) { s.Cell = 1 << 40 }),
		"probabilities to 0.9":   change(func(s *Step) { s.Target = []float64{0.4, 0.5} }),
		"a probability below 0":  change(func(s *Step) { s.Target = []float64{-0.5, 1.5} }),
		"a cost that is no cost": change(func(s *Step) { s.Cost = math.Inf(1) }),
	} {
		for _, estimate := range []func([]Episode) (Estimate, error){IPS, SNIPS, DR} {
			if _, err := estimate(all); err == nil {
				t.Errorf("%s was taken", name)
			}
		}
	}
	if _, err := DR([]Episode{{good}}); !errors.Is(err, ErrFew) {
		t.Errorf("one episode: %v", err)
	}
}
