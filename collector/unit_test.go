package collector

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// tree writes files below a directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	return dir
}

// reading runs a source alone.
type reading struct {
	t     *testing.T
	src   source
	frame *frame
	at    time.Duration
}

func newReading(t *testing.T, src source, metrics []Metric) *reading {
	return &reading{t: t, src: src, frame: newFrame(metrics, 32), at: time.Hour}
}

// next reads again, a second later.
func (r *reading) next() error {
	r.t.Helper()
	r.at += time.Second
	r.frame.begin(r.at)
	return r.src.collect(r.t.Context(), r.frame)
}

// want checks series by name; NaN is missing.
func (r *reading) want(values map[string]float64) {
	r.t.Helper()
	for series, want := range values {
		metric, instance, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
		got := math.NaN()
		if i, ok := r.frame.index[seriesKey{metric, instance}]; ok {
			got = r.frame.values[i]
		}
		if math.Abs(got-want) > 1e-9*math.Abs(want) || math.IsNaN(got) != math.IsNaN(want) {
			r.t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}

func unitHost(t *testing.T, proc, sys map[string]string, units ...string) *host {
	return &host{proc: tree(t, proc), sys: tree(t, sys), config: Config{Units: units}}
}

func statm(resident, shared int) string { return fmt.Sprintf("9999 %d %d 1 0 9 0\n", resident, shared) }

func TestUnitOnUnifiedHierarchy(t *testing.T) {
	const dir = "fs/cgroup/system.slice/system-web.slice/web@1.service/"
	h := unitHost(t, map[string]string{"1/cgroup": "0::/init.scope\n"}, map[string]string{
		"fs/cgroup/cgroup.controllers": "cpu memory pids\n",
		"fs/cgroup/cgroup.procs":       "",
		dir + "cgroup.procs":           "100\n101\n",
		dir + "memory.current":         "1048576\n",
		dir + "memory.max":             "4194304\n",
		dir + "memory.events":          "low 0\nhigh 0\nmax 0\noom 0\noom_kill 2\n",
		dir + "cpu.stat":               "usage_usec 5000000\nuser_usec 4000000\n",
		dir + "pids.current":           "7\n",
		dir + "memory.pressure":        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500\n",
	}, "web@1.service", "gone.service")
	r := newReading(t, newUnitSource(h), unitMetrics)
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	nan := math.NaN()
	r.want(map[string]float64{
		"unit_running{web@1.service}":                1,
		"unit_active{web@1.service}":                 1,
		"unit_memory_bytes{web@1.service}":           1048576,
		"unit_memory_used_ratio{web@1.service}":      0.25,
		"unit_tasks{web@1.service}":                  7,
		"unit_cpus_used{web@1.service}":              nan,
		"unit_running{gone.service}":                 0,
		"unit_memory_bytes{gone.service}":            nan,
		"unit_pressure_memory_ratio{web@1.service}":  nan,
		"unit_pressure_cpu_ratio{web@1.service}":     nan,
		"unit_oom_kills_per_second{web@1.service}":   nan,
		"unit_oom_kills_per_second{another.service}": nan,
	})
	at := filepath.Join(h.sys, dir)
	write(t, filepath.Join(at, "cpu.stat"), "usage_usec 6500000\n")
	write(t, filepath.Join(at, "memory.events"), "oom_kill 3\n")
	write(t, filepath.Join(at, "memory.pressure"), "some avg10=0.00 avg60=0.00 avg300=0.00 total=251000\n")
	write(t, filepath.Join(at, "memory.max"), "max\n")
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{
		"unit_cpus_used{web@1.service}":             1.5,
		"unit_oom_kills_per_second{web@1.service}":  1,
		"unit_pressure_memory_ratio{web@1.service}": 0.25,
		"unit_memory_used_ratio{web@1.service}":     nan,
	})

	// It stops, and starts again with new directories and counters.
	if err := os.RemoveAll(at); err != nil {
		t.Fatal(err)
	}
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{"unit_running{web@1.service}": 0, "unit_memory_bytes{web@1.service}": nan})
	write(t, filepath.Join(at, "cgroup.procs"), "")
	write(t, filepath.Join(at, "nested/cgroup.procs"), "200\n")
	write(t, filepath.Join(at, "memory.current"), "4096\n")
	write(t, filepath.Join(at, "cpu.stat"), "usage_usec 100\n")
	for range 3 { // it is looked for ever more rarely
		if err := r.next(); err != nil {
			t.Fatal(err)
		}
	}
	r.want(map[string]float64{"unit_running{web@1.service}": 1, "unit_memory_bytes{web@1.service}": 4096})
}

