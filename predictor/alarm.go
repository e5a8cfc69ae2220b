package predictor

import (
	"math"
	"time"
)

// confirm is how many samples in a row must agree before an alarm begins, so
// that one odd sample wakes nobody; clearAfter is how many calm ones end it.
const (
	confirm    = 3
	clearAfter = 15
)

// What a host's own episodes teach its threshold.
const (
	usual    = 1.6  // score from which an episode counts, one sample in 40; at most half of the nominal threshold
	prior    = 720  // samples whose episodes are taken for granted
	memory   = 30.0 // days after which an episode counts 1/e
	mostOver = 1.0  // decades over the nominal threshold that an episode counts
	mostBend = 3.0  // decades that the threshold may be away from the nominal one

	leastNominal = 0.5  // nominal threshold
	mostExcess   = 30.0 // decades that an episode can have counted
)

// Alarm is what anomaly scores alone make of a host: it begins when so many samples in a
// row are over the threshold, and ends when so many in a row are well under it.
//
// The nominal threshold is the score that as many samples of a healthy host reach as
// alarms are asked for. But samples over it come together, and some hosts do each week what they did not
// do while they were learned. So the threshold follows the host's own episodes, as the
// declustered peaks of a series are used for its return level (Coles, "An Introduction to
// Statistical Modeling of Extreme Values", 2001, chapter 4): from the rate of episodes over
// a much lower level, of which a host has some each day, and the mean by which their peaks
// exceed it, exponentially distributed, follows the level that is exceeded as often as is
// asked for. An episode counts once, however long it lasts, and by no more than a decade
// over the nominal threshold, so that an incident teaches little; one that ended with an
// action teaches nothing.
//
// The zero value is of no use, see [NewAlarm]. It is not safe for concurrent use.
type Alarm struct {
	asked     float64 // in 30 days
	step      float64 // of 30 days, a sample
	nominal   float64
	threshold float64
	level     float64 // from where an episode counts
	known     AlarmState

	last    [confirm]float64
	over    int // samples in a row over the threshold
	calm    int // samples in a row well under it
	on      bool
	episode bool
	peak    float64 // of the episode, each sample counting as the least of the last ones
	quiet   int     // samples in a row well under the episode's level
}

// AlarmState is what the episodes of a host have taught, the older the less.
type AlarmState struct {
	Level    float64 `json:"level"`    // from where an episode counted
	Months   float64 `json:"months"`   // that were watched, of 30 days
	Episodes float64 `json:"episodes"` // in them
	Excess   float64 `json:"excess"`   // sum of their peaks over the level, in decades
}

func (s AlarmState) valid() bool {
	for _, v := range []float64{s.Level, s.Months, s.Episodes, s.Excess} {
		if math.IsNaN(v) || v < 0 || v > 1e9 {
			return false
		}
	}
	return s.Excess <= s.Episodes*mostExcess
}

// NewAlarm returns the alarm of a host that is sampled so often and for which so many
// false alarms are asked for in 30 days. Both must be positive.
func NewAlarm(perMonth float64, interval time.Duration) *Alarm {
	a := &Alarm{asked: perMonth, step: float64(interval) / float64(30*24*time.Hour)}
	a.nominal = max(leastNominal, -math.Log10(perMonth*a.step))
	a.threshold, a.level = a.nominal, min(usual, a.nominal/2)
	a.known.Level = a.level
	return a
}

// Threshold is the score from which a sample counts by now.
func (a *Alarm) Threshold() float64 { return a.threshold }

// Observe takes the next score, which is -log10 of a tail probability, and says whether the
// alarm is on.
func (a *Alarm) Observe(score float64) bool {
	copy(a.last[:], a.last[1:])
	a.last[confirm-1] = score
	if score >= a.threshold {
		a.over++
	} else {
		a.over = 0
	}
	switch {
	case a.over >= confirm:
		a.on, a.calm = true, 0
	case score < a.threshold/2:
		a.calm++
		if a.calm >= clearAfter {
			a.on = false
		}
	default:
		a.calm = 0
	}
	a.learn(score)
	return a.on
}

// learn follows the episodes.
func (a *Alarm) learn(score float64) {
	keep := 1 - a.step*30/memory
	a.known.Months = a.known.Months*keep + a.step
	a.known.Episodes *= keep
	a.known.Excess *= keep
	lasts := min(a.last[0], a.last[1], a.last[2])
	switch {
	case a.episode:
		a.peak = max(a.peak, lasts)
		if a.quiet++; score >= a.level/2 {
			a.quiet = 0
		}
		if a.quiet >= clearAfter {
			a.known.Episodes++
			a.known.Excess += min(a.peak, a.nominal+mostOver) - a.level
			a.episode = false
		}
	case lasts >= a.level:
		a.episode, a.peak, a.quiet = true, lasts, 0
	}
	a.bend()
}

// bend moves the threshold to where the episodes put it.
func (a *Alarm) bend() {
	// What is taken for granted is a score that is calibrated: of the samples over a
	// level, a tenth is a decade over it.
	months := prior * a.step
	episodes := prior * math.Pow(10, -a.level)
	rate := (episodes + a.known.Episodes) / (months + a.known.Months)
	excess := (episodes/math.Ln10 + a.known.Excess) / (episodes + a.known.Episodes)
	t := a.level + excess*math.Log(max(rate/a.asked, 1))
	a.threshold = min(max(t, a.nominal-mostBend), a.nominal+mostBend)
}

// rest takes a sample that has no score yet.
func (a *Alarm) rest() {
	a.over = 0
	if a.calm++; a.calm >= clearAfter {
		a.on = false
	}
}

// reset ends the alarm, and the episode teaches nothing.
func (a *Alarm) reset() {
	a.last = [confirm]float64{}
	a.over, a.calm, a.quiet, a.on, a.episode = 0, 0, 0, false, false
}
