package jobs

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/train"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

// TestMain is also the process of a training.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "training":
			if err := Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "hanging":
			fmt.Println(`{"stage":"hanging","done":0.1}`)
			time.Sleep(time.Hour) // longer than any test
		case "crashing":
			fmt.Fprintln(os.Stderr, "a crash of its own")
			os.Exit(3)
		case "killed":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // nothing more happens
		case "lying":
			os.NewFile(3, "model").WriteString("tardigrade model 1\nnonsense")
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func child(t *testing.T, how string) Child {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Child{Program: program, Args: []string{how}, MemoryMiB: 512, Timeout: 10 * time.Minute, Dir: t.TempDir()}
}

// table writes a CSV of so many rows whose cells f gives.
func table(t *testing.T, header string, rows int, f func(r *rand.Rand, i int) string) string {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	b.WriteString(header + "\n")
	for i := range rows {
		b.WriteString(f(r, i) + "\n")
	}
	return write(t, "data.csv", b.String())
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func good(r *rand.Rand, i int) string {
	odd := 0
	a, b := r.NormFloat64(), r.NormFloat64()
	if i%50 == 49 {
		odd, a = 1, a+9
	}
	return fmt.Sprintf("%g,%g,%g,%d", a, a+b, b, odd)
}

func TestTrainsInAProcess(t *testing.T) {
	path := table(t, "a,b,c,odd", 3000, good)
	for _, kind := range registry.Kinds() {
		seen := false
		file, err := child(t, "training").Run(t.Context(), train.Spec{Kind: kind, CSV: path, Label: "odd", Code: "test"}, func(stage string, done float64) {
			seen = seen || stage != "" && done >= 0 && done <= 1
		})
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		h, state, err := registry.Decode(file)
		if err != nil || h.Kind != kind || h.Code != "test" || !seen || h.Reference == nil || len(h.Series) < 2 {
			t.Errorf("%s: %+v, %v, progress %v", kind, h, err, seen)
		}
		if kind == registry.KindAnomaly {
			if _, err := stream.Unmarshal(anomaly.Method, state); err != nil || h.Metrics["auc_roc"] < 0.9 {
				t.Errorf("%v, %v", err, h.Metrics)
			}
		}
	}
}

// What cannot be learned from is said clearly, and nothing comes of it.
func TestBadData(t *testing.T) {
	var wide strings.Builder
	wide.WriteString("odd")
	for i := range 1_000_000 {
		fmt.Fprintf(&wide, ",c%d", i)
	}
	cut := func() string {
		path := filepath.Join(t.TempDir(), "data.csv.gz")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		z := gzip.NewWriter(f)
		r := rand.New(rand.NewPCG(1, 2))
		fmt.Fprintln(z, "a,b,c,odd")
		for i := range 3000 {
			fmt.Fprintln(z, good(r, i))
		}
		z.Close()
		info, _ := f.Stat()
		f.Truncate(info.Size() / 2)
		f.Close()
		return path
	}
	for name, c := range map[string]struct {
		path string
		kind registry.Kind
		want string
	}{
		"all NaN":           {table(t, "a,b,odd", 1000, func(*rand.Rand, int) string { return "NaN,NaN,0" }), registry.KindAnomaly, "missing"},
		"one class":         {table(t, "a,b,odd", 1000, func(r *rand.Rand, _ int) string { return fmt.Sprintf("%g,%g,0", r.Float64(), r.Float64()) }), registry.KindFailure, "one class"},
		"the other class":   {table(t, "a,b,odd", 1000, func(r *rand.Rand, _ int) string { return fmt.Sprintf("%g,%g,1", r.Float64(), r.Float64()) }), registry.KindFailure, "one class"},
		"nothing is normal": {table(t, "a,b,odd", 1000, func(r *rand.Rand, _ int) string { return fmt.Sprintf("%g,%g,1", r.Float64(), r.Float64()) }), registry.KindAnomaly, "normal"},
		"constant":          {table(t, "a,b,odd", 1000, func(_ *rand.Rand, i int) string { return fmt.Sprintf("1,2,%d", i%2) }), registry.KindFailure, "constant"},
		"constant normal":   {table(t, "a,b,odd", 1000, func(_ *rand.Rand, i int) string { return "1,2,0" }), registry.KindAnomaly, "constant"},
		"label":             {table(t, "a,b,odd", 1000, func(*rand.Rand, int) string { return "1,2,maybe" }), registry.KindFailure, "0 or 1"},
		"no label":          {table(t, "a,b,even", 1000, func(*rand.Rand, int) string { return "1,2,0" }), registry.KindFailure, "odd"},
		"ten rows":          {table(t, "a,b,c,odd", 10, good), registry.KindAnomaly, "needed"},
		"ten rows to fail":  {table(t, "a,b,c,odd", 10, good), registry.KindFailure, "class"},
		"a million columns": {write(t, "wide.csv", wide.String()+"\n"), registry.KindAnomaly, "columns"},
		"cut off":           {cut(), registry.KindAnomaly, "cut off"},
		"no such file":      {filepath.Join(t.TempDir(), "none.csv"), registry.KindAnomaly, "no such file"},
		"not text":          {write(t, "data.csv", "\x00\x01\x02"), registry.KindAnomaly, ""},
		"empty":             {write(t, "data.csv", ""), registry.KindFailure, "empty"},
	} {
		_, err := child(t, "training").Run(t.Context(), train.Spec{Kind: c.kind, CSV: c.path, Label: "odd"}, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// NaN among numbers is a missing value and no reason to refuse.
func TestSomeNaN(t *testing.T) {
	path := table(t, "a,b,c,odd", 2000, func(r *rand.Rand, i int) string {
		cell := func() string {
			if r.Float64() < 0.05 {
				return "NaN"
			}
			return fmt.Sprint(r.NormFloat64())
		}
		return fmt.Sprintf("%s,%s,%s,%d", cell(), cell(), cell(), i%2)
	})
	for _, kind := range registry.Kinds() {
		if _, err := child(t, "training").Run(t.Context(), train.Spec{Kind: kind, CSV: path, Label: "odd"}, nil); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestLimitsOfAProcess(t *testing.T) {
	path := table(t, "a,b,c,odd", 200_000, good)
	small := child(t, "training")
	small.MemoryMiB = leastMemory
	if _, err := small.Run(t.Context(), train.Spec{Kind: registry.KindFailure, CSV: path, Label: "odd"}, nil); !errors.Is(err, ErrMemory) {
		t.Errorf("with %d MiB: %v", leastMemory, err)
	}
	short := child(t, "hanging")
	short.Timeout = 200 * time.Millisecond
	if _, err := short.Run(t.Context(), train.Spec{Kind: registry.KindAnomaly, CSV: path}, nil); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a training that hangs: %v", err)
	}
	if _, err := child(t, "crashing").Run(t.Context(), train.Spec{Kind: registry.KindAnomaly, CSV: path}, nil); err == nil || !strings.Contains(err.Error(), "a crash of its own") {
		t.Errorf("a training that crashes: %v", err)
	}
	if _, err := child(t, "lying").Run(t.Context(), train.Spec{Kind: registry.KindAnomaly, CSV: path}, nil); !errors.Is(err, registry.ErrFile) {
		t.Errorf("a training that writes nonsense: %v", err)
	}
}

// Somebody who kills the process, such as a kernel that has no memory left, is said.
func TestAKilledProcess(t *testing.T) {
	_, err := child(t, "killed").Run(t.Context(), train.Spec{Kind: registry.KindAnomaly, CSV: "x"}, nil)
	if err == nil || !strings.Contains(err.Error(), "killed by somebody else") {
		t.Errorf("%v", err)
	}
}

func TestCancelKillsTheProcess(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	mine := errors.New("I said so")
	_, err := child(t, "hanging").Run(ctx, train.Spec{Kind: registry.KindAnomaly, CSV: "x"}, func(string, float64) { cancel(mine) })
	if !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
}

// Processes that the thread of a training has started go on when the training has ended.
func TestATrainingEndsNoOtherProcess(t *testing.T) {
	const all = 5 // threads come and go, but for the first one
	ended := make(chan error, all)
	var others []*exec.Cmd
	for range all {
		other := exec.Command("sleep", "1000")
		other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := onOneThread(other.Start); err != nil {
			t.Fatal(err)
		}
		others = append(others, other)
		go func() { ended <- other.Wait() }()
	}
	select {
	case err := <-ended:
		t.Errorf("one has ended: %v", err)
		ended <- err
	case <-time.After(200 * time.Millisecond):
	}
	for _, other := range others {
		other.Process.Kill()
	}
	for range all {
		<-ended
	}
}

// memory is a store.
type memory struct {
	mu   sync.Mutex
	jobs map[string]Job
}

func (m *memory) Put(_ context.Context, j Job) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jobs[j.ID] = j
	return nil
}

func (m *memory) All() (out []Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range m.jobs {
		out = append(out, j)
	}
	return out
}

func (m *memory) Delete(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.jobs, id)
	return nil
}

type queued struct {
	*Queue
	store *memory
	begun chan Job
	end   chan error
	stop  func()
}

func begin(t *testing.T, store *memory) *queued {
	t.Helper()
	w := &queued{store: store, begun: make(chan Job, 10), end: make(chan error)}
	q, err := NewQueue(t.Context(), store, func(ctx context.Context, j Job, progress func(string, float64)) (string, error) {
		progress("working", 0.5)
		w.begun <- j
		select {
		case err := <-w.end:
			return "model-of-" + j.ID, err
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w.Queue = q
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { q.Run(ctx) })
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(w.stop)
	return w
}

func (w *queued) submit(t *testing.T) Job {
	t.Helper()
	j, err := w.Submit(t.Context(), Job{Kind: registry.KindAnomaly, By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (w *queued) await(t *testing.T, id string, s State) Job {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		j, err := w.Find(id)
		if err != nil {
			t.Fatal(err)
		}
		if j.State == s {
			return j
		}
		if time.Now().After(end) {
			t.Fatalf("job is %s, not %s", j.State, s)
		}
	}
}

func TestOneAtATimeAndInOrder(t *testing.T) {
	w := begin(t, &memory{jobs: map[string]Job{}})
	a, b := w.submit(t), w.submit(t)
	if got := <-w.begun; got.ID != a.ID {
		t.Fatalf("%s began before %s", got.ID, a.ID)
	}
	if j, _ := w.Find(b.ID); j.State != Queued || !w.Busy(registry.KindAnomaly) || w.Busy(registry.KindFailure) {
		t.Errorf("the second is %s", j.State)
	}
	w.end <- nil
	if j := w.await(t, a.ID, Succeeded); j.Model != "model-of-"+a.ID || j.Done != 1 || j.Ended.IsZero() {
		t.Errorf("%+v", j)
	}
	<-w.begun
	w.end <- errors.New("it failed")
	if j := w.await(t, b.ID, Failed); j.Error != "it failed" || j.Model != "" {
		t.Errorf("%+v", j)
	}
	if all := w.All(); len(all) != 2 || all[0].ID != b.ID {
		t.Errorf("%+v", all)
	}
}

func TestCancel(t *testing.T) {
	w := begin(t, &memory{jobs: map[string]Job{}})
	a, b := w.submit(t), w.submit(t)
	<-w.begun
	if j, err := w.Cancel(t.Context(), b.ID, "bob"); err != nil || j.State != Cancelled {
		t.Errorf("one that waits: %+v, %v", j, err)
	}
	if _, err := w.Cancel(t.Context(), a.ID, "bob"); err != nil {
		t.Error(err)
	}
	if j := w.await(t, a.ID, Cancelled); j.Error != "cancelled by bob" {
		t.Errorf("%+v", j)
	}
	if _, err := w.Cancel(t.Context(), a.ID, "bob"); !errors.Is(err, ErrEnded) {
		t.Errorf("cancelled twice: %v", err)
	}
	if _, err := w.Cancel(t.Context(), "nonsense", "bob"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// Nothing runs for ever: what ran when the process ended is lost, and what waited runs.
func TestRestart(t *testing.T) {
	store := &memory{jobs: map[string]Job{}}
	w := begin(t, store)
	a, b := w.submit(t), w.submit(t)
	<-w.begun
	crashed := &memory{jobs: map[string]Job{}} // as a kill leaves it
	for _, j := range store.All() {
		crashed.jobs[j.ID] = j
	}
	w.stop()
	if j := store.jobs[a.ID]; j.State != Lost {
		t.Errorf("after the end of the process: %s", j.State)
	}
	again := begin(t, crashed)
	if j := again.await(t, a.ID, Lost); j.Error == "" || j.Ended.IsZero() {
		t.Errorf("%+v", j)
	}
	if got := <-again.begun; got.ID != b.ID {
		t.Errorf("%s began", got.ID)
	}
	again.end <- nil
	again.await(t, b.ID, Succeeded)
}

func TestAFullQueueSaysSo(t *testing.T) {
	w := begin(t, &memory{jobs: map[string]Job{}})
	w.submit(t)
	<-w.begun
	for range mostQueued {
		w.submit(t)
	}
	if _, err := w.Submit(t.Context(), Job{Kind: registry.KindAnomaly}); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
}

// Garbage is collected before the limit of a process is reached, which whole arenas count against.
func TestGarbageIsCollectedBeforeTheLimit(t *testing.T) {
	for limit := leastMemory; limit <= 1<<20; limit *= 2 {
		if from := collectFrom(limit); from < limit/2 || from+arenaMiB > max(limit, 2*arenaMiB) {
			t.Errorf("of %d MiB garbage is collected from %d on", limit, from)
		}
	}
}