// TestUnitWithoutMemoryController is what systemd-nspawn gives on a host whose
// controllers are of version 1: the unit's processes are known and nothing else.
func TestUnitWithoutMemoryController(t *testing.T) {
	h := unitHost(t, map[string]string{
		"1/cgroup":  "9:name=systemd:/init.scope\n4:memory:/\n0::/init.scope\n",
		"100/statm": statm(1000, 200),
		"101/statm": statm(50, 10),
		"102/statm": statm(5, 1),
	}, map[string]string{
		"fs/cgroup/memory/cgroup.procs":                                      "1\n",
		"fs/cgroup/memory/memory.usage_in_bytes":                             "123456\n",
		"fs/cgroup/pids/cgroup.procs":                                        "1\n",
		"fs/cgroup/cpuacct/cgroup.procs":                                     "1\n",
		"fs/cgroup/systemd/cgroup.procs":                                     "",
		"fs/cgroup/systemd/system.slice/leak.service/cgroup.procs":           "100\n101\n",
		"fs/cgroup/systemd/system.slice/leak.service/sub/cgroup.procs":       "102\n",
		"fs/cgroup/unified/cgroup.procs":                                     "",
		"fs/cgroup/unified/system.slice/leak.service/cpu.stat":               "usage_usec 1000000\n",
		"fs/cgroup/unified/system.slice/leak.service/cpu.pressure":           "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"fs/cgroup/systemd/machine.slice/a.scope/system.slice/x/y.procs":     "",
		"fs/cgroup/systemd/machine.slice/a.scope/inner.service/cgroup.procs": "100\n",
	}, "leak.service", "inner.service")
	r := newReading(t, newUnitSource(h), unitMetrics)
	for range 2 {
		if err := r.next(); err != nil {
			t.Fatal(err)
		}
	}
	r.want(map[string]float64{
		"unit_memory_bytes{leak.service}":       (800 + 40 + 4) * pageSize,
		"unit_tasks{leak.service}":              3,
		"unit_cpus_used{leak.service}":          0,
		"unit_pressure_cpu_ratio{leak.service}": 0,
		"unit_running{leak.service}":            1,
		// A unit of that name within a container is not the host's.
		"unit_running{inner.service}": 0,
	})
}

func TestUnitOnVersion1(t *testing.T) {
	h := unitHost(t, map[string]string{"1/cgroup": "5:cpu,cpuacct:/\n4:memory:/\n3:pids:/\n1:name=systemd:/init.scope\n"}, map[string]string{
		"fs/cgroup/systemd/cgroup.procs":                                    "1\n",
		"fs/cgroup/systemd/system.slice/a.service/cgroup.procs":             "5\n6\n",
		"fs/cgroup/memory/cgroup.procs":                                     "",
		"fs/cgroup/memory/system.slice/a.service/memory.usage_in_bytes":     "8192\n",
		"fs/cgroup/memory/system.slice/a.service/memory.limit_in_bytes":     "9223372036854771712\n",
		"fs/cgroup/cpu,cpuacct/cgroup.procs":                                "",
		"fs/cgroup/cpu,cpuacct/system.slice/a.service/cpuacct.usage":        "1000000000\n",
		"fs/cgroup/pids/cgroup.procs":                                       "",
		"fs/cgroup/pids/system.slice/a.service/pids.current":                "4\n",
		"fs/cgroup/systemd/system.slice/b.service/cgroup.procs":             "",
		"fs/cgroup/systemd/system.slice/not-a-directory/b/x/y/cgroup.procs": "",
	}, "a.service", "b.service")
	r := newReading(t, newUnitSource(h), unitMetrics)
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(h.sys, "fs/cgroup/cpu,cpuacct/system.slice/a.service/cpuacct.usage"), "1500000000\n")
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{
		"unit_memory_bytes{a.service}":      8192,
		"unit_memory_used_ratio{a.service}": math.NaN(), // no limit
		"unit_cpus_used{a.service}":         0.5,
		"unit_tasks{a.service}":             4,
		"unit_running{b.service}":           0,
	})
}

