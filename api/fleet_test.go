package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// fake is a Fleet in memory: two simulated hosts, of which one has not sent
// anything yet, and a real one that is busy.
type fake struct {
	promotable bool // the shadow
	mu         sync.Mutex
	hosts      []HostView
	recs       []fleet.Recommendation
	execs      []fleet.Execution
	err        error // what every method answers, where set
	panics     bool  // of Hosts
	essential  map[string]string
	degraded   map[string]string
	points     []Point
	dead       []DeadLetter
	frozen     []fleet.Freeze
	asked      []query       // of Telemetry
	bundle     io.ReadCloser // what Bundle opens
	followers  map[chan Event]struct{}
	cutOff     int           // followers that were too slow
	wait       time.Duration // of a decision
}

type query struct {
	host     fleet.HostID
	series   string
	from, to time.Time
	step     time.Duration
}

// What the fake has.
const (
	realHost, simHost, silentHost             = "rack1-host1", "sim-host1", "sim-host2"
	recPending, recExpired, recDone, recGuard = "01J0PENDING", "01J0EXPIRED", "01J0DONE", "01J0GUARD"
	execWithBundle, execWithout               = "01J1BUNDLE", "01J1PLAIN"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func prediction(host fleet.HostID, simulated bool) fleet.Prediction {
	value := 0.93
	return fleet.Prediction{Host: host, Time: epoch, Simulated: simulated, State: fleet.PredictionScoring, Learned: 1, AnomalyScore: 5.5, Anomalous: true,
		FailureProbability: 0.7, HorizonSeconds: 600, Signature: fleet.SignatureMemoryLeak, Culprit: "libvirtd.service",
		Contributions: []fleet.Contribution{{Series: "memory_used_ratio", Share: 1, Value: &value}}, Subsystems: []fleet.SubsystemShare{{Subsystem: "memory", Share: 1}}, Evidence: []string{"libvirtd.service grows by 3 MiB/s"}, Model: "test"}
}

func newFake() *fake {
	host := func(id fleet.HostID, simulated bool) HostView {
		return HostView{Host: fleet.Host{ID: id, Simulated: simulated, DryRun: !simulated, FirstSeen: epoch, LastSeen: epoch, FaultDomain: "rack1", Version: "1",
			VMs: []fleet.VM{{ID: "vm1", Name: "guest", State: "running", MemoryBytes: 1 << 30}}, Actions: fleet.Actions(), Units: []string{"libvirtd.service"}}}
	}
	f := &fake{
		hosts:     []HostView{host(realHost, false), host(simHost, true), host(silentHost, true)},
		bundle:    io.NopCloser(strings.NewReader("not really zstd")),
		followers: make(map[chan Event]struct{}),
		points:    []Point{{epoch, 0.5}, {epoch.Add(time.Second), 0.75}},
		dead: []DeadLetter{
			{ID: "7", Time: epoch, Host: realHost, Reason: "field type conflict", Bytes: 300, Samples: []DeadSample{{Time: epoch, Values: map[string]float64{"load_1m": 1}}}},
			{ID: "9", Time: epoch, Host: realHost, Reason: "damaged", Bytes: 3, Samples: []DeadSample{}},
		},
	}
	for i := range 2 {
		p := prediction(f.hosts[i].ID, f.hosts[i].Simulated)
		f.hosts[i].Prediction = &p
	}
	rec := func(id string, host fleet.HostID, state fleet.RecommendationState, expires time.Time) fleet.Recommendation {
		simulated := host != realHost
		return fleet.Recommendation{ID: id, Host: host, Time: epoch, Expires: expires, Simulated: simulated, DryRun: !simulated, State: state, Action: fleet.ActionRecycle,
			Prediction: prediction(host, simulated), CostVMSeconds: 0.5, Reason: "It leaks.", Propensity: 1, Policy: "test",
			Alternatives: []fleet.Alternative{{Action: fleet.ActionRecycle, Available: true, CostVMSeconds: 0.5, CureProbability: 0.9, Why: "it is quick"}}}
	}
	later := time.Now().Add(time.Hour)
	f.recs = []fleet.Recommendation{
		rec(recPending, simHost, fleet.RecommendationPending, later), rec(recGuard, realHost, fleet.RecommendationPending, later),
		rec(recExpired, simHost, fleet.RecommendationPending, epoch), rec(recDone, simHost, fleet.RecommendationDone, later),
	}
	exec := func(id, bundle string) fleet.Execution {
		return fleet.Execution{ID: id, Host: simHost, Action: fleet.ActionRecycle, State: fleet.ExecutionSucceeded, Simulated: true, Reason: "It leaks.", RequestedBy: "local",
			Created: epoch, Updated: epoch, Ended: epoch, Token: 7, Bundle: bundle, Outcome: "healthy again",
			Steps:        []fleet.Step{{Phase: fleet.PhaseRecycle, Name: "libvirtd.service", Attempt: 1, State: fleet.StepSucceeded, Started: epoch, Ended: epoch}},
			GuestsBefore: []fleet.GuestReport{{VM: fleet.VM{ID: "vm1", State: "running"}, Alive: true, MaxGapSeconds: 0.02}}, GuestsAfter: []fleet.GuestReport{}}
	}
	f.execs = []fleet.Execution{exec(execWithBundle, "bundle-1"), exec(execWithout, "")}
	return f
}

func (f *fake) lock() func() { f.mu.Lock(); return f.mu.Unlock }

func (f *fake) Hosts(context.Context) ([]HostView, error) {
	defer f.lock()()
	if f.panics {
		panic("a secret of the inside")
	}
	return f.hosts, f.err
}

func (f *fake) Host(_ context.Context, id fleet.HostID) (HostView, error) {
	defer f.lock()()
	for _, h := range f.hosts {
		if h.ID == id {
			return h, f.err
		}
	}
	return HostView{}, ErrNotFound.Errorf("there is no host %q", id)
}

func (f *fake) Series(context.Context, fleet.HostID) ([]string, error) {
	return []string{"memory_used_ratio", "unit_memory_bytes{a.service}"}, nil
}

func (f *fake) Telemetry(_ context.Context, host fleet.HostID, series string, from, to time.Time, step time.Duration) ([]Point, error) {
	defer f.lock()()
	f.asked = append(f.asked, query{host, series, from, to, step})
	return f.points, f.err
}

func (f *fake) Recommendations(context.Context) ([]fleet.Recommendation, error) {
	defer f.lock()()
	return slices.Clone(f.recs), f.err
}

func (f *fake) decide(ctx context.Context, id, who, note string, to fleet.RecommendationState) (fleet.Recommendation, error) {
	if f.wait > 0 {
		select {
		case <-time.After(f.wait):
		case <-ctx.Done():
			return fleet.Recommendation{}, ctx.Err()
		}
	}
	defer f.lock()()
	if f.err != nil {
		return fleet.Recommendation{}, f.err
	}
	i := slices.IndexFunc(f.recs, func(r fleet.Recommendation) bool { return r.ID == id })
	if i < 0 {
		return fleet.Recommendation{}, ErrNotFound.Errorf("there is no recommendation %q", id)
	}
	r := &f.recs[i]
	switch {
	case r.State != fleet.RecommendationPending:
		return *r, ErrConflict.Errorf("%s is %s already, by %s", id, r.State, r.DecidedBy)
	case time.Now().After(r.Expires):
		return *r, ErrExpired.Errorf("%s was valid until %s; a new one comes if the host still fails", id, r.Expires)
	case r.ID == recGuard && to == fleet.RecommendationExecuting:
		return *r, ErrConflict.Errorf("the freeze switch is on")
	}
	r.State, r.DecidedBy, r.Note, r.DecidedAt = to, who, note, epoch
	return *r, nil
}

func (f *fake) Approve(ctx context.Context, id, who, note string) (fleet.Recommendation, error) {
	return f.decide(ctx, id, who, note, fleet.RecommendationExecuting)
}

func (f *fake) Reject(ctx context.Context, id, who, note string) (fleet.Recommendation, error) {
	return f.decide(ctx, id, who, note, fleet.RecommendationRejected)
}

func (f *fake) Executions(context.Context) ([]fleet.Execution, error) {
	defer f.lock()()
	return slices.Clone(f.execs), f.err
}

func (f *fake) Execute(ctx context.Context, host fleet.HostID, action fleet.Action, reason, who string, dryRun bool) (fleet.Execution, error) {
	h, err := f.Host(ctx, host)
	if err != nil {
		return fleet.Execution{}, err
	}
	defer f.lock()()
	if host == realHost {
		return fleet.Execution{}, ErrConflict.Errorf("%s is busy with another execution", host)
	}
	e := fleet.Execution{ID: fmt.Sprintf("01J2NEW%d", len(f.execs)), Host: host, Action: action, State: fleet.ExecutionPending, Simulated: h.Simulated, DryRun: h.DryRun || dryRun,
		Reason: reason, RequestedBy: who, Created: epoch, Updated: epoch, Token: 8, Steps: []fleet.Step{}, GuestsBefore: []fleet.GuestReport{}, GuestsAfter: []fleet.GuestReport{}}
	f.execs = append([]fleet.Execution{e}, f.execs...)
	return e, nil
}

func (f *fake) Policy(context.Context) (PolicyView, error) {
	defer f.lock()()
	return PolicyView{Revision: "0123456789ab", Source: "/etc/policy.yaml", Since: epoch, Document: "mode: approve\n", Refused: &RefusedPolicy{epoch, "line 3: mode"}}, f.err
}

func (f *fake) Explain(ctx context.Context, host fleet.HostID, action fleet.Action, approved bool) ([]Explanation, error) {
	h, err := f.Host(ctx, host)
	if err != nil {
		return nil, err
	}
	e := Explanation{Host: host, Simulated: h.Simulated, Action: action, Allowed: approved, Possible: true, Reasons: []string{}, Policy: "0123456789ab", Rules: []RuleFinding{{"approval", approved}}}
	if !approved {
		e.Reasons = append(e.Reasons, "it needs the approval of a person")
	}
	return []Explanation{e}, nil
}

func (f *fake) Freezes(context.Context) ([]fleet.Freeze, error) {
	defer f.lock()()
	return slices.Clone(f.frozen), f.err
}

func (f *fake) Freeze(_ context.Context, x fleet.Freeze) (fleet.Freeze, error) {
	defer f.lock()()
	x.ID, x.Since, x.Simulated = fmt.Sprintf("01J3FREEZE%d", len(f.frozen)), epoch, x.Host == simHost
	f.frozen = append(f.frozen, x)
	return x, f.err
}

func (f *fake) Lift(_ context.Context, id, _ string) (fleet.Freeze, error) {
	defer f.lock()()
	i := slices.IndexFunc(f.frozen, func(x fleet.Freeze) bool { return x.ID == id })
	if i < 0 {
		return fleet.Freeze{}, ErrNotFound.Errorf("there is no freeze %q; /api/v1/freezes lists them", id)
	}
	x := f.frozen[i]
	f.frozen = slices.Delete(f.frozen, i, i+1)
	return x, f.err
}

func (f *fake) Cancel(_ context.Context, id, who string) (fleet.Execution, error) {
	defer f.lock()()
	for _, e := range f.execs {
		switch {
		case e.ID == id && e.State.Final():
			return e, ErrConflict.Errorf("%s is %s already", id, e.State)
		case e.ID == id && e.State == fleet.ExecutionMigrating:
			e.CancelledBy = who
			return e, f.err
		case e.ID == id:
			e.State, e.Outcome = fleet.ExecutionCancelled, "cancelled by "+who
			return e, f.err
		}
	}
	return fleet.Execution{}, ErrNotFound.Errorf("there is no execution %q", id)
}

func (f *fake) Bundle(context.Context, fleet.Execution) (io.ReadCloser, error) {
	defer f.lock()()
	return f.bundle, f.err
}

func (f *fake) RootCause(_ context.Context, e fleet.Execution) (RootCause, string, error) {
	defer f.lock()()
	return RootCause{Host: e.Host, Simulated: e.Simulated, Execution: e.ID, From: epoch, To: epoch, Lines: 7, Suspects: []Suspect{
		{Rule: "oom-kill", Class: fleet.SignatureMemoryLeak, Title: "out of memory", Score: 0.9, Count: 1, Culprits: []string{"a.service"}, Evidence: []Evidence{{File: "kernel.log", Line: 3, Text: "Out of memory"}}},
	}}, "# Host: out of memory\n", f.err
}

func (f *fake) NotReady(context.Context) (essential, degraded map[string]string) {
	defer f.lock()()
	return f.essential, f.degraded
}

// followerBuffer is how many events a follower may be behind.
const followerBuffer = 16

func (f *fake) Follow() (<-chan Event, func()) {
	defer f.lock()()
	ch := make(chan Event, followerBuffer)
	f.followers[ch] = struct{}{}
	return ch, func() {
		defer f.lock()()
		if _, ok := f.followers[ch]; ok {
			delete(f.followers, ch)
			close(ch)
		}
	}
}

func (f *fake) following() int {
	defer f.lock()()
	return len(f.followers)
}

// emit never waits: a follower whose buffer is full is cut off.
func (f *fake) emit(kind, id string, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	defer f.lock()()
	for ch := range f.followers {
		select {
		case ch <- Event{kind, id, data}:
		default:
			delete(f.followers, ch)
			close(ch)
			f.cutOff++
		}
	}
}

func (f *fake) DeadLetters(_ context.Context, limit int) ([]DeadLetter, error) {
	return f.dead[:min(limit, len(f.dead))], f.err
}

func (f *fake) DeadLetter(_ context.Context, id string) (DeadLetter, error) {
	for _, d := range f.dead {
		if d.ID == id {
			return d, f.err
		}
	}
	return DeadLetter{}, ErrNotFound.Errorf("there is no dead letter %q", id)
}

func (f *fake) RetryDeadLetter(ctx context.Context, id, _ string) error {
	_, err := f.DeadLetter(ctx, id)
	return err
}

func (f *fake) RemoveHost(ctx context.Context, id fleet.HostID, who string) (HostView, error) {
	return f.Host(ctx, id)
}

func (f *fake) Cordon(_ context.Context, host fleet.HostID, reason, who string) (fleet.Cordon, error) {
	defer f.lock()()
	i := slices.IndexFunc(f.hosts, func(h HostView) bool { return h.ID == host })
	if i < 0 {
		return fleet.Cordon{}, ErrNotFound.Errorf("there is no host %q", host)
	}
	f.hosts[i].Cordon = &fleet.Cordon{Host: host, Simulated: f.hosts[i].Simulated, Since: epoch, By: who, Reason: reason}
	return *f.hosts[i].Cordon, f.err
}

func (f *fake) Uncordon(_ context.Context, host fleet.HostID, who string) (fleet.Cordon, error) {
	defer f.lock()()
	i := slices.IndexFunc(f.hosts, func(h HostView) bool { return h.ID == host && h.Cordon != nil })
	if i < 0 {
		return fleet.Cordon{}, ErrNotFound.Errorf("host %q is not cordoned", host)
	}
	c := *f.hosts[i].Cordon
	f.hosts[i].Cordon, c.Lifted, c.LiftedBy = nil, epoch, who
	return c, f.err
}
