package collector

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// TestSampleThisHost samples the machine that the test runs on.
func TestSampleThisHost(t *testing.T) {
	s, err := New(Config{Host: "here", Deadline: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, reports := s.Sample(t.Context())
	for _, r := range reports {
		if r.Err != nil {
			t.Errorf("source %s: %v", r.Source, r.Err)
		}
	}
	// The kernel's ticks are 10 ms: wait until some have passed.
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
	}
	second, _ := s.Sample(t.Context())
	// Others may mount a file system meanwhile: then there are other series.
	if first.Schema != second.Schema && slices.Equal(first.Schema.Names(), second.Schema.Names()) {
		t.Errorf("the schema changed from %v to %v", first.Schema.Names(), second.Schema.Names())
	}
	if len(second.Values) != second.Schema.Len() {
		t.Fatalf("%d values for %d series", len(second.Values), second.Schema.Len())
	}
	known := 0
	for i, v := range second.Values {
		if math.IsInf(v, 0) {
			t.Errorf("%s is infinite", second.Schema.Name(i))
		}
		if !math.IsNaN(v) {
			known++
		}
	}
	if known < 80 {
		t.Errorf("%d values known, want at least 80", known)
	}
	if second.Boot == "" || second.Host != "here" || second.Time.Location() != time.UTC {
		t.Errorf("boot %q, host %q, time %v", second.Boot, second.Host, second.Time)
	}
	total, _ := second.Value("memory_total_bytes")
	available, _ := second.Value("memory_available_bytes")
	if !(available > 0 && available < total) {
		t.Errorf("memory: %v of %v bytes available", available, total)
	}
	sum := 0.0
	for _, mode := range []string{"cpu_busy_ratio", "cpu_iowait_ratio"} {
		v, ok := second.Value(mode)
		if !ok || v < 0 || v > 1 {
			t.Errorf("%s is %v, %v", mode, v, ok)
		}
		sum += v
	}
	if sum <= 0 || sum > 1+1e-9 {
		t.Errorf("busy and waiting together are %v of the time", sum)
	}
}

func TestConfigErrors(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, "host name is empty"},
		{Config{Host: "a b"}, "host name"},
		{Config{Host: "a", Interval: -1}, "must not be negative"},
		{Config{Host: "a", Units: []string{"../x.service"}}, "does not allow"},
		{Config{Host: "a", Units: []string{"libvirtd"}}, "libvirtd.service"},
		{Config{Host: "a", HostProc: t.TempDir()}, "not a mounted proc file system"},
	} {
		if _, err := New(c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v does not say %q", c.config, err, c.want)
		}
	}
}

// fake is a source that a test steers.
type fake func(ctx context.Context, f *frame) error

func (s fake) collect(ctx context.Context, f *frame) error { return s(ctx, f) }