func TestUnitsWithoutCgroups(t *testing.T) {
	h := unitHost(t, nil, nil, "a.service")
	r := newReading(t, newUnitSource(h), unitMetrics)
	if err := r.next(); err == nil || !strings.Contains(err.Error(), "no cgroup hierarchy") {
		t.Errorf("error %v", err)
	}
}

// TestOwnCgroup reads a cgroup of this machine, with this very process in it.
func TestOwnCgroup(t *testing.T) {
	trees := findTrees(&host{proc: "/proc", sys: "/sys"})
	if len(trees.processes) == 0 {
		t.Fatal("this machine has no cgroups")
	}
	root := trees.processes[0]
	dir := filepath.Join(root, "tardigrade-test.slice", fmt.Sprintf("self%d.service", os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("the test needs to be root on a machine with writable cgroups: %v", err)
	}
	before := filepath.Join(root, "cgroup.procs")
	self := fmt.Sprint(os.Getpid())
	t.Cleanup(func() {
		if err := os.WriteFile(before, []byte(self), 0); err != nil {
			t.Error(err)
		}
		os.Remove(dir)
		os.Remove(filepath.Dir(dir))
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(self), 0); err != nil {
		t.Fatal(err)
	}
	unit := filepath.Base(dir)
	h := &host{proc: "/proc", sys: "/sys", config: Config{Units: []string{unit}}}
	r := newReading(t, newUnitSource(h), unitMetrics)
	defer r.src.(*unitSource).close()
	memory := func() float64 {
		if err := r.next(); err != nil {
			t.Fatal(err)
		}
		i, ok := r.frame.index[seriesKey{"unit_memory_bytes", unit}]
		if !ok {
			t.Fatalf("no memory known; series %v", r.frame.keys)
		}
		return r.frame.values[i]
	}
	// What earlier tests left must neither be given back in between nor be used again.
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	was := memory()
	const leak = 64 << 20
	b := make([]byte, leak)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	if is := memory(); is-was < 0.9*leak {
		t.Errorf("after a leak of %d bytes the unit's memory went from %v to %v", leak, was, is)
	}
	b[0]++
}

// said is a systemd that a test steers.
type said struct {
	units  map[string]UnitStat
	failed int
	err    error
}

func (s *said) UnitStats(context.Context, []string) (map[string]UnitStat, int, error) {
	return s.units, s.failed, s.err
}

func TestSystemdSource(t *testing.T) {
	systemd := &said{failed: 2, units: map[string]UnitStat{
		"a.service": {Active: true, Restarts: 3, ControlGroup: "/odd.slice/place/a.service"},
		"b.service": {Failed: true},
	}}
	h := unitHost(t, nil, map[string]string{
		"fs/cgroup/cgroup.controllers":                       "",
		"fs/cgroup/odd.slice/place/a.service/cgroup.procs":   "12\n",
		"fs/cgroup/odd.slice/place/a.service/memory.current": "77\n",
	}, "a.service", "b.service", "c.service")
	h.config.UnitStats = systemd
	r := newReading(t, newSystemdSource(h), systemdMetrics)
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	systemd.units["a.service"] = UnitStat{Active: true, Restarts: 5, ControlGroup: "/odd.slice/place/a.service"}
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{
		"units_failed":                        2,
		"unit_active{a.service}":              1,
		"unit_failed{a.service}":              0,
		"unit_restarts_per_second{a.service}": 2,
		"unit_active{b.service}":              0,
		"unit_failed{b.service}":              1,
		"unit_active{c.service}":              math.NaN(), // systemd does not know it
	})
	// The cgroup is where systemd says.
	u := newReading(t, newUnitSource(h), unitMetrics)
	if err := u.next(); err != nil {
		t.Fatal(err)
	}
	u.want(map[string]float64{"unit_memory_bytes{a.service}": 77, "unit_active{a.service}": math.NaN()})
	// What systemd says is not followed out of the hierarchy.
	systemd.units["a.service"] = UnitStat{ControlGroup: "/../../../etc"}
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	u = newReading(t, newUnitSource(h), unitMetrics)
	if err := u.next(); err != nil {
		t.Fatal(err)
	}
	u.want(map[string]float64{"unit_running{a.service}": 0})

	systemd.err = errors.New("no reply")
	if err := r.next(); !errors.Is(err, systemd.err) {
		t.Errorf("error %v", err)
	}
}

func TestHealthSource(t *testing.T) {
	health := map[string]UnitHealth{"a.service": {true, 0.25}, "b.service": {false, math.NaN()}, "bad name": {}}
	h := &host{config: Config{UnitHealth: func(context.Context) map[string]UnitHealth { return health }}}
	r := newReading(t, newHealthSource(h), healthMetrics)
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{"unit_healthy{a.service}": 1, "unit_healthy{b.service}": 0, "units_unhealthy": 2,
		"unit_health_used_ratio{a.service}": 0.25, "unit_health_used_ratio{b.service}": math.NaN()})
	health = nil
	if err := r.next(); !errors.Is(err, errNoData) {
		t.Errorf("without checks: %v", err)
	}
	r.want(map[string]float64{"unit_healthy{a.service}": math.NaN(), "units_unhealthy": math.NaN()})
}

