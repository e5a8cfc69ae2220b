package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/internal/train"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// jobStore keeps jobs in a table.
type jobStore struct{ *bus.Table[jobs.Job] }

func (s jobStore) Put(ctx context.Context, j jobs.Job) error {
	_, err := s.Table.Put(ctx, j.ID, j)
	return err
}

// openJobs reads the jobs; one that ran when the process ended is lost.
func (p *Plane) openJobs(ctx context.Context) error {
	table, err := bus.OpenTable(ctx, p.bus, "JOBS", func(id string, j jobs.Job) { p.events.emit("job", id, jobView(j)) })
	if err != nil {
		return err
	}
	dir, err := p.dir.Sub("jobs")
	if err != nil {
		return err
	}
	if err := emptyDir(dir); err != nil { // what trainings of an earlier run left
		return fmt.Errorf("data directory: %w", err)
	}
	p.jobsDir = dir
	if p.datasets, err = p.dir.Sub("datasets"); err != nil {
		return err
	}
	p.jobs, err = jobs.NewQueue(ctx, jobStore{table}, p.runJob, p.log)
	return err
}

func jobView(j jobs.Job) api.Job {
	return api.Job{ID: j.ID, Kind: string(j.Kind), State: string(j.State), By: j.By, Why: j.Why, Data: j.Data, Created: j.Created, Started: j.Started, Ended: j.Ended,
		Stage: j.Stage, Done: j.Done, Error: j.Error, Model: j.Model}
}

// Jobs lists the trainings.
func (p *Plane) Jobs(context.Context) ([]api.Job, error) {
	out := []api.Job{}
	for _, j := range p.jobs.All() {
		out = append(out, jobView(j))
	}
	return out, nil
}

// Job returns a training.
func (p *Plane) Job(_ context.Context, id string) (api.Job, error) {
	j, err := p.jobs.Find(id)
	return jobView(j), problem(err)
}

// CancelJob ends a training.
func (p *Plane) CancelJob(ctx context.Context, id, who string) (api.Job, error) {
	j, err := p.jobs.Cancel(ctx, id, who)
	if err != nil {
		return jobView(j), problem(err)
	}
	return jobView(j), problem(p.audit.Append(ctx, who, "cancel-training", id, nil))
}

// Train asks for a training on what is stored of a range.
func (p *Plane) Train(ctx context.Context, t api.Training, who string) (api.Job, error) {
	if t.Dataset != "" {
		return p.trainOnSet(ctx, t, who)
	}
	now := time.Now().UTC()
	if t.To.IsZero() {
		t.To = now
	}
	if t.From.IsZero() {
		length := p.cfg.Model.TrainRange
		if registry.Kind(t.Kind) == registry.KindFailure {
			length = p.cfg.Model.TrainRangeFailure
		}
		t.From = t.To.Add(-length.D())
	}
	if t.StepS == 0 {
		t.StepS = max(60, p.cfg.Agent.Interval.D().Seconds())
	}
	if !t.From.Before(t.To) || t.From.After(now) {
		return api.Job{}, api.ErrInvalid.Errorf("the range from %s to %s is empty", t.From.Format(time.RFC3339), t.To.Format(time.RFC3339))
	}
	where := "the stream of samples"
	if p.cfg.Influx.URL != "" {
		where = "InfluxDB " + p.cfg.Influx.Bucket
	}
	return p.submit(ctx, jobs.Job{
		Kind: registry.Kind(t.Kind), By: who, Why: t.Why, From: t.From.UTC(), To: t.To.UTC(), StepSeconds: t.StepS, Hosts: t.Hosts,
		Data: fmt.Sprintf("%s from %s to %s", where, t.From.UTC().Format(time.RFC3339), t.To.UTC().Format(time.RFC3339)),
	})
}

