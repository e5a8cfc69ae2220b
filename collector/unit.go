package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// UnitStat is what systemd says of a unit.
type UnitStat struct {
	Active bool // its ActiveState is active, reloading or activating
	Failed bool
	// Restarts is the unit's NRestarts: how often systemd restarted it by itself.
	Restarts uint64
	// ControlGroup is its cgroup from the root of the hierarchy, such as
	// "/system.slice/libvirtd.service"; empty where it has none.
	ControlGroup string
}

// UnitStats asks systemd.
type UnitStats interface {
	// UnitStats returns what is known of the named units and the number of
	// failed units of the whole host. A unit that does not exist is left out.
	UnitStats(ctx context.Context, names []string) (units map[string]UnitStat, failed int, err error)
}

var unitMetrics = each("unit",
	gauge("unit_memory_bytes", "bytes", "memory of the unit: its cgroup's, or where there is no memory controller the private resident memory of its processes", "cgroup memory.current, memory.usage_in_bytes, or /proc/*/statm"),
	ratio("unit_memory_used_ratio", "unit_memory_bytes of the unit's limit; missing without one", "cgroup memory.max, memory.limit_in_bytes"),
	gauge("unit_cpus_used", "1", "CPUs that the unit keeps busy", "cgroup cpu.stat, cpuacct.usage"),
	gauge("unit_tasks", "1", "threads of the unit; without a controller that counts them, those of its first process and all other processes", "cgroup pids.current, or cgroup.procs and /proc/*/stat"),
	gauge("unit_open_files", "1", "open files of the unit's first process", "/proc/*/fd"),
	ratio("unit_open_files_used_ratio", "unit_open_files of the most that the process may have", "/proc/*/limits"),
	rate("unit_oom_kills_per_second", "1/s", "processes of the unit killed for want of memory", "cgroup memory.events"),
	ratio("unit_pressure_cpu_ratio", "share of time in which a task of the unit waited for a CPU", "cgroup cpu.pressure"),
	ratio("unit_pressure_memory_ratio", "share of time in which a task of the unit waited for memory", "cgroup memory.pressure"),
	ratio("unit_pressure_io_ratio", "share of time in which a task of the unit waited for I/O", "cgroup io.pressure"),
	state("unit_running", "whether the unit has a process", "cgroup.procs"),
	unitActive,
)

// unitActive comes from systemd where there is one to ask, and from the cgroup
// otherwise.
var unitActive = state("unit_active", "whether systemd has the unit active; without systemd to ask, whether it has a process", "systemd over D-Bus, or cgroup.procs")

// unitSource reads the cgroups of units. It knows the unified hierarchy, the
// hybrid one and version 1, also from within a container that has a part of the
// hierarchy for its root. Control groups are described in
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
type unitSource struct {
	h     *host
	units []*unit
	trees cgroupTrees
}

// cgroupTrees are the directories under which units have theirs; empty where
// there is none. On the unified hierarchy they are all the same.
type cgroupTrees struct {
	processes []string // where the processes are, in the order of preference
	unified   string
	memory    string
	cpu       string
	pids      string
}

// unit is a unit with the files of its cgroups, kept open.
type unit struct {
	name      string
	dir       string // under the tree of processes
	tree      string
	memory    *file
	limit     *file
	cpu       *file
	cpuFactor float64 // to seconds
	cpuInStat bool    // cpu.stat, as against a bare number
	tasks     *file
	events    *file
	pressure  [3]*file
	procs     *file
	nextLook  uint64 // round in which to look for it again
	wait      uint64
}

func newUnitSource(h *host) source {
	if len(h.config.Units) == 0 {
		return nil
	}
	s := &unitSource{h: h, trees: findTrees(h)}
	for _, name := range h.config.Units {
		s.units = append(s.units, &unit{name: name})
	}
	return s
}

