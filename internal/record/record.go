// Package record makes recordings of real faults: it boots a systemd host in a container, lets
// the agent's sampler watch its services, brings a fault upon it, and notes when the health
// check of the service fails. A run's host, its services and all that the fault uses up (but for
// the machine's own CPUs, disks and memory) are its own, and end with the run.
package record

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Kind is a fault that can be recorded.
type Kind string

// The faults. They befall the service "storage"; those of the whole host are made by programs
// beside it.
const (
	MemoryLeak     Kind = "memory-leak"     // it takes 4 MiB/s until it may have no more
	DescriptorLeak Kind = "descriptor-leak" // it opens 6 files a second until it may have no more
	HungService    Kind = "hung-service"    // its requests wait for a lock, ever more of them
	ForkStorm      Kind = "fork-storm"      // it starts ever more processes that compute
	FullDisk       Kind = "full-disk"       // it fills its file system by 1 MiB/s
	CPUHog         Kind = "cpu-hog"         // stress-ng computes on a host of one CPU, with two more workers every 3 s
	IOStall        Kind = "io-stall"        // stress-ng writes and syncs on the service's disk of 8 MiB/s, with one more worker every 3 s
	PacketLoss     Kind = "packet-loss"     // nft drops packets, 2 % more every second
)

// Kinds lists the faults.
func Kinds() []Kind {
	return []Kind{MemoryLeak, DescriptorLeak, HungService, ForkStorm, FullDisk, CPUHog, IOStall, PacketLoss}
}

// Signature is the class of fault that a kind belongs to.
func (k Kind) Signature() fleet.Signature {
	switch k {
	case MemoryLeak:
		return fleet.SignatureMemoryLeak
	case DescriptorLeak, HungService, ForkStorm:
		return fleet.SignatureServiceHang
	case FullDisk, IOStall:
		return fleet.SignatureDisk
	case CPUHog:
		return fleet.SignatureNoisyNeighbour
	case PacketLoss:
		return fleet.SignatureNetwork
	}
	return fleet.SignatureUnknown
}

// Fault is the truth of a run, a line of faults.jsonl in the form that the simulator's
// faults have too.
type Fault struct {
	ID        int             `json:"id"`
	Host      fleet.HostID    `json:"host"`
	Kind      Kind            `json:"kind"`
	Signature fleet.Signature `json:"signature"`
	Culprit   string          `json:"culprit"`
	// Start is when it was brought about, Effect the same: it works at once.
	Start  time.Time `json:"start"`
	Effect time.Time `json:"effect"`
	// End is when the first of three health checks in a row failed, or else the run ended.
	End    time.Time `json:"end"`
	Ending Ending    `json:"ending"`
}

// Ending is how a fault ended.
type Ending string

// The endings.
const (
	Failed  Ending = "failed"   // the health check failed
	HeldOut Ending = "held-out" // it did not before the run's end
)

// Config says what to record.
type Config struct {
	// Program is this program's file, which runs on the hosts too.
	Program string
	// Kinds are the faults, Runs how often each, Parallel how many hosts at a time.
	Kinds    []Kind
	Runs     int
	Parallel int
	// Calm is how long each host is watched before its fault, at least; Most how long the fault lasts
	// at most.
	Calm, Most time.Duration
	Interval   time.Duration
	// Source is the command, for the manifest.
	Source string
	// Progress, where it is not nil, is called with what has just happened.
	Progress func(text string)
}

// failedChecks in a row make a failure.
const failedChecks = 3

// diskBytes is the size of a host's /data.
const diskBytes = 96 << 20

// diskRate is how many bytes a second go to it at most, where that is what the fault uses up.
const diskRate = 8 << 20

// after is for how long a failed host is watched on.
const after = 5 * time.Second

// unit is the service that faults befall, services are all.
const unit = "storage.service"

var services = []string{"storage", "network", "monitor"}

// sample is a line of what the sampler on a host writes.
type sample struct {
	Time   time.Time `json:"time"`
	Boot   string    `json:"boot"`
	Series []string  `json:"series,omitempty"` // where they changed
	Values []*float64
}

