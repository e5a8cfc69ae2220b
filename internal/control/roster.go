package control

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// seated is a model that scores live.
type seated struct {
	version registry.Version
	series  []string
	state   []byte // of an anomaly model: each host has a copy
	failure *failure.Model
	// said is what a failure model has said, to be held against what happens.
	said promises

	mu     sync.Mutex
	since  time.Time
	window *drift.Window // nil without a reference
	tails  drift.Tails
	seen   time.Duration // for how long there were samples since then
	last   time.Time     // when it saw the last one
	// asked is for what a training was asked, and when; refused for what one was, but could not be begun.
	asked   map[string]time.Time
	refused map[string]bool
}

func newSeated(v registry.Version, h registry.Header, state []byte) (*seated, error) {
	m := &seated{version: v, series: h.Series, state: state, since: time.Now().UTC(), asked: make(map[string]time.Time), refused: make(map[string]bool)}
	if h.Reference != nil {
		m.window = drift.NewWindow(h.Reference)
	}
	var err error
	if h.Kind == registry.KindFailure {
		m.failure, err = failure.Unmarshal(state)
	}
	return m, err
}

// saw gathers what a sample says of drift; tail is NaN where there is none. host is in which episodes its
// host is.
func (m *seated) saw(x []float64, tail float64, host *drift.Episodes) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.window != nil {
		m.window.Add(x)
	}
	m.tails.Add(tail, host)
	if !m.last.IsZero() {
		m.seen += min(now.Sub(m.last), mostSeen)
	}
	m.last = now
}

// mostSeen is how much of the time between two samples counts as seen: while no host sent any, none is.
const mostSeen = 10 * time.Minute

// judged is how far live data have moved within a window; fresh begins a new one after that, where this one
// is over and they have not.
func (m *seated) judged(l drift.Limits, window time.Duration, fresh bool) (drift.Verdict, time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.window == nil {
		return drift.Verdict{}, m.since, false
	}
	said, seen := m.said.outcomes(), min(1, m.seen.Seconds()/window.Seconds())
	v, since := l.Judge(m.window, seen, max(m.tails.Error(seen), said.Error())), m.since
	if fresh && m.seen >= window && !v.Drifted {
		m.window.Reset()
		m.tails, m.seen, m.since = drift.Tails{}, 0, time.Now().UTC()
	}
	return v, since, true
}

// crew is who scores, of one kind.
type crew struct{ champion, shadow *seated }

// ids are the versions of a crew that has a shadow; champion is "" where it has none.
func (c *crew) ids() (shadow, champion string) {
	if c.champion != nil {
		champion = c.champion.version.ID
	}
	return c.shadow.version.ID, champion
}

// roster is who scores, and how they compare. It is safe for concurrent use.
type roster struct {
	alarm   func() *predictor.Alarm // on anomaly scores
	horizon time.Duration           // for how long ahead an alarm is meant
	crews   map[registry.Kind]*atomic.Pointer[crew]
	// stored is what was compared of a shadow before a restart, if anything; nil where nothing is stored.
	stored func(registry.Kind, *crew) *comparing

	mu       sync.Mutex
	compared map[registry.Kind]*comparing
	trouble  map[string]string
}

// comparing adds up what shadow and champion say of the same samples: it has sums in place of means.
type comparing struct {
	registry.Comparison
	ByHost map[fleet.HostID]*compared `json:"by_host"`
}

// compared is when champion and shadow scored a host, and when an alarm of each began, the
// latest last.
type compared struct {
	From   time.Time      `json:"from"`
	To     time.Time      `json:"to"`
	Alarms [2][]time.Time `json:"alarms"`
}

// mostAlarms is how many alarms of a host are kept of each, to tell whether one came before an
// incident that becomes known later.
const mostAlarms = 64

// foresaw says whether one of them had begun an alarm then, at most a horizon before.
func (c *compared) foresaw(who int, at time.Time, horizon time.Duration) bool {
	return slices.ContainsFunc(c.Alarms[who], func(began time.Time) bool { return !began.After(at) && at.Sub(began) <= horizon })
}

// newRoster returns an empty one, for hosts that are sampled so often.
func newRoster(cfg config.Model, every time.Duration) *roster {
	r := &roster{alarm: func() *predictor.Alarm { return predictor.NewAlarm(cfg.FalseAlarmsPerMonth, every) }, horizon: cfg.Horizon.D(), crews: make(map[registry.Kind]*atomic.Pointer[crew]), compared: make(map[registry.Kind]*comparing), trouble: make(map[string]string)}
	for _, k := range registry.Kinds() {
		r.crews[k] = &atomic.Pointer[crew]{}
		r.crews[k].Store(&crew{})
	}
	return r
}

func (r *roster) of(k registry.Kind) *crew { return r.crews[k].Load() }

