package systemd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const simple = "[Service]\nExecStart=/bin/sleep infinity\n"

// alive is a service that shows that it works by a file.
func alive(name string) string {
	return fmt.Sprintf("[Service]\nExecStartPre=/bin/touch /run/%s.alive\nExecStart=/bin/sleep infinity\nExecStopPost=/bin/rm -f /run/%s.alive\n", name, name)
}

var units = map[string]string{
	"good.service":   alive("good"),
	"other.service":  simple,
	"broken.service": "[Service]\nExecStartPre=/bin/false\nExecStart=/bin/sleep infinity\n",
	"crashy.service": simple,
	"again.service":  "[Service]\nExecStartPre=/bin/sh -c 'test -e /run/again || { touch /run/again; exit 1; }'\nExecStart=/bin/sleep infinity\nRestart=on-failure\nRestartSec=200ms\n",
	"stuck.service":  "[Service]\nExecStart=/bin/sh -c 'trap \"\" TERM; touch /run/stuck.ready; exec sleep infinity'\n",
	"once.service":   "[Service]\nType=oneshot\nExecStart=/bin/true\n",
	"kept.service":   "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
	"fixed.service":  "[Unit]\nRefuseManualStop=yes\n" + simple,
	// A process called like QEMU stands for a VM.
	"vm.service":        "[Service]\nExecStart=/tmp/qemu-system-x86_64 infinity\n",
	"mother.service":    "[Service]\nExecStart=/bin/sh -c '/tmp/qemu-system-x86_64 infinity & exec sleep infinity'\n",
	"careful.service":   "[Service]\nKillMode=process\nExecStart=/bin/sh -c '/tmp/qemu-system-x86_64 infinity & exec sleep infinity'\n",
	"base.service":      simple,
	"part.service":      "[Unit]\nPartOf=base.service\n[Service]\nExecStart=/tmp/qemu-system-x86_64 infinity\n",
	"idle-base.service": simple,
	"idle-part.service": "[Unit]\nRequires=idle-base.service\n[Service]\nExecStart=/tmp/qemu-system-x86_64 infinity\n",
	// With the manager of the VMs, what stops all of them would be restarted.
	"manager.service":        simple,
	"libvirt-guests.service": "[Unit]\nRequires=manager.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
	// Known names, for the discovery.
	"libvirtd.service":                 "[Unit]\nAfter=network.target NetworkManager.service\n" + simple,
	"NetworkManager.service":           "[Unit]\nAfter=prometheus-node-exporter.service\n" + simple,
	"prometheus-node-exporter.service": simple,
	"virtqemud.service":                "[Service]\nTimeoutStopSec=1s\nExecStart=/bin/sh -c '/tmp/qemu-system-x86_64 infinity & exec sleep infinity'\n",
	"multipathd.service":               simple,
	"iscsid.service":                   simple,
	"neutron-dhcp-agent.service":       "[Service]\nType=simple\nBusName=org.freedesktop.DBus\nExecStart=/bin/sleep infinity\n",
	"customer-agent.service":           simple,
	"five1.service":                    alive("five1"), "five2.service": alive("five2"), "five3.service": alive("five3"), "five4.service": alive("five4"), "five5.service": alive("five5"),
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
}

// guestOf waits until the guest of a service runs, which has not always begun when the service is started.
func guestOf(t *testing.T, unit string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		out, _ := exec.Command("pgrep", "-f", "^/tmp/qemu-system-x86_64").Output()
		for pid := range strings.FieldsSeq(string(out)) {
			if groups, err := os.ReadFile("/proc/" + pid + "/cgroup"); err == nil && strings.Contains(string(groups), "/"+unit) {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest of %s does not run", unit)
		}
	}
}

func healthFile(name string) driver.Unit {
	return driver.Unit{Name: name + ".service", Health: driver.Health{Exec: []string{"/usr/bin/test", "-e", "/run/" + name + ".alive"}}}
}

