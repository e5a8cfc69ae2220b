package drivertest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const inside = "TARDIGRADE_INSIDE_CONTAINER"

// Inside tells whether this test runs on the host that [OnSystemd] booted.
func Inside() bool { return os.Getenv(inside) != "" }

// OnSystemd boots a systemd host of its own in a container, with the given unit
// files, runs the calling test once more in it, as a service with root's rights, and
// fails if that fails. What the test writes into the directory /share stays in the
// returned one. It needs root and systemd-nspawn.
func OnSystemd(t *testing.T, units map[string]string) (share string) {
	t.Helper()
	return OnSystemdFor(t, units, 5*time.Minute)
}

// OnSystemdFor is OnSystemd for a test that may take so long.
func OnSystemdFor(t *testing.T, units map[string]string, limit time.Duration) (share string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	units = maps.Clone(units)
	units["tardigrade-test.service"] = `[Unit]
SuccessAction=exit-force
FailureAction=exit-force
After=basic.target
[Service]
Type=oneshot
Environment=` + inside + `=1 HOME=/root
WorkingDirectory=/tmp
ExecStart=/test -test.v -test.timeout ` + limit.String() + ` -test.run '^` + t.Name() + `$'
ExecStopPost=/bin/sh -c 'echo $EXIT_CODE $EXIT_STATUS > /share/status'
StandardOutput=file:/share/output
StandardError=file:/share/output
`
	h := Boot(t, Host{Units: units, Start: []string{"tardigrade-test.service"}, Program: self, PrivateNetwork: true})
	console, err := h.Wait(limit + 20*time.Second)
	out, _ := os.ReadFile(filepath.Join(h.Share, "output"))
	if status, _ := os.ReadFile(filepath.Join(h.Share, "status")); strings.TrimSpace(string(status)) != "exited 0" {
		t.Fatalf("the test failed on the host that was booted for it (%v, status %q):\n%s\nconsole:\n%s", err, status, out, console[max(0, len(console)-2000):])
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "{") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return h.Share
}

// Host says what a booted host has.
type Host struct {
	// Units are unit files by name, and Start those that its target wants.
	Units map[string]string
	Start []string
	// Files are further files, by their path on the host; only root can read them.
	Files map[string]string
	// Program is an executable of this machine that is /test there.
	Program string
	// Prepare, if not nil, fills the directory that will be /share.
	Prepare func(share string) error
	// PrivateNetwork gives it no network but a loopback of its own; Namespace is the path
	// of a network namespace that it gets instead.
	PrivateNetwork bool
	Namespace      string
	// Name is its host name, if not "".
	Name string
	// Allow are further system calls that it may make, or a group of them, if not "".
	Allow string
	// Binds are directories of this machine that it has at the given paths.
	Binds map[string]string
}

// Booted is a running host.
type Booted struct {
	// Share is the directory that the host has as /share. Its path is short enough for
	// Unix sockets in it.
	Share string

	t       *testing.T
	args    []string
	groups  []string // its control groups
	cmd     *exec.Cmd
	console bytes.Buffer
	done    chan struct{}
	err     error
}

// Boot boots a systemd host in a container and returns at once. It shares this
// machine's /usr, and ends with the test. It needs root and systemd-nspawn.
func Boot(t *testing.T, host Host) *Booted {
	t.Helper()
	nspawn, err := exec.LookPath("systemd-nspawn")
	if err != nil || os.Getuid() != 0 {
		t.Fatalf("this test boots a host with systemd-nspawn: run it as root, with the package systemd-container (%v)", err)
	}
	dir, err := os.MkdirTemp("", "host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up the host: %v", err)
		}
	})
	root := filepath.Join(dir, "root")
	b := &Booted{Share: filepath.Join(dir, "share"), t: t, done: make(chan struct{})}
	if err := makeRoot(root, host); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.Share, 0o777); err != nil {
		t.Fatal(err)
	}
	if host.Prepare != nil {
		if err := host.Prepare(b.Share); err != nil {
			t.Fatal(err)
		}
	}
	b.args = []string{nspawn, "--boot", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--machine=tardigrade-" + filepath.Base(dir),
		"--directory=" + root, "--bind-ro=/usr", "--bind-ro=" + host.Program + ":/test", "--bind=" + b.Share + ":/share"}
	if host.PrivateNetwork {
		b.args = append(b.args, "--private-network")
	}
	if host.Namespace != "" {
		b.args = append(b.args, "--network-namespace-path="+host.Namespace)
	}
	if host.Name != "" {
		b.args = append(b.args, "--hostname="+host.Name)
	}
	if host.Allow != "" {
		b.args = append(b.args, "--system-call-filter="+host.Allow)
	}
	for at, path := range host.Binds {
		b.args = append(b.args, "--bind="+path+":"+at)
	}
	// Hosts that shared a control group would see, and stop, each other's processes.
	for _, hierarchy := range []string{"systemd", "unified", ""} {
		parent := filepath.Join("/sys/fs/cgroup", hierarchy)
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err == nil {
			b.groups = append(b.groups, filepath.Join(parent, "tardigrade-"+filepath.Base(dir)))
		}
	}
	b.PowerOn()
	t.Cleanup(func() {
		if console, err := b.stop(); t.Failed() {
			t.Logf("the host's console (%v):\n%s", err, console[max(0, len(console)-2000):])
		}
		for _, g := range b.groups {
			exec.Command("find", g, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
		}
	})
	return b
}

