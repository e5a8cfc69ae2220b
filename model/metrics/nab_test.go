package metrics

import (
	"math"
	"testing"
)

func TestNABByHand(t *testing.T) {
	// 20 rows, of which three are probation, and a window of four from row 9 on.
	series := func(detected ...int) []NABSeries {
		scores := make([]float64, 20)
		for _, i := range detected {
			scores[i] = 0.9
		}
		return []NABSeries{{Scores: scores, Windows: []NABWindow{{9, 12}}}}
	}
	sigmoid := func(x float64) float64 { return 2/(1+math.Exp(5*x)) - 1 }
	standard, lowFP, lowFN := NABProfiles[0], NABProfiles[1], NABProfiles[2]
	for _, c := range []struct {
		name     string
		profile  NABProfile
		detected []int
		points   float64
	}{
		{"the first row of the window", standard, []int{9}, 1},
		{"only the earliest counts", standard, []int{9, 10, 12}, 1},
		{"the last row of the window", standard, []int{12}, sigmoid(-0.25) / sigmoid(-1)},
		{"nothing", standard, nil, -1},
		{"nothing, where that is worse", lowFN, nil, -2},
		{"probation does not count", standard, []int{2, 9}, 1},
		{"before the window", standard, []int{3, 9}, 1 - 0.11},
		{"before the window, where that is worse", lowFP, []int{3, 9}, 1 - 0.22},
		{"just after the window", standard, []int{9, 13}, 1 + 0.11*sigmoid(1.0/3)},
		{"after the window only", standard, []int{13}, -1 + 0.11*sigmoid(1.0/3)},
	} {
		got, err := NABAt(series(c.detected...), c.profile, 0.5)
		if err != nil || math.Abs(got.Points-c.points) > 1e-12 {
			t.Errorf("%s: %v points, not %v (%v)", c.name, got.Points, c.points, err)
		}
		if got.Null != -c.profile.FN || got.Perfect != 1 || got.Windows != 1 {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	// The threshold that is best for both series: 0.7 has both windows and one row outside.
	two := append(series(9), series()...)
	two[1].Scores[9], two[0].Scores[4], two[0].Scores[5] = 0.7, 0.8, 0.6
	got, err := NAB(two, standard)
	if err != nil || got.Threshold != 0.7 || got.Found != 2 || got.False != 1 || math.Abs(got.Score()-100*(4-0.11)/4) > 1e-9 {
		t.Errorf("%+v, %v, %v", got, got.Score(), err)
	}
	if got, err := NAB(series(3, 4, 5, 6, 7, 8, 14, 15, 16, 17, 18, 19, 12), lowFP); err != nil || got.Score() != 0 || got.Threshold <= 1 || got.False != 0 {
		t.Errorf("where every threshold costs more than it gives: %+v, %v", got, err)
	}
}

func TestNABRefuses(t *testing.T) {
	ok := []float64{0, 0, 0, 1, 0, 0, 0, 0}
	for name, all := range map[string][]NABSeries{
		"nothing":               nil,
		"no window":             {{Scores: ok}},
		"a score over 1":        {{Scores: []float64{0, 2, 0}, Windows: []NABWindow{{1, 2}}}},
		"not a number":          {{Scores: []float64{0, math.NaN(), 0}, Windows: []NABWindow{{1, 2}}}},
		"a window outside":      {{Scores: ok, Windows: []NABWindow{{6, 8}}}},
		"windows that overlap":  {{Scores: ok, Windows: []NABWindow{{2, 4}, {4, 6}}}},
		"a window before row 0": {{Scores: ok, Windows: []NABWindow{{-1, 2}}}},
		"a window turned round": {{Scores: ok, Windows: []NABWindow{{5, 3}}}},
	} {
		if got, err := NAB(all, NABProfiles[0]); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := NABAt([]NABSeries{{Scores: ok}}, NABProfiles[0], math.NaN()); err == nil {
		t.Error("a threshold that is not a number was taken")
	}
	for rows, want := range map[int]int{0: 0, 6: 0, 7: 1, 4032: 604, 5000: 750, 22695: 750} {
		if got := NABProbation(rows); got != want {
			t.Errorf("probation of %d rows: %d, not %d", rows, got, want)
		}
	}
}
