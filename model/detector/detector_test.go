package detector

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// telemetry is a host of six columns: three that follow its load, one of noise, one that is
// constant and one that is now and then missing.
func telemetry(r *rand.Rand, n int) [][]float64 {
	load := 0.0
	rows := make([][]float64, n)
	for i := range rows {
		load += -0.1*load + 0.3*r.NormFloat64()
		rows[i] = []float64{load + 0.1*r.NormFloat64(), 2*load + 0.2*r.NormFloat64(), 5 - load + 0.1*r.NormFloat64(), r.NormFloat64(), 3, load}
		if i%7 == 3 {
			rows[i][5] = math.NaN()
		}
	}
	return rows
}

func TestEachDetectorSeesWhatIsPlain(t *testing.T) {
	for _, d := range All() {
		t.Run(d.Name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			train, test := telemetry(r, 1500), telemetry(r, 1000)
			at := 700
			for i := at; i < at+10; i++ { // jumps up and down, for those who look at differences
				test[i][1] += 25 * float64(1+i%2)
				test[i][2] += 25 * float64(1+i%2)
				test[i][3] -= 25 * float64(1+i%2)
			}
			scores, tails := make([]float64, len(test)), make([]float64, len(test))
			if d.Whole != nil {
				for i := range test {
					test[i][5] = 0 // it knows no missing values
				}
				var err error
				if scores, err = d.Whole(test); err != nil {
					t.Fatal(err)
				}
			} else {
				w, err := d.Watch(train, false)
				if err != nil {
					t.Fatal(err)
				}
				for i, x := range test {
					scores[i], tails[i] = w(x)
				}
			}
			loud, ordinary := 0, slices.Clone(scores[:at])
			for i, s := range scores {
				if math.IsNaN(s) || s < 0 || tails[i] < 0 || tails[i] > 1 {
					t.Fatalf("sample %d: score %v, tail %v", i, s, tails[i])
				}
				if i < at {
					if tails[i] < 0.001 {
						loud++
					}
				}
			}
			slices.Sort(ordinary)
			if s, o := scores[at+5], ordinary[at*98/100]; s <= o {
				t.Errorf("the odd sample scores %v, one in fifty ordinary ones %v", s, o)
			}
			if d.Whole == nil && (tails[at+5] > 0.02 || loud > at/20) {
				t.Errorf("the odd sample's tail is %v; %d ordinary ones are under one in a thousand", tails[at+5], loud)
			}
		})
	}
}

func TestScorersOfAModelAreApart(t *testing.T) {
	for _, d := range All() {
		if d.Fit == nil {
			continue
		}
		r := rand.New(rand.NewPCG(3, 4))
		train, test := telemetry(r, 600), telemetry(r, 50)
		m, err := d.Fit(train)
		if err != nil {
			t.Fatalf("%s: %v", d.Name, err)
		}
		a, b := m.Scorer(), m.Scorer()
		var first []float64
		for _, x := range test {
			first = append(first, a.Score(x))
		}
		for i, x := range test {
			if got := b.Score(x); got != first[i] {
				t.Fatalf("%s: sample %d scores %v, and %v on another host that is alike", d.Name, i, first[i], got)
			}
		}
		if m.Bytes() < 0 || a.Bytes() <= 0 {
			t.Errorf("%s: %d and %d bytes", d.Name, m.Bytes(), a.Bytes())
		}
		if n := testing.AllocsPerRun(500, func() { a.Score(test[0]) }); n != 0 {
			t.Errorf("%s: %v allocations a sample", d.Name, n)
		}
		if _, err := d.Fit(train[:1]); err == nil {
			t.Errorf("%s learned from one sample", d.Name)
		}
	}
}

func TestFind(t *testing.T) {
	if d, err := Find("knn"); err != nil || d.Name != "knn" {
		t.Errorf("%v, %v", d.Name, err)
	}
	if _, err := Find("magic"); err == nil {
		t.Error("magic was found")
	}
}
