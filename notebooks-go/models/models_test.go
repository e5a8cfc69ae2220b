package models

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

func TestCurve(t *testing.T) {
	p, y := []float64{0.9, 0.8, 0.8, 0.1}, []bool{true, false, true, false}
	want := []Point{{0.9, 1, 0.5, 0}, {0.8, 2.0 / 3, 1, 0.5}, {0.1, 0.5, 1, 1}}
	got := Curve(p, y)
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	area, last := 0.0, 0.0
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
		area, last = area+got[i].Precision*(got[i].Recall-last), got[i].Recall
	}
	if a, err := metrics.AUCPR(p, y); err != nil || math.Abs(a-area) > 1e-12 {
		t.Errorf("the area under the curve is %v, and the average precision %v; %v", area, a, err)
	}
}

func TestReliability(t *testing.T) {
	bins, wrong := Reliability([]float64{0.05, 0.05, 0.95, 1}, []bool{false, true, true, true})
	if b := bins[0]; b.N != 2 || b.Said != 0.05 || b.Came != 0.5 {
		t.Errorf("%+v", b)
	}
	if b := bins[9]; b.N != 2 || b.Came != 1 || math.Abs(b.Said-0.975) > 1e-12 {
		t.Errorf("%+v", b)
	}
	if !math.IsNaN(bins[5].Said) || math.Abs(wrong-(0.9+0.05)/4) > 1e-12 {
		t.Errorf("%+v, error %v", bins[5], wrong)
	}
	if l := logLoss([]float64{0.5, 0.5}, []bool{true, false}); math.Abs(l-math.Ln2) > 1e-12 {
		t.Errorf("the log loss of not knowing is %v", l)
	}
}

// TestThePageTellsWhatWasLearned makes the page of another seed than the one that is kept.
func TestThePageTellsWhatWasLearned(t *testing.T) {
	p, err := Page(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	cell := func(section, row, column int) float64 {
		v, err := strconv.ParseFloat(p.Sections[section].Tables[0].Rows[row][column], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for row := range p.Sections[0].Tables[0].Rows {
		if auc, loss := cell(0, row, 1), cell(0, row, 3); auc < 0.6 || loss > 0.4 {
			t.Errorf("%v: AUC %v, log loss %v", p.Sections[0].Tables[0].Rows[row], auc, loss)
		}
	}
	for row := range p.Sections[3].Tables[0].Rows {
		if vus := cell(3, row, 2); vus < 0.5 {
			t.Errorf("%v: VUS-PR %v", p.Sections[3].Tables[0].Rows[row], vus)
		}
	}
	files, err := p.Render()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if len(data) > 100_000 {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		if _, err := os.Stat(filepath.Join("..", "pages", name)); err != nil {
			t.Errorf("%v: run make pages", err)
		}
	}
}

func TestTheSameSeedGivesTheSameModels(t *testing.T) {
	var said [2][]Answers
	for i := range said {
		s, err := Simulate(t.Context(), 6)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Train(t.Context(), s, 6)
		if err != nil {
			t.Fatal(err)
		}
		said[i] = m.Answers
	}
	for i, a := range said[0] {
		if !slices.Equal(a.P, said[1][i].P) {
			t.Errorf("%s: the same seed gives other answers", a.Model)
		}
	}
}
