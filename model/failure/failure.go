// Package failure answers, from the features of a host at one instant, how probable it is that
// the host fails its VMs within each of several horizons, and which class of fault it has.
//
// A model is three kinds of boosted trees: whether anything is wrong at all, which is asked
// first and is cheap; for each horizon whether the host fails within it; and for each signature
// whether a host with which something is wrong has that one. All are calibrated on
// hosts that the trees have not seen.
package failure

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
)

// Sound is the signature of an example with which nothing is wrong.
const Sound = "none"

// Examples are what to learn from: one index is one host at one instant.
type Examples struct {
	// Features names the columns of X.
	Features []string
	X        [][]float64
	// Failure is the number of seconds until the host fails, 0 while it does, +Inf where it does
	// not fail for as long as Known.
	Failure []float64
	// Known is for how many seconds ahead it is known what happens: an example says nothing of a
	// horizon beyond, unless it fails before.
	Known []float64
	// Signature is what is wrong and can be seen, or [Sound].
	Signature []string
	// Host tells hosts apart: those of one host are either learned from or calibrated on.
	Host []string
	// Weight says how many instants each stands for; nil means one each.
	Weight []float64
}

// Config says how to learn. The zero value has the defaults.
type Config struct {
	// Horizons in ascending order; 5 minutes, an hour and a day by default.
	Horizons []time.Duration
	// Trees and Leaves of each question; 60 and 16 by default.
	Trees, Leaves int
	Seed          uint64
	// Progress, where it is not nil, is called with how much is done.
	Progress func(done, of int)
	// LeftOut, where it is not nil, is told of each horizon and signature that cannot be learned from
	// these examples, and why. The model does without it.
	LeftOut func(what, why string)
}

// Horizons are the default ones.
func Horizons() []time.Duration {
	return []time.Duration{5 * time.Minute, time.Hour, 24 * time.Hour}
}

const (
	mostHorizons   = 16
	mostSignatures = 64
	oddTrees       = 60
	oddLeaves      = 12
	// leastOfASignature is how many examples a signature must have among those that are learned
	// from.
	leastOfASignature = 20
)

// Model is a trained model. It is safe for concurrent use.
type Model struct {
	horizons   []time.Duration
	signatures []string
	odd        *gbdt.Model
	fails      []*gbdt.Model
	is         []*gbdt.Model // of each signature
}

// Horizons are those of the model, ascending.
func (m *Model) Horizons() []time.Duration { return slices.Clone(m.horizons) }

// Signatures are those that the model tells apart.
func (m *Model) Signatures() []string { return slices.Clone(m.signatures) }

// Features are the names of the columns that it looks at.
func (m *Model) Features() []string { return m.odd.Features() }

// Accept returns an error unless the features are the model's.
func (m *Model) Accept(features []string) error { return m.odd.Accept(features) }

// Importance is how much each feature counts for the probability of failing within horizon i.
func (m *Model) Importance(i int) []float64 { return m.fails[i].Importance() }

// Odd is the probability that anything is wrong with the host. It allocates nothing.
func (m *Model) Odd(x []float64) float64 { return m.odd.Predict(x) }

// Scorer asks whether anything is wrong with many hosts at once, several times as fast as one by
// one. It is not safe for concurrent use.
type Scorer struct{ odd *gbdt.Scorer }

// Scorer returns one for the model.
func (m *Model) Scorer() *Scorer { return &Scorer{gbdt.NewScorer(m.odd)} }

// Odd fills dst with what [Model.Odd] says of each row.
func (s *Scorer) Odd(dst []float64, rows [][]float64) { s.odd.Predict(dst, rows) }

// Failure fills dst, which has as many values as there are horizons, with the probabilities
// that the host fails within each. A longer horizon never has a lower one. It allocates nothing.
func (m *Model) Failure(dst, x []float64) {
	least := 0.0
	for i, f := range m.fails {
		least = max(least, f.Predict(x))
		dst[i] = least
	}
}

// Contributions fills dst with what each feature adds to the log odds of failing within
// horizon i, and returns what they are added to.
func (m *Model) Contributions(i int, dst, x []float64) float64 {
	return m.fails[i].Contributions(dst, x)
}

// Signature fills dst, which has as many values as there are signatures, with the probability
// of each, given that something is wrong, and returns the most probable one's index. It
// allocates nothing.
func (m *Model) Signature(dst, x []float64) int {
	best, sum := 0, 0.0
	for i, s := range m.is {
		dst[i] = max(s.Predict(x), 1e-6)
		sum += dst[i]
		if dst[i] > dst[best] {
			best = i
		}
	}
	for i := range dst[:len(m.is)] {
		dst[i] /= sum
	}
	return best
}

