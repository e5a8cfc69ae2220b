package bus

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=400m")
	b := open(t, Options{Dir: filepath.Join(dir, "bus"), SampleBytes: 1 << 30, SampleAge: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { b.WatchSpace(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	empty := smalldisk.Fill(t, dir, 110<<20)
	// Noise does not compress.
	r := rand.New(rand.NewPCG(1, 2))
	schema := fleet.NewSchema(strings.Split(strings.Repeat("x,", 500)+"x", ","))
	at := time.Now().Add(-time.Hour)
	taken := 0
	next := func() error {
		s := &fleet.Sample{Host: "h1", Time: at.Add(time.Duration(taken) * time.Millisecond), Boot: "b", Schema: schema, Values: make([]float64, schema.Len())}
		for i := range s.Values {
			s.Values[i] = r.NormFloat64()
		}
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return publish(limited, b, s)
	}
	var err error
	for end := time.Now().Add(5 * time.Minute); err == nil; taken++ {
		if err = next(); time.Now().After(end) {
			t.Fatalf("%d samples were taken and the disk is never full", taken)
		}
	}
	for end := time.Now().Add(time.Minute); !strings.Contains(b.Full(), "MiB left"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("refused with %v, and it says %q", err, b.Full())
		}
	}
	// What is not a sample still goes through.
	if err := OpenAudit(b).Append(t.Context(), "ann", "approve", "x", nil); err != nil {
		t.Errorf("audit: %v", err)
	}
	// But no large files, which would use up what is left.
	files, err := OpenObjects(t.Context(), b, "FILES")
	if err != nil {
		t.Fatal(err)
	}
	if err := files.Put(t.Context(), "x", []byte("x")); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "MiB left") {
		t.Errorf("a file: %v", err)
	}
	bundles, err := OpenBundles(t.Context(), b, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := bundles.receive(t.Context(), "h1", bundlePiece{Name: "x", Data: []byte("x")}); !errors.Is(err, ErrFull) {
		t.Errorf("a bundle: %v", err)
	}
	n := 0
	if err := b.History(t.Context(), "h1", at, time.Now(), func(fleet.Sample) bool { n++; return true }); err != nil || n != taken-1 {
		t.Errorf("%d of %d samples are there, %v", n, taken-1, err)
	}
	empty()
	for end := time.Now().Add(time.Minute); next() != nil; {
		if time.Now().After(end) {
			t.Fatalf("with room on the disk no sample is taken: %v, %q", next(), b.Full())
		}
		time.Sleep(50 * time.Millisecond)
	}
	for end := time.Now().Add(time.Minute); b.Full() != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it still says %q", b.Full())
		}
	}
	if err := files.Put(t.Context(), "x", []byte("x")); err != nil {
		t.Errorf("a file, with room again: %v", err)
	}
	if err := b.RoomFor(100 << 20); err != nil {
		t.Error(err)
	}
	if err := b.RoomFor(1 << 30); !errors.Is(err, ErrFull) {
		t.Errorf("a file that is larger than the disk: %v", err)
	}
}