// trainOnSet asks for a training on a directory of telemetry, with its own truth.
func (p *Plane) trainOnSet(ctx context.Context, t api.Training, who string) (api.Job, error) {
	if _, err := os.Stat(filepath.Join(p.datasets, t.Dataset, "manifest.json")); err != nil {
		return api.Job{}, api.ErrInvalid.Errorf("there is no data set %q: put a directory of telemetry, as 'tardigrade dataset' writes it, at %s", t.Dataset, filepath.Join(p.datasets, t.Dataset))
	}
	data := "the data set " + t.Dataset
	if !t.From.IsZero() {
		data += " from " + t.From.UTC().Format(time.RFC3339)
	}
	if !t.To.IsZero() {
		data += " to " + t.To.UTC().Format(time.RFC3339)
	}
	return p.submit(ctx, jobs.Job{Kind: registry.Kind(t.Kind), By: who, Why: t.Why, Dataset: t.Dataset, From: t.From.UTC(), To: t.To.UTC(), Data: data})
}

func (p *Plane) submit(ctx context.Context, want jobs.Job) (api.Job, error) {
	if err := p.bus.Room(); err != nil { // what it reads and makes lies on that disk
		return api.Job{}, problem(err)
	}
	j, err := p.jobs.Submit(ctx, want)
	if err != nil {
		return api.Job{}, problem(err)
	}
	return jobView(j), problem(p.audit.Append(ctx, j.By, "train", j.ID, map[string]any{"kind": j.Kind, "data": j.Data, "why": j.Why}))
}

// runJob trains, and adds the model as a candidate.
func (p *Plane) runJob(ctx context.Context, j jobs.Job, progress func(string, float64)) (string, error) {
	dir := filepath.Join(p.jobsDir, j.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	defer os.RemoveAll(dir)
	spec := train.Spec{Kind: j.Kind, Code: p.version, Seed: 1, Source: j.Data, Incidents: p.labels()}
	if c := p.roster.of(j.Kind).champion; c != nil {
		spec.Parent = c.version.ID
	}
	if j.Dataset != "" {
		spec.Directory, spec.From, spec.To, spec.Incidents = filepath.Join(p.datasets, j.Dataset), j.From, j.To, nil
	} else if c := p.cfg.Influx; c.URL != "" {
		spec.Influx = &train.Influx{URL: c.URL, Org: c.Org, Bucket: c.Bucket, Token: c.Token, CA: c.CA, From: j.From, To: j.To, StepSeconds: j.StepSeconds, Hosts: j.Hosts}
	} else {
		progress("reading the stream", 0)
		spec.Directory = filepath.Join(dir, "telemetry")
		if err := p.export(ctx, j, spec.Directory); err != nil {
			return "", err
		}
	}
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	child := jobs.Child{Program: program, Args: p.trainer, MemoryMiB: p.cfg.Model.TrainMemoryMiB, Timeout: p.cfg.Model.TrainTimeout.D(), Dir: dir}
	file, err := child.Run(ctx, spec, progress)
	if err != nil {
		return "", err
	}
	v, err := p.registry.Add(ctx, file, change(j.By, j.Why))
	if err != nil {
		return "", err
	}
	if _, err := p.changedModel(ctx, j.By, "trained-model", v, nil); err != nil {
		return "", err
	}
	if p.cfg.Model.Promote == "rule" {
		if _, err := p.PromoteModel(ctx, v.ID, api.Promotion{Note: "a trained model is tried in shadow", From: string(registry.Candidate)}, "rule"); err != nil {
			p.log.Warn("a trained model could not be tried in shadow", "model", v.ID, "err", err)
		}
	}
	return v.ID, nil
}

// export writes what the stream has of a range as a directory of telemetry: of each step
// the first sample. The names of all series are needed first, so that it is read twice.
func (p *Plane) export(ctx context.Context, j jobs.Job, dir string) error {
	var hosts []telemetry.Host
	var names []string
	at := make(map[string]int)
	for _, h := range p.hosts.all() {
		if h.Simulated || len(j.Hosts) > 0 && !slices.Contains(j.Hosts, h.ID) {
			continue
		}
		some := false
		var schema *fleet.Schema
		err := p.bus.History(ctx, h.ID, j.From, j.To, func(s fleet.Sample) bool {
			some = true
			if s.Schema != schema {
				schema = s.Schema
				for _, n := range schema.Names() {
					if _, ok := at[n]; !ok {
						at[n] = len(names)
						names = append(names, n)
					}
				}
			}
			return ctx.Err() == nil
		})
		if err != nil {
			return err
		}
		if some {
			hosts = append(hosts, telemetry.Host{ID: h.ID, FaultDomain: h.FaultDomain, VMs: len(h.VMs)})
		}
	}
	if len(hosts) == 0 {
		return fmt.Errorf("the stream has no sample of a host from %s to %s", j.From.Format(time.RFC3339), j.To.Format(time.RFC3339))
	}
	w, err := telemetry.Create(dir, telemetry.Manifest{Source: j.Data, Start: j.From, Interval: j.StepSeconds, Series: names, Hosts: hosts})
	if err != nil {
		return err
	}
	defer w.Discard()
	step := time.Duration(j.StepSeconds * float64(time.Second))
	values := make([]float64, len(names))
	for i, h := range hosts {
		var last time.Time
		var failed error
		err := p.bus.History(ctx, h.ID, j.From, j.To, func(s fleet.Sample) bool {
			begin := s.Time.Truncate(step)
			if !begin.After(last) { // of this step already, or late
				return ctx.Err() == nil
			}
			last = begin
			for k := range values {
				values[k] = math.NaN()
			}
			for k, n := range s.Schema.Names() {
				if c, ok := at[n]; ok { // one may have come since the names were read
					values[c] = s.Values[k]
				}
			}
			failed = w.Append(i, s.Time, s.Boot, values)
			return failed == nil && ctx.Err() == nil
		})
		if err = errors.Join(err, failed, ctx.Err()); err != nil {
			return err
		}
	}
	_, err = w.Close(nil)
	return err
}

// lifeEvery is how often shadows and drift are looked at.
const lifeEvery = time.Minute

// liveModels promotes by rule, asks for trainings, and stores what was counted, until ctx ends.
func (p *Plane) liveModels(ctx context.Context) {
	look, save := time.NewTicker(p.lookEvery), time.NewTicker(saveModelsEvery)
	defer look.Stop()
	defer save.Stop()
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second) // the bus may be away
			defer cancel()
			p.saveCounts(end)
			return
		case now := <-look.C:
			p.lookAtModels(ctx, now.UTC())
		case <-save.C:
			p.saveCounts(ctx)
		}
	}
}

