package spool

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

func open(t *testing.T, dir string, limit int64) *Spool {
	t.Helper()
	s, err := Open(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func record(i int) []byte { return fmt.Appendf(nil, "record %06d %s", i, strings.Repeat("x", i%50)) }

func add(t *testing.T, s *Spool, from, to int) (dropped int) {
	t.Helper()
	for i := from; i < to; i++ {
		n, err := s.Append(record(i))
		if err != nil {
			t.Fatal(err)
		}
		dropped += n
	}
	return dropped
}

// want fails unless the queue holds exactly the records from to to.
func want(t *testing.T, s *Spool, from, to int) {
	t.Helper()
	if s.Len() != to-from {
		t.Fatalf("%d records wait, want %d", s.Len(), to-from)
	}
	got, err := s.Peek(to-from+1, 1<<30)
	if err != nil || len(got) != to-from {
		t.Fatalf("%d records, %v", len(got), err)
	}
	for i, r := range got {
		if !bytes.Equal(r, record(from+i)) {
			t.Fatalf("record %d is %q", from+i, r)
		}
	}
}

func TestInOrderAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 10<<20)
	add(t, s, 0, 5000)
	want(t, s, 0, 5000)
	if err := s.Release(1234); err != nil {
		t.Fatal(err)
	}
	want(t, s, 1234, 5000)
	s.Close()
	s = open(t, dir, 10<<20)
	want(t, s, 1234, 5000)
	add(t, s, 5000, 5100)
	if err := s.Release(3866); err != nil {
		t.Fatal(err)
	}
	want(t, s, 5100, 5100)
	s.Close()
	s = open(t, dir, 10<<20)
	add(t, s, 5100, 5101)
	want(t, s, 5100, 5101)
	some, err := s.Peek(10, 1)
	if err != nil || len(some) != 1 {
		t.Errorf("%d records of one byte at most, %v", len(some), err)
	}
}

func TestFullDropsTheOldestAndSaysHowMany(t *testing.T) {
	s := open(t, t.TempDir(), 4*leastSegment)
	dropped := add(t, s, 0, 20_000)
	if dropped == 0 || dropped+s.Len() != 20_000 {
		t.Fatalf("%d dropped, %d kept", dropped, s.Len())
	}
	want(t, s, dropped, 20_000)
	if s.Bytes() > 4*leastSegment {
		t.Errorf("%d bytes", s.Bytes())
	}
	var onDisk int64
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		info, _ := e.Info()
		onDisk += info.Size()
	}
	if onDisk > 4*leastSegment {
		t.Errorf("%d bytes on disk", onDisk)
	}
}

// TestTornAtEveryByte cuts the last write off at each of its bytes.
func TestTornAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 10<<20)
	add(t, s, 0, 3)
	whole := s.Bytes()
	add(t, s, 3, 4)
	s.Close()
	path := filepath.Join(dir, s.segments[0].name())
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := whole; size < int64(len(data)); size++ {
		if err := os.WriteFile(path, data[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, 10<<20)
		want(t, s, 0, 3)
		add(t, s, 3, 5)
		s.Close()
		s = open(t, dir, 10<<20)
		want(t, s, 0, 5)
		s.Close()
		for _, one := range s.segments[1:] {
			os.Remove(filepath.Join(dir, one.name()))
		}
	}
	// A flipped bit ends the segment there; nothing wrong comes out.
	data[whole+headerBytes] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 10<<20)
	want(t, s, 0, 3)
	if s.CutOff() != int64(len(data))-whole {
		t.Errorf("%d bytes are said to be cut off, not %d", s.CutOff(), int64(len(data))-whole)
	}
	s.Close()
	// Zeros, as a file system leaves them in a crash, are no records.
	if err := os.WriteFile(path, append(data[:whole:whole], make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 10<<20)
	want(t, s, 0, 3)
	if s.CutOff() != 4096 {
		t.Errorf("%d zeros are said to be cut off", s.CutOff())
	}
}

