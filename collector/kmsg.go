package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Documentation/ABI/testing/dev-kmsg describes the records.
var kernelLogMetrics = []Metric{
	rate("kernel_log_messages_per_second", "1/s", "messages of the kernel of all levels", "/dev/kmsg"),
	rate("kernel_log_errors_per_second", "1/s", "messages of the level error or worse", "/dev/kmsg"),
	rate("kernel_log_warnings_per_second", "1/s", "messages of the level warning", "/dev/kmsg"),
	rate("kernel_log_hung_tasks_per_second", "1/s", "messages of tasks that hang in the kernel", "/dev/kmsg"),
	rate("kernel_log_lockups_per_second", "1/s", "messages of soft and hard lockups and RCU stalls", "/dev/kmsg"),
	rate("kernel_log_io_errors_per_second", "1/s", "messages of failed, reset or timed-out disk requests", "/dev/kmsg"),
	rate("kernel_log_filesystem_errors_per_second", "1/s", "messages of damaged file systems", "/dev/kmsg"),
	rate("kernel_log_hardware_errors_per_second", "1/s", "messages of machine checks, memory, PCIe and heat", "/dev/kmsg"),
	rate("kernel_log_network_errors_per_second", "1/s", "messages of links that went down and cards that hang", "/dev/kmsg"),
	rate("kernel_log_faults_per_second", "1/s", "messages of oopses, bugs, bad pages and general protection faults", "/dev/kmsg"),
	rate("kernel_log_oom_kills_per_second", "1/s", "messages of processes killed for want of memory", "/dev/kmsg"),
}

// logPatterns are what messages of a kind have in them. The first kind that
// matches counts.
var logPatterns = []struct {
	metric string
	any    [][]byte
}{
	{"kernel_log_oom_kills_per_second", texts("Out of memory: Killed process", "Memory cgroup out of memory: Killed process")},
	{"kernel_log_lockups_per_second", texts("soft lockup", "hard LOCKUP", "detected stalls on CPUs", "self-detected stall on CPU")},
	{"kernel_log_hung_tasks_per_second", texts("blocked for more than")},
	{"kernel_log_filesystem_errors_per_second", texts("EXT4-fs error", "Corruption detected", "metadata I/O error", "BTRFS error", "BTRFS critical", "Remounting filesystem read-only")},
	{"kernel_log_io_errors_per_second", texts("I/O error", "critical medium error", "critical target error", "Unrecovered read error", "failed command:", "hard resetting link", "timeout, aborting", "timeout, reset controller", "controller is down", "task abort:")},
	{"kernel_log_hardware_errors_per_second", texts("[Hardware Error]", "Machine check events logged", "EDAC MC", "AER:", "temperature above threshold", "thermal shutdown", "Memory failure:")},
	{"kernel_log_network_errors_per_second", texts("Link is Down", "link down", "NETDEV WATCHDOG", "Detected Tx Unit Hang")},
	{"kernel_log_faults_per_second", texts("BUG:", "Oops:", "general protection fault", "kernel BUG at", "Bad page state", "Kernel panic", "unable to handle")},
}

func texts(s ...string) [][]byte {
	b := make([][]byte, len(s))
	for i := range s {
		b[i] = []byte(s[i])
	}
	return b
}

// maxRecords bounds how many messages one sample reads; a flood goes on in the
// next one.
const maxRecords = 1000

// kernelLogSource follows the kernel's log from when sampling began.
type kernelLogSource struct {
	path   string
	fd     int
	opened bool
	buf    []byte
	totals map[string]uint64
}

func newKernelLogSource(h *host) source {
	return &kernelLogSource{path: filepath.Join(h.dev, "kmsg"), buf: make([]byte, 8192), totals: make(map[string]uint64)}
}

func (s *kernelLogSource) close() error {
	if !s.opened {
		return nil
	}
	s.opened = false
	return unix.Close(s.fd)
}

func (s *kernelLogSource) open() error {
	fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		return errNoData
	case err != nil:
		return fmt.Errorf("%s: %w (reading the kernel's log needs CAP_SYSLOG)", s.path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if kind := st.Mode & unix.S_IFMT; err == nil && kind != unix.S_IFCHR && kind != unix.S_IFREG {
		err = errNoData // a container's stand-in
	}
	if err == nil {
		_, err = unix.Seek(fd, 0, io.SeekEnd)
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, syscall.ESPIPE) {
			return errNoData
		}
		return err
	}
	s.fd, s.opened = fd, true
	return nil
}

func (s *kernelLogSource) collect(_ context.Context, f *frame) error {
	if !s.opened {
		if err := s.open(); err != nil {
			return err
		}
	}
	for range maxRecords {
		n, err := unix.Read(s.fd, s.buf)
		switch {
		case errors.Is(err, syscall.EPIPE): // messages were overwritten before they were read
			continue
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			n = 0
		case err != nil:
			s.close()
			return err
		}
		if n <= 0 {
			break
		}
		for b := s.buf[:n]; len(b) > 0; {
			var line []byte
			line, b = cutLine(b)
			s.count(line)
		}
	}
	for _, m := range kernelLogMetrics {
		f.rate(m.Name, s.totals[m.Name], 1)
	}
	return nil
}

// count reads "6,339,5140900,-;message". Lines that begin with a blank belong to
// the message before.
func (s *kernelLogSource) count(line []byte) {
	head, message, ok := bytes.Cut(line, []byte(";"))
	if !ok || len(head) == 0 || head[0] == ' ' {
		return
	}
	first, _, _ := bytes.Cut(head, []byte(","))
	priority, ok := parseUint(first)
	if !ok || priority>>3 != 0 { // programs may write here too, but not as the kernel
		return
	}
	s.totals["kernel_log_messages_per_second"]++
	switch level := priority & 7; {
	case level <= 3:
		s.totals["kernel_log_errors_per_second"]++
	case level == 4:
		s.totals["kernel_log_warnings_per_second"]++
	}
	for _, p := range logPatterns {
		for _, text := range p.any {
			if bytes.Contains(message, text) {
				s.totals[p.metric]++
				return
			}
		}
	}
}