func (s *unitSource) close() error {
	for _, u := range s.units {
		u.close()
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func findTrees(h *host) cgroupTrees {
	root := filepath.Join(h.sys, "fs/cgroup")
	// Where process 1 is in init.scope, the rest of its path is the root that
	// its units are under.
	prefix := make(map[string]string) // by controller; "" is the unified hierarchy
	if b, err := os.ReadFile(filepath.Join(h.proc, "1/cgroup")); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			part := strings.SplitN(line, ":", 3)
			if len(part) != 3 || strings.Contains(part[2], "..") {
				continue
			}
			for _, controller := range strings.Split(part[1], ",") {
				prefix[controller] = strings.TrimSuffix(part[2], "/init.scope")
			}
		}
	}
	if exists(filepath.Join(root, "cgroup.controllers")) {
		tree := filepath.Join(root, prefix[""])
		return cgroupTrees{processes: []string{tree}, unified: tree, memory: tree, cpu: tree, pids: tree}
	}
	var t cgroupTrees
	under := func(mount, controller string) string {
		dir := filepath.Join(root, mount)
		if !exists(filepath.Join(dir, "cgroup.procs")) {
			return ""
		}
		return filepath.Join(dir, prefix[controller])
	}
	t.unified = under("unified", "")
	if d := under("systemd", "name=systemd"); d != "" {
		t.processes = append(t.processes, d)
	}
	if t.unified != "" {
		t.processes = append(t.processes, t.unified)
	}
	t.memory = under("memory", "memory")
	t.pids = under("pids", "pids")
	if t.cpu = under("cpuacct", "cpuacct"); t.cpu == "" {
		t.cpu = under("cpu,cpuacct", "cpuacct")
	}
	return t
}

func (s *unitSource) collect(_ context.Context, f *frame) error {
	if len(s.trees.processes) == 0 {
		if s.trees = findTrees(s.h); len(s.trees.processes) == 0 {
			return fmt.Errorf("no cgroup hierarchy under %s: units cannot be watched", filepath.Join(s.h.sys, "fs/cgroup"))
		}
	}
	var errs error
	for _, u := range s.units {
		if !f.admit(u.name) {
			continue
		}
		running, err := s.one(f, u)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("unit %s: %w", u.name, err))
		}
		f.setOf("unit_running", u.name, b2f(running))
		if s.h.config.UnitStats == nil {
			f.setOf("unit_active", u.name, b2f(running))
		}
	}
	return errs
}

// one reads a unit and tells whether it has a process.
func (s *unitSource) one(f *frame, u *unit) (running bool, err error) {
	if u.dir != "" && !exists(filepath.Join(u.tree, u.dir)) {
		u.close() // stopped; a new start makes new directories
	}
	if u.dir == "" {
		if f.round < u.nextLook || !s.find(u, f.round) {
			return false, nil
		}
	}
	pids, resident, first := s.processes(u)
	if pids == 0 {
		return false, nil
	}
	set := func(metric string, v float64) { f.setOf(metric, u.name, v) }
	if open, most := s.openFiles(first); !math.IsNaN(open) {
		set("unit_open_files", open)
		set("unit_open_files_used_ratio", share(open, most))
	}

	memory := resident
	if memory == 0 { // no process takes none: they could not be asked
		memory = math.NaN()
	}
	if u.memory != nil {
		v, err := u.memory.number()
		if err != nil {
			return true, err
		}
		memory = float64(v)
		if limit, err := u.limit.number(); err == nil && limit < 1<<60 { // version 1 says "no limit" with a huge number
			set("unit_memory_used_ratio", share(memory, float64(limit)))
		}
	}
	set("unit_memory_bytes", memory)

	tasks := float64(pids - 1 + s.threads(first))
	if u.tasks != nil {
		if v, err := u.tasks.number(); err == nil {
			tasks = float64(v)
		}
	}
	set("unit_tasks", tasks)

	if u.cpu != nil {
		b, err := u.cpu.read()
		if err != nil {
			return true, err
		}
		raw, ok := uint64(0), false
		if u.cpuInStat {
			raw, ok = lookup(b, "usage_usec")
		} else {
			raw, ok = parseUint(trimSpace(b))
		}
		if ok {
			f.rateOf("unit_cpus_used", u.name, raw, u.cpuFactor, counter64)
		}
	}
	if u.events != nil {
		if b, err := u.events.read(); err == nil {
			if kills, ok := lookup(b, "oom_kill"); ok {
				f.rateOf("unit_oom_kills_per_second", u.name, kills, 1, counter64)
			}
		}
	}
	for i, metric := range [...]string{"unit_pressure_cpu_ratio", "unit_pressure_memory_ratio", "unit_pressure_io_ratio"} {
		if u.pressure[i] == nil {
			continue
		}
		b, err := u.pressure[i].read()
		if err != nil {
			continue // psi=0 leaves the file and refuses to read it
		}
		line, _ := cutLine(b)
		_, total, ok := bytes.Cut(line, []byte("total="))
		if us, _, valid := cutUint(total); ok && valid && bytes.HasPrefix(line, []byte("some")) {
			d, seconds := f.delta(metric, u.name, us, counter64)
			set(metric, clampRatio(d/1e6/seconds))
		}
	}
	return true, nil
}