// hypervisor is one that a test steers.
type hypervisor struct{ vms []VMStat }

func (h *hypervisor) VMStats(context.Context) ([]VMStat, error) { return h.vms, nil }

func TestVMSource(t *testing.T) {
	nan := math.NaN()
	hyper := &hypervisor{}
	r := newReading(t, newVMSource(&host{config: Config{VMs: hyper}}), vmMetrics)
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{"vms_total": 0, "vms_running": 0, "vms_memory_bytes": 0, "vm_steal_max_seconds_per_second": nan})
	vm := func(name string, cpu, steal float64) VMStat {
		return VMStat{Name: name, Running: true, CPUSeconds: cpu, StealSeconds: steal, MemoryBytes: 100,
			BlockReadBytes: 10 * cpu, BlockWriteBytes: nan, BlockErrors: nan, NetReceiveBytes: nan, NetTransmitBytes: nan, NetDropped: nan}
	}
	hyper.vms = []VMStat{vm("a{b}", 10, 1), vm("c", 10, nan)}
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	hyper.vms = []VMStat{vm("a{b}", 10.5, 1.25), vm("c", 3, nan)} // c was started anew
	if err := r.next(); err != nil {
		t.Fatal(err)
	}
	r.want(map[string]float64{
		"vms_total": 2, "vms_running": 2, "vms_memory_bytes": 200, "vms_cpus_used": 0.5,
		"vm_steal_max_seconds_per_second": 0.25, "vm_cpus_used{a_b_}": 0.5, "vm_cpus_used{c}": nan,
		"vm_block_read_bytes_per_second{a_b_}": 5, "vm_block_errors_per_second{c}": nan, "vm_running{c}": 1,
	})
}
