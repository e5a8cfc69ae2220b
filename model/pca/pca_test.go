package pca

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestScores(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := make([][]float64, 500)
	for i := range rows {
		v := r.NormFloat64()
		rows[i] = []float64{v, v + 0.1*r.NormFloat64(), 3, -v + 0.1*r.NormFloat64()}
	}
	rows[250] = []float64{20, -20, 3, 20}
	s, err := Scores(rows)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range s {
		if math.IsNaN(v) || i != 250 && v >= s[250] {
			t.Fatalf("sample %d scores %v, the odd one %v", i, v, s[250])
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, rows := range [][][]float64{nil, {{1}}, {{1}, {math.NaN()}}, {{1, 2}, {1}}} {
		if _, err := Scores(rows); err == nil {
			t.Errorf("%v was scored", rows)
		}
	}
}
