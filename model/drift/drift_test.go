package drift

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var limits = Limits{PSI: 0.25, KS: 0.2, Ratio: 0.3, Samples: 1000, Calibration: 0.5}

func reference(r *rand.Rand) *Reference {
	return NewReference([]string{"normal", "constant", "counter", "sparse"}, 5000, func(_, c int) float64 { return draw(r, c, 0, 1) }, nil)
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
	for _, d := range same.Distances(1) {
		if d.PSI > 0.05 || d.KS > 0.05 {
			t.Errorf("the same: %+v", d)
		}
	}
	if v := limits.Judge(same, 1, 0); v.Drifted || !v.Ready || v.Shifted != 0 {
		t.Errorf("the same: %+v", v)
	}
	moved := NewWindow(ref)
	fill(moved, r, 3000, 1.5, 1)
	v := limits.Judge(moved, 1, 0)
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
	ref := NewReference([]string{"steady", "moving"}, 5000, func(int, int) float64 { return r.Float64() }, nil)
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
		v := l.Judge(w, 1, 0)
		if !v.Drifted || v.Shifted != 1 || v.Worst[0].Series != "moving" || !strings.Contains(v.Why, c.want) {
			t.Errorf("%s: %+v", name, v)
		}
		if l.PSI, l.KS = c.deaf.PSI, c.deaf.KS; l.Judge(w, 1, 0).Drifted {
			t.Errorf("%s is found by the other measure: %+v", name, v)
		}
	}
}

// A part of an ordinary week is no drift, whenever the window begins and however unlike the weekend is,
// and what has changed is one before the window is over.
func TestAPartOfAWeekIsNoDrift(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	of := func(day int, shift float64) []float64 {
		if day%7 >= 5 {
			shift += 3 // 0.87 by the Kolmogorov-Smirnov distance
		}
		return []float64{shift + r.NormFloat64()}
	}
	const perDay = 2000
	ref := NewReference([]string{"load"}, 28*perDay, func(row, _ int) float64 { return of(row/perDay, 0)[0] }, nil)
	for begin := range 7 {
		for _, shift := range []float64{0, 1.5} { // 1.5 is 0.55
			w, since := NewWindow(ref), 0
			for day := range 7 {
				for range perDay {
					w.Add(of(begin+day, shift))
				}
				if limits.Judge(w, float64(day+1)/7, 0).Drifted && since == 0 {
					since = day + 1
				}
			}
			if shift == 0 && since != 0 || shift != 0 && (since == 0 || since > 5) {
				t.Errorf("from day %d on, moved by %v, it has drifted after %d days", begin, shift, since)
			}
		}
	}
}

// A row that stands for several is worth as many.
func TestAWeighedReference(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	var rows, repeated, weight []float64
	for i := range 3000 {
		v, n := math.Round(20*r.NormFloat64()), 1+i%4
		if i%10 == 0 {
			v = math.NaN()
		}
		rows, weight = append(rows, v), append(weight, float64(n))
		for range n {
			repeated = append(repeated, v)
		}
	}
	a := NewReference([]string{"x"}, len(rows), func(row, _ int) float64 { return rows[row] }, weight).Series[0]
	b := NewReference([]string{"x"}, len(repeated), func(row, _ int) float64 { return repeated[row] }, nil).Series[0]
	if !slices.Equal(a.Edges, b.Edges) || math.Abs(a.Missing-b.Missing) > 1e-9 {
		t.Fatalf("by weights %+v, repeated %+v", a, b)
	}
	for i := range a.Shares {
		if math.Abs(a.Shares[i]-b.Shares[i]) > 1e-9 {
			t.Errorf("by weights %+v, repeated %+v", a, b)
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
	for _, d := range w.Distances(1) {
		found[d.Series] = d.PSI
	}
	if found["normal"] < 1 || found["sparse"] < 0.25 || found["constant"] > 0.01 {
		t.Errorf("%v", found)
	}
}

func TestFewSamplesAreNotJudged(t *testing.T) {
	w := NewWindow(reference(rand.New(rand.NewPCG(5, 6))))
	w.Add([]float64{1e9, 1e9, 1e9, 1e9})
	if v := limits.Judge(w, 1, 9); v.Ready || v.Drifted {
		t.Errorf("%+v", v)
	}
	if v := limits.Judge(NewWindow(&Reference{}), 1, 0); v.Drifted {
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
}

// episodic are the tails of a host on which one sample in a hundred begins an episode of ten, of tails up
// to some most: 0.01 is true, less is too often.
func episodic(r *rand.Rand, most float64) *Tails {
	var t Tails
	var host Episodes
	for n := 0; n < 50_000; {
		p, length := 1.0, 1
		if r.Float64() < 0.01 {
			p, length = most*r.Float64(), 10
		}
		for range length {
			t.Add(p, &host)
			n++
		}
	}
	return &t
}

func TestTailsAreOfEpisodes(t *testing.T) {
	r := rand.New(rand.NewPCG(17, 18))
	quiet, loud := episodic(r, 0.01), episodic(r, 0.001)
	if quiet.Error(1) > 0.1 || loud.Error(1) < 0.5 {
		t.Errorf("true tails %.2f, tails that come too often %.2f", quiet.Error(1), loud.Error(1))
	}
	if part := loud.Error(1 / 7.); part > 0.3 || part < 0.1 {
		t.Errorf("of a seventh of the window %.2f, and of the whole %.2f", part, loud.Error(1))
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
