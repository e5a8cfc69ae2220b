package stream_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/fast"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

var methods = []stream.Method{anomaly.Method, fast.Method}

func each(t *testing.T, test func(*testing.T, stream.Method)) {
	for _, m := range methods {
		t.Run(m.Name(), func(t *testing.T) { test(t, m) })
	}
}

// host is a healthy one, whose metrics move together.
func host(r *rand.Rand, n, columns int) [][]float64 {
	rows := make([][]float64, n)
	load := 0.0
	for i := range rows {
		load = 0.9*load + r.NormFloat64()
		rows[i] = make([]float64, columns)
		for j := range columns {
			rows[i][j] = float64(j) + load*float64(j%3) + 0.3*r.NormFloat64()
		}
	}
	return rows
}

func detector(t testing.TB, m stream.Method, columns, learn int) *stream.Detector {
	t.Helper()
	d, err := stream.New(m, columns, stream.Config{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func observe(d *stream.Detector, rows [][]float64) (learned float64, tails []float64) {
	for _, x := range rows {
		l, p := d.Observe(time.Time{}, x)
		learned, tails = l, append(tails, p)
	}
	return learned, tails
}

func TestLearnsThenScores(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(1, 2)), 5000, 6)
		d := detector(t, m, 6, 1000)
		learned, tails := observe(d, rows[:500])
		if learned != 0.5 || tails[0] != 1 || slices.Min(tails) < 2.0/500 {
			t.Errorf("half way: %v, first %v, least %v", learned, tails[0], slices.Min(tails))
		}
		if learned, _ = observe(d, rows[500:1000]); learned != 1 {
			t.Errorf("at the end: %v", learned)
		}
		if _, state := d.Bytes(); state > 8192 {
			t.Errorf("%d bytes are held for a host that was learned", state)
		}
		_, tails = observe(d, rows[1000:])
		episodes, last := 0, -tail.Apart
		for i, p := range tails {
			if p < 0.001 {
				if i-last >= tail.Apart {
					episodes++
				}
				last = i
			}
		}
		if episodes > 12 {
			t.Errorf("%d episodes of one in a thousand began in 4000 ordinary samples", episodes)
		}
		x := slices.Clone(rows[4999])
		x[2] += 200
		if _, p := d.Observe(time.Time{}, x); p > 1e-4 {
			t.Errorf("a jump: %v", p)
		}
		parts := make([]float64, 6)
		if total := d.Explain(parts); parts[2] < total/2 {
			t.Errorf("the column that jumped has %v of %v", parts[2], total)
		}
	})
}

// Bytes or gibibytes, seconds or milliseconds: it is the same host.
func TestUnitsDoNotMatter(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(3, 4)), 1500, 5)
		var tails [][]float64
		for _, unit := range []float64{1, 1.0 / 1024, 1 << 20} {
			d := detector(t, m, 5, 1000)
			scaled := make([][]float64, len(rows))
			for i, x := range rows {
				for _, v := range x {
					scaled[i] = append(scaled[i], v*unit)
				}
				if i > 1400 {
					scaled[i][3] += 10 * unit * float64(i%2)
				}
			}
			_, of := observe(d, scaled)
			tails = append(tails, of)
		}
		for k := range tails[1:] {
			for i, p := range tails[1+k] {
				if math.Abs(math.Log10(p)-math.Log10(tails[0][i])) > 0.1 {
					t.Fatalf("sample %d in another unit: tail %v, not %v", i, p, tails[0][i])
				}
			}
		}
		if p := tails[0][1410]; p > 1e-3 {
			t.Errorf("a column that flickers: tail %v", p)
		}
	})
}

func TestNewColumnsAreLearned(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(1, 2)), 3000, 7)
		d := detector(t, m, 5, 300)
		observe(d, rows[:1000])
		if err := d.Grow(7); err != nil {
			t.Fatal(err)
		}
		loud := slices.Clone(rows[1000])
		loud[0] += 200
		if learned, p := d.Observe(time.Time{}, loud); learned != 1 || p > 1e-3 {
			t.Errorf("an old column jumps while the new ones are learned: %v, %v", learned, p)
		}
		observe(d, rows[1001:2000])
		x := slices.Clone(rows[2000])
		x[5] += 300
		if _, p := d.Observe(time.Time{}, x); p > 1e-3 {
			t.Errorf("a jump of the new column: %v", p)
		}
		parts := make([]float64, 7)
		if total := d.Explain(parts); parts[5] < total/2 {
			t.Errorf("the new column has %v of %v", parts[5], total)
		}
		if d.Grow(3) == nil || d.Grow(stream.MostColumns+1) == nil {
			t.Error("it shrank, or grew beyond all limits")
		}
	})
}

