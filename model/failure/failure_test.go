package failure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// examples are hosts with two counters: one rises before a disk fails, one before a unit leaks.
func examples(n int) Examples {
	r := rand.New(rand.NewPCG(1, 2))
	e := Examples{Features: []string{"disk", "leak", "noise"}}
	for i := range n {
		left, signature := math.Inf(1), Sound
		x := []float64{0.1 * r.Float64(), 0.1 * r.Float64(), r.Float64()}
		if i%3 > 0 {
			left = math.Exp(r.Float64()*9) * 20 // 20 s to 45 h
			signature = []string{"", "disk", "memory-leak"}[i%3]
			x[i%3-1] = 1/(1+left/3600) + 0.15 + 0.05*r.NormFloat64()
		}
		e.X = append(e.X, x)
		e.Failure = append(e.Failure, left)
		e.Known = append(e.Known, 30*86400)
		e.Signature = append(e.Signature, signature)
		e.Host = append(e.Host, fmt.Sprintf("h%d", i/40))
	}
	return e
}

func trained(t testing.TB) *Model {
	t.Helper()
	m, err := Train(t.Context(), examples(6000), Config{Trees: 30})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestItLearns(t *testing.T) {
	m := trained(t)
	p, s := make([]float64, 3), make([]float64, 2)
	for _, c := range []struct {
		name      string
		x         []float64
		odd       bool
		hour      bool
		signature string
	}{
		{"sound", []float64{0.05, 0.05, 0.5}, false, false, ""},
		{"a disk about to fail", []float64{1.1, 0.05, 0.5}, true, true, "disk"},
		{"a leak with days to go", []float64{0.05, 0.2, 0.5}, true, false, "memory-leak"},
	} {
		m.Failure(p, c.x)
		if got := m.Odd(c.x) > 0.5; got != c.odd {
			t.Errorf("%s: odd %v", c.name, got)
		}
		if (p[1] > 0.5) != c.hour || p[0] > p[1] || p[1] > p[2] {
			t.Errorf("%s: %v", c.name, p)
		}
		if best := m.Signatures()[m.Signature(s, c.x)]; c.odd && best != c.signature {
			t.Errorf("%s: %s of %v", c.name, best, s)
		}
	}
	x := []float64{1, 2, 3}
	if n := testing.AllocsPerRun(100, func() {
		m.Odd(x)
		m.Failure(p, x)
		m.Signature(s, x)
	}); n != 0 {
		t.Errorf("%v allocations a prediction", n)
	}
}

// TestAHostIsNotCalibratedByItself: all instants of a host look the same and have the same end, so
// that a curve which learned some of them knows the others, and would be chosen by them.
func TestAHostIsNotCalibratedByItself(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 6))
	e := Examples{Features: []string{"load"}}
	for h := range 500 {
		x := r.NormFloat64()
		left, signature := math.Inf(1), Sound
		if r.Float64() < 1/(1+math.Exp(-x)) {
			left, signature = 60, "disk"
		}
		for range 20 {
			e.X = append(e.X, []float64{x})
			e.Failure = append(e.Failure, left)
			e.Known = append(e.Known, 30*86400)
			e.Signature = append(e.Signature, signature)
			e.Host = append(e.Host, fmt.Sprintf("h%d", h))
		}
	}
	m, err := Train(t.Context(), e, Config{Trees: 30})
	if err != nil {
		t.Fatal(err)
	}
	if got := m.fails[0].Calibration(); got != "platt" {
		t.Errorf("%s was chosen, not platt", got)
	}
}

