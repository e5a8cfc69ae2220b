package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// trail is an audit trail in memory that can be out of order.
type trail struct {
	mu     sync.Mutex
	broken bool
	events []string
}

func (a *trail) Append(_ context.Context, _, event, subject string, _ any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return errors.New("the disk is full")
	}
	a.events = append(a.events, event+" "+subject)
	return nil
}

func (a *trail) has(event string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		if strings.HasPrefix(e, event) {
			n++
		}
	}
	return n
}

func TestPhasesHaveTheDeadlinesOfThePolicy(t *testing.T) {
	c := config.DefaultPolicy()
	p := newPolicies(c, &trail{}, slog.New(slog.DiscardHandler))
	if got, want := p.limits(), executor.DefaultLimits(); got != want {
		t.Errorf("by default %+v, not %+v", got, want)
	}
	c.Deadlines = config.Deadlines{Begin: config.Duration(5 * time.Second), Recycle: config.Duration(6 * time.Second), Diagnose: config.Duration(7 * time.Second), Reset: config.Duration(8 * time.Second), Migrate: config.Duration(9 * time.Second)}
	p = newPolicies(c, &trail{}, slog.New(slog.DiscardHandler))
	want := executor.Limits{Start: 5 * time.Second, Recycle: 6 * time.Second, Diagnose: 7 * time.Second, Reset: 8 * time.Second, Migrate: 9 * time.Second}
	if got := p.limits(); got != want {
		t.Errorf("%+v, not %+v", got, want)
	}
}

func TestThePolicyFileIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "policy.yaml")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}
		if err := os.WriteFile(file, []byte("version: 1\nmode: approve\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		first, err := config.LoadPolicy(file)
		if err != nil {
			t.Fatal(err)
		}
		first.File = file
		audit := &trail{}
		p := newPolicies(first, audit, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.watch(ctx) }()
		defer func() {
			cancel()
			<-done
		}()
		time.Sleep(500 * time.Millisecond) // what is written from here on is written between two looks
		write("version: 1\nmode: automatic\n")
		_, revision := p.inForce()
		if p.current().Mode != "automatic" || audit.has("policy.loaded "+revision) != 1 || revision == first.Revision() {
			t.Fatalf("the new version is not in force: %+v, %q", p.current(), audit.events)
		}
		// What is there for a moment only was not meant.
		for _, text := range []string{"version: 1\n", "version: 1\nmode: dry", "version: 1\nmode: automatic\n"} {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1100 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if audit.has("policy.") != 2 || p.current().Mode != "automatic" || p.degraded() != "" {
			t.Fatalf("half a file counts: %q", audit.events)
		}
		// A wrong version is refused once, loudly, and the old one goes on.
		write("version: 1\nmode: automatic\nmax_concurent: 5\n")
		view, err := p.view()
		if err != nil || p.current().Mode != "automatic" || view.Revision != revision || view.Refused == nil || !strings.Contains(view.Refused.Reason, "line 3: max_concurent") {
			t.Errorf("%+v, %v", view, err)
		}
		if audit.has("policy.refused") != 1 || !strings.Contains(p.degraded(), "line 3") {
			t.Errorf("%q, %q", audit.events, p.degraded())
		}
		// So it does while the file is away, or half written.
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if p.current().Mode != "automatic" || !strings.Contains(p.degraded(), "no such file") {
			t.Errorf("%+v, %q", p.current(), p.degraded())
		}
		write("")
		if p.current().Mode != "automatic" || p.degraded() == "" {
			t.Errorf("an empty file: %+v, %q", p.current(), p.degraded())
		}
		// What cannot be audited is not in force.
		audit.mu.Lock()
		audit.broken = true
		audit.mu.Unlock()
		write("version: 1\nmode: dry-run\n")
		if p.current().Mode != "automatic" {
			t.Errorf("in force without a trace: %+v", p.current())
		}
		audit.mu.Lock()
		audit.broken = false
		audit.mu.Unlock()
		time.Sleep(5 * time.Second)
		if p.current().Mode != "dry-run" || p.degraded() != "" {
			t.Errorf("%+v, %q", p.current(), p.degraded())
		}
		loaded := audit.has("policy.loaded")
		write("# the same\nversion: 1\nmode: dry-run\n")
		if audit.has("policy.loaded") != loaded {
			t.Error("a comment is a new version")
		}
	})
}

func TestGuardPolicy(t *testing.T) {
	c := config.DefaultPolicy()
	c.Mode = "automatic"
	c.Actions.LiveMigrate.Approval, c.Actions.PreservingReset.Approval = "never", "person"
	c.Actions.PreservingReset.ApprovalExpires = config.Duration(time.Minute)
	c.Windows = []config.Window{{Days: []string{"mon"}, Begin: "10:00", End: "11:30"}}
	p := GuardPolicy(c, "r")
	if len(p.Automatic) != 1 || p.Automatic[0] != fleet.ActionRecycle || len(p.Never) != 1 || p.Never[0] != fleet.ActionLiveMigrate ||
		p.Expires(fleet.ActionPreservingReset) != time.Minute || p.Expires(fleet.ActionRecycle) != 15*time.Minute || p.Revision != "r" {
		t.Errorf("%+v", p)
	}
	if w := p.Windows[0]; w.Days[0] != time.Monday || w.Begin != 10*time.Hour || w.End != 11*time.Hour+30*time.Minute {
		t.Errorf("%+v", w)
	}
}

