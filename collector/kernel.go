package collector

import (
	"context"
	"path/filepath"
	"strconv"
)

// Documentation/admin-guide/sysctl/kernel.rst and
// Documentation/ABI/testing/sysfs-kernel-{warn,oops}_count explain the files.
var kernelMetrics = []Metric{
	gauge("file_handles_used", "1", "open files of all programs", "/proc/sys/fs/file-nr"),
	ratio("file_handles_used_ratio", "file_handles_used of the most that there may be", "/proc/sys/fs/file-nr"),
	gauge("threads_total", "1", "threads that exist", "/proc/loadavg"),
	ratio("threads_used_ratio", "threads_total of the most that there may be", "/proc/sys/kernel/threads-max and pid_max"),
	gauge("kernel_taint_flags", "1", "bits that say what has spoilt the kernel (0 is nothing)", "/proc/sys/kernel/tainted"),
	state("kernel_tainted_by_fault", "whether the kernel has oopsed, warned, locked up, or seen a machine check or a bad page since boot", "/proc/sys/kernel/tainted"),
	rate("kernel_oopses_per_second", "1/s", "oopses", "/sys/kernel/oops_count"),
	rate("kernel_warnings_per_second", "1/s", "warnings with a stack trace", "/sys/kernel/warn_count"),
	rate("kernel_hung_tasks_per_second", "1/s", "tasks found hanging in the kernel", "/proc/sys/kernel/hung_task_detect_count"),
	gauge("entropy_available_bits", "bits", "entropy of the kernel's random numbers", "/proc/sys/kernel/random/entropy_avail"),
	gauge("agent_resident_bytes", "bytes", "resident memory of the process that samples", "/proc/self/statm"),
}

// faultTaints are the taint flags for what went wrong, as against what was
// loaded: M, B, D, W, L (Documentation/admin-guide/tainted-kernels.rst).
const faultTaints = 1<<4 | 1<<5 | 1<<7 | 1<<9 | 1<<14

// cpuNames names the CPUs for counters that each of them has.
var cpuNames = func() []string {
	names := make([]string, 1024)
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	return names
}()

type kernelSource struct {
	fileNr, loadavg, threadsMax, pidMax, taint, oops, warn, hung, entropy, statm *file
}

func newKernelSource(h *host) source {
	proc := func(p string) *file { return h.kept(filepath.Join(h.proc, p)) }
	sys := func(p string) *file { return h.kept(filepath.Join(h.sys, p)) }
	return &kernelSource{
		fileNr: proc("sys/fs/file-nr"), loadavg: proc("loadavg"),
		threadsMax: proc("sys/kernel/threads-max"), pidMax: proc("sys/kernel/pid_max"),
		taint: proc("sys/kernel/tainted"), hung: proc("sys/kernel/hung_task_detect_count"),
		oops: sys("kernel/oops_count"), warn: sys("kernel/warn_count"),
		entropy: proc("sys/kernel/random/entropy_avail"), statm: proc("self/statm"),
	}
}

func (s *kernelSource) close() error {
	for _, k := range []*file{s.fileNr, s.loadavg, s.threadsMax, s.pidMax, s.taint, s.oops, s.warn, s.hung, s.entropy, s.statm} {
		k.close()
	}
	return nil
}

func (s *kernelSource) collect(_ context.Context, f *frame) error {
	b, err := s.fileNr.read()
	if err != nil {
		return err
	}
	if used, rest, ok := cutUint(b); ok {
		f.set("file_handles_used", float64(used))
		_, rest = cutField(rest) // always 0 since Linux 2.6
		if limit, _, ok := cutUint(rest); ok {
			f.set("file_handles_used_ratio", share(float64(used), float64(limit)))
		}
	}
	if b, err := s.loadavg.read(); err == nil {
		s.threads(b, f)
	}
	if v, err := s.taint.number(); err == nil {
		f.set("kernel_taint_flags", float64(v))
		f.set("kernel_tainted_by_fault", b2f(v&faultTaints != 0))
	}
	for _, c := range [...]struct {
		file   *file
		metric string
	}{
		{s.oops, "kernel_oopses_per_second"}, {s.warn, "kernel_warnings_per_second"}, {s.hung, "kernel_hung_tasks_per_second"},
	} {
		if v, err := c.file.number(); err == nil {
			f.rate(c.metric, v, 1)
		}
	}
	if v, err := s.entropy.number(); err == nil {
		f.set("entropy_available_bits", float64(v))
	}
	if b, err := s.statm.read(); err == nil {
		_, rest := cutField(b)
		if v, _, ok := cutUint(rest); ok {
			f.set("agent_resident_bytes", float64(v)*pageSize)
		}
	}
	return nil
}

// threads reads the fourth field of /proc/loadavg, "running/total".
func (s *kernelSource) threads(b []byte, f *frame) {
	for range 3 {
		_, b = cutField(b)
	}
	field, _ := cutField(b)
	for i, c := range field {
		if c != '/' {
			continue
		}
		total, ok := parseUint(field[i+1:])
		if !ok {
			return
		}
		f.set("threads_total", float64(total))
		limit, err := s.threadsMax.number()
		if err != nil {
			return
		}
		if pids, err := s.pidMax.number(); err == nil {
			limit = min(limit, pids)
		}
		f.set("threads_used_ratio", share(float64(total), float64(limit)))
		return
	}
}
