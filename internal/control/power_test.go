package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// bmc counts power cycles.
type bmc struct {
	n   int
	err error
}

func (b *bmc) Cycle(context.Context) error {
	b.n++
	return b.err
}

// newPowerBench is an emptied host "h" with a management controller.
func newPowerBench(t *testing.T) (*mains, *bmc, *trail) {
	t.Helper()
	b, err := bus.Open(t.Context(), bus.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	cordonTable, err := bus.OpenTable[fleet.Cordon](t.Context(), b, "CORDONS", nil)
	if err != nil {
		t.Fatal(err)
	}
	hostTable, err := bus.OpenTable[fleet.Host](t.Context(), b, "HOSTS", nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	audit := &trail{}
	c := &cordons{table: cordonTable, audit: audit, log: log, well: map[fleet.HostID]time.Time{}}
	h := newHosts(hostTable, func(context.Context, fleet.HostID) error { return nil }, log)
	controller := &bmc{}
	m := &mains{bmcs: map[fleet.HostID]cycler{"h": controller}, cordons: c, hosts: h, blocked: func(context.Context, fleet.Host) string { return "" }, audit: audit, log: log}
	c.ended(t.Context(), fleet.Execution{ID: "x", Host: "h", State: fleet.ExecutionSucceeded, Ended: time.Now(), Steps: []fleet.Step{{Phase: fleet.PhaseMigrate}}})
	h.announce(t.Context(), fleet.Host{ID: "h", VMs: []fleet.VM{{ID: "old", State: "shut-off"}}})
	return m, controller, audit
}

func TestEmptiedHostIsCycledOnce(t *testing.T) {
	m, controller, audit := newPowerBench(t)
	for range 3 {
		if m.due(t.Context(), "h") {
			m.cycle(t.Context(), "h", controller)
		}
	}
	c, ok := m.cordons.find("h")
	if !ok || controller.n != 1 || c.Power != fleet.PowerCycled || c.PowerDetail == "" {
		t.Errorf("%d cycles: %+v", controller.n, c)
	}
	if want := []string{"cordon h", "power.cycle h", "power.cycled h"}; !slices.Equal(audit.events, want) {
		t.Errorf("%q", audit.events)
	}
}

func TestPowerIsLeftAlone(t *testing.T) {
	for name, change := range map[string]func(context.Context, *mains){
		"a VM runs there": func(ctx context.Context, m *mains) {
			m.hosts.announce(ctx, fleet.Host{ID: "h", VMs: []fleet.VM{{ID: "new", State: "running"}}})
		},
		"a VM is unclear": func(ctx context.Context, m *mains) {
			m.hosts.announce(ctx, fleet.Host{ID: "h", VMs: []fleet.VM{{ID: "new", State: "unknown"}}})
		},
		"its agent may not": func(ctx context.Context, m *mains) {
			m.hosts.announce(ctx, fleet.Host{ID: "h", DryRun: true, VMs: []fleet.VM{}})
		},
		"a VM ran there, and its agent came back without a hypervisor": func(ctx context.Context, m *mains) {
			m.hosts.announce(ctx, fleet.Host{ID: "h", VMs: []fleet.VM{{ID: "new", State: "running"}}})
			m.hosts.announce(ctx, fleet.Host{ID: "h"})
		},
		"its VMs were not counted since": func(ctx context.Context, m *mains) {
			m.hosts.told["h"] = time.Now().Add(-time.Hour)
			m.hosts.announce(ctx, fleet.Host{ID: "h"})
		},
		"it is frozen": func(_ context.Context, m *mains) {
			m.blocked = func(context.Context, fleet.Host) string { return "frozen" }
		},
		"it is in use again": func(ctx context.Context, m *mains) { m.cordons.lift(ctx, "h", "me") },
		"it is old news":     func(_ context.Context, m *mains) { m.hosts.told["h"] = time.Now().Add(-time.Hour) },
		"a person cordoned":  func(ctx context.Context, m *mains) { m.cordons.set(ctx, fleet.Cordon{Host: "h", By: "me"}) },
	} {
		m, _, _ := newPowerBench(t)
		if !m.due(t.Context(), "h") {
			t.Fatal("not even before the change")
		}
		change(t.Context(), m)
		if m.due(t.Context(), "h") {
			t.Errorf("%s: its power would be cycled", name)
		}
	}
}

func TestPowerWithoutAnAuditTrailIsLeftAlone(t *testing.T) {
	m, controller, audit := newPowerBench(t)
	audit.broken = true
	m.cycle(t.Context(), "h", controller)
	if c, _ := m.cordons.find("h"); controller.n != 0 || c.Power != "" {
		t.Errorf("%d cycles: %+v", controller.n, c)
	}
}

func TestFailedAndInterruptedCyclesCallAPerson(t *testing.T) {
	m, controller, audit := newPowerBench(t)
	controller.err = errors.New("no answer")
	m.cycle(t.Context(), "h", controller)
	if c, _ := m.cordons.find("h"); c.Power != fleet.PowerFailed || !slices.Contains(audit.events, "person.called h") {
		t.Errorf("%+v, %q", c, audit.events)
	}

	m, controller, audit = newPowerBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	m.bmcs["h"] = dying{controller, cancel}
	m.cycle(ctx, "h", m.bmcs["h"]) // the control plane ends in the middle
	if c, _ := m.cordons.find("h"); c.Power != fleet.PowerIntended {
		t.Fatalf("%+v", c)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	m.bmcs["h"] = controller
	m.resume(t.Context()) // what the next one does first
	if err := m.watch(ended); err != nil {
		t.Error(err)
	}
	if c, _ := m.cordons.find("h"); c.Power != fleet.PowerFailed || controller.n != 1 || !slices.Contains(audit.events, "person.called h") {
		t.Errorf("%d cycles: %+v, %q", controller.n, c, audit.events)
	}
}

// dying ends its caller in the middle of a power cycle.
type dying struct {
	*bmc
	end func()
}

func (d dying) Cycle(ctx context.Context) error {
	d.end()
	return d.bmc.Cycle(ctx)
}

func TestMainsConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := map[fleet.HostID]config.BMC{"h": {Address: "192.0.2.1", User: "u", PasswordFile: file}}
	if m, err := newMains(config.Power{Hosts: hosts}, nil, nil, nil, nil, nil); err != nil || len(m.bmcs) != 0 {
		t.Errorf("what is not allowed: %v, %v", m, err)
	}
	if m, err := newMains(config.Power{CycleEmptied: true, Hosts: hosts}, nil, nil, nil, nil, nil); err != nil || len(m.bmcs) != 1 {
		t.Errorf("what is allowed: %v, %v", m, err)
	}
	hosts["h"] = config.BMC{Address: "192.0.2.1", PasswordFile: file + ".none"}
	if _, err := newMains(config.Power{CycleEmptied: true, Hosts: hosts}, nil, nil, nil, nil, nil); err == nil {
		t.Error("a password that is not there was accepted")
	}
}

func TestCordonOfAnExecution(t *testing.T) {
	m, _, _ := newPowerBench(t)
	c := m.cordons
	old, ok := c.find("h")
	if !ok || !old.Emptied || old.Execution != "x" || old.By != automatic {
		t.Fatalf("%+v", old)
	}
	if _, err := c.lift(t.Context(), "h", "me"); err != nil {
		t.Fatal(err)
	}
	// The same news again, as after a restart, changes nothing.
	c.ended(t.Context(), fleet.Execution{ID: "x", Host: "h", State: fleet.ExecutionSucceeded, Ended: time.Now(), Steps: []fleet.Step{{Phase: fleet.PhaseMigrate}}})
	if _, ok := c.find("h"); ok {
		t.Error("a cordon came back")
	}
	for name, e := range map[string]fleet.Execution{
		"recycled":  {ID: "y", Host: "g", State: fleet.ExecutionSucceeded, Ended: time.Now(), Steps: []fleet.Step{{Phase: fleet.PhaseRecycle}}},
		"cancelled": {ID: "y", Host: "g", State: fleet.ExecutionCancelled, Ended: time.Now()},
		"long ago":  {ID: "y", Host: "g", State: fleet.ExecutionHandedOver, Ended: time.Now().Add(-24 * time.Hour)},
	} {
		c.ended(t.Context(), e)
		if got, ok := c.find("g"); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
	c.ended(t.Context(), fleet.Execution{ID: "z", Host: "g", State: fleet.ExecutionDegraded, Ended: time.Now(), Outcome: "a VM is missing"})
	if got, ok := c.find("g"); !ok || got.Emptied {
		t.Errorf("%+v, %v", got, ok)
	}
}
