package golearn

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

// data is told apart by its first two features, except for some noise.
func data(n int, seed uint64) (x [][]float64, y []bool) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range n {
		row := []float64{r.NormFloat64(), r.NormFloat64(), r.NormFloat64(), 7}
		x = append(x, row)
		y = append(y, row[0]-row[1]+0.5*r.NormFloat64() > 0)
		switch i % 20 {
		case 0:
			row[2] = math.NaN()
		case 1:
			row[0] = math.Inf(1)
		}
	}
	return x, y
}

func TestTheForestLearns(t *testing.T) {
	x, y := data(500, 1)
	f, err := Train(t.Context(), x, y, Config{Trees: 30, Features: 3, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	x2, y2 := data(500, 2)
	p := make([]float64, len(x2))
	for i := range x2 {
		p[i] = f.Predict(x2[i])
	}
	auc, err := metrics.AUCROC(p, y2)
	if err != nil {
		t.Fatal(err)
	}
	if auc < 0.85 {
		t.Errorf("AUC %.3f", auc)
	}
	again, err := Train(t.Context(), x, y, Config{Trees: 30, Features: 3, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.trees {
		if !slices.Equal(f.trees[i], again.trees[i]) {
			t.Fatal("the same seed gave another forest")
		}
	}
}

func TestErrorsInPlaceOfPanics(t *testing.T) {
	x, y := data(30, 1)
	for name, c := range map[string]struct {
		x [][]float64
		y []bool
		c Config
	}{
		"nothing":          {nil, nil, Config{}},
		"one class":        {x, make([]bool, len(x)), Config{}},
		"ragged":           {append(slices.Clone(x), x[0][:1]), append(slices.Clone(y), true), Config{}},
		"no features":      {make([][]float64, 30), y, Config{}},
		"too many of them": {x, y, Config{Features: 9}},
	} {
		if _, err := Train(t.Context(), c.x, c.y, c.c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	f := &Forest{median: []float64{0}}
	if _, err := f.grow(x, y, []int{0, 1, 2}, []int{99}); err == nil || !strings.Contains(err.Error(), "golearn panicked") {
		t.Errorf("a feature that there is not: %v", err)
	}
	// Nothing to learn from is no error.
	dull := make([][]float64, len(y))
	for i := range dull {
		dull[i] = []float64{1, math.NaN()}
	}
	if _, err := Train(t.Context(), dull, y, Config{Trees: 3}); err != nil {
		t.Error(err)
	}
}

func TestConfusion(t *testing.T) {
	text, err := Confusion([]bool{true, true, false, false, false}, []bool{true, false, false, false, true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "Overall accuracy: 0.6") {
		t.Error(text)
	}
	if _, err := Confusion([]bool{true}, nil); err == nil {
		t.Error("a prediction is missing, and no error")
	}
}

// Where features are as good as each other, which tree grows is still no matter of chance.
func TestTiesDoNotFallByChance(t *testing.T) {
	x, y := data(200, 3)
	for i, row := range x {
		x[i] = []float64{row[0], row[0], row[0], row[0], row[1], row[1], row[1], row[1]}
	}
	var first *Forest
	for range 5 {
		f, err := Train(t.Context(), x, y, Config{Trees: 5, Features: 8, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = f
		}
		for i := range f.trees {
			if !slices.Equal(f.trees[i], first.trees[i]) {
				t.Fatal("the same seed gave another forest")
			}
		}
	}
}
