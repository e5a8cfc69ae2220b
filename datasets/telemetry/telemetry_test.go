package telemetry

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"golang.org/x/sys/unix"
)

var start = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// write makes a directory of two hosts, the second of which is away for a while and
// comes back with another boot.
func write(t testing.TB, rows int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "set")
	w, err := Create(dir, Manifest{Source: "test", Start: start, Interval: 60, Series: []string{"a", "b", "c"}, Hosts: []Host{{ID: "h1", FaultDomain: "rack-1", VMs: 2}, {ID: "h2"}}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		at := start.Add(time.Duration(i) * time.Minute)
		if err := w.Append(0, at, "boot-a", value(i)); err != nil {
			t.Fatal(err)
		}
		if i >= 10 && i < 15 {
			continue
		}
		boot := "boot-b"
		if i >= 15 {
			boot = "boot-c"
		}
		if err := w.Append(1, at, boot, value(-i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close([]any{map[string]int{"id": 1}, map[string]int{"id": 2}}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func value(i int) []float64 {
	return []float64{float64(i) * 1.2345e9, math.NaN(), math.Sin(float64(i)) * 1e-7}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	const rows = 1000 // several blocks
	set, err := Open(write(t, rows))
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	if m := set.Manifest; m.Samples != 2*rows-5 || m.Hosts[0].FaultDomain != "rack-1" || m.Faults != 2 || set.Schema().Index("c") != 2 {
		t.Errorf("%+v", m)
	}
	for host, sign := range []int{1, -1} {
		n, i := 0, 0
		for s, err := range set.Host(host) {
			if err != nil {
				t.Fatal(err)
			}
			if host == 1 && i == 10 {
				i = 15
			}
			boot := "boot-a"
			if host == 1 {
				boot = map[bool]string{true: "boot-b", false: "boot-c"}[i < 15]
			}
			if !s.Time.Equal(start.Add(time.Duration(i)*time.Minute)) || s.Boot != boot || s.Host != set.Manifest.Hosts[host].ID {
				t.Fatalf("sample %d of host %d: %s %s %s", i, host, s.Host, s.Time, s.Boot)
			}
			want := value(sign * i)
			for c, v := range s.Values {
				if math.IsNaN(want[c]) != math.IsNaN(v) || math.Abs(v-want[c]) > math.Abs(want[c])/2000 {
					t.Fatalf("sample %d of host %d, column %d: %v, was %v", i, host, c, v, want[c])
				}
			}
			n, i = n+1, i+1
		}
		if n != rows-5*host {
			t.Errorf("host %d has %d samples", host, n)
		}
	}
	lines := 0
	if err := set.Faults(func([]byte) error { lines++; return nil }); err != nil || lines != 2 {
		t.Errorf("%d faults, %v", lines, err)
	}
}

func TestOneInputIsOneFile(t *testing.T) {
	a, errA := os.ReadFile(filepath.Join(write(t, 400), telemetryFile))
	b, errB := os.ReadFile(filepath.Join(write(t, 400), telemetryFile))
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("the files differ: %v %v", errA, errB)
	}
}

// TestDamageIsFound changes every byte in turn: none may pass unseen.
func TestDamageIsFound(t *testing.T) {
	dir := write(t, 20)
	path := filepath.Join(dir, telemetryFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func() error {
		set, err := Open(dir)
		if err != nil {
			return err
		}
		defer set.Close()
		for i := range set.Manifest.Hosts {
			for _, err := range set.Host(i) {
				if err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 0x41
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := read(); err == nil {
			t.Errorf("byte %d was changed and nobody saw it", i)
		}
	}
	for _, cut := range []int{0, 5, 8, 20, len(whole) - 1} {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := read(); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
}

func TestDiscardLeavesNothing(t *testing.T) {
	m := Manifest{Source: "test", Start: start, Interval: 60, Series: []string{"a"}, Hosts: []Host{{ID: "h"}}}
	there := t.TempDir()
	for _, dir := range []string{there, filepath.Join(there, "new")} {
		w, err := Create(dir, m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Create(dir, m); err == nil || !strings.Contains(err.Error(), "not written to its end") {
			t.Errorf("a second one in the same place: %v", err)
		}
		for i := range 1000 {
			if err := w.Append(0, start.Add(time.Duration(i)*time.Minute), "b", []float64{1}); err != nil {
				t.Fatal(err)
			}
		}
		w.Discard()
	}
	if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	w, err := Create(filepath.Join(there, "kept"), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	w.Discard()
	if _, err := os.Stat(filepath.Join(there, "kept", manifestFile)); err != nil {
		t.Errorf("what was closed was discarded: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	m := Manifest{Series: []string{"a"}, Hosts: []Host{{ID: "h1"}}}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(full, m); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with files: %v", err)
	}
	if _, err := Create(filepath.Join(t.TempDir(), "new"), Manifest{}); err == nil {
		t.Error("no hosts and no series were taken")
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), manifestFile) {
		t.Errorf("an empty directory: %v", err)
	}
	w, err := Create(filepath.Join(t.TempDir(), "new"), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(1, start, "", []float64{1}); err == nil {
		t.Error("a host that does not exist was taken")
	}
	if err := w.Append(0, start, "", nil); err == nil {
		t.Error("a sample without values was taken")
	}
	for manifest, want := range map[string]string{
		"{":                            "unexpected end",
		`{"version":9}`:                "version 9",
		`{"version":1,"series":["a"]}`: "0 hosts",
		`{"version":1,"series":["a"],"hosts":[{"id":"a/b"}]}`:                               "a/b",
		`{"version":1,"series":["a"],"hosts":[{"id":"h1","vms":1000000000}]}`:               "h1 has 1000000000 VMs",
		`{"version":1,"series":["a"],"hosts":[{"id":"h1","vms":-1}]}`:                       "h1 has -1 VMs",
		`{"version":1,"series":["a","b","a"],"hosts":[{"id":"h1"}]}`:                        `"a" is there twice`,
		`{"version":1,"series":["a"],"hosts":[{"id":"h1"}],"interval_s":-60}`:               "interval_s is -60",
		`{"version":1,"series":["a"],"hosts":[{"id":"h1"}],"interval_s":1e-9}`:              "interval_s is 1e-09",
		`{"version":1,"series":["a"],"hosts":[` + strings.Repeat("{},", mostParts) + `{}]}`: "parts",
		`{"version":1,"series":["a"],"hosts":[{"id":"h1"}],"interval_s":1,"calm_s":1e300}`:  "calm_s is 1e+300",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, manifestFile), []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.200s: %v", manifest, err)
		}
	}
	for _, name := range []string{manifestFile, telemetryFile, faultsFile} {
		dir := t.TempDir()
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), name+" is a directory, a pipe or a device") {
			t.Errorf("a pipe in place of %s: %v", name, err)
		}
	}
}

// The truth that a manifest speaks of must be there.
func TestMissingFaultsAreFound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	w, err := Create(dir, Manifest{Series: []string{"a"}, Hosts: []Host{{ID: "h1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(0, start, "", []float64{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close([]any{map[string]int{"id": 1}}); err != nil {
		t.Fatal(err)
	}
	faults := func(text string) error {
		t.Helper()
		path := filepath.Join(dir, faultsFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		set, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		return set.Faults(func([]byte) error { return nil })
	}
	for text, want := range map[string]string{"": "is missing", "{}\n{}\n": "2 lines", strings.Repeat("x", mostLine+1): "line 1: it is longer"} {
		if err := faults(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.10q: %v", text, err)
		}
	}
	if err := faults("{}\n"); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	var b buffer
	b.at = []int64{1, 2}
	b.boots = []boot{{0, "x"}}
	b.values = []float32{1, 2, 3, 4}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	e := encoder{z: z}
	whole := e.encode(nil, 0, &b, 2)[headBytes:]
	f.Add(whole, 2)
	f.Add(z.EncodeAll(make([]byte, 1000), nil), 2)
	f.Add(whole[:5], 1)
	f.Fuzz(func(t *testing.T, payload []byte, rows int) {
		if rows < 1 || rows > mostRows {
			return
		}
		d, err := newDecoder(2)
		if err != nil {
			t.Fatal(err)
		}
		defer d.z.Close()
		if err := d.decode(payload, 1, rows, checksum(1, rows, payload)); err != nil {
			return
		}
		x := make([]float64, 2)
		for r := range rows {
			d.row(x, r)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	w, err := Create(filepath.Join(b.TempDir(), "set"), Manifest{Series: make([]string, 92), Hosts: []Host{{ID: "h1"}}})
	if err != nil {
		b.Fatal(err)
	}
	x := make([]float64, 92)
	for i := range x {
		x[i] = math.Sqrt(float64(i))
	}
	at := start
	for b.Loop() {
		at = at.Add(time.Minute)
		x[int(at.Unix()/60)%92] *= 1.001
		if err := w.Append(0, at, "boot", x); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.Close(nil); err != nil {
		b.Fatal(err)
	}
}

func TestASmallBlockIsRead(t *testing.T) {
	set, err := Open(write(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	n := 0
	for s, err := range set.Host(0) {
		if err != nil || s.Values[0] != 0 {
			t.Fatalf("%+v, %v", s, err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d samples", n)
	}
}
