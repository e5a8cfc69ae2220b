package guard

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// A Wednesday.
var now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func allowing() (Request, State, Policy) {
	r := Request{Host: "h1", Action: fleet.ActionRecycle, EvidenceAt: now.Add(-10 * time.Second), Approval: &Approval{By: "ann", At: now.Add(-time.Minute), Actions: []fleet.Action{fleet.ActionRecycle}}}
	s := State{Hosts: map[fleet.HostID]Host{"h1": {FaultDomain: "rack1", Failing: true}}}
	for i := range 9 {
		s.Hosts[fleet.HostID(fmt.Sprintf("other%d", i))] = Host{FaultDomain: "rack2", Healthy: true}
	}
	p := Policy{
		ApprovalExpires: 15 * time.Minute, EvidenceMaxAge: time.Minute, Cooldown: 10 * time.Minute, MaxConcurrent: 2, MaxConcurrentPerDomain: 1,
		MinHealthyRatio: 0.5, StormHosts: 3, StormRatio: 0.2,
	}
	return r, s, p
}

func TestCheck(t *testing.T) {
	busy := func(id string, host fleet.HostID, state fleet.ExecutionState, ended time.Time) fleet.Execution {
		return fleet.Execution{ID: id, Host: host, State: state, Action: fleet.ActionRecycle, Ended: ended}
	}
	for name, c := range map[string]struct {
		change func(*Request, *State, *Policy)
		// want is in the only reason; "" means allowed.
		want string
	}{
		"all is well":       {func(*Request, *State, *Policy) {}, ""},
		"unknown host":      {func(r *Request, _ *State, _ *Policy) { r.Host = "h9" }, "not known"},
		"no hosts at all":   {func(_ *Request, s *State, _ *Policy) { s.Hosts = nil }, "not known"},
		"unknown action":    {func(r *Request, _ *State, _ *Policy) { r.Action = "explode" }, "can be carried out"},
		"no action":         {func(r *Request, _ *State, _ *Policy) { r.Action = fleet.ActionNone }, "can be carried out"},
		"dry-run request":   {func(r *Request, _ *State, _ *Policy) { r.DryRun = true }, "request is a dry run"},
		"dry-run policy":    {func(_ *Request, _ *State, p *Policy) { p.DryRun = true }, "policy is in dry-run"},
		"dry-run agent":     {func(_ *Request, s *State, _ *Policy) { h := s.Hosts["h1"]; h.DryRun = true; s.Hosts["h1"] = h }, "agent of host h1 is in dry-run"},
		"fleet frozen":      {func(_ *Request, s *State, _ *Policy) { s.Freezes = []fleet.Freeze{{By: "ann", Reason: "power"}} }, "fleet is frozen by ann: power"},
		"rack frozen":       {func(_ *Request, s *State, _ *Policy) { s.Freezes = []fleet.Freeze{{FaultDomain: "rack1"}} }, "fault domain rack1"},
		"other rack frozen": {func(_ *Request, s *State, _ *Policy) { s.Freezes = []fleet.Freeze{{FaultDomain: "rack2"}} }, ""},
		"host frozen":       {func(_ *Request, s *State, _ *Policy) { s.Freezes = []fleet.Freeze{{Host: "h1", Until: now.Add(1)}} }, "host h1 is frozen"},
		"other host frozen": {func(_ *Request, s *State, _ *Policy) { s.Freezes = []fleet.Freeze{{Host: "h2"}} }, ""},
		"freeze is over":    {func(_ *Request, s *State, _ *Policy) { s.Freezes = []fleet.Freeze{{Until: now}} }, ""},
		"not approved":      {func(r *Request, _ *State, _ *Policy) { r.Approval = nil }, "needs the approval"},
		"automatic": {func(r *Request, _ *State, p *Policy) {
			r.Approval, p.Automatic = nil, []fleet.Action{fleet.ActionRecycle}
		}, ""},
		"another is automatic": {func(r *Request, _ *State, p *Policy) {
			r.Approval, p.Automatic = nil, []fleet.Action{fleet.ActionLiveMigrate}
		}, "needs the approval"},
		"approved something else": {func(r *Request, _ *State, _ *Policy) { r.Action = fleet.ActionPreservingReset }, "approval of its own"},
		"approval expired":        {func(r *Request, _ *State, _ *Policy) { r.Approval.At = now.Add(-16 * time.Minute) }, "expired"},
		"ruled out":               {func(_ *Request, _ *State, p *Policy) { p.Never = []fleet.Action{fleet.ActionRecycle} }, "rules recycle out"},
		"another is ruled out":    {func(_ *Request, _ *State, p *Policy) { p.Never = []fleet.Action{fleet.ActionLiveMigrate} }, ""},
		"approval of this action expired": {func(_ *Request, _ *State, p *Policy) {
			p.ApprovalExpiresFor = map[fleet.Action]time.Duration{fleet.ActionRecycle: 30 * time.Second}
		}, "expired after 30s"},
		"approval of another action expired": {func(_ *Request, _ *State, p *Policy) {
			p.ApprovalExpiresFor = map[fleet.Action]time.Duration{fleet.ActionLiveMigrate: 30 * time.Second}
		}, ""},
		"storm ratio that is no number": {func(_ *Request, _ *State, p *Policy) { p.StormRatio, p.StormHosts = math.NaN(), 1 }, "storm"},
		"approval of tomorrow":          {func(r *Request, _ *State, _ *Policy) { r.Approval.At = now.Add(time.Hour) }, "from the future"},
		"no evidence":                   {func(r *Request, _ *State, _ *Policy) { r.EvidenceAt = time.Time{} }, "no evidence"},
		"old evidence":                  {func(r *Request, _ *State, _ *Policy) { r.EvidenceAt = now.Add(-61 * time.Second) }, "evidence is 1m1s old"},
		"evidence of tomorrow":          {func(r *Request, _ *State, _ *Policy) { r.EvidenceAt = now.Add(time.Hour) }, "from the future"},
		"outside the window": {func(_ *Request, _ *State, p *Policy) {
			p.Windows = []Window{{Days: []time.Weekday{time.Tuesday}, End: time.Hour}, {Days: []time.Weekday{time.Wednesday}, Begin: 11 * time.Hour, End: 12 * time.Hour}}
		}, "outside the maintenance windows: the next one begins at 2026-03-10T00:00:00Z"},
		"inside the window": {func(_ *Request, _ *State, p *Policy) {
			p.Windows = []Window{{Begin: 1 * time.Hour, End: 2 * time.Hour}, {Begin: 11 * time.Hour, End: 14 * time.Hour}}
		}, ""},
		"busy host": {func(_ *Request, s *State, p *Policy) {
			p.MaxConcurrentPerDomain = 2
			s.Executions = []fleet.Execution{busy("x", "h1", fleet.ExecutionRecycling, time.Time{})}
		}, "under way on host h1"},
		"itself": {func(r *Request, s *State, _ *Policy) {
			r.Execution = "x"
			s.Executions = []fleet.Execution{busy("x", "h1", fleet.ExecutionPending, time.Time{})}
		}, ""},
		"cool-down": {func(_ *Request, s *State, _ *Policy) {
			s.Executions = []fleet.Execution{busy("x", "h1", fleet.ExecutionSucceeded, now.Add(-time.Minute))}
		}, "had an execution 1m0s ago"},
		"cool-down is over": {func(_ *Request, s *State, _ *Policy) {
			s.Executions = []fleet.Execution{busy("x", "h1", fleet.ExecutionDegraded, now.Add(-10*time.Minute))}
		}, ""},
		"never began": {func(_ *Request, s *State, _ *Policy) {
			s.Executions = []fleet.Execution{busy("x", "h1", fleet.ExecutionCancelled, now)}
		}, ""},
		"taken back by a person": {func(_ *Request, s *State, _ *Policy) {
			e := busy("x", "h1", fleet.ExecutionCancelled, now.Add(-time.Minute))
			e.CancelledBy = "ann"
			s.Executions = []fleet.Execution{e}
		}, "had an execution 1m0s ago"},
		"another host's cool-down": {func(_ *Request, s *State, _ *Policy) {
			s.Executions = []fleet.Execution{busy("x", "other1", fleet.ExecutionSucceeded, now)}
		}, ""},
		"rack is busy": {func(_ *Request, s *State, _ *Policy) {
			s.Hosts["h2"] = Host{FaultDomain: "rack1", Healthy: true}
			s.Executions = []fleet.Execution{busy("x", "h2", fleet.ExecutionRecycling, time.Time{})}
		}, `fault domain "rack1"`},
		"fleet is busy": {func(_ *Request, s *State, _ *Policy) {
			s.Executions = []fleet.Execution{busy("x", "other1", fleet.ExecutionRecycling, time.Time{}), busy("y", "other2", fleet.ExecutionPending, time.Time{})}
		}, "at most 2"},
		"simulated hosts do not count": {func(_ *Request, s *State, p *Policy) {
			for i := range 50 {
				id := fleet.HostID(fmt.Sprintf("sim%d", i))
				s.Hosts[id] = Host{FaultDomain: "rack1", Simulated: true, Failing: true}
				e := busy(string(id), id, fleet.ExecutionRecycling, time.Time{})
				e.Simulated = true
				s.Executions = append(s.Executions, e)
			}
		}, ""},
		"dry-run policy lets simulated hosts be": {func(_ *Request, s *State, p *Policy) {
			p.DryRun, p.MinHealthyRatio = true, 0
			h := s.Hosts["h1"]
			h.Simulated = true
			s.Hosts["h1"] = h
		}, ""},
		"too few healthy": {func(_ *Request, s *State, _ *Policy) {
			for i := range 5 {
				s.Hosts[fleet.HostID(fmt.Sprintf("other%d", i))] = Host{}
			}
		}, "4 of the 9 other hosts are healthy, at least 50 %"},
		"just enough healthy": {func(_ *Request, s *State, _ *Policy) {
			for i := range 4 {
				s.Hosts[fleet.HostID(fmt.Sprintf("other%d", i))] = Host{}
			}
		}, ""},
		"alone": {func(_ *Request, s *State, p *Policy) {
			s.Hosts, p.MinHealthyRatio, p.StormHosts = map[fleet.HostID]Host{"h1": {}}, 1, 0
		}, ""},
		"ratio that is no number": {func(_ *Request, _ *State, p *Policy) { p.MinHealthyRatio = math.NaN() }, "other hosts are healthy"},
		"storm": {func(_ *Request, s *State, p *Policy) {
			p.MinHealthyRatio = 0
			s.Hosts["other1"], s.Hosts["other2"] = Host{Failing: true}, Host{Failing: true}
		}, "storm"},
		"no storm in a large fleet": {func(_ *Request, s *State, p *Policy) {
			p.StormRatio = 0.3
			s.Hosts["other1"], s.Hosts["other2"] = Host{Failing: true}, Host{Failing: true}
		}, ""},
		"two are no storm": {func(_ *Request, s *State, _ *Policy) { s.Hosts["other1"] = Host{Failing: true} }, ""},
	} {
		r, s, p := allowing()
		c.change(&r, &s, &p)
		d := Check(r, s, p, now)
		switch {
		case d.Allowed != (len(d.Reasons) == 0):
			t.Errorf("%s: allowed %v with reasons %q", name, d.Allowed, d.Reasons)
		case c.want == "" && !d.Allowed:
			t.Errorf("%s: %q", name, d.Reasons)
		case c.want != "" && (len(d.Reasons) != 1 || !strings.Contains(d.Reasons[0], c.want)):
			t.Errorf("%s: %q, want %q alone", name, d.Reasons, c.want)
		}
	}
}

