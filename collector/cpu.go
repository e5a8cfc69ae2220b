package collector

import (
	"bytes"
	"context"
	"errors"
	"math"
	"path/filepath"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/load"
)

var cpuMetrics = []Metric{
	ratio("cpu_user_ratio", "time in programs, guests' included, of all CPU time", "gopsutil cpu.Times"),
	ratio("cpu_nice_ratio", "time in programs of low priority", "gopsutil cpu.Times"),
	ratio("cpu_system_ratio", "time in the kernel on behalf of programs", "gopsutil cpu.Times"),
	ratio("cpu_iowait_ratio", "idle time with a disk request outstanding", "gopsutil cpu.Times"),
	ratio("cpu_irq_ratio", "time in interrupts", "gopsutil cpu.Times"),
	ratio("cpu_softirq_ratio", "time in soft interrupts", "gopsutil cpu.Times"),
	ratio("cpu_steal_ratio", "time that the hypervisor underneath gave to others", "gopsutil cpu.Times"),
	ratio("cpu_guest_ratio", "time in guests", "gopsutil cpu.Times"),
	ratio("cpu_busy_ratio", "all time but idle and waiting for disks", "gopsutil cpu.Times"),
	ratio("cpu_busiest_ratio", "busy time of the busiest single CPU", "/proc/stat"),
	ratio("cpu_busiest_softirq_ratio", "soft interrupt time of the CPU with the most of it", "/proc/stat"),
	gauge("cpus_online", "1", "CPUs that are online", "/proc/stat"),
	gauge("load_1m", "1", "runnable and blocked tasks, mean over 1 minute", "gopsutil load.Avg"),
	gauge("load_5m", "1", "runnable and blocked tasks, mean over 5 minutes", "gopsutil load.Avg"),
	gauge("load_15m", "1", "runnable and blocked tasks, mean over 15 minutes", "gopsutil load.Avg"),
	gauge("load_1m_per_cpu", "1", "load_1m for each CPU that is online", "gopsutil load.Avg, /proc/stat"),
	rate("context_switches_per_second", "1/s", "switches between tasks", "/proc/stat ctxt"),
	rate("interrupts_per_second", "1/s", "interrupts served", "/proc/stat intr"),
	rate("softirqs_per_second", "1/s", "soft interrupts served", "/proc/stat softirq"),
	rate("forks_per_second", "1/s", "tasks created", "/proc/stat processes"),
	gauge("tasks_running", "1", "tasks that run or wait for a CPU", "/proc/stat procs_running"),
	gauge("tasks_blocked", "1", "tasks in uninterruptible sleep for I/O (D state)", "/proc/stat procs_blocked"),
}

// cpuSource reads CPU time and load through gopsutil, and what gopsutil leaves
// out of /proc/stat by itself.
type cpuSource struct {
	stat *file
	last []cpuTicks // of each CPU, by number
}

// cpuTicks is what one CPU did, in kernel ticks.
type cpuTicks struct {
	busy, softirq, all uint64
	at                 time.Duration // running time; 0 is never
}

func newCPUSource(h *host) source {
	return &cpuSource{stat: h.kept(filepath.Join(h.proc, "stat"))}
}

func (s *cpuSource) close() error { s.stat.close(); return nil }

func (s *cpuSource) collect(ctx context.Context, f *frame) error {
	err := s.times(ctx, f)
	online, statErr := s.readStat(f)
	avg, loadErr := load.AvgWithContext(ctx)
	if loadErr == nil {
		f.set("load_1m", avg.Load1)
		f.set("load_5m", avg.Load5)
		f.set("load_15m", avg.Load15)
		f.set("load_1m_per_cpu", share(avg.Load1, online))
	}
	return errors.Join(err, statErr, loadErr)
}

// modes are the CPU's modes in the order of the kernel. Guest time is a part of
// user time.
var modes = [...]struct {
	metric string
	of     func(*cpu.TimesStat) float64
}{
	{"cpu_user_ratio", func(t *cpu.TimesStat) float64 { return t.User }},
	{"cpu_nice_ratio", func(t *cpu.TimesStat) float64 { return t.Nice }},
	{"cpu_system_ratio", func(t *cpu.TimesStat) float64 { return t.System }},
	{"cpu_iowait_ratio", func(t *cpu.TimesStat) float64 { return t.Iowait }},
	{"cpu_irq_ratio", func(t *cpu.TimesStat) float64 { return t.Irq }},
	{"cpu_softirq_ratio", func(t *cpu.TimesStat) float64 { return t.Softirq }},
	{"cpu_steal_ratio", func(t *cpu.TimesStat) float64 { return t.Steal }},
	{"", func(t *cpu.TimesStat) float64 { return t.Idle }},
}

