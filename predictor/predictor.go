// Package predictor turns a host's samples into predictions, and predictions
// into recommendations. It keeps a small state for each host (its detector and
// the trends of its services) and knows nothing of how an action is done.
package predictor

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Observation is what a detector says of one sample.
type Observation struct {
	// Learning is true while the host's normal is not known yet, and Learned the
	// share of that period which is done, 0..1.
	Learning bool
	Learned  float64
	// Tail is the calibrated probability that a healthy host's sample is at
	// least as unusual as this one.
	Tail float64
	// Model names what gave the tail, "" for [Config.Model].
	Model string
}

// Detector scores the samples of one host, in order. It is not safe for
// concurrent use.
type Detector interface {
	// Observe scores x, one value for each column; NaN is missing.
	Observe(at time.Time, x []float64) Observation
	// Explain fills dst with each column's part of the last score and returns
	// the score; the parts add up to it.
	Explain(dst []float64) float64
	// Grow adds columns; those that exist keep what they learned. series names all of
	// them, the old ones first.
	Grow(series []string) error
	// The state, for a detector of as many columns. Unmarshalling checks that.
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

// Config sets up a [Predictor].
type Config struct {
	// NewDetector makes the detector of a host, with a column for each series.
	NewDetector func(host fleet.HostID, series []string) (Detector, error)
	// Model names the detector in predictions.
	Model string
	// FalseAlarms is the number of alarms that a healthy host may give in 30 days.
	FalseAlarms float64
	// Subsystem names the subsystem that a metric belongs to, for what the shares of
	// a score add up to; nil takes what is before the first underscore.
	Subsystem func(metric string) string
	// Interval is the time between the samples of a host.
	Interval time.Duration
	// Horizon is the time ahead for which the failure probability is stated.
	Horizon time.Duration
}

const (
	topSeries = 5
	// settleFor is how long services that were restarted take to be as usual, and settleSamples for how many
	// samples a detector's windows still hold what was before.
	settleFor     = 90 * time.Second
	settleSamples = 120
)

// Predictor holds the state of one host. It is not safe for concurrent use.
type Predictor struct {
	cfg  Config
	host fleet.HostID

	detector Detector
	schema   *fleet.Schema
	columns  map[string]int // series to the detector's column
	order    []int          // the current schema's positions to columns, -1 for none
	names    []string       // column to series
	x        []float64
	shares   []float64
	systems  []string  // of the columns, each once
	system   []int     // column to its system
	weights  []float64 // of the systems
	boot     string
	last     time.Time
	// learnedUntil is the last sample that a restored model knows.
	learnedUntil time.Time

	evidence evidence
	alarm    *Alarm
	// After an action the host warms up: until then a score alone is no alarm.
	settling     bool
	settledAfter time.Time
}

// New returns the predictor of one host.
func New(host fleet.HostID, cfg Config) (*Predictor, error) {
	if cfg.NewDetector == nil || cfg.FalseAlarms <= 0 || cfg.Interval <= 0 || cfg.Horizon <= 0 {
		return nil, fmt.Errorf("predictor of %s: a detector, false alarms, interval and horizon must be given", host)
	}
	return &Predictor{
		cfg: cfg, host: host, columns: make(map[string]int),
		alarm: NewAlarm(cfg.FalseAlarms, cfg.Interval),
	}, nil
}

// Threshold is the anomaly score from which a sample counts as an alarm; it follows the
// host, see [Alarm].
func (p *Predictor) Threshold() float64 { return p.alarm.Threshold() }

// ErrKnown is returned for a sample that a restored model has learned from already.
var ErrKnown = errors.New("the model knows this sample")

// Observe takes the next sample of the host and returns the prediction. A sample
// that is not newer than the last is refused: it was scored already, or its
// clock stepped back and will be taken once it has caught up.
func (p *Predictor) Observe(s *fleet.Sample) (fleet.Prediction, error) {
	if s.Host != p.host {
		return fleet.Prediction{}, fmt.Errorf("sample of %s given to the predictor of %s", s.Host, p.host)
	}
	if !s.Time.After(p.last) && p.last.Sub(s.Time) < time.Hour {
		return fleet.Prediction{}, fmt.Errorf("sample of %s at %s is not newer than the last one at %s", s.Host, s.Time.Format(time.RFC3339Nano), p.last.Format(time.RFC3339Nano))
	}
	p.last = s.Time
	if s.Boot != p.boot {
		p.boot = s.Boot
		p.evidence.restart()
	}
	if err := p.align(s.Schema); err != nil {
		return fleet.Prediction{}, err
	}
	if !s.Time.After(p.learnedUntil) && p.learnedUntil.Sub(s.Time) < time.Hour {
		p.evidence.observe(s)
		return fleet.Prediction{}, ErrKnown
	}
	for i := range p.x {
		p.x[i] = math.NaN()
	}
	for i, v := range s.Values {
		if c := p.order[i]; c >= 0 {
			p.x[c] = v
		}
	}
	o := p.detector.Observe(s.Time, p.x)
	p.evidence.observe(s)

	out := fleet.Prediction{
		Host: s.Host, Time: s.Time, Simulated: s.Simulated, State: fleet.PredictionScoring, Learned: 1,
		AnomalyScore: surprise(o.Tail), HorizonSeconds: p.cfg.Horizon.Seconds(),
		Signature: fleet.SignatureNone, Model: p.cfg.Model, Evidence: []string{}, Contributions: []fleet.Contribution{},
		Subsystems: []fleet.SubsystemShare{},
	}
	if o.Model != "" {
		out.Model = o.Model
	}
	if o.Learning {
		out.State, out.Learned, out.AnomalyScore = fleet.PredictionLearning, o.Learned, 0
	} else {
		out.Contributions, out.Subsystems = p.contributions()
	}
	finding := p.evidence.judge(p.cfg.Horizon)
	if p.settling {
		p.settling, p.settledAfter = false, s.Time.Add(p.settle())
	}
	if s.Time.After(p.settledAfter) || p.settledAfter.Sub(s.Time) > p.settle() {
		if o.Learning {
			p.alarm.rest()
		} else {
			p.alarm.Observe(out.AnomalyScore)
		}
	}
	out.Anomalous = p.alarm.on || finding.signature != fleet.SignatureNone
	p.conclude(&out, finding)
	return out, nil
}

// surprise is -log10 of a probability, finite.
func surprise(tail float64) float64 {
	if math.IsNaN(tail) {
		return 0
	}
	return -math.Log10(min(max(tail, 1e-300), 1))
}

// settle is how long after an action a score alone is no alarm.
func (p *Predictor) settle() time.Duration { return max(settleFor, settleSamples*p.cfg.Interval) }

// Recovered tells that an action has just ended well: what was seen before it
// says nothing of the host any more, and for a while an unusual sample alone is no
// alarm, since restarted services have yet to fill their caches, and the detector remembers the
// minutes before. What is seen
// directly, such as a failed health check, counts at once.
func (p *Predictor) Recovered() {
	p.evidence.recovered()
	p.alarm.reset()
	p.settling = true
}

// conclude states signature, probability and evidence. What was seen directly
// (a failed health check, a trend) goes before what the score suggests.
func (p *Predictor) conclude(out *fleet.Prediction, f finding) {
	if f.signature != fleet.SignatureNone {
		out.Signature, out.Culprit, out.FailureProbability, out.SignatureProbability = f.signature, f.culprit, f.probability, 1
		out.Evidence = append(out.Evidence, f.sentences...)
	}
	if p.alarm.on && out.Signature == fleet.SignatureNone {
		out.Signature, out.Culprit = suspect(out.Contributions)
		// An unusual host without a known cause: Netdata and Azure Narya both
		// report that most such alarms pass by themselves, so it stays well
		// under one half.
		out.FailureProbability = 0.25
	}
	if out.AnomalyScore >= p.alarm.Threshold() {
		out.Evidence = append(out.Evidence, fmt.Sprintf(
			"the sample is as unusual as one in 10^%.1f of this host's normal ones (alarm from 10^%.1f)", out.AnomalyScore, p.alarm.Threshold()))
	}
}

// align maps the columns of a schema to the detector's, which only grow.
func (p *Predictor) align(schema *fleet.Schema) error {
	if schema == p.schema && p.detector != nil {
		return nil
	}
	order := make([]int, schema.Len())
	for i, name := range schema.Names() {
		if unscored[name] {
			order[i] = -1
			continue
		}
		c, ok := p.columns[name]
		if !ok {
			c = len(p.names)
			p.columns[name] = c
			p.names = append(p.names, name)
		}
		order[i] = c
	}
	var err error
	if p.detector == nil {
		p.detector, err = p.cfg.NewDetector(p.host, p.names)
	} else if len(p.names) > len(p.x) {
		err = p.detector.Grow(p.names)
	}
	if err != nil {
		return fmt.Errorf("detector of %s: %w", p.host, err)
	}
	p.schema, p.order = schema, order
	p.x = make([]float64, len(p.names))
	p.shares = make([]float64, len(p.names))
	for _, name := range p.names[len(p.system):] {
		metric, _ := fleet.SplitSeries(name)
		system, _, _ := strings.Cut(metric, "_")
		if p.cfg.Subsystem != nil {
			system = p.cfg.Subsystem(metric)
		}
		at := slices.Index(p.systems, system)
		if at < 0 {
			at = len(p.systems)
			p.systems = append(p.systems, system)
		}
		p.system = append(p.system, at)
	}
	p.weights = make([]float64, len(p.systems))
	return nil
}

// contributions splits the last score among the series, of which it returns the first few,
// and among all subsystems.
func (p *Predictor) contributions() ([]fleet.Contribution, []fleet.SubsystemShare) {
	total := p.detector.Explain(p.shares)
	if !(total > 0) {
		return []fleet.Contribution{}, []fleet.SubsystemShare{}
	}
	clear(p.weights)
	for c, share := range p.shares {
		p.weights[p.system[c]] += share / total
	}
	systems := make([]fleet.SubsystemShare, 0, len(p.systems))
	for i, w := range p.weights {
		if w != 0 {
			systems = append(systems, fleet.SubsystemShare{Subsystem: p.systems[i], Share: w})
		}
	}
	slices.SortFunc(systems, func(a, b fleet.SubsystemShare) int { return cmp.Compare(b.Share, a.Share) })
	var top [topSeries]int
	n := 0
	for c := range p.shares {
		at, _ := slices.BinarySearchFunc(top[:n], p.shares[c], func(i int, share float64) int { return cmp.Compare(share, p.shares[i]) })
		if at == topSeries {
			continue
		}
		n = min(n+1, topSeries)
		copy(top[at+1:n], top[at:n-1])
		top[at] = c
	}
	out := make([]fleet.Contribution, 0, n)
	for _, c := range top[:n] {
		if p.shares[c] <= 0 {
			break
		}
		contribution := fleet.Contribution{Series: p.names[c], Share: p.shares[c] / total}
		if v := p.x[c]; !math.IsNaN(v) {
			contribution.Value = &v
		}
		out = append(out, contribution)
	}
	return out, systems
}
