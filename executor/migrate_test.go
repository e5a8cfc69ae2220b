package executor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// chooser sends every VM of h1 to h2, unless that is busy.
type chooser struct{ none error }

func (c chooser) Place(_ context.Context, _ fleet.HostID, busy map[fleet.HostID]string) ([]fleet.Target, error) {
	if why := busy["h2"]; why != "" {
		return nil, errors.New("h2: " + why)
	}
	if c.none != nil {
		return nil, c.none
	}
	return []fleet.Target{{VM: "vm1", Host: "h2", Address: "h2", Why: "the only one"}, {VM: "vm2", Host: "h2", Address: "h2", Why: "the only one"}}, nil
}

// newMigrationRig has a second host for h1's VMs.
func newMigrationRig(t *testing.T, p Placement) (r *rig, there *sim.Host) {
	there = sim.New(sim.Config{})
	r = newRig(t, func(c *host.Config, w *world) {
		h := sim.New(sim.Config{
			Units: []string{"a.service", "b.service", "c.service"}, Start: 50 * ms, MoveTime: 2 * time.Second,
			VMs: []fleet.VM{{ID: "vm1", MemoryBytes: 1 << 20}, {ID: "vm2", MemoryBytes: 1 << 20}},
		})
		h.Join("h2", there)
		c.Services, c.Guests, c.Diagnostics, c.Mover, c.ParallelMoves = h, h, h, h, 2
		h.Break("b.service")
		w.placement = p
		all := []fleet.Action{fleet.ActionRecycle, fleet.ActionLiveMigrate, fleet.ActionHandOver}
		w.policy.Automatic = all
		w.state.Hosts = map[fleet.HostID]guard.Host{"h1": {Actions: all}, "h2": {Actions: all, Healthy: true}, "h3": {Actions: all, Healthy: true}}
	})
	return r, there
}

func TestMigrationIsCarriedOut(t *testing.T) {
	for name, action := range map[string]fleet.Action{"asked for": fleet.ActionLiveMigrate, "after a recycle that failed": fleet.ActionRecycle} {
		synctest.Test(t, func(t *testing.T) {
			r, there := newMigrationRig(t, chooser{})
			e := r.submit(func(q *Request) { q.Action = action })
			if action == fleet.ActionLiveMigrate {
				// While VMs are moved to it, nothing begins on the target.
				time.Sleep(time.Second)
				if _, err := r.c.Submit(t.Context(), Request{Host: "h2", Action: fleet.ActionRecycle, RequestedBy: "p", EvidenceAt: time.Now()}); !errors.Is(err, ErrBusy) {
					t.Errorf("%s: %v", name, err)
				}
				// Nor are those of another host moved there: together they may be too many.
				if other := r.submit(func(q *Request) { q.Host, q.Action = "h3", action }); other.State != fleet.ExecutionCancelled || !strings.Contains(other.Outcome, "h2: VMs of host h1 are being moved to it") {
					t.Errorf("%s: %s: %s", name, other.State, other.Outcome)
				}
			}
			e = r.wait(e.ID)
			if e.State != fleet.ExecutionSucceeded || len(e.GuestsAfter) != 2 || e.GuestsAfter[0].Host != "h2" {
				t.Fatalf("%s: %+v", name, e)
			}
			guests, err := there.Guests(t.Context())
			if err != nil || len(guests) != 2 {
				t.Errorf("%s: %+v, %v", name, guests, err)
			}
			last := r.w.commands[len(r.w.commands)-1]
			if last.Phase != fleet.PhaseMigrate || len(last.Targets) != 2 || last.Targets[0].Why == "" {
				t.Errorf("%s: %+v", name, last)
			}
		})
	}
}

func TestMigrationIsCancelled(t *testing.T) {
	for _, action := range []fleet.Action{fleet.ActionLiveMigrate, fleet.ActionRecycle} {
		synctest.Test(t, func(t *testing.T) {
			r, there := newMigrationRig(t, chooser{})
			e := r.submit(func(q *Request) { q.Action = action })
			for e.State != fleet.ExecutionMigrating {
				time.Sleep(100 * ms)
				e, _ = r.c.Execution(t.Context(), e.ID)
			}
			time.Sleep(500 * ms)
			if _, err := r.c.Cancel(t.Context(), e.ID, "ann"); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			// After a recycle that failed, the host is still not well.
			want := map[fleet.Action]fleet.ExecutionState{fleet.ActionLiveMigrate: fleet.ExecutionCancelled, fleet.ActionRecycle: fleet.ExecutionHandedOver}[action]
			if e = r.wait(e.ID); e.State != want || !strings.Contains(e.Outcome, "0 VMs moved, 2 stayed") {
				t.Errorf("%s: %s: %s", action, e.State, e.Outcome)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("%s: it took %v", action, took)
			}
			if guests, err := there.Guests(t.Context()); err != nil || len(guests) != 0 {
				t.Errorf("%s: moved all the same: %+v, %v", action, guests, err)
			}
		})
	}
}

func TestMigrationWithoutATarget(t *testing.T) {
	for name, c := range map[string]struct {
		p    Placement
		busy bool
		want string
	}{
		"nothing fits":   {chooser{errors.New("VM vm1 fits nowhere: h2: full")}, false, "vm1 fits nowhere"},
		"target is busy": {chooser{}, true, "h2: an execution is under way on it"},
		"nobody chooses": {nil, false, "nobody chooses"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, _ := newMigrationRig(t, c.p)
			if c.busy {
				r.submit(func(q *Request) { q.Host = "h2" }) // nobody answers for that host
			}
			e := r.submit(func(q *Request) { q.Action = fleet.ActionLiveMigrate })
			if e = r.wait(e.ID); e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, c.want) {
				t.Errorf("%s: %s: %s", name, e.State, e.Outcome)
			}
			// As the way out of a failed recycle it is not there either.
			e = r.submit(nil)
			if e = r.wait(e.ID); e.State != fleet.ExecutionHandedOver || !strings.Contains(e.Outcome, c.want) {
				t.Errorf("%s: %s: %s", name, e.State, e.Outcome)
			}
		})
	}
}