func (p *Plane) rule() registry.Rule {
	c := p.cfg.Model
	return registry.Rule{After: c.PromoteAfter.D(), Samples: c.PromoteSamples, AlarmRatio: c.PromoteAlarmRatio}
}

func (p *Plane) driftLimits() (l drift.Limits, window time.Duration) {
	d := p.cfg.Model.Drift
	return drift.Limits{PSI: d.PSI, KS: d.KS, Ratio: d.SeriesRatio, Samples: d.Samples, Calibration: d.Calibration}, d.Window.D()
}

func (p *Plane) lookAtModels(ctx context.Context, now time.Time) {
	for _, c := range p.roster.comparisons(p.labels()) {
		ok, why := p.rule().Allows(c, now)
		switch key := "promote " + c.Shadow + " " + c.Champion; {
		case !ok:
		case p.cfg.Model.Promote != "rule":
			if !p.said[key] {
				p.said[key] = true
				p.log.Info("a shadow can be promoted: 'tardigrade model promote "+c.Shadow+"' (or set model.promote to rule)", "model", c.Shadow, "champion", c.Champion, "mean_difference", c.MeanDifference, "why", why)
			}
		default:
			if _, err := p.PromoteModel(ctx, c.Shadow, api.Promotion{Note: why, From: string(registry.Shadow)}, "rule"); err != nil {
				p.log.Warn("a shadow was not promoted", "model", c.Shadow, "err", err)
			}
		}
	}
	for _, k := range registry.Kinds() {
		m := p.roster.of(k).champion
		if m == nil {
			continue
		}
		why, key := "", ""
		l, window := p.driftLimits()
		m.said.settle(now, p.labels(), p.predictions.lastSeen)
		if v, _, ok := m.judged(l, window, true); ok && v.Drifted {
			why, key = "drift: "+v.Why, "drift"
		}
		if every := p.cfg.Model.RetrainEvery.D(); why == "" && every > 0 && now.Sub(m.version.Trained) > every {
			why, key = fmt.Sprintf("age: it was trained at %s", m.version.Trained.Format(time.RFC3339)), "age"
		}
		if why != "" {
			p.askForTraining(ctx, k, m, why, key, now)
		}
	}
}