// TestWhatIsNotKnownTeachesNothing: examples whose future is known for a minute only say
// nothing about a day.
func TestWhatIsNotKnownTeachesNothing(t *testing.T) {
	e := examples(3000)
	for i := range e.X {
		if e.Signature[i] == "disk" && e.Failure[i] > 60 {
			e.Known[i], e.Failure[i] = 60, math.Inf(1)
		}
	}
	m, err := Train(t.Context(), e, Config{Trees: 30, Horizons: []time.Duration{24 * time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]float64, 1)
	if m.Failure(p, []float64{1, 0.05, 0.5}); p[0] < 0.5 {
		t.Errorf("a disk whose end was not seen was learned as sound: %v", p[0])
	}
}

func TestAStoredModelIsTheSame(t *testing.T) {
	m := trained(t)
	data, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unmarshal(data)
	if err != nil {
		t.Fatal(err)
	}
	a, b := make([]float64, 3), make([]float64, 3)
	for _, x := range examples(50).X {
		m.Failure(a, x)
		again.Failure(b, x)
		if m.Odd(x) != again.Odd(x) || a[0] != b[0] || a[2] != b[2] || m.Signature(a, x) != again.Signature(b, x) || a[0] != b[0] {
			t.Fatalf("another answer for %v", x)
		}
	}
	if err := again.Accept([]string{"a", "b", "c"}); err == nil {
		t.Error("other features are taken")
	}
	twice, err := again.MarshalBinary()
	if err != nil || !bytes.Equal(data, twice) {
		t.Errorf("saved again it is different: %v", err)
	}
	for i := 0; i < len(data); i += 997 {
		damaged := bytes.Clone(data)
		damaged[i] ^= 4
		if _, err := Unmarshal(damaged); err == nil {
			t.Fatalf("byte %d was changed and nobody saw it", i)
		}
	}
	if _, err := Unmarshal(data[:len(data)/2]); !errors.Is(err, ErrDamaged) {
		t.Errorf("half of it: %v", err)
	}
}

// TestWhatTheExamplesLackIsLeftOut: the hosts with one signature are all held out to calibrate, another
// has a handful of examples, and no host fails within the shortest horizon: the rest is learned.
func TestWhatTheExamplesLackIsLeftOut(t *testing.T) {
	e := examples(6000)
	few := 0
	for i := range e.X {
		e.Failure[i] = max(e.Failure[i], 400)
		switch {
		case !e.learnedFrom(i) && e.Signature[i] == "disk":
			e.Signature[i] = "noisy-neighbour"
		case e.learnedFrom(i) && e.Signature[i] == "disk" && few < leastOfASignature-1:
			e.Signature[i] = "thermal"
			few++
		}
	}
	out := map[string]string{}
	m, err := Train(t.Context(), e, Config{Trees: 30, LeftOut: func(what, why string) { out[what] = why }})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 3 || out["signature noisy-neighbour"] == "" || out["signature thermal"] == "" || out["horizon 5m0s"] == "" {
		t.Errorf("left out: %v", out)
	}
	if got := m.Signatures(); !slices.Equal(got, []string{"disk", "memory-leak"}) {
		t.Errorf("signatures %v", got)
	}
	if got := m.Horizons(); !slices.Equal(got, []time.Duration{time.Hour, 24 * time.Hour}) {
		t.Errorf("horizons %v", got)
	}
	p, s := make([]float64, 2), make([]float64, 2)
	x := []float64{0.05, 1.1, 0.5}
	if m.Failure(p, x); p[0] < 0.5 || m.Signatures()[m.Signature(s, x)] != "memory-leak" || m.Odd(x) < 0.5 {
		t.Errorf("a unit that leaks: %v, %v, odd %v", p, s, m.Odd(x))
	}
	data, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Unmarshal(data); err != nil || len(again.Horizons()) != 2 {
		t.Errorf("stored and read again: %v", err)
	}
}

func TestWhatCannotBeLearned(t *testing.T) {
	for name, change := range map[string]func(*Examples, *Config){
		"no examples":         func(e *Examples, _ *Config) { *e = Examples{} },
		"times are missing":   func(e *Examples, _ *Config) { e.Failure = e.Failure[1:] },
		"a time is negative":  func(e *Examples, _ *Config) { e.Failure[0] = -1 },
		"a time is no number": func(e *Examples, _ *Config) { e.Known[0] = math.NaN() },
		"nothing ever fails":  func(e *Examples, _ *Config) { fill(e.Failure, math.Inf(1)) },
		"everything is sound": func(e *Examples, _ *Config) { fill(e.Signature, Sound) },
		"the sound hosts are all held out": func(e *Examples, _ *Config) {
			for i := range e.X {
				if e.learnedFrom(i) {
					e.Signature[i] = "disk"
				}
			}
		},
		"a signature is empty": func(e *Examples, _ *Config) { e.Signature[3] = "" },
		"horizons descend":     func(_ *Examples, c *Config) { c.Horizons = []time.Duration{time.Hour, time.Minute} },
		"names are missing":    func(e *Examples, _ *Config) { e.Features = []string{"a"} },
	} {
		e, c := examples(600), Config{Trees: 5}
		change(&e, &c)
		if _, err := Train(t.Context(), e, c); err == nil {
			t.Errorf("%s: a model was learned", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Train(ctx, examples(600), Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func fill[T any](x []T, v T) {
	for i := range x {
		x[i] = v
	}
}

func FuzzUnmarshal(f *testing.F) {
	m, err := Train(f.Context(), examples(600), Config{Trees: 2, Leaves: 3})
	if err != nil {
		f.Fatal(err)
	}
	data, err := m.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:60])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := Unmarshal(data); err == nil {
			m.Odd(make([]float64, len(m.Features())))
		}
		if len(data) > 44 { // past the checksum too
			if m, err := decode(data[12 : len(data)-32]); err == nil {
				m.Odd(make([]float64, len(m.Features())))
			}
		}
	})
}