// Line returns a sampler's line for a sample; with series where they are not those of the
// line before.
func Line(s fleet.Sample, series bool) ([]byte, error) {
	l := sample{Time: s.Time, Boot: s.Boot, Values: make([]*float64, len(s.Values))}
	if series {
		l.Series = s.Schema.Names()
	}
	for i := range s.Values {
		if !math.IsNaN(s.Values[i]) && !math.IsInf(s.Values[i], 0) {
			l.Values[i] = &s.Values[i]
		}
	}
	b, err := json.Marshal(l)
	return append(b, '\n'), err
}

// run is one recorded host.
type run struct {
	host   fleet.HostID
	kind   Kind
	fault  Fault
	series []string
	at     []time.Time
	boot   string
	values [][]float64
}

// Run records, and makes the directory out, which must not exist, in the form of package
// telemetry. It needs root, systemd-nspawn, stress-ng and nft.
func Run(ctx context.Context, cfg Config, out string) (telemetry.Manifest, []Fault, error) {
	var none telemetry.Manifest
	if os.Getuid() != 0 {
		return none, nil, errors.New("recording boots hosts with systemd-nspawn: run it as root")
	}
	for program, pkg := range map[string]string{"systemd-nspawn": "systemd-container", "stress-ng": "stress-ng", "nft": "nftables", "mke2fs": "e2fsprogs", "dbus-daemon": "dbus"} {
		if _, err := exec.LookPath(program); err != nil {
			return none, nil, fmt.Errorf("recording needs %s: install the package %s", program, pkg)
		}
	}
	if _, err := os.Stat(out); err == nil {
		return none, nil, fmt.Errorf("%s exists already: name a new directory", out)
	}
	// What is recorded for minutes can be written then.
	if err := os.MkdirAll(out, 0o755); err != nil {
		return none, nil, fmt.Errorf("%s cannot be made: %w", out, err)
	}
	if err := os.Remove(out); err != nil {
		return none, nil, err
	}
	var runs []*run
	for n := range cfg.Runs {
		for _, k := range cfg.Kinds {
			runs = append(runs, &run{host: fleet.HostID(fmt.Sprintf("%s-%d", k, n+1)), kind: k})
		}
	}
	start := time.Now().UTC()
	free := make(chan struct{}, max(1, cfg.Parallel))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, r := range runs {
		wg.Go(func() {
			select {
			case free <- struct{}{}:
				defer func() { <-free }()
			case <-ctx.Done():
				return
			}
			if err := r.record(ctx, cfg); err != nil {
				cancel(fmt.Errorf("record %s: %w", r.host, err))
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return none, nil, err
	}
	return write(runs, cfg, start, out)
}

func write(runs []*run, cfg Config, start time.Time, out string) (telemetry.Manifest, []Fault, error) {
	m := telemetry.Manifest{Source: cfg.Source, Start: start, Interval: cfg.Interval.Seconds(), Calm: cfg.Calm.Seconds()}
	column := make(map[string]int)
	for _, r := range runs {
		m.Hosts = append(m.Hosts, telemetry.Host{ID: r.host})
		for _, name := range r.series {
			if _, ok := column[name]; !ok {
				column[name] = len(m.Series)
				m.Series = append(m.Series, name)
			}
		}
	}
	w, err := telemetry.Create(out, m)
	if err != nil {
		return m, nil, err
	}
	defer w.Discard()
	var faults []Fault
	var lines []any
	for i, r := range runs {
		r.fault.ID = i + 1
		x := make([]float64, len(m.Series))
		for k, values := range r.values {
			for j := range x {
				x[j] = math.NaN()
			}
			for j, v := range values {
				x[column[r.series[j]]] = v
			}
			if err := w.Append(i, r.at[k], r.boot, x); err != nil {
				return m, nil, err
			}
		}
		faults, lines = append(faults, r.fault), append(lines, r.fault)
	}
	m, err = w.Close(lines)
	return m, faults, err
}

// record boots a host, watches it, lets it fail, and reads what its sampler wrote.
func (r *run) record(ctx context.Context, cfg Config) (err error) {
	dir, err := os.MkdirTemp("", "record")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	share := filepath.Join(dir, "share")
	if err := makeHost(dir, cfg); err != nil {
		return err
	}
	disk := filepath.Join(dir, "data")
	if err := makeDisk(ctx, disk); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, syscall.Unmount(disk, 0)) }()
	console, err := os.Create(filepath.Join(dir, "console"))
	if err != nil {
		return err
	}
	defer console.Close()
	host := exec.Command("systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--private-network",
		"--machine=tardigrade-"+filepath.Base(dir), "--directory="+filepath.Join(dir, "root"), "--bind-ro=/usr", "--bind-ro="+cfg.Program+":/tardigrade", "--bind="+share+":/share", "--bind="+disk+":/data")
	host.Stdout, host.Stderr = console, console
	limits, err := r.kind.limits(disk)
	if err != nil {
		return err
	}
	if err := start(host, filepath.Base(dir), limits); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- host.Wait() }()
	defer func() {
		// The host's first process is the child of nspawn; with it all others end.
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", host.Process.Pid))
		for _, child := range strings.Fields(string(children)) {
			if pid, err := strconv.Atoi(child); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			_ = host.Process.Kill()
			<-ended
		}
		removeGroups(filepath.Base(dir))
	}()
	read := func() error { return r.read(filepath.Join(share, "samples.jsonl")) }
	wait := func(what string, limit time.Duration, done func() bool) error {
		deadline := time.After(limit)
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case err := <-ended:
				ended <- err
				text, _ := os.ReadFile(console.Name())
				return fmt.Errorf("its host ended while %s (%v): %s", what, err, tail(text))
			case <-deadline:
				text, _ := os.ReadFile(console.Name())
				return fmt.Errorf("%v passed while %s: %s", limit, what, tail(text))
			case <-time.After(cfg.Interval / 2):
			}
			if err := read(); err != nil {
				return err
			}
			if done() {
				return nil
			}
		}
	}
	if err := wait("its services started", time.Minute, func() bool { return r.healthySince(0) }); err != nil {
		return err
	}
	first := len(r.at)
	if err := wait("it was watched in calm", cfg.Calm+time.Minute, func() bool {
		return len(r.at) > first && r.at[len(r.at)-1].Sub(r.at[first]) >= cfg.Calm
	}); err != nil {
		return err
	}
	now := time.Now().UTC()
	r.fault = Fault{Host: r.host, Kind: r.kind, Signature: r.kind.Signature(), Culprit: unit, Start: now, Effect: now, Ending: HeldOut}
	cfg.say("%s: the fault begins", r.host)
	if err := os.WriteFile(filepath.Join(share, "fault.new"), []byte(r.kind+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(share, "fault.new"), filepath.Join(share, "fault")); err != nil {
		return err
	}
	if err := wait("it failed", cfg.Most+time.Minute, func() bool {
		r.fault.End = r.at[len(r.at)-1]
		failed := r.failed()
		if failed.IsZero() {
			return r.fault.End.Sub(r.fault.Start) >= cfg.Most
		}
		long := r.fault.End.Sub(failed) >= after+failedChecks*cfg.Interval
		r.fault.End, r.fault.Ending = failed, Failed
		return long
	}); err != nil {
		return err
	}
	if r.fault.Ending == HeldOut {
		cfg.say("%s: the service held out", r.host)
	} else {
		cfg.say("%s: its health check failed after %v", r.host, r.fault.End.Sub(r.fault.Start).Round(time.Second))
	}
	return nil
}

