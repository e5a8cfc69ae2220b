// Package golearn is the reference that our own models must beat: a random forest over the
// trees of github.com/sjwhitworth/golearn, and its confusion matrix. It is the only package that
// imports golearn, and fences it in:
//
//   - golearn draws from the global random source, one goroutine for each tree, and drops the
//     trees' errors. Here rows and features are drawn from a seed, trees are grown one after the
//     other, and a panic becomes an error.
//   - It goes over features and rows in the order of a map, so that ties between splits fall by
//     chance. Here it is given both in a fixed order: the same rows and seed grow the same forest.
//   - It loops for ever on values that are not finite. Here what is missing becomes the median.
//   - It takes 40 seconds for 20,000 rows of 40 features. Here a tree sees a sample of rows.
//   - Its trees are maps of text. Here they are frozen into arrays, where a leaf answers with
//     its share of rows.
//
// What would use up memory or hang all the same is bounded by a process of its own: the
// commands train and judge it in one with limits (see internal/jobs).
//
// A numeric attribute is used at most once on the way to a leaf, which is why its forests are weak.
package golearn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/sjwhitworth/golearn/base"
	"github.com/sjwhitworth/golearn/evaluation"
	"github.com/sjwhitworth/golearn/trees"
)

// Config says how to learn. The zero value has the defaults.
type Config struct {
	// Trees is how many to grow, 100 by default.
	Trees int
	// Rows is how many rows, drawn with replacement, a tree sees at most, 2000 by default.
	Rows int
	// Features is how many features, drawn without replacement, a tree sees; the square root
	// of all of them by default.
	Features int
	Seed     uint64
	// Progress, where it is not nil, is called with how many trees are grown.
	Progress func(done, of int)
}

// Forest is a trained forest. It is safe for concurrent use.
type Forest struct {
	median []float64
	trees  [][]node
}

// node of a tree; a leaf has the feature -1 and its share of positive rows as value.
type node struct {
	feature     int
	value       float64
	left, right int
}

// Largest table that is taken, since golearn keeps a copy of each.
const mostValues = 200_000_000

// Train learns a forest from rows of the same length, of which NaN and infinite values count as missing.
func Train(ctx context.Context, x [][]float64, y []bool, c Config) (f *Forest, err error) {
	if c.Trees == 0 {
		c.Trees = 100
	}
	if c.Rows == 0 {
		c.Rows = 2000
	}
	if len(x) == 0 || len(x) != len(y) {
		return nil, fmt.Errorf("golearn: %d rows and %d labels", len(x), len(y))
	}
	features := len(x[0])
	if c.Features == 0 {
		c.Features = max(1, int(math.Sqrt(float64(features))))
	}
	switch {
	case features == 0 || len(x)*features > mostValues:
		return nil, fmt.Errorf("golearn: %d rows of %d features: 1 to %d values are possible", len(x), features, mostValues)
	case c.Trees < 1 || c.Rows < 1 || c.Features < 1 || c.Features > features:
		return nil, fmt.Errorf("golearn: %d trees of %d rows and %d of %d features", c.Trees, c.Rows, c.Features, features)
	}
	for i, row := range x {
		if len(row) != features {
			return nil, fmt.Errorf("golearn: row %d has %d values for %d features", i, len(row), features)
		}
	}
	if !slices.Contains(y, true) || !slices.Contains(y, false) {
		return nil, fmt.Errorf("golearn: all of the %d labels are the same: there is nothing to tell apart", len(y))
	}
	f = &Forest{median: make([]float64, features)}
	var column []float64
	for k := range f.median {
		column = column[:0]
		for _, row := range x {
			if finite(row[k]) {
				column = append(column, row[k])
			}
		}
		if len(column) > 0 {
			slices.Sort(column)
			f.median[k] = column[len(column)/2]
		}
	}
	random := rand.New(rand.NewPCG(c.Seed, 0x601ea))
	for range c.Trees {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rows := make([]int, min(c.Rows, len(x)))
		for i := range rows {
			rows[i] = random.IntN(len(x))
		}
		used := random.Perm(features)[:c.Features]
		slices.Sort(used)
		t, err := f.grow(x, y, rows, used)
		if err != nil {
			return nil, err
		}
		f.trees = append(f.trees, t)
		if c.Progress != nil {
			c.Progress(len(f.trees), c.Trees)
		}
	}
	return f, nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func (f *Forest) value(row []float64, feature int) float64 {
	if v := row[feature]; finite(v) {
		return v
	}
	return f.median[feature]
}

const yes, no = "1", "0"

func class(v bool) string {
	if v {
		return yes
	}
	return no
}

// guard turns a panic of golearn into an error.
func guard(what string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("golearn panicked in %s: %v", what, r)
	}
}

func (f *Forest) grow(x [][]float64, y []bool, rows, used []int) (t []node, err error) {
	defer guard("training", &err)
	grid := base.NewDenseInstances()
	names := make(map[string]int)
	var specs []base.AttributeSpec
	for _, k := range used {
		a := base.NewFloatAttribute(fmt.Sprint("f", k))
		names[a.GetName()] = k
		specs = append(specs, grid.AddAttribute(a))
	}
	label, err := addClass(grid)
	if err != nil {
		return nil, err
	}
	if err := grid.Extend(len(rows)); err != nil {
		return nil, fmt.Errorf("golearn: %w", err)
	}
	for i, r := range rows {
		for j, k := range used {
			grid.Set(specs[j], i, base.PackFloatToBytes(f.value(x[r], k)))
		}
		grid.Set(label, i, label.GetAttribute().GetSysValFromString(class(y[r])))
	}
	root := trees.InferID3Tree(grid, inOrder{})
	return freeze(nil, root, names)
}