// PowerOn boots a host that is off; what is on its disk is still there.
func (b *Booted) PowerOn() {
	b.t.Helper()
	const join = `while [ "$1" != -- ]; do mkdir -p "$1" && echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"`
	b.cmd = exec.Command("sh", slices.Concat([]string{"-c", join, "sh"}, b.groups, []string{"--"}, b.args)...)
	b.cmd.Stdout, b.cmd.Stderr = &b.console, &b.console
	b.cmd.WaitDelay = 5 * time.Second
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	cmd, done := b.cmd, make(chan struct{})
	b.done = done
	go func() {
		b.err = cmd.Wait()
		close(done)
	}()
}

// PowerOff ends the host at once, as the loss of its power would.
func (b *Booted) PowerOff() {
	b.t.Helper()
	pid, err := b.PID()
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL) // all others of its namespace end with it
	}
	if err != nil {
		b.t.Fatalf("switch the host off: %v", err)
	}
	select {
	case <-b.done:
	case <-time.After(time.Minute):
		b.t.Fatal("the host does not end without its power")
	}
}

// PID is the first process of the host, through whose /proc its files can be reached.
func (b *Booted) PID() (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", b.cmd.Process.Pid, b.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	here, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0, err
	}
	for _, child := range strings.Fields(string(text)) {
		if there, err := os.Readlink("/proc/" + child + "/ns/pid"); err == nil && there != here {
			return strconv.Atoi(child)
		}
	}
	return 0, errors.New("the host has no process yet")
}

// Wait waits until the host powers off, at most for limit, and returns what it said
// on its console.
func (b *Booted) Wait(limit time.Duration) (console string, err error) {
	select {
	case <-b.done:
	case <-time.After(limit):
	}
	return b.stop()
}

// stop lets the host end by itself, and kills it if it does not.
func (b *Booted) stop() (console string, err error) {
	select {
	case <-b.done:
		return b.console.String(), b.err
	default:
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.done:
	case <-time.After(10 * time.Second):
		if pid, err := b.PID(); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		// With it all processes of the host end, and only then the other: nobody is left at work on its files.
		select {
		case <-b.done:
		case <-time.After(time.Minute):
			_ = b.cmd.Process.Kill()
			<-b.done
		}
	}
	return b.console.String(), b.err
}

// makeRoot makes the root of a host that shares this one's /usr.
func makeRoot(root string, host Host) error {
	for _, d := range []string{"usr", "etc/systemd/system", "proc", "sys", "dev", "run", "tmp", "var/tmp", "var/log/journal", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			return err
		}
	}
	for _, f := range []string{"nsswitch.conf", "os-release", "ld.so.cache"} {
		data, err := os.ReadFile("/etc/" + f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", f), data, 0o644); err != nil {
			return err
		}
	}
	if err := os.CopyFS(filepath.Join(root, "etc/alternatives"), os.DirFS("/etc/alternatives")); err != nil && !os.IsNotExist(err) {
		return err
	}
	files := map[string]string{
		"etc/systemd/system/tardigrade-test.target": "[Unit]\nRequires=basic.target\nWants=dbus.service " + strings.Join(host.Start, " ") + "\nAfter=basic.target\nAllowIsolate=yes\n",
	}
	for name, text := range host.Units {
		files[filepath.Join("etc/systemd/system", name)] = text
	}
	maps.Copy(files, host.Files)
	passwd, group, err := rigtest.Accounts()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := os.Symlink("tardigrade-test.target", filepath.Join(root, "etc/systemd/system/default.target")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o444)
}