// seat puts a model, or none, in charge. One that is already there stays as it is.
func (r *roster) seat(k registry.Kind, s registry.State, m *seated) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := *r.of(k)
	at := &now.champion
	if s == registry.Shadow {
		at = &now.shadow
	}
	if *at != nil && m != nil && (*at).version.ID == m.version.ID || *at == nil && m == nil {
		return
	}
	*at = m
	r.crews[k].Store(&now)
	delete(r.compared, k)
	if now.shadow != nil {
		if r.stored != nil {
			r.compared[k] = r.stored(k, &now)
		}
		if r.compared[k] == nil {
			c := &comparing{ByHost: make(map[fleet.HostID]*compared)}
			c.Shadow, c.Champion = now.ids()
			c.Since = time.Now().UTC()
			r.compared[k] = c
		}
	}
}

// broken notes why a model cannot be used, "" where it can.
func (r *roster) broken(k registry.Kind, s registry.State, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key := string(k) + " " + string(s); why == "" {
		delete(r.trouble, key)
	} else {
		r.trouble[key] = why
	}
}

// troubles says what cannot be used, "" where all can.
func (r *roster) troubles() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := ""
	for _, k := range slices.Sorted(maps.Keys(r.trouble)) {
		if out != "" {
			out += "; "
		}
		out += r.trouble[k]
	}
	return out
}

// alarm follows a probability over its threshold: three samples in a row begin it, fifteen
// calm ones end it.
type alarm struct {
	over, calm int
	on         bool
}

func (a *alarm) see(score, threshold float64) (begins bool) {
	if score >= threshold {
		if a.over++; a.over >= 3 {
			begins, a.on, a.calm = !a.on, true, 0
		}
		return begins
	}
	a.over = 0
	if score >= threshold/2 {
		a.calm = 0
	} else if a.calm++; a.calm >= 15 {
		a.on = false
	}
	return false
}

// compare takes what both say of a sample, and whether an alarm of each begins.
func (r *roster) compare(k registry.Kind, host fleet.HostID, at time.Time, champion, shadow float64, alarms [2]bool) {
	if math.IsNaN(champion) || math.IsNaN(shadow) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.compared[k]
	if c == nil {
		return
	}
	h := c.ByHost[host]
	if h == nil {
		h = &compared{From: at}
		c.ByHost[host] = h
	}
	h.To = at
	c.Samples++
	c.MeanChampion, c.MeanShadow = c.MeanChampion+champion, c.MeanShadow+shadow
	c.MeanDifference, c.MeanAbsolute = c.MeanDifference+shadow-champion, c.MeanAbsolute+math.Abs(shadow-champion)
	for i, count := range []*int64{&c.AlarmsChampion, &c.AlarmsShadow} {
		if alarms[i] {
			*count++
			h.Alarms[i] = append(h.Alarms[i][max(0, len(h.Alarms[i])-mostAlarms+1):], at)
		}
	}
}

// comparisons are the means so far, and who foresaw which of the incidents. What an execution
// averted does not count: what is in use had said so itself, and nobody knows what would have come.
// What begins within a horizon of an incident of the same host counts as the same.
func (r *roster) comparisons(incidents []fleet.Incident) map[registry.Kind]registry.Comparison {
	incidents = slices.DeleteFunc(slices.Clone(incidents), func(i fleet.Incident) bool { return !i.Failed && i.Source == fleet.IncidentExecution })
	slices.SortFunc(incidents, func(a, b fleet.Incident) int { return a.From.Compare(b.From) })
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[registry.Kind]registry.Comparison)
	for k, c := range r.compared {
		v, n := c.Comparison, max(1, float64(c.Samples))
		v.Hosts = len(c.ByHost)
		v.MeanChampion, v.MeanShadow, v.MeanDifference, v.MeanAbsolute = v.MeanChampion/n, v.MeanShadow/n, v.MeanDifference/n, v.MeanAbsolute/n
		last := make(map[fleet.HostID]time.Time)
		for _, i := range incidents {
			h := c.ByHost[i.Host]
			if h == nil || i.From.Before(h.From) || i.From.Sub(h.To) > r.horizon || !last[i.Host].IsZero() && i.From.Sub(last[i.Host]) <= r.horizon {
				continue
			}
			last[i.Host] = i.From
			v.Incidents++
			if h.foresaw(0, i.From, r.horizon) {
				v.ForeseenChampion++
			}
			if h.foresaw(1, i.From, r.horizon) {
				v.ForeseenShadow++
			}
		}
		out[k] = v
	}
	return out
}

// chair is one host's place at an anomaly model: a copy of it with the host's own state.
type chair struct {
	model   *seated
	columns []int // of the host, for the model's
	scorer  *stream.Detector
	x       []float64
	width   int // of the host when it was made
	// episodes of rare scores in which the host is.
	episodes drift.Episodes
}