// lookup finds "key value" among lines.
func lookup(b []byte, key string) (uint64, bool) {
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if k, rest := cutField(line); string(k) == key {
			v, _, ok := cutUint(rest)
			return v, ok
		}
	}
	return 0, false
}

func (u *unit) close() {
	for _, k := range []*file{u.memory, u.limit, u.cpu, u.tasks, u.events, u.procs, u.pressure[0], u.pressure[1], u.pressure[2]} {
		if k != nil {
			k.close()
		}
	}
	*u = unit{name: u.name}
}

// find looks for the unit's cgroup: where systemd says it is, or else under the
// slices. A unit that is not there is looked for ever more rarely.
func (s *unitSource) find(u *unit, round uint64) bool {
	said := s.h.controlGroup(u.name)
	for _, tree := range s.trees.processes {
		rel := strings.TrimPrefix(said, "/")
		if rel == "" || !filepath.IsLocal(rel) || !exists(filepath.Join(tree, rel)) {
			budget := 2000
			rel = findUnit(tree, "", u.name, 5, &budget)
		}
		if rel != "" {
			u.wait = 0
			s.open(u, tree, rel)
			return true
		}
	}
	u.wait = min(2*u.wait+1, 10)
	u.nextLook = round + u.wait
	return false
}

// findUnit looks for the directory of a unit among the slices under tree, first
// here and then below. A budget bounds the number of directories looked at.
func findUnit(tree, rel, name string, depth int, budget *int) string {
	if exists(filepath.Join(tree, rel, name)) {
		return filepath.Join(rel, name)
	}
	if depth == 0 || *budget <= 0 {
		return ""
	}
	entries, err := os.ReadDir(filepath.Join(tree, rel))
	if err != nil {
		return ""
	}
	for _, e := range entries {
		*budget--
		if e.IsDir() && strings.HasSuffix(e.Name(), ".slice") {
			if found := findUnit(tree, filepath.Join(rel, e.Name()), name, depth-1, budget); found != "" {
				return found
			}
		}
	}
	return ""
}

func (s *unitSource) open(u *unit, tree, rel string) {
	u.tree, u.dir = tree, rel
	at := func(tree, name string) *file {
		if tree == "" {
			return nil
		}
		path := filepath.Join(tree, rel, name)
		if !exists(path) {
			return nil
		}
		return s.h.kept(path)
	}
	t := s.trees
	u.procs = s.h.kept(filepath.Join(tree, rel, "cgroup.procs"))
	if u.memory = at(t.memory, "memory.current"); u.memory != nil {
		u.limit = s.h.kept(filepath.Join(t.memory, rel, "memory.max"))
	} else if u.memory = at(t.memory, "memory.usage_in_bytes"); u.memory != nil {
		u.limit = s.h.kept(filepath.Join(t.memory, rel, "memory.limit_in_bytes"))
	}
	if u.cpu = at(t.unified, "cpu.stat"); u.cpu != nil {
		u.cpuInStat, u.cpuFactor = true, 1e-6
	} else if u.cpu = at(t.cpu, "cpuacct.usage"); u.cpu != nil {
		u.cpuFactor = 1e-9
	}
	u.tasks = at(t.pids, "pids.current")
	u.events = at(t.memory, "memory.events")
	for i, name := range [...]string{"cpu.pressure", "memory.pressure", "io.pressure"} {
		u.pressure[i] = at(t.unified, name)
	}
}

