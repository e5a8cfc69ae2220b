package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/sim"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

const unit = "storage.service"

// world is a control plane with one host, whose agent is real and whose services
// are simulated; it is not labelled as simulated unless a test says so.
type world struct {
	t     *testing.T
	data  string
	cfg   config.Config
	demo  bool
	label fleet.Host
	host  *sim.Host
	// services, if not nil, are those of the host behind something of the test's.
	services host.Services

	// names and moving, where set, are the series of the host and the values of those that
	// are not its service's; boot is atomic.
	names  []string
	moving func() []float64
	boot   atomic.Pointer[string]
	taken  atomic.Int64 // samples

	// trainer are the arguments of the process that trains.
	trainer []string

	plane *Plane
	leave func() // ends the agent alone
	stop  func()
}

func (w *world) setBoot(boot string) { w.boot.Store(&boot) }

func newWorld(t *testing.T) *world {
	t.Parallel()
	w := &world{t: t, data: t.TempDir(), cfg: config.Default(), label: fleet.Host{ID: "h1", Units: []string{unit}, Version: "test"}, trainer: []string{"training"}}
	w.cfg.Agent.Interval = config.Duration(50 * time.Millisecond)
	w.cfg.Model.Learn = config.Duration(time.Second)
	w.cfg.Policy.Cooldown = config.Duration(50 * time.Millisecond)
	w.cfg.Policy.Deadlines.Begin = config.Duration(2 * time.Minute) // this machine may be busy with other tests
	w.host = sim.New(sim.Config{Units: []string{unit}, VMs: []fleet.VM{{ID: "vm1", Name: "web"}}})
	t.Cleanup(func() { w.down() })
	return w
}

// up starts the control plane and the agent.
func (w *world) up() {
	w.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	dir, err := datadir.Open(filepath.Join(w.data, "serve"))
	if err != nil {
		w.t.Fatal(err)
	}
	plane, err := Open(w.t.Context(), Options{Config: w.cfg, Dir: dir, Version: "test", Demo: w.demo, Trainer: w.trainer, Log: quiet})
	if err != nil {
		w.t.Fatal(err)
	}
	plane.lookEvery = time.Hour // tests look themselves, at times of their own
	b, err := plane.AgentInside(w.label.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	services := w.services
	if services == nil {
		services = w.host
	}
	runner, err := host.New(host.Config{
		Host: w.label.ID, Dir: filepath.Join(w.data, "agent"), Services: services, Guests: w.host, Diagnostics: w.host, Reports: b,
		Units: w.host.Names, DryRun: w.label.DryRun, Boot: "b", Stable: 10 * time.Millisecond, Log: quiet,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	label := w.label
	label.Actions = runner.Actions()
	ctx, cancel := context.WithCancel(context.Background())
	agentCtx, leave := context.WithCancel(ctx)
	w.leave = leave
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := plane.Run(ctx); err != nil {
			w.t.Errorf("the control plane ended: %v", err)
		}
	})
	wg.Go(func() {
		if err := agent.Run(agentCtx, agent.Options{Host: label, Interval: w.cfg.Agent.Interval.D(), Bus: b, Sample: w.sample, Guests: w.host, Runner: runner, Log: quiet}); err != nil {
			w.t.Errorf("the agent ended: %v", err)
		}
	})
	w.plane = plane
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		runner.Close()
		b.Close()
		plane.Close()
		dir.Close()
	})
}

func (w *world) down() {
	if w.stop != nil {
		w.stop()
	}
}

var schema = fleet.NewSchema([]string{"load_1m", fleet.SeriesName("unit_active", unit), fleet.SeriesName("unit_healthy", unit)})

func (w *world) sample(ctx context.Context) (fleet.Sample, error) {
	healthy := 0.0
	if w.host.Healthy(ctx)[unit] {
		healthy = 1
	}
	out := fleet.Sample{Host: w.label.ID, Time: time.Now().UTC(), Boot: "b", Simulated: w.label.Simulated, Schema: schema, Values: []float64{0.5, 1, healthy}}
	if boot := w.boot.Load(); boot != nil {
		out.Boot = *boot
	}
	w.taken.Add(1)
	if w.moving != nil {
		out.Schema, out.Values = fleet.NewSchema(w.names), append(w.moving(), 1, healthy)
	}
	return out, nil
}

