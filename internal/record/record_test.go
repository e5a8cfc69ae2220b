package record

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// program builds the program that runs on the recorded hosts.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tardigrade")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/tardigrade-recovery/tardigrade")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// hostsNow are the control groups of recorded hosts.
func hostsNow(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/sys/fs/cgroup/*/tardigrade-record*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestARealFaultIsRecorded(t *testing.T) {
	out := filepath.Join(t.TempDir(), "recorded")
	cfg := Config{
		Program: program(t), Kinds: []Kind{HungService, PacketLoss}, Runs: 1, Parallel: 2,
		Calm: 8 * time.Second, Most: 3 * time.Minute, Interval: 500 * time.Millisecond, Source: "a test", Progress: func(text string) { t.Log(text) },
	}
	before := hostsNow(t)
	m, faults, err := Run(t.Context(), cfg, out)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Hosts) != 2 || len(faults) != 2 || m.Source != "a test" || m.Interval != 0.5 {
		t.Fatalf("%+v, %+v", m, faults)
	}
	set, err := telemetry.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	var read []Fault
	if err := set.Faults(func(line []byte) error {
		var f Fault
		read = append(read, f)
		return json.Unmarshal(line, &read[len(read)-1])
	}); err != nil {
		t.Fatal(err)
	}
	for i, f := range read {
		if f.Ending != Failed || f.End.Before(f.Start) || f.Signature != f.Kind.Signature() || string(f.Host) != string(f.Kind)+"-1" || f.Culprit != unit {
			t.Errorf("fault %+v", f)
		}
		calm, ill, most := 0, 0, 0.0
		for s, err := range set.Host(i) {
			if err != nil {
				t.Fatal(err)
			}
			healthy, ok := s.Value(fleet.SeriesName("unit_healthy", unit))
			switch {
			case s.Time.Before(f.Start) && healthy == 1:
				calm++
			case !(ok && healthy == 1) && !s.Time.Before(f.End.Truncate(time.Millisecond)): // as times are stored
				ill++
			}
			if v, ok := s.Value(fleet.SeriesName("unit_tasks", unit)); ok {
				most = max(most, v)
			}
		}
		if calm < 12 || ill < failedChecks {
			t.Errorf("%s: %d healthy samples before the fault, %d unhealthy ones from its end on", f.Host, calm, ill)
		}
		if f.Kind == HungService && most < 50 {
			t.Errorf("requests that wait are not seen: %v tasks at the most", most)
		}
	}
	if left := slices.DeleteFunc(hostsNow(t), func(h string) bool { return slices.Contains(before, h) }); len(left) > 0 {
		t.Errorf("hosts are left: %v", left)
	}
}

func TestRefusesWhatCannotBeRecorded(t *testing.T) {
	if _, _, err := Run(t.Context(), Config{}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a directory that exists: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Before anything is booted.
	if _, _, err := Run(t.Context(), Config{Kinds: Kinds(), Runs: 1, Parallel: 1}, filepath.Join(file, "x")); err == nil || !strings.Contains(err.Error(), "cannot be made") {
		t.Errorf("a directory under a file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out := filepath.Join(t.TempDir(), "x")
	if _, _, err := Run(ctx, Config{Kinds: Kinds(), Runs: 1, Parallel: 1}, out); err == nil {
		t.Error("a recording that was cancelled ended well")
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a recording that was cancelled left a directory")
	}
}
