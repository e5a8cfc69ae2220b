package record

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
)

// pace is the time between two steps of a fault.
const pace = 500 * time.Millisecond

// mostWaiting is how many requests the service takes before it refuses more.
const mostWaiting = 96

// Service is a small service of the recorded host, until ctx ends. Its health check works as its
// requests do: it opens a file, writes to its store, syncs its log, starts a program and computes. A fault
// that the file fault in the directory share names befalls it; store and log are directories.
func Service(ctx context.Context, listen, share, store, log string) error {
	s := &service{dir: store, log: log}
	go s.follow(ctx, filepath.Join(share, "fault"))
	server := &http.Server{Addr: listen, Handler: s}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type service struct {
	dir, log string

	mu      sync.Mutex
	waiting int
	memory  [][]byte
	files   []*os.File
	store   *os.File
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.work(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "well")
}

// work is what a request takes.
func (s *service) work(ctx context.Context) error {
	s.mu.Lock()
	waiting := s.waiting
	s.mu.Unlock()
	if waiting > mostWaiting {
		return fmt.Errorf("%d requests wait already", waiting)
	}
	data, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		return err
	}
	for range rounds {
		sum := sha256.Sum256(data)
		copy(data, sum[:])
	}
	// What the last request wrote goes when this one's is on the disk.
	for _, dir := range []string{s.dir, s.log} {
		if err := datadir.WriteFile(filepath.Join(dir, "request"), append(make([]byte, 256<<10), data...)); err != nil {
			return err
		}
	}
	return exec.CommandContext(ctx, "true").Run()
}

// rounds of a hash over a page are some 20 ms of a CPU.
const rounds = 4000

// follow waits for a fault and lets it grow.
func (s *service) follow(ctx context.Context, file string) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		kind, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		n++
		if err := s.worsen(Kind(strings.TrimSpace(string(kind))), n); err != nil {
			fmt.Fprintln(os.Stderr, err) // it is what the fault does: the next request will see it
		}
	}
}

// worsen is step n, from 1, of a fault of the service.
func (s *service) worsen(kind Kind, n int) error {
	switch kind {
	case MemoryLeak:
		block := make([]byte, 2<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		s.memory = append(s.memory, block)
	case DescriptorLeak:
		for range 3 {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return err
			}
			s.files = append(s.files, f)
		}
	case HungService:
		// Requests that wait for a lock which nobody gives back, each in a thread.
		s.mu.Lock()
		s.waiting++
		s.mu.Unlock()
		go func() {
			runtime.LockOSThread()
			f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
			if err == nil {
				_ = unix.Flock(int(f.Fd()), unix.LOCK_EX)
				select {}
			}
		}()
	case FullDisk:
		if s.store == nil {
			f, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err != nil {
				return err
			}
			s.store = f
		}
		_, err := s.store.Write(make([]byte, 512<<10))
		return err
	case ForkStorm:
		for range 1 + n/10 {
			if err := exec.Command("sh", "-c", "while :; do sleep 0.05; done").Start(); err != nil {
				return err
			}
		}
	}
	return nil
}
