package collector

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	gopsutil "github.com/shirou/gopsutil/v3/host"
)

// Documentation/driver-api/edac.rst, Documentation/ABI/testing/sysfs-devices-edac,
// Documentation/admin-guide/md.rst and the comments in the kernel's therm_throt.c
// describe the files.
var hardwareMetrics = append([]Metric{
	rate("edac_corrected_errors_per_second", "1/s", "memory errors that the hardware corrected", "/sys/devices/system/edac/mc/mc*/ce_count"),
	rate("edac_uncorrected_errors_per_second", "1/s", "memory errors that the hardware could not correct", "/sys/devices/system/edac/mc/mc*/ue_count"),
	gauge("edac_corrected_errors_since_boot", "1", "memory errors that the hardware corrected since its driver was loaded", "/sys/devices/system/edac/mc/mc*/ce_count"),
	gauge("edac_uncorrected_errors_since_boot", "1", "memory errors that the hardware could not correct since its driver was loaded", "/sys/devices/system/edac/mc/mc*/ue_count"),
	rate("machine_checks_per_second", "1/s", "machine check exceptions on all CPUs", "/proc/interrupts MCE"),
	rate("thermal_events_per_second", "1/s", "thermal interrupts on all CPUs", "/proc/interrupts TRM"),
	rate("cpu_core_throttles_per_second", "1/s", "times that a core slowed down for heat", "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"),
	rate("cpu_package_throttles_per_second", "1/s", "times that a package slowed down for heat", "/sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count"),
	gauge("temperature_max_celsius", "celsius", "the hottest sensor", "gopsutil host.SensorsTemperatures"),
	gauge("temperature_headroom_min_celsius", "celsius", "least distance of a sensor from its critical temperature", "gopsutil host.SensorsTemperatures"),
	gauge("raid_missing_disks", "1", "disks that software RAID arrays lack", "/sys/block/md*/md/degraded"),
}, each("dimm",
	rate("dimm_corrected_errors_per_second", "1/s", "errors of the memory module that the hardware corrected", "/sys/devices/system/edac/mc/mc*/dimm*/dimm_ce_count"),
	rate("dimm_uncorrected_errors_per_second", "1/s", "errors of the memory module that the hardware could not correct", "/sys/devices/system/edac/mc/mc*/dimm*/dimm_ue_count"),
)...)

// hardwareSource reads what the hardware says of itself. It looks now and then,
// since some of it takes long to read and none of it changes fast.
type hardwareSource struct {
	h          *host
	interrupts *file
	counters   map[string]*file
}

func newHardwareSource(h *host) source {
	return &hardwareSource{h: h, interrupts: h.kept(filepath.Join(h.proc, "interrupts")), counters: make(map[string]*file)}
}

func (s *hardwareSource) close() error {
	s.interrupts.close()
	for _, k := range s.counters {
		k.close()
	}
	return nil
}

// number reads a counter of sysfs, whose file is kept open.
func (s *hardwareSource) number(path string) (uint64, bool) {
	k := s.counters[path]
	if k == nil {
		if len(s.counters) >= 4096 || !exists(path) {
			return 0, false
		}
		k = s.h.kept(path)
		s.counters[path] = k
	}
	v, err := k.number()
	if err != nil {
		k.close()
		delete(s.counters, path)
		return 0, false
	}
	return v, true
}

// entries lists the names in a directory that begin with a prefix.
func entries(dir, prefix string) []string {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range all {
		if n, ok := strings.CutPrefix(e.Name(), prefix); ok && n != "" && n[0] >= '0' && n[0] <= '9' {
			names = append(names, e.Name())
		}
	}
	return names
}

func (s *hardwareSource) collect(ctx context.Context, f *frame) error {
	s.memory(f)
	err := s.events(f)
	s.throttling(f)
	s.raid(f)
	// Sensors that cannot be read are left out by gopsutil, which says so with
	// an error besides what it found.
	sensors, _ := gopsutil.SensorsTemperaturesWithContext(ctx)
	hottest, headroom := math.NaN(), math.NaN()
	for _, t := range sensors {
		if t.Temperature > -100 && t.Temperature < 250 && t.Temperature != 0 {
			maxOf(&hottest, t.Temperature)
			if t.Critical > 0 && t.Critical < 250 {
				minOf(&headroom, t.Critical-t.Temperature)
			}
		}
	}
	f.set("temperature_max_celsius", hottest)
	f.set("temperature_headroom_min_celsius", headroom)
	return err
}

