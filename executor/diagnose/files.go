package diagnose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// maxRead bounds what is read of a file whose size is not known, as those of /proc.
const maxRead = 64 << 20

// open opens a regular file, and does not wait for a writer if it is a pipe after all.
func open(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// readEnd returns the last max bytes of a file, and one byte more if there is more.
func readEnd(ctx context.Context, path string, max int) ([]byte, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > int64(max) {
		if _, err := f.Seek(size-int64(max)-1, io.SeekStart); err != nil {
			return nil, err
		}
	}
	r := &ring{max: max + 1}
	buf := make([]byte, 64<<10)
	for total := 0; total < maxRead; {
		if err := ctx.Err(); err != nil {
			return r.bytes(), err
		}
		n, err := f.Read(buf)
		r.Write(buf[:n])
		total += n
		if errors.Is(err, io.EOF) {
			return r.bytes(), nil
		}
		if err != nil {
			return r.bytes(), err
		}
	}
	return r.bytes(), nil
}

// path is where a file of the host lies.
func (c *Collector) path(p string) string { return filepath.Join(c.cfg.Root, p) }

// copies is a source of files that are as they are on the host. The name of each in the
// archive is dir and the last part of its path, or its path if dir is "".
func (c *Collector) copies(dir string, max int, paths ...string) source {
	name := func(p string) string {
		if dir != "" {
			return dir + "/" + filepath.Base(p)
		}
		return strings.TrimPrefix(p, "/")
	}
	return source{name: name(paths[0]), max: max, collect: func(ctx context.Context, b *bin) error {
		for _, p := range paths {
			name := name(p)
			data, err := readEnd(ctx, c.path(p), max)
			if len(data) > 0 {
				b.add(name, data, 0)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				b.note(name, err)
			}
		}
		return ctx.Err()
	}}
}

// directory is a source of the regular files of a directory, and of the directories in
// it, whose names match a pattern of [filepath.Match]. Each has room for an equal part of
// max. There are at most most of them: those that changed last.
func (c *Collector) directory(dir, path, pattern string, max, most int) source {
	return source{name: dir, max: max, collect: func(ctx context.Context, b *bin) error {
		files, err := c.list(path, pattern)
		if err != nil {
			return err
		}
		left := len(files) - most
		if left > 0 {
			slices.SortStableFunc(files, func(x, y listed) int { return y.info.ModTime().Compare(x.info.ModTime()) })
			files = files[:most]
			slices.SortFunc(files, func(x, y listed) int { return strings.Compare(x.name, y.name) })
		}
		for _, f := range files {
			name := dir + "/" + safeName(f.name)
			room := max / len(files)
			data, err := readEnd(ctx, filepath.Join(c.path(path), f.name), room)
			if err == nil || len(data) > 0 {
				b.addDated(name, data, room, f.info.ModTime())
			}
			if err != nil {
				b.note(name, err)
			}
		}
		if left > 0 {
			b.note(dir, fmt.Errorf("%d older files are left out", left))
		}
		return ctx.Err()
	}}
}

// listed is a file of a directory; name is its path in it.
type listed struct {
	name string
	info fs.FileInfo
}

// list returns the regular files of a directory and of those in it, in order; errNothing
// if there are none.
func (c *Collector) list(path, pattern string) ([]listed, error) {
	entries, err := os.ReadDir(c.path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNothing
	}
	if err != nil {
		return nil, err
	}
	var files []listed
	add := func(dir string, entries []fs.DirEntry) {
		for _, e := range entries {
			if ok, _ := filepath.Match(pattern, e.Name()); !ok || !e.Type().IsRegular() {
				continue
			}
			if i, err := e.Info(); err == nil {
				files = append(files, listed{filepath.Join(dir, e.Name()), i})
			}
		}
	}
	add("", entries)
	for _, e := range entries {
		if pattern == "*" && e.IsDir() {
			inner, _ := os.ReadDir(filepath.Join(c.path(path), e.Name()))
			add(e.Name(), inner)
		}
	}
	if len(files) == 0 {
		return nil, errNothing
	}
	return files, nil
}

// safeName makes a name that may be a file's in an archive.
func safeName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.+@:", r)) {
			return r
		}
		return '_'
	}, clip(s, 200))
	if strings.Trim(s, ".") == "" {
		return "_" + s
	}
	return s
}