func TestZeroPolicyAllowsNothing(t *testing.T) {
	r, s, _ := allowing()
	for _, a := range []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
		r.Action = a
		if d := Check(r, s, Policy{}, now); d.Allowed {
			t.Errorf("%s is allowed", a)
		}
	}
}

// A person may always be called.
func TestHandOverIsAlwaysAllowed(t *testing.T) {
	r, s, p := allowing()
	r.Action, r.EvidenceAt, r.Approval = fleet.ActionHandOver, time.Time{}, nil
	s.Freezes = []fleet.Freeze{{}}
	if d := Check(r, s, p, now); !d.Allowed {
		t.Errorf("%q", d.Reasons)
	}
}

func TestAllReasonsAreGiven(t *testing.T) {
	r, s, p := allowing()
	r.Approval, r.EvidenceAt, s.Freezes = nil, time.Time{}, []fleet.Freeze{{}, {Host: "h1"}}
	d := Check(r, s, p, now)
	if len(d.Reasons) != 4 {
		t.Errorf("%q", d.Reasons)
	}
	err := error(&Refusal{Host: "h1", Action: r.Action, Reasons: d.Reasons})
	if !strings.Contains(err.Error(), "refused recycle on host h1: the whole fleet is frozen; ") {
		t.Error(err)
	}
}

