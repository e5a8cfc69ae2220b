package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

// modelStore keeps the registry on the bus: a ledger for each kind in a table, the files in
// a store of objects.
type modelStore struct {
	ledgers *bus.Table[registry.Ledger]
	files   *bus.Objects
}

func (s modelStore) Load(ctx context.Context, k registry.Kind) (registry.Ledger, uint64, error) {
	l, revision, err := s.ledgers.Load(ctx, string(k))
	if errors.Is(err, bus.ErrNotFound) {
		return registry.Ledger{}, 0, nil
	}
	return l, revision, err
}

func (s modelStore) Save(ctx context.Context, k registry.Kind, l registry.Ledger, revision uint64) error {
	var err error
	if revision == 0 {
		_, err = s.ledgers.Create(ctx, string(k), l)
	} else {
		_, err = s.ledgers.Update(ctx, string(k), l, revision)
	}
	if errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("%w: %w", registry.ErrConflict, err)
	}
	return err
}

func (s modelStore) Put(ctx context.Context, id string, file []byte) error {
	return s.files.Put(ctx, id, file)
}

func (s modelStore) Get(ctx context.Context, id string) ([]byte, error) {
	file, err := s.files.Get(ctx, id)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("%w file: %w", registry.ErrNotFound, err)
	}
	if err != nil {
		// The store checks its own digest: what it cannot read is damaged.
		return nil, fmt.Errorf("%w: %w", registry.ErrFile, err)
	}
	return file, nil
}

func (s modelStore) Delete(ctx context.Context, id string) error { return s.files.Delete(ctx, id) }

func (s modelStore) List(ctx context.Context) ([]string, error) { return s.files.List(ctx) }

// usableModel says whether a model can be used on this fleet: whether this release reads it,
// and whether its series are of this catalogue.
func usableModel(h registry.Header, state []byte) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", registry.ErrFile, fmt.Sprintf(format, args...))
	}
	if h.Kind == registry.KindFailure {
		m, err := failure.Unmarshal(state)
		if err != nil {
			return refuse("%v", err)
		}
		if err := m.Accept(feature.Names()); err != nil || !slices.Equal(h.Series, feature.Names()) {
			return refuse("its features are not those that this release makes of samples (%v): train it on telemetry with this release", err)
		}
		return nil
	}
	d, err := stream.Unmarshal(anomaly.Method, state)
	if err != nil {
		return refuse("%v", err)
	}
	if err := d.Grow(len(h.Series)); err != nil { // it has more columns than the header says
		return refuse("%v", err)
	}
	known := make(map[string]bool)
	for _, m := range collector.Catalogue() {
		known[m.Name] = true
	}
	for _, s := range h.Series {
		if metric, _ := fleet.SplitSeries(s); !known[metric] {
			return refuse("it looks at the series %q, which no host of this release has: it was trained on another catalogue", s)
		}
	}
	return nil
}

// openModels opens the registry.
func (p *Plane) openModels(ctx context.Context) error {
	ledgers, err := bus.OpenTable(ctx, p.bus, "MODELS", func(kind string, l registry.Ledger) { p.modelsChanged(registry.Kind(kind), l) })
	if err != nil {
		return err
	}
	files, err := bus.OpenObjects(ctx, p.bus, "MODELFILES")
	if err != nil {
		return err
	}
	p.registry = registry.New(modelStore{ledgers, files}, usableModel)
	if n, err := p.registry.Sweep(ctx); err != nil {
		p.log.Warn("files of models that nobody names could not be looked for", "err", err)
	} else if n > 0 {
		p.log.Info("files of models that nobody names were deleted", "files", n)
	}
	for _, k := range registry.Kinds() {
		p.loadModels(ctx, k)
	}
	return nil
}

// modelsChanged follows the ledger, also where another control plane changed it. It is called
// by the reader of the table, so that what takes longer goes on beside it.
func (p *Plane) modelsChanged(kind registry.Kind, l registry.Ledger) {
	for _, v := range l.Versions {
		p.events.emit("model", v.ID, p.modelView(v))
	}
	select {
	case p.reload <- kind:
	default: // the next look takes this in too
	}
}

// followModels loads what the ledgers name, after each change.
func (p *Plane) followModels(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.reload:
			for _, k := range registry.Kinds() {
				p.loadModels(ctx, k)
			}
		}
	}
}

// loadModels puts champion and shadow of a kind in charge. A champion that cannot be loaded
// does not unseat the one that is: that goes on, or the one before it, or none.
func (p *Plane) loadModels(ctx context.Context, kind registry.Kind) {
	load := func(s registry.State) (*seated, bool) {
		v, h, state, ok, err := p.registry.Current(ctx, kind, s)
		if ctx.Err() != nil { // serve is ending
			return nil, false
		}
		if err != nil {
			p.log.Error("a model cannot be used", "kind", kind, "state", s, "model", v.ID, "err", err)
			p.roster.broken(kind, s, fmt.Sprintf("the %s %s cannot be used: %v", s, v.ID, err))
			return nil, false
		}
		p.roster.broken(kind, s, "")
		if !ok {
			return nil, true
		}
		m, err := newSeated(v, h, state)
		if err != nil {
			p.roster.broken(kind, s, fmt.Sprintf("the %s %s cannot be used: %v", s, v.ID, err))
		}
		return m, err == nil
	}
	champion, ok := load(registry.Champion)
	if !ok && p.roster.of(kind).champion == nil {
		before, _ := p.registry.Before(ctx, kind)
		for _, id := range before {
			h, state, err := p.registry.Open(ctx, id)
			if err != nil {
				continue
			}
			v, err := p.registry.Find(ctx, id)
			if err != nil {
				continue
			}
			if champion, err = newSeated(v, h, state); err == nil {
				p.log.Warn("the champion before it is used", "kind", kind, "model", id)
				ok = true
				break
			}
		}
	}
	if ok {
		if now := p.roster.of(kind).champion; champion != nil && (now == nil || now.version.ID != champion.version.ID) {
			p.restoreDrift(kind, champion)
		}
		p.roster.seat(kind, registry.Champion, champion)
	}
	if shadow, ok := load(registry.Shadow); ok {
		p.roster.seat(kind, registry.Shadow, shadow)
	}
}

