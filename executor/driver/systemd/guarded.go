package systemd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is one whose death a restart must not cause.
type process struct {
	pid    int
	what   string
	cgroup string
}

// hypervisors are the names of the programs that run VMs.
var hypervisors = []string{"qemu-system-", "qemu-kvm", "kvm", "cloud-hypervisor", "firecracker", "crosvm"}

func isHypervisor(name string) bool {
	for _, h := range hypervisors {
		if name == h || strings.HasSuffix(h, "-") && strings.HasPrefix(name, h) {
			return true
		}
	}
	return false
}

// guarded lists the processes of VMs, and this one. A process that cannot be looked
// at for another reason than that it ended is an error: it might be a VM.
func (s *Services) guarded() ([]process, error) {
	entries, err := os.ReadDir(s.cfg.Proc)
	if err != nil {
		return nil, fmt.Errorf("find the processes of VMs: %w", err)
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(s.cfg.Proc, e.Name())
		what, err := vm(dir)
		if pid == os.Getpid() && s.cfg.Proc == "/proc" {
			what, err = "the agent itself", nil
		}
		if err == nil && what == "" {
			continue
		}
		var cgroup string
		if err == nil {
			cgroup, err = cgroupOf(dir)
		}
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find out where process %d lives: %w", pid, err)
		}
		out = append(out, process{pid, what, cgroup})
	}
	return out, nil
}

// vm names the hypervisor that a process is, or is "".
func vm(dir string) (string, error) {
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", err
	}
	if len(cmdline) == 0 {
		return "", nil // a kernel thread
	}
	program, _, _ := strings.Cut(string(cmdline), "\x00")
	// A process can rename itself, but not its executable.
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return "", err
	}
	for _, name := range []string{strings.TrimSuffix(filepath.Base(exe), " (deleted)"), filepath.Base(program)} {
		if isHypervisor(name) {
			return "the VM in process " + filepath.Base(dir) + " (" + name + ")", nil
		}
	}
	return "", nil
}

func gone(err error) bool {
	// Reading the files of a process that just ended gives ESRCH or ENOENT.
	return errors.Is(err, os.ErrNotExist) || err != nil && strings.Contains(err.Error(), "no such process")
}

// cgroupOf is the control group of a process in systemd's hierarchy; see cgroups(7).
func cgroupOf(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return "", err
	}
	unified := ""
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[1] == "name=systemd" {
			return parts[2], nil
		}
		if parts[0] == "0" && parts[1] == "" {
			unified = parts[2]
		}
	}
	if unified == "" {
		return "", fmt.Errorf("%s has no control group of systemd's", filepath.Join(dir, "cgroup"))
	}
	return unified, nil
}

// kills says which guarded process the stop of a unit would kill; see
// systemd.kill(5) for the modes.
func kills(guarded []process, cgroup, mode string, main int) string {
	for _, p := range guarded {
		inside := cgroup != "" && (p.cgroup == cgroup || strings.HasPrefix(p.cgroup, strings.TrimSuffix(cgroup, "/")+"/"))
		if !inside {
			continue
		}
		switch {
		case mode == "process" || mode == "none":
			if p.pid == main {
				return fmt.Sprintf("%s is its main process", p.what)
			}
		default:
			return fmt.Sprintf("%s lives in its control group %s and would be killed (KillMode=%s)", p.what, cgroup, mode)
		}
	}
	return ""
}
