package calibrate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// data has scores whose true probability is a function of them.
func data(n int, truth func(raw float64) float64) (raw []float64, y []bool) {
	r := rand.New(rand.NewPCG(3, 4))
	for range n {
		s := r.NormFloat64() * 2
		raw = append(raw, s)
		y = append(y, r.Float64() < truth(s))
	}
	return raw, y
}

func TestScoresThatAreTooSureAreCorrected(t *testing.T) {
	for name, c := range map[string]struct {
		truth func(float64) float64
		n     int
		want  string
	}{
		"a line":  {func(s float64) float64 { return sigmoid(0.5*s - 1) }, 2000, "platt"},
		"a stair": {func(s float64) float64 { return 0.1 + 0.7*math.Floor(min(max(s, 0), 1)) }, 20000, "isotonic"},
	} {
		raw, y := data(c.n, c.truth)
		m, err := Fit(raw, y, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if m.String() != c.want {
			t.Errorf("%s: %s was chosen, not %s", name, m, c.want)
		}
		last := 0.0
		for s := -4.0; s <= 4; s += 0.1 {
			p := m.Probability(s)
			if p < last {
				t.Fatalf("%s: the probability falls at %.1f", name, s)
			}
			last = p
			if math.Abs(s) < 3 && math.Abs(s-1) > 0.15 && math.Abs(p-c.truth(s)) > 0.08 {
				t.Errorf("%s: %.3f at %.1f, in truth %.3f", name, p, s, c.truth(s))
			}
		}
		back, rest, err := Decode(append(m.AppendBinary(nil), 7))
		if err != nil || len(rest) != 1 {
			t.Fatalf("%s: %v, %d bytes left", name, err, len(rest))
		}
		for _, s := range raw[:100] {
			if m.Probability(s) != back.Probability(s) {
				t.Fatalf("%s: not the same once stored", name)
			}
		}
	}
}

// TestAHostIsNotJudgedByItself: where each host's instants repeat one outcome, a curve that learned
// some of them knows the others, and of other hosts nothing.
func TestAHostIsNotJudgedByItself(t *testing.T) {
	hosts, outcome := data(100, sigmoid)
	var raw []float64
	var y []bool
	var host []string
	for h := range hosts {
		for instant := range 20 {
			raw = append(raw, hosts[h]+0.001*float64(instant))
			y = append(y, outcome[h])
			host = append(host, fmt.Sprintf("h%d", h))
		}
	}
	for name, c := range map[string]struct {
		groups []string
		want   string
	}{
		"rows":  {nil, "isotonic"},
		"hosts": {host, "platt"},
	} {
		m, err := Fit(raw, y, nil, c.groups)
		if err != nil {
			t.Fatal(err)
		}
		if m.String() != c.want {
			t.Errorf("%s held out: %s was chosen, not %s", name, m, c.want)
		}
	}
}

func TestFewGroups(t *testing.T) {
	raw, y := data(20000, func(s float64) float64 { return 0.1 + 0.7*math.Floor(min(max(s, 0), 1)) })
	for n, want := range map[int]string{1: "platt", 2: "isotonic", 3: "isotonic", 7: "isotonic"} {
		groups := make([]string, len(raw))
		for i := range groups {
			groups[i] = string(rune('a' + i*n/len(raw)))
		}
		m, err := Fit(raw, y, nil, groups)
		if err != nil {
			t.Fatal(err)
		}
		if m.String() != want {
			t.Errorf("%d groups: %s was chosen, not %s", n, m, want)
		}
	}
}

func TestAWeightCountsAsThatManyRows(t *testing.T) {
	raw, y := data(500, sigmoid)
	w := make([]float64, len(raw))
	var raw2 []float64
	var y2 []bool
	for i := range raw {
		w[i] = float64(1 + i%3)
		for range 1 + i%3 {
			raw2, y2 = append(raw2, raw[i]), append(y2, y[i])
		}
	}
	for _, fit := range []func([]example) Map{fitPlatt, fitIsotonic} {
		a, b := fit(examples(raw, y, w)), fit(examples(raw2, y2, nil))
		for _, s := range raw {
			if d := a.Probability(s) - b.Probability(s); math.Abs(d) > 1e-6 {
				t.Fatalf("%s: weights and copies differ by %g", a, d)
			}
		}
	}
}

func examples(raw []float64, y []bool, w []float64) (out []example) {
	for i := range raw {
		e := example{raw: raw[i], no: 1}
		if w != nil {
			e.no = w[i]
		}
		if y[i] {
			e.yes, e.no = e.no, 0
		}
		out = append(out, e)
	}
	return out
}

func TestWhatCannotBeLearned(t *testing.T) {
	for name, c := range map[string]struct {
		raw    []float64
		y      []bool
		groups []string
	}{
		"one class": {[]float64{1, 2}, []bool{true, true}, nil},
		"NaN":       {[]float64{1, math.NaN()}, []bool{true, false}, nil},
		"lengths":   {[]float64{1}, []bool{true, false}, nil},
		"groups":    {[]float64{1, 2}, []bool{true, false}, []string{"a"}},
	} {
		if _, err := Fit(c.raw, c.y, nil, c.groups); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// Scores without any information, or that say the opposite, leave the mean.
	m, err := Fit([]float64{2, 1, -1, -2, 0, 0}, []bool{false, false, true, true, true, false}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := m.Probability(-2), m.Probability(2); a > b || math.Abs(a-0.5) > 0.2 {
		t.Errorf("%s: %.2f to %.2f from scores that say the opposite", m, a, b)
	}
}

func FuzzDecode(f *testing.F) {
	raw, y := data(300, sigmoid)
	f.Add(fitPlatt(examples(raw, y, nil)).AppendBinary(nil))
	f.Add(fitIsotonic(examples(raw, y, nil)).AppendBinary(nil))
	f.Add(Map{}.AppendBinary(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, err := Decode(b)
		if err != nil {
			return
		}
		for _, s := range []float64{math.Inf(-1), -1, 0, 1, math.Inf(1)} {
			if p := m.Probability(s); !(p >= 0 && p <= 1) && !(m.a == 0 && math.IsInf(s, 0)) {
				t.Fatalf("%s: the probability of %v is %v", m, s, p)
			}
		}
	})
}