func (e *Examples) check() error {
	n := len(e.X)
	if n == 0 {
		return errors.New("failure model: there are no examples to learn from")
	}
	if len(e.Failure) != n || len(e.Known) != n || len(e.Signature) != n || len(e.Host) != n || e.Weight != nil && len(e.Weight) != n {
		return fmt.Errorf("failure model: %d rows with %d times of failure, %d known spans, %d signatures, %d hosts and %d weights", n, len(e.Failure), len(e.Known), len(e.Signature), len(e.Host), len(e.Weight))
	}
	for i, f := range e.Failure {
		if !(f >= 0) || !(e.Known[i] >= 0) || e.Signature[i] == "" {
			return fmt.Errorf("failure model: example %d fails after %v s of %v known, with the signature %q", i, f, e.Known[i], e.Signature[i])
		}
	}
	return nil
}

// Train learns a model. What the examples say nothing of is left out: a horizon that no example
// or every one fails within, and a signature that too few have; it takes at least one of each.
// Train returns early with ctx's error.
func Train(ctx context.Context, e Examples, c Config) (*Model, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	if c.Horizons == nil {
		c.Horizons = Horizons()
	}
	if c.Trees == 0 {
		c.Trees = 60
	}
	if c.Leaves == 0 {
		c.Leaves = 16
	}
	if len(c.Horizons) > mostHorizons || len(c.Horizons) == 0 || !slices.IsSorted(c.Horizons) || c.Horizons[0] <= 0 {
		return nil, fmt.Errorf("failure model: horizons %v: 1 to %d ascending ones are possible", c.Horizons, mostHorizons)
	}
	if c.LeftOut == nil {
		c.LeftOut = func(string, string) {}
	}
	m := &Model{}
	for _, h := range c.Horizons {
		if why := e.oneSided(e.knownWithin(h), e.failsWithin(h)); why != "" {
			c.LeftOut("horizon "+h.String(), why)
			continue
		}
		m.horizons = append(m.horizons, h)
	}
	if len(m.horizons) == 0 {
		return nil, fmt.Errorf("failure model: for no horizon of %v are there both failures and none among the examples of hosts that are learned from", c.Horizons)
	}
	wrong := func(i int) bool { return e.Signature[i] != Sound }
	if why := e.oneSided(everything, wrong); why != "" {
		return nil, fmt.Errorf("failure model: whether anything is wrong: %s", why)
	}
	count := map[string]int{} // of each signature, those that are learned from
	for i, s := range e.Signature {
		if s == Sound {
			continue
		}
		n := count[s]
		if e.learnedFrom(i) {
			n++
		}
		count[s] = n
	}
	for _, s := range slices.Sorted(maps.Keys(count)) {
		if n := count[s]; n < leastOfASignature {
			c.LeftOut("signature "+s, fmt.Sprintf("%d examples of hosts that are learned from, at least %d are needed", n, leastOfASignature))
			continue
		}
		m.signatures = append(m.signatures, s)
	}
	if len(m.signatures) == 0 || len(m.signatures) > mostSignatures {
		return nil, fmt.Errorf("failure model: %d signatures have at least %d examples of hosts that are learned from: 1 to %d are needed", len(m.signatures), leastOfASignature, mostSignatures)
	}
	done, of := 0, 1+len(m.horizons)+len(m.signatures)
	step := func() {
		if done++; c.Progress != nil {
			c.Progress(done, of)
		}
	}
	var err error
	if m.odd, err = learn(ctx, &e, gbdt.Config{Trees: oddTrees, Leaves: oddLeaves, Rate: 0.2, Seed: c.Seed}, everything, wrong, e.Signature); err != nil {
		return nil, fmt.Errorf("whether anything is wrong: %w", err)
	}
	step()
	for _, h := range m.horizons {
		f, err := learn(ctx, &e, gbdt.Config{Trees: c.Trees, Leaves: c.Leaves, Seed: c.Seed}, e.knownWithin(h), e.failsWithin(h), nil)
		if err != nil {
			return nil, fmt.Errorf("failure within %v: %w", h, err)
		}
		m.fails = append(m.fails, f)
		step()
	}
	for _, s := range m.signatures {
		is := func(i int) bool { return e.Signature[i] == s }
		f := m.odd
		if e.oneSided(wrong, is) == "" { // else there is nothing to tell it from
			if f, err = learn(ctx, &e, gbdt.Config{Trees: c.Trees / 2, Leaves: c.Leaves, Rate: 0.2, Seed: c.Seed}, wrong, is, nil); err != nil {
				return nil, fmt.Errorf("signature %s: %w", s, err)
			}
		}
		m.is = append(m.is, f)
		step()
	}
	return m, nil
}