// testSampler has the given sources, each with one metric of its own name. They have all the time that a busy machine
// needs; in a bubble it costs nothing to set a [Config.Deadline].
func testSampler(t *testing.T, clock func() instant, order []string, sources map[string]fake) *Sampler {
	t.Helper()
	proc := t.TempDir()
	write(t, filepath.Join(proc, "stat"), "")
	write(t, filepath.Join(proc, "sys/kernel/random/boot_id"), "boot-1\n")
	h := &host{clock: clock}
	s, err := newSampler(Config{Host: "test", HostProc: proc, Interval: time.Second, Deadline: time.Minute}, h)
	if err != nil {
		t.Fatal(err)
	}
	s.workers = nil
	for _, name := range order {
		metrics := append([]Metric{gauge(name, "1", "", "")}, each("thing", gauge(name+"_each", "1", "", ""))...)
		s.workers = append(s.workers, newWorker(description{name: name, metrics: metrics}, sources[name], 2))
	}
	return s
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func bubbleClock() instant {
	t := time.Now()
	since := t.Sub(time.Unix(0, 0))
	return instant{wall: t, running: since, boot: since}
}

func TestHangingSourceIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int64
		s := testSampler(t, bubbleClock, []string{"a", "stuck", "b"}, map[string]fake{
			"a": func(_ context.Context, f *frame) error { f.set("a", 1); return nil },
			"stuck": func(_ context.Context, f *frame) error {
				if calls.Add(1) == 1 {
					<-release
				}
				f.set("stuck", 2)
				return nil
			},
			"b": func(_ context.Context, f *frame) error { f.set("b", 3); return nil },
		})
		s.host.config.Deadline = 100 * time.Millisecond
		defer s.Close()
		check := func(want [3]float64, states [3]SourceState) {
			t.Helper()
			begin := time.Now()
			sample, reports := s.Sample(t.Context())
			if took := time.Since(begin); took > 101*time.Millisecond {
				t.Errorf("the sample took %v", took)
			}
			for i := range want {
				if got := sample.Values[i]; got != want[i] && !(math.IsNaN(got) && math.IsNaN(want[i])) {
					t.Errorf("%s is %v, want %v", sample.Schema.Name(i), got, want[i])
				}
				if reports[i].State != states[i] {
					t.Errorf("source %s is %s, want %s", reports[i].Source, reports[i].State, states[i])
				}
				if (reports[i].State == SourceHung) != (reports[i].Err != nil) {
					t.Errorf("source %s is %s with error %v", reports[i].Source, reports[i].State, reports[i].Err)
				}
			}
		}
		nan := math.NaN()
		hung := [3]SourceState{SourceRead, SourceHung, SourceRead}
		check([3]float64{1, nan, 3}, hung)
		time.Sleep(time.Second)
		begin := time.Now()
		check([3]float64{1, nan, 3}, hung)
		if time.Since(begin) != 0 || calls.Load() != 1 {
			t.Errorf("the second sample took %v and the stuck source was started %d times", time.Since(begin), calls.Load())
		}
		close(release)
		synctest.Wait()
		check([3]float64{1, 2, 3}, [3]SourceState{SourceRead, SourceRead, SourceRead})
	})
}

// TestManyHangingSources has more sources hang at once than there is time for.
func TestManyHangingSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		names := []string{"a", "b", "c", "d", "e", "f"}
		sources := make(map[string]fake)
		for _, n := range names {
			sources[n] = func(_ context.Context, f *frame) error { <-release; f.set(n, 1); return nil }
		}
		s := testSampler(t, bubbleClock, names, sources)
		s.host.config.Deadline = 100 * time.Millisecond
		begin := time.Now()
		_, reports := s.Sample(t.Context())
		if took := time.Since(begin); took > 301*time.Millisecond {
			t.Errorf("the sample took %v, want at most three deadlines of 100 ms", took)
		}
		for _, r := range reports {
			if r.Err == nil {
				t.Errorf("source %s reported no error", r.Source)
			}
		}
		close(release)
		synctest.Wait()
		sample, _ := s.Sample(t.Context())
		for i, v := range sample.Values {
			if v != 1 {
				t.Errorf("%s is %v after the end of the hang", sample.Schema.Name(i), v)
			}
		}
	})
}

func TestCancelledSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		s := testSampler(t, bubbleClock, []string{"a"}, map[string]fake{
			"a": func(context.Context, *frame) error { <-release; return nil },
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		begin := time.Now()
		sample, _ := s.Sample(ctx)
		if time.Since(begin) != 10*time.Millisecond || !math.IsNaN(sample.Values[0]) {
			t.Errorf("after %v the sample has %v", time.Since(begin), sample.Values)
		}
	})
}

