package libvirt

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// definition is the part of a guest's XML that ties it to its host.
type definition struct {
	CPU struct {
		Mode string `xml:"mode,attr"`
	} `xml:"cpu"`
	Devices struct {
		Passed []struct {
			Type string `xml:"type,attr"`
			Mode string `xml:"mode,attr"`
		} `xml:"hostdev"`
		Disks []struct {
			Type     string    `xml:"type,attr"`
			ReadOnly *struct{} `xml:"readonly"`
			Source   struct {
				File string `xml:"file,attr"`
				Dev  string `xml:"dev,attr"`
				Dir  string `xml:"dir,attr"`
			} `xml:"source"`
		} `xml:"disk"`
		Interfaces []struct {
			Type string `xml:"type,attr"`
		} `xml:"interface"`
		Filesystems []struct {
			Source struct {
				Dir string `xml:"dir,attr"`
			} `xml:"source"`
		} `xml:"filesystem"`
	} `xml:"devices"`
}

// traits reads what a guest is tied to, once for each of its runs.
func (h *Host) traits(s *session, d rpc.Domain) traits {
	key := id(d.UUID) + "." + strconv.Itoa(int(d.ID))
	h.mu.Lock()
	t, ok := h.known[key]
	h.mu.Unlock()
	if ok {
		return t
	}
	text, err := s.DomainGetXMLDesc(d, 0)
	if err != nil {
		return traits{}
	}
	t = h.read(text)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= maxGuests {
		clear(h.known)
	}
	h.known[key] = t
	return t
}

// read finds in a definition what ties the guest to this host.
func (h *Host) read(text string) traits {
	var def definition
	if err := xml.Unmarshal([]byte(text), &def); err != nil {
		return traits{pinned: "its definition cannot be read: " + err.Error()}
	}
	t := traits{hostCPU: def.CPU.Mode == "host-passthrough" || def.CPU.Mode == "host-model" || def.CPU.Mode == "maximum"}
	var pins []string
	for _, p := range def.Devices.Passed {
		pins = append(pins, fmt.Sprintf("a %s device of the host is passed through to it", strings.TrimSpace(p.Type)))
	}
	for _, i := range def.Devices.Interfaces {
		if i.Type == "hostdev" {
			pins = append(pins, "a network device of the host is passed through to it")
		}
	}
	for _, f := range def.Devices.Filesystems {
		pins = append(pins, fmt.Sprintf("it has the host's directory %s", f.Source.Dir))
	}
	for _, d := range def.Devices.Disks {
		path := d.Source.File + d.Source.Dev + d.Source.Dir
		if d.ReadOnly != nil || path == "" || h.shared(path) {
			continue
		}
		pins = append(pins, fmt.Sprintf("its disk %s is not on storage that is known to be shared", path))
	}
	t.pinned = strings.Join(pins, "; ")
	return t
}

// Magic numbers of file systems that hosts have in common (statfs(2), and the
// kernel's fs/ceph, fs/ocfs2 and fs/gfs2).
var sharedFilesystems = map[int64]bool{
	unix.NFS_SUPER_MAGIC: true, unix.SMB_SUPER_MAGIC: true, unix.CIFS_SUPER_MAGIC: true, unix.SMB2_SUPER_MAGIC: true, unix.CEPH_SUPER_MAGIC: true,
	unix.OCFS2_SUPER_MAGIC: true, unix.AFS_SUPER_MAGIC: true, 0x01161970: true, // gfs2
}

// shared tells whether a path is the same on all hosts.
func (h *Host) shared(path string) bool {
	path = filepath.Clean(path)
	for _, s := range h.cfg.Move.Shared {
		s = filepath.Clean(s)
		if path == s || strings.HasPrefix(path, strings.TrimSuffix(s, "/")+"/") {
			return true
		}
	}
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && sharedFilesystems[int64(fs.Type)]
}

// CPU describes the host's CPU from the text of /proc/cpuinfo.
func CPU(cpuinfo string) fleet.CPU {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	c := fleet.CPU{Arch: arch}
	for line := range strings.Lines(cpuinfo) {
		name, value, found := strings.Cut(line, ":")
		if !found {
			if c.Model != "" || c.Flags != "" {
				break // the first CPU speaks for all
			}
			continue
		}
		switch strings.TrimSpace(name) {
		case "model name":
			c.Model = strings.TrimSpace(value)
		case "flags", "Features":
			c.Flags = sorted(strings.Fields(value))
		}
	}
	return c
}