// askForTraining begins one, or says that one is wanted, at most once a day. One that cannot be begun is
// tried again at each look.
func (p *Plane) askForTraining(ctx context.Context, k registry.Kind, m *seated, why, key string, now time.Time) {
	if p.jobs.Busy(k) {
		return
	}
	ask, say := m.asks(key, now)
	if !ask {
		return
	}
	automatic := p.cfg.Model.Jobs == "automatic"
	if say {
		p.events.emit("drift", m.version.ID, map[string]any{"model": m.version.ID, "why": why, "automatic": automatic})
		if err := p.audit.Append(ctx, "model:"+m.version.ID, "retraining-wanted", m.version.ID, map[string]any{"why": why}); err != nil {
			p.log.Error("the audit trail could not be written", "event", "retraining-wanted", "err", err)
		}
	}
	if !automatic {
		p.log.Warn("a model should be trained anew: 'tardigrade train "+string(k)+" --submit' (or set model.jobs to automatic)", "model", m.version.ID, "why", why)
		return
	}
	j, err := p.Train(ctx, api.Training{Kind: string(k), Why: why}, "model:"+m.version.ID)
	m.refuses(key, j.ID == "")
	if err != nil && say {
		p.log.Error("a training could not be begun; it is tried again each minute", "kind", k, "err", err)
	}
}

// Comparisons says how shadows do.
func (p *Plane) Comparisons(context.Context) ([]api.Comparison, error) {
	out := []api.Comparison{}
	all := p.roster.comparisons(p.labels())
	for _, k := range registry.Kinds() {
		c, ok := all[k]
		if !ok {
			continue
		}
		v := api.Comparison{Shadow: c.Shadow, Champion: c.Champion, Since: c.Since, Hosts: c.Hosts, Samples: c.Samples, MeanChampion: c.MeanChampion, MeanShadow: c.MeanShadow,
			MeanDifference: c.MeanDifference, MeanAbsolute: c.MeanAbsolute, AlarmsChampion: c.AlarmsChampion, AlarmsShadow: c.AlarmsShadow,
			Incidents: c.Incidents, ForeseenChampion: c.ForeseenChampion, ForeseenShadow: c.ForeseenShadow}
		v.Promotable, v.Why = p.rule().Allows(c, time.Now())
		out = append(out, v)
	}
	return out, nil
}

// Drifts says how far live data have moved from the champions' training data.
func (p *Plane) Drifts(context.Context) ([]api.Drift, error) {
	out := []api.Drift{}
	l, window := p.driftLimits()
	for _, k := range registry.Kinds() {
		m := p.roster.of(k).champion
		if m == nil {
			continue
		}
		v, since, ok := m.judged(l, window, false)
		if !ok {
			continue
		}
		d := api.Drift{Model: m.version.ID, Since: since, Samples: v.Samples, Ready: v.Ready, Drifted: v.Drifted, Why: v.Why, Shifted: v.Shifted, Series: v.Series, Calibration: v.Calibration, Worst: []api.DriftDistance{}}
		if k == registry.KindFailure {
			said := m.said.outcomes()
			d.Outcomes = &api.Outcomes{Judged: said.Judged, Expected: said.Expected, Failed: said.Failed, Averted: said.Averted}
		}
		for _, w := range v.Worst {
			d.Worst = append(d.Worst, api.DriftDistance{Series: w.Series, PSI: w.PSI, KS: w.KS})
		}
		out = append(out, d)
	}
	return out, nil
}
