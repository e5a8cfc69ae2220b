package sim_test

import (
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func TestConformance(t *testing.T) {
	h := sim.New(sim.Config{Units: []string{"good.service", "other.service", "broken.service"}, Start: 10 * time.Millisecond})
	h.Break("broken.service")
	drivertest.Services(t, drivertest.Bench{
		Services: h, Good: "good.service", Other: "other.service", Broken: "broken.service", Missing: "missing.service",
		Hang: func(*testing.T) { h.Hang("good.service") },
		Stop: func(*testing.T) { h.Stop("good.service") },
	})
}

func TestGuestsAndRefusals(t *testing.T) {
	var restarted []string
	h := sim.New(sim.Config{Units: []string{"a"}, VMs: []fleet.VM{{ID: "1"}, {ID: "2", State: "paused"}}, Restarted: func(u string) { restarted = append(restarted, u) }})
	guests, err := h.Guests(t.Context())
	if err != nil || len(guests) != 2 || !guests[0].Alive || guests[1].Alive {
		t.Fatalf("%+v, %v", guests, err)
	}
	h.Lose("1")
	if guests, _ = h.Guests(t.Context()); guests[0].Alive || guests[0].State != "shut-off" {
		t.Errorf("%+v", guests[0])
	}
	if err := h.Restart(t.Context(), "a"); err != nil || h.Restarts("a") != 1 || len(restarted) != 1 {
		t.Errorf("%v, %v", err, restarted)
	}
	h.Refuse("a", "because")
	if err := h.Restart(t.Context(), "a"); err == nil || h.Restarts("a") != 1 {
		t.Error("restarted what must not be")
	}
	h.Break("a")
	if _, summary, err := h.Diagnose(t.Context(), fleet.Command{}); err != nil || summary != "Simulated: a does not work." {
		t.Errorf("%q, %v", summary, err)
	}
	h.Mend("a")
	if _, summary, _ := h.Diagnose(t.Context(), fleet.Command{}); summary != "Simulated: every service works." {
		t.Errorf("%q", summary)
	}
}

func TestGuestsConform(t *testing.T) {
	h := sim.New(sim.Config{VMs: []fleet.VM{{ID: "a", Name: "a", MemoryBytes: 64 << 20}, {ID: "b", Name: "b", MemoryBytes: 64 << 20}}})
	drivertest.Guests(t, drivertest.GuestBench{
		Guests: h, A: "a", B: "b", MemoryBytes: 64 << 20,
		Pause:   func(_ *testing.T, id string) { h.Pause(id) },
		Unpause: func(_ *testing.T, id string) { h.Unpause(id) },
		End:     func(_ *testing.T, id string) { h.Lose(id) },
	})
}

func TestMovesConform(t *testing.T) {
	cfg := sim.Config{VMs: []fleet.VM{{ID: "a", Name: "a", MemoryBytes: 64 << 20}}, MoveTime: 3 * time.Second} // time for the test to do something meanwhile, on a busy machine, too
	from, to := sim.New(cfg), sim.New(sim.Config{MoveTime: time.Millisecond})
	from.Join("to", to)
	to.Join("from", from)
	drivertest.Moves(t, drivertest.MoveBench{
		From: from, To: to, Guest: "a", FromTarget: fleet.Target{Host: "from"}, ToTarget: fleet.Target{Host: "to"}, Nowhere: fleet.Target{Host: "nowhere"},
		Slow: func(*testing.T) {}, Fast: func(*testing.T) {},
		Once: func(t *testing.T) {
			n := 0
			for _, h := range []*sim.Host{from, to} {
				guests, err := h.Guests(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				n += len(guests)
			}
			if n != 1 {
				t.Errorf("the guest is on %d hosts", n)
			}
		},
	})
}

func TestPreservesConform(t *testing.T) {
	h := sim.New(sim.Config{VMs: []fleet.VM{{ID: "a", Name: "a", MemoryBytes: 64 << 20}, {ID: "b", Name: "b", MemoryBytes: 64 << 20}}})
	p := h.Preserver()
	drivertest.Preserves(t, drivertest.PreserveBench{
		Preserver: p, Guests: h, IDs: []string{"a", "b"},
		Block: func(_ *testing.T, id string) func() {
			p.Block(id, "its device gpu0 is passed through")
			return func() { p.Block(id, "") }
		},
		Damage:   func(_ *testing.T, id string) { p.Damage(id) },
		Unharmed: func(*testing.T, []string) {},
	})
}
