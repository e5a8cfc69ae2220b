// Package control is the control plane: it opens the bus, scores the stream of
// samples, keeps recommendations and executions, feeds InfluxDB, and shows all of
// it to the api package. It is wiring; what it wires knows nothing of each other.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// Options says what to run.
type Options struct {
	Config  config.Config
	Dir     *datadir.Dir
	Version string
	// Demo keeps simulated hosts in the inventory; otherwise those of an earlier
	// demonstration are forgotten.
	Demo bool
	// Trainer are the arguments with which this program trains a model (see package jobs).
	Trainer []string
	// Ended, if not nil, is told of each execution that ends. It must not block.
	Ended func(fleet.Execution)
	// OnWrite is for tests; see [bus.Options].
	OnWrite func(what string, done bool)
	Log     *slog.Logger
}

// Plane is a running control plane. It is safe for concurrent use.
type Plane struct {
	cfg     config.Config
	version string
	log     *slog.Logger
	dir     *datadir.Dir

	bus         *bus.Bus
	tokens      *tokens
	audit       *bus.Audit
	bundles     *bus.Bundles
	hosts       *hosts
	predictions *predictions
	models      models
	detectors   *detectors
	roster      *roster
	registry    *registry.Registry
	reload      chan registry.Kind
	jobs        *jobs.Queue
	jobsDir     string
	datasets    string // directories of telemetry to train on
	trainer     []string
	drifts      *bus.Table[driftCount] // nil in a demonstration
	said        map[string]bool        // which shadows the log said can be promoted, by liveModels alone
	lookEvery   time.Duration          // at shadows and drift
	incidents   *bus.Table[fleet.Incident]
	recommender *recommender
	policies    *policies
	freezes     *bus.Table[fleet.Freeze]
	shadows     *bus.Table[comparing] // nil in a demonstration
	// surroundings is what the guard decides on.
	surroundings surroundings
	executions   *bus.Table[executor.Record]
	coordinator  *executor.Coordinator
	cordons      *cordons
	mains        *mains
	history      history
	ingest       *ingest
	events       *events
	ended        func(fleet.Execution)
}

// leaseTTL is how long a host stays locked after its control plane went away.
const leaseTTL = 30 * time.Second