func TestWindow(t *testing.T) {
	hour := time.Hour
	for _, c := range []struct {
		w    Window
		at   time.Time
		want bool
	}{
		{Window{Begin: 12 * hour, End: 13 * hour}, now, true},
		{Window{Begin: 11 * hour, End: 12 * hour}, now, false},
		{Window{Days: []time.Weekday{time.Wednesday}, End: 24 * hour}, now, true},
		{Window{Days: []time.Weekday{time.Thursday}, End: 24 * hour}, now, false},
		{Window{Begin: 22 * hour, End: 4 * hour}, now.Add(11 * hour), true},
		{Window{Begin: 22 * hour, End: 4 * hour}, now.Add(15 * hour), true},
		{Window{Begin: 22 * hour, End: 4 * hour}, now, false},
		// The window of Tuesday night goes into Wednesday, and no further.
		{Window{Days: []time.Weekday{time.Tuesday}, Begin: 22 * hour, End: 4 * hour}, now.Add(-9 * hour), true},
		{Window{Days: []time.Weekday{time.Tuesday}, Begin: 22 * hour, End: 4 * hour}, now.Add(15 * hour), false},
		{Window{Days: []time.Weekday{time.Saturday}, Begin: 22 * hour, End: 4 * hour}, now.Add(3*24*hour + 13*hour), true}, // Sunday, 1 o'clock
		{Window{Begin: 12 * hour, End: 13 * hour}, now.In(time.FixedZone("", 7*3600)), true},
		{Window{}, now, false},
	} {
		if got := c.w.Contains(c.at); got != c.want {
			t.Errorf("%+v at %v: %v", c.w, c.at, got)
		}
	}
}

