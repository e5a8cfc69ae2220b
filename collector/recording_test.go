package collector

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the golden samples anew")

// TestRecordedHosts samples each host of testdata as it was and compares with the
// golden sample beside it. Files "made by hand" say so in their comment.
func TestRecordedHosts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var r Recording
			if err := json.Unmarshal(archive.Comment, &r); err != nil {
				t.Fatalf("its comment: %v", err)
			}
			if r.Made != "recorded" && !strings.HasPrefix(r.Made, "made by hand after ") {
				t.Errorf("it does not say how it was made: %q", r.Made)
			}
			got := replay(t, archive, r)
			golden := strings.TrimSuffix(path, ".txtar") + ".golden.json"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("the sample is not that of %s (go test ./collector -run Recorded -update writes it anew):\n%s", golden, difference(string(want), string(got)))
			}
		})
	}
}

// replay takes the two samples of a recording and returns the second.
func replay(t *testing.T, archive *txtar.Archive, r Recording) []byte {
	t.Helper()
	dir := t.TempDir()
	lay := func(tree string) {
		for _, f := range archive.Files {
			name, ok := strings.CutPrefix(f.Name, tree+"/")
			if !ok {
				continue
			}
			write(t, filepath.Join(dir, name), string(f.Data)) // in place, as a kernel's files change
		}
	}
	lay("first")
	clock := instant{wall: r.Time, running: time.Hour, boot: time.Hour}
	h := &host{
		clock: func() instant { return clock },
		statfs: func(string) (usage, error) {
			return usage{Total: 1000, Available: 400, Inodes: 100, InodesFree: 50}, nil
		},
		adjust: func() (clockState, error) { return clockState{}, nil },
		smart: drives{
			nvme: func(string, []byte) error { return unix.ENOENT },
			ata:  func(string, []byte) error { return unix.ENOENT },
		},
	}
	c := Config{Host: "recorded", Interval: time.Minute, Deadline: time.Minute, Units: r.Units,
		HostProc: filepath.Join(dir, "proc"), HostSys: filepath.Join(dir, "sys"), HostDev: filepath.Join(dir, "dev")}
	s, err := newSampler(c, h)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Sample(t.Context())
	lay("second")
	step := time.Duration(r.IntervalSeconds * float64(time.Second))
	if step <= 0 {
		t.Fatalf("its interval is %v s", r.IntervalSeconds)
	}
	clock.wall, clock.running, clock.boot = clock.wall.Add(step), clock.running+step, clock.boot+step
	sample, reports := s.Sample(t.Context())
	values := make(map[string]json.Number)
	for i, name := range sample.Schema.Names() {
		v := sample.Values[i]
		if math.IsNaN(v) || ownOrUnrecorded(name) {
			continue
		}
		values[name] = json.Number(strconv.FormatFloat(v, 'g', 6, 64))
	}
	states := make(map[string]string)
	for _, r := range reports {
		states[r.Source] = string(r.State)
		if r.State == SourceHung {
			t.Errorf("source %s hung", r.Source)
		}
	}
	out, err := json.MarshalIndent(map[string]any{"sources": states, "values": values}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// ownOrUnrecorded is what is of the test's own process and clock, and what comes from a
// device that is no file.
func ownOrUnrecorded(name string) bool {
	return strings.HasPrefix(name, "agent_") || strings.HasPrefix(name, "clock_") || strings.HasPrefix(name, "kernel_log_") || strings.HasPrefix(name, "smart_")
}

// difference lists the lines that only one of two texts has.
func difference(want, got string) string {
	has := func(text string) map[string]bool {
		m := make(map[string]bool)
		for l := range strings.Lines(text) {
			m[l] = true
		}
		return m
	}
	var b strings.Builder
	w, g := has(want), has(got)
	for l := range strings.Lines(want) {
		if !g[l] {
			fmt.Fprintf(&b, "- %s", l)
		}
	}
	for l := range strings.Lines(got) {
		if !w[l] {
			fmt.Fprintf(&b, "+ %s", l)
		}
	}
	return b.String()
}

// TestRecordIsWhatASamplerReads records this machine and samples the recording: what
// comes out is what a sample of the machine itself has.
func TestRecordIsWhatASamplerReads(t *testing.T) {
	// Others may mount a file system meanwhile: what counts is what was there before and after.
	c := Config{Host: "this", Deadline: time.Minute}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Sample(t.Context())
	before, _ := s.Sample(t.Context())
	data, err := Record(t.Context(), c, "this machine", "test", 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	archive := txtar.Parse(data)
	var r Recording
	if err := json.Unmarshal(archive.Comment, &r); err != nil {
		t.Fatal(err)
	}
	var replayed struct{ Values map[string]float64 }
	if err := json.Unmarshal(replay(t, archive, r), &replayed); err != nil {
		t.Fatal(err)
	}
	after, _ := s.Sample(t.Context())
	var missing []string
	for i, name := range after.Schema.Names() {
		_, was := before.Value(name)
		if _, ok := replayed.Values[name]; !was || math.IsNaN(after.Values[i]) || ok || ownOrUnrecorded(name) {
			continue
		}
		missing = append(missing, name)
	}
	if len(missing) > 0 {
		t.Errorf("not in the recording: %v", missing)
	}
	for name, text := range map[string]string{"total memory": "memory_total_bytes", "the load": "load_1m"} {
		if _, ok := replayed.Values[text]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}
