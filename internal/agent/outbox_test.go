package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
	"github.com/tardigrade-recovery/tardigrade/internal/spool"
)

var load = fleet.NewSchema([]string{"load_1m"})

func numbered(i int) *fleet.Sample {
	return &fleet.Sample{Host: "h1", Time: time.Unix(int64(i), 0).UTC(), Boot: "b", Schema: load, Values: []float64{float64(i)}}
}

// road is a bus that can be away.
type road struct {
	mu   sync.Mutex
	away bool
	// most is how many samples it takes before it fails, 0 for all.
	most int
	got  []float64
}

func (r *road) publish(ctx context.Context, samples []*fleet.Sample) (int, error) {
	r.mu.Lock()
	away, most := r.away, r.most
	r.mu.Unlock()
	if away {
		<-ctx.Done() // a partition answers nothing
		return 0, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, s := range samples {
		if most > 0 && i == most {
			return i, errors.New("the bus stopped in the middle")
		}
		r.got = append(r.got, s.Values[0])
	}
	return len(samples), nil
}

func (r *road) set(away bool, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away, r.most = away, most
}

func (r *road) inOrder(t *testing.T, n int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) != n {
		t.Fatalf("%d samples came, want %d", len(r.got), n)
	}
	for i, v := range r.got {
		if v != float64(i) {
			t.Fatalf("sample %d is %v", i, v)
		}
	}
}

func newOutbox(t *testing.T, dir string) *outbox {
	t.Helper()
	b := &outbox{host: "h1", log: slog.New(slog.DiscardHandler), some: make(chan struct{}, 1)}
	if dir != "" {
		s, err := spool.Open(dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		b.spool = s
	}
	return b
}

// TestPartition takes a sample a second while the bus is away for ten minutes.
func TestPartition(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "disk": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, b := &road{}, newOutbox(t, dir)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { b.send(ctx, r.publish); close(done) }()
				for i := range 900 {
					r.set(i >= 100 && i < 700, 0)
					b.put(numbered(i))
					time.Sleep(time.Second)
				}
				synctest.Wait()
				r.inOrder(t, 900)
				cancel()
				<-done
			})
		})
	}
}

// TestARestartInAPartition ends the agent while the bus is away.
func TestARestartInAPartition(t *testing.T) {
	dir := t.TempDir()
	r := &road{away: true}
	next := 0
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			b := newOutbox(t, dir)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { b.send(ctx, r.publish); close(done) }()
			for range 50 {
				b.put(numbered(next))
				next++
				time.Sleep(time.Second)
			}
			cancel()
			<-done
		})
	}
	r.set(false, 0)
	synctest.Test(t, func(t *testing.T) {
		b := newOutbox(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { b.send(ctx, r.publish); close(done) }()
		synctest.Wait()
		r.inOrder(t, 150)
		cancel()
		<-done
	})
}

// TestABusThatStopsInTheMiddle takes seven samples of each batch.
func TestABusThatStopsInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, b := &road{away: true}, newOutbox(t, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { b.send(ctx, r.publish); close(done) }()
		for i := range 100 {
			b.put(numbered(i))
		}
		time.Sleep(10 * time.Second)
		r.set(false, 7)
		time.Sleep(time.Minute)
		synctest.Wait()
		r.inOrder(t, 100)
		cancel()
		<-done
	})
}

// TestTheDiskTakesNothing has a spool whose directory went away.
func TestTheDiskTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r, b := &road{away: true}, newOutbox(t, dir)
		removeAll(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { b.send(ctx, r.publish); close(done) }()
		for i := range memorySamples + 100 {
			b.put(numbered(i))
			time.Sleep(time.Second)
		}
		r.set(false, 0)
		time.Sleep(time.Minute)
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := len(r.got); n < memorySamples-10 || r.got[n-1] != float64(memorySamples+99) {
			t.Errorf("%d samples came", n)
		}
		cancel()
		<-done
	})
}

// The disk fails while samples are on it: the host is watched on.
func TestADiskThatFailsHidesNoHost(t *testing.T) {
	for name, fail := range map[string]func(dir string) error{
		"unreadable": func(dir string) error { return os.RemoveAll(dir) },
		"read-only":  func(dir string) error { return syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "") },
	} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			smalldisk.Mount(t, dir, "size=1m")
			before := newOutbox(t, dir)
			for i := range 100 {
				before.put(numbered(i))
			}
			before.keep(before.take())
			before.spool.Close()
			r, b := &road{}, newOutbox(t, dir)
			if err := fail(dir); err != nil && name == "read-only" {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { b.send(ctx, r.publish); close(done) }()
			for i := range 60 {
				b.put(numbered(100 + i))
				time.Sleep(time.Second)
			}
			r.mu.Lock()
			if n := len(r.got); n < 60 || n > 160 || r.got[n-1] != 159 {
				t.Errorf("%s: %d samples came", name, n)
			}
			r.mu.Unlock()
			cancel()
			<-done
		})
	}
}

func removeAll(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}