func TestFailingAndPanickingSources(t *testing.T) {
	boom := errors.New("boom")
	s := testSampler(t, now, []string{"fails", "panics", "unknown", "fine"}, map[string]fake{
		"fails":   func(_ context.Context, f *frame) error { f.set("fails", 1); return boom },
		"panics":  func(context.Context, *frame) error { var p *file; _ = p.path; return nil },
		"unknown": func(_ context.Context, f *frame) error { f.set("no_such_metric", 1); return nil },
		"fine":    func(_ context.Context, f *frame) error { f.set("fine", math.Inf(1)); return nil },
	})
	sample, reports := s.Sample(t.Context())
	if !errors.Is(reports[0].Err, boom) || reports[0].State != SourceFailed || sample.Values[0] != 1 {
		t.Errorf("what was read before the error: %v, %+v", sample.Values[0], reports[0])
	}
	for _, i := range []int{1, 2} {
		if reports[i].Err == nil || reports[i].State != SourceFailed {
			t.Errorf("source %s: %+v", reports[i].Source, reports[i])
		}
	}
	if !math.IsNaN(sample.Values[3]) {
		t.Errorf("an infinity came through as %v", sample.Values[3])
	}
}

func TestSchemaStaysWhileSeriesStay(t *testing.T) {
	present := []string{"x"}
	s := testSampler(t, now, []string{"a", "b"}, map[string]fake{
		"a": func(_ context.Context, f *frame) error {
			for _, p := range present {
				if f.admit(p) {
					f.setOf("a_each", p, 1)
				}
			}
			return nil
		},
		"b": func(_ context.Context, f *frame) error { f.set("b", 1); return nil },
	})
	take := func() (*fleet.Schema, []string) {
		sample, reports := s.Sample(t.Context())
		var names []string
		for i, n := range sample.Schema.Names() {
			if !math.IsNaN(sample.Values[i]) {
				names = append(names, n)
			}
		}
		if reports[0].Dropped > 0 {
			names = append(names, "dropped")
		}
		return sample.Schema, names
	}
	one, known := take()
	if want := []string{"b", "a_each{x}"}; !slices.Equal(known, want) {
		t.Fatalf("known %v, want %v", known, want)
	}
	if again, _ := take(); again != one {
		t.Error("the schema changed though no series came or went")
	}
	present = []string{"y"}
	two, known := take()
	if want := []string{"a", "b", "a_each{x}", "a_each{y}"}; !slices.Equal(two.Names(), want) {
		t.Errorf("schema %v, want %v", two.Names(), want)
	}
	if want := []string{"b", "a_each{y}"}; !slices.Equal(known, want) {
		t.Errorf("known %v, want %v", known, want)
	}
	// There is place for two: x has been gone longest and gives way to z.
	present = []string{"y", "z"}
	three, _ := take()
	if want := []string{"a", "b", "a_each{y}", "a_each{z}"}; !slices.Equal(three.Names(), want) {
		t.Errorf("schema %v, want %v", three.Names(), want)
	}
	// Nobody is gone: the third finds no place, which is said.
	present = []string{"y", "z", "w"}
	four, known := take()
	if four != three || known[len(known)-1] != "dropped" {
		t.Errorf("schema %v, known %v", four.Names(), known)
	}
}

func TestRates(t *testing.T) {
	at := instant{wall: time.Unix(1000, 0), running: time.Second, boot: time.Second}
	raw := uint64(0)
	s := testSampler(t, func() instant { return at }, []string{"c"}, map[string]fake{
		"c": func(_ context.Context, f *frame) error {
			f.rateOf("c", "", raw, 1, counter32(1e9))
			return nil
		},
	})
	nan := math.NaN()
	for _, step := range []struct {
		what    string
		raw     uint64
		running time.Duration
		boot    string
		want    float64
	}{
		{"first", 100, time.Second, "", nan},
		{"steady", 150, time.Second, "", 50},
		{"missed samples", 1150, 10 * time.Second, "", 100},
		// While suspended, running time stands still, as the counter does.
		{"suspended", 1250, time.Second, "", 100},
		{"restarted service", 10, time.Second, "", nan},
		{"after it", 20, time.Second, "", 10},
		{"up to the wrap", 1<<32 - 10, 2 * time.Second, "", float64(1<<32-30) / 2},
		{"wrapped at 32 bits", 5, time.Second, "", 15},
		{"to the upper half again", 3<<30 + 5, 4 * time.Second, "", 3 << 28},
		{"reset that looks like a wrap, too fast to be one", 1<<30 - 1, time.Second, "", nan},
		{"to 64 bits", math.MaxUint64 - 4, time.Second, "", float64(math.MaxUint64-4) - (1<<30 - 1)},
		{"wrapped at 64 bits", 5, time.Second, "", 10},
		{"another boot", 1000, time.Second, "boot-2", nan},
		{"after the boot", 1001, time.Second, "", 1},
		{"gone for longer than an average says anything", 1000000, time.Hour, "", nan},
		{"no time passed", 1000001, 0, "", nan},
	} {
		raw = step.raw
		at.running += step.running
		if step.boot != "" {
			write(t, s.bootID.path, step.boot+"\n")
		}
		sample, _ := s.Sample(t.Context())
		if got := sample.Values[0]; got != step.want && !(math.IsNaN(got) && math.IsNaN(step.want)) {
			t.Errorf("%s: %v a second, want %v", step.what, got, step.want)
		}
	}
}