func (c Config) say(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}

func tail(text []byte) []byte { return bytes.TrimSpace(text[max(0, len(text)-1000):]) }

// read takes the whole lines that the sampler has written so far.
func (r *run) read(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r.at, r.values = r.at[:0], r.values[:0]
	index := make(map[string]int, len(r.series))
	for i, name := range r.series {
		index[name] = i
	}
	var columns []int
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil // what is not whole will be
		}
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if s.Series != nil {
			columns = columns[:0]
			for _, name := range s.Series {
				if _, ok := index[name]; !ok {
					index[name] = len(r.series)
					r.series = append(r.series, name)
				}
				columns = append(columns, index[name])
			}
		}
		if len(s.Values) != len(columns) {
			return fmt.Errorf("%s: %d values for %d series", path, len(s.Values), len(columns))
		}
		values := make([]float64, len(r.series))
		for i := range values {
			values[i] = math.NaN()
		}
		for i, v := range s.Values {
			if v != nil {
				values[columns[i]] = *v
			}
		}
		r.boot = s.Boot
		r.at, r.values = append(r.at, s.Time), append(r.values, values)
	}
}

// healthy tells whether the unit was in sample k.
func (r *run) healthy(k int) bool {
	at := func(metric string) float64 {
		i := slices.Index(r.series, fleet.SeriesName(metric, unit))
		if i < 0 || i >= len(r.values[k]) {
			return math.NaN()
		}
		return r.values[k][i]
	}
	return at("unit_healthy") == 1 && at("unit_active") != 0
}

