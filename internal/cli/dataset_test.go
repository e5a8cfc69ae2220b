package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
)

func TestDatasetSimulate(t *testing.T) {
	parent := t.TempDir()
	simulate := func(name, seed string) map[string][]byte {
		t.Helper()
		dir := filepath.Join(parent, name)
		if out, err := run(t, "dataset", "simulate", "--hosts", "20", "--days", "2", "--faults", "30", "--seed", seed, "--out", dir, "--json"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		files := map[string][]byte{}
		for _, f := range []string{"manifest.json", "telemetry.bin", "faults.jsonl"} {
			data, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				t.Fatal(err)
			}
			files[f] = data
		}
		return files
	}
	a := simulate("a", "5")
	procs := runtime.GOMAXPROCS(1)
	b := simulate("b", "5")
	runtime.GOMAXPROCS(procs)
	other := simulate("c", "6")
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			t.Errorf("%s of the same seed differs with another number of processors", name)
		}
		if bytes.Equal(a[name], other[name]) {
			t.Errorf("%s of another seed is the same", name)
		}
	}

	set, err := telemetry.Open(filepath.Join(parent, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	samples := int64(0)
	for i := range set.Manifest.Hosts {
		for s, err := range set.Host(i) {
			if err != nil {
				t.Fatal(err)
			}
			if v, ok := s.Value("cpu_busy_ratio"); !ok || v <= 0 || v > 1.1 {
				t.Fatalf("%s at %s is busy by %v", s.Host, s.Time, v)
			}
			samples++
		}
	}
	if samples != set.Manifest.Samples || samples < 20*2*1440*8/10 {
		t.Errorf("%d samples, the manifest says %d", samples, set.Manifest.Samples)
	}
	answered := 0
	err = set.Faults(func(line []byte) error {
		var x simulator.Fault
		if err := json.Unmarshal(line, &x); err != nil {
			return err
		}
		if !x.Benign && !x.Effect.IsZero() {
			if len(x.Moments) == 0 || len(x.Moments[0].Would) != 5 || x.Moments[0].Time.Before(x.Start) {
				t.Errorf("the truth about fault %d does not say what actions would have achieved: %+v", x.ID, x.Moments)
			}
			answered++
		}
		return nil
	})
	if err != nil || answered == 0 {
		t.Errorf("%d faults, %v", answered, err)
	}

	for _, args := range [][]string{{"--hosts", "0"}, {"--days", "-1"}, {"--days", "NaN"}, {"--interval", "1ns"}, {"--interval", "0"}, {"--faults", "-1"}, {"--benign", "-1"}, {"--benign", "NaN"}} {
		if _, err := run(t, append([]string{"dataset", "simulate", "--out", filepath.Join(parent, "new")}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run(t, "dataset", "simulate"); !errors.As(err, new(usageError)) {
		t.Errorf("without --out: %v", err)
	}
	if _, err := run(t, "dataset", "simulate", "--out", filepath.Join(parent, "a")); err == nil {
		t.Error("a directory that exists was written over")
	}
}

func TestAnInterruptedSimulationLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	root := newRoot("test")
	root.SetOut(io.Discard)
	root.SetArgs([]string{"dataset", "simulate", "--hosts", "5", "--days", "1", "--out", filepath.Join(parent, "set")})
	if err := root.ExecuteContext(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
