package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

// gated holds each restart of a service until the test lets it go on.
type gated struct {
	*sim.Host
	began, goOn chan struct{}
}

func (g gated) Restart(ctx context.Context, name string) error {
	select {
	case g.began <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-g.goOn:
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.Host.Restart(ctx, name)
}

// The disk of the control plane is full to the last byte while a host is recycled.
func TestARecycleOutlastsAFullDisk(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.data, "serve")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	smalldisk.Mount(t, dir, "size=64m,mode=700")
	t.Cleanup(w.down)
	gate := gated{w.host, make(chan struct{}), make(chan struct{})}
	w.services = gate
	w.cfg.Policy.Deadlines.Recycle = config.Duration(15 * time.Minute)
	w.up()
	w.learned()
	e, err := w.plane.Execute(t.Context(), w.label.ID, fleet.ActionRecycle, "test", "ann", false)
	if err != nil {
		t.Fatal(err)
	}
	await(w, "the restart begins", func() (any, bool) {
		select {
		case <-gate.began:
			return nil, true
		default:
			return nil, false
		}
	})

	empty := smalldisk.Fill(t, dir, 0)
	broken := func() string {
		_, degraded := w.plane.NotReady(t.Context())
		return degraded["bus"]
	}
	// Small writes may still find room in the last page of a file; these do not.
	for what, subject := range map[string]string{
		"the stream REPORTS": "tg.reports.h1", "the table EXECUTIONS": "$KV.EXECUTIONS.x", "the table LEASES": "$KV.LEASES.x", "the table FREEZES": "$KV.FREEZES.x",
	} {
		if err := w.plane.bus.Conn.Publish(subject, make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		await(w, "it says that "+what+" cannot be written", func() (any, bool) {
			return nil, strings.Contains(broken(), what+" takes no writes since")
		})
	}
	close(gate.goOn)
	await(w, "the service is restarted", func() (any, bool) { return nil, w.host.Restarts(unit) == 1 })
	_, err = w.plane.Freeze(t.Context(), fleet.Freeze{Host: w.label.ID, By: "ann", Reason: "test"})
	if !errors.Is(err, api.ErrNotReady) || !strings.Contains(err.Error(), "the table FREEZES takes no writes since") {
		t.Errorf("a freeze: %v", err)
	}
	if s := w.executions()[0].State; s.Final() {
		t.Errorf("the execution is %s", s)
	}

	empty()
	done := await(w, "the recycle is done", func() (fleet.Execution, bool) {
		all := w.executions()
		return all[0], all[0].State.Final()
	})
	if done.ID != e.ID || done.State != fleet.ExecutionSucceeded || len(done.GuestsAfter) != 1 {
		t.Errorf("%+v", done)
	}
	if n := w.host.Restarts(unit); n != 1 {
		t.Errorf("%d restarts", n)
	}
	if why := broken(); why != "" {
		t.Errorf("it says %q", why)
	}
	await(w, "the trail says so", func() (any, bool) {
		last := ""
		err := w.plane.audit.Verify(t.Context(), func(_ uint64, r bus.AuditRecord) { last = r.Event })
		return nil, err == nil && strings.HasPrefix(last, "execution.")
	})
}

// A renewal was stored, but its answer did not come: the lease is still the execution's.
func TestALeaseIsNotLostToItself(t *testing.T) {
	b, err := bus.Open(t.Context(), bus.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	table, err := bus.OpenLeases(t.Context(), b, "LEASES", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l := &leases{bus: table, held: make(map[fleet.HostID]*bus.Lease)}
	token, err := l.Acquire(t.Context(), "h1", "x1")
	if err != nil {
		t.Fatal(err)
	}
	unheard := *l.held["h1"]
	if err := table.Renew(t.Context(), &unheard, "x1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context(), "h1", "x1", token); err != nil {
		t.Errorf("its own lease: %v", err)
	}
	if err := table.Release(t.Context(), l.held["h1"]); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Acquire(t.Context(), "h1", "x2"); err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context(), "h1", "x1", token); !errors.Is(err, executor.ErrLeaseLost) {
		t.Errorf("another's lease: %v", err)
	}
}