// healthySince tells whether the last samples, from first on, are at least three and healthy.
func (r *run) healthySince(first int) bool {
	n := len(r.at)
	if n-first < failedChecks {
		return false
	}
	for k := n - failedChecks; k < n; k++ {
		if !r.healthy(k) {
			return false
		}
	}
	return true
}

// failed is when the first of three unhealthy samples in a row after the begin of the fault was taken.
func (r *run) failed() time.Time {
	bad := 0
	for k, at := range r.at {
		if at.Before(r.fault.Start) || r.healthy(k) {
			bad = 0
			continue
		}
		if bad++; bad == failedChecks {
			return r.at[k-failedChecks+1]
		}
	}
	return time.Time{}
}

// start starts a host in control groups of its own: hosts that share one would see, and
// stop, each other's processes.
func start(host *exec.Cmd, name string, limits []limit) error {
	const join = `while [ "$1" != -- ]; do mkdir -p "$1" && echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"`
	nspawn, err := exec.LookPath(host.Args[0])
	if err != nil {
		return err
	}
	in := groups(name)
	for _, l := range limits {
		dir, err := l.set(name)
		if err != nil {
			return err
		}
		if !slices.Contains(in, dir) {
			in = append(in, dir)
		}
	}
	args := append([]string{"sh", "-c", join, "sh"}, in...)
	host.Path, err = exec.LookPath("sh")
	if err != nil {
		return err
	}
	host.Args = append(append(args, "--", nspawn), host.Args[1:]...)
	host.Err = nil
	return host.Start()
}

const cgroups = "/sys/fs/cgroup"

// limit is what a host may have of something of this machine, where its fault uses that up: what
// to write, by version 1 and 2 of control groups.
type limit struct {
	controller, file, value string // version 1
	file2, value2           string
}

// limits are those of a kind. disk is where the host's /data is mounted.
func (k Kind) limits(disk string) ([]limit, error) {
	switch k {
	case CPUHog: // one CPU
		return []limit{{"cpu", "cpu.cfs_quota_us", "100000", "cpu.max", "100000 100000"}}, nil
	case IOStall:
		var st unix.Stat_t
		if err := unix.Stat(disk, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", disk, err)
		}
		device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		return []limit{{"blkio", "blkio.throttle.write_bps_device", fmt.Sprintf("%s %d", device, diskRate), "io.max", fmt.Sprintf("%s wbps=%d", device, diskRate)}}, nil
	}
	return nil, nil
}

