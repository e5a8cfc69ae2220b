// Package gbdt learns gradient-boosted decision trees for a yes-or-no question, such as
// whether a host fails within the hour, and says for each answer what it came from.
//
// The algorithm is the one of LightGBM (Ke et al., NeurIPS 2017) and of scikit-learn's
// HistGradientBoostingClassifier: values are put into at most 255 bins, trees grow leaf by
// leaf, always at the leaf whose split gains most, and the histogram of a node's larger
// child is its own less that of the smaller one. Gradients are rounded at random to a few
// bits (Shi et al., "Quantized Training of Gradient Boosting Decision Trees", NeurIPS 2022), so
// that gradient, curvature and count of a bin share one 64-bit sum; what a leaf answers is
// computed from the gradients as they are. Shares are TreeSHAP's (Lundberg et al., "From local
// explanations to global understanding with explainable AI for trees", Nature Machine
// Intelligence 2020).
//
// A missing value is NaN. Each split has learned to which side it goes. The same data,
// configuration and seed give the same model.
package gbdt

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/model/calibrate"
)

// Config says how to learn. The zero value has the defaults, which are scikit-learn's but for the rate and L2.
type Config struct {
	// Trees is how many to learn, 100 by default, and Leaves how many a tree has at most,
	// 31 by default.
	Trees, Leaves int
	// Rate is how much of what a tree has learned is taken over, in 0..1. By default it is 0.1, as
	// in scikit-learn, for up to 20,000 rows, and rises slowly with more, to 0.14: the more rows there
	// are, the less of what a tree has learned is chance.
	Rate float64
	// MinLeaf is how many rows a leaf has at least, 20 by default.
	MinLeaf int
	// L2 shrinks what leaves answer: it is added to their curvature. 1 by default; a very small
	// one, such as 1e-9, shrinks nothing.
	L2 float64
	// Bins is into how many a feature's values are put, 2..255, 255 by default.
	Bins int
	// FeatureShare is which share of the features, drawn for each tree, it may use; 0 means all.
	FeatureShare float64
	// Monotone says of each feature whether more of it may only raise the probability (1),
	// only lower it (-1), or do either (0). Nil leaves all of them free.
	Monotone []int8
	// Seed decides what is drawn at random.
	Seed uint64
	// Features names the columns; a model refuses rows of others by it. Nil stands for f0, f1 …
	Features []string
	// Progress, where it is not nil, is called after each tree with how many there are of how
	// many to come.
	Progress func(done, of int)
}

// Data is what to learn from. Nothing of it is changed or kept.
type Data struct {
	// X has a row for each example, all of the same length; NaN is missing.
	X [][]float64
	// Y says whether an example is of the kind to predict.
	Y []bool
	// Weight says how many rows an example stands for; nil means one each.
	Weight []float64
	// Group names what an example belongs to, such as a host: Calibrate keeps a group together
	// where it holds rows out. Train does not look at it. Nil means that each stands for itself.
	Group []string
}

// Limits of what can be learned from and stored.
const (
	mostRows     = 1 << 24
	mostFeatures = 10_000
	mostTrees    = 10_000
	mostLeaves   = 1024
	mostName     = 256
)

// Model is a trained model. It is safe for concurrent use once Calibrate is not called any more.
type Model struct {
	features []string
	base     float64 // raw score before any tree
	trees    [][]node
	depth    int // of the deepest tree
	shape    calibrate.Map
}

// node is an inner node or a leaf. Of an inner node the children lie side by side, behind it.
type node struct {
	value   float64 // threshold: what is not above it goes left; of a leaf what it adds
	cover   float64 // weight of the training rows that came by
	feature int32   // -1 in a leaf
	left    int32
	// missing is what is added to left where the value is missing: 0 or 1.
	missing int32
}

// Features are the names of the columns that a row has.
func (m *Model) Features() []string { return slices.Clone(m.features) }

// Trees is how many trees the model has.
func (m *Model) Trees() int { return len(m.trees) }

// Accept returns an error unless the features are the model's, in the same order: what
// holds other columns can't be asked.
func (m *Model) Accept(features []string) error {
	if slices.Equal(m.features, features) {
		return nil
	}
	if len(features) != len(m.features) {
		return fmt.Errorf("boosted trees: the model was trained on %d features, these rows have %d: train one on this schema", len(m.features), len(features))
	}
	for i := range features {
		if features[i] != m.features[i] {
			return fmt.Errorf("boosted trees: feature %d is %q, the model was trained with %q there: train one on this schema", i, features[i], m.features[i])
		}
	}
	return nil
}

