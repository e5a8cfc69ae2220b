package diagnose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"
)

// source is where some files of an archive come from.
type source struct {
	// name is that of its only file, or of what a note in the manifest is about.
	name string
	// max bounds all files of the source together, in bytes.
	max int
	// hidden is true for what is compared with and is not packed.
	hidden bool
	// collect writes files. It may hang: then what it wrote until then is taken and
	// it is left alone.
	collect func(ctx context.Context, b *bin) error
}

// found is a file as a source gave it, or the note of a source that gave none.
type found struct {
	name      string
	data      []byte
	truncated bool
	note      string
	absent    bool
	hidden    bool
	modified  time.Time // zero unless the file's own time says something
}

// errNothing means that a source has nothing to tell on this host, which is no fault.
var errNothing = errors.New("there is none")

// bin is what a source writes its files into. It is closed when the time of the
// source is over; what is written after that is dropped.
type bin struct {
	mu     sync.Mutex
	left   int // bytes
	closed bool
	files  []found
}

// add adds a file. Of data that is larger than max, or than what is left for the
// source, the end is kept, from the beginning of a line. max 0 means no limit but the
// source's.
func (b *bin) add(name string, data []byte, max int) {
	b.addDated(name, data, max, time.Time{})
}

// addDated adds a file of which the time of its last change is known.
func (b *bin) addDated(name string, data []byte, max int, modified time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	for slices.ContainsFunc(b.files, func(f found) bool { return f.name == name }) {
		name += "+" // two names became the same by making them safe
	}
	room := b.left
	if max > 0 {
		room = min(room, max)
	}
	f := found{name: name, modified: modified}
	f.data, f.truncated = tail(data, room)
	b.left -= len(f.data)
	b.files = append(b.files, f)
}

// note says of a file that it is not complete.
func (b *bin) note(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	for i := range b.files {
		if b.files[i].name == name {
			b.files[i].note = clip(err.Error(), 500)
			return
		}
	}
	b.files = append(b.files, found{name: name, note: clip(err.Error(), 500), absent: true})
}

// tail returns a copy of at most max bytes from the end of data.
func tail(data []byte, max int) (end []byte, cut bool) {
	if len(data) <= max {
		return bytes.Clone(data), false
	}
	end = data[len(data)-max:]
	if i := bytes.IndexByte(end, '\n'); i >= 0 && data[len(data)-max-1] != '\n' {
		end = end[i+1:]
	}
	return bytes.Clone(end), true
}

// baselineFile is the journal from before the window, which is not packed.
const baselineFile = "journal-before.log"

// sources lists where everything comes from, the most telling first. Their limits
// together are at most MaxBytes, of which four parts of a hundred are for the units that
// others need (see [needed]).
func (c *Collector) sources(units []string, now time.Time) []source {
	share := c.share
	since := now.Add(-c.cfg.Window)
	all := c.unitSources(units, share(4, len(units)), share(22, len(units)), since)
	before := c.journal(baselineFile, c.cfg.MaxSourceBytes, c.cfg.MaxLines, "--since="+moment(since.Add(-c.cfg.Baseline)), "--until="+moment(since))
	before.hidden = true
	return append(all,
		c.journal("journal.log", share(13, 1), c.cfg.MaxLines, "--since="+moment(since)),
		before,
		c.kernelLog(share(10, 1), now),
		c.directory("pstore", "/sys/fs/pstore", "*", share(8, 1), 64),
		c.directory("pstore/kept", "/var/lib/systemd/pstore", "*", share(2, 1), 16),
		c.vmcores(share(3, 1)),
		c.processes(share(8, 1)),
		c.command("failed-units.txt", share(1, 1), "systemctl", "list-units", "--state=failed", "--all", "--plain", "--no-legend", "--no-pager"),
		c.command("filesystems.txt", share(1, 1), "df", "-P", "-T", "-l"),
		c.command("inodes.txt", share(1, 1), "df", "-P", "-i", "-l"),
		c.coredumps(share(1, 1)),
		c.copies("", share(1, 1), "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/mounts", "/proc/mdstat", "/proc/vmstat",
			"/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory"),
		c.copies("sockets", share(2, 1), "/proc/net/tcp"),
		c.copies("sockets", share(2, 1), "/proc/net/tcp6"),
		c.copies("sockets", share(1, 1), "/proc/net/unix"),
		c.directory("libvirt", "/var/log/libvirt", "*.log", share(4, 1), 16),
		c.directory("libvirt/qemu", "/var/log/libvirt/qemu", "*.log", share(8, 1), 64),
		c.telemetry(share(3, 1)),
	)
}