// TestOnRealSystemd boots a host and runs itself there.
func TestOnRealSystemd(t *testing.T) {
	if !drivertest.Inside() {
		drivertest.OnSystemd(t, units)
		return
	}
	if err := exec.Command("cp", "/bin/sleep", "/tmp/qemu-system-x86_64").Run(); err != nil {
		t.Fatal(err)
	}
	s := New(Config{
		Units: []driver.Unit{healthFile("good"), {Name: "other.service"}}, Grace: 300 * time.Millisecond, Verify: time.Minute,
		Exclude: []string{"other-excluded*"}, Log: slog.New(slog.DiscardHandler),
	})
	defer s.Close()
	t.Run("conformance", func(t *testing.T) {
		systemctl(t, "start", "good.service", "other.service")
		drivertest.Services(t, drivertest.Bench{
			Services: s, Good: "good.service", Other: "other.service", Broken: "broken.service", Missing: "missing.service",
			Hang: func(t *testing.T) {
				if err := os.Remove("/run/good.alive"); err != nil {
					t.Fatal(err)
				}
			},
			Stop: func(t *testing.T) { systemctl(t, "stop", "good.service") },
		})
	})
	t.Run("refusals", func(t *testing.T) {
		systemctl(t, "start", "vm.service", "mother.service", "careful.service", "base.service", "part.service", "idle-base.service", "kept.service", "fixed.service", "libvirt-guests.service")
		for _, unit := range []string{"vm.service", "mother.service", "careful.service", "part.service"} {
			guestOf(t, unit)
		}
		for unit, want := range map[string]string{
			"dbus.service": "never restarted", "dbus.socket": "never restarted", "systemd-journald.service": "never restarted", "init.scope": "only services",
			"basic.target": "only services", "tardigrade-test.service": "never restarted", "once.service": "runs once", "fixed.service": "RefuseManualStop",
			"vm.service": "lives in its control group", "mother.service": "lives in its control group", "careful.service": "",
			"base.service": "part.service would restart with it: the VM", "idle-base.service": "", "kept.service": "",
			"libvirt-guests.service": "never restarted", "manager.service": "libvirt-guests.service would restart with it",
		} {
			st, err := s.Observe(t.Context(), unit)
			if err != nil || want == "" && st.Refusal != "" || !strings.Contains(st.Refusal, want) {
				t.Errorf("%s: %q, %v; want %q", unit, st.Refusal, err, want)
			}
			if want != "" {
				if err := s.Restart(t.Context(), unit); err == nil {
					t.Errorf("%s was restarted", unit)
				}
			}
		}
		for _, unit := range []string{"", "../../evil.service", "a b", strings.Repeat("a", 5000) + ".service"} {
			if st, err := s.Observe(t.Context(), unit); err == nil && st.Refusal == "" {
				t.Errorf("%.20q may be restarted", unit)
			}
		}
		// With the guest running, the service around it restarts and the guest lives on.
		pid := func() string {
			out, err := exec.Command("pgrep", "-f", "^/tmp/qemu-system-x86_64").Output()
			if err != nil {
				t.Fatal(err)
			}
			return string(out)
		}
		before := pid()
		if err := s.Restart(t.Context(), "careful.service"); err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(before) {
			if !strings.Contains(pid(), line) {
				t.Errorf("the process %s of a VM is gone", line)
			}
		}
	})
	t.Run("its statistics", func(t *testing.T) {
		systemctl(t, "start", "good.service")
		exec.Command("systemctl", "start", "broken.service").Run() // fails
		units, failed, err := s.Stats(t.Context(), []string{"good.service", "broken.service", "missing.service"})
		if err != nil || failed != 1 || len(units) != 2 {
			t.Fatalf("%+v, %d failed, %v", units, failed, err)
		}
		if g := units["good.service"]; !g.Active || g.Failed || !strings.HasSuffix(g.ControlGroup, "/system.slice/good.service") {
			t.Errorf("good: %+v", g)
		}
		if b := units["broken.service"]; b.Active || !b.Failed {
			t.Errorf("broken: %+v", b)
		}
	})
	t.Run("a service that does not stop is killed", func(t *testing.T) {
		systemctl(t, "start", "stuck.service")
		for _, err := os.Stat("/run/stuck.ready"); err != nil; _, err = os.Stat("/run/stuck.ready") {
			if t.Context().Err() != nil {
				t.Fatal("the service never ignored SIGTERM")
			}
			time.Sleep(5 * time.Millisecond)
		}
		defer exec.Command("systemctl", "kill", "--signal=KILL", "stuck.service").Run()
		begin := time.Now()
		if err := s.Restart(t.Context(), "stuck.service"); err != nil {
			t.Fatal(err)
		}
		// By itself systemd would kill it after 90 s.
		if took := time.Since(begin); took < 300*time.Millisecond || took > time.Minute {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("a service that systemd starts again may come right", func(t *testing.T) {
		if err := s.Restart(t.Context(), "again.service"); err == nil {
			t.Error("the first start was to fail")
		}
		if err := s.Verify(t.Context(), "again.service"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the limit on starts does not count", func(t *testing.T) {
		for range 8 {
			if err := s.Restart(t.Context(), "other.service"); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("discovery", func(t *testing.T) { discovery(t) })
	t.Run("health on D-Bus, and for some time", func(t *testing.T) { overTime(t) })
	t.Run("five services are recycled and verified at once", func(t *testing.T) { five(t) })
	t.Run("a service that falls over again is noticed", func(t *testing.T) {
		final, _ := recycle(t, falling{s, "crashy.service"}, []string{"other.service", "crashy.service"})
		if final.Result != fleet.ResultFailed || !strings.Contains(final.Detail, "crashy.service came up and fell over") {
			t.Errorf("%s: %s", final.Result, final.Detail)
		}
	})
}

// falling has a service fall over as soon as it was found to be well.
type falling struct {
	*Services
	unit string
}

func (f falling) Verify(ctx context.Context, unit string) error {
	err := f.Services.Verify(ctx, unit)
	if err != nil || unit != f.unit {
		return err
	}
	if err := exec.CommandContext(ctx, "systemctl", "kill", "--signal=KILL", unit).Run(); err != nil {
		return err
	}
	for exec.CommandContext(ctx, "systemctl", "is-active", "--quiet", unit).Run() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}

// reports collects what a runner says.
type reports struct {
	final chan fleet.Report
}

func (r *reports) PublishReport(_ context.Context, rep fleet.Report) error {
	if rep.Result != "" {
		r.final <- rep
	}
	return nil
}

func recycle(t *testing.T, s host.Services, names []string) (fleet.Report, time.Duration) {
	t.Helper()
	r := &reports{final: make(chan fleet.Report, 1)}
	runner, err := host.New(host.Config{Host: "h", Dir: t.TempDir(), Services: s, Reports: r, Units: func() []string { return names }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- runner.Run(ctx) }()
	defer func() {
		stop()
		<-done
		runner.Close()
	}()
	now := time.Now()
	if err := runner.Handle(ctx, fleet.Command{
		ID: "c", Execution: "x", Host: "h", Phase: fleet.PhaseRecycle, Attempt: 1, Token: 1, Issued: now, NotAfter: now.Add(time.Minute), Deadline: now.Add(2 * time.Minute),
	}); err != nil {
		t.Fatal(err)
	}
	return <-r.final, time.Since(now)
}

func five(t *testing.T) {
	var list []driver.Unit
	for i := range 5 {
		list = append(list, healthFile(fmt.Sprintf("five%d", i+1)))
		systemctl(t, "start", list[i].Name)
	}
	s := New(Config{Units: list, Grace: 2 * time.Minute, Verify: 2 * time.Minute})
	defer s.Close()
	final, took := recycle(t, s, s.Names())
	if final.Result != fleet.ResultSucceeded {
		t.Fatalf("%s: %s", final.Result, final.Detail)
	}
	if took > time.Minute { // it waits for the services, and for none of the limits
		t.Errorf("five services took %v", took)
	}
	line, _ := json.Marshal(map[string]any{"recycled_units": 5, "recycle_ms": took.Milliseconds()})
	fmt.Println(string(line))
}

// discovery finds what is in use of what it knows, in the order of the dependencies.
func discovery(t *testing.T) {
	systemctl(t, "start", "libvirtd.service", "NetworkManager.service", "prometheus-node-exporter.service", "virtqemud.service", "multipathd.service",
		"neutron-dhcp-agent.service", "customer-agent.service")
	defer exec.Command("systemctl", "stop", "virtqemud.service").Run()
	guestOf(t, "virtqemud.service")
	s := New(Config{Exclude: []string{"multi*"}})
	defer s.Close()
	found, err := s.Discover(t.Context(), []string{"customer-*.service"})
	if err != nil {
		t.Fatal(err)
	}
	var use, left []string
	for _, f := range found {
		switch {
		case f.Left == "":
			use = append(use, f.Name)
		case len(left) > 0 || strings.Contains(f.Left, "never restarted") || strings.Contains(f.Left, "lives in its control group") || strings.Contains(f.Left, "inactive"):
			left = append(left, f.Name)
		default:
			left = append(left, f.Name+" for another reason: "+f.Left)
		}
		if want := map[string]string{"neutron-dhcp-agent.service": "org.freedesktop.DBus"}[f.Name]; f.Left == "" && f.Health.DBus != want {
			t.Errorf("%s: health by the D-Bus name %q, want %q", f.Name, f.Health.DBus, want)
		}
	}
	// The exporter is before NetworkManager and that before libvirtd, as their units say;
	// otherwise network is before virtualisation, and that before monitoring.
	want := "neutron-dhcp-agent.service prometheus-node-exporter.service NetworkManager.service libvirtd.service customer-agent.service"
	if got := strings.Join(use, " "); got != want {
		t.Errorf("found %s, want %s", got, want)
	}
	if got := strings.Join(left, " "); got != "multipathd.service virtqemud.service" && got != "iscsid.service multipathd.service virtqemud.service" {
		t.Errorf("left alone: %s", got)
	}
}

func overTime(t *testing.T) {
	systemctl(t, "start", "other.service")
	s := New(Config{Units: []driver.Unit{{Name: "other.service", Health: driver.Health{DBus: "org.freedesktop.systemd1", ActiveFor: 400 * time.Millisecond}}}})
	defer s.Close()
	begin := time.Now()
	if err := s.Restart(t.Context(), "other.service"); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), "other.service"); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < 400*time.Millisecond {
		t.Errorf("verified after %v", took)
	}
	s.Use([]driver.Unit{{Name: "other.service", Health: driver.Health{DBus: "org.example.Nobody"}}})
	if err := s.Verify(t.Context(), "other.service"); err == nil || !strings.Contains(err.Error(), "org.example.Nobody does not answer") {
		t.Errorf("verified by a name that nobody has: %v", err)
	}
	if s.Healthy(t.Context())["other.service"] {
		t.Error("healthy by a name that nobody has")
	}
}

func TestOrder(t *testing.T) {
	unit := func(name string, r Role) Found { return Found{Unit: driver.Unit{Name: name}, Role: r} }
	all := []Found{unit("m", RoleMonitoring), unit("v", RoleVirtualisation), unit("n", RoleNetwork), unit("s2", RoleStorage), unit("s1", RoleStorage)}
	for name, c := range map[string]struct {
		after map[string][]string
		want  string
	}{
		"by role and name":  {nil, "s1 s2 n v m"},
		"as systemd says":   {map[string][]string{"s1": {"m"}, "m": {"v", "elsewhere"}}, "s2 n v m s1"},
		"after itself":      {map[string][]string{"n": {"n"}}, "s1 s2 n v m"},
		"in a circle":       {map[string][]string{"s1": {"m"}, "m": {"s1"}, "n": {"s1"}}, "s2 v s1 n m"},
		"in two directions": {map[string][]string{"v": {"s1", "n"}, "n": {"v"}}, "s1 s2 m n v"},
	} {
		var got []string
		for _, f := range order(all, c.after) {
			got = append(got, f.Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
}

func TestKills(t *testing.T) {
	guarded := []process{{10, "the VM", "/system.slice/libvirtd.service/vm"}, {11, "the agent", "/system.slice/agent.service"}}
	for _, c := range []struct {
		cgroup, mode string
		main         int
		kills        bool
	}{
		{"/system.slice/libvirtd.service", "control-group", 1, true},
		{"/system.slice/libvirtd.service", "mixed", 1, true},
		{"/system.slice/libvirtd.service", "", 1, true}, // an unknown mode counts as the worst
		{"/system.slice/libvirtd.service", "process", 1, false},
		{"/system.slice/libvirtd.service", "process", 10, true},
		{"/system.slice/libvirtd.service", "none", 1, false},
		{"/system.slice/libvirt", "control-group", 1, false}, // a prefix is not a parent
		{"/system.slice/agent.service", "control-group", 11, true},
		{"/system.slice", "control-group", 0, true},
		{"/", "control-group", 0, true},
		{"", "control-group", 0, false}, // the unit has no processes
	} {
		if got := kills(guarded, c.cgroup, c.mode, c.main) != ""; got != c.kills {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestGuardedReadsProc(t *testing.T) {
	proc := t.TempDir()
	write := func(pid, name, text string) {
		t.Helper()
		dir := filepath.Join(proc, pid)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "exe" {
			if err := os.Symlink(text, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("1", "cmdline", "/sbin/init\x00")
	write("1", "exe", "/usr/lib/systemd/systemd")
	write("2", "cmdline", "") // a kernel thread
	write("20", "cmdline", "guest=web,debug\x00")
	write("20", "exe", "/usr/bin/qemu-system-x86_64 (deleted)") // QEMU was upgraded under it
	write("20", "cgroup", "0::/machine.slice/a.scope\n")
	write("21", "cmdline", "/usr/libexec/qemu-kvm\x00-name\x00x")
	write("21", "exe", "/usr/libexec/qemu-kvm")
	write("21", "cgroup", "12:pids:/x\n1:name=systemd:/system.slice/l.service\n0::/wrong\n")
	write("not-a-pid", "cmdline", "qemu-kvm\x00")
	s := New(Config{Proc: proc})
	got, err := s.guarded()
	if err != nil || len(got) != 2 || got[0].cgroup != "/machine.slice/a.scope" || got[1].cgroup != "/system.slice/l.service" {
		t.Fatalf("%+v, %v", got, err)
	}
	write("22", "cmdline", "qemu-kvm\x00")
	write("22", "exe", "/usr/libexec/qemu-kvm")
	write("22", "cgroup", "nonsense\n")
	if got, err := s.guarded(); err == nil {
		t.Errorf("a VM whose place is not known must be an error: %+v", got)
	}
}