// Raw is the score before calibration, as log odds. It panics where the row's length is not
// that of Features.
func (m *Model) Raw(row []float64) float64 {
	if len(row) != len(m.features) {
		panic(fmt.Sprintf("gbdt: a row of %d values for %d features", len(row), len(m.features)))
	}
	sum := m.base
	for _, t := range m.trees {
		sum += walk(t, row)
	}
	return sum
}

func walk(t []node, row []float64) float64 {
	n := &t[0]
	for n.feature >= 0 {
		v := row[n.feature]
		var side int32
		if v > n.value {
			side = 1
		}
		if v != v {
			side = n.missing
		}
		n = &t[n.left+side]
	}
	return n.value
}

// Predict is the calibrated probability in 0..1. It allocates nothing and panics as Raw does.
func (m *Model) Predict(row []float64) float64 {
	return m.shape.Probability(m.Raw(row))
}

// Calibrate learns what raw scores mean from rows that the trees have not seen: by a line
// through the log odds or by an isotonic curve, whichever has the lower log loss on groups
// held out from it. Of a single group it is the line.
func (m *Model) Calibrate(d Data) error {
	if err := d.check(len(m.features)); err != nil {
		return err
	}
	raw := make([]float64, len(d.X))
	NewScorer(m).Raw(raw, d.X)
	shape, err := calibrate.Fit(raw, d.Y, d.Weight, d.Group)
	if err != nil {
		return fmt.Errorf("boosted trees: %w", err)
	}
	m.shape = shape
	return nil
}

// Calibration says how raw scores become probabilities.
func (m *Model) Calibration() string { return m.shape.String() }

// Importance is for each feature by how much its splits moved the answers of the training
// rows: the standard deviation of the children's means, weighted by rows and summed. It adds up to 1,
// unless there is no split at all.
func (m *Model) Importance() []float64 {
	out := make([]float64, len(m.features))
	total := 0.0
	var mean []float64
	for _, t := range m.trees {
		mean = append(mean[:0], make([]float64, len(t))...)
		for i := len(t) - 1; i >= 0; i-- {
			n := t[i]
			if n.feature < 0 {
				mean[i] = n.value
				continue
			}
			l, r := t[n.left].cover, t[n.left+1].cover
			if l+r <= 0 {
				continue
			}
			a, b := mean[n.left], mean[n.left+1]
			mean[i] = (l*a + r*b) / (l + r)
			gain := l * r / (l + r) * (a - b) * (a - b)
			out[n.feature] += gain
			total += gain
		}
	}
	for i := range out {
		if total > 0 {
			out[i] /= total
		}
	}
	return out
}

// Average is the model whose raw score is the mean of the models': trained with other seeds and a
// FeatureShare below 1, they err in different ways. All must have the same features. Their calibrations
// are dropped.
func Average(models ...*Model) (*Model, error) {
	if len(models) == 0 {
		return nil, errors.New("boosted trees: an average of no models")
	}
	out := &Model{features: models[0].features}
	share := 1 / float64(len(models))
	for _, m := range models {
		if err := out.Accept(m.features); err != nil {
			return nil, err
		}
		out.base += share * m.base
		out.depth = max(out.depth, m.depth)
		for _, t := range m.trees {
			t = slices.Clone(t)
			for i := range t {
				if t[i].feature < 0 {
					t[i].value *= share
				}
			}
			out.trees = append(out.trees, t)
		}
	}
	if len(out.trees) > mostTrees {
		return nil, fmt.Errorf("boosted trees: %d trees, at most %d are possible", len(out.trees), mostTrees)
	}
	return out, nil
}