// share is a part of MaxBytes, divided among some sources.
func (c *Collector) share(percent, among int) int {
	return min(c.cfg.MaxSourceBytes, c.cfg.MaxBytes/100*percent/max(1, among))
}

// unitSources are the properties and the journal of each unit, with the most bytes of each.
func (c *Collector) unitSources(units []string, properties, lines int, since time.Time) []source {
	var all []source
	for _, u := range units {
		all = append(all,
			c.command("units/"+u+"/properties", properties, "systemctl", "show", "--no-pager", "--", u),
			c.journal("units/"+u+"/journal.log", lines, max(1, c.cfg.MaxLines/10), "--unit="+u, "--since="+moment(since)),
		)
	}
	return all
}

// journal is a source of lines of the journal.
func (c *Collector) journal(file string, max, lines int, which ...string) source {
	return c.command(file, max, "journalctl", append(which, "--lines="+strconv.Itoa(lines), "--output=short-iso-precise", "--no-pager", "--quiet")...)
}

// moment is a time as journalctl(1) takes it.
func moment(t time.Time) string { return "@" + strconv.FormatInt(t.Unix(), 10) }

// command is a source that is what a program writes.
func (c *Collector) command(file string, max int, name string, args ...string) source {
	return source{name: file, max: max, collect: func(ctx context.Context, b *bin) error {
		out, err := c.cfg.Run(ctx, name, args...)
		if err == nil || len(out) > 0 {
			b.add(file, out, 0)
		}
		return err
	}}
}

// parallel is how many sources are read at once.
const parallel = 4

// collect reads all sources and returns what they gave, in the order of the sources.
// Each is given up when its time is over, and all are when ctx ends.
func (c *Collector) collect(ctx context.Context, sources []source) []found {
	results := make([][]found, len(sources))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				results[i] = c.read(ctx, s)
			case <-ctx.Done():
				results[i] = []found{{name: s.name, note: "not begun: the time for the whole diagnosis was over", absent: true}}
			}
		})
	}
	wg.Wait()
	var all []found
	for _, r := range results {
		all = append(all, r...)
	}
	return all
}

// read reads one source.
func (c *Collector) read(ctx context.Context, s source) []found {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.SourceLimit)
	defer cancel()
	b := &bin{left: s.max}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the source panicked: %v", p)
			}
		}()
		done <- s.collect(ctx, b)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		// A source that heeds ctx is just about to end and says more.
		grace := time.NewTimer(800 * time.Millisecond)
		select {
		case err = <-done:
		case <-grace.C:
			err = fmt.Errorf("it hangs: no answer within its time limit: %w", ctx.Err())
		}
		grace.Stop()
	}
	if err != nil && !errors.Is(err, errNothing) {
		b.note(s.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for i := range b.files {
		b.files[i].hidden = s.hidden
	}
	return b.files
}

// program returns a function that runs programs of this host and keeps at most the
// last max bytes of what they write. What they write to stderr is in the error.
func program(max int) func(ctx context.Context, name string, args ...string) ([]byte, error) {
	return func(ctx context.Context, name string, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(cmd.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
		out, errs := &ring{max: max}, &ring{max: 1000}
		cmd.Stdout, cmd.Stderr = out, errs
		cmd.WaitDelay = 2 * time.Second // for what it wrote to be read, too, which takes a moment on a busy host
		err := cmd.Run()
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("stopped after its time limit: %w", ctx.Err())
		}
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(errs.bytes()))
		}
		return out.bytes(), err
	}
}

// ring keeps the last max bytes that are written to it.
type ring struct {
	max int
	buf []byte
}

func (r *ring) Write(p []byte) (int, error) {
	r.buf = append(r.buf, p...)
	if len(r.buf) > 2*r.max {
		r.buf = append(r.buf[:0], r.buf[len(r.buf)-r.max:]...)
	}
	return len(p), nil
}

func (r *ring) bytes() []byte { return r.buf[max(0, len(r.buf)-r.max):] }