// Open starts the bus and reads the state. Call [Plane.Run] next, and
// [Plane.Close] in the end.
func Open(ctx context.Context, o Options) (*Plane, error) {
	p := &Plane{cfg: o.Config, version: o.Version, log: o.Log, dir: o.Dir, events: newEvents(), ended: o.Ended, lookEvery: lifeEvery}
	if err := p.open(ctx, o); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Plane) open(ctx context.Context, o Options) error {
	busDir, err := p.dir.Sub("bus")
	if err != nil {
		return err
	}
	agentsDir, err := p.dir.Sub("agents")
	if err != nil {
		return err
	}
	spool, err := p.dir.Sub("spool")
	if err != nil {
		return err
	}
	modelsDir, err := p.dir.Sub("models")
	if err != nil {
		return err
	}
	p.models = models{modelsDir, p.log}
	interval := p.cfg.Agent.Interval.D()
	p.roster = newRoster(p.cfg.Model, interval)
	p.detectors = newDetectors(p.cfg.Model, interval, p.roster)
	p.reload, p.said, p.trainer = make(chan registry.Kind, 1), make(map[string]bool), o.Trainer
	if err := emptyDir(spool); err != nil { // half-received archives of an earlier run
		return fmt.Errorf("data directory: %w", err)
	}
	options, err := BusOptions(p.cfg.Bus)
	if err != nil {
		return err
	}
	p.tokens = &tokens{dir: agentsDir}
	options.Dir, options.Agents, options.OnWrite, options.Log = busDir, p.tokens.check, o.OnWrite, p.log
	if p.bus, err = bus.Open(ctx, options); err != nil {
		return err
	}
	p.audit = bus.OpenAudit(p.bus)
	p.policies = newPolicies(p.cfg.Policy, p.audit, p.log)
	if p.freezes, err = bus.OpenTable[fleet.Freeze](ctx, p.bus, "FREEZES", nil); err != nil {
		return err
	}
	if p.bundles, err = bus.OpenBundles(ctx, p.bus, spool); err != nil {
		return err
	}
	hostTable, err := bus.OpenTable(ctx, p.bus, "HOSTS", func(id string, h fleet.Host) { p.events.emit("host", id, h) })
	if err != nil {
		return err
	}
	p.hosts = newHosts(hostTable, p.bus.AdmitHost, p.log)
	if !o.Demo {
		if err := p.hosts.forgetSimulated(ctx); err != nil {
			return err
		}
	}
	recommendations, err := bus.OpenTable(ctx, p.bus, "RECOMMENDATIONS", func(id string, r fleet.Recommendation) { p.events.emit("recommendation", id, r) })
	if err != nil {
		return err
	}
	p.recommender = newRecommender(recommendations, p.audit, p.policies.current, p.log)
	if p.recommender.lessons, err = openLessons(ctx, p.bus, p.log); err != nil {
		return err
	}
	cordonTable, err := bus.OpenTable(ctx, p.bus, "CORDONS", func(id string, c fleet.Cordon) { p.events.emit("cordon", id, c) })
	if err != nil {
		return err
	}
	p.predictions = newPredictions(p.newPredictor, p.predicted, func(id fleet.HostID, err error) {
		p.log.Warn("samples of a host are in doubt", "host", id, "err", err)
	})
	p.surroundings = surroundings{p.policies, p.hosts, p.predictions, p.freezes}
	p.cordons = &cordons{table: cordonTable, audit: p.audit, policies: p.policies, predictions: p.predictions, log: p.log, well: make(map[fleet.HostID]time.Time)}
	if p.mains, err = newMains(p.cfg.Power, p.cordons, p.hosts, p.powerBlocked, p.audit, p.log); err != nil {
		return err
	}
	p.executions, err = bus.OpenTable(ctx, p.bus, "EXECUTIONS", func(id string, r executor.Record) { p.executed(ctx, r.Execution) })
	if err != nil {
		return err
	}
	leaseTable, err := bus.OpenLeases(ctx, p.bus, "LEASES", leaseTTL)
	if err != nil {
		return err
	}
	held := &leases{bus: leaseTable, held: make(map[fleet.HostID]*bus.Lease)}
	if p.cfg.Bus.URL == "" { // the data directory is this process's alone
		underway := func(id string) bool {
			e, _, ok := p.executions.Find(id)
			return ok && !e.State.Final()
		}
		if err := held.releaseOrphans(ctx, underway); err != nil {
			return err
		}
	}
	p.coordinator, err = executor.New(executor.Config{
		Store: store{p.executions}, Commands: p.bus, Leases: held,
		Guard: p.surroundings, Placement: placer{p.policies, p.hosts, p.predictions, p.cordons}, Audit: p.audit, Log: p.log,
		Limits: p.policies.limits,
	})
	if err != nil {
		return err
	}
	p.recommender.execute = execute(p.coordinator)
	p.predictions.roster, p.predictions.rebooted = p.roster, p.rebooted
	if !o.Demo {
		if p.drifts, err = bus.OpenTable[driftCount](ctx, p.bus, "DRIFT", nil); err != nil {
			return err
		}
		if p.shadows, err = bus.OpenTable[comparing](ctx, p.bus, "SHADOWS", nil); err != nil {
			return err
		}
		p.roster.stored = p.storedShadow
	}
	for _, open := range []func(context.Context) error{p.openIncidents, p.openModels, p.openJobs} {
		if err := open(ctx); err != nil {
			return err
		}
	}
	return p.openHistory()
}

