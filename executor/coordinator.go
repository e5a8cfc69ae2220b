package executor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Record is an execution as it is stored: what everybody may know, and what the
// coordinator needs to go on after a crash.
type Record struct {
	fleet.Execution
	// Command is what the agent was last told, exactly as it is sent.
	Command fleet.Command `json:"command,omitzero"`
	// EvidenceAt is when the evidence for the action was seen last.
	EvidenceAt time.Time       `json:"evidence_at,omitzero"`
	Approval   *guard.Approval `json:"approval,omitempty"`
	// Prediction is what led to the execution; nil where a person asked for it.
	Prediction *fleet.Prediction `json:"prediction,omitempty"`
	// Unaudited is true from the end of the execution until that is in the audit trail and the host's lease
	// is given up.
	Unaudited bool `json:"unaudited,omitempty"`
}

// Stored is a record and its revision in the store.
type Stored struct {
	Record
	Revision uint64 `json:"-"`
}

// Store keeps records, by their ID. It answers [ErrConflict] where somebody else was
// faster; the coordinator decides by that alone, never by what it read.
type Store interface {
	Create(ctx context.Context, r Record) (revision uint64, err error)
	Update(ctx context.Context, r Record, revision uint64) (newRevision uint64, err error)
	List(ctx context.Context) ([]Stored, error)
}

// Commands brings commands to host agents, at least once.
type Commands interface {
	Send(ctx context.Context, c fleet.Command) error
}

// Leases gives the exclusive right to act on a host. It ends by itself if it is not
// renewed.
type Leases interface {
	// Acquire answers [ErrBusy] while another owner has the host. The token is
	// larger than all before.
	Acquire(ctx context.Context, host fleet.HostID, owner string) (token uint64, err error)
	// Renew answers [ErrLeaseLost] if the lease ended or is another's. It works
	// also in a process that was started after Acquire.
	Renew(ctx context.Context, host fleet.HostID, owner string, token uint64) error
	// Release gives the lease up; one that ended already is no error.
	Release(ctx context.Context, host fleet.HostID, owner string, token uint64) error
}

// Surroundings is what the guard decides on, as it is at this instant. The
// coordinator adds the executions. An error makes the guard refuse.
type Surroundings interface {
	Surroundings(ctx context.Context) (guard.Policy, guard.State, error)
}

// Placement chooses where the VMs of a host go.
type Placement interface {
	// Place chooses a target for each VM of the host, none of them among busy, which
	// says of hosts why they cannot be one now. An error says what is in the way.
	Place(ctx context.Context, host fleet.HostID, busy map[fleet.HostID]string) ([]fleet.Target, error)
}

// Audit is the trail of every decision and action. Nothing is done whose record
// cannot be appended.
type Audit interface {
	Append(ctx context.Context, actor, event, subject string, detail any) error
}

// The errors of a coordinator; a refusal of the guard is a [*guard.Refusal].
var (
	ErrBusy      = errors.New("another execution is under way on the host")
	ErrConflict  = errors.New("the record was changed by somebody else")
	ErrLeaseLost = errors.New("the lease of the host is lost")
	ErrInvalid   = errors.New("the request is not valid")
	ErrNotFound  = errors.New("there is no such execution")
	ErrTooLate   = errors.New("the execution can not be cancelled any more")
)

// Config is what a Coordinator works with; all interfaces but Placement are needed.
type Config struct {
	Store    Store
	Commands Commands
	Leases   Leases
	Guard    Surroundings
	Audit    Audit
	// Placement may be nil; no live migration is possible then.
	Placement Placement
	// Limits says how long each phase that begins now may take; nil means [DefaultLimits].
	Limits func() Limits
	// Tick is how often Run looks after the executions; 0 means 250 ms. Renew is how
	// often leases are renewed; 0 means 5 s, which must be well under their time.
	Tick, Renew time.Duration
	// Grace is how long after a phase's deadline the agent's report may arrive; 0
	// means 15 s. It covers the count of the VMs after a phase that took too long.
	Grace time.Duration
	// Resend is how often a command is sent again while the agent says nothing; 0
	// means 30 s.
	Resend time.Duration
	// Clock defaults to time.Now, Log to slog.Default().
	Clock func() time.Time
	Log   *slog.Logger
}

