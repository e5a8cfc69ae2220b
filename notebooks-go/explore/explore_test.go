package explore

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
)

func simulated(t *testing.T) *Data {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "set")
	if err := Simulate(dir, 3); err != nil {
		t.Fatal(err)
	}
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestEachKindIsCounted(t *testing.T) {
	s, err := simulated(t).Overview()
	if err != nil {
		t.Fatal(err)
	}
	text := s.Tables[0].Markdown()
	for _, k := range append(simulator.Kinds(), simulator.Backup, simulator.Deploy, simulator.BatchJob) {
		if !strings.Contains(text, "| "+string(k)+" |") {
			t.Errorf("no %s in\n%s", k, text)
		}
	}
}

// TestMarksAreThoseOfTheFault: each fault moves what the simulator's documentation says it does.
func TestMarksAreThoseOfTheFault(t *testing.T) {
	d := simulated(t)
	for k, metric := range map[simulator.Kind]string{
		simulator.MemoryLeak: "memory_available_bytes", simulator.DescriptorLeak: "file_handles_used_ratio", simulator.DiskWear: "disk_read_latency_max_seconds",
		simulator.ECCStorm: "edac_corrected_errors_per_second", simulator.Overheating: "temperature_max_celsius", simulator.ServiceHang: "units_unhealthy",
	} {
		f, err := d.longest(k)
		if err != nil {
			t.Fatal(err)
		}
		moved, err := d.moved(f)
		if err != nil {
			t.Fatal(err)
		}
		z := moved[slices.Index(marked, metric)]
		if k == simulator.MemoryLeak {
			z = -z
		}
		if z < 5 {
			t.Errorf("a %s moves %s by %.1f deviations", k, metric, z)
		}
	}
}

func TestALeakIsNotGivenBackAndABatchJobIs(t *testing.T) {
	s, err := simulated(t).LookAlikes()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range s.Tables[0].Rows {
		want := "yes"
		if row[0] == string(simulator.MemoryLeak) {
			want = "no"
		}
		if row[len(row)-1] != want {
			t.Errorf("%v: given back: want %s", row, want)
		}
	}
}

// TestThePageIsTheSameEachTime renders it twice, and compares it with the one that is kept.
func TestThePageIsTheSameEachTime(t *testing.T) {
	first, err := Page(1)
	if err != nil {
		t.Fatal(err)
	}
	a, err := first.Render()
	if err != nil {
		t.Fatal(err)
	}
	second, err := Page(1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := second.Render()
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(a, b, bytes.Equal) {
		t.Error("the same seed gives another page")
	}
	for name, data := range a {
		if len(data) > 100_000 {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		if _, err := os.Stat(filepath.Join("..", "pages", name)); err != nil {
			t.Errorf("%v: run make pages", err)
		}
	}
}

func TestWhatIsNotThereIsNamed(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("an empty directory was opened")
	}
	d := simulated(t)
	if _, err := d.Fault("flood"); err == nil || !strings.Contains(err.Error(), "flood") {
		t.Errorf("%v", err)
	}
	d.faults = nil
	if _, err := d.Overview(); err == nil || !strings.Contains(err.Error(), "faults.jsonl") {
		t.Errorf("%v", err)
	}
}

// TestLabelledSeriesAreShown makes a directory whose second column moves in its only event.
func TestLabelledSeriesAreShown(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, compressed bool, text string) {
		t.Helper()
		var b bytes.Buffer
		if compressed {
			z := gzip.NewWriter(&b)
			if _, err := z.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			b.WriteString(text)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	train, test := "calm,moves\n", "calm,moves,label\n"
	for i := range 100 {
		train += fmt.Sprintf("%d,%d\n", i%3, i%5)
		moves, label := i%5, 0
		if i >= 40 && i < 60 {
			moves, label = 50, 1
		}
		test += fmt.Sprintf("%d,%d,%d\n", i%3, moves, label)
	}
	write("series.csv", false, "series,vus_window\none,10\n")
	write("one.train.csv.gz", true, train)
	write("one.test.csv.gz", true, test)
	p, err := PublicPage(dir, "made up")
	if err != nil {
		t.Fatal(err)
	}
	s := p.Sections[0]
	if got := strings.Join(s.Tables[0].Rows[0], " "); got != "one 2 100 100 20.0 % 1 20" {
		t.Error(got)
	}
	if title := s.Figures[0].Plots[0].Title.Text; !strings.HasPrefix(title, "moves, ") {
		t.Errorf("what moved most is %s", title)
	}
	if _, err := p.Render(); err != nil {
		t.Error(err)
	}
	if _, err := PublicPage(t.TempDir(), ""); err == nil {
		t.Error("an empty directory has a page")
	}
}