func emptyDir(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Run works until ctx ends or a part of it breaks.
func (p *Plane) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	executions, err := p.coordinator.Executions(ctx)
	if err != nil {
		return err
	}
	p.recommender.resume(ctx, executions)
	for _, e := range executions { // of which an earlier control plane may not have drawn the conclusions
		if _, known := p.hosts.find(e.Host); known && e.State.Final() && time.Since(e.Ended) <= triedFor {
			p.cordons.ended(ctx, e)
			p.labelOutcome(ctx, e)
		}
	}

	if why := expiring(p.cfg, time.Now()); why != "" {
		p.log.Warn("a certificate must be renewed", "which", why)
	}
	var wg sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("disk space", p.bus.WatchSpace)
	part("policy", p.policies.watch)
	part("storm brake", p.brake)
	part("silence", p.watchSilence)
	part("cordons", func(ctx context.Context) error {
		return regularly(ctx, time.Second, func(time.Time) { p.cordons.sweep(ctx) })
	})
	part("power", p.mains.watch)
	part("hosts", func(ctx context.Context) error {
		return p.bus.Hosts(ctx, func(h fleet.Host) { p.hosts.announce(ctx, h) })
	})
	part("predictions", func(ctx context.Context) error { p.predictions.run(ctx); return nil })
	part("models", func(ctx context.Context) error { p.saveModels(ctx); return nil })
	part("registry", func(ctx context.Context) error { p.followModels(ctx); return nil })
	part("life of models", func(ctx context.Context) error { p.liveModels(ctx); return nil })
	part("jobs", p.jobs.Run)
	part("samples", func(ctx context.Context) error {
		return p.bus.Samples(ctx, time.Now().Add(-p.relearn()), func(s fleet.Sample) { p.predictions.offer(ctx, s) })
	})
	part("reports", func(ctx context.Context) error { return p.bus.Reports(ctx, p.coordinator.HandleReport) })
	part("executions", p.coordinator.Run)
	part("bundles", p.bundles.Serve)
	part("recommendations", func(ctx context.Context) error {
		return regularly(ctx, time.Second, func(now time.Time) { p.recommender.sweep(ctx, now) })
	})
	if p.ingest != nil {
		part("influx", p.ingest.run)
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// regularly calls f every so often until ctx ends.
func regularly(ctx context.Context, every time.Duration, f func(now time.Time)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			f(now)
		}
	}
}

// relearn is how much of the stream is read again at the start, so that what was
// learned of each host comes back.
func (p *Plane) relearn() time.Duration { return 2*p.cfg.Model.Learn.D() + 10*time.Minute }

// Close stops the bus.
func (p *Plane) Close() {
	if p.bus != nil {
		p.bus.Close()
	}
}

// predicted follows each new prediction.
func (p *Plane) predicted(ctx context.Context, s *fleet.Sample, out fleet.Prediction) {
	p.hosts.sampled(s.Host, s.Time)
	if time.Since(s.Time) > p.policies.current().EvidenceMaxAge.D() {
		return // read again after a restart: it teaches, and calls for nothing
	}
	p.events.emit("prediction", string(s.Host), out)
	if h, ok := p.hosts.find(s.Host); ok {
		p.recommender.consider(ctx, out, h)
	}
}

// executed follows each change of an execution.
func (p *Plane) executed(ctx context.Context, e fleet.Execution) {
	p.events.emit("execution", e.ID, e)
	if !e.State.Final() {
		return
	}
	if e.State == fleet.ExecutionSucceeded {
		p.predictions.recovered(e.Host)
	}
	p.recommender.finished(ctx, e)
	p.cordons.ended(ctx, e)
	p.labelOutcome(ctx, e)
	if p.ended != nil {
		p.ended(e)
	}
}

// simulatedLearn is how long simulated hosts are watched, at most: they are there
// for people who watch.
const simulatedLearn = 30 * time.Second

func (p *Plane) newPredictor(host fleet.HostID, simulated bool) (*predictor.Predictor, error) {
	learn := p.cfg.Model.Learn.D()
	if simulated {
		learn = min(learn, simulatedLearn)
	}
	interval := p.cfg.Agent.Interval.D()
	made, err := predictor.New(host, predictor.Config{
		NewDetector: p.detectors.new(learn), Model: detectorName, Subsystem: subsystem,
		FalseAlarms: p.cfg.Model.FalseAlarmsPerMonth, Interval: interval, Horizon: p.cfg.Model.Horizon.D(),
	})
	if err == nil && !simulated { // a simulated fleet begins anew each time
		p.models.restore(host, made)
	}
	return made, err
}

// BusAddr is where the bus listens for agents, or "".
func (p *Plane) BusAddr() string { return p.bus.Addr() }

// AgentInside connects an agent in this process, with the rights that an agent
// on another host has.
func (p *Plane) AgentInside(id fleet.HostID) (*bus.Agent, error) {
	o := bus.AgentOptions{Host: id, Token: p.tokens.grant(id), InProcess: p.bus, Log: p.log}
	if p.cfg.Bus.URL != "" {
		return nil, fmt.Errorf("with an external bus (bus.url), run the agent of this machine on its own ('tardigrade agent') and set agent.disabled")
	}
	return bus.DialAgent(o)
}
