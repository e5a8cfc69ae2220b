package drivertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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
	nspawn, err := exec.LookPath("systemd-nspawn")
	if err != nil || os.Getuid() != 0 {
		t.Fatalf("this test boots a host with systemd-nspawn: run it as root, with the package systemd-container (%v)", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	share = filepath.Join(dir, "share")
	if err := makeRoot(root, units, t.Name()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(share, 0o777); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, nspawn, "--boot", "--quiet", "--register=no", "--keep-unit", "--private-network", "--link-journal=no",
		"--machine=tardigrade-test-"+fmt.Sprint(os.Getpid()), "--directory="+root, "--bind-ro=/usr", "--bind-ro="+self+":/test", "--bind="+share+":/share")
	// Let the container end by itself; only then kill it.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	console, err := cmd.CombinedOutput()
	out, _ := os.ReadFile(filepath.Join(share, "output"))
	if status, _ := os.ReadFile(filepath.Join(share, "status")); strings.TrimSpace(string(status)) != "exited 0" {
		t.Fatalf("the test failed on the host that was booted for it (%v, status %q):\n%s\nconsole:\n%s", err, status, out, console[max(0, len(console)-2000):])
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "{") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return share
}

// makeRoot makes the root of a host that shares this one's /usr.
func makeRoot(root string, units map[string]string, test string) error {
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
	for _, f := range []string{"passwd", "group", "nsswitch.conf", "os-release", "ld.so.cache"} {
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
		"tardigrade-test.service": `[Unit]
SuccessAction=exit-force
FailureAction=exit-force
After=basic.target
[Service]
Type=oneshot
Environment=` + inside + `=1 HOME=/root
WorkingDirectory=/tmp
ExecStart=/test -test.v -test.timeout 100s -test.run '^` + test + `$'
ExecStopPost=/bin/sh -c 'echo $EXIT_CODE $EXIT_STATUS > /share/status'
StandardOutput=file:/share/output
StandardError=file:/share/output
`,
		"tardigrade-test.target": "[Unit]\nRequires=basic.target\nWants=dbus.service tardigrade-test.service\nAfter=basic.target\nAllowIsolate=yes\n",
	}
	for name, text := range units {
		files[name] = text
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, "etc/systemd/system", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink("tardigrade-test.target", filepath.Join(root, "etc/systemd/system/default.target")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o444)
}