// coredumps lists the core dumps that systemd-coredump(8) kept; they themselves hold
// the memory of processes and stay on the host.
func (c *Collector) coredumps(max int) source {
	const file = "coredumps.txt"
	return source{name: file, max: max, collect: func(_ context.Context, b *bin) error {
		files, err := c.list("/var/lib/systemd/coredump", "*")
		if err != nil {
			return err
		}
		slices.SortStableFunc(files, func(x, y listed) int { return x.info.ModTime().Compare(y.info.ModTime()) })
		var out bytes.Buffer
		for _, f := range files {
			fmt.Fprintf(&out, "%s %d bytes %s\n", f.info.ModTime().UTC().Format(time.RFC3339), f.info.Size(), safeName(f.name))
		}
		b.add(file, out.Bytes(), 0)
		return nil
	}}
}

// kernelLog is a source of the kernel's messages since it booted: from /dev/kmsg, or
// where that cannot be read from the journal, or from dmesg.
func (c *Collector) kernelLog(max int, now time.Time) source {
	const file = "kernel.log"
	return source{name: file, max: max, collect: func(ctx context.Context, b *bin) error {
		out, err := c.kmsg(ctx, now)
		if len(out) > 0 {
			b.add(file, out, 0)
			return err
		}
		for _, args := range [][]string{
			{"journalctl", "--dmesg", "--boot", "--lines=" + strconv.Itoa(c.cfg.MaxLines), "--output=short-iso-precise", "--no-pager", "--quiet"},
			{"dmesg", "--time-format=iso"},
		} {
			out, e := c.cfg.Run(ctx, args[0], args[1:]...)
			if len(bytes.TrimSpace(out)) > 0 {
				b.add(file, out, 0)
				return e
			}
			if e != nil {
				err = errors.Join(err, e)
			}
		}
		return err
	}}
}

// kmsg reads /dev/kmsg up to its end and renders it as the journal would. The records
// are described in the kernel's Documentation/ABI/testing/dev-kmsg.
func (c *Collector) kmsg(ctx context.Context, now time.Time) ([]byte, error) {
	path := c.path("/dev/kmsg")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && (kind != unix.S_IFCHR || unix.Major(uint64(st.Rdev)) != 1 || unix.Minor(uint64(st.Rdev)) != 11) {
		return nil, fmt.Errorf("%s is not the kernel's log", path)
	}
	raw := &ring{max: 2*c.cfg.MaxSourceBytes + 1}
	buf := make([]byte, 16<<10)
	for total := 0; total < maxRead; {
		if err = ctx.Err(); err != nil {
			break
		}
		var n int
		n, err = unix.Read(fd, buf)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EINTR) { // overwritten before it was read
			total++
			continue
		}
		if errors.Is(err, syscall.EAGAIN) {
			err = nil
		}
		if err != nil || n <= 0 {
			break
		}
		raw.Write(buf[:n])
		total += n
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	boot, known := c.bootTime(ctx, now)
	var out []byte
	for line := range bytes.Lines(raw.bytes()) {
		out = append(out, kmsgLine(bytes.TrimSuffix(line, []byte("\n")), boot, known, c.cfg.Host)...)
	}
	return out, err
}

// kmsgLine renders "6,339,5140900,-;message", and nothing for the lines of properties
// that follow a message.
func kmsgLine(line []byte, boot time.Time, known bool, host fleet.HostID) []byte {
	head, message, ok := bytes.Cut(line, []byte(";"))
	fields := bytes.Split(head, []byte(","))
	if !ok || len(fields) < 3 || len(head) == 0 || head[0] == ' ' {
		return nil
	}
	priority, err1 := strconv.ParseUint(string(fields[0]), 10, 16)
	micros, err2 := strconv.ParseUint(string(fields[2]), 10, 53)
	if err1 != nil || err2 != nil {
		return nil
	}
	var out []byte
	if known {
		out = boot.Add(time.Duration(micros)*time.Microsecond).AppendFormat(out, isoPrecise)
		out = append(out, ' ')
		out = append(out, host...)
		out = append(out, ' ')
	}
	if priority>>3 == 0 {
		out = fmt.Appendf(out, "kernel: <%d> ", priority&7)
	}
	return append(append(out, message...), '\n')
}

// bootTime is when the kernel's clock began.
func (c *Collector) bootTime(ctx context.Context, now time.Time) (time.Time, bool) {
	data, err := readEnd(ctx, c.path("/proc/uptime"), 100)
	if err != nil {
		return time.Time{}, false
	}
	text, _, _ := strings.Cut(string(data), " ")
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds < 1e9) {
		return time.Time{}, false
	}
	return now.Add(-time.Duration(seconds * float64(time.Second))).UTC(), true
}