func (d Data) check(features int) error {
	if len(d.X) != len(d.Y) {
		return fmt.Errorf("boosted trees: %d rows and %d labels", len(d.X), len(d.Y))
	}
	if d.Weight != nil && len(d.Weight) != len(d.X) {
		return fmt.Errorf("boosted trees: %d rows and %d weights", len(d.X), len(d.Weight))
	}
	if d.Group != nil && len(d.Group) != len(d.X) {
		return fmt.Errorf("boosted trees: %d rows and %d groups", len(d.X), len(d.Group))
	}
	if len(d.X) > mostRows {
		return fmt.Errorf("boosted trees: %d rows, at most %d are possible: take a sample", len(d.X), mostRows)
	}
	for i, x := range d.X {
		if len(x) != features {
			return fmt.Errorf("boosted trees: row %d has %d values for %d features", i, len(x), features)
		}
	}
	positive := 0
	for i, y := range d.Y {
		if y {
			positive++
		}
		if d.Weight != nil && (!(d.Weight[i] >= 0) || math.IsInf(d.Weight[i], 0)) {
			return fmt.Errorf("boosted trees: row %d has the weight %v", i, d.Weight[i])
		}
	}
	if positive == 0 || positive == len(d.Y) {
		return fmt.Errorf("boosted trees: all of the %d labels are the same: there is nothing to tell apart", len(d.Y))
	}
	return nil
}

// leastRows is how many rows there must be to learn anything that holds.
const leastRows = 20

// Train learns a model. It is done on the caller's goroutine and returns early with ctx's error.
func Train(ctx context.Context, d Data, c Config) (*Model, error) {
	if len(d.X) == 0 {
		return nil, errors.New("boosted trees: there are no rows to learn from")
	}
	features := len(d.X[0])
	if features == 0 || features > mostFeatures {
		return nil, fmt.Errorf("boosted trees: %d features: 1 to %d are possible", features, mostFeatures)
	}
	if err := d.check(features); err != nil {
		return nil, err
	}
	if len(d.X) < leastRows {
		return nil, fmt.Errorf("boosted trees: %d rows are too few to learn from: at least %d are needed", len(d.X), leastRows)
	}
	if err := c.complete(len(d.X), features); err != nil {
		return nil, err
	}
	return train(ctx, d, c)
}

func (c *Config) complete(rows, features int) error {
	set := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	set(&c.Trees, 100)
	set(&c.Leaves, 31)
	set(&c.MinLeaf, 20)
	set(&c.Bins, missingBin)
	if c.Rate == 0 {
		c.Rate = 0.1 * min(max(math.Pow(float64(rows)/20_000, 0.2), 1), 1.4)
	}
	if c.L2 == 0 {
		c.L2 = 1
	}
	if c.FeatureShare == 0 {
		c.FeatureShare = 1
	}
	switch {
	case c.Trees < 1 || c.Trees > mostTrees:
		return fmt.Errorf("boosted trees: %d trees: 1 to %d are possible", c.Trees, mostTrees)
	case c.Leaves < 2 || c.Leaves > mostLeaves:
		return fmt.Errorf("boosted trees: %d leaves a tree: 2 to %d are possible", c.Leaves, mostLeaves)
	case c.MinLeaf < 1:
		return fmt.Errorf("boosted trees: at least %d rows in a leaf: it must be 1 or more", c.MinLeaf)
	case c.Bins < 2 || c.Bins > missingBin:
		return fmt.Errorf("boosted trees: %d bins: 2 to %d are possible", c.Bins, missingBin)
	case !(c.Rate > 0 && c.Rate <= 1):
		return fmt.Errorf("boosted trees: a rate of %v: it must be above 0 and at most 1", c.Rate)
	case !(c.FeatureShare > 0 && c.FeatureShare <= 1):
		return fmt.Errorf("boosted trees: a share of %v of the features: it must be above 0 and at most 1", c.FeatureShare)
	case !(c.L2 >= 0) || math.IsInf(c.L2, 0):
		return fmt.Errorf("boosted trees: an L2 of %v: it must be 0 or more", c.L2)
	case c.Monotone != nil && len(c.Monotone) != features:
		return fmt.Errorf("boosted trees: %d monotone constraints for %d features", len(c.Monotone), features)
	}
	for i, v := range c.Monotone {
		if v < -1 || v > 1 {
			return fmt.Errorf("boosted trees: the monotone constraint of feature %d is %d, it must be -1, 0 or 1", i, v)
		}
	}
	if c.Features == nil {
		for i := range features {
			c.Features = append(c.Features, fmt.Sprintf("f%d", i))
		}
	}
	if len(c.Features) != features {
		return fmt.Errorf("boosted trees: %d names for %d features", len(c.Features), features)
	}
	for i, name := range c.Features {
		if name == "" || len(name) > mostName {
			return fmt.Errorf("boosted trees: feature %d has a name of %d bytes: 1 to %d are possible", i, len(name), mostName)
		}
	}
	c.Features = slices.Clone(c.Features)
	return nil
}
