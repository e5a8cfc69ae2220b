package gbdt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

func learn(t *testing.T, d Data, c Config) *Model {
	t.Helper()
	m, err := Train(t.Context(), d, c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// quality is the area under the ROC curve and the log loss on other rows.
func quality(t *testing.T, m *Model, d Data) (auc, loss float64) {
	t.Helper()
	p := make([]float64, len(d.X))
	NewScorer(m).Predict(p, d.X)
	auc, err := metrics.AUCROC(p, d.Y)
	if err != nil {
		t.Fatal(err)
	}
	for i, y := range d.Y {
		if y {
			loss -= math.Log(p[i])
		} else {
			loss -= math.Log1p(-p[i])
		}
	}
	return auc, loss / float64(len(p))
}

func TestItLearnsWhatCanBeLearned(t *testing.T) {
	m := learn(t, wide(20_000, 1), Config{})
	auc, loss := quality(t, m, wide(20_000, 2))
	if auc < 0.8 || loss > 0.52 {
		t.Errorf("AUC %.4f, log loss %.4f", auc, loss)
	}
	if m.Trees() != 100 {
		t.Errorf("%d trees", m.Trees())
	}
	// What matters and what doesn't.
	imp := m.Importance()
	if sum := floatsSum(imp); math.Abs(sum-1) > 1e-9 || imp[0] < 0.05 || imp[37] > 0.02 {
		t.Errorf("importance %v (sum %v)", imp, sum)
	}
}

func floatsSum(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum
}

func TestTheSameSeedGivesTheSameModel(t *testing.T) {
	d := wide(3000, 1)
	encode := func(c Config) []byte {
		b, err := learn(t, d, c).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	c := Config{Trees: 10, Seed: 5, FeatureShare: 0.5}
	a := encode(c)
	if !bytes.Equal(a, encode(c)) {
		t.Error("two models of the same seed differ")
	}
	c.Seed = 6
	if bytes.Equal(a, encode(c)) {
		t.Error("the seed changes nothing")
	}
}

// holed makes values missing, more often where the label is true.
func holed(d Data) Data {
	r := rand.New(rand.NewPCG(8, 8))
	for i, x := range d.X {
		for f := range x {
			if r.IntN(10) == 0 || f == 37 && d.Y[i] && r.IntN(2) == 0 {
				x[f] = math.NaN()
			}
		}
	}
	return d
}

func TestThatAValueIsMissingIsLearnedFrom(t *testing.T) {
	m := learn(t, holed(wide(10_000, 1)), Config{Trees: 30})
	if imp := m.Importance(); slices.Max(imp) != imp[37] {
		t.Errorf("feature 37 tells most by being missing, its share is %.3f", imp[37])
	}
	x := slices.Clone(wide(1, 3).X[0])
	low := m.Predict(x)
	x[37] = math.NaN()
	if high := m.Predict(x); high < low+0.1 {
		t.Errorf("%.3f with the value, %.3f without", low, high)
	}
	for f := range x {
		x[f] = math.NaN()
	}
	if p := m.Predict(x); !(p > 0 && p < 1) {
		t.Errorf("%v for a row with nothing in it", p)
	}
}

func TestTheTablesScoreAsTheTreesDo(t *testing.T) {
	d := holed(wide(5000, 1))
	for i, x := range d.X { // on the edge of bins, and beyond all that was seen
		switch i % 50 {
		case 0:
			x[3] = math.Inf(1)
		case 1:
			x[3] = math.Inf(-1)
		case 2:
			x[0] = 1e300
		}
	}
	for name, c := range map[string]Config{
		"default": {}, "two leaves": {Leaves: 2}, "32 leaves": {Leaves: 32, MinLeaf: 1}, "more leaves than the tables hold": {Leaves: 40}, "few bins": {Bins: 3},
	} {
		c.Trees = 20
		m := learn(t, d, c)
		for _, n := range []int{0, 1, 63, 64, 65, 1000} {
			got := make([]float64, n)
			NewScorer(m).Raw(got, d.X[:n])
			for i, x := range d.X[:n] {
				if want := m.Raw(x); math.Abs(got[i]-want) > 1e-9 {
					t.Fatalf("%s: row %d of %d: %v, the trees say %v", name, i, n, got[i], want)
				}
			}
		}
		// Each value right at a threshold goes left in both.
		x := slices.Clone(d.X[10])
		for _, tree := range m.trees {
			for _, node := range tree {
				if node.feature < 0 {
					continue
				}
				for _, v := range []float64{node.value, math.Nextafter(node.value, math.Inf(1)), math.Nextafter(node.value, math.Inf(-1))} {
					was := x[node.feature]
					x[node.feature] = v
					var got [1]float64
					NewScorer(m).Raw(got[:], [][]float64{x})
					if want := m.Raw(x); math.Abs(got[0]-want) > 1e-9 {
						t.Fatalf("%s: %v, the trees say %v", name, got[0], want)
					}
					x[node.feature] = was
				}
			}
			break
		}
	}
}

// TestCalibrationHoldsOutGroups: rows of one kind repeat one outcome, so that a curve which learned
// some of them knows the others.
func TestCalibrationHoldsOutGroups(t *testing.T) {
	m := learn(t, wide(2000, 1), Config{Trees: 10})
	hosts := wide(200, 2)
	var d Data
	var group []string
	for h := range hosts.X {
		for range 20 {
			d.X, d.Y, group = append(d.X, hosts.X[h]), append(d.Y, hosts.Y[h]), append(group, fmt.Sprint(h))
		}
	}
	for _, want := range []string{"isotonic", "platt"} {
		if err := m.Calibrate(d); err != nil {
			t.Fatal(err)
		}
		if got := m.Calibration(); got != want {
			t.Errorf("%d groups: %s was chosen, not %s", len(d.Group), got, want)
		}
		d.Group = group
	}
}

func TestScoringAllocatesNothing(t *testing.T) {
	d := wide(2000, 1)
	m := learn(t, d, Config{Trees: 10})
	if err := m.Calibrate(wide(2000, 2)); err != nil {
		t.Fatal(err)
	}
	s, dst := NewScorer(m), make([]float64, 100)
	if n := testing.AllocsPerRun(10, func() { m.Predict(d.X[0]); s.Predict(dst, d.X[:100]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSharesAddUpToTheScore(t *testing.T) {
	d := holed(wide(4000, 1))
	m := learn(t, d, Config{Trees: 30})
	dst := make([]float64, 38)
	for _, x := range d.X[:100] {
		mean := m.Contributions(dst, x)
		if got, want := mean+floatsSum(dst), m.Raw(x); math.Abs(got-want) > 1e-9 {
			t.Fatalf("the shares add up to %v, the score is %v", got, want)
		}
	}
}

// The definition of Shapley values, over all subsets of four features.
func TestSharesAreShapleyValues(t *testing.T) {
	d := wide(2000, 1)
	for i := range d.X {
		d.X[i] = d.X[i][:4]
	}
	m := learn(t, d, Config{Trees: 5, Leaves: 12})
	var expect func(tree []node, at int32, row []float64, known int) float64
	expect = func(tree []node, at int32, row []float64, known int) float64 {
		n := tree[at]
		if n.feature < 0 {
			return n.value
		}
		if known>>n.feature&1 == 1 {
			if row[n.feature] > n.value {
				return expect(tree, n.left+1, row, known)
			}
			return expect(tree, n.left, row, known)
		}
		l, r := tree[n.left], tree[n.left+1]
		return (l.cover*expect(tree, n.left, row, known) + r.cover*expect(tree, n.left+1, row, known)) / (l.cover + r.cover)
	}
	weight := [4]float64{1. / 4, 1. / 12, 1. / 12, 1. / 4} // s!(3-s)!/4!
	dst := make([]float64, 4)
	for _, row := range d.X[:20] {
		m.Contributions(dst, row)
		for f := range 4 {
			want := 0.0
			for subset := range 16 {
				if subset>>f&1 == 1 {
					continue
				}
				size := 0
				for k := range 4 {
					size += subset >> k & 1
				}
				for _, tree := range m.trees {
					want += weight[size] * (expect(tree, 0, row, subset|1<<f) - expect(tree, 0, row, subset))
				}
			}
			if math.Abs(dst[f]-want) > 1e-9 {
				t.Fatalf("feature %d has the share %v, by definition %v", f, dst[f], want)
			}
		}
	}
}

func TestMonotoneFeaturesAre(t *testing.T) {
	c := Config{Trees: 40, Monotone: make([]int8, 38)}
	c.Monotone[0], c.Monotone[4], c.Monotone[6], c.Monotone[20] = 1, 1, 1, -1
	d := wide(10_000, 1)
	m := learn(t, d, c)
	free := learn(t, d, Config{Trees: 40})
	falls := 0
	for _, x := range wide(50, 9).X {
		for f, direction := range c.Monotone {
			if direction == 0 {
				continue
			}
			x := slices.Clone(x)
			last, lastFree := math.Inf(-1), math.Inf(-1)
			for v := -4.0; v <= 4; v += 0.05 {
				x[f] = v * float64(direction)
				if p := m.Raw(x); p < last-1e-12 {
					t.Fatalf("feature %d: the score falls from %v to %v at %v", f, last, p, x[f])
				} else {
					last = p
				}
				if p := free.Raw(x); p < lastFree-1e-12 {
					falls++
					lastFree = p
				} else {
					lastFree = p
				}
			}
		}
	}
	if falls == 0 {
		t.Error("without constraints nothing falls: this test shows nothing")
	}
	if auc, _ := quality(t, m, wide(5000, 2)); auc < 0.7 {
		t.Errorf("AUC %.3f", auc)
	}
}

func TestLeavesAreAsLargeAsAskedFor(t *testing.T) {
	d := wide(3000, 1)
	m := learn(t, d, Config{Trees: 10, MinLeaf: 50, Leaves: 200})
	for _, tree := range m.trees {
		leaves := 0
		for _, n := range tree {
			if n.feature < 0 {
				leaves++
				if n.cover < 50 {
					t.Fatalf("a leaf of %v rows", n.cover)
				}
			}
		}
		if leaves < 20 || leaves > 60 {
			t.Fatalf("%d leaves from 3000 rows, of 50 at least each", leaves)
		}
	}
}

func TestAWeightIsThatManyRows(t *testing.T) {
	d := wide(3000, 1)
	twice := Data{X: slices.Concat(d.X, d.X[:1000]), Y: slices.Concat(d.Y, d.Y[:1000])}
	d.Weight = make([]float64, len(d.X))
	for i := range d.Weight {
		d.Weight[i] = 1
		if i < 1000 {
			d.Weight[i] = 2
		}
	}
	a, b := learn(t, d, Config{Trees: 20}), learn(t, twice, Config{Trees: 20})
	if a.base != b.base && math.Abs(a.base-b.base) > 1e-12 {
		t.Errorf("the base is %v and %v", a.base, b.base)
	}
	aucA, lossA := quality(t, a, wide(5000, 2))
	aucB, lossB := quality(t, b, wide(5000, 2))
	if math.Abs(aucA-aucB) > 0.02 || math.Abs(lossA-lossB) > 0.02 {
		t.Errorf("AUC %.3f and %.3f, log loss %.3f and %.3f", aucA, aucB, lossA, lossB)
	}
}

func TestProbabilitiesComeTrue(t *testing.T) {
	m := learn(t, wide(3000, 1), Config{Trees: 300}) // too many for so few rows: too sure
	other, held := wide(5000, 2), wide(10_000, 3)
	_, before := quality(t, m, held)
	if err := m.Calibrate(other); err != nil {
		t.Fatal(err)
	}
	_, after := quality(t, m, held)
	if after > before-0.02 {
		t.Errorf("log loss %.3f before and %.3f after", before, after)
	}
	if m.Calibration() == "none" {
		t.Error("calibrated by nothing")
	}
}

func TestDataThatNothingCanBeLearnedFrom(t *testing.T) {
	good := wide(100, 1)
	one := Data{X: good.X, Y: make([]bool, 100)}
	ragged := Data{X: slices.Clone(good.X), Y: good.Y}
	ragged.X[5] = ragged.X[5][:3]
	for name, c := range map[string]struct {
		d    Data
		c    Config
		want string
	}{
		"no rows":          {Data{}, Config{}, "no rows"},
		"ten rows":         {Data{X: good.X[:10], Y: good.Y[:10]}, Config{}, "10 rows are too few"},
		"one class":        {one, Config{}, "all of the 100 labels are the same"},
		"ragged":           {ragged, Config{}, "row 5 has 3 values for 38"},
		"labels":           {Data{X: good.X, Y: good.Y[:3]}, Config{}, "100 rows and 3 labels"},
		"no columns":       {Data{X: make([][]float64, 30), Y: good.Y[:30]}, Config{}, "0 features"},
		"too many columns": {Data{X: [][]float64{make([]float64, 1_000_000)}, Y: good.Y[:1]}, Config{}, "1000000 features"},
		"weight":           {Data{X: good.X, Y: good.Y, Weight: slices.Repeat([]float64{math.NaN()}, 100)}, Config{}, "weight NaN"},
		"groups":           {Data{X: good.X, Y: good.Y, Group: []string{"a"}}, Config{}, "100 rows and 1 groups"},
		"trees":            {good, Config{Trees: -1}, "-1 trees"},
		"leaves":           {good, Config{Leaves: 1}, "1 leaves"},
		"rate":             {good, Config{Rate: math.NaN()}, "rate of NaN"},
		"constraints":      {good, Config{Monotone: []int8{1}}, "1 monotone"},
		"names":            {good, Config{Features: []string{"a"}}, "1 names"},
	} {
		_, err := Train(t.Context(), c.d, c.c)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, not %q", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Train(ctx, good, Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// What tells nothing is no error: the mean is left.
	dull := Data{X: make([][]float64, 100), Y: good.Y}
	for i := range dull.X {
		dull.X[i] = []float64{1, math.NaN(), math.Inf(1)}
	}
	m := learn(t, dull, Config{})
	yes := 0
	for _, y := range good.Y {
		if y {
			yes++
		}
	}
	if p := m.Predict(dull.X[0]); m.Trees() != 0 || math.Abs(p-float64(yes)/100) > 1e-9 {
		t.Errorf("%d trees and a probability of %v from nothing", m.Trees(), p)
	}
}

func TestRowsOfAnotherSchemaAreRefused(t *testing.T) {
	d := wide(100, 1)
	for i := range d.X {
		d.X[i] = d.X[i][:2]
	}
	m := learn(t, d, Config{Trees: 2, Features: []string{"load", "errors"}})
	if err := m.Accept([]string{"load", "errors"}); err != nil {
		t.Error(err)
	}
	for _, other := range [][]string{{"load"}, {"errors", "load"}, {"load", "errors", "more"}, nil} {
		if err := m.Accept(other); err == nil || !strings.Contains(err.Error(), "train") {
			t.Errorf("%v: %v", other, err)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a short row was answered")
		}
	}()
	m.Predict([]float64{1})
}

func TestAStoredModelIsTheSame(t *testing.T) {
	d := holed(wide(2000, 1))
	m := learn(t, d, Config{Trees: 20})
	if err := m.Calibrate(wide(1000, 2)); err != nil {
		t.Fatal(err)
	}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := back.Accept(m.Features()); err != nil {
		t.Error(err)
	}
	mine, its := make([]float64, 38), make([]float64, 38)
	for _, x := range d.X[:100] {
		m.Contributions(mine, x)
		back.Contributions(its, x)
		if m.Predict(x) != back.Predict(x) || !slices.Equal(mine, its) {
			t.Fatal("the stored model answers otherwise")
		}
	}
	for i := 0; i < len(b); i += 101 {
		bad := slices.Clone(b)
		bad[i] ^= 1
		if _, err := Unmarshal(bad); err == nil {
			t.Fatalf("byte %d changed, and no error", i)
		}
		if _, err := Unmarshal(b[:i]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
}

func TestTheAverageOfModels(t *testing.T) {
	d := wide(2000, 1)
	a, b := learn(t, d, Config{Trees: 10, Seed: 1, FeatureShare: 0.3}), learn(t, d, Config{Trees: 20, Seed: 2, FeatureShare: 0.3})
	m, err := Average(a, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range d.X[:50] {
		if got, want := m.Raw(x), (a.Raw(x)+b.Raw(x))/2; math.Abs(got-want) > 1e-12 {
			t.Fatalf("%v, the mean is %v", got, want)
		}
	}
	for i := range d.X {
		d.X[i] = d.X[i][:3]
	}
	if _, err := Average(a, learn(t, d, Config{Trees: 1})); err == nil {
		t.Error("averaged models of different features")
	}
	if _, err := Average(); err == nil {
		t.Error("averaged nothing")
	}
}

// The body alone, since no fuzzer finds a checksum.
func FuzzDecode(f *testing.F) {
	d := wide(200, 1)
	for i := range d.X {
		d.X[i] = d.X[i][:3]
	}
	m, err := Train(context.Background(), d, Config{Trees: 2, Leaves: 4})
	if err != nil {
		f.Fatal(err)
	}
	for range 2 {
		b, err := m.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[headBytes : len(b)-32])
		if err := m.Calibrate(d); err != nil {
			f.Fatal(err)
		}
	}
	// A tree that is a leaf.
	m.trees = append(m.trees, []node{{feature: -1, value: 1}})
	b, err := m.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[headBytes : len(b)-32])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil || len(m.features) > 100 {
			return
		}
		row := make([]float64, len(m.features))
		row[0] = math.NaN()
		a := m.Predict(row)
		var got [1]float64
		NewScorer(m).Predict(got[:], [][]float64{row})
		if math.Abs(a-got[0]) > 1e-6 {
			t.Fatalf("%v one by one, %v with tables", a, got[0])
		}
		if m.depth < 50 {
			m.Contributions(make([]float64, len(row)), row)
		}
	})
}
