package train

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"path/filepath"
	"slices"
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
	mostExamples  = 300_000 // of 1.6 KB each
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
	// One in five hosts judges a model of the others, and the last quarter of the time one of
	// the time before, where examples have times.
	cfg.Progress = part("judging", 0.4, 0.55)
	judgeOn(ctx, e.Examples, func(i int) bool { return bucket(e.Host[i]) == 0 }, cfg, h, "")
	if len(e.at) > 0 {
		cfg.Progress = part("judging", 0.55, 0.7)
		cut := h.From.Add(h.To.Sub(h.From) / 4 * 3)
		judgeOn(ctx, e.knownAt(cut), func(i int) bool { return !e.at[i].Before(cut) }, cfg, h, "later_")
	}
	cfg.Progress = part("learning", 0.7, 1)
	cfg.LeftOut = func(what, why string) { h.LeftOut = append(h.LeftOut, what+": "+why) }
	m, err := failure.Train(ctx, e.Examples, cfg)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, unfit("%v", err)
	}
	h.Reference = drift.NewReference(h.Series, len(e.X), func(r, c int) float64 { return e.X[r][c] }, e.Weight)
	return m.MarshalBinary()
}

func bucket(host string) uint32 {
	f := fnv.New32a()
	f.Write([]byte(host))
	return f.Sum32() % 5
}

// judgeOn notes under metrics with the prefix what a model of the other examples makes of those held out.
func judgeOn(ctx context.Context, e failure.Examples, heldOut func(int) bool, c failure.Config, h *registry.Header, prefix string) {
	first, held := failure.Examples{Features: e.Features}, failure.Examples{}
	for i := range e.X {
		to := &first
		if heldOut(i) {
			to = &held
		}
		to.X, to.Failure, to.Known = append(to.X, e.X[i]), append(to.Failure, e.Failure[i]), append(to.Known, e.Known[i])
		to.Signature, to.Host, to.Weight = append(to.Signature, e.Signature[i]), append(to.Host, e.Host[i]), append(to.Weight, e.Weight[i])
	}
	m, err := failure.Train(ctx, first, c)
	if err != nil {
		h.Metrics[prefix+"held_out_rows"] = 0 // too few to part
		return
	}
	judgeFailures(m, held, h, prefix)
}

// knownAt are the examples with what was known of those before the cut at that instant.
func (g *gathering) knownAt(cut time.Time) failure.Examples {
	e := g.Examples
	e.Failure, e.Known = slices.Clone(e.Failure), slices.Clone(e.Known)
	for i, at := range g.at {
		left := cut.Sub(at).Seconds()
		if left <= 0 {
			continue
		}
		e.Known[i] = min(e.Known[i], left)
		if e.Failure[i] > left {
			e.Failure[i] = math.Inf(1)
		}
	}
	return e
}

func judgeFailures(m *failure.Model, e failure.Examples, h *registry.Header, prefix string) {
	h.Metrics[prefix+"held_out_rows"] = float64(len(e.X))
	p := make([]float64, len(m.Horizons()))
	for k, horizon := range m.Horizons() {
		var scores, weights []float64
		var labels []bool
		var c drift.Calibration
		for i, x := range e.X {
			if e.Failure[i] > horizon.Seconds() && e.Known[i] < horizon.Seconds() {
				continue
			}
			m.Failure(p, x)
			came := e.Failure[i] <= horizon.Seconds()
			c.Add(p[k], came, e.Weight[i])
			if came && e.Signature[i] == failure.Sound {
				continue // nothing shows the fault yet, as in 'evaluate horizon'
			}
			scores, labels, weights = append(scores, p[k]), append(labels, came), append(weights, e.Weight[i])
		}
		if pr, roc, err := metrics.WeightedAUC(scores, labels, weights); err == nil {
			name := fmt.Sprintf("_%ds", int(horizon.Seconds()))
			h.Metrics[prefix+"auc_pr"+name], h.Metrics[prefix+"auc_roc"+name] = pr, roc
			h.Metrics[prefix+"calibration_error"+name] = c.Error()
		}
	}
	right, wrong := 0.0, 0.0
	dst := make([]float64, len(m.Signatures()))
	for i, x := range e.X {
		if e.Signature[i] == failure.Sound {
			continue
		}
		if m.Signatures()[m.Signature(dst, x)] == e.Signature[i] {
			right += e.Weight[i]
		} else {
			wrong += e.Weight[i]
		}
	}
	if right+wrong > 0 {
		h.Metrics[prefix+"signature_right"] = right / (right + wrong)
	}
}

