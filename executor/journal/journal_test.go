package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

func open(t *testing.T, dir string, o Options) (*Journal, [][]byte, error) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	j, records, err := Open(root, "j", o)
	if err == nil {
		t.Cleanup(func() { j.Close() })
	}
	return j, records, err
}

func mustOpen(t *testing.T, dir string) (*Journal, []string) {
	t.Helper()
	j, records, err := open(t, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return j, text(records)
}

func text(records [][]byte) (out []string) {
	for _, r := range records {
		out = append(out, string(r))
	}
	return out
}

func same(a, b []string) bool { return fmt.Sprint(len(a), a) == fmt.Sprint(len(b), b) }

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 5 {
		j, got := mustOpen(t, dir)
		if !same(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
		for k := range 3 {
			r := fmt.Sprintf("record %d.%d %s", i, k, strings.Repeat("x", 100*k))
			if err := j.Append([]byte(r)); err != nil {
				t.Fatal(err)
			}
			want = append(want, r)
		}
		j.Close()
	}
}

// Room that was reserved is there when the disk is full, also for the next process.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=256k")
	j, _ := mustOpen(t, dir)
	if err := j.Reserve(1 << 20); !errors.Is(err, ErrFull) {
		t.Errorf("reserved more than there is: %v", err)
	}
	if err := j.Reserve(64 << 10); err != nil {
		t.Fatal(err)
	}
	smalldisk.Fill(t, dir, 0)
	var want []string
	for i := range 15 {
		if i == 7 {
			j.Close()
			var got []string
			if j, got = mustOpen(t, dir); !same(got, want) {
				t.Errorf("%d records, not %d", len(got), len(want))
			}
		}
		want = append(want, strings.Repeat("x", 4<<10))
		if err := j.Append([]byte(want[i])); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if err := j.Append(make([]byte, 64<<10)); !errors.Is(err, ErrFull) {
		t.Errorf("the disk is not full: %v", err)
	}
}

func TestCompact(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir)
	for i := range 100 {
		if err := j.Append(fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	before := j.Size()
	if err := j.Compact([][]byte{[]byte("a"), []byte("b")}); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("c")); err != nil || j.Size() >= before {
		t.Fatal(err, j.Size())
	}
	j.Close()
	if _, got := mustOpen(t, dir); !same(got, []string{"a", "b", "c"}) {
		t.Errorf("%q", got)
	}
	if err := j.Compact([][]byte{nil}); err == nil {
		t.Error("compacted to an empty record")
	}
}

func TestTornTailIsCutAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir)
	var ends []int64
	for i := range 3 {
		if err := j.Append([]byte(strings.Repeat(string(rune('a'+i)), 10*(i+1)))); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.Size())
	}
	whole, err := os.ReadFile(filepath.Join(dir, "j"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, "j"), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j, got := mustOpen(t, d)
		want := 0
		for _, e := range ends {
			if int64(n) >= e {
				want++
			}
		}
		if len(got) != want {
			t.Fatalf("cut at %d: %d records, want %d", n, len(got), want)
		}
		// What comes next stands behind good records.
		if err := j.Append([]byte("next")); err != nil {
			t.Fatal(err)
		}
		j.Close()
		if _, got := mustOpen(t, d); len(got) != want+1 || got[want] != "next" {
			t.Fatalf("cut at %d, then: %q", n, got)
		}
	}
	// A file that was made longer, but not filled.
	if err := os.WriteFile(filepath.Join(dir, "j"), append(whole, make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, got := mustOpen(t, dir); len(got) != 3 {
		t.Errorf("%d records before the zeros", len(got))
	}
}

func TestDamageInTheMiddleIsReported(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir)
	for i := range 4 {
		if err := j.Append([]byte(strings.Repeat(string(rune('a'+i)), 20))); err != nil {
			t.Fatal(err)
		}
	}
	whole, _ := os.ReadFile(filepath.Join(dir, "j"))
	last := len(whole) - 28
	for at := headerSize; at < len(whole); at++ {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x41
		records, _, err := Decode(bad)
		switch {
		case at < last && !errors.Is(err, ErrCorrupt):
			t.Fatalf("byte %d: %d records, %v", at, len(records), err)
		case at >= last && (err != nil || len(records) != 3):
			t.Fatalf("byte %d of the last record: %d records, %v", at, len(records), err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "j"), append(whole[:20:20], whole[25:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, dir, Options{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "byte 8") {
		t.Errorf("%v", err)
	}
	after, _ := os.ReadFile(filepath.Join(dir, "j"))
	if len(after) != len(whole)-5 {
		t.Error("a damaged journal was changed")
	}
}

func TestOtherFiles(t *testing.T) {
	for data, want := range map[string]error{
		"#!/bin/sh\necho": ErrCorrupt, "TGJ": nil, "": nil, "\x00\x00\x00\x00\x00\x00\x00\x00\x00": nil, "TGJRNL\x00\x02": ErrNewer, "TGJRNL\x00\x00": ErrCorrupt, "short": ErrCorrupt,
	} {
		if _, _, err := Decode([]byte(data)); !errors.Is(err, want) {
			t.Errorf("%q: %v", data, err)
		}
	}
}

func TestLimits(t *testing.T) {
	j, _ := mustOpen(t, t.TempDir())
	if err := j.Append(nil); err == nil {
		t.Error("an empty record")
	}
	if err := j.Append(make([]byte, MaxRecord+1)); err == nil {
		t.Error("a huge record")
	}
	if err := j.Append(make([]byte, MaxRecord)); err != nil {
		t.Error(err)
	}
}

// faulty fails its n-th operation, writes only a part if that is a write, and after
// that works again, or not.
type faulty struct {
	File
	n       *int
	err     error
	forever bool
	dead    bool
	failed  *string
}

func (f *faulty) hit(op string) bool {
	if f.dead {
		return true
	}
	*f.n--
	if *f.n != 0 {
		return false
	}
	*f.failed = op
	f.dead = f.forever
	return true
}

func (f *faulty) WriteAt(p []byte, off int64) (int, error) {
	if f.hit("write") {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, f.err
	}
	return f.File.WriteAt(p, off)
}

func (f *faulty) Truncate(n int64) error {
	if f.hit("truncate") {
		return f.err
	}
	return f.File.Truncate(n)
}

func (f *faulty) Sync() error {
	if f.hit("sync") {
		return f.err
	}
	return f.File.Sync()
}

// Let every operation fail once, for good or for a moment: what was accepted is
// there afterwards, and what was refused without ErrBroken is not.
func TestEveryOperationFails(t *testing.T) {
	seen := map[string]bool{}
	for _, forever := range []bool{false, true} {
		for n := 1; ; n++ {
			dir, left, failed := t.TempDir(), n, ""
			wrap := func(f File) File {
				return &faulty{File: f, n: &left, err: syscall.ENOSPC, forever: forever, failed: &failed}
			}
			j, _, err := open(t, dir, Options{Wrap: wrap})
			var accepted, unclear []string
			if err == nil {
				for i := range 4 {
					r := fmt.Sprint("record ", i)
					switch err := j.Append([]byte(r)); {
					case err == nil:
						accepted = append(accepted, r)
					case errors.Is(err, ErrBroken):
						unclear = append(unclear, r)
					case !errors.Is(err, ErrFull):
						t.Fatalf("operation %d (%s): %v", n, failed, err)
					}
					if i == 2 {
						records := make([][]byte, len(accepted))
						for k, a := range accepted {
							records[k] = []byte(a)
						}
						if err := j.Compact(records); err != nil && !errors.Is(err, ErrBroken) && !errors.Is(err, ErrFull) {
							t.Fatalf("operation %d (%s): %v", n, failed, err)
						}
					}
				}
				j.Close()
			} else if !errors.Is(err, ErrFull) {
				t.Fatalf("operation %d (%s): %v", n, failed, err)
			}
			_, got := mustOpen(t, dir)
			if len(got) < len(accepted) || !same(got[:len(accepted)], accepted) {
				t.Fatalf("operation %d (%s): lost a record: %q, accepted %q", n, failed, got, accepted)
			}
			for _, g := range got[len(accepted):] {
				if !strings.Contains(fmt.Sprint(unclear), g) {
					t.Fatalf("operation %d (%s): has the refused record %q", n, failed, g)
				}
			}
			if failed == "" {
				break
			}
			seen[failed] = true
		}
	}
	if len(seen) != 3 {
		t.Errorf("only %v ever failed", seen)
	}
}

func TestInterruptedCompactionIsForgotten(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir)
	if err := j.Append([]byte("a")); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if err := os.WriteFile(filepath.Join(dir, "j.new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, got := mustOpen(t, dir); !same(got, []string{"a"}) {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "j.new")); !os.IsNotExist(err) {
		t.Error("the half compaction is still there")
	}
}

func FuzzDecode(f *testing.F) {
	whole := header()
	for _, r := range []string{"a", "hello", strings.Repeat("z", 300)} {
		whole = appendFrame(whole, []byte(r))
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte("TGJRNL\x00\x01\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, good, err := Decode(data)
		if err != nil {
			return
		}
		if good > int64(len(data)) {
			t.Fatalf("%d of %d bytes are good", good, len(data))
		}
		// What was read is what would be written, byte for byte.
		if good > 0 {
			again := header()
			for _, r := range records {
				again = appendFrame(again, r)
			}
			if !bytes.Equal(again, data[:good]) {
				t.Fatal("the good bytes are not those of the records")
			}
		}
		// A record more is found again.
		next := appendFrame(bytes.Clone(data[:good]), []byte("next"))
		if good > 0 {
			if got, n, err := Decode(next); err != nil || n != int64(len(next)) || len(got) != len(records)+1 {
				t.Fatalf("%d records, then %d, %v", len(records), len(got), err)
			}
		}
	})
}
