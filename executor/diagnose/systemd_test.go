package diagnose

import (
	"encoding/json"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/systemd"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const notRestarted = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=no\n"

// injected are faults: a unit, and the cause that is to be found.
// The full file system comes last: it might be the reason for any other failure.
var injected = []struct {
	unit, file string
	rule       string
	class      fleet.Signature
	says       string
}{
	{"crashes.service", notRestarted + "ExecStart=/bin/sh -c 'echo login with password=hunter2; kill -SEGV $$$$'\n", "crash", fleet.SignatureServiceHang, "SEGV"},
	{"leaks.service", notRestarted + "ExecStart=/bin/sh -c 'echo java.lang.OutOfMemoryError: Java heap space >&2; exit 3'\n", "oom-program", fleet.SignatureMemoryLeak, "Java heap space"},
	{"gone.service", notRestarted + "ExecStart=/usr/bin/there-is-no-such-program\n", "cannot-execute", fleet.SignatureServiceHang, "203/EXEC"},
	{"again.service", "[Unit]\nStartLimitIntervalSec=100\nStartLimitBurst=2\n[Service]\nRestart=always\nRestartSec=1ms\nExecStart=/bin/sh -c 'exit 1'\n", "start-limit", fleet.SignatureServiceHang, "repeated too quickly"},
	{"full.service", notRestarted + "ExecStart=/bin/sh -c 'cat /dev/zero > /full/file'\nTemporaryFileSystem=/full:size=64k\n", "no-space", fleet.SignatureDisk, "No space left on device"},
}

const wellUnit = "well.service"

// TestOnRealSystemd boots a host whose services fail, each for another reason, and
// diagnoses them there with the host's own journalctl and systemctl.
func TestOnRealSystemd(t *testing.T) {
	if !drivertest.Inside() {
		units := map[string]string{wellUnit: "[Service]\nExecStart=/bin/sleep infinity\n"}
		for _, f := range injected {
			units[f.unit] = f.file
		}
		drivertest.OnSystemd(t, units)
		return
	}
	if out, err := exec.Command("systemctl", "start", wellUnit).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// What fails first stays in the journal while the others are diagnosed.
	for _, f := range injected {
		_ = exec.Command("systemctl", "start", f.unit).Run() // that it fails is the point
		for state := ""; state != "failed"; {
			out, err := exec.Command("systemctl", "show", "--property=ActiveState", "--value", f.unit).Output()
			if err != nil || t.Context().Err() != nil {
				t.Fatalf("%s is %s: %v", f.unit, state, err)
			}
			if state = strings.TrimSpace(string(out)); state != "failed" {
				time.Sleep(20 * time.Millisecond)
			}
		}
		if out, err := exec.Command("journalctl", "--sync").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Run(f.unit, func(t *testing.T) {
			services := systemd.New(systemd.Config{Units: []driver.Unit{{Name: wellUnit}, {Name: f.unit}}, Log: slog.New(slog.DiscardHandler)})
			defer services.Close()
			u := &uploads{}
			c, err := New(Config{Host: "kvm01", Uploads: u, Units: []string{wellUnit}, Healthy: services.Healthy, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			name, summary, err := c.Diagnose(t.Context(), command(f.unit))
			if err != nil || name != u.name {
				t.Fatalf("%q, %v", name, err)
			}
			t.Logf("%v, %d bytes: %s", time.Since(begin).Round(time.Millisecond), len(u.data), summary)
			m, files, _ := unpack(t, u.data)
			var r RootCause
			if err := json.Unmarshal([]byte(files["root-cause.json"]), &r); err != nil {
				t.Fatal(err)
			}
			proof := ""
			for _, s := range r.Suspects[:min(1, len(r.Suspects))] {
				for _, e := range s.Evidence {
					proof += e.Text + "\n"
				}
			}
			if len(r.Suspects) == 0 || r.Suspects[0].Rule != f.rule || r.Suspects[0].Class != f.class || !strings.Contains(proof, f.says) {
				t.Errorf("%s", files["root-cause.md"])
				for _, x := range m.Files {
					t.Logf("%+v", x)
				}
			}
			if !strings.Contains(summary, f.unit+" is failed") || strings.Contains(summary, wellUnit) || !strings.Contains(summary, r.Suspects[0].Title) {
				t.Errorf("summary: %s", summary)
			}
			for _, file := range []string{"units/" + f.unit + "/properties", "units/" + wellUnit + "/properties", "units/" + f.unit + "/journal.log", "journal.log", "processes.txt", "filesystems.txt"} {
				if x := m.file(t, file); x.Size == 0 || x.Error != "" {
					t.Errorf("%+v", x)
				}
			}
			for name, text := range files {
				if strings.Contains(text, "hunter2") {
					t.Errorf("%s has a secret", name)
				}
			}
		})
	}
}
