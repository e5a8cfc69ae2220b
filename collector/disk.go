package collector

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// Documentation/admin-guide/iostats.rst describes /proc/diskstats. gopsutil's
// disk.IOCounters reads the same file, without discards and flushes, and asks
// udev about each device every time.
var diskMetrics = append([]Metric{
	rate("disks_read_bytes_per_second", "bytes/s", "read from all disks", "/proc/diskstats"),
	rate("disks_write_bytes_per_second", "bytes/s", "written to all disks", "/proc/diskstats"),
	rate("disks_reads_per_second", "1/s", "read requests of all disks", "/proc/diskstats"),
	rate("disks_writes_per_second", "1/s", "write requests of all disks", "/proc/diskstats"),
	gauge("disks_in_flight", "1", "requests that the disks have not answered yet", "/proc/diskstats"),
	gauge("disk_read_latency_max_seconds", "seconds", "mean time of a read on the slowest disk", "/proc/diskstats"),
	gauge("disk_write_latency_max_seconds", "seconds", "mean time of a write on the slowest disk", "/proc/diskstats"),
	gauge("disk_flush_latency_max_seconds", "seconds", "mean time of a flush on the slowest disk", "/proc/diskstats"),
	ratio("disk_utilization_max_ratio", "share of time that the busiest disk had requests", "/proc/diskstats"),
	gauge("disk_queue_max", "1", "mean number of requests at the disk with the longest queue", "/proc/diskstats"),
	rate("disks_io_errors_per_second", "1/s", "requests that disks answered with an error", "/sys/block/*/device/ioerr_cnt"),
}, each("disk",
	rate("disk_read_bytes_per_second", "bytes/s", "read from the disk", "/proc/diskstats"),
	rate("disk_write_bytes_per_second", "bytes/s", "written to the disk", "/proc/diskstats"),
	rate("disk_reads_per_second", "1/s", "read requests", "/proc/diskstats"),
	rate("disk_writes_per_second", "1/s", "write requests", "/proc/diskstats"),
	gauge("disk_read_latency_seconds", "seconds", "mean time of a read; missing when there was none", "/proc/diskstats"),
	gauge("disk_write_latency_seconds", "seconds", "mean time of a write; missing when there was none", "/proc/diskstats"),
	gauge("disk_in_flight", "1", "requests not answered yet", "/proc/diskstats"),
	ratio("disk_utilization_ratio", "share of time with requests", "/proc/diskstats"),
	gauge("disk_queue", "1", "mean number of requests, waiting ones included", "/proc/diskstats"),
	rate("disk_io_errors_per_second", "1/s", "requests answered with an error", "/sys/block/*/device/ioerr_cnt"),
)...)

type diskSource struct {
	h     *host
	stats *file
	disks map[string]*blockDevice // every name of /proc/diskstats
}

// blockDevice is what is known of a line of /proc/diskstats.
type blockDevice struct {
	name string // of the series
	// counted is false for partitions, loop devices and the like, and for
	// devices made of disks that are counted already.
	counted bool
	ioerr   *file // nil where the driver does not count errors
	round   uint64
}

func newDiskSource(h *host) source {
	return &diskSource{h: h, stats: h.kept(filepath.Join(h.proc, "diskstats")), disks: make(map[string]*blockDevice)}
}

func (s *diskSource) close() error {
	s.stats.close()
	for _, d := range s.disks {
		if d.ioerr != nil {
			d.ioerr.close()
		}
	}
	return nil
}

// identify looks up what kind of device a name of /proc/diskstats is.
func (s *diskSource) identify(name string) *blockDevice {
	d := &blockDevice{name: instanceName(name)}
	for _, p := range []string{"loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "drbd"} {
		if strings.HasPrefix(name, p) {
			return d
		}
	}
	// The kernel writes '/' in a name as '!'. Only whole disks are in /sys/block.
	dir := filepath.Join(s.h.sys, "block", strings.ReplaceAll(name, "/", "!"))
	if name == "." || name == ".." {
		return d
	}
	if _, err := os.Stat(dir); err != nil {
		return d
	}
	d.counted = true
	errors := filepath.Join(dir, "device", "ioerr_cnt")
	if _, err := os.Stat(errors); err == nil {
		d.ioerr = s.h.kept(errors)
	}
	return d
}