// inOrder looks for the split of the largest gain in the order of the features' names: the
// first of several that are as good.
type inOrder struct {
	gain trees.InformationGainRuleGenerator
}

// GenerateSplitRule implements [trees.RuleGenerator].
func (o inOrder) GenerateSplitRule(grid base.FixedDataGrid) *trees.DecisionTreeRule {
	features := base.AttributeDifferenceReferences(grid.AllAttributes(), grid.AllClassAttributes())
	slices.SortFunc(features, func(a, b base.Attribute) int { return cmp.Compare(a.GetName(), b.GetName()) })
	_, n := grid.Size()
	rows := make([]int, 0, n)
	for _, c := range []string{no, yes} {
		for r := range n {
			if base.GetClass(grid, r) == c {
				rows = append(rows, r)
			}
		}
	}
	return o.gain.GetSplitRuleFromSelection(features, byClass{grid, rows})
}

// byClass goes over the rows of one class and then of the other: golearn numbers classes as they come,
// and adds up entropies in that order, which changes the last digit that a tie hangs on.
type byClass struct {
	base.FixedDataGrid
	rows []int
}

// MapOverRows implements [base.FixedDataGrid].
func (g byClass) MapOverRows(columns []base.AttributeSpec, f func([][]byte, int) (bool, error)) error {
	row := make([][]byte, len(columns))
	for _, r := range g.rows {
		for i, c := range columns {
			row[i] = g.Get(c, r)
		}
		if more, err := f(row, r); err != nil || !more {
			return err
		}
	}
	return nil
}

func addClass(grid *base.DenseInstances) (base.AttributeSpec, error) {
	label := base.NewCategoricalAttribute()
	label.SetName("label")
	label.GetSysValFromString(no) // so that the classes are known in this order
	label.GetSysValFromString(yes)
	spec := grid.AddAttribute(label)
	if err := grid.AddClassAttribute(label); err != nil {
		return spec, fmt.Errorf("golearn: %w", err)
	}
	return spec, nil
}

// freeze appends a tree of golearn's to ours.
func freeze(t []node, n *trees.DecisionTreeNode, names map[string]int) ([]node, error) {
	at := len(t)
	positive, all := n.ClassDist[yes], n.ClassDist[yes]+n.ClassDist[no]
	t = append(t, node{feature: -1, value: float64(positive) / float64(max(all, 1))})
	left, right := n.Children["0"], n.Children["1"]
	if n.SplitRule == nil || n.SplitRule.SplitAttr == nil || left == nil || right == nil {
		return t, nil
	}
	feature, ok := names[n.SplitRule.SplitAttr.GetName()]
	if !ok {
		return nil, fmt.Errorf("golearn: a tree asks for the attribute %q, which it was not given", n.SplitRule.SplitAttr.GetName())
	}
	var err error
	t[at] = node{feature: feature, value: n.SplitRule.SplitVal, left: len(t)}
	if t, err = freeze(t, left, names); err != nil {
		return nil, err
	}
	t[at].right = len(t)
	return freeze(t, right, names)
}

// Predict is the probability, the mean of what the trees answer. It panics where the row is
// not as long as those that were learned from.
func (f *Forest) Predict(row []float64) float64 {
	if len(row) != len(f.median) {
		panic(fmt.Sprintf("golearn: a row of %d values for %d features", len(row), len(f.median)))
	}
	sum := 0.0
	for _, t := range f.trees {
		n := t[0]
		for n.feature >= 0 {
			if f.value(row, n.feature) > n.value {
				n = t[n.right]
			} else {
				n = t[n.left]
			}
		}
		sum += n.value
	}
	return sum / float64(len(f.trees))
}

// Confusion is golearn's summary of its confusion matrix, as text.
func Confusion(labels, predicted []bool) (text string, err error) {
	if len(labels) == 0 || len(labels) != len(predicted) {
		return "", errors.New("golearn: a confusion matrix needs as many predictions as labels, and at least one")
	}
	defer guard("evaluation", &err)
	grid := func(v []bool) (*base.DenseInstances, error) {
		g := base.NewDenseInstances()
		spec, err := addClass(g)
		if err != nil {
			return nil, err
		}
		if err := g.Extend(len(v)); err != nil {
			return nil, fmt.Errorf("golearn: %w", err)
		}
		for i, b := range v {
			g.Set(spec, i, spec.GetAttribute().GetSysValFromString(class(b)))
		}
		return g, nil
	}
	truth, err := grid(labels)
	if err != nil {
		return "", err
	}
	said, err := grid(predicted)
	if err != nil {
		return "", err
	}
	matrix, err := evaluation.GetConfusionMatrix(truth, said)
	if err != nil {
		return "", fmt.Errorf("golearn: %w", err)
	}
	return evaluation.GetSummary(matrix), nil
}
