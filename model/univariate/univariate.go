// Package univariate watches one metric and says when it does something that it has not
// done before. It is streaming: one pass, constant memory, no allocation, and a score
// uses no later sample.
//
// A sample is looked at in several views: the value itself, its distance from the hours
// before, from what is usual at this time of the day, and from that over hours, its unrest,
// and how long it has been busy. Of each view and each of its two directions the highest peaks
// of the past are kept. The excesses over the lowest of them follow a generalised Pareto
// distribution (peaks over threshold: Pickands, "Statistical inference using extreme order
// statistics", 1975; for streams Siffer et al., KDD 2017), which gives how many peaks as
// high as the new one the past should have had. The rarest view counts. Since that number
// refers to the whole past, a longer past asks for a more unusual sample, and the number of
// false alarms grows with the logarithm of the time instead of the time.
package univariate

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Config sets up a [Detector].
type Config struct {
	// Learn is how many samples are watched before there are alarms. It is also the unit
	// for how long an alarm lasts and how long peaks are remembered. From 20 to 1e9; what
	// the metric does every day is known after two or three days.
	Learn int
	// Surprise is the least surprise of an alarm: minus the logarithm of how many peaks as
	// unusual the past should have had. 0 means 0.5.
	Surprise float64
	// Quiet is how long an alarm is not repeated, as a share of Learn, 1000 at most. 0 means
	// 0.25.
	Quiet float64
	// Without names views that do not count: see [Views].
	Without []string
}

// Views lists the names of the views.
func Views() []string {
	out := make([]string, viewCount)
	for i, v := range viewNames {
		out[i] = v.name
	}
	return out
}

const (
	leastLearn = 20 // below, there are no peaks to compare with
	mostLearn  = 1e9
	mostQuiet  = 1000
)

// What was tuned, and on what, is in docs/nab.md.
const (
	apart    = 0.1 // of Learn: peaks that are closer belong together
	memory   = 20  // times Learn: older peaks are forgotten
	burn     = 20  // first samples, which make no peaks
	escalate = 1.5 // by how much a surprise has to be larger to be a new alarm at once
)

// Detector scores the samples of one metric. It is not safe for concurrent use.
type Detector struct {
	cfg   Config
	views views
	tails [viewCount][2]tail
	// without says which views do not count.
	without [viewCount]bool
	n       int64 // samples seen
	last    verdict

	until int64   // sample up to which an alarm lasts
	top   float64 // largest surprise of that alarm
}

// verdict is what came out for a sample.
type verdict struct {
	surprise float64
	view     int
	low      bool
	alarm    bool
}

// New returns a detector.
func New(cfg Config) (*Detector, error) {
	if cfg.Learn < leastLearn || cfg.Learn > mostLearn {
		return nil, fmt.Errorf("univariate detector: %d samples to learn: from %d to %.0f are possible", cfg.Learn, leastLearn, mostLearn)
	}
	if !(cfg.Surprise >= 0 && cfg.Quiet >= 0 && cfg.Quiet <= mostQuiet) {
		return nil, fmt.Errorf("univariate detector: a surprise of %v and a quiet time of %v: neither may be less than 0, nor the quiet time over %d", cfg.Surprise, cfg.Quiet, mostQuiet)
	}
	if cfg.Surprise == 0 {
		cfg.Surprise = 0.5
	}
	if cfg.Quiet == 0 {
		cfg.Quiet = 0.25
	}
	d := &Detector{cfg: cfg, views: newViews(), until: -1}
	for _, name := range cfg.Without {
		i := slices.Index(Views(), name)
		if i < 0 {
			return nil, fmt.Errorf("univariate detector: there is no view %q, only %s", name, strings.Join(Views(), ", "))
		}
		d.without[i] = true
	}
	return d, nil
}

// least is a share of Learn in samples.
func (c Config) least(share float64, samples int64) int64 {
	return max(samples, int64(share*float64(c.Learn)))
}

// mostValue is where values end, so that sums of them stay finite.
const mostValue = 1e150

// Observe scores a sample; NaN and infinities are missing and change nothing. learned is
// the share of the learning period that is done. expected is how many peaks at least as
// unusual as this sample the past should have had: 1 and more is ordinary, 0.1 says that
// a past ten times as long would be needed to expect one. It is +Inf for a missing sample and
// while there is nothing to compare with.
func (d *Detector) Observe(t time.Time, value float64) (learned, expected float64) {
	d.last = verdict{surprise: math.Inf(-1)}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return d.learned(), math.Inf(1)
	}
	value = max(-mostValue, min(mostValue, value))
	x := d.views.observe(t, value)
	separate, forget := d.cfg.least(apart, 2), int64(memory*d.cfg.Learn)
	for i := range x {
		if d.without[i] {
			continue
		}
		for side, v := range [2]float64{x[i], -x[i]} {
			s := d.tails[i][side].observe(v, d.n, separate, forget)
			if s > d.last.surprise {
				d.last.surprise, d.last.view, d.last.low = s, i, side == 1
			}
		}
	}
	if d.n >= int64(d.cfg.Learn) {
		d.decide()
	}
	d.n++
	return d.learned(), math.Exp(-d.last.surprise)
}

// decide makes an alarm of a surprise, once for what lasts.
func (d *Detector) decide() {
	s := d.last.surprise
	switch {
	case s < d.cfg.Surprise:
		return
	case d.n > d.until:
	case s > d.top+escalate:
	default:
		return
	}
	d.until, d.top = d.n+d.cfg.least(d.cfg.Quiet, 3), s
	d.last.alarm = true
}

func (d *Detector) learned() float64 { return min(float64(d.n)/float64(d.cfg.Learn), 1) }

// Alarm reports whether an alarm began with the last sample, and the view that it came
// from. What lasts gives one alarm, and a further one only if it gets much worse.
func (d *Detector) Alarm() (began bool, why string) {
	if !d.last.alarm {
		return false, ""
	}
	name := viewNames[d.last.view]
	if d.last.low {
		return true, name.low
	}
	return true, name.high
}
