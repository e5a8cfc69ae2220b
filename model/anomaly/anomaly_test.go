package anomaly

import (
	"math"
	"math/rand/v2"
	"testing"
)

// host makes samples of a host whose columns follow one load.
func host(r *rand.Rand, n, columns int) [][]float64 {
	load := 0.5
	out := make([][]float64, n)
	for i := range out {
		load += 0.05*(0.5-load) + 0.02*r.NormFloat64()
		out[i] = make([]float64, columns)
		for j := range out[i] {
			out[i][j] = load*float64(j+1) + 0.05*r.NormFloat64()
		}
	}
	return out
}

func quantileOf(t *testing.T, m *Model, rows [][]float64, q float64) float64 {
	t.Helper()
	s := m.Scorer()
	best := make([]float64, 0, len(rows))
	for _, x := range rows {
		best = append(best, s.Score(x))
	}
	n := 0
	for v := 0.0; ; v += 0.05 {
		n = 0
		for _, b := range best {
			if b <= v {
				n++
			}
		}
		if float64(n) >= q*float64(len(best)) {
			return v
		}
	}
}

func TestSeesWhatIsUnusual(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m, err := Fit(host(r, 2000, 6))
	if err != nil {
		t.Fatal(err)
	}
	usual := quantileOf(t, m, host(r, 2000, 6), 0.99)
	for name, change := range map[string]func(i int, x []float64){
		"a level":              func(_ int, x []float64) { x[2] += 3 },
		"a broken correlation": func(_ int, x []float64) { x[4] = 7 - x[4] },
		"a column gone wild":   func(i int, x []float64) { x[1] += float64(i%2*2 - 1) },
	} {
		rows := host(r, 300, 6)
		for i := 200; i < 300; i++ {
			change(i, rows[i])
		}
		s := m.Scorer()
		over := 0
		for i, x := range rows {
			if v := s.Score(x); i >= 200 && v > usual {
				over++
			}
		}
		if over < 80 {
			t.Errorf("%s: %d of 100 samples were seen", name, over)
		}
	}
}

func TestMissingValuesSayNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	rows := host(r, 1000, 4)
	for i := range rows {
		rows[i][3] = math.NaN() // never there
		if i%7 == 0 {
			rows[i][0] = math.Inf(1)
		}
	}
	m, err := Fit(rows)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Scorer()
	for _, x := range rows {
		if v := s.Score(x); math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
			t.Fatalf("score %v", v)
		}
	}
}

func TestAConstantHost(t *testing.T) {
	rows := make([][]float64, 200)
	for i := range rows {
		rows[i] = []float64{5, 0}
	}
	m, err := Fit(rows)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Scorer()
	for range 100 {
		if v := s.Score([]float64{5, 0}); v > 1e-6 {
			t.Fatalf("the usual scores %v", v)
		}
	}
	if v := s.Score([]float64{5, 1}); v < 5 {
		t.Errorf("a constant that moves scores %v", v)
	}
}

func TestRefuses(t *testing.T) {
	if _, err := Fit(make([][]float64, 10)); err == nil {
		t.Error("ten samples")
	}
	rows := host(rand.New(rand.NewPCG(1, 1)), 200, 3)
	rows[100] = []float64{1}
	if _, err := Fit(rows); err == nil {
		t.Error("ragged samples")
	}
	if _, err := Fit(make([][]float64, 200)); err == nil {
		t.Error("samples without values")
	}
}

func TestScoreAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 500, 38)
	m, err := Fit(rows)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Scorer()
	if n := testing.AllocsPerRun(200, func() { s.Score(rows[7]) }); n != 0 {
		t.Errorf("%v allocations a sample", n)
	}
}

func BenchmarkScore(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 2000, 38)
	m, err := Fit(rows)
	if err != nil {
		b.Fatal(err)
	}
	s := m.Scorer()
	for i := 0; b.Loop(); i++ {
		s.Score(rows[i%len(rows)])
	}
}