// set makes the host's control group with the limit, and returns it.
func (l limit) set(name string) (string, error) {
	dir, file, value := filepath.Join(cgroups, l.controller, "tardigrade-"+name), l.file, l.value
	if _, err := os.Stat(filepath.Join(cgroups, l.controller)); err != nil {
		dir, file, value = filepath.Join(cgroups, "tardigrade-"+name), l.file2, l.value2
		controller, _, _ := strings.Cut(file, ".")
		if err := os.WriteFile(filepath.Join(cgroups, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return "", fmt.Errorf("a recorded host needs the control group controller %s: %w", controller, err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
		return "", fmt.Errorf("limit a recorded host: %w", err)
	}
	return dir, nil
}

func groups(name string) []string {
	var out []string
	for _, hierarchy := range []string{"systemd", "unified", ""} {
		parent := filepath.Join(cgroups, hierarchy)
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err == nil {
			out = append(out, filepath.Join(parent, "tardigrade-"+name))
		}
	}
	return out
}

func removeGroups(name string) {
	for _, g := range append(groups(name), filepath.Join(cgroups, "cpu", "tardigrade-"+name), filepath.Join(cgroups, "blkio", "tardigrade-"+name)) {
		_ = exec.Command("find", g, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
	}
}

// makeHost makes the root of a host that shares this machine's /usr, and its /share.
func makeHost(dir string, cfg Config) error {
	root := filepath.Join(dir, "root")
	for _, d := range []string{"usr", "etc/systemd/system", "proc", "sys", "dev", "run", "tmp", "var/tmp", "var/log", "var/lib/hog", "root", "data"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "share"), 0o755); err != nil {
		return err
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			return err
		}
	}
	for _, f := range []string{"nsswitch.conf", "os-release", "ld.so.cache", "passwd", "group"} {
		data, err := os.ReadFile("/etc/" + f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", f), data, 0o644); err != nil {
			return err
		}
	}
	if err := os.CopyFS(filepath.Join(root, "etc/alternatives"), os.DirFS("/etc/alternatives")); err != nil && !os.IsNotExist(err) {
		return err
	}
	for name, text := range unitFiles(cfg.Interval) {
		if err := os.WriteFile(filepath.Join(root, "etc/systemd/system", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"agent.yaml": agentConfig(cfg.Interval), "hogs": hogs} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := os.Symlink("tardigrade.target", filepath.Join(root, "etc/systemd/system/default.target")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o444)
}

// makeDisk mounts a small file system of its own, in a file beside it.
func makeDisk(ctx context.Context, at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	f, err := os.Create(at + ".img")
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(diskBytes), f.Close()); err != nil {
		return err
	}
	for _, args := range [][]string{{"mke2fs", "-q", "-t", "ext4", f.Name()}, {"mount", "-o", "loop", f.Name(), at}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tail(out))
		}
	}
	return nil
}

func unitFiles(interval time.Duration) map[string]string {
	files := map[string]string{
		"tardigrade.target": "[Unit]\nRequires=basic.target\nWants=dbus.service sampler.service hog.path " + strings.Join(services, ".service ") + ".service\nAfter=basic.target\nAllowIsolate=yes\n",
		"sampler.service":   "[Service]\nExecStart=/tardigrade dataset sampler --config /etc/agent.yaml --out /share/samples.jsonl\nNice=-15\n",
		"hog.path":          "[Path]\nPathExists=/share/fault\n",
		"hog.service":       "[Unit]\nStartLimitIntervalSec=0\n[Service]\nNice=-5\nExecStart=/bin/sh /etc/hogs\n",
	}
	for i, name := range services {
		files[name+".service"] = fmt.Sprintf(`[Service]
ExecStartPre=/bin/mkdir -p /data/%[1]s /var/lib/%[1]s
ExecStart=/tardigrade dataset service --listen 127.0.0.1:%[2]d --store /data/%[1]s --log /var/lib/%[1]s --share %[3]s
Nice=10
LimitNOFILE=512
LimitDATA=400M
OOMPolicy=continue
`, name, 7001+i, map[bool]string{true: "/share", false: "/nowhere"}[i == 0])
	}
	return files
}

// hogs are the faults that programs beside the service make.
const hogs = `case $(cat /share/fault) in
cpu-hog) for n in $(seq 80); do nice -n 15 stress-ng --quiet --cpu 1 --timeout 600 & sleep 1.5; done;;
io-stall) mkdir /data/hog; for n in $(seq 40); do stress-ng --quiet --hdd 1 --hdd-bytes 1M --hdd-write-size 512K --hdd-opts fsync --temp-path /data/hog --timeout 600 & sleep 3; done;;
packet-loss)
  nft add table inet faults && nft "add chain inet faults in { type filter hook input priority 0; }"
  for n in $(seq 2 2 90); do nft flush chain inet faults in; nft add rule inet faults in iif lo numgen random mod 100 "<" $n drop; sleep 1; done;;
esac
wait
sleep 600`

func agentConfig(interval time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "agent:\n  host: recorded\n  interval: %v\n  units:\n", interval)
	for i, name := range services {
		fmt.Fprintf(&b, "    - {name: %s.service, health: {http: \"http://127.0.0.1:%d/\", timeout: 1s}}\n", name, 7001+i)
	}
	return b.String()
}