func (s *diskSource) collect(_ context.Context, f *frame) error {
	b, err := s.stats.read()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errNoData
		}
		return err
	}
	nan := math.NaN()
	var t = diskTotals{nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		_, rest := cutField(line)
		_, rest = cutField(rest)
		name, rest := cutField(rest)
		if len(name) == 0 {
			continue
		}
		d := s.disks[string(name)]
		if d == nil {
			d = s.identify(string(name))
			s.disks[string(name)] = d
		}
		d.round = f.round
		if d.counted {
			s.one(f, d, rest, &t)
		}
	}
	for name, d := range s.disks {
		if d.round != f.round { // gone: another device may come under this name
			if d.ioerr != nil {
				d.ioerr.close()
			}
			delete(s.disks, name)
		}
	}
	f.set("disks_read_bytes_per_second", t.readBytes)
	f.set("disks_write_bytes_per_second", t.writeBytes)
	f.set("disks_reads_per_second", t.reads)
	f.set("disks_writes_per_second", t.writes)
	f.set("disks_in_flight", t.inFlight)
	f.set("disk_read_latency_max_seconds", t.readLatency)
	f.set("disk_write_latency_max_seconds", t.writeLatency)
	f.set("disk_flush_latency_max_seconds", t.flushLatency)
	f.set("disk_utilization_max_ratio", t.utilization)
	f.set("disk_queue_max", t.queue)
	f.set("disks_io_errors_per_second", t.errors)
	return nil
}

type diskTotals struct {
	readBytes, writeBytes, reads, writes, inFlight, readLatency, writeLatency, flushLatency, utilization, queue, errors float64
}

const sector = 512

// Milliseconds in /proc/diskstats have 32 bits. They grow with the number of
// requests in flight, of which a disk has no more than some tens of thousands.
var (
	requestMillis = counter32(1e8)
	clockMillis   = counter32(2e3)
)

// one reads the fields of one disk, from "reads completed" on.
func (s *diskSource) one(f *frame, d *blockDevice, fields []byte, t *diskTotals) {
	var v [17]uint64
	n := 0
	for n < len(v) {
		var ok bool
		if v[n], fields, ok = cutUint(fields); !ok {
			break
		}
		n++
	}
	if n < 11 {
		return
	}
	shown := f.admit(d.name)
	put := func(metric string, v float64) float64 {
		if shown {
			f.setOf(metric, d.name, v)
		}
		return v
	}
	// The totals want every disk, also those that found no place.
	growth := func(metric string, raw uint64, w width) (float64, float64) {
		return f.delta(metric, d.name, raw, w)
	}
	reads, seconds := growth("disk_reads_per_second", v[0], counter64)
	readSectors, _ := growth("disk_read_bytes_per_second", v[2], counter64)
	readMillis, _ := growth("disk_read_latency_seconds", v[3], requestMillis)
	writes, _ := growth("disk_writes_per_second", v[4], counter64)
	writeSectors, _ := growth("disk_write_bytes_per_second", v[6], counter64)
	writeMillis, _ := growth("disk_write_latency_seconds", v[7], requestMillis)
	busyMillis, _ := growth("disk_utilization_ratio", v[9], clockMillis)
	queueMillis, _ := growth("disk_queue", v[10], requestMillis)

	sumOf(&t.reads, put("disk_reads_per_second", reads/seconds))
	sumOf(&t.writes, put("disk_writes_per_second", writes/seconds))
	sumOf(&t.readBytes, put("disk_read_bytes_per_second", readSectors*sector/seconds))
	sumOf(&t.writeBytes, put("disk_write_bytes_per_second", writeSectors*sector/seconds))
	maxOf(&t.readLatency, put("disk_read_latency_seconds", share(readMillis/1e3, reads)))
	maxOf(&t.writeLatency, put("disk_write_latency_seconds", share(writeMillis/1e3, writes)))
	sumOf(&t.inFlight, put("disk_in_flight", float64(v[8])))
	maxOf(&t.utilization, put("disk_utilization_ratio", clampRatio(busyMillis/1e3/seconds)))
	maxOf(&t.queue, put("disk_queue", queueMillis/1e3/seconds))
	if n == 17 { // kernel 5.5 and later count flushes
		flushes, _ := growth("disk_flushes", v[15], counter64)
		flushMillis, _ := growth("disk_flush_seconds", v[16], requestMillis)
		maxOf(&t.flushLatency, share(flushMillis/1e3, flushes))
	}
	if d.ioerr != nil {
		if b, err := d.ioerr.read(); err == nil {
			if raw, ok := parseHex(bytes.TrimPrefix(trimSpace(b), []byte("0x"))); ok {
				errs, _ := growth("disk_io_errors_per_second", raw, counter32(1e6))
				sumOf(&t.errors, put("disk_io_errors_per_second", errs/seconds))
			}
		}
	}
}
