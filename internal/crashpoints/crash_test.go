package crashpoints

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

// tally is what all crash points come to.
type tally struct {
	CrashPoints      int `json:"crashpoints"`
	Recovered        int `json:"recovered"`
	LostVMs          int `json:"lost_vms"`
	DoubleExecutions int `json:"double_executions"`
	Stuck            int `json:"stuck"`
}

func (a *tally) add(b tally) {
	a.CrashPoints += b.CrashPoints
	a.Recovered += b.Recovered
	a.LostVMs += b.LostVMs
	a.DoubleExecutions += b.DoubleExecutions
	a.Stuck += b.Stuck
}

// on boots a systemd host, runs part there, and takes what it counted.
func on(t *testing.T, units map[string]string, part func(t *testing.T) tally) tally {
	t.Helper()
	if drivertest.Inside() {
		got := part(t)
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/share/tally", data, 0o600); err != nil {
			t.Fatal(err)
		}
		return got
	}
	data, err := os.ReadFile(filepath.Join(drivertest.OnSystemdFor(t, units, 12*time.Minute), "tally"))
	if err != nil {
		t.Fatal(err)
	}
	var got tally
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// counted is a service that writes a line at each start and takes a moment to stop, so
// that there is a midst of its restart.
func counted(name string) string {
	return fmt.Sprintf("[Service]\nExecStartPre=/bin/sh -c 'echo started >> /run/%s.starts'\nExecStart=/bin/sleep infinity\nExecStopPost=/bin/sleep 0.02\n", name)
}

func starts(t *testing.T, unit string) int {
	t.Helper()
	data, err := os.ReadFile("/run/" + strings.TrimSuffix(unit, ".service") + ".starts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
}

const guestMiB = 16

// TestCrashPoints ends processes at all their writes and prints what came of it.
func TestCrashPoints(t *testing.T) {
	var total tally
	units := map[string]string{}
	for _, n := range []string{"storage", "network", "monitor"} {
		units[n+".service"] = counted(n)
	}
	t.Run("recycle", func(t *testing.T) { total.add(on(t, units, recycleAgent)) })
	t.Run("reset", func(t *testing.T) { total.add(resetAgent(t)) })
	lanes := map[string]string{}
	for i := range laneWays {
		for _, u := range laneUnits(i) {
			lanes[u] = counted(strings.TrimSuffix(u, ".service"))
		}
	}
	t.Run("controlplane", func(t *testing.T) { total.add(on(t, lanes, controlPlane)) })
	if drivertest.Inside() {
		return
	}
	line, err := json.Marshal(total)
	if err != nil {
		t.Fatal(err)
	}
	if total.Recovered != total.CrashPoints || total.LostVMs+total.DoubleExecutions+total.Stuck != 0 {
		t.Errorf("not every crash was recovered from: %s", line)
	}
	if total.CrashPoints < 60 {
		t.Errorf("only %d crash points were found", total.CrashPoints)
	}
	fmt.Println(string(line))
}

// child runs this program in a role until it ends; killed tells whether it was ended
// by itself at the point that kill names.
func child(t *testing.T, role string, env ...string) (killed bool, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), append(env, envRole+"="+role)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return false, errStuck
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return false, err
}

var errStuck = errors.New("the process did not come to an end")

// enumerate makes point for the first write, the second, and so on in each way, until
// there is no such write.
func enumerate(t *testing.T, point func(kill string) (crashed bool, got tally)) (total tally) {
	t.Helper()
	for _, way := range ways {
		total.add(enumerateWay(t, way, point))
	}
	return total
}

// enumerateWay is enumerate for one way.
func enumerateWay(t *testing.T, way string, point func(kill string) (crashed bool, got tally)) (total tally) {
	t.Helper()
	for k := 1; k < 200; k++ {
		crashed, got := point(fmt.Sprintf("%d:%s", k, way))
		total.add(got)
		if !crashed || t.Failed() {
			return total
		}
	}
	t.Error("there is no end of writes")
	return total
}