// Whatever the fleet and the policy are like: what is allowed keeps every rule, told by
// other means than the guard's, and a further freeze never allows anything.
func TestWhatIsAllowedKeepsEveryRule(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	chance := func(p float64) bool { return rnd.Float64() < p }
	allowed := 0
	for range 8000 {
		r, s, p := allowing()
		p.MaxConcurrent, p.MaxConcurrentPerDomain = rnd.IntN(4), rnd.IntN(3)
		p.MinHealthyRatio, p.StormHosts, p.StormRatio = rnd.Float64(), rnd.IntN(5), rnd.Float64()*0.6
		p.DryRun = chance(0.05)
		if chance(0.3) {
			p.Automatic = []fleet.Action{fleet.ActionRecycle}
		}
		if chance(0.05) {
			p.Never = []fleet.Action{fleet.ActionRecycle}
		}
		if chance(0.2) {
			r.Approval = nil
		}
		r.EvidenceAt = now.Add(-time.Duration(rnd.IntN(90)) * time.Second)
		for id, h := range s.Hosts {
			h.FaultDomain = fmt.Sprint("rack", rnd.IntN(3))
			h.Failing = chance(0.15)
			h.Healthy = !h.Failing && chance(0.9)
			s.Hosts[id] = h
			if chance(0.1) {
				s.Executions = append(s.Executions, fleet.Execution{ID: string(id), Host: id, Action: fleet.ActionRecycle, State: fleet.ExecutionRecycling})
			}
		}
		if chance(0.1) {
			s.Freezes = []fleet.Freeze{{FaultDomain: "rack1"}}
		}
		d := Check(r, s, p, now)
		passed := true
		for _, f := range d.Rules {
			passed = passed && f.Passed
		}
		if d.Allowed != passed || d.Allowed != (len(d.Reasons) == 0) {
			t.Fatalf("%+v contradicts itself", d)
		}
		frozen := s
		frozen.Freezes = append([]fleet.Freeze{{}}, s.Freezes...)
		if Check(r, frozen, p, now).Allowed {
			t.Fatal("allowed though the fleet is frozen")
		}
		if !d.Allowed {
			continue
		}
		allowed++
		domain := s.Hosts["h1"].FaultDomain
		inFleet, inDomain, healthy, failing := 0, 0, 0, 0
		for _, e := range s.Executions {
			inFleet++
			if s.Hosts[e.Host].FaultDomain == domain {
				inDomain++
			}
			if e.Host == "h1" {
				t.Fatal("two executions on a host")
			}
		}
		for id, h := range s.Hosts {
			if h.Failing {
				failing++
			}
			if h.Healthy && id != "h1" {
				healthy++
			}
		}
		switch {
		case inFleet+1 > p.MaxConcurrent || inDomain+1 > p.MaxConcurrentPerDomain:
			t.Fatalf("%d in the fleet of at most %d, %d in the domain of at most %d, and one more", inFleet, p.MaxConcurrent, inDomain, p.MaxConcurrentPerDomain)
		case float64(healthy)/9 < p.MinHealthyRatio:
			t.Fatalf("%d of 9 are healthy, %v are to be", healthy, p.MinHealthyRatio)
		case p.StormHosts > 0 && failing >= p.StormHosts && float64(failing)/10 > p.StormRatio:
			t.Fatalf("%d of 10 fail, and that is no storm with %d and %v", failing, p.StormHosts, p.StormRatio)
		case r.Approval == nil && len(p.Automatic) == 0, len(p.Never) > 0, p.DryRun, now.Sub(r.EvidenceAt) > p.EvidenceMaxAge, len(s.Freezes) > 0 && domain == "rack1":
			t.Fatalf("allowed: %+v under %+v", r, p)
		}
	}
	if allowed < 100 {
		t.Errorf("only %d of the cases were allowed: the test says little", allowed)
	}
}