func await[T any](w *world, what string, f func() (T, bool)) T {
	w.t.Helper()
	const limit = 2 * time.Minute
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	events, stop := w.plane.Follow()
	defer stop()
	for {
		if v, ok := f(); ok {
			return v
		}
		select {
		case _, more := <-events:
			if !more {
				events = nil // this machine is too slow for them
			}
		case <-time.After(20 * time.Millisecond): // not all that is waited for is an event
		case <-ctx.Done():
			w.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// learned waits until the host is scored.
func (w *world) learned() {
	w.t.Helper()
	await(w, "the host is scored", func() (any, bool) {
		h, err := w.plane.Host(w.t.Context(), w.label.ID)
		return nil, err == nil && h.Prediction != nil && h.Prediction.State == fleet.PredictionScoring
	})
}

// recommended waits for the newest recommendation to be in a state.
func (w *world) recommended(state fleet.RecommendationState) fleet.Recommendation {
	w.t.Helper()
	return await(w, "a recommendation that is "+string(state), func() (fleet.Recommendation, bool) {
		all, err := w.plane.Recommendations(w.t.Context())
		if err != nil || len(all) == 0 {
			return fleet.Recommendation{}, false
		}
		return all[0], all[0].State == state
	})
}

func (w *world) executions() []fleet.Execution {
	w.t.Helper()
	all, err := w.plane.Executions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func TestFromHangToHealthyByApproval(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationPending)
	if rec.Action != fleet.ActionRecycle || rec.Prediction.Signature != fleet.SignatureServiceHang || rec.Prediction.Culprit != unit || len(rec.Alternatives) != 5 || rec.Propensity != 1 {
		t.Errorf("%+v", rec)
	}
	if n := len(w.executions()); n != 0 {
		t.Fatalf("%d executions before anybody approved", n)
	}
	if _, err := w.plane.Approve(t.Context(), "nonsense", "ann", ""); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("an unknown recommendation: %v", err)
	}
	if _, err := w.plane.Approve(t.Context(), rec.ID, "ann", "go on"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.plane.Approve(t.Context(), rec.ID, "bob", ""); !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "ann") {
		t.Errorf("approved twice: %v", err)
	}
	rec = w.recommended(fleet.RecommendationDone)
	all := w.executions()
	if len(all) != 1 || all[0].State != fleet.ExecutionSucceeded || all[0].ID != rec.Execution || all[0].RequestedBy != "ann" || len(all[0].GuestsAfter) != 1 {
		t.Fatalf("%+v", all)
	}
	if n := w.host.Restarts(unit); n != 1 {
		t.Errorf("%d restarts", n)
	}
	if _, err := w.plane.Reject(t.Context(), rec.ID, "bob", ""); !errors.Is(err, api.ErrConflict) {
		t.Errorf("rejected after it was done: %v", err)
	}
	if err := w.plane.audit.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A host whose agent ends is told of, and can be taken out of the fleet for good.
func TestAHostThatIsGone(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.EvidenceMaxAge = config.Duration(3 * time.Second)
	w.up()
	w.learned()
	enrolled, err := Enroll(filepath.Join(w.data, "serve"), "h1")
	if err != nil || !w.plane.tokens.check("h1", enrolled.Token) {
		t.Fatal(err)
	}
	if _, err := w.plane.RemoveHost(t.Context(), "h1", "ann"); !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "stop its agent") {
		t.Errorf("removed while its agent runs: %v", err)
	}
	if _, err := w.plane.Cordon(t.Context(), "h1", "it is old", "ann"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.plane.models.path("h1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	events, stop := w.plane.Follow()
	defer stop()
	w.leave()
	for told := false; !told; {
		select {
		case e, open := <-events:
			if !open {
				t.Fatal("no event tells that the host is silent")
			}
			told = e.Kind == "prediction" && strings.Contains(string(e.Data), `"state":"stale"`)
		case <-time.After(2 * time.Minute):
			t.Fatal("no event tells that the host is silent")
		}
	}
	await(w, "the host is removed", func() (any, bool) {
		_, err := w.plane.RemoveHost(t.Context(), "h1", "ann")
		return nil, err == nil
	})
	if all, err := w.plane.Hosts(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, state, err := w.plane.surroundings.Surroundings(t.Context()); err != nil || len(state.Hosts) != 0 {
		t.Errorf("the guard counts it: %+v, %v", state.Hosts, err)
	}
	if _, err := os.Stat(w.plane.models.path("h1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was learned of it: %v", err)
	}
	if _, cordoned := w.plane.cordons.find("h1"); cordoned || w.plane.tokens.check("h1", enrolled.Token) {
		t.Error("its cordon or its credentials are still good")
	}
	if _, err := w.plane.RemoveHost(t.Context(), "h1", "ann"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if err := w.plane.audit.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// Agents have seen newer fencing tokens than a backup knows, or a new data directory.
func TestABackupCanAct(t *testing.T) {
	w := newWorld(t)
	serve, backup := filepath.Join(w.data, "serve"), filepath.Join(w.data, "backup")
	act := func() {
		t.Helper()
		w.learned()
		e, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "try", "ann", false)
		if err != nil {
			t.Fatal(err)
		}
		e = await(w, "the execution has ended", func() (fleet.Execution, bool) {
			all := w.executions()
			i := slices.IndexFunc(all, func(one fleet.Execution) bool { return one.ID == e.ID })
			return all[i], all[i].State.Final()
		})
		if e.State != fleet.ExecutionSucceeded {
			t.Errorf("%s: %s", e.State, e.Outcome)
		}
	}
	w.up()
	act()
	w.down()
	if err := os.CopyFS(backup, os.DirFS(serve)); err != nil {
		t.Fatal(err)
	}
	w.up()
	act()
	for _, from := range []string{backup, ""} {
		w.down()
		if err := os.RemoveAll(serve); err != nil {
			t.Fatal(err)
		}
		if from != "" {
			if err := os.Rename(from, serve); err != nil {
				t.Fatal(err)
			}
		}
		w.up()
		act()
	}
}

// A hand-over ends at once: before the approval has noted that it began.
func TestAnExecutionThatEndsAtOnceIsDone(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationPending)
	execute := w.plane.recommender.execute
	w.plane.recommender.execute = func(ctx context.Context, rec fleet.Recommendation) (fleet.Execution, error) {
		e, err := execute(ctx, rec)
		w.recommended(fleet.RecommendationDone)
		return e, err
	}
	rec, err := w.plane.Approve(t.Context(), rec.ID, "ann", "")
	if err != nil || rec.State != fleet.RecommendationDone || rec.Execution != w.executions()[0].ID {
		t.Errorf("%+v, %v", rec, err)
	}
}

func TestNobodyDecidesInTime(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.ApprovalExpires = config.Duration(300 * time.Millisecond)
	w.up()
	w.learned()
	w.host.Hang(unit)
	first := w.recommended(fleet.RecommendationExpired)
	if _, err := w.plane.Approve(t.Context(), first.ID, "ann", ""); !errors.Is(err, api.ErrExpired) {
		t.Errorf("approved after it expired: %v", err)
	}
	if n := len(w.executions()); n != 0 {
		t.Errorf("%d executions", n)
	}
}

func TestTheEvidenceGoesAway(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationPending)
	w.host.Mend(unit)
	if got := w.recommended(fleet.RecommendationSuperseded); got.ID != rec.ID {
		t.Errorf("%+v", got)
	}
}

// TestARecommendationDoesNotFlap has evidence that points to a hanging service in one sample and to a noisy
// neighbour in the next, as on a real host that starves.
func TestARecommendationDoesNotFlap(t *testing.T) {
	w := newWorld(t)
	w.up()
	ctx := t.Context()
	h := fleet.Host{ID: "h2", Actions: []fleet.Action{fleet.ActionRecycle, fleet.ActionLiveMigrate}, VMs: []fleet.VM{{ID: "vm2"}}}
	see := func(n int, all ...fleet.Prediction) fleet.Recommendation {
		t.Helper()
		for i := range n {
			p := all[i%len(all)]
			p.Host, p.Time, p.State, p.HorizonSeconds = h.ID, time.Now(), fleet.PredictionScoring, 3600
			w.plane.recommender.consider(ctx, p, h)
		}
		recs, err := w.plane.Recommendations(ctx)
		if err != nil || len(recs) == 0 {
			t.Fatalf("%+v, %v", recs, err)
		}
		return recs[0]
	}
	hangs := fleet.Prediction{Anomalous: true, Signature: fleet.SignatureServiceHang, Culprit: unit, FailureProbability: 0.9}
	noise := fleet.Prediction{Anomalous: true, Signature: fleet.SignatureNoisyNeighbour, FailureProbability: 0.5}
	calm := fleet.Prediction{Signature: fleet.SignatureNone}
	first := see(1, noise)
	if first.Action != fleet.ActionLiveMigrate {
		t.Fatalf("%+v", first)
	}
	if now := see(90, hangs, hangs, calm, noise); now.ID != first.ID || now.State != fleet.RecommendationPending {
		t.Errorf("after samples that point here and there: %+v", now)
	}
	// After a restart of the control plane the same one stands.
	w.down()
	w.up()
	if now := see(90, hangs, noise); now.ID != first.ID || now.State != fleet.RecommendationPending {
		t.Errorf("after a restart: %+v", now)
	}
	second := see(20, hangs)
	if second.ID == first.ID || second.Action != fleet.ActionRecycle || second.State != fleet.RecommendationPending {
		t.Errorf("the evidence has changed, and this stands: %+v", second)
	}
	if was, _, _ := w.plane.recommender.table.Find(first.ID); was.State != fleet.RecommendationSuperseded || !strings.Contains(was.Note, "service-hang in 15 samples: recycle") {
		t.Errorf("the first one: %+v", was)
	}
	if now := see(3, calm); now.ID != second.ID || now.State != fleet.RecommendationSuperseded || !strings.Contains(now.Note, "gone") {
		t.Errorf("the evidence is gone, and this is left: %+v", now)
	}
}

func TestRejectedStaysQuiet(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.Cooldown = config.Duration(time.Hour)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationPending)
	if _, err := w.plane.Reject(t.Context(), rec.ID, "ann", "I am on it"); err != nil {
		t.Fatal(err)
	}
	// Some more samples come in, and none of them brings another recommendation.
	h, _ := w.plane.Host(t.Context(), "h1")
	from := h.Prediction.Time
	await(w, "more samples", func() (any, bool) {
		h, _ := w.plane.Host(t.Context(), "h1")
		return nil, h.Prediction.Time.Sub(from) > 500*time.Millisecond
	})
	all, _ := w.plane.Recommendations(t.Context())
	if len(all) != 1 || all[0].State != fleet.RecommendationRejected || all[0].Note != "I am on it" {
		t.Errorf("%+v", all)
	}
}

func TestAutomatic(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.Mode = "automatic"
	w.up()
	w.learned()
	w.host.Hang(unit)
	if rec := w.recommended(fleet.RecommendationDone); rec.DecidedBy != "policy:automatic" {
		t.Errorf("%+v", rec)
	}
	if w.host.Restarts(unit) != 1 {
		t.Errorf("%d restarts", w.host.Restarts(unit))
	}
}

func TestDryRunActsOnNothing(t *testing.T) {
	w := newWorld(t)
	w.label.DryRun = true
	w.cfg.Policy.Mode = "automatic"
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationDryRun)
	if !rec.DryRun {
		t.Errorf("%+v", rec)
	}
	if _, err := w.plane.Approve(t.Context(), rec.ID, "ann", ""); !errors.Is(err, api.ErrConflict) {
		t.Errorf("approved: %v", err)
	}
	if e, err := w.plane.Execute(t.Context(), "h1", fleet.ActionRecycle, "I want it", "ann", false); err == nil {
		t.Errorf("executed by hand: %+v", e)
	}
	if w.host.Restarts(unit) != 0 {
		t.Error("a service was restarted")
	}
}

func TestAServiceThatStaysDownIsDiagnosed(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Break(unit)
	rec := w.recommended(fleet.RecommendationPending)
	if _, err := w.plane.Approve(t.Context(), rec.ID, "ann", ""); err != nil {
		t.Fatal(err)
	}
	w.recommended(fleet.RecommendationDone)
	e := w.executions()[0]
	var diagnosed bool
	for _, s := range e.Steps {
		diagnosed = diagnosed || s.Phase == fleet.PhaseDiagnose
	}
	if e.State != fleet.ExecutionHandedOver || !diagnosed || !strings.Contains(e.Outcome, unit) {
		t.Errorf("%+v", e)
	}
	// A person has been called: nothing more is recommended for this fault.
	h, _ := w.plane.Host(t.Context(), "h1")
	await(w, "more samples", func() (any, bool) {
		now, _ := w.plane.Host(t.Context(), "h1")
		return nil, now.Prediction.Time.Sub(h.Prediction.Time) > 500*time.Millisecond && now.Prediction.Signature == fleet.SignatureServiceHang
	})
	if all, _ := w.plane.Recommendations(t.Context()); len(all) != 1 {
		t.Errorf("%d recommendations", len(all))
	}
}

func TestARestartForgetsNothing(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.host.Hang(unit)
	rec := w.recommended(fleet.RecommendationPending)
	w.down()
	w.up()
	h, err := w.plane.Host(t.Context(), "h1")
	if err != nil || h.Units[0] != unit {
		t.Fatalf("the inventory: %+v, %v", h, err)
	}
	await(w, "a prediction", func() (any, bool) {
		h, _ := w.plane.Host(t.Context(), "h1")
		if h.Prediction == nil {
			return nil, false
		}
		if h.Prediction.State == fleet.PredictionLearning {
			t.Fatal("the host is learned anew")
		}
		return nil, h.Prediction.Signature == fleet.SignatureServiceHang
	})
	if got := w.recommended(fleet.RecommendationPending); got.ID != rec.ID {
		t.Errorf("another recommendation: %+v", got)
	}
	if _, err := w.plane.Approve(t.Context(), rec.ID, "ann", ""); err != nil {
		t.Fatal(err)
	}
	w.recommended(fleet.RecommendationDone)
	w.down()
	w.up()
	if all := w.executions(); len(all) != 1 || all[0].State != fleet.ExecutionSucceeded {
		t.Errorf("%+v", all)
	}
	if err := w.plane.audit.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// The control plane ends just after the end of an execution is stored, and before anything follows from that.
func TestWhatFollowsFromTheEndOfAnExecutionOutlivesACrash(t *testing.T) {
	w := newWorld(t)
	w.up()
	await(w, "the host is known", func() (any, bool) {
		_, err := w.plane.Host(t.Context(), "h1")
		return nil, err == nil
	})
	w.down()
	b, err := bus.Open(t.Context(), bus.Options{Dir: filepath.Join(w.data, "serve", "bus"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	executions, err := bus.OpenTable[executor.Record](t.Context(), b, "EXECUTIONS", nil)
	for id, host := range map[string]fleet.HostID{"x0": "gone", "x1": "h1"} {
		if err == nil {
			now := time.Now().UTC()
			_, err = executions.Create(t.Context(), id, executor.Record{Unaudited: true, Execution: fleet.Execution{
				ID: id, Host: host, Action: fleet.ActionRecycle, State: fleet.ExecutionDegraded, Created: now, Ended: now, Outcome: "A VM is missing.",
			}})
		}
	}
	b.Close()
	if err != nil {
		t.Fatal(err)
	}
	w.up()
	await(w, "the host is cordoned", func() (any, bool) {
		h, err := w.plane.Host(t.Context(), "h1")
		return nil, err == nil && h.Cordon != nil && h.Cordon.Execution == "x1"
	})
	await(w, "the end is in the audit trail", func() (any, bool) {
		found := false
		err := w.plane.audit.Verify(t.Context(), func(_ uint64, r bus.AuditRecord) {
			found = found || r.Event == "execution.degraded" && r.Subject == "x1"
		})
		return nil, found && err == nil
	})
	if c, ok := w.plane.cordons.find("gone"); ok {
		t.Errorf("a host that was removed is cordoned: %+v", c)
	}
}

// A host whose clock is ahead falls silent: it is neither healthy nor failing for as long as its clock was ahead.
func TestAHostWhoseClockIsAheadBecomesStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		model := config.Default().Model
		who := newRoster(model, time.Second)
		p := newPredictions(func(fleet.HostID, bool) (*predictor.Predictor, error) {
			return predictor.New("h1", predictor.Config{NewDetector: newDetectors(model, time.Second, who).new(time.Minute), FalseAlarms: 1, Interval: time.Second, Horizon: time.Hour})
		}, func(context.Context, *fleet.Sample, fleet.Prediction) {}, func(_ fleet.HostID, err error) { t.Error(err) })
		p.roster = who
		p.score(t.Context(), fleet.Sample{Host: "h1", Time: time.Now().Add(time.Hour), Boot: "b", Schema: schema, Values: []float64{0.5, 1, 1}})
		for _, stale := range []bool{false, true} {
			time.Sleep(20 * time.Second)
			if got, _, ok := p.find("h1", 30*time.Second); !ok || (got.State == fleet.PredictionStale) != stale {
				t.Errorf("stale: %v, and it is %s", stale, got.State)
			}
		}
	})
}

func TestSimulatedHostsAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.demo, w.label.Simulated = true, true
	w.up()
	w.learned()
	w.host.Hang(unit)
	if rec := w.recommended(fleet.RecommendationPending); !rec.Simulated || !rec.Prediction.Simulated {
		t.Errorf("not labelled: %+v", rec)
	}
	w.recommended(fleet.RecommendationDone) // approved by itself
	if e := w.executions()[0]; !e.Simulated {
		t.Errorf("not labelled: %+v", e)
	}
	w.down()
	w.demo = false
	dir, err := datadir.Open(filepath.Join(w.data, "serve"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	plane, err := Open(t.Context(), Options{Config: w.cfg, Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Close()
	if hosts, _ := plane.Hosts(t.Context()); len(hosts) != 0 {
		t.Errorf("%+v", hosts)
	}
}

func TestADamagedModelIsLearnedAnew(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.learned()
	w.down()
	path := filepath.Join(w.data, "serve/models/h1.model")
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	w.up()
	w.learned()
	w.down()
	if info, err := os.Stat(path); err != nil || info.Size() <= 100 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestDeadLettersCanBeRetried(t *testing.T) {
	w := newWorld(t)
	w.up()
	if all, err := w.plane.DeadLetters(t.Context(), 10); err != nil || len(all) != 0 {
		t.Fatalf("%+v, %v", all, err)
	}
	sample, err := w.sample(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{bus.EncodeSample(nil, &sample), []byte("damaged")} {
		if err := w.plane.bus.DeadLetter(t.Context(), "h1", data, "field type conflict"); err != nil {
			t.Fatal(err)
		}
	}
	all, err := w.plane.DeadLetters(t.Context(), 10)
	if err != nil || len(all) != 2 || all[0].Reason != "field type conflict" || all[0].Samples[0].Values["load_1m"] != 0.5 || len(all[1].Samples) != 0 {
		t.Fatalf("%+v, %v", all, err)
	}
	if one, err := w.plane.DeadLetter(t.Context(), all[1].ID); err != nil || one.Bytes != len("damaged") {
		t.Errorf("%+v, %v", one, err)
	}
	if err := w.plane.RetryDeadLetter(t.Context(), all[0].ID, "ann"); err != nil {
		t.Fatal(err)
	}
	found := false
	if err := w.plane.bus.History(t.Context(), "h1", sample.Time, sample.Time.Add(1), func(s fleet.Sample) bool {
		found = true
		return false
	}); err != nil || !found {
		t.Errorf("it is not in the stream again: %v", err)
	}
	for _, id := range []string{all[0].ID, "0", "x", "999"} {
		if err := w.plane.RetryDeadLetter(t.Context(), id, "ann"); !errors.Is(err, api.ErrNotFound) {
			t.Errorf("retry %s: %v", id, err)
		}
	}
	if all, _ := w.plane.DeadLetters(t.Context(), 10); len(all) != 1 {
		t.Errorf("%d are left", len(all))
	}
}