func TestAFreezeStopsEverythingAndSurvivesARestart(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.Mode = "automatic"
	w.up()
	w.learned()
	f, err := w.plane.Freeze(t.Context(), fleet.Freeze{Host: "h1", By: "ann", Reason: "under investigation"})
	if err != nil {
		t.Fatal(err)
	}
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationBlocked)
	if !strings.Contains(rec.Note, "host h1 is frozen by ann: under investigation") {
		t.Errorf("%+v", rec)
	}
	w.down()
	w.up()
	all, err := w.plane.Explain(t.Context(), "h1", fleet.ActionRecycle, true)
	if err != nil || len(all) != 1 || all[0].Allowed || !strings.Contains(strings.Join(all[0].Reasons, ";"), "frozen by ann") {
		t.Errorf("after a restart: %+v, %v", all, err)
	}
	if _, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "now", "bob", false); !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "frozen by ann") {
		t.Errorf("executed: %v", err)
	}
	if w.host.Restarts(unit) != 0 {
		t.Error("a service was restarted")
	}
	if _, err := w.plane.Lift(t.Context(), f.ID, "bob"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.plane.Lift(t.Context(), f.ID, "bob"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("lifted twice: %v", err)
	}
	if e, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "now", "bob", true); err != nil || !e.DryRun || !strings.Contains(e.Outcome, "would have been carried out") || w.host.Restarts(unit) != 0 {
		t.Errorf("a dry run: %+v, %v", e, err)
	}
	e, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "now", "bob", false)
	if err != nil {
		t.Fatal(err)
	}
	await(w, "the end", func() (any, bool) { return nil, w.executions()[0].State == fleet.ExecutionSucceeded })
	if _, err := w.plane.Cancel(t.Context(), e.ID, "bob"); !errors.Is(err, api.ErrConflict) {
		t.Errorf("cancelled after its end: %v", err)
	}
	if _, err := w.plane.Cancel(t.Context(), "x", "bob"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("cancelled what there is not: %v", err)
	}
}

// A storm freezes the fleet and calls a person, once; it stays frozen when the storm is
// over.
func TestStormBrake(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.StormHosts, w.cfg.Policy.StormRatio = 1, 0
	w.cfg.Policy.Mode = "automatic"
	w.up()
	w.learned()
	w.host.Hang(unit)
	frozen := await(w, "the brake", func() (fleet.Freeze, bool) {
		all, _ := w.plane.Freezes(t.Context())
		return append(all, fleet.Freeze{})[0], len(all) == 1
	})
	if frozen.By != stormBrake || frozen.Host != "" || frozen.FaultDomain != "" || !strings.Contains(frozen.Reason, "1 of 1 hosts") {
		t.Errorf("%+v", frozen)
	}
	w.host.Mend(unit)
	await(w, "the host is well", func() (any, bool) {
		h, _ := w.plane.Host(t.Context(), "h1")
		return nil, h.Prediction != nil && h.Prediction.Signature == fleet.SignatureNone
	})
	if _, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "now", "bob", false); !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), stormBrake) {
		t.Errorf("%v", err)
	}
	called := 0
	if err := w.plane.audit.Verify(t.Context(), func(_ uint64, r bus.AuditRecord) {
		if r.Event == "person.called" {
			called++
		}
	}); err != nil || called != 1 {
		t.Errorf("a person was called %d times, %v", called, err)
	}
	if w.host.Restarts(unit) != 0 {
		t.Error("acted in a storm")
	}
}

func TestFreezesEndAndAreChecked(t *testing.T) {
	w := newWorld(t)
	w.label.FaultDomain = "rack-1"
	w.up()
	w.learned()
	if _, err := w.plane.Freeze(t.Context(), fleet.Freeze{Host: "h9", By: "ann", Reason: "x"}); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("froze a host that does not exist: %v", err)
	}
	if _, err := w.plane.Freeze(t.Context(), fleet.Freeze{FaultDomain: "rack-misspelt", By: "ann", Reason: "x"}); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("froze a fault domain in which no host is: %v", err)
	}
	if _, err := w.plane.Freeze(t.Context(), fleet.Freeze{FaultDomain: "rack-1", By: "ann", Reason: "x", Until: time.Now().Add(3 * time.Second)}); err != nil {
		t.Errorf("a fault domain: %v", err)
	}
	for _, id := range []string{"nope", "../..", "a b"} {
		if _, err := w.plane.Lift(t.Context(), id, "ann"); !errors.Is(err, api.ErrNotFound) {
			t.Errorf("lifted %q: %v", id, err)
		}
	}
	if _, err := w.plane.Freeze(t.Context(), fleet.Freeze{By: "ann", Reason: "x", Until: time.Now().Add(-time.Second)}); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("froze until a second ago: %v", err)
	}
	if _, err := w.plane.Freeze(t.Context(), fleet.Freeze{By: "ann", Reason: "x", Until: time.Now().Add(3 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	await(w, "the end of the freeze", func() (any, bool) {
		_, state, err := w.plane.surroundings.Surroundings(t.Context())
		return nil, err == nil && len(state.Freezes) == 0
	})
}

// What the policy rules out is not recommended.
func TestNeverIsNotRecommended(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.Actions.Recycle.Approval = "never"
	w.up()
	w.learned()
	w.host.Hang(unit)
	if rec := w.recommended(fleet.RecommendationPending); rec.Action == fleet.ActionRecycle {
		t.Errorf("%+v", rec)
	}
	if _, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "now", "bob", false); !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "rules recycle out") {
		t.Errorf("%v", err)
	}
}
