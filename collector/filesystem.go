package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shirou/gopsutil/v3/disk"
)

var filesystemMetrics = append([]Metric{
	ratio("filesystem_available_min_ratio", "free space of the fullest local file system", "gopsutil disk.Usage"),
	ratio("filesystem_inodes_free_min_ratio", "free inodes of the local file system with the least of them", "gopsutil disk.Usage"),
	gauge("filesystems_read_only", "1", "local file systems that are mounted read-only now and were not when sampling began", "/proc/1/mountinfo"),
	gauge("filesystems_mounted", "1", "local file systems", "/proc/1/mountinfo"),
	gauge("filesystem_errors_recorded", "1", "errors that ext4 has found in its file systems and not seen repaired", "/sys/fs/ext4/*/errors_count"),
}, each("filesystem",
	gauge("filesystem_available_bytes", "bytes", "space that programs can use", "gopsutil disk.Usage"),
	ratio("filesystem_available_ratio", "filesystem_available_bytes of its size", "gopsutil disk.Usage"),
	ratio("filesystem_inodes_free_ratio", "free inodes of all", "gopsutil disk.Usage"),
	state("filesystem_read_only", "whether the mount or the file system itself is read-only", "/proc/1/mountinfo"),
)...)

// usage is how full a file system is. Zero inodes means that it has no limit.
type usage struct {
	Total, Available, Inodes, InodesFree uint64
}

func statfs(path string) (usage, error) {
	u, err := disk.Usage(path)
	if err != nil {
		return usage{}, err
	}
	return usage{Total: u.Total, Available: u.Free, Inodes: u.InodesTotal, InodesFree: u.InodesFree}, nil
}

// filesystemSource looks at the local file systems. The mount table is read
// here, since gopsutil's disk.Partitions knows the options of the mount only,
// and the kernel's own remount after an error shows in those of the file system
// (proc_pid_mountinfo(5)).
type filesystemSource struct {
	h        *host
	mounts   *file
	types    *file
	local    map[string]bool // file system types that live on a block device
	writable map[string]bool // mounts seen writable, by device
	// The tables as they were when seen was made of them: they seldom change.
	seenMounts, seenTypes []byte
	seen                  []mount
}

func newFilesystemSource(h *host) source {
	return &filesystemSource{
		h:        h,
		mounts:   h.kept(filepath.Join(h.proc, "1/mountinfo")),
		types:    h.kept(filepath.Join(h.proc, "filesystems")),
		writable: make(map[string]bool),
	}
}

func (s *filesystemSource) close() error { s.mounts.close(); s.types.close(); return nil }

// mount is a line of mountinfo.
type mount struct {
	device   string // major:minor
	point    string
	kind     string
	readOnly bool
}

func (s *filesystemSource) collect(_ context.Context, f *frame) error {
	if err := s.readTypes(); err != nil {
		return err
	}
	b, err := s.mounts.read()
	if err != nil {
		// Not everyone may look at process 1; our own mounts are the next best.
		s.mounts.close()
		s.mounts = s.h.kept(filepath.Join(s.h.proc, "self/mountinfo"))
		if b, err = s.mounts.read(); err != nil {
			return err
		}
	}
	if s.seen == nil || !bytes.Equal(b, s.seenMounts) {
		s.seenMounts = append(s.seenMounts[:0], b...)
		s.seen = s.localMounts(b)
	}
	mounts := s.seen
	if len(mounts) == 0 {
		return errNoData
	}
	leastSpace, leastInodes, readOnly := math.NaN(), math.NaN(), 0
	var errs error
	for _, m := range mounts {
		name := instanceName(m.point)
		shown := f.admit(name)
		put := func(metric string, v float64) float64 {
			if shown {
				f.setOf(metric, name, v)
			}
			return v
		}
		put("filesystem_read_only", b2f(m.readOnly))
		if !m.readOnly {
			s.writable[m.device] = true
		} else if s.writable[m.device] {
			readOnly++
		}
		u, err := s.h.statfs(m.point)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("free space of %s: %w", m.point, err))
			continue
		}
		put("filesystem_available_bytes", float64(u.Available))
		space := put("filesystem_available_ratio", share(float64(u.Available), float64(u.Total)))
		inodes := put("filesystem_inodes_free_ratio", share(float64(u.InodesFree), float64(u.Inodes)))
		if !m.readOnly || s.writable[m.device] { // an image that is always full says nothing
			minOf(&leastSpace, space)
			minOf(&leastInodes, inodes)
		}
	}
	s.ext4(f)
	f.set("filesystem_available_min_ratio", leastSpace)
	f.set("filesystem_inodes_free_min_ratio", leastInodes)
	f.set("filesystems_read_only", float64(readOnly))
	f.set("filesystems_mounted", float64(len(mounts)))
	return errs
}

// ext4 adds up the errors that file systems have noted in their superblocks
// (Documentation/ABI/testing/sysfs-fs-ext4).
func (s *filesystemSource) ext4(f *frame) {
	dir := filepath.Join(s.h.sys, "fs/ext4")
	devices, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	sum := math.NaN()
	for _, d := range devices {
		if b, err := os.ReadFile(filepath.Join(dir, d.Name(), "errors_count")); err == nil {
			if v, ok := parseUint(trimSpace(b)); ok {
				sumOf(&sum, float64(v))
			}
		}
	}
	f.set("filesystem_errors_recorded", sum)
}