// Request is an action that somebody wants.
type Request struct {
	Host           fleet.HostID
	Action         fleet.Action
	Reason         string
	Recommendation string
	// RequestedBy is a person, or "policy:automatic".
	RequestedBy string
	// EvidenceAt is when the evidence was seen: the time of the prediction, or of
	// the request, where a person is the witness.
	EvidenceAt time.Time
	// Approval is a person's consent; nil if there is none.
	Approval *guard.Approval
	// Prediction is what led to the request; nil if nothing did.
	Prediction *fleet.Prediction
	// DryRun says what would happen, and does nothing.
	DryRun bool
}

// Coordinator carries out executions. It is safe for concurrent use. At most one
// coordinator should run at a time; should two, then leases, revisions and fencing
// tokens keep them from acting twice.
type Coordinator struct {
	cfg Config

	// begin makes the guard's last check and the begin that follows one thing, so
	// that two executions cannot both be the last one that a limit allows.
	begin sync.Mutex

	mu      sync.Mutex
	loaded  bool
	records map[string]Stored
	live    map[string]*live
	hosts   map[fleet.HostID]*sync.Mutex
}

// live is what this process remembers of an execution that is under way.
type live struct {
	renewed time.Time
	sent    time.Time // the last command, zero: not by this process
	heard   time.Time // the last report
	// unaudited waits for the audit trail; nothing is sent before.
	unaudited []auditEntry
	resumed   bool
}

type auditEntry struct {
	actor, event string
	detail       any
}

