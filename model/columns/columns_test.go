package columns

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func choose(rows [][]float64, most int) []int {
	return Choose(len(rows), len(rows[0]), most, func(r, c int) float64 { return rows[r][c] })
}

// groups makes rows of columns 0 to 3 that follow one load, 4 and 5 that follow
// another, 6 that goes its own way, 7 constant, 8 mostly missing and 9 a copy of 6.
func groups(n int) [][]float64 {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([][]float64, n)
	for i := range out {
		a, b, c := r.NormFloat64(), r.NormFloat64(), r.NormFloat64()
		noise := func() float64 { return 0.3 * r.NormFloat64() }
		out[i] = []float64{a + noise(), 1e9 * (a + noise()), -a + noise(), a + noise(), b + noise(), b + noise(), c, 42, math.NaN(), 7*c + 3}
		if i%5 == 0 {
			out[i][8] = c
		}
	}
	return out
}

func TestOneOfEachGroupComesFirst(t *testing.T) {
	got := choose(groups(500), 3)
	if len(got) != 3 || got[0] > 3 || got[1] != 4 && got[1] != 5 || got[2] != 6 {
		t.Errorf("chosen: %v", got)
	}
	if !slices.Equal(got, choose(groups(500), 3)) {
		t.Error("the choice differs from run to run")
	}
}

func TestWhatSaysNothingNewIsLeftOut(t *testing.T) {
	got := choose(groups(500), 40)
	if slices.Contains(got, 7) || slices.Contains(got, 8) {
		t.Errorf("a constant or missing column was chosen: %v", got)
	}
	if slices.Contains(got, 6) == slices.Contains(got, 9) {
		t.Errorf("of a column and its copy one is wanted: %v", got)
	}
	if !slices.IsSorted(got) {
		t.Errorf("not in order: %v", got)
	}
}

func TestHostileRows(t *testing.T) {
	if got := choose(groups(10), 5); got != nil {
		t.Errorf("chosen of ten rows: %v", got)
	}
	rows := groups(100)
	for i, row := range rows {
		row[0], row[1] = math.Inf(1), math.MaxFloat64*float64(i%2*2-1)
	}
	for _, c := range choose(rows, 40) {
		if c == 0 {
			t.Error("a column of infinities was chosen")
		}
	}
}