func TestAnIncidentIsNotLearned(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(11, 12)), 7000, 6)
		d := detector(t, m, 6, 1000)
		observe(d, rows[:5000])
		for i, x := range rows[5000:6000] {
			x[1] += 30 * float64(i%3) // restless for a while
			if _, p := d.Observe(time.Time{}, x); i > 5 && p > 1e-3 {
				t.Fatalf("after %d samples of an incident the tail is %v", i, p)
			}
		}
		quiet := 0
		_, tails := observe(d, rows[6000:])
		for _, p := range tails[300:] {
			if p > 1e-3 {
				quiet++
			}
		}
		if quiet < 650 {
			t.Errorf("after the incident %d of 700 samples are usual", quiet)
		}
	})
}

func TestResetForgetsTheLastMinutes(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(1, 2)), 1100, 5)
		d := detector(t, m, 5, 1000)
		d.Reset()
		observe(d, rows[:1000])
		for _, x := range rows[1000:1050] {
			x[0] += 500
			d.Observe(time.Time{}, x)
		}
		d.Reset()
		if _, p := d.Observe(time.Time{}, rows[1060]); p < 0.05 {
			t.Errorf("after the reset an ordinary sample has a tail of %v", p)
		}
	})
}

func TestRewindBeginsOnceMore(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(5, 6)), 400, 4)
		d, again := detector(t, m, 4, 300), detector(t, m, 4, 300)
		for _, d := range []*stream.Detector{d, again} {
			if err := d.Fit(rows[:300]); err != nil {
				t.Fatal(err)
			}
			d.Rewind()
		}
		observe(again, rows[300:])
		again.Rewind()
		p, q := make([]float64, 4), make([]float64, 4)
		for _, x := range rows {
			d.Observe(time.Time{}, x)
			again.Observe(time.Time{}, x)
			if d.Explain(p) != again.Explain(q) || !slices.Equal(p, q) {
				t.Fatalf("%v the first time, %v the second", p, q)
			}
		}
	})
}

func TestSavedAndLoaded(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		rows := host(rand.New(rand.NewPCG(1, 2)), 1000, 5)
		for _, at := range []int{0, 10, 40, 100, 300, 700} {
			d := detector(t, m, 4, 300)
			if at < 700 { // there it grows while it is learned
				if err := d.Grow(5); err != nil {
					t.Fatal(err)
				}
			}
			observe(d, rows[:at])
			if err := d.Grow(5); err != nil {
				t.Fatal(err)
			}
			b, err := d.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			again := detector(t, m, 5, 50)
			if err := again.UnmarshalBinary(b); err != nil {
				t.Fatalf("after %d samples: %v", at, err)
			}
			p, q := make([]float64, 5), make([]float64, 5)
			if d.Explain(p) != again.Explain(q) || !slices.Equal(p, q) {
				t.Errorf("after %d samples: the explanation differs", at)
			}
			_, a := observe(d, rows[at:])
			_, c := observe(again, rows[at:])
			if !slices.Equal(a, c) {
				t.Errorf("after %d samples: what was loaded scores otherwise", at)
			}
			if other := detector(t, m, 6, 50); other.UnmarshalBinary(b) == nil {
				t.Error("a state of 5 columns was taken for 6")
			}
		}
	})
}

// The layout, as the head of state.go says it.
const (
	magicBytes = 8
	headBytes  = magicBytes + 4 + 8
)

