package collector

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

var processMetrics = []Metric{
	gauge("processes_total", "1", "processes", "/proc/*/stat"),
	gauge("processes_blocked", "1", "processes in uninterruptible sleep (D state)", "/proc/*/stat"),
	gauge("processes_blocked_long", "1", "processes in uninterruptible sleep at this look and at the one before", "/proc/*/stat"),
	gauge("processes_zombie", "1", "processes that ended and whose parent does not care", "/proc/*/stat"),
	gauge("processes_stopped", "1", "processes that were stopped", "/proc/*/stat"),
}

// maxScanned bounds the processes that one look goes through. A host with more
// has its first ones looked at.
const maxScanned = 8192

// processSource looks at the state of each process. That costs some
// microseconds for each, so it looks only now and then.
type processSource struct {
	proc    string
	blocked map[process]bool // at the look before
	buf     []byte
}

// process is told from another one with the same number by its start.
type process struct{ pid, start uint64 }

func newProcessSource(h *host) source {
	return &processSource{proc: h.proc, buf: make([]byte, 512)}
}

func (s *processSource) collect(ctx context.Context, f *frame) error {
	dir, err := os.Open(s.proc)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	var total, blocked, long, zombie, stopped int
	now := make(map[process]bool)
	for total < maxScanned && ctx.Err() == nil {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if name[0] < '1' || name[0] > '9' {
				continue
			}
			state, start, ok := s.look(fd, name)
			if !ok {
				continue // it is gone
			}
			total++
			switch state {
			case 'D':
				blocked++
				pid, _ := strconv.ParseUint(name, 10, 64)
				p := process{pid, start}
				now[p] = true
				if s.blocked[p] {
					long++
				}
			case 'Z':
				zombie++
			case 'T', 't':
				stopped++
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	first := s.blocked == nil
	s.blocked = now
	f.set("processes_total", float64(total))
	f.set("processes_blocked", float64(blocked))
	f.set("processes_zombie", float64(zombie))
	f.set("processes_stopped", float64(stopped))
	if !first {
		f.set("processes_blocked_long", float64(long))
	}
	return nil
}

// look reads the state and the start time of a process.
func (s *processSource) look(dir int, pid string) (state byte, start uint64, ok bool) {
	// By hand, since an os.File costs five allocations.
	fd, err := unix.Openat(dir, pid+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false
	}
	n, err := unix.Read(fd, s.buf)
	unix.Close(fd)
	if err != nil || n <= 0 {
		return 0, 0, false
	}
	// The name of a program may have anything in it, parentheses too.
	i := bytes.LastIndexByte(s.buf[:n], ')')
	if i < 0 {
		return 0, 0, false
	}
	field, rest := cutField(s.buf[i+1 : n])
	if len(field) != 1 {
		return 0, 0, false
	}
	state = field[0]
	for range 18 { // fields 4 to 21
		_, rest = cutField(rest)
	}
	start, _, ok = cutUint(rest)
	return state, start, ok
}