func (s *hardwareSource) memory(f *frame) {
	root := filepath.Join(s.h.sys, "devices/system/edac/mc")
	nan := math.NaN()
	corrected, uncorrected, correctedRate, uncorrectedRate := nan, nan, nan, nan
	for _, mc := range entries(root, "mc") {
		dir := filepath.Join(root, mc)
		if v, ok := s.number(filepath.Join(dir, "ce_count")); ok {
			sumOf(&corrected, float64(v))
			d, seconds := f.delta("ce", mc, v, counter64)
			sumOf(&correctedRate, d/seconds)
		}
		if v, ok := s.number(filepath.Join(dir, "ue_count")); ok {
			sumOf(&uncorrected, float64(v))
			d, seconds := f.delta("ue", mc, v, counter64)
			sumOf(&uncorrectedRate, d/seconds)
		}
		modules := entries(dir, "dimm")
		if len(modules) == 0 {
			modules = entries(dir, "rank")
		}
		for _, dimm := range modules {
			name := instanceName(mc + "/" + dimm)
			if !f.admit(name) {
				continue
			}
			if v, ok := s.number(filepath.Join(dir, dimm, "dimm_ce_count")); ok {
				f.rateOf("dimm_corrected_errors_per_second", name, v, 1, counter64)
			}
			if v, ok := s.number(filepath.Join(dir, dimm, "dimm_ue_count")); ok {
				f.rateOf("dimm_uncorrected_errors_per_second", name, v, 1, counter64)
			}
		}
	}
	f.set("edac_corrected_errors_since_boot", corrected)
	f.set("edac_uncorrected_errors_since_boot", uncorrected)
	f.set("edac_corrected_errors_per_second", correctedRate)
	f.set("edac_uncorrected_errors_per_second", uncorrectedRate)
}

// events reads the architecture's own lines of /proc/interrupts.
func (s *hardwareSource) events(f *frame) error {
	b, err := s.interrupts.read()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, rest := cutField(line)
		metric := ""
		switch string(key) {
		case "MCE:":
			metric = "machine_checks_per_second"
		case "TRM:":
			metric = "thermal_events_per_second"
		default:
			continue
		}
		var sum uint64
		for {
			v, after, ok := cutUint(rest)
			if !ok {
				break
			}
			sum, rest = sum+v, after
		}
		f.rate(metric, sum, 1)
	}
	return nil
}

func (s *hardwareSource) throttling(f *frame) {
	root := filepath.Join(s.h.sys, "devices/system/cpu")
	core, pkg := math.NaN(), math.NaN()
	counted := make(map[uint64]bool) // packages: each CPU of one shows the same count
	for _, cpu := range entries(root, "cpu") {
		dir := filepath.Join(root, cpu)
		v, ok := s.number(filepath.Join(dir, "thermal_throttle/core_throttle_count"))
		if !ok {
			continue
		}
		d, seconds := f.delta("core", cpu, v, counter64)
		sumOf(&core, d/seconds)
		id, ok := s.number(filepath.Join(dir, "topology/physical_package_id"))
		if !ok || counted[id] {
			continue
		}
		if v, ok := s.number(filepath.Join(dir, "thermal_throttle/package_throttle_count")); ok {
			counted[id] = true
			d, seconds := f.delta("package", cpu, v, counter64)
			sumOf(&pkg, d/seconds)
		}
	}
	f.set("cpu_core_throttles_per_second", core)
	f.set("cpu_package_throttles_per_second", pkg)
}

func (s *hardwareSource) raid(f *frame) {
	missing := math.NaN()
	for _, md := range entries(filepath.Join(s.h.sys, "block"), "md") {
		if v, ok := s.number(filepath.Join(s.h.sys, "block", md, "md/degraded")); ok {
			sumOf(&missing, float64(v))
		}
	}
	f.set("raid_missing_disks", missing)
}