func everything(int) bool { return true }

// knownWithin tells of which examples it is known whether they fail within a horizon.
func (e *Examples) knownWithin(h time.Duration) func(int) bool {
	return func(i int) bool { return e.Failure[i] <= h.Seconds() || e.Known[i] >= h.Seconds() }
}

func (e *Examples) failsWithin(h time.Duration) func(int) bool {
	return func(i int) bool { return e.Failure[i] <= h.Seconds() }
}

// learnedFrom tells whether the trees see an example, or are calibrated on it.
func (e *Examples) learnedFrom(i int) bool { return hash(e.Host[i])%heldOut != 0 }

// oneSided says why a question cannot be learned, "" where it can: what is learned from must
// have both answers.
func (e *Examples) oneSided(use, yes func(int) bool) string {
	var n [2]int
	for i := range e.X {
		if e.learnedFrom(i) && use(i) {
			if yes(i) {
				n[1]++
			} else {
				n[0]++
			}
		}
	}
	switch {
	case n[0]+n[1] == 0:
		return "there is no example that says anything of it"
	case n[1] == 0:
		return fmt.Sprintf("none of %d examples of hosts that are learned from is of it", n[0])
	case n[0] == 0:
		return fmt.Sprintf("all %d examples of hosts that are learned from are of it", n[1])
	}
	return ""
}

// heldOut is the share of the hosts that calibrate.
const heldOut = 5 // one in so many

// learn trains on most hosts and calibrates on the others. Examples of different classes weigh the
// same in sum; nil stands for the two classes of yes and no.
func learn(ctx context.Context, e *Examples, c gbdt.Config, use, yes func(int) bool, class []string) (*gbdt.Model, error) {
	var train, calibrate gbdt.Data
	var classes []string
	for i := range e.X {
		if !use(i) {
			continue
		}
		d := &train
		if !e.learnedFrom(i) {
			d = &calibrate
		} else if class != nil {
			classes = append(classes, class[i])
		}
		d.X = append(d.X, e.X[i])
		d.Y = append(d.Y, yes(i))
		w := 1.0
		if e.Weight != nil {
			w = e.Weight[i]
		}
		d.Weight = append(d.Weight, w)
		d.Group = append(d.Group, e.Host[i])
	}
	c.Features = e.Features
	if len(train.X) > 0 && (slices.Max(train.Weight) > 50*slices.Min(train.Weight) || rare(train.Y)) {
		balance(&train, classes)
		c.L2 = 1
	}
	m, err := gbdt.Train(ctx, train, c)
	if err != nil {
		return nil, err
	}
	// Too few hosts to hold any out, or none with both answers: the trees' own log odds stand.
	if both(calibrate.Y) {
		if err := m.Calibrate(calibrate); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// rare tells whether under one in five hundred is a yes.
func rare(y []bool) bool {
	n := 0
	for _, v := range y {
		if v {
			n++
		}
	}
	return n*500 < len(y)
}

// balance makes yes and no weigh the same, and within them the classes, and dampens weights to
// their roots: where a failure is one instant in a hundred thousand, the steps of boosting
// are far too large. What the scores mean is learned afterwards, from examples with the weights
// that they have.
func balance(d *gbdt.Data, class []string) {
	type group struct {
		yes  bool
		name string
	}
	sum, of := map[group]float64{}, [2]float64{}
	in := func(i int) group {
		if class == nil {
			return group{yes: d.Y[i]}
		}
		return group{d.Y[i], class[i]}
	}
	for i := range d.Weight {
		d.Weight[i] = math.Sqrt(d.Weight[i])
		sum[in(i)] += d.Weight[i]
	}
	for g := range sum {
		if g.yes {
			of[1]++
		} else {
			of[0]++
		}
	}
	half := float64(len(d.Y)) / 2
	for i, y := range d.Y {
		groups := of[0]
		if y {
			groups = of[1]
		}
		d.Weight[i] *= half / groups / sum[in(i)]
	}
}

func both(y []bool) bool { return slices.Contains(y, true) && slices.Contains(y, false) }

// hash is FNV-1a.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
