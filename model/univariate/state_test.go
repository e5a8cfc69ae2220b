package univariate

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"strings"
	"testing"
)

func saved(t testing.TB, learn, samples int) []byte {
	t.Helper()
	d, normal := mustNew(t, learn), office(21)
	for i := range samples {
		d.Observe(at(i), normal(i))
	}
	b, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoesOnAfterRestart(t *testing.T) {
	for _, split := range []int{0, 1, 19, 150, 299, 1500} {
		one, before, normal := mustNew(t, 300), mustNew(t, 300), office(23)
		var values []float64
		for i := range 2000 {
			values = append(values, normal(i)+float64(i%400/399*80))
		}
		for i := range split {
			one.Observe(at(i), values[i])
			before.Observe(at(i), values[i])
		}
		b, err := before.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		after := mustNew(t, 300)
		if err := after.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		for i := split; i < len(values); i++ {
			wantLearned, want := one.Observe(at(i), values[i])
			gotLearned, got := after.Observe(at(i), values[i])
			wantAlarm, wantWhy := one.Alarm()
			gotAlarm, gotWhy := after.Alarm()
			if want != got || wantLearned != gotLearned || wantAlarm != gotAlarm || wantWhy != gotWhy {
				t.Fatalf("restart after %d, sample %d: %v %v %v, not %v %v %v", split, i, gotLearned, got, gotWhy, wantLearned, want, wantWhy)
			}
		}
	}
}

// sealed changes a state and makes its checksum right again.
func sealed(b []byte, change func(b []byte) []byte) []byte {
	b = change(bytes.Clone(b[:len(b)-4]))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func TestRefusesDamagedState(t *testing.T) {
	good := saved(t, 300, 1000)
	word := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[at:], v)
			return b
		}
	}
	flipped := bytes.Clone(good)
	flipped[100] ^= 1
	for name, c := range map[string]struct {
		state []byte
		want  string
	}{
		"nothing":            {nil, "cut off"},
		"a changed bit":      {flipped, "checksum"},
		"another version":    {sealed(good, func(b []byte) []byte { b[0]++; return b }), "version"},
		"the end missing":    {sealed(good, func(b []byte) []byte { return b[:len(b)-8] }), "cut off"},
		"something more":     {sealed(good, func(b []byte) []byte { return append(b, 1, 2, 3) }), "3 bytes longer"},
		"learned otherwise":  {saved(t, 200, 1000), "300"},
		"samples below none": {sealed(good, word(12, math.MaxUint64)), "from 0"},
		"not a number":       {sealed(good, word(28, math.Float64bits(math.NaN()))), "not a number"},
		"too many peaks":     {sealed(good, word(36, kept+1)), "from 0 to 12"},
		"peaks in disorder":  {sealed(good, word(52, math.Float64bits(-1e9))), "out of order"},
	} {
		d, normal := mustNew(t, 300), office(25)
		for i := range 500 {
			d.Observe(at(i), normal(i))
		}
		before, _ := d.MarshalBinary()
		if err := d.UnmarshalBinary(c.state); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := d.MarshalBinary(); !bytes.Equal(before, after) {
			t.Errorf("%s: the detector changed", name)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add(saved(f, 300, 0))
	f.Add(saved(f, 300, 1000))
	f.Add([]byte("state"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := mustNew(t, 300)
		// The checksum is made right, so that what is behind it is reached.
		if len(b) > 8 {
			b = sealed(b, func(b []byte) []byte { return b })
		}
		if d.UnmarshalBinary(b) != nil {
			return
		}
		for i := range 300 {
			if _, expected := d.Observe(at(i), float64(i%17)); math.IsNaN(expected) {
				t.Fatalf("sample %d: %v", i, expected)
			}
			d.Alarm()
		}
	})
}