// TestDiskFull uses a file system of its own that is too small.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=256k")
	s := open(t, dir, 10<<20)
	taken := 0
	var err error
	for {
		if _, err = s.Append(bytes.Repeat([]byte{byte(taken)}, 5000)); err != nil {
			break
		}
		if taken++; taken > 1000 {
			t.Fatal("the disk is never full")
		}
	}
	if !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	if s.Len() != taken {
		t.Errorf("%d records wait after %d were taken", s.Len(), taken)
	}
	if err := s.Release(taken / 2); err != nil && !strings.Contains(err.Error(), "no space left") {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir, 10<<20)
	records, err := s.Peek(taken, 1<<30)
	if err != nil || len(records) == 0 || records[len(records)-1][0] != byte(taken-1) {
		t.Errorf("%d records after a restart, %v", len(records), err)
	}
	if err := s.Release(len(records)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append([]byte("again")); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A full disk is not filled with empty files.
func TestAttemptsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=256k")
	s := open(t, dir, 10<<20)
	for range 100 {
		s.Append(make([]byte, 300_000))
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 1 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	add(t, s, 0, 10)
	want(t, s, 0, 10)
}

// A disk that takes nothing any more holds nothing up. What was released comes again after a restart.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=256k")
	s := open(t, dir, 10<<20)
	add(t, s, 0, 2000) // in two segments
	s.Close()
	s = open(t, dir, 10<<20)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(700); err == nil {
		t.Error("released on a disk that takes nothing")
	}
	want(t, s, 700, 2000)
	if err := s.Release(1300); err == nil {
		t.Error("released on a disk that takes nothing")
	}
	want(t, s, 2000, 2000)
	want(t, open(t, dir, 10<<20), 0, 2000)
}

// What the disk has changed meanwhile is given up, and no more.
func TestSkip(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"gone":  os.Remove,
		"short": func(path string) error { return os.Truncate(path, 100) },
		"wrong": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("?"), headerBytes)
			return err
		},
	} {
		dir := t.TempDir()
		s := open(t, dir, 4*leastSegment)
		for i := 0; i < 2000; i += 100 {
			var records [][]byte
			for k := range 100 {
				records = append(records, record(i+k))
			}
			if _, err := s.Append(records...); err != nil {
				t.Fatal(err)
			}
		}
		first := s.segments[0]
		if err := change(filepath.Join(dir, first.name())); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Peek(10, 1<<20); err == nil {
			t.Errorf("%s: read %d records", name, len(got))
		}
		if n := s.Skip(); n != first.records || n == 2000 {
			t.Errorf("%s: %d records were skipped of %d", name, n, first.records)
		}
		want(t, s, first.records, 2000)
	}
	if n := open(t, t.TempDir(), 4*leastSegment).Skip(); n != 0 {
		t.Errorf("%d records of none", n)
	}
}

func TestRefusals(t *testing.T) {
	if _, err := Open(t.TempDir(), 10); err == nil {
		t.Error("a limit of ten bytes")
	}
	s := open(t, t.TempDir(), 4*leastSegment)
	if _, err := s.Append(make([]byte, MaxRecord+1)); err == nil {
		t.Error("a record that is too large")
	}
	if _, err := s.Append(nil); err == nil {
		t.Error("a record of nothing")
	}
	if _, err := s.Append(make([]byte, 5*leastSegment)); err == nil || s.Len() != 0 {
		t.Error("a record that never fits")
	}
}

// FuzzOpen opens whatever a disk may return.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("\x03\x00\x00\x00\x00\x00\x00\x00abc"), []byte("0 1\n"))
	f.Add([]byte{}, []byte("zz"))
	f.Fuzz(func(t *testing.T, data, head []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "0000000000000000"+suffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "head"), head, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, 4*leastSegment)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		n := s.Len()
		if _, err := s.Append([]byte("new")); err != nil {
			t.Fatal(err)
		}
		got, err := s.Peek(n+2, 1<<30)
		if err != nil || len(got) != n+1 || string(got[n]) != "new" {
			t.Errorf("%d of %d records, %v", len(got), n+1, err)
		}
	})
}