const cpuIdle = len(modes) - 1
const cpuIowait = 3

func (s *cpuSource) times(ctx context.Context, f *frame) error {
	times, err := cpu.TimesWithContext(ctx, false)
	if err != nil {
		return err
	}
	if len(times) != 1 {
		return errors.New("/proc/stat has no line for all CPUs together")
	}
	var spent [len(modes)]float64
	var all float64
	known := false
	for i, m := range modes {
		name := m.metric
		if name == "" {
			name = "cpu_idle"
		}
		spent[i], _ = f.delta(name, "", centiseconds(m.of(&times[0])), counter64)
		known = known || !math.IsNaN(spent[i])
	}
	guest, _ := f.delta("cpu_guest_ratio", "", centiseconds(times[0].Guest+times[0].GuestNice), counter64)
	if !known {
		return nil
	}
	for i := range spent {
		// The kernel's idle and waiting times may step back a little when a CPU
		// comes or goes (Documentation/filesystems/proc.rst, 1.7).
		if math.IsNaN(spent[i]) {
			if i != cpuIdle && i != cpuIowait {
				return nil // reset: unknown until the next sample
			}
			spent[i] = 0
		}
		all += spent[i]
	}
	for i, m := range modes {
		if m.metric != "" {
			f.set(m.metric, share(spent[i], all))
		}
	}
	f.set("cpu_guest_ratio", clampRatio(share(guest, all)))
	f.set("cpu_busy_ratio", share(all-spent[cpuIdle]-spent[cpuIowait], all))
	return nil
}

func centiseconds(seconds float64) uint64 {
	if !(seconds > 0) {
		return 0
	}
	return uint64(seconds*100 + 0.5)
}

// readStat reads /proc/stat and returns the number of CPUs that are online.
func (s *cpuSource) readStat(f *frame) (online float64, err error) {
	online = math.NaN()
	b, err := s.stat.read()
	if err != nil {
		return online, err
	}
	busiest, softest, cpus := math.NaN(), math.NaN(), 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, rest := cutField(line)
		if bytes.HasPrefix(key, []byte("cpu")) {
			if n, ok := parseUint(key[3:]); ok && n < 1<<16 {
				cpus++
				busy, soft := s.one(f, int(n), rest)
				maxOf(&busiest, busy)
				maxOf(&softest, soft)
			}
			continue
		}
		v, _, ok := cutUint(rest)
		if !ok {
			continue
		}
		switch string(key) {
		case "ctxt":
			f.rate("context_switches_per_second", v, 1)
		case "intr":
			f.rate("interrupts_per_second", v, 1)
		case "softirq":
			f.rate("softirqs_per_second", v, 1)
		case "processes":
			f.rate("forks_per_second", v, 1)
		case "procs_running":
			f.set("tasks_running", float64(v))
		case "procs_blocked":
			f.set("tasks_blocked", float64(v))
		}
	}
	f.set("cpu_busiest_ratio", busiest)
	f.set("cpu_busiest_softirq_ratio", softest)
	if cpus > 0 {
		online = float64(cpus)
		f.set("cpus_online", online)
	}
	return online, nil
}

// one returns the busy and the soft interrupt share of CPU n.
func (s *cpuSource) one(f *frame, n int, fields []byte) (busy, softirq float64) {
	var v [8]uint64 // user nice system idle iowait irq softirq steal
	for i := range v {
		var ok bool
		if v[i], fields, ok = cutUint(fields); !ok {
			break
		}
	}
	for len(s.last) <= n {
		s.last = append(s.last, cpuTicks{})
	}
	now := cpuTicks{busy: v[0] + v[1] + v[2] + v[5] + v[6] + v[7], softirq: v[6], at: f.now}
	now.all = now.busy + v[3] + v[4]
	was := s.last[n]
	s.last[n] = now
	if was.at == 0 || now.all <= was.all || now.busy < was.busy || now.softirq < was.softirq || f.now-was.at > maxGap {
		return math.NaN(), math.NaN()
	}
	all := float64(now.all - was.all)
	return clampRatio(float64(now.busy-was.busy) / all), clampRatio(float64(now.softirq-was.softirq) / all)
}
