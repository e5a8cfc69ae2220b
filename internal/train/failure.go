package train

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"path/filepath"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/table"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/history"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

const (
	leastFailures = 5
	leastHosts    = 5
	mostExamples  = 300_000
	// quietEvery and loudEvery are how often a sound host and one with a fault give an
	// example: the former stands for those in between.
	quietEvery = 10 * time.Minute
	loudEvery  = time.Minute
	// before is how long before a failure its signature counts as visible, where nobody
	// knows since when it was.
	before = 15 * time.Minute
)

// trainFailure learns from examples of hosts before, in and without incidents.
func trainFailure(ctx context.Context, s Spec, h *registry.Header, progress Progress) ([]byte, error) {
	progress("reading", 0)
	e, err := examples(ctx, s, h, progress)
	if err != nil {
		return nil, err
	}
	fails, hosts := 0, make(map[string]bool)
	for i, f := range e.Failure {
		hosts[e.Host[i]] = true
		if !math.IsInf(f, 1) {
			fails++
		}
	}
	switch {
	case fails == 0:
		return nil, unfit("no example of %d is of a failure: there is one class only; add incidents ('tardigrade incident add'), or take a longer range", len(e.X))
	case fails == len(e.X):
		return nil, unfit("every one of the %d examples is of a failure: there is one class only", len(e.X))
	case fails < leastFailures:
		return nil, unfit("%d of %d examples are of a failure, at least %d are needed", fails, len(e.X), leastFailures)
	case len(hosts) < leastHosts:
		return nil, unfit("%d hosts, at least %d are needed: a model is calibrated on hosts that it has not seen", len(hosts), leastHosts)
	}
	if !table.Varies(e.X) {
		return nil, unfit("every column is constant")
	}
	h.Series, h.Rows, h.Hosts = e.Features, len(e.X), len(hosts)
	cfg := failure.Config{Seed: s.Seed}
	part := func(stage string, from, to float64) func(int, int) {
		return func(done, of int) { progress(stage, from+(to-from)*float64(done)/float64(of)) }
	}
	// One in five hosts judges a model of the others.
	var first, held failure.Examples
	for i := range e.X {
		to := &first
		if bucket(e.Host[i]) == 0 {
			to = &held
		}
		add(to, e, i)
	}
	cfg.Progress = part("judging", 0.4, 0.7)
	first.Features = e.Features
	switch m, err := failure.Train(ctx, first, cfg); {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		h.Metrics["held_out_rows"] = 0 // too few to part
	default:
		judgeFailures(m, held, h)
	}
	cfg.Progress = part("learning", 0.7, 1)
	cfg.LeftOut = func(what, why string) { h.LeftOut = append(h.LeftOut, what+": "+why) }
	m, err := failure.Train(ctx, *e, cfg)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, unfit("%v", err)
	}
	h.Reference = drift.NewReference(h.Series, len(e.X), func(r, c int) float64 { return e.X[r][c] })
	return m.MarshalBinary()
}

func bucket(host string) uint32 {
	f := fnv.New32a()
	f.Write([]byte(host))
	return f.Sum32() % 5
}

func add(to *failure.Examples, e *failure.Examples, i int) {
	to.X, to.Failure, to.Known = append(to.X, e.X[i]), append(to.Failure, e.Failure[i]), append(to.Known, e.Known[i])
	to.Signature, to.Host, to.Weight = append(to.Signature, e.Signature[i]), append(to.Host, e.Host[i]), append(to.Weight, e.Weight[i])
}

func judgeFailures(m *failure.Model, e failure.Examples, h *registry.Header) {
	h.Metrics["held_out_rows"] = float64(len(e.X))
	p := make([]float64, len(m.Horizons()))
	for k, horizon := range m.Horizons() {
		var scores []float64
		var labels []bool
		var c drift.Calibration
		for i, x := range e.X {
			if e.Failure[i] > horizon.Seconds() && e.Known[i] < horizon.Seconds() {
				continue
			}
			m.Failure(p, x)
			came := e.Failure[i] <= horizon.Seconds()
			scores, labels = append(scores, p[k]), append(labels, came)
			c.Add(p[k], came)
		}
		name := fmt.Sprintf("_%ds", int(horizon.Seconds()))
		if v, err := metrics.AUCPR(scores, labels); err == nil {
			h.Metrics["auc_pr"+name] = v
			h.Metrics["calibration_error"+name] = c.Error()
		}
		if v, err := metrics.AUCROC(scores, labels); err == nil {
			h.Metrics["auc_roc"+name] = v
		}
	}
	right, wrong := 0.0, 0.0
	dst := make([]float64, len(m.Signatures()))
	for i, x := range e.X {
		if e.Signature[i] == failure.Sound {
			continue
		}
		if m.Signatures()[m.Signature(dst, x)] == e.Signature[i] {
			right++
		} else {
			wrong++
		}
	}
	if right+wrong > 0 {
		h.Metrics["signature_right"] = right / (right + wrong)
	}
}

