package executor

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/guard"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// world is everything around a coordinator, in memory. Records go through JSON, as
// they do in a real store.
type world struct {
	mu       sync.Mutex
	records  map[string][]byte
	revision map[string]uint64
	last     uint64
	// leases by host
	owner map[fleet.HostID]string
	token map[fleet.HostID]uint64
	until map[fleet.HostID]time.Time

	policy    guard.Policy
	state     guard.State
	blind     error
	placement Placement

	audit    []string
	commands []fleet.Command
	deliver  func(fleet.Command)
	// fail is asked before each write and may let it fail or "crash".
	fail func(what string) error
}

func newWorld() *world {
	return &world{
		records: map[string][]byte{}, revision: map[string]uint64{}, owner: map[fleet.HostID]string{}, token: map[fleet.HostID]uint64{}, until: map[fleet.HostID]time.Time{},
		fail: func(string) error { return nil },
		policy: guard.Policy{
			Automatic: []fleet.Action{fleet.ActionRecycle}, ApprovalExpires: hour, EvidenceMaxAge: minute, MaxConcurrent: 10, MaxConcurrentPerDomain: 10,
		},
		state: guard.State{Hosts: map[fleet.HostID]guard.Host{
			"h1": {Actions: []fleet.Action{fleet.ActionRecycle}}, "h2": {Actions: []fleet.Action{fleet.ActionRecycle}, Healthy: true},
		}},
	}
}

func (w *world) config() Config {
	return Config{Store: w, Commands: w, Leases: leases{w}, Guard: w, Audit: w, Placement: w.placement, Tick: 50 * ms, Log: quiet}
}

func (w *world) Create(_ context.Context, r Record) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail("create"); err != nil {
		return 0, err
	}
	if w.records[r.ID] != nil {
		return 0, ErrConflict
	}
	return w.put(r)
}

func (w *world) put(r Record) (uint64, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	if len(data) > 1<<20 {
		return 0, fmt.Errorf("a record of %d bytes", len(data))
	}
	w.last++
	w.records[r.ID], w.revision[r.ID] = data, w.last
	return w.last, nil
}

func (w *world) Update(_ context.Context, r Record, revision uint64) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail("update"); err != nil {
		return 0, err
	}
	if w.revision[r.ID] != revision {
		return 0, fmt.Errorf("record %s: %w", r.ID, ErrConflict)
	}
	return w.put(r)
}

func (w *world) List(context.Context) ([]Stored, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Stored
	for id, data := range w.records {
		var s Stored
		if err := json.Unmarshal(data, &s.Record); err != nil {
			return nil, err
		}
		s.Revision = w.revision[id]
		out = append(out, s)
	}
	return out, nil
}

func (w *world) Send(_ context.Context, c fleet.Command) error {
	w.mu.Lock()
	if err := w.fail("send"); err != nil {
		w.mu.Unlock()
		return err
	}
	w.commands = append(w.commands, c)
	deliver := w.deliver
	w.mu.Unlock()
	if deliver != nil {
		deliver(c)
	}
	return nil
}

func (w *world) Append(_ context.Context, actor, event, subject string, detail any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail("audit"); err != nil {
		return err
	}
	if _, err := json.Marshal(detail); err != nil {
		return err
	}
	w.audit = append(w.audit, event)
	return nil
}

func (w *world) Surroundings(context.Context) (guard.Policy, guard.State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	s.Hosts = map[fleet.HostID]guard.Host{}
	for id, h := range w.state.Hosts {
		s.Hosts[id] = h
	}
	return w.policy, s, w.blind
}

// change edits the world under its lock.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

type leases struct{ w *world }

// leaseTime is after how long a lease ends that is not renewed.
const leaseTime = 15 * time.Second

// held is the owner of a host's lease, now.
func (w *world) held(host fleet.HostID) string {
	if time.Now().After(w.until[host]) {
		return ""
	}
	return w.owner[host]
}

func (l leases) Acquire(_ context.Context, host fleet.HostID, owner string) (uint64, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if err := l.w.fail("acquire"); err != nil {
		return 0, err
	}
	if l.w.held(host) != "" {
		return 0, fmt.Errorf("host %s: %w", host, ErrBusy)
	}
	l.w.last++
	l.w.owner[host], l.w.token[host], l.w.until[host] = owner, l.w.last, time.Now().Add(leaseTime)
	return l.w.last, nil
}

func (l leases) Renew(_ context.Context, host fleet.HostID, owner string, token uint64) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if err := l.w.fail("renew"); err != nil {
		return err
	}
	if l.w.held(host) != owner || l.w.token[host] != token {
		return ErrLeaseLost
	}
	l.w.until[host] = time.Now().Add(leaseTime)
	return nil
}

func (l leases) Release(_ context.Context, host fleet.HostID, owner string, token uint64) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if err := l.w.fail("release"); err != nil {
		return err
	}
	if l.w.owner[host] == owner && l.w.token[host] == token {
		delete(l.w.owner, host)
	}
	return nil
}