// sit makes the place, or none where the host lacks a series of the model or the model is nil.
func sit(m *seated, series []string) *chair {
	c := &chair{model: m, width: len(series)}
	if m == nil {
		return c
	}
	at := make(map[string]int, len(series))
	for i, s := range series {
		at[s] = i
	}
	for _, s := range m.series {
		i, ok := at[s]
		if !ok {
			return c
		}
		c.columns = append(c.columns, i)
	}
	d, err := stream.Unmarshal(anomaly.Method, m.state)
	if err != nil { // it was read before
		return c
	}
	d.Reset()
	c.scorer, c.x = d, make([]float64, len(c.columns))
	return c
}

// observe scores a sample; ok is false where the model cannot score the host.
func (c *chair) observe(at time.Time, x []float64) (tail float64, ok bool) {
	if c.scorer == nil {
		return 1, false
	}
	for i, k := range c.columns {
		c.x[i] = x[k]
	}
	_, tail = c.scorer.Observe(at, c.x)
	c.model.saw(c.x, tail, &c.episodes)
	return tail, true
}

func (c *chair) explain(dst []float64) float64 {
	clear(dst)
	total := c.scorer.Explain(c.x)
	for i, k := range c.columns {
		dst[k] = c.x[i]
	}
	return total
}

// forecast is one host's place at the failure models.
type forecast struct {
	features *feature.Extractor
	x        []float64
	p        []float64
	s        []float64
	crew     *crew    // who scored last
	alarms   [2]alarm // of the champion, and of the shadow
}

// failureAlarm is the probability from which a failure model's word counts as an alarm.
const failureAlarm = 0.5

func newForecast() *forecast {
	return &forecast{features: feature.New(), x: make([]float64, feature.Size)}
}

// soon is the horizon of fleet.Prediction.SoonProbability.
const soon = 5 * time.Minute

// foretold is what a failure model says of a host.
type foretold struct {
	within    float64 // probability of a failure within the horizon that is nearest to the wanted one
	horizon   time.Duration
	soon      float64 // within five minutes, 0 where the model has no such horizon
	odd       float64 // that anything is wrong
	signature fleet.Signature
	sure      float64 // that it is this signature, if anything is wrong
}

// improve lets the champion of the failure models say how probable a failure is, where it
// says more than the evidence does, and what is wrong, where that was not seen directly; and the
// shadow be compared with what is said.
func (f *forecast) improve(r *roster, out *fleet.Prediction) {
	c := r.of(registry.KindFailure)
	if c.champion == nil && c.shadow == nil || out.State != fleet.PredictionScoring {
		return
	}
	f.features.Vector(f.x)
	said := out.FailureProbability
	if m := c.champion; m != nil {
		m.saw(f.x, math.NaN(), nil)
		t := f.ask(m.failure, out.HorizonSeconds)
		said = t.within
		if !out.Simulated {
			m.said.say(out.Host, promise{out.Time, t.horizon, t.within})
		}
		out.FailureProbability = max(out.FailureProbability, t.within)
		out.SoonProbability, out.FaultProbability = t.soon, max(t.odd, out.FailureProbability)
		if t.odd >= 0.5 && out.SignatureProbability < 1 {
			if out.Signature != t.signature {
				out.Signature, out.Culprit = t.signature, ""
			}
			out.SignatureProbability, out.Anomalous = t.sure, true
			out.Evidence = slices.Insert(out.Evidence, 0, t.sentence(m.version.ID))
		}
	}
	if f.crew != c { // an alarm of one that is gone would hide that of its successor
		f.crew, f.alarms = c, [2]alarm{}
	}
	if m := c.shadow; m != nil {
		p := f.ask(m.failure, out.HorizonSeconds).within
		r.compare(registry.KindFailure, out.Host, out.Time, said, p, [2]bool{f.alarms[0].see(said, failureAlarm), f.alarms[1].see(p, failureAlarm)})
	}
}

func (t foretold) sentence(model string) string {
	text := fmt.Sprintf("the failure model %s sees the pattern of %s, %.0f %% sure", model, t.signature, 100*t.sure)
	if t.soon > 0 {
		text += fmt.Sprintf("; a failure within five minutes has the probability %.2f", t.soon)
	}
	return text
}

// ask returns what a model says of the host now.
func (f *forecast) ask(m *failure.Model, horizon float64) foretold {
	horizons, signatures := m.Horizons(), m.Signatures()
	f.p, f.s = slices.Grow(f.p[:0], len(horizons))[:len(horizons)], slices.Grow(f.s[:0], len(signatures))[:len(signatures)]
	m.Failure(f.p, f.x)
	t, best := foretold{odd: m.Odd(f.x)}, 0
	for i, h := range horizons {
		if math.Abs(math.Log(h.Seconds()/horizon)) < math.Abs(math.Log(horizons[best].Seconds()/horizon)) {
			best = i
		}
		if h == soon {
			t.soon = f.p[i]
		}
	}
	is := m.Signature(f.s, f.x)
	t.within, t.horizon, t.signature, t.sure = f.p[best], horizons[best], fleet.Signature(signatures[is]), f.s[is]
	return t
}