// New returns a coordinator. Nothing happens before [Coordinator.Run], except that
// Submit and HandleReport work at once.
func New(cfg Config) (*Coordinator, error) {
	if cfg.Store == nil || cfg.Commands == nil || cfg.Leases == nil || cfg.Guard == nil || cfg.Audit == nil {
		return nil, fmt.Errorf("the coordinator of executions needs a store, commands, leases, the guard's surroundings and the audit trail")
	}
	if cfg.Limits == nil {
		cfg.Limits = DefaultLimits
	}
	for d, v := range map[*time.Duration]time.Duration{&cfg.Tick: 250 * time.Millisecond, &cfg.Renew: 5 * time.Second, &cfg.Grace: 15 * time.Second, &cfg.Resend: 30 * time.Second} {
		if *d <= 0 {
			*d = v
		}
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Coordinator{cfg: cfg, records: map[string]Stored{}, live: map[string]*live{}, hosts: map[fleet.HostID]*sync.Mutex{}}, nil
}

func (c *Coordinator) now() time.Time { return c.cfg.Clock().UTC() }

// lock serialises what happens to one host in this process.
func (c *Coordinator) lock(host fleet.HostID) (unlock func()) {
	c.mu.Lock()
	m := c.hosts[host]
	if m == nil {
		m = &sync.Mutex{}
		c.hosts[host] = m
	}
	c.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// load reads the store once, or anew.
func (c *Coordinator) load(ctx context.Context, again bool) error {
	c.mu.Lock()
	done := c.loaded && !again
	c.mu.Unlock()
	if done {
		return nil
	}
	all, err := c.cfg.Store.List(ctx)
	if err != nil {
		return fmt.Errorf("read the executions: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range all {
		if c.records[s.ID].Revision < s.Revision {
			c.records[s.ID] = s
		}
	}
	c.loaded = true
	return nil
}

func (c *Coordinator) keep(s Stored) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records[s.ID].Revision < s.Revision {
		c.records[s.ID] = s
	}
}

func (c *Coordinator) find(id string) (Stored, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.records[id]
	return s, ok
}

func (c *Coordinator) of(id string) *live {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.live[id]
	if l == nil {
		l = &live{}
		c.live[id] = l
	}
	return l
}

// Execution returns one execution as the store has it; [ErrNotFound] if there is none.
func (c *Coordinator) Execution(ctx context.Context, id string) (fleet.Execution, error) {
	if err := c.load(ctx, true); err != nil {
		return fleet.Execution{}, err
	}
	s, ok := c.find(id)
	if !ok {
		return fleet.Execution{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return s.Execution, nil
}

// Executions returns all executions, oldest first.
func (c *Coordinator) Executions(ctx context.Context) ([]fleet.Execution, error) {
	if err := c.load(ctx, true); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]fleet.Execution, 0, len(c.records))
	for _, s := range c.records {
		out = append(out, s.Execution)
	}
	slices.SortFunc(out, func(a, b fleet.Execution) int {
		if d := a.Created.Compare(b.Created); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// Explain says what the guard would say to a request now.
func (c *Coordinator) Explain(ctx context.Context, r Request) (guard.Decision, error) {
	if err := c.load(ctx, false); err != nil {
		return guard.Decision{}, err
	}
	d, _ := c.check(ctx, guard.Request{Host: r.Host, Action: r.Action, EvidenceAt: r.EvidenceAt, Approval: r.Approval, DryRun: r.DryRun})
	return d, nil
}

// check asks the guard. It fails closed.
func (c *Coordinator) check(ctx context.Context, r guard.Request) (guard.Decision, guard.Host) {
	policy, state, err := c.cfg.Guard.Surroundings(ctx)
	if err != nil {
		return guard.Decision{Reasons: []string{"the state of the fleet is not known: " + err.Error()}}, guard.Host{}
	}
	host := state.Hosts[r.Host]
	// Newer evidence for the same host counts as well.
	if host.Failing && host.EvidenceAt.After(r.EvidenceAt) {
		r.EvidenceAt = host.EvidenceAt
	}
	now := c.now()
	state.Executions = c.recent(now, policy.Cooldown, r.Execution)
	return guard.Check(r, state, policy, now), host
}

// recent lists the executions that are under way or ended within the cool-down, as
// one of them has to see it: of those that wait with it, only the earlier ones count.
func (c *Coordinator) recent(now time.Time, cooldown time.Duration, self string) []fleet.Execution {
	c.mu.Lock()
	defer c.mu.Unlock()
	me, waits := c.records[self]
	var out []fleet.Execution
	for id, s := range c.records {
		if waits && s.State == fleet.ExecutionPending && (s.Created.After(me.Created) || s.Created.Equal(me.Created) && id > self) {
			continue
		}
		if !s.State.Final() || now.Sub(s.Ended) < cooldown {
			out = append(out, s.Execution)
		}
	}
	return out
}

// Submit begins an execution, if the guard allows it: when Submit returns, the first
// command is on its way, or the returned execution says why not. A refusal is a
// [*guard.Refusal]; [ErrBusy] and [ErrInvalid] are the other errors of the request
// itself.
func (c *Coordinator) Submit(ctx context.Context, r Request) (fleet.Execution, error) {
	if err := c.load(ctx, false); err != nil {
		return fleet.Execution{}, err
	}
	if err := r.Host.Validate(); err != nil {
		return fleet.Execution{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if r.Action == fleet.ActionNone || !slices.Contains(fleet.Actions(), r.Action) {
		return fleet.Execution{}, fmt.Errorf("%w: %q is not an action that can be carried out", ErrInvalid, r.Action)
	}
	if r.RequestedBy == "" {
		return fleet.Execution{}, fmt.Errorf("%w: it does not say who asks", ErrInvalid)
	}
	defer c.lock(r.Host)()
	now := c.now()
	rec := Record{
		Execution: fleet.Execution{
			ID: newID(now), Host: r.Host, Action: r.Action, State: fleet.ExecutionPending, DryRun: r.DryRun, Reason: clip(r.Reason),
			Recommendation: r.Recommendation, RequestedBy: r.RequestedBy, Created: now, Updated: now, Deadline: now.Add(c.cfg.Limits().Start),
			Steps: []fleet.Step{}, GuestsBefore: []fleet.GuestReport{}, GuestsAfter: []fleet.GuestReport{},
		},
		EvidenceAt: r.EvidenceAt, Approval: r.Approval, Prediction: r.Prediction,
	}
	d, host := c.check(ctx, guard.Request{Host: r.Host, Action: r.Action, EvidenceAt: r.EvidenceAt, Approval: r.Approval})
	rec.Simulated = host.Simulated
	if r.DryRun {
		return c.dryRun(ctx, rec, d)
	}
	if !d.Allowed {
		if err := c.cfg.Audit.Append(ctx, r.RequestedBy, "execution.refused", string(r.Host), map[string]any{"action": r.Action, "reasons": d.Reasons}); err != nil {
			return fleet.Execution{}, fmt.Errorf("record the guard's refusal: %w", err)
		}
		return fleet.Execution{}, &guard.Refusal{Host: r.Host, Action: r.Action, Reasons: d.Reasons}
	}
	if other := c.active(r.Host); other != "" {
		return fleet.Execution{}, fmt.Errorf("host %s: %w: %s", r.Host, ErrBusy, other)
	}
	token, err := c.cfg.Leases.Acquire(ctx, r.Host, rec.ID)
	if err != nil {
		return fleet.Execution{}, fmt.Errorf("take host %s for an execution: %w", r.Host, err)
	}
	rec.Token = token
	// Another coordinator may have left one that it will never finish.
	err = c.load(ctx, true)
	if other := c.active(r.Host); err == nil && other != "" {
		err = fmt.Errorf("host %s: %w: %s", r.Host, ErrBusy, other)
	}
	var revision uint64
	if err == nil {
		revision, err = c.cfg.Store.Create(ctx, rec)
	}
	if err != nil {
		return fleet.Execution{}, errors.Join(err, c.cfg.Leases.Release(ctx, r.Host, rec.ID, token))
	}
	c.keep(Stored{rec, revision})
	l := c.of(rec.ID)
	l.renewed, l.resumed = now, true
	l.unaudited = append(l.unaudited, auditEntry{r.RequestedBy, "execution.requested", rec.Execution})
	// From here on the execution exists: what fails now is tried again by Run.
	if err := c.advance(ctx, rec.ID); err != nil {
		c.cfg.Log.Warn("an execution has not begun yet, trying again", "execution", rec.ID, "host", r.Host, "err", err)
	}
	s, _ := c.find(rec.ID)
	return s.Execution, nil
}

// dryRun records what would have been done.
func (c *Coordinator) dryRun(ctx context.Context, rec Record, d guard.Decision) (fleet.Execution, error) {
	rec.State, rec.Ended, rec.Deadline = fleet.ExecutionCancelled, rec.Created, time.Time{}
	rec.Outcome = fmt.Sprintf("Dry run: %s would have been carried out.", rec.Action)
	if !d.Allowed {
		rec.Outcome = fmt.Sprintf("Dry run: the guard would have refused %s: %s.", rec.Action, strings.Join(d.Reasons, "; "))
	}
	if err := c.cfg.Audit.Append(ctx, rec.RequestedBy, "execution.dry-run", string(rec.Host), rec.Execution); err != nil {
		return fleet.Execution{}, fmt.Errorf("record the dry run: %w", err)
	}
	revision, err := c.cfg.Store.Create(ctx, rec)
	if err != nil {
		return fleet.Execution{}, fmt.Errorf("store the dry run: %w", err)
	}
	c.keep(Stored{rec, revision})
	return rec.Execution, nil
}

// active is the ID of the execution that is under way on a host, or "".
func (c *Coordinator) active(host fleet.HostID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.records {
		if !s.State.Final() && (s.Host == host || receives(s, host)) {
			return id
		}
	}
	return ""
}

// receives tells whether an execution is moving VMs to a host, on which nothing else
// may begin until that is over.
func receives(s Stored, host fleet.HostID) bool {
	return s.State == fleet.ExecutionMigrating && slices.ContainsFunc(s.Command.Targets, func(t fleet.Target) bool { return t.Host == host })
}

// mover is the ID of the execution that is moving VMs to a host, or "".
func (c *Coordinator) mover(host fleet.HostID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.records {
		if receives(s, host) {
			return id
		}
	}
	return ""
}

// place chooses targets for the VMs of a host.
func (c *Coordinator) place(ctx context.Context, host fleet.HostID) ([]fleet.Target, error) {
	if c.cfg.Placement == nil {
		return nil, errors.New("nobody chooses targets here")
	}
	busy := map[fleet.HostID]string{}
	c.mu.Lock()
	for id, s := range c.records {
		if s.State.Final() || s.Host == host {
			continue
		}
		busy[s.Host] = "an execution is under way on it: " + id
		if s.State == fleet.ExecutionMigrating { // nobody knows yet how much room is left there
			for _, t := range s.Command.Targets {
				busy[t.Host] = fmt.Sprintf("VMs of host %s are being moved to it: %s", s.Host, id)
			}
		}
	}
	c.mu.Unlock()
	return c.cfg.Placement.Place(ctx, host, busy)
}

// newID is unique, and sorts by time.
func newID(now time.Time) string {
	var b [6]byte
	rand.Read(b[:])
	return "x" + now.UTC().Format("20060102t150405") + "-" + hex.EncodeToString(b[:])
}

// Cancel stops an execution. One that has had no effect yet, or is between its phases,
// ends at once. A recycle ends after the service that it is at, a live migration with
// every VM in one place, a preserving reset before it freezes a VM: the execution that is
// returned is not final then, and says who cancelled it. The error is [ErrTooLate] where
// it goes on to its end.
func (c *Coordinator) Cancel(ctx context.Context, id, by string) (fleet.Execution, error) {
	if err := c.load(ctx, false); err != nil {
		return fleet.Execution{}, err
	}
	s, ok := c.find(id)
	if !ok {
		return fleet.Execution{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	defer c.lock(s.Host)()
	if s, _ = c.find(id); s.State.Final() {
		return s.Execution, fmt.Errorf("%w: it is %s", ErrTooLate, s.State)
	}
	err := c.apply(ctx, id, by, func(Stored) Event { return Event{Kind: EventCancel, By: by, Detail: "cancelled by " + by} })
	if s, _ = c.find(id); err != nil {
		return s.Execution, err
	}
	if s.CancelledBy == "" {
		return s.Execution, fmt.Errorf("%w: it is %s, and its VMs are being frozen or have been; it goes on to its end", ErrTooLate, s.State)
	}
	// It is stored: what fails now is tried again by Run.
	if err := c.tend(ctx, id); err != nil {
		c.cfg.Log.Warn("the host's agent does not know yet that an execution was cancelled, trying again", "execution", id, "host", s.Host, "err", err)
	}
	return s.Execution, nil
}

const (
	// maxText bounds what agents and people say, in bytes.
	maxText = 4096
	// maxRecord bounds an execution with what agents say of steps and VMs, in bytes. The bus takes a MiB, so
	// that there is always room for how it ends.
	maxRecord = 768 << 10
)

// fits tells whether an execution has room for what a report says.
func fits(e fleet.Execution, r fleet.Report) bool {
	have, err := json.Marshal(e)
	said, err2 := json.Marshal(r)
	return err == nil && err2 == nil && len(have)+len(said) <= maxRecord
}

func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + " …"
	}
	return strings.ToValidUTF8(s, "?")
}

// HandleReport takes what an agent says. nil means that the report needs no second
// delivery; taking it twice changes nothing.
func (c *Coordinator) HandleReport(ctx context.Context, r fleet.Report) error {
	if err := c.load(ctx, false); err != nil {
		return err
	}
	s, ok := c.find(r.Execution)
	if !ok {
		if err := c.load(ctx, true); err != nil {
			return err
		}
		if s, ok = c.find(r.Execution); !ok {
			c.cfg.Log.Warn("a report of an unknown execution is ignored", "execution", r.Execution, "host", r.Host)
			return nil
		}
	}
	if s.Host != r.Host {
		c.cfg.Log.Error("a report about another host's execution is ignored", "execution", r.Execution, "host", r.Host)
		return nil
	}
	defer c.lock(s.Host)()
	if s, _ = c.find(r.Execution); s.State.Final() || s.Command.ID != r.Command {
		return nil
	}
	c.of(s.ID).heard = c.now()
	r.Detail = clip(r.Detail)
	if r.Step != nil {
		step := *r.Step
		step.Name, step.Detail = clip(step.Name), clip(step.Detail)
		switch step.State {
		case fleet.StepRunning, fleet.StepSucceeded, fleet.StepFailed:
		default:
			step.State = fleet.StepUnknown
		}
		r.Step = &step
	}
	if !fits(s.Execution, r) {
		r.Step, r.GuestsBefore, r.GuestsAfter, r.Bundle = nil, nil, nil, ""
	}
	if r.Result != "" {
		c.begin.Lock() // what follows may be the begin of a migration
	}
	err := c.apply(ctx, s.ID, "agent:"+string(r.Host), func(s Stored) Event {
		if s.Command.ID != r.Command {
			return Event{}
		}
		return c.reported(ctx, s, r)
	})
	if r.Result != "" {
		c.begin.Unlock()
	}
	if err != nil {
		return fmt.Errorf("host %s: execution %s: %s: report %d: %w", r.Host, r.Execution, r.Phase, r.Seq, err)
	}
	return c.tend(ctx, s.ID)
}

// reported turns a report into an event.
func (c *Coordinator) reported(ctx context.Context, s Stored, r fleet.Report) Event {
	ev := Event{Kind: EventUnknown, Detail: r.Detail, Report: &r}
	switch r.Result {
	case "":
		ev.Kind = EventProgress
		return ev
	case fleet.ResultSucceeded, fleet.ResultCancelled:
		ev.Kind = EventSucceeded
		if r.Result == fleet.ResultCancelled {
			ev.Kind = EventStopped
		}
		if r.Phase == fleet.PhaseRecycle || r.Phase == fleet.PhaseReset || r.Phase == fleet.PhaseMigrate {
			before := s.GuestsBefore
			if len(before) == 0 {
				before = r.GuestsBefore
			}
			if lost := driver.Lost(before, r.GuestsAfter); len(lost) > 0 {
				ev.Kind, ev.Detail = EventDegraded, strings.Join(lost, "; ")
			}
		}
	case fleet.ResultFailed:
		ev.Kind = EventFailed
	case fleet.ResultDegraded:
		ev.Kind = EventDegraded
	case fleet.ResultRefused:
		ev.Kind = EventRefused
	}
	// That a phase failed is evidence in itself.
	ev.Can, ev.Targets, ev.Why = c.can(ctx, s, r.Time)
	return ev
}

// can lists the actions that may follow, where a migration would go, and what is in the
// way of the others.
func (c *Coordinator) can(ctx context.Context, s Stored, evidence time.Time) (can []fleet.Action, targets []fleet.Target, _ string) {
	var why []string
	for _, a := range []fleet.Action{fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
		d, host := c.check(ctx, guard.Request{Execution: s.ID, Host: s.Host, Action: a, EvidenceAt: evidence, Approval: s.Approval})
		switch {
		case !slices.Contains(host.Actions, a):
			why = append(why, fmt.Sprintf("%s is not possible: the host's agent cannot do it", a))
		case !d.Allowed:
			why = append(why, fmt.Sprintf("%s is not allowed: %s", a, strings.Join(d.Reasons, "; ")))
		case a == fleet.ActionLiveMigrate:
			var err error
			if targets, err = c.place(ctx, s.Host); err != nil {
				why = append(why, fmt.Sprintf("%s is not possible: %v", a, err))
				continue
			}
			can = append(can, a)
		default:
			can = append(can, a)
		}
	}
	return can, targets, strings.Join(why, "; ")
}

// advance lets a pending execution begin, or not: it asks the guard once more, just
// before the first effect.
func (c *Coordinator) advance(ctx context.Context, id string) error {
	c.begin.Lock()
	err := c.apply(ctx, id, "guard", func(s Stored) Event {
		if s.State != fleet.ExecutionPending {
			return Event{}
		}
		if c.now().After(s.Deadline) {
			return Event{Kind: EventDeadline}
		}
		d, host := c.check(ctx, guard.Request{Execution: s.ID, Host: s.Host, Action: s.Action, EvidenceAt: s.EvidenceAt, Approval: s.Approval})
		if !d.Allowed {
			return Event{Kind: EventBlocked, Detail: strings.Join(d.Reasons, "; ")}
		}
		if other := c.mover(s.Host); other != "" {
			return Event{Kind: EventBlocked, Detail: "VMs are being moved to the host: " + other}
		}
		ev := Event{Kind: EventAllowed}
		switch {
		case s.Action == fleet.ActionHandOver:
		case !slices.Contains(host.Actions, s.Action):
			ev.Why = fmt.Sprintf("the host's agent cannot do %s", s.Action)
		case s.Action == fleet.ActionLiveMigrate:
			targets, err := c.place(ctx, s.Host)
			if err != nil {
				return Event{Kind: EventBlocked, Detail: fmt.Sprintf("no host can take the VMs: %v", err)}
			}
			ev.Can, ev.Targets = []fleet.Action{s.Action}, targets
		default:
			ev.Can = []fleet.Action{s.Action}
		}
		return ev
	})
	c.begin.Unlock()
	if err != nil {
		return err
	}
	return c.tend(ctx, id)
}

// apply stores what follows from an event. The event is made anew where somebody
// else changed the execution meanwhile; its zero value means that it does not apply
// any more. The host is locked.
func (c *Coordinator) apply(ctx context.Context, id, actor string, event func(Stored) Event) error {
	for range 10 {
		s, ok := c.find(id)
		if !ok {
			return fmt.Errorf("%w: %s", ErrNotFound, id)
		}
		if s.State.Final() {
			return nil
		}
		now := c.now()
		ev := event(s)
		if ev.Kind == "" {
			return nil
		}
		limits := c.cfg.Limits()
		next, effects := Next(s.Execution, ev, now, limits)
		rec := s.Record
		rec.Execution, rec.Unaudited = next, next.State.Final()
		for _, e := range effects {
			if e.Kind == EffectCommand {
				rec.Command = command(next, e.Phase, now, limits)
				if e.Phase == fleet.PhaseDiagnose {
					rec.Command.Prediction = rec.Prediction
				}
				if e.Phase == fleet.PhaseMigrate {
					rec.Command.Targets = ev.Targets
				}
			}
			if e.Kind == EffectStop {
				rec.Command.CancelledBy = next.CancelledBy
			}
		}
		if same := next; len(effects) == 0 {
			same.Updated = s.Updated
			if reflect.DeepEqual(same, s.Execution) {
				return nil
			}
		}
		revision, err := c.cfg.Store.Update(ctx, rec, s.Revision)
		if errors.Is(err, ErrConflict) {
			if err := c.load(ctx, true); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("store the execution: %w", err)
		}
		c.keep(Stored{rec, revision})
		what := "execution." + string(next.State)
		if next.State == s.State {
			if len(effects) == 0 {
				return nil
			}
			what = "execution.stopping"
		}
		c.cfg.Log.Info("execution", "id", id, "host", rec.Host, "from", s.State, "to", next.State, "because", ev.Kind, "detail", ev.Detail)
		l := c.of(id)
		l.sent = time.Time{}
		l.unaudited = append(l.unaudited, auditEntry{actor, what, map[string]any{
			"execution": id, "host": rec.Host, "from": s.State, "event": ev.Kind, "detail": ev.Detail, "token": rec.Token, "command": rec.Command.ID, "outcome": next.Outcome,
		}})
		if slices.Contains(effects, Effect{Kind: EffectAlert}) {
			c.cfg.Log.Error("a person is needed", "execution", id, "host", rec.Host, "state", next.State, "outcome", next.Outcome, "reason", rec.Reason)
			l.unaudited = append(l.unaudited, auditEntry{actor, "person.called", map[string]any{"execution": id, "host": rec.Host, "outcome": next.Outcome, "reason": rec.Reason}})
		}
		return nil
	}
	return fmt.Errorf("store the execution: %w, ten times in a row", ErrConflict)
}

// command makes the command of a phase that begins now.
func command(e fleet.Execution, phase fleet.Phase, now time.Time, limits Limits) fleet.Command {
	return fleet.Command{
		ID: e.ID + "." + string(phase) + ".1", Execution: e.ID, Host: e.Host, Phase: phase, Attempt: 1, Token: e.Token,
		Issued: now, NotAfter: now.Add(limits.Start), Deadline: e.Deadline, Reason: e.Reason,
	}
}

// tend brings out what an execution's state asks for: audit records first, then the
// command, or the release of the lease. All of it may happen again. The host is
// locked.
func (c *Coordinator) tend(ctx context.Context, id string) error {
	s, ok := c.find(id)
	if !ok {
		return nil
	}
	l := c.of(id)
	for len(l.unaudited) > 0 {
		a := l.unaudited[0]
		if err := c.cfg.Audit.Append(ctx, a.actor, a.event, id, a.detail); err != nil {
			return fmt.Errorf("write the audit trail: %w", err)
		}
		l.unaudited = l.unaudited[1:]
	}
	if s.State.Final() {
		if err := c.cfg.Leases.Release(ctx, s.Host, id, s.Token); err != nil {
			c.cfg.Log.Warn("the host's lease ends only when its time is over", "host", s.Host, "err", err)
		}
		if s.Unaudited {
			s.Unaudited = false
			revision, err := c.cfg.Store.Update(ctx, s.Record, s.Revision)
			if errors.Is(err, ErrConflict) { // another coordinator was faster
				err = c.load(ctx, true)
			} else if err == nil {
				c.keep(Stored{s.Record, revision})
			}
			if err != nil {
				return fmt.Errorf("store that the end of the execution is audited: %w", err)
			}
		}
		c.mu.Lock()
		delete(c.live, id)
		c.mu.Unlock()
		return nil
	}
	if PhaseOf(s.State) == "" {
		return nil
	}
	now := c.now()
	quiet := now.Sub(l.sent) >= c.cfg.Resend && now.Sub(l.heard) >= c.cfg.Resend
	if !l.sent.IsZero() && !quiet {
		return nil
	}
	if err := c.cfg.Commands.Send(ctx, s.Command); err != nil {
		return fmt.Errorf("send the command: %w", err)
	}
	l.sent = now
	return nil
}
