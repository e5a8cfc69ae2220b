package stream

import (
	"math"
	"testing"
)

func TestScales(t *testing.T) {
	nan := float32(math.NaN())
	rows := func(columns ...[]float32) (out []float32) {
		for r := range columns[0] {
			for _, c := range columns {
				out = append(out, c[r])
			}
		}
		return out
	}
	mean, inverse := Scales(rows(
		[]float32{1, 3, 1, 3},         // deviates by 1
		[]float32{1e6, 3e6, 1e6, 3e6}, // in other units
		[]float32{1000, 1001, 1000, 1001},
		[]float32{5, 5, nan, 5},
		[]float32{0, 0, 0, 0},
		[]float32{nan, nan, nan, nan},
		[]float32{0, 1e-38, 0, 0},
	), 7)
	for i, want := range []struct{ mean, deviation float64 }{{2, 1}, {2e6, 1e6}, {1000.5, 10.005}, {5, 0.15}, {0, 0.03}, {0, math.Inf(1)}, {0, 1 / MostInverse}} {
		if got := 1 / float64(inverse[i]); math.Abs(float64(mean[i])-want.mean) > 1e-6*want.mean+1e-30 || got != want.deviation && math.Abs(got/want.deviation-1) > 1e-6 {
			t.Errorf("column %d: mean %v, deviation %v, not %+v", i, mean[i], got, want)
		}
	}
	// A column that was spiky is not taken to be calmer than its spikes allow.
	spiky := make([]float32, 10_000)
	spiky[5000] = 100
	if _, inverse = Scales(spiky, 1); math.Abs(1/float64(inverse[0])-3) > 1e-6 {
		t.Errorf("a spike of 100 in 10,000 samples: deviation %v", 1/inverse[0])
	}
}
