package fast

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// host is telemetry of so many columns that follow a common load, one of them constant.
func host(r *rand.Rand, n, columns int) [][]float64 {
	rows := make([][]float64, n)
	load := 0.0
	for i := range rows {
		load += -0.1*load + 0.3*r.NormFloat64()
		x := make([]float64, columns)
		for j := range x {
			x[j] = float64(j+1)*100 + 10*load*float64(1+j%3) + r.NormFloat64()
		}
		x[columns-1] = 7
		rows[i] = x
	}
	return rows
}

func fitted(t testing.TB, rows [][]float64) *Model {
	t.Helper()
	m, err := Fit(rows)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSeesWhatBreaksTheCourse(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 4000, 8)
	m := fitted(t, rows[:2000])
	for name, change := range map[string]func(x []float64, i int){
		"one column jumps":            func(x []float64, _ int) { x[3] += 100 },
		"two columns part":            func(x []float64, _ int) { x[0], x[1] = x[0]+15, x[1]-15 },
		"the constant moves":          func(x []float64, i int) { x[7] += 0.5 * float64(i%2) },
		"one column becomes restless": func(x []float64, i int) { x[2] += 20 * math.Sin(float64(i)) },
	} {
		s := m.Scorer()
		var before, during []float64
		for i, x := range rows[2000:] {
			if i >= 1500 && i < 1540 {
				x = slices.Clone(x)
				change(x, i)
				during = append(during, s.Score(x))
			} else if score := s.Score(x); i < 1500 {
				before = append(before, score)
			}
		}
		slices.Sort(before)
		slices.Sort(during)
		if high, seen := before[len(before)*99/100], during[len(during)/2]; seen < 1.2*high {
			t.Errorf("%s: score %v, one in a hundred ordinary samples has %v", name, seen, high)
		}
	}
}

func TestPartsAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 1500, 9)
	m := fitted(t, rows[:1000])
	s, parts := m.Scorer(), make([]float64, 9)
	for i, x := range rows[1000:] {
		if i >= 300 && i < 320 {
			x[4] += 200
		}
		score, sum := s.Score(x), 0.0
		total := s.Explain(parts)
		for _, p := range parts {
			sum += p
		}
		if math.IsNaN(score) || score < 0 || total != score || math.Abs(sum-score) > 1e-9*(1+score) {
			t.Fatalf("sample %d: score %v, explained as %v by parts of %v", i, score, total, sum)
		}
		if i == 310 && (slices.Max(parts) != parts[4] || parts[4] < score/2) {
			t.Errorf("column 4 is odd, the parts are %.2f", parts)
		}
	}
}

// TestDistanceIsThatOfTheCovariance compares with the covariance that the diagonal and the directions
// stand for, inverted as it is.
func TestDistanceIsThatOfTheCovariance(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	// Four independent causes and no noise: the diagonal is the ridge alone.
	const p = 12
	weight := make([]float64, p*directions)
	for i := range weight {
		weight[i] = r.NormFloat64()
	}
	s := newMoments(p)
	draw := func() []float32 {
		x := make([]float32, p)
		for k := range directions {
			f := r.NormFloat64()
			for i := range x {
				x[i] += float32(f * weight[i*directions+k])
			}
		}
		return x
	}
	for range 5000 {
		s.add(draw())
	}
	c := s.covariance(0, p)
	g := newModel(p).surprise
	if err := g.learn(c); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		c.SetSym(i, i, c.At(i, i)+ridge)
	}
	for range 20 {
		x := draw()
		x[r.IntN(p)] += 0.3
		want := mahalanobis(t, c, x)
		var dirs [directions]float32
		scaled := make([]float32, p)
		for i, v := range x {
			scaled[i] = v * g.scale[i]
		}
		if got := float64(g.distance(scaled, &dirs)); math.Abs(got-want) > 0.02*want {
			t.Errorf("distance %v, by the inverse %v", got, want)
		}
	}
}

func TestMissingAndOddValues(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 1200, 6)
	for i := range rows[:1000] {
		rows[i][5] = math.NaN() // a column that was never there
	}
	m := fitted(t, rows[:1000])
	s := m.Scorer()
	for i, x := range rows[1000:] {
		switch i % 5 {
		case 1:
			x[0] = math.NaN()
		case 2:
			x[1] = math.Inf(-1)
		case 3:
			x = x[:3]
		case 4:
			x[2] = 1e300
		}
		if v := s.Score(x); math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
			t.Fatalf("sample %d: %v", i, v)
		}
	}
	a, b := m.Scorer(), m.Scorer()
	for i, x := range host(r, 200, 6) {
		short := slices.Clone(x)
		short[5] = math.NaN()
		if va, vb := a.Score(x[:5]), b.Score(short); va != vb {
			t.Fatalf("sample %d: %v when cut off, %v when missing", i, va, vb)
		}
	}
}

func TestAllocatesNothing(t *testing.T) {
	rows := host(rand.New(rand.NewPCG(1, 2)), 300, 38)
	s := fitted(t, rows).Scorer()
	parts, i := make([]float64, 38), 0
	if n := testing.AllocsPerRun(200, func() { s.Score(rows[i%300]); s.Explain(parts); i++ }); n != 0 {
		t.Errorf("%v allocations a sample", n)
	}
}

func TestFitRefuses(t *testing.T) {
	for name, rows := range map[string][][]float64{"none": nil, "few": host(rand.New(rand.NewPCG(1, 2)), 19, 3), "no columns": make([][]float64, 30), "ragged": append(host(rand.New(rand.NewPCG(1, 2)), 30, 3), []float64{1})} {
		if _, err := Fit(rows); err == nil {
			t.Errorf("%s: learned", name)
		}
	}
}

func TestFitBearsOddData(t *testing.T) {
	nan, zero, huge := make([][]float64, 100), make([][]float64, 100), make([][]float64, 100)
	for i := range nan {
		nan[i], zero[i], huge[i] = []float64{math.NaN(), math.NaN()}, []float64{0, 0}, []float64{1e300 * float64(i%2), math.Inf(1)}
	}
	for _, rows := range [][][]float64{nan, zero, huge} {
		s := fitted(t, rows).Scorer()
		for range 100 {
			if v := s.Score([]float64{1, 2}); math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
				t.Fatalf("score %v", v)
			}
		}
	}
}

func BenchmarkScore(b *testing.B) {
	rows := host(rand.New(rand.NewPCG(1, 2)), 2000, 38)
	s := fitted(b, rows).Scorer()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Score(rows[i%2000])
	}
}

func mahalanobis(t *testing.T, c *mat.SymDense, x []float32) float64 {
	t.Helper()
	var ch mat.Cholesky
	if !ch.Factorize(c) {
		t.Fatal("the covariance has no inverse")
	}
	v, y := mat.NewVecDense(len(x), nil), mat.NewVecDense(len(x), nil)
	for i, a := range x {
		v.SetVec(i, float64(a))
	}
	if err := ch.SolveVecTo(y, v); err != nil {
		t.Fatal(err)
	}
	return math.Sqrt(mat.Dot(v, y))
}