func TestOtherStatesAreRefused(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		d := detector(t, m, 4, 100)
		observe(d, host(rand.New(rand.NewPCG(1, 2)), 150, 4))
		state, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(state); i += 7 {
			if i >= magicBytes && i < magicBytes+4 {
				continue // another version, below
			}
			c := slices.Clone(state)
			c[i] ^= 0x10
			if _, err := stream.Unmarshal(m, c); !errors.Is(err, stream.ErrDamaged) {
				t.Fatalf("byte %d was changed: %v", i, err)
			}
			if _, err := stream.Unmarshal(m, state[:i]); !errors.Is(err, stream.ErrDamaged) {
				t.Fatalf("%d bytes of it: %v", i, err)
			}
		}
		if _, err := stream.Unmarshal(m, append(slices.Clone(state), 0)); !errors.Is(err, stream.ErrDamaged) {
			t.Errorf("one byte more: %v", err)
		}
		c := slices.Clone(state)
		c[magicBytes]++
		if _, err := stream.Unmarshal(m, c); err == nil || errors.Is(err, stream.ErrDamaged) {
			t.Errorf("another version: %v", err)
		}
		for _, other := range methods {
			if _, err := stream.Unmarshal(other, state); (err == nil) != (other == m) || errors.Is(err, stream.ErrDamaged) {
				t.Errorf("a state of %s, loaded as %s: %v", m.Name(), other.Name(), err)
			}
		}
		// A value that is not a number, with the right checksum.
		c = state[:len(state)-sha256.Size]
		binary.LittleEndian.PutUint64(c[len(c)-8:], math.Float64bits(math.NaN()))
		c = sealed(c)
		if m == fast.Method { // which ends with the last score
			if _, err := stream.Unmarshal(m, c); !errors.Is(err, stream.ErrDamaged) {
				t.Errorf("a value that is not a number: %v", err)
			}
		}
	})
}

func sealed(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func FuzzUnmarshal(f *testing.F) {
	heads := make([][]byte, len(methods))
	for k, m := range methods {
		for _, n := range []int{0, 10, 90, 150} {
			d := detector(f, m, 3, 100)
			observe(d, host(rand.New(rand.NewPCG(1, 2)), n, 3))
			b, err := d.MarshalBinary()
			if err != nil {
				f.Fatal(err)
			}
			heads[k] = b[:headBytes:headBytes]
			f.Add(k, b[headBytes:len(b)-sha256.Size])
		}
	}
	d, daily := detector(f, anomaly.Method, 1, 50), make([][]float64, 100)
	for i := range daily {
		daily[i] = []float64{math.Sin(2 * math.Pi * float64(i) / 24)}
	}
	if err := d.Fit(daily); err != nil {
		f.Fatal(err)
	}
	b, err := d.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, b[headBytes:len(b)-sha256.Size])
	f.Fuzz(func(t *testing.T, k int, body []byte) {
		if k < 0 || k >= len(methods) {
			return
		}
		// The checksum is made to match, so that the decoder itself is tried.
		d, err := stream.Unmarshal(methods[k], sealed(append(heads[k], body...)))
		if err != nil {
			return
		}
		for range 70 {
			if _, p := d.Observe(time.Time{}, []float64{1, math.NaN(), 100}); math.IsNaN(p) || p < 0 || p > 1 {
				t.Fatalf("tail %v", p)
			}
		}
	})
}

func TestRefuses(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		for _, c := range []stream.Config{{Learn: 5}, {Learn: stream.MostLearn + 1}, {Learn: 100, Memory: -1}, {Learn: 100, Memory: math.NaN()}, {Learn: 100, Memory: math.Inf(1)}, {Learn: 100, Interval: -1}} {
			if _, err := stream.New(m, 3, c); err == nil {
				t.Errorf("%+v was accepted", c)
			}
		}
		if _, err := stream.New(m, -1, stream.Config{Learn: 100}); err == nil {
			t.Error("less than no columns")
		}
		d := detector(t, m, 3, 100)
		for name, rows := range map[string][][]float64{
			"of four values": host(rand.New(rand.NewPCG(1, 1)), 100, 4), "too few": make([][]float64, 19),
			"of no values": make([][]float64, 30), "uneven": append(host(rand.New(rand.NewPCG(1, 1)), 100, 3), []float64{1}),
		} {
			if err := d.Fit(rows); err == nil {
				t.Errorf("samples %s were learned", name)
			}
		}
	})
}

func TestObserveAllocatesNothing(t *testing.T) {
	each(t, func(t *testing.T, m stream.Method) {
		d := detector(t, m, 38, 200)
		rows := host(rand.New(rand.NewPCG(1, 1)), 300, 38)
		observe(d, rows)
		parts := make([]float64, 38)
		i := 0
		if n := testing.AllocsPerRun(100, func() {
			d.Observe(time.Time{}, rows[i%len(rows)])
			d.Explain(parts)
			i++
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
