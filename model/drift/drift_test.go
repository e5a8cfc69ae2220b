package drift

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

var limits = Limits{PSI: 0.25, KS: 0.2, Ratio: 0.3, Samples: 1000, Calibration: 0.5}

func reference(r *rand.Rand) *Reference {
	return NewReference([]string{"normal", "constant", "counter", "sparse"}, 5000, func(_, c int) float64 { return draw(r, c, 0, 1) })
}

func draw(r *rand.Rand, column int, shift, scale float64) float64 {
	switch column {
	case 0:
		return shift + scale*r.NormFloat64()
	case 1:
		return 64 + shift
	case 2: // mostly zero
		if r.Float64() < 0.95 {
			return 0
		}
		return shift + scale*r.ExpFloat64()
	}
	if r.Float64() < 0.5 {
		return math.NaN()
	}
	return shift + r.Float64()
}

func fill(w *Window, r *rand.Rand, n int, shift, scale float64) {
	for range n {
		x := make([]float64, 4)
		for c := range x {
			x[c] = draw(r, c, shift, scale)
		}
		w.Add(x)
	}
}

func TestTheSameIsNoDriftAndAShiftIs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ref := reference(r)
	same := NewWindow(ref)
	fill(same, r, 3000, 0, 1)
	for _, d := range same.Distances() {
		if d.PSI > 0.05 || d.KS > 0.05 {
			t.Errorf("the same: %+v", d)
		}
	}
	if v := limits.Judge(same, 0); v.Drifted || !v.Ready || v.Shifted != 0 {
		t.Errorf("the same: %+v", v)
	}
	moved := NewWindow(ref)
	fill(moved, r, 3000, 1.5, 1)
	v := limits.Judge(moved, 0)
	if !v.Drifted || v.Shifted < 3 || !strings.Contains(v.Why, "series") {
		t.Errorf("shifted: %+v", v)
	}
	for _, d := range v.Worst {
		if d.Series == "constant" && (d.PSI < 1 || d.KS < 0.99) {
			t.Errorf("a constant that moved: %+v", d)
		}
	}
}

// Either measure asks for a training where the other sees nothing: a move that is spread over all bins
// is little in each and adds up, and one between two bins hardly adds up.
func TestEitherMeasureFindsAShift(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	ref := NewReference([]string{"steady", "moving"}, 5000, func(int, int) float64 { return r.Float64() })
	for name, c := range map[string]struct {
		move func(u float64) float64
		want string
		deaf Limits // to that measure
	}{
		"spread over all bins": {func(u float64) float64 {
			if u < 0.5 && r.Float64() < 0.45 {
				return u + 0.5
			}
			return u
		}, "moving (KS 0.2", Limits{PSI: limits.PSI, KS: 2}},
		"from one bin to another": {func(u float64) float64 {
			if u < 0.1 && r.Float64() < 0.95 {
				return u + 0.1
			}
			return u
		}, "moving (PSI 0.", Limits{PSI: 100, KS: limits.KS}},
	} {
		w := NewWindow(ref)
		for range 20_000 {
			w.Add([]float64{r.Float64(), c.move(r.Float64())})
		}
		l := limits
		v := l.Judge(w, 0)
		if !v.Drifted || v.Shifted != 1 || v.Worst[0].Series != "moving" || !strings.Contains(v.Why, c.want) {
			t.Errorf("%s: %+v", name, v)
		}
		if l.PSI, l.KS = c.deaf.PSI, c.deaf.KS; l.Judge(w, 0).Drifted {
			t.Errorf("%s is found by the other measure: %+v", name, v)
		}
	}
}

func TestMissingIsSeen(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	w := NewWindow(reference(r))
	for range 2000 {
		w.Add([]float64{math.NaN(), 64, 0, math.NaN()})
	}
	found := map[string]float64{}
	for _, d := range w.Distances() {
		found[d.Series] = d.PSI
	}
	if found["normal"] < 1 || found["sparse"] < 0.25 || found["constant"] > 0.01 {
		t.Errorf("%v", found)
	}
}

func TestFewSamplesAreNotJudged(t *testing.T) {
	w := NewWindow(reference(rand.New(rand.NewPCG(5, 6))))
	w.Add([]float64{1e9, 1e9, 1e9, 1e9})
	if v := limits.Judge(w, 9); v.Ready || v.Drifted {
		t.Errorf("%+v", v)
	}
	if v := limits.Judge(NewWindow(&Reference{}), 0); v.Drifted {
		t.Errorf("%+v", v)
	}
}

func TestCalibration(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var good, bad Calibration
	for range 20_000 {
		p := r.Float64()
		good.Add(p, r.Float64() < p, 1)
		bad.Add(p, r.Float64() < p*p*p, 1)
	}
	var weighed, repeated Calibration
	for i := range 100 {
		p, came, n := r.Float64(), i%3 == 0, 1+i%5
		weighed.Add(p, came, float64(n))
		for range n {
			repeated.Add(p, came, 1)
		}
	}
	if math.Abs(weighed.Error()-repeated.Error()) > 1e-12 {
		t.Errorf("by weights %v, repeated %v", weighed.Error(), repeated.Error())
	}
	if good.Error() > 0.02 || bad.Error() < 0.15 {
		t.Errorf("true probabilities %.3f, false ones %.3f", good.Error(), bad.Error())
	}
	var quiet, loud Tails
	for range 50_000 {
		p := r.Float64()
		quiet.Add(p)
		loud.Add(p * p)
	}
	if quiet.Error() > 0.2 || loud.Error() < 0.8 {
		t.Errorf("uniform tails %.2f, tails that come too often %.2f", quiet.Error(), loud.Error())
	}
}

func TestAReferenceSurvivesJSONAndIsChecked(t *testing.T) {
	ref := reference(rand.New(rand.NewPCG(9, 10)))
	text, err := json.Marshal(ref)
	if err != nil {
		t.Fatal(err)
	}
	var back Reference
	if err := json.Unmarshal(text, &back); err != nil || back.Check() != nil {
		t.Fatalf("%v, %v", err, back.Check())
	}
	for name, h := range map[string]Histogram{
		"descending": {Edges: []float64{2, 1}, Shares: []float64{0, 0, 1}},
		"shares":     {Edges: []float64{1}, Shares: []float64{1}},
		"negative":   {Edges: []float64{1}, Shares: []float64{-1, 2}},
		"missing":    {Shares: []float64{1}, Missing: math.NaN()},
	} {
		if (&Reference{[]Histogram{h}}).Check() == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
