package control

import (
	"math"
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/fast"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/model/staged"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// detectorName is of the files that keep what was learned of a host; plainName and those of
// strong are of what scores it.
const (
	detectorName = "staged/1"
	plainName    = "baseline/1"
)

// strong are the stronger detectors, by the configuration's name.
var strong = map[string]struct {
	name   string
	method stream.Method
}{"default": {"anomaly/1", anomaly.Method}, "fast": {"fast/1", fast.Method}}

const (
	// leastStrong and mostStrong bound the samples from which the strong detector learns.
	leastStrong, mostStrong = 360, 3600
	// learnBytes is about the memory that hosts may take which learn at the same time.
	learnBytes = 128 << 20
)

// detectors makes the detectors that predictors use.
type detectors struct {
	cfg    config.Model
	every  time.Duration // between samples
	slots  *staged.Slots
	roster *roster
}

func newDetectors(cfg config.Model, every time.Duration, r *roster) *detectors {
	d := &detectors{cfg: cfg, every: every, roster: r}
	perHost := 4 * 40 * d.samples(cfg.LearnFully.D(), leastStrong, mostStrong)
	d.slots = staged.NewSlots(max(1, learnBytes/perHost))
	return d
}

func (d *detectors) samples(length time.Duration, least, most int) int {
	return max(least, min(most, int(length/d.every)))
}

// new makes the detector of a host that is watched for so long before it is scored.
func (d *detectors) new(learn time.Duration) func(fleet.HostID, []string) (predictor.Detector, error) {
	return func(host fleet.HostID, series []string) (predictor.Detector, error) {
		cfg := staged.Config{
			Learn: max(20, int(learn/d.every)), Again: int(d.cfg.RetrainEvery.D() / d.every), Slots: d.slots, Interval: d.every,
			Method: strong[d.cfg.Detector].method,
		}
		if d.cfg.LearnFully > 0 {
			cfg.Strong = d.samples(max(learn, d.cfg.LearnFully.D()), leastStrong, mostStrong)
		}
		own, err := staged.New(cfg)
		if err != nil {
			return nil, err
		}
		made := &detector{Detector: own, host: host, roster: d.roster, strong: strong[d.cfg.Detector].name}
		return made, made.Grow(series)
	}
}

// detector is what was learned of one host, as the predictor wants it, and the host's places
// at the fleet's champion and shadow.
type detector struct {
	*staged.Detector
	host   fleet.HostID
	roster *roster
	strong string // name of the stronger detector
	series []string

	champion, shadow *chair
	alarms           [2]begins // of what is in use, and of the shadow
	led              bool      // the champion had the smaller tail of the last sample
}

func (d *detector) Grow(series []string) error {
	host := make([]bool, len(series))
	for i, s := range series {
		host[i] = !strings.HasSuffix(s, "}")
	}
	d.series = series
	return d.Detector.Grow(host)
}

// seat takes the places at the models that score now.
func (d *detector) seat() {
	c := d.roster.of(registry.KindAnomaly)
	if d.champion == nil || d.champion.model != c.champion || d.champion.scorer == nil && d.champion.width != len(d.series) {
		d.champion = sit(c.champion, d.series)
	}
	if d.shadow == nil || d.shadow.model != c.shadow || d.shadow.scorer == nil && d.shadow.width != len(d.series) {
		d.shadow, d.alarms = sit(c.shadow, d.series), [2]begins{{alarm: d.roster.alarm()}, {alarm: d.roster.alarm()}}
	}
}

func (d *detector) Observe(at time.Time, x []float64) predictor.Observation {
	r := d.Detector.Observe(at, x)
	d.seat()
	o := predictor.Observation{Learning: r.Learned < 1, Learned: r.Learned, Tail: r.Rest, Model: plainName}
	if r.Strong {
		o.Tail, o.Model = both(r.Lead, r.Rest), d.strong
	}
	d.led = false
	if tail, ok := d.champion.observe(at, x); ok {
		// It scores from the first sample on, also while the host itself is being learned.
		d.led = tail <= r.Rest
		o = predictor.Observation{Learned: 1, Tail: both(tail, r.Rest), Model: d.champion.model.version.ID}
	}
	if tail, ok := d.shadow.observe(at, x); ok && !o.Learning {
		used, would := -math.Log10(max(o.Tail, 1e-300)), -math.Log10(max(both(tail, r.Rest), 1e-300))
		d.roster.compare(registry.KindAnomaly, d.host, at, used, would, [2]bool{d.alarms[0].see(used), d.alarms[1].see(would)})
	}
	return o
}

// subsystem is the group of the catalogue that a metric belongs to.
var subsystem = func() func(metric string) string {
	groups := sync.OnceValue(func() map[string]string {
		out := make(map[string]string)
		for _, m := range collector.Catalogue() {
			out[m.Name] = m.Group
		}
		return out
	})
	return func(metric string) string {
		if g, ok := groups()[metric]; ok {
			return g
		}
		return "other"
	}
}()

// Detectors returns what makes the detectors of serve, for hosts that are sampled so often,
// to be judged.
func Detectors(cfg config.Model, every time.Duration) func(fleet.HostID, []string) (predictor.Detector, error) {
	return newDetectors(cfg, every, newRoster(cfg, every)).new(cfg.Learn.D())
}

// begins tells when an alarm begins.
type begins struct {
	alarm *predictor.Alarm
	on    bool
}

func (b *begins) see(score float64) bool {
	before := b.on
	b.on = b.alarm.Observe(score)
	return b.on && !before
}

// both is the tail of the smaller of two: it was the smaller of two draws.
func both(a, b float64) float64 { return min(1, 2*min(a, b)) }

func (d *detector) Explain(dst []float64) float64 {
	switch {
	case d.champion == nil || d.champion.scorer == nil:
		return d.Detector.Explain(dst)
	case d.led:
		return d.champion.explain(dst)
	}
	return d.Detector.ExplainRest(dst)
}
