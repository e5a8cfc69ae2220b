package agent

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

var quiet = slog.New(slog.DiscardHandler)

func resetBench(t *testing.T) (config.Agent, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := config.Default().Agent
	c.Act, c.Data, c.Guests.QMPDir, c.Reset.Enabled = true, dir, dir, true
	return c, dir
}

// A journal that is lost does not keep the VMs from coming back.
func TestResumeHost(t *testing.T) {
	c, dir := resetBench(t)
	good, bad := rigtest.StartQEMU(t, dir, "good", 4), rigtest.StartQEMU(t, dir, "bad", 4)
	good.AwaitTicks(20, time.Minute)
	bad.AwaitTicks(20, time.Minute)
	if r, err := ResumeHost(t.Context(), c, "h", dir, nil, quiet); err != nil || r.Was || len(r.Guests) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	vms := newPreserved(c, dir, nil)
	if err := vms.Save(t.Context(), "mark"); err != nil {
		t.Fatal(err)
	}
	if out, err := vms.Saved(); err != nil || !out {
		t.Fatal(out, err)
	}
	if err := os.Truncate(filepath.Join(dir, "reset", "bad.state"), 1000); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, err := ResumeHost(t.Context(), c, "h", dir, nil, quiet)
		if err != nil || !r.Was || !strings.Contains(r.Lost, "VM bad") || strings.Contains(r.Lost, "VM good") {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	good.AwaitTicks(60, time.Minute)
	good.Unharmed()
	if pids := bad.PIDs(); len(pids) != 0 {
		t.Errorf("the VM whose state is damaged has processes %v", pids)
	}
	r, err := ResumeHost(t.Context(), c, "h", dir, []string{"bad"}, quiet)
	if err != nil || r.Lost != "" || r.Kept == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if out, err := vms.Saved(); err != nil || out {
		t.Error(out, err)
	}
	if _, err := os.Stat(filepath.Join(r.Kept, "bad.state")); err != nil {
		t.Error(err)
	}
	good.Unharmed()
}

func TestPreservesConform(t *testing.T) {
	c, dir := resetBench(t)
	guests := map[string]*rigtest.QEMU{}
	for _, id := range []string{"a", "b"} {
		guests[id] = rigtest.StartQEMU(t, dir, id, 4)
		guests[id].AwaitTicks(20, time.Minute)
	}
	hypervisor := &serial{guests: qmp.New(dir)}
	drivertest.Preserves(t, drivertest.PreserveBench{
		Preserver: newPreserved(c, dir, hypervisor), Guests: hypervisor, IDs: []string{"a", "b"},
		Block: func(t *testing.T, id string) func() {
			// The file with its RAM is not where it was.
			memory := guests[id].Memory
			if err := os.Rename(memory, memory+".away"); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Rename(memory+".away", memory); err != nil {
					t.Fatal(err)
				}
			}
		},
		Damage: func(t *testing.T, id string) {
			if err := os.Truncate(filepath.Join(dir, "reset", id+".state"), 1000); err != nil {
				t.Fatal(err)
			}
		},
		Unharmed: func(t *testing.T, ids []string) {
			for _, id := range ids {
				guests[id].AwaitTicks(60, time.Minute)
				guests[id].Unharmed()
			}
		},
	})
}

func TestOfferReset(t *testing.T) {
	c, dir := resetBench(t)
	offered := func() host.Config {
		var cfg host.Config
		OfferReset(&cfg, c, dir, quiet)
		return cfg
	}
	if cfg := offered(); cfg.VMs == nil || cfg.Kernel != nil {
		t.Errorf("%+v", cfg)
	}
	c.Guests.QMPDir = ""
	if cfg := offered(); cfg.VMs != nil {
		t.Error("offered without knowing the VMs")
	}
	c.Guests.QMPDir, c.Reset.Enabled = dir, false
	if cfg := offered(); cfg.VMs != nil {
		t.Error("offered without having been allowed")
	}
	// VMs that are out come back though it is not allowed any more.
	if err := os.MkdirAll(filepath.Join(dir, "reset"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "reset", qmp.PlanName), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg := offered(); cfg.VMs == nil {
		t.Error("VMs are out and nobody would bring them back")
	}
	c, _ = resetBench(t)
	c.Reset.Mode, c.Reset.Dir = config.ResetKexec, "/dev/shm/not/there"
	c.Reset.Kernel, c.Reset.Initrd = "/nope/vmlinuz", "/nope/initrd"
	said := strings.Join(missingForReset(c, dir), "; ")
	for _, want := range []string{"agent.reset.dir (/dev/shm/not/there) lies in memory", "set agent.reset.kernel"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q does not say %q", said, want)
		}
	}
}

func TestProbe(t *testing.T) {
	c, dir := resetBench(t)
	c.Act, c.Reset.Enabled = false, false
	rigtest.StartQEMU(t, dir, "plain", 4, func(arg string) string { return strings.Replace(arg, "pc-i440fx-7.2", "pc", 1) }).AwaitTicks(5, time.Minute)
	found := Probe(t.Context(), c, dir, quiet)
	i := slices.IndexFunc(found, func(c Capability) bool { return c.Name == "preserving-reset" })
	if i < 0 || found[i].Ready {
		t.Fatalf("%+v", found)
	}
	said := strings.Join(found[i].Missing, "; ")
	for _, want := range []string{"agent.act", "agent.reset.enabled", "VM plain cannot be preserved: its machine type is pc"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q does not say %q", said, want)
		}
	}
	mounts := filepath.Join(t.TempDir(), "mounts")
	if err := os.WriteFile(mounts, []byte("/dev/sda1 / ext4 rw,relatime 0 0\n/dev/pmem0 /pmem ext4 rw,relatime,dax=always 0 0\nx /y xfs rw,dax=inode 0 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := keptMemory(mounts); !strings.HasSuffix(got, ": /pmem") {
		t.Error(got)
	}
	if said := strings.Join(found[i].Notes, "; "); !strings.Contains(said, "QEMU emulator version") {
		t.Error(said)
	}
	if _, err := json.Marshal(found); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "reset")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the probe left %v, %v", entries, err)
	}
}
