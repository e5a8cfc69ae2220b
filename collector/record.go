package collector

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"
)

// recorded are the files that sources read, as patterns (path.Match) under the roots.
// Of processes there is what the process source needs.
var recorded = map[string][]string{
	"proc": {
		"stat", "meminfo", "vmstat", "loadavg", "diskstats", "swaps", "uptime", "mounts", "filesystems", "interrupts",
		"1/mountinfo", "1/cgroup", "self/mountinfo", "self/stat", "self/statm", "[0-9]*/stat", "[0-9]*/statm",
		"net/dev", "net/snmp", "net/snmp6", "net/netstat", "net/sockstat", "net/sockstat6", "net/softnet_stat", "net/rpc/nfs",
		"pressure/cpu", "pressure/io", "pressure/irq", "pressure/memory",
		"sys/fs/file-nr", "sys/fs/inode-nr", "sys/kernel/pid_max", "sys/kernel/threads-max", "sys/kernel/tainted", "sys/kernel/hung_task_detect_count",
		"sys/kernel/random/boot_id", "sys/kernel/random/entropy_avail", "sys/net/netfilter/nf_conntrack_count", "sys/net/netfilter/nf_conntrack_max",
	},
	"sys": {
		"block/*/device/ioerr_cnt", "block/*/device/iodone_cnt", "block/*/queue/rotational", "block/*/dev", "block/*/size", "block/md*/md/degraded", "block/*/partition",
		"class/net/*/carrier_changes", "class/net/*/operstate", "class/net/*/speed", "class/net/*/type", "class/net/*/flags",
		"class/hwmon/hwmon*/name", "class/hwmon/hwmon*/temp*_input", "class/hwmon/hwmon*/temp*_crit", "class/hwmon/hwmon*/temp*_max",
		"class/thermal/thermal_zone*/temp", "class/thermal/thermal_zone*/type",
		"devices/system/cpu/online", "devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count", "devices/system/cpu/cpu[0-9]*/topology/physical_package_id",
		"devices/system/edac/mc/mc*/*e_count", "devices/system/edac/mc/mc*/dimm*/dimm_*e_count",
		"devices/system/node/node*/meminfo", "fs/ext4/*/errors_count", "kernel/oops_count", "kernel/warn_count",
		"fs/cgroup/cgroup.controllers", "fs/cgroup/*/cgroup.procs",
	},
}

// unitFiles are the files of a unit's cgroup, under each hierarchy.
var unitFiles = []string{
	"cgroup.procs", "memory.current", "memory.max", "memory.events", "memory.usage_in_bytes", "memory.limit_in_bytes", "cpu.stat", "cpuacct.usage",
	"pids.current", "cpu.pressure", "memory.pressure", "io.pressure",
}

// Recording describes a recorded host.
type Recording struct {
	// Made says how the files came about: "recorded" or "made by hand after ...".
	Made    string    `json:"made"`
	Time    time.Time `json:"time"`
	Machine string    `json:"machine"`
	Kernel  string    `json:"kernel"`
	Version string    `json:"version"`
	// Interval is the time between the two trees, in seconds of running time.
	IntervalSeconds float64  `json:"interval_s"`
	Units           []string `json:"units"`
}

// maxRecordedFile bounds one file of a recording.
const maxRecordedFile = 1 << 20

// mostRecorded bounds the files that one pattern may match, so that a busy host's
// processes do not fill a recording.
const mostRecorded = 64

// Record returns the files that a sampler of this host reads, as a text archive in the
// form of golang.org/x/tools/txtar: twice, under "first/" and "second/", interval apart,
// so that rates can be told, with the [Recording] as JSON in its comment. Serial numbers,
// network addresses and command lines are not among them, the boot's id is made up.
func Record(ctx context.Context, c Config, machine, version string, interval time.Duration) ([]byte, error) {
	if interval < 100*time.Millisecond {
		return nil, fmt.Errorf("collector: an interval of %v is too short to tell rates: at least 100ms", interval)
	}
	r := Recording{Made: "recorded", Time: now().wall.UTC().Truncate(time.Second), Machine: machine, Version: version, Units: c.Units}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.Kernel = string(bytes.TrimRight(u.Release[:], "\x00"))
	}
	var archive txtar.Archive
	begin := now().running
	if err := recordTree(c, "first", &archive); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(interval):
	}
	r.IntervalSeconds = (now().running - begin).Seconds()
	if err := recordTree(c, "second", &archive); err != nil {
		return nil, err
	}
	comment, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	archive.Comment = append(comment, '\n')
	return txtar.Format(&archive), nil
}

func recordTree(c Config, name string, archive *txtar.Archive) error {
	for _, from := range []struct{ name, root string }{{"proc", c.HostProc}, {"sys", c.HostSys}} {
		root := from.root
		if root == "" {
			root = "/" + from.name
		}
		var all []string
		for _, p := range recorded[from.name] {
			found, err := filepath.Glob(filepath.Join(root, p))
			if err != nil {
				return fmt.Errorf("record: %w", err)
			}
			all = append(all, found[:min(len(found), mostRecorded)]...)
		}
		if from.name == "sys" {
			all = append(all, recordedUnits(root, c.Units)...)
		}
		slices.Sort(all)
		for _, path := range slices.Compact(all) {
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return fmt.Errorf("record: %w", err)
			}
			data, ok := readRecorded(path)
			if !ok {
				continue
			}
			archive.Files = append(archive.Files, txtar.File{Name: filepath.Join(name, from.name, rel), Data: data})
		}
	}
	return nil
}

// recordedUnits finds the cgroup files of the units under every hierarchy.
func recordedUnits(sys string, units []string) []string {
	var out []string
	for _, hierarchy := range []string{"", "*/"} {
		for _, slice := range []string{"", "system.slice/", "*/system.slice/"} {
			for _, unit := range units {
				for _, file := range unitFiles {
					found, _ := filepath.Glob(filepath.Join(sys, "fs/cgroup", hierarchy, slice, unit, file))
					out = append(out, found...)
				}
			}
		}
	}
	return out
}

// readRecorded reads what can be read now; what cannot is what a sampler cannot read
// either.
func readRecorded(path string) ([]byte, bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecordedFile))
	if err != nil || !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return nil, false
	}
	if filepath.Base(path) == "boot_id" {
		data = []byte("00000000-0000-4000-8000-000000000000\n")
	}
	return data, true
}