// examples makes them from what a spec names.
func examples(ctx context.Context, s Spec, h *registry.Header, progress Progress) (*gathering, error) {
	if s.CSV != "" {
		t, err := table.Read(s.CSV, s.Label)
		if err != nil {
			return nil, err
		}
		if h.Source == "" {
			h.Source = "the table " + filepath.Base(s.CSV)
		}
		return &gathering{Examples: ofRows(t)}, nil
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
	g := newGathering(mostExamples)
	for i, host := range hosts {
		if err := g.host(ctx, src, host.ID, incidents[host.ID], h); err != nil {
			return nil, err
		}
		progress("reading", 0.4*float64(i+1)/float64(len(hosts)))
	}
	if len(g.X) == 0 {
		return nil, unfit("no host has samples enough in that range")
	}
	return g, nil
}

// ofRows takes each row of a table for an example that stands alone.
func ofRows(t table.Table) failure.Examples {
	e := failure.Examples{Features: t.Columns, X: t.Rows}
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

// group parts examples by how much there is to learn from each.
type group int

const (
	quiet   group = iota // nothing is wrong, and nothing comes within the hour
	faulty               // a fault can be seen
	failing              // the host fails within the hour, or does
	groups
)

// gathering is the examples of a fleet, however large. Of each group it holds a share of most at
// most: where more come, every second one of the group goes, and those that stay, and those that
// come later, count for two.
type gathering struct {
	failure.Examples
	most  int
	group []group     // of each example
	at    []time.Time // of each example
	every [groups]int // one in so many instants of a group is taken
	seen  [groups]int // instants
	held  [groups]int // examples
}

func newGathering(most int) *gathering {
	return &gathering{Examples: failure.Examples{Features: feature.Names()}, most: most, every: [groups]int{1, 1, 1}}
}

// wanted tells whether the next instant of a group is an example.
func (g *gathering) wanted(of group) bool {
	g.seen[of]++
	return g.seen[of]%g.every[of] == 0
}

// thin drops every second example of a group.
func (g *gathering) thin(of group) {
	kept, n := 0, 0
	for i, in := range g.group {
		weight := g.Weight[i]
		if in == of {
			weight *= 2
			if n++; n%2 == 1 {
				continue
			}
		}
		g.X[kept], g.Signature[kept], g.Host[kept], g.Weight[kept] = g.X[i], g.Signature[i], g.Host[i], weight
		g.Failure[kept], g.Known[kept], g.group[kept], g.at[kept] = g.Failure[i], g.Known[i], in, g.at[i]
		kept++
	}
	clear(g.X[kept:]) // let go of the rows
	g.X, g.Signature, g.Host, g.Weight = g.X[:kept], g.Signature[:kept], g.Host[:kept], g.Weight[:kept]
	g.Failure, g.Known, g.group, g.at = g.Failure[:kept], g.Known[:kept], g.group[:kept], g.at[:kept]
	g.held[of], g.every[of] = n/2, 2*g.every[of]
}

// host adds the examples of a host, none of which there may be yet.
func (g *gathering) host(ctx context.Context, src history.Source, id fleet.HostID, incidents []fleet.Incident, h *registry.Header) error {
	x := feature.New()
	var next, end time.Time
	samples := 0
	for s, err := range src.Samples(ctx, id) {
		if err != nil {
			return err
		}
		x.Observe(&s)
		end = s.Time
		samples++
		h.From, h.To = earliest(h.From, s.Time), latest(h.To, s.Time)
		sig, of := state(incidents, s.Time)
		every := quietEvery
		if of != quiet {
			every = loudEvery
		}
		if samples < 10 || s.Time.Before(next) && !(of != quiet && next.Sub(s.Time) > loudEvery) {
			continue
		}
		next = s.Time.Add(every)
		if !g.wanted(of) {
			continue
		}
		v := make([]float64, feature.Size)
		x.Vector(v)
		g.X, g.Signature, g.Host = append(g.X, v), append(g.Signature, sig), append(g.Host, string(id))
		g.Weight = append(g.Weight, float64(g.every[of])*every.Seconds()/loudEvery.Seconds())
		g.Failure, g.Known = append(g.Failure, 0), append(g.Known, 0) // below
		g.group, g.at = append(g.group, of), append(g.at, s.Time)
		if g.held[of]++; g.held[of] > g.most/int(groups) {
			g.thin(of)
		}
	}
	for i := len(g.X) - 1; i >= 0 && g.Host[i] == string(id); i-- {
		g.Failure[i], g.Known[i] = ahead(incidents, g.at[i], end)
	}
	return nil
}

// state is the signature that can be seen at an instant, and the group of its example.
func state(incidents []fleet.Incident, at time.Time) (signature string, of group) {
	signature = failure.Sound
	for _, i := range incidents {
		seen := i.Seen
		if seen.IsZero() {
			seen = i.From
			if i.Failed {
				seen = i.From.Add(-before)
			}
		}
		if i.Failed && !at.After(i.To) && i.From.Sub(at) < time.Hour {
			of = failing
		}
		if !at.Before(seen) && !at.After(i.To) {
			return string(i.Signature), max(of, faulty)
		}
	}
	return signature, of
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