// recycleAgent ends the agent at every write of a recycle of real services, with a
// guest beside them.
func recycleAgent(t *testing.T) tally {
	names := []string{"storage.service", "network.service", "monitor.service"}
	systemctl(t, append([]string{"start"}, names...)...)
	dir := short(t)
	sockets := filepath.Join(dir, "q")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	guest := rigtest.StartQEMU(t, sockets, "vm", guestMiB)
	guest.AwaitTicks(10, time.Minute)
	n := 0
	return enumerate(t, func(kill string) (bool, tally) {
		n++
		at := filepath.Join(dir, fmt.Sprint(n))
		command(t, at, fleet.PhaseRecycle)
		env := []string{envDir + "=" + at, envUnits + "=" + strings.Join(names, " "), envQMP + "=" + sockets}
		before := make(map[string]int)
		for _, u := range names {
			before[u] = starts(t, u)
		}
		killed, got, bad := twice(t, kill, env...)
		bad = append(bad, ended(at)...)
		for _, u := range names {
			if d := starts(t, u) - before[u]; d > 1 {
				got.DoubleExecutions++
				bad = append(bad, fmt.Sprintf("%s was started %d times", u, d))
			} else if d < 1 {
				bad = append(bad, u+" was not restarted")
			}
		}
		bad = append(bad, lost(t, guest, &got)...)
		if len(bad) > 0 {
			t.Errorf("%s: %s", kill, strings.Join(bad, "; "))
		} else if killed {
			got.Recovered++
		}
		return killed, got
	})
}

// short is a directory whose path is short enough for sockets.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "crash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// command writes the command of a phase into a new directory.
func command(t *testing.T, dir string, phase fleet.Phase) {
	t.Helper()
	now := time.Now().UTC()
	c := fleet.Command{ID: "x1." + string(phase) + ".1", Execution: "x1", Host: "h", Phase: phase, Attempt: 1, Token: 1, Issued: now, NotAfter: now.Add(4 * time.Minute), Deadline: now.Add(4 * time.Minute)}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "command.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ended says what is wrong with the reports of a command that is to have succeeded.
func ended(dir string) []string {
	all, err := readReports(filepath.Join(dir, "reports.jsonl"))
	if err != nil {
		return []string{err.Error()}
	}
	if len(all) == 0 || all[len(all)-1].Result != fleet.ResultSucceeded {
		return []string{fmt.Sprintf("the reports end with %+v", all[max(0, len(all)-1):])}
	}
	return nil
}

// lost says what a guest noticed that it should not have.
func lost(t *testing.T, guest *rigtest.QEMU, got *tally) []string {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := guest.Watch.Await(ctx, 2)
	a, pids := guest.Watch.Account(), guest.PIDs()
	if err == nil && a.Boots == 1 && a.Jumps == 0 && a.Corrupt == 0 && len(pids) == 1 {
		return nil
	}
	if len(pids) > 1 {
		got.DoubleExecutions++
	} else {
		got.LostVMs++
	}
	return []string{fmt.Sprintf("guest %s noticed: %+v, processes %v, %v", guest.ID, a, pids, err)}
}

// resetAgent ends the agent at every write, and at every station of the VMs, of a
// preserving reset that gives two guests new QEMU processes.
func resetAgent(t *testing.T) tally {
	dir := short(t)
	sockets := filepath.Join(dir, "q")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	guests := []*rigtest.QEMU{rigtest.StartQEMU(t, sockets, "vm1", guestMiB), rigtest.StartQEMU(t, sockets, "vm2", guestMiB)}
	for _, g := range guests {
		g.AwaitTicks(10, time.Minute)
	}
	n := 0
	point := func(kill string) (bool, tally) {
		n++
		at := filepath.Join(dir, fmt.Sprint(n))
		command(t, at, fleet.PhaseReset)
		before := fmt.Sprint(guests[0].PIDs(), guests[1].PIDs())
		killed, got, bad := twice(t, kill, envDir+"="+at, envQMP+"="+sockets)
		bad = append(bad, ended(at)...)
		for _, g := range guests {
			bad = append(bad, lost(t, g, &got)...)
		}
		if after := fmt.Sprint(guests[0].PIDs(), guests[1].PIDs()); after == before {
			bad = append(bad, "the guests are in the same processes as before")
		}
		if _, err := os.Stat(filepath.Join(at, "reset", qmp.PlanName)); !errors.Is(err, os.ErrNotExist) {
			bad = append(bad, fmt.Sprintf("the plan is left behind: %v", err))
		}
		if len(bad) > 0 {
			t.Errorf("%s: %s", kill, strings.Join(bad, "; "))
		} else if killed {
			got.Recovered++
		}
		return killed, got
	}
	total := enumerate(t, point)
	total.add(enumerateWay(t, station, point))
	return total
}

// twice runs the agent until it ends itself as kill says, and then once more.
func twice(t *testing.T, kill string, env ...string) (killed bool, got tally, bad []string) {
	killed, err := child(t, "agent", append(env, envKill+"="+kill)...)
	if err != nil {
		return killed, got, []string{err.Error()}
	}
	if !killed {
		return false, got, nil
	}
	got.CrashPoints++
	again, err := child(t, "agent", env...)
	if errors.Is(err, errStuck) {
		got.Stuck++
	}
	if err != nil || again {
		bad = append(bad, fmt.Sprintf("started again: %v", err))
	}
	return true, got, bad
}