func (p *Plane) modelView(v registry.Version) api.Model {
	m := api.Model{ID: v.ID, Kind: string(v.Kind), State: string(v.State), Since: v.Since, By: v.By, Note: v.Note, Trained: v.Trained, Source: v.Source, From: v.From, To: v.To,
		Hosts: v.Hosts, Rows: v.Rows, StepS: v.StepSeconds, Series: v.Series, Code: v.Code, Parent: v.Parent, Metrics: v.Metrics, LeftOut: v.LeftOut, Bytes: v.Bytes, SHA256: v.SHA256}
	if m.Metrics == nil {
		m.Metrics = map[string]float64{}
	}
	// What a failure model sees is measured in time; what an anomaly model has learned is of samples.
	if why := otherStep(v.StepSeconds, p.cfg.Agent.Interval.D()); why != "" && v.Kind == registry.KindAnomaly {
		m.Warnings = []string{why}
	}
	return m
}

// stepsApart is by how much the steps of training and of use may differ without a warning.
const stepsApart = 2

// otherStep says that a model was trained on samples, or means over windows, that were clearly
// closer together or farther apart than those it is used on; "" where they were not, or where
// that is not known (0).
func otherStep(trainedSeconds float64, used time.Duration) string {
	if trainedSeconds == 0 || trainedSeconds <= stepsApart*used.Seconds() && used.Seconds() <= stepsApart*trainedSeconds {
		return ""
	}
	return fmt.Sprintf("it was trained on samples that are %gs apart, and agent.interval is %gs here: what is usual at the one step need not be at the other; "+
		"see what it says as a shadow before it is champion, or train it on samples that are as far apart as here", trainedSeconds, used.Seconds())
}

// Models lists the versions.
func (p *Plane) Models(ctx context.Context) ([]api.Model, error) {
	all, err := p.registry.List(ctx)
	out := []api.Model{}
	for _, v := range all {
		out = append(out, p.modelView(v))
	}
	return out, problem(err)
}

// Model returns a version.
func (p *Plane) Model(ctx context.Context, id string) (api.Model, error) {
	v, err := p.registry.Find(ctx, id)
	return p.modelView(v), problem(err)
}

// ModelFile returns a version's file.
func (p *Plane) ModelFile(ctx context.Context, id string) ([]byte, error) {
	if _, err := p.registry.Find(ctx, id); err != nil {
		return nil, problem(err)
	}
	file, err := p.registry.File(ctx, id)
	return file, problem(err)
}

func change(who, note string) registry.Change {
	return registry.Change{By: who, Note: note, At: time.Now().UTC()}
}

// changed writes a change of the registry down.
func (p *Plane) changedModel(ctx context.Context, who, event string, v registry.Version, err error) (api.Model, error) {
	if err != nil {
		return api.Model{}, problem(err)
	}
	m := p.modelView(v)
	if v.State != registry.Retired {
		for _, w := range m.Warnings {
			p.log.Warn("a model may not suit this fleet", "model", v.ID, "state", v.State, "warning", w)
		}
	}
	p.log.Info("model", "event", event, "model", v.ID, "state", v.State, "by", who)
	return m, problem(p.audit.Append(ctx, who, event, v.ID, map[string]any{"kind": v.Kind, "state": v.State, "note": v.Note, "sha256": v.SHA256}))
}

// ImportModel adds a file as a candidate.
func (p *Plane) ImportModel(ctx context.Context, file []byte, who, note string) (api.Model, error) {
	v, err := p.registry.Add(ctx, file, change(who, note))
	return p.changedModel(ctx, who, "import-model", v, err)
}

// PromoteModel takes a version one step further, or straight to champion.
func (p *Plane) PromoteModel(ctx context.Context, id string, how api.Promotion, who string) (api.Model, error) {
	e, c := registry.Promote, change(who, how.Note)
	if how.Straight {
		e = registry.Enthrone
	}
	c.From = registry.State(how.From)
	v, err := p.registry.Apply(ctx, id, e, c)
	return p.changedModel(ctx, who, string(e)+"-model", v, err)
}

// RetireModel takes a version out of use.
func (p *Plane) RetireModel(ctx context.Context, id, who, note string) (api.Model, error) {
	v, err := p.registry.Apply(ctx, id, registry.Retire, change(who, note))
	return p.changedModel(ctx, who, "retire-model", v, err)
}

// RollbackModel goes back to the champion before.
func (p *Plane) RollbackModel(ctx context.Context, kind, who, note string) (api.Model, error) {
	v, err := p.registry.Rollback(ctx, registry.Kind(kind), change(who, note))
	return p.changedModel(ctx, who, "rollback-model", v, err)
}
