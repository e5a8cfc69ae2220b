package kexec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// bench is a host in a directory whose programs are played.
type bench struct {
	*Kernel
	t       *testing.T
	ran     []string
	refused bool
	state   string
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, state: "running"}
	b.Kernel = &Kernel{Root: t.TempDir(), MarkPrefix: "tardigrade.reset=", Command: b.command}
	b.write("/proc/sys/kernel/osrelease", "6.1.0-9\n")
	b.write("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 memmap=256M!1536M tardigrade.reset=old quiet\n")
	b.write("/boot/vmlinuz-6.1.0-9", "")
	b.write("/boot/initrd.img-6.1.0-9", "")
	b.write("/sys/kernel/kexec_loaded", "0\n")
	return b
}

func (b *bench) write(path, text string) {
	b.t.Helper()
	path = filepath.Join(b.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) command(_ context.Context, name string, args ...string) (string, error) {
	call := strings.Join(append([]string{name}, args...), " ")
	b.ran = append(b.ran, call)
	switch {
	case strings.HasPrefix(call, "kexec -s -l"):
		b.write("/sys/kernel/kexec_loaded", "1\n")
	case call == "kexec -s -u":
		b.write("/sys/kernel/kexec_loaded", "0\n")
	case call == "systemctl is-system-running":
		return b.state, errors.New("exit status 1")
	case call == "systemctl kexec" && b.refused:
		return "", errors.New("no D-Bus")
	}
	return "", nil
}

func TestLoadKeepsTheCommandLineAndMarksIt(t *testing.T) {
	b := newBench(t)
	if err := b.Load(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	want := "kexec -s -l " + b.Root + "/boot/vmlinuz-6.1.0-9 --initrd=" + b.Root + "/boot/initrd.img-6.1.0-9 --command-line=root=/dev/vda1 memmap=256M!1536M quiet tardigrade.reset=new"
	if len(b.ran) != 1 || b.ran[0] != want {
		t.Errorf("%q\nwant\n%q", b.ran, want)
	}
	if err := b.Unload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Unload(t.Context()); err != nil || b.ran[len(b.ran)-1] != "kexec -s -u" || len(b.ran) != 2 {
		t.Errorf("%v, %q", err, b.ran)
	}
}

func TestReset(t *testing.T) {
	for name, c := range map[string]struct {
		systemd, refused bool
		state            string
		want             []string
	}{
		"with systemd":            {true, false, "running", []string{"systemctl kexec"}},
		"systemd does not answer": {true, true, "running", []string{"systemctl kexec", "systemctl is-system-running", "kexec -e"}},
		"it has begun already":    {true, true, "stopping", []string{"systemctl kexec", "systemctl is-system-running"}},
		"without systemd":         {false, false, "", []string{"kexec -e"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.refused, b.state = c.refused, c.state
			if c.systemd {
				b.write("/run/systemd/system/x", "")
			}
			if err := b.Reset(t.Context()); err == nil || len(b.ran) != 0 {
				t.Fatalf("a reset without a kernel to reset into: %v, %q", err, b.ran)
			}
			b.write("/sys/kernel/kexec_loaded", "1\n")
			if err := b.Reset(t.Context()); err != nil || !slices.Equal(b.ran, c.want) {
				t.Errorf("%v, %q", err, b.ran)
			}
		})
	}
}

func TestUnderwayIsNotGuessed(t *testing.T) {
	b := newBench(t)
	b.write("/run/systemd/system/x", "")
	for state, want := range map[string]bool{"running": false, "degraded": false, "stopping": true} {
		b.state = state
		if got, err := b.Underway(t.Context()); err != nil || got != want {
			t.Errorf("%s: %v, %v", state, got, err)
		}
	}
	for _, state := range []string{"", "offline", "unknown", "Failed to connect to bus"} {
		b.state = state
		if _, err := b.Underway(t.Context()); err == nil {
			t.Errorf("%q is taken for an answer", state)
		}
	}
}

func TestMissing(t *testing.T) {
	b := newBench(t)
	b.write("/proc/sys/kernel/kexec_load_disabled", "1\n")
	if err := os.Remove(filepath.Join(b.Root, "boot/initrd.img-6.1.0-9")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(b.Root, "sys/kernel/kexec_loaded")); err != nil {
		t.Fatal(err)
	}
	said := strings.Join(b.Missing(), "; ")
	for _, want := range []string{"without kexec", "kexec_load_disabled", "set agent.reset.initrd"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q does not say %q", said, want)
		}
	}
}
