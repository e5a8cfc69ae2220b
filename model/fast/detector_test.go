package fast

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func newDetector(t testing.TB, columns, learn int) *Detector {
	t.Helper()
	d, err := New(columns, Config{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func observe(d *Detector, rows [][]float64) (learned float64, tails []float64) {
	for _, x := range rows {
		l, tail := d.Observe(time.Time{}, x)
		learned, tails = l, append(tails, tail)
	}
	return learned, tails
}

func TestDetectorLearnsThenScores(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 5000, 6)
	d := newDetector(t, 6, 1000)
	learned, tails := observe(d, rows[:500])
	if learned != 0.5 || tails[0] != 1 || slices.Min(tails) < 2.0/500 {
		t.Errorf("half way: %v, first %v, least %v", learned, tails[0], slices.Min(tails))
	}
	if learned, _ = observe(d, rows[500:1000]); learned != 1 {
		t.Errorf("at the end: %v", learned)
	}
	if _, state := d.Bytes(); state > 4096 {
		t.Errorf("%d bytes are held for a host that was learned", state)
	}
	_, tails = observe(d, rows[1000:])
	odd := 0
	for _, p := range tails {
		if p < 0.001 {
			odd++
		}
	}
	if odd > 40 {
		t.Errorf("%d of 4000 ordinary samples were called one in a thousand", odd)
	}
	x := slices.Clone(rows[4999])
	x[2] += 200
	if _, tail := d.Observe(time.Time{}, x); tail > 1e-4 {
		t.Errorf("a jump: %v", tail)
	}
}

func TestAnIncidentDoesNotBecomeNormal(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 4000, 6)
	d := newDetector(t, 6, 1000)
	observe(d, rows[:2000])
	for i, x := range rows[2000:] {
		x[1] += 30 * float64(i%3) // restless from now on
		if _, tail := d.Observe(time.Time{}, x); i == 1000 && tail > 0.001 {
			t.Errorf("after 1000 samples the incident has a tail of %v", tail)
		}
	}
}

func TestGrowLearnsTheNewColumn(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 3000, 7)
	d := newDetector(t, 5, 300)
	observe(d, rows[:1000])
	if err := d.Grow(7); err != nil {
		t.Fatal(err)
	}
	if learned, _ := observe(d, rows[1000:1100]); learned != 1 {
		t.Errorf("what was learned does not score while the new columns are learned: %v", learned)
	}
	observe(d, rows[1100:2000])
	x := slices.Clone(rows[2000])
	x[5] += 300
	if _, tail := d.Observe(time.Time{}, x); tail > 1e-3 {
		t.Errorf("a jump of the new column: %v", tail)
	}
	if d.Grow(3) == nil || d.Grow(513) == nil {
		t.Error("it shrank, or grew beyond all limits")
	}
}

func TestResetForgetsTheLastMinutes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 1100, 5)
	d := newDetector(t, 5, 1000)
	observe(d, rows[:1000])
	for _, x := range rows[1000:1050] {
		x[0] += 500
		d.Observe(time.Time{}, x)
	}
	d.Reset()
	if _, tail := d.Observe(time.Time{}, rows[1060]); tail < 0.05 {
		t.Errorf("after the reset an ordinary sample has a tail of %v", tail)
	}
}

func TestSavedAndLoaded(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rows := host(r, 1000, 5)
	for _, at := range []int{0, 10, 40, 100, 300, 700} {
		d := newDetector(t, 5, 300)
		observe(d, rows[:at])
		if at == 700 {
			if err := d.Grow(5); err != nil {
				t.Fatal(err)
			}
		}
		b, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		again := newDetector(t, 5, 50)
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
		if other := newDetector(t, 6, 50); other.UnmarshalBinary(b) == nil {
			t.Error("a state of 5 columns was taken for 6")
		}
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	d := newDetector(t, 4, 100)
	observe(d, host(rand.New(rand.NewPCG(1, 2)), 150, 4))
	b, _ := d.MarshalBinary()
	for i := 0; i < len(b); i += 7 {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if _, err := Unmarshal(c); err == nil {
			t.Fatalf("byte %d was changed, and it was loaded", i)
		}
		if _, err := Unmarshal(b[:i]); err == nil {
			t.Fatalf("%d bytes of it were loaded", i)
		}
	}
	c := bytes.Clone(b)
	c[len(magic)]++
	if _, err := Unmarshal(c); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("another version: %v", err)
	}
	// A value that is not a number, with the right checksum.
	c = bytes.Clone(b[:len(b)-sha256.Size])
	binary.LittleEndian.PutUint32(c[len(c)-4:], math.Float32bits(float32(math.NaN())))
	sum := sha256.Sum256(c)
	if _, err := Unmarshal(append(c, sum[:]...)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a value that is not a number: %v", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, n := range []int{0, 10, 90, 150} {
		d := newDetector(f, 3, 100)
		observe(d, host(rand.New(rand.NewPCG(1, 2)), n, 3))
		b, _ := d.MarshalBinary()
		f.Add(b[len(magic)+4 : len(b)-sha256.Size])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := decode(b)
		if err != nil {
			return
		}
		r := rand.New(rand.NewPCG(1, 2))
		x := make([]float64, d.columns)
		for range 5 {
			for i := range x {
				x[i] = 100 * r.NormFloat64()
			}
			if _, tail := d.Observe(time.Time{}, x); math.IsNaN(tail) {
				t.Fatal("a tail that is not a number")
			}
		}
	})
}