// examples makes them from what a spec names.
func examples(ctx context.Context, s Spec, h *registry.Header, progress Progress) (*failure.Examples, error) {
	if s.CSV != "" {
		t, err := table.Read(s.CSV, s.Label)
		if err != nil {
			return nil, err
		}
		if h.Source == "" {
			h.Source = "the table " + filepath.Base(s.CSV)
		}
		return ofRows(t), nil
	}
	if s.Influx == nil && exists(filepath.Join(s.Directory, "series.csv")) {
		return nil, errors.New("a directory of series has no failures of hosts; it is for anomaly models")
	}
	src, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	hosts, err := src.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	if len(hosts) == 0 {
		return nil, unfit("no host sent anything in that range")
	}
	own, err := src.Incidents()
	if err != nil {
		return nil, err
	}
	incidents := byHost(append(own, s.Incidents...))
	if h.Source == "" {
		h.Source = src.String()
	}
	h.StepSeconds = src.Step().Seconds()
	e := &failure.Examples{Features: feature.Names()}
	for i, host := range hosts {
		if err := ofHost(ctx, src, host.ID, incidents[host.ID], e, h); err != nil {
			return nil, err
		}
		if len(e.X) > mostExamples {
			return nil, unfit("more than %d examples: take a shorter range or fewer hosts", mostExamples)
		}
		progress("reading", 0.4*float64(i+1)/float64(len(hosts)))
	}
	if len(e.X) == 0 {
		return nil, unfit("no host has samples enough in that range")
	}
	return e, nil
}

// ofRows takes each row of a table for an example that stands alone.
func ofRows(t table.Table) *failure.Examples {
	e := &failure.Examples{Features: t.Columns, X: t.Rows}
	for i, fails := range t.Labels {
		f, sig := math.Inf(1), failure.Sound
		if fails {
			f, sig = 0, string(fleet.SignatureUnknown)
		}
		e.Failure, e.Signature = append(e.Failure, f), append(e.Signature, sig)
		e.Known, e.Weight = append(e.Known, math.MaxFloat64), append(e.Weight, 1)
		e.Host = append(e.Host, fmt.Sprint(i/16)) // neighbours are alike in most tables
	}
	return e
}

// ofHost adds the examples of a host.
func ofHost(ctx context.Context, src history.Source, id fleet.HostID, incidents []fleet.Incident, e *failure.Examples, h *registry.Header) error {
	x := feature.New()
	var next, end time.Time
	samples := 0
	var times []time.Time
	for s, err := range src.Samples(ctx, id) {
		if err != nil {
			return err
		}
		x.Observe(&s)
		end = s.Time
		samples++
		h.From, h.To = earliest(h.From, s.Time), latest(h.To, s.Time)
		sig, loud := state(incidents, s.Time)
		every := quietEvery
		if loud {
			every = loudEvery
		}
		if samples < 10 || s.Time.Before(next) && !(loud && next.Sub(s.Time) > loudEvery) {
			continue
		}
		next = s.Time.Add(every)
		v := make([]float64, feature.Size)
		x.Vector(v)
		e.X, e.Signature, e.Host = append(e.X, v), append(e.Signature, sig), append(e.Host, string(id))
		e.Weight = append(e.Weight, every.Seconds()/loudEvery.Seconds())
		times = append(times, s.Time)
	}
	for _, at := range times {
		f, known := ahead(incidents, at, end)
		e.Failure, e.Known = append(e.Failure, f), append(e.Known, known)
	}
	return nil
}

// state is the signature that can be seen at an instant, and whether a failure or a fault is near.
func state(incidents []fleet.Incident, at time.Time) (signature string, near bool) {
	signature = failure.Sound
	for _, i := range incidents {
		seen := i.Seen
		if seen.IsZero() {
			seen = i.From
			if i.Failed {
				seen = i.From.Add(-before)
			}
		}
		if !at.Before(seen) && !at.After(i.To) {
			return string(i.Signature), true
		}
		if i.Failed && at.Before(i.From) && i.From.Sub(at) < time.Hour {
			near = true
		}
	}
	return signature, near
}

// ahead is how many seconds it takes from an instant until the host fails, and for how many
// it is known what happens: until the data end, or until somebody saved the host, of which
// nobody knows what it would have come to.
func ahead(incidents []fleet.Incident, at, end time.Time) (failure, known float64) {
	failure, known = math.Inf(1), max(0, end.Sub(at).Seconds())
	for _, i := range incidents {
		switch {
		case i.To.Before(at):
		case i.Failed && !at.Before(i.From):
			failure = 0
		case i.Failed:
			failure = min(failure, i.From.Sub(at).Seconds())
		case i.Source == fleet.IncidentExecution:
			known = min(known, max(0, i.To.Sub(at).Seconds()))
		}
	}
	if failure > known { // what came after somebody had acted is another story
		failure = math.Inf(1)
	}
	return failure, known
}
