package b

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// systemctl runs systemctl on a host.
func (r *rig) systemctl(host fleet.HostID, args ...string) error {
	_, err := r.on(host, append([]string{"systemctl"}, args...)...)
	return err
}

// on runs a program on a host.
func (r *rig) on(host fleet.HostID, argv ...string) (string, error) {
	pid, err := r.hosts[host].PID()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(pid), "-m", "-u", "-i", "-n", "-p", "--"}, argv...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), err
}

// bootID identifies the boot of a host, "" while it has none.
func (r *rig) bootID(host fleet.HostID) string {
	id, err := r.on(host, "cat", "/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(id)
}

// isUp tells whether a host's agent runs and its libvirt answers.
func (r *rig) isUp(host fleet.HostID) bool {
	for _, unit := range []string{"tardigrade-agent.service", "libvirtd.service"} {
		if r.systemctl(host, "is-active", "--quiet", unit) != nil {
			return false
		}
	}
	l := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(filepath.Join(r.hosts[host].Share, "libvirt/libvirt-sock"))))
	if l.Connect() != nil {
		return false
	}
	l.Disconnect()
	return true
}

// startTime is how many seconds a unit took from the begin of its last start until it
// was up.
func (r *rig) startTime(host fleet.HostID, unit string) float64 {
	r.t.Helper()
	out, err := r.on(host, "systemctl", "show", unit, "--property=InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic")
	if err != nil {
		r.t.Fatal(err)
	}
	var begin, end float64
	for line := range strings.Lines(out) {
		fmt.Sscanf(line, "InactiveExitTimestampMonotonic=%f", &begin)
		fmt.Sscanf(line, "ActiveEnterTimestampMonotonic=%f", &end)
	}
	return (end - begin) / float64(time.Second/time.Microsecond)
}

// occupy listens on an address in a network namespace until it is stopped.
func (r *rig) occupy(namespace, address string) (stop func(), err error) {
	var l net.Listener
	err = in(namespace, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}