// maxProcesses bounds how many processes of one unit are looked at.
const maxProcesses = 512

// threads is how many a process has, at least 1.
func (s *unitSource) threads(pid uint64) int {
	b, err := os.ReadFile(filepath.Join(s.h.proc, strconv.FormatUint(pid, 10), "stat"))
	if err != nil {
		return 1
	}
	// After the name, which may hold anything, it is the 18th field.
	b = b[bytes.LastIndexByte(b, ')')+1:]
	for range 17 {
		_, b = cutField(b)
	}
	if n, _, ok := cutUint(bytes.TrimLeft(b, " ")); ok && n > 0 && n < 1<<22 {
		return int(n)
	}
	return 1
}

// openFiles is how many files a process has open, and how many it may have; NaN where
// it is gone or may not be asked. Linux tells the number as the size of the directory
// since 6.2; before that they are counted.
func (s *unitSource) openFiles(pid uint64) (open, most float64) {
	if pid == 0 {
		return math.NaN(), math.NaN()
	}
	dir := filepath.Join(s.h.proc, strconv.FormatUint(pid, 10))
	info, err := os.Stat(filepath.Join(dir, "fd"))
	if err != nil {
		return math.NaN(), math.NaN()
	}
	open = float64(info.Size())
	if open == 0 {
		names, err := readNames(filepath.Join(dir, "fd"))
		if err != nil {
			return math.NaN(), math.NaN()
		}
		open = float64(len(names))
	}
	most = math.NaN()
	if b, err := os.ReadFile(filepath.Join(dir, "limits")); err == nil {
		if _, rest, ok := bytes.Cut(b, []byte("Max open files")); ok {
			if v, _, ok := cutUint(bytes.TrimLeft(rest, " ")); ok {
				most = float64(v)
			}
		}
	}
	return open, most
}

// readNames lists a directory, bounded.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1 << 20)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// processes counts the processes of the unit and, where no memory controller
// does it, adds up their private resident memory. first is the first of them.
func (s *unitSource) processes(u *unit) (pids int, resident float64, first uint64) {
	if u.memory == nil {
		resident = 0
	} else {
		resident = math.NaN()
	}
	b, err := u.procs.read()
	if err == nil {
		s.add(b, &pids, &resident)
		for len(b) > 0 && first == 0 {
			var line []byte
			line, b = cutLine(b)
			first, _ = parseUint(trimSpace(line))
		}
	}
	if pids == 0 || u.memory == nil {
		// Services may put their processes into cgroups of their own making.
		s.below(filepath.Join(u.tree, u.dir), 3, &pids, &resident)
	}
	return pids, resident, first
}

func (s *unitSource) below(dir string, depth int, pids *int, resident *float64) {
	entries, err := os.ReadDir(dir)
	if err != nil || depth == 0 {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || *pids >= maxProcesses {
			continue
		}
		child := filepath.Join(dir, e.Name())
		if b, err := os.ReadFile(filepath.Join(child, "cgroup.procs")); err == nil {
			s.add(b, pids, resident)
		}
		s.below(child, depth-1, pids, resident)
	}
}

func (s *unitSource) add(procs []byte, pids *int, resident *float64) {
	for len(procs) > 0 && *pids < maxProcesses {
		var line []byte
		line, procs = cutLine(procs)
		pid, ok := parseUint(trimSpace(line))
		if !ok || pid == 0 { // 0 is a process of another PID namespace
			continue
		}
		*pids++
		if !math.IsNaN(*resident) {
			*resident += s.private(pid)
		}
	}
}