func (s *filesystemSource) readTypes() error {
	b, err := s.types.read()
	if err != nil {
		return err
	}
	if s.local != nil && bytes.Equal(b, s.seenTypes) {
		return nil
	}
	s.seenTypes = append(s.seenTypes[:0], b...)
	s.seen = nil
	s.local = make(map[string]bool)
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if !bytes.HasPrefix(line, []byte("nodev")) {
			s.local[string(trimSpace(line))] = true
		}
	}
	s.local["btrfs"], s.local["zfs"] = true, true // whose types say nodev or whose modules load late
	return nil
}

// localMounts returns one mount for each device, the one with the shortest path,
// in the order of the paths and at most 256 of them.
func (s *filesystemSource) localMounts(b []byte) []mount {
	byDevice := make(map[string]mount)
	for len(b) > 0 && len(byDevice) < 256 {
		var line []byte
		line, b = cutLine(b)
		m, ok := parseMount(line)
		if !ok || !s.local[m.kind] || m.kind == "squashfs" || m.kind == "iso9660" {
			continue
		}
		was, ok := byDevice[m.device]
		if !ok || len(m.point) < len(was.point) {
			byDevice[m.device] = m
		}
	}
	mounts := make([]mount, 0, len(byDevice))
	for _, m := range byDevice {
		mounts = append(mounts, m)
	}
	slices.SortFunc(mounts, func(a, b mount) int { return strings.Compare(a.point, b.point) })
	return mounts
}

// parseMount reads "36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/x rw,errors=continue".
func parseMount(line []byte) (m mount, ok bool) {
	left, right, ok := bytes.Cut(line, []byte(" - "))
	if !ok {
		return m, false
	}
	var fields [6][]byte
	for i := range fields {
		fields[i], left = cutField(left)
	}
	kind, right := cutField(right)
	_, right = cutField(right)
	super, _ := cutField(right)
	if len(fields[5]) == 0 || len(kind) == 0 {
		return m, false
	}
	return mount{
		device:   string(fields[2]),
		point:    unescapeMount(fields[4]),
		kind:     string(kind),
		readOnly: hasOption(fields[5], "ro") || hasOption(super, "ro"),
	}, true
}

func hasOption(options []byte, want string) bool {
	for len(options) > 0 {
		var one []byte
		one, options, _ = bytes.Cut(options, []byte(","))
		if string(one) == want {
			return true
		}
	}
	return false
}

// unescapeMount undoes the kernel's \040 for blanks, newlines and backslashes.
func unescapeMount(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) && octal(b[i+1]) && octal(b[i+2]) && octal(b[i+3]) {
			out = append(out, (b[i+1]-'0')<<6|(b[i+2]-'0')<<3|b[i+3]-'0')
			i += 3
			continue
		}
		out = append(out, b[i])
	}
	return string(out)
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

var networkFilesystemMetrics = append([]Metric{
	gauge("network_filesystems_mounted", "1", "file systems mounted from other machines; missing while one of them does not answer", "/proc/1/mountinfo"),
	ratio("network_filesystem_available_min_ratio", "free space of the fullest file system of another machine", "gopsutil disk.Usage"),
}, each("filesystem",
	ratio("network_filesystem_available_ratio", "free space of all", "gopsutil disk.Usage"),
)...)

// networkFilesystemSource looks at file systems of other machines, apart from
// the local ones: a server that does not answer makes this source hang and no other.
type networkFilesystemSource struct {
	h          *host
	mounts     *file
	seenMounts []byte
	seen       []mount
}

func newNetworkFilesystemSource(h *host) source {
	return &networkFilesystemSource{h: h, mounts: h.kept(filepath.Join(h.proc, "1/mountinfo"))}
}

func (s *networkFilesystemSource) close() error { s.mounts.close(); return nil }

var networkFilesystems = map[string]bool{
	"nfs": true, "nfs4": true, "cifs": true, "smb3": true, "ceph": true, "9p": true, "afs": true, "ocfs2": true,
	"gfs2": true, "lustre": true, "fuse.glusterfs": true, "fuse.ceph-fuse": true, "fuse.sshfs": true,
}

func (s *networkFilesystemSource) collect(_ context.Context, f *frame) error {
	b, err := s.mounts.read()
	if err != nil {
		s.mounts.close()
		s.mounts = s.h.kept(filepath.Join(s.h.proc, "self/mountinfo"))
		if b, err = s.mounts.read(); err != nil {
			return err
		}
	}
	if !bytes.Equal(b, s.seenMounts) {
		s.seenMounts = append(s.seenMounts[:0], b...)
		s.seen = remoteMounts(b)
	}
	least := math.NaN()
	var errs error
	for _, m := range s.seen {
		u, err := s.h.statfs(m.point)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("free space of %s: %w", m.point, err))
			continue
		}
		available := share(float64(u.Available), float64(u.Total))
		minOf(&least, available)
		if name := instanceName(m.point); f.admit(name) {
			f.setOf("network_filesystem_available_ratio", name, available)
		}
	}
	f.set("network_filesystems_mounted", float64(len(s.seen)))
	f.set("network_filesystem_available_min_ratio", least)
	return errs
}

// remoteMounts returns one mount for each file system of another machine, at
// most 256 of them.
func remoteMounts(b []byte) []mount {
	var mounts []mount
	seen := make(map[string]bool)
	for len(b) > 0 && len(mounts) < 256 {
		var line []byte
		line, b = cutLine(b)
		m, ok := parseMount(line)
		if !ok || !networkFilesystems[m.kind] || seen[m.device] {
			continue
		}
		seen[m.device] = true
		mounts = append(mounts, m)
	}
	return mounts
}