func TestClockStepAndSuspension(t *testing.T) {
	at := instant{wall: time.Unix(1000, 0), running: time.Second, boot: 2 * time.Second}
	h := &host{clock: func() instant { return at }, adjust: func() (clockState, error) { return clockState{synchronized: true}, nil }, proc: t.TempDir()}
	write(t, filepath.Join(h.proc, "uptime"), "12345.67 100.0\n")
	src := newClockSource(h)
	f := newFrame(clockMetrics, 0)
	read := func() (step, suspended float64) {
		f.begin(at.running)
		if err := src.collect(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		return f.values[f.index[seriesKey{"clock_step_seconds", ""}]], f.values[f.index[seriesKey{"clock_suspended_seconds", ""}]]
	}
	if step, suspended := read(); !math.IsNaN(step) || !math.IsNaN(suspended) {
		t.Errorf("at first: step %v, suspended %v", step, suspended)
	}
	at = instant{wall: time.Unix(1001, 1000), running: 2 * time.Second, boot: 3 * time.Second}
	if step, suspended := read(); step != 0 || suspended != 0 {
		t.Errorf("a second later: step %v, suspended %v", step, suspended)
	}
	at = instant{wall: time.Unix(941, 1000), running: 3 * time.Second, boot: 64 * time.Second}
	if step, suspended := read(); step != -121 || suspended != 60 {
		t.Errorf("suspended for a minute, set back by two: step %v, suspended %v", step, suspended)
	}
	if v := f.values[f.index[seriesKey{"uptime_seconds", ""}]]; v != 12345.67 {
		t.Errorf("uptime %v", v)
	}
}

func TestCatalogue(t *testing.T) {
	units := map[string]string{
		"bytes": "_bytes", "bytes/s": "_bytes_per_second", "ratio": "_ratio", "1/s": "_per_second",
		"seconds": "_seconds", "celsius": "_celsius",
	}
	seen := make(map[string]bool)
	for _, m := range Catalogue() {
		if seen[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[m.Name] = true
		if suffix, ok := units[m.Unit]; ok && !strings.HasSuffix(m.Name, suffix) {
			t.Errorf("%s has the unit %s, which its name does not say", m.Name, m.Unit)
		}
		if strings.Trim(m.Name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Errorf("%s is not snake_case", m.Name)
		}
		if m.Help == "" || m.Source == "" || m.Group == "" || m.Kind == "" {
			t.Errorf("%s is not described: %+v", m.Name, m)
		}
		if (m.Kind == KindRate) != strings.HasSuffix(m.Unit, "/s") {
			t.Errorf("%s is a %s in %s", m.Name, m.Kind, m.Unit)
		}
	}
	var b strings.Builder
	if err := WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(b.String(), "\n"); lines != len(seen)+2 {
		t.Errorf("the table has %d lines for %d metrics", lines, len(seen))
	}
}