// private is a process's resident memory that no file backs.
func (s *unitSource) private(pid uint64) float64 {
	b, err := os.ReadFile(filepath.Join(s.h.proc, strconv.FormatUint(pid, 10), "statm"))
	if err != nil {
		return 0 // it is gone
	}
	_, b = cutField(b)
	resident, b, ok := cutUint(b)
	shared, _, ok2 := cutUint(b)
	if !ok || !ok2 || shared > resident {
		return 0
	}
	return float64(resident-shared) * pageSize
}

var systemdMetrics = append([]Metric{
	gauge("units_failed", "1", "failed units of the host", "systemd over D-Bus"),
}, each("unit",
	unitActive,
	state("unit_failed", "whether systemd has given the unit up", "systemd over D-Bus"),
	rate("unit_restarts_per_second", "1/s", "restarts that systemd did by itself", "systemd over D-Bus NRestarts"),
)...)

// systemdSource asks systemd, apart from the cgroups: a systemd that hangs is
// no reason not to read those.
type systemdSource struct{ h *host }

func newSystemdSource(h *host) source {
	if h.config.UnitStats == nil {
		return nil
	}
	return &systemdSource{h}
}

func (s *systemdSource) collect(ctx context.Context, f *frame) error {
	stats, failed, err := s.h.config.UnitStats.UnitStats(ctx, s.h.config.Units)
	if err != nil {
		return err
	}
	f.set("units_failed", float64(failed))
	groups := make(map[string]string, len(stats))
	for _, name := range s.h.config.Units {
		st, ok := stats[name]
		if !ok || !f.admit(name) {
			continue
		}
		groups[name] = st.ControlGroup
		f.setOf("unit_active", name, b2f(st.Active))
		f.setOf("unit_failed", name, b2f(st.Failed))
		f.rateOf("unit_restarts_per_second", name, st.Restarts, 1, counter64)
	}
	s.h.setControlGroups(groups)
	return nil
}

// controlGroups is what systemd said last, for the source that reads them.
type controlGroups struct {
	mu sync.Mutex
	of map[string]string
}

func (h *host) controlGroup(unit string) string {
	h.groups.mu.Lock()
	defer h.groups.mu.Unlock()
	return h.groups.of[unit]
}

func (h *host) setControlGroups(of map[string]string) {
	h.groups.mu.Lock()
	defer h.groups.mu.Unlock()
	h.groups.of = of
}

var healthMetrics = append([]Metric{
	gauge("units_unhealthy", "1", "units whose health check failed", "health checks of the configuration"),
}, each("unit",
	state("unit_healthy", "whether the unit's health check passed", "health checks of the configuration"),
	ratio("unit_health_used_ratio", "share of its time limit that the unit's health check took", "health checks of the configuration"),
)...)

// UnitHealth is what a unit's health check found.
type UnitHealth struct {
	Healthy bool
	// Used is the share of its time limit that the check took, NaN where that is not known.
	Used float64
}

type healthSource struct{ h *host }

func newHealthSource(h *host) source {
	if h.config.UnitHealth == nil {
		return nil
	}
	return &healthSource{h}
}

func (s *healthSource) collect(ctx context.Context, f *frame) error {
	health := s.h.config.UnitHealth(ctx)
	if len(health) == 0 {
		return errNoData
	}
	unhealthy := 0
	for name, h := range health {
		if !h.Healthy {
			unhealthy++
		}
		if validUnit(name) == nil && f.admit(name) {
			f.setOf("unit_healthy", name, b2f(h.Healthy))
			f.setOf("unit_health_used_ratio", name, h.Used)
		}
	}
	f.set("units_unhealthy", float64(unhealthy))
	return nil
}

// validUnit says what is wrong with a unit's name (systemd.unit(5)).
func validUnit(name string) error {
	if len(name) > 255 {
		return fmt.Errorf("unit name %.20q… is longer than 255 characters", name)
	}
	for _, r := range name {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(`:-_.\@`, r) {
			continue
		}
		return fmt.Errorf("unit name %q has the character %q, which systemd does not allow", name, r)
	}
	if i := strings.LastIndexByte(name, '.'); i <= 0 || i == len(name)-1 {
		return fmt.Errorf("unit name %q needs its type at the end, such as libvirtd.service", name)
	}
	return nil
}
