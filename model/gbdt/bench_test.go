package gbdt

import (
	"math"
	"math/rand/v2"
	"testing"
)

// wide has 38 features of mixed kinds, some of which matter, and labels that can't all be known.
func wide(n int, seed uint64) Data {
	r := rand.New(rand.NewPCG(seed, 1))
	d := Data{X: make([][]float64, n), Y: make([]bool, n)}
	for i := range d.X {
		x := make([]float64, 38)
		for f := range x {
			x[f] = r.NormFloat64()
			switch {
			case f >= 10 && f < 14:
				x[f] = math.Round(math.Exp(x[f])*10) / 10
			case f >= 20 && f < 24:
				if x[f] > 1.3 {
					x[f] = math.Round(math.Exp(x[f]))
				} else {
					x[f] = 0
				}
			}
		}
		z := x[0]*x[1] + math.Sin(2*x[2]) + 0.5*x[3]*x[3] + 0.3*x[10] - 0.5*x[20] + 0.3*(x[6]+x[7]+x[8]+x[9]) - 1.5
		if x[5] > 0 {
			z += 0.6 * x[4]
		}
		d.X[i], d.Y[i] = x, r.Float64() < 1/(1+math.Exp(-z))
	}
	return d
}

func BenchmarkTrain(b *testing.B) {
	d := wide(100_000, 1)
	b.ResetTimer()
	for b.Loop() {
		if _, err := Train(b.Context(), d, Config{}); err != nil {
			b.Fatal(err)
		}
	}
}

func trained(b *testing.B) (*Model, Data) {
	b.Helper()
	d := wide(20_000, 1)
	m, err := Train(b.Context(), d, Config{})
	if err != nil {
		b.Fatal(err)
	}
	return m, d
}

func BenchmarkPredict(b *testing.B) {
	m, d := trained(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		m.Predict(d.X[i%len(d.X)])
		i++
	}
}

func BenchmarkScorer(b *testing.B) {
	m, d := trained(b)
	s := NewScorer(m)
	dst := make([]float64, len(d.X))
	b.ReportAllocs()
	for b.Loop() {
		s.Predict(dst, d.X)
	}
	b.ReportMetric(float64(b.N*len(d.X))/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkContributions(b *testing.B) {
	m, d := trained(b)
	dst := make([]float64, 38)
	i := 0
	for b.Loop() {
		m.Contributions(dst, d.X[i%len(d.X)])
		i++
	}
}
