package b

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"

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
