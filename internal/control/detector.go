package control

import (
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/staged"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// detectorName is of the files that keep what was learned of a host; plainName and
// strongName are of what scores it.
const (
	detectorName = "staged/1"
	plainName    = "baseline/1"
	strongName   = "anomaly/1"
)

const (
	// leastStrong and mostStrong bound the samples from which the strong detector learns.
	leastStrong, mostStrong = 360, 3600
	// learnBytes is about the memory that hosts may take which learn at the same time.
	learnBytes = 128 << 20
)

// detectors makes the detectors that predictors use.
type detectors struct {
	cfg   config.Model
	every time.Duration // between samples
	slots *staged.Slots
}

func newDetectors(cfg config.Model, every time.Duration) *detectors {
	d := &detectors{cfg: cfg, every: every}
	perHost := 4 * 40 * d.samples(cfg.LearnFully.D(), leastStrong, mostStrong)
	d.slots = staged.NewSlots(max(1, learnBytes/perHost))
	return d
}

func (d *detectors) samples(length time.Duration, least, most int) int {
	return max(least, min(most, int(length/d.every)))
}

// new makes the detector of a host that is watched for so long before it is scored.
func (d *detectors) new(learn time.Duration) func(fleet.HostID, []string) (predictor.Detector, error) {
	return func(_ fleet.HostID, series []string) (predictor.Detector, error) {
		cfg := staged.Config{
			Learn: max(20, int(learn/d.every)), Again: int(d.cfg.RetrainEvery.D() / d.every), Slots: d.slots,
		}
		if d.cfg.LearnFully > 0 {
			cfg.Strong = d.samples(max(learn, d.cfg.LearnFully.D()), leastStrong, mostStrong)
		}
		own, err := staged.New(cfg)
		if err != nil {
			return nil, err
		}
		made := detector{own}
		return made, made.Grow(series)
	}
}

// detector is what was learned of one host, as the predictor wants it.
type detector struct{ *staged.Detector }

func (d detector) Grow(series []string) error {
	host := make([]bool, len(series))
	for i, s := range series {
		host[i] = !strings.HasSuffix(s, "}")
	}
	return d.Detector.Grow(host)
}

func (d detector) Observe(at time.Time, x []float64) predictor.Observation {
	r := d.Detector.Observe(at, x)
	o := predictor.Observation{Learning: r.Learned < 1, Learned: r.Learned, Tail: r.Rest, Model: plainName}
	if r.Strong {
		// Of two tails the smaller counts, and it was the smaller of two draws.
		o.Tail, o.Model = min(1, 2*min(r.Lead, r.Rest)), strongName
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
	return newDetectors(cfg, every).new(cfg.Learn.D())
}
