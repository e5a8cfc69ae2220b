package univariate

import (
	"math"
	"time"
)

// viewNames say what a peak of a view means, up and down.
var viewNames = [viewCount]struct{ name, high, low string }{
	value:     {"value", "higher than before", "lower than before"},
	jump:      {"jump", "a jump up from the hours before", "a jump down from the hours before"},
	ofDay:     {"day", "high for the time of the day", "low for the time of the day"},
	ofDayLong: {"day-long", "high for the time of the day for hours", "low for the time of the day for hours"},
	ofDaySure: {"day-sure", "high for a time of the day that varies little", "low for a time of the day that varies little"},
	ofDayLog:  {"day-log", "many times what is usual at the time of the day", "a fraction of what is usual at the time of the day"},
	level:     {"level", "a high level", "a low level"},
	unrest:    {"unrest", "restless", "at rest"},
	activity:  {"activity", "busy for hours", "idle for hours"},
}

// The views of a sample.
const (
	value     = iota // the value itself
	jump             // less the mean of the samples before
	ofDay            // less what is usual at this time of the day
	ofDayLong        // the mean of that
	ofDaySure        // the mean of ofDay in units of its usual size at this time of the day
	ofDayLog         // the same as ofDay for the logarithm, and its mean
	level            // the mean of the logarithm
	unrest           // the mean step from one sample to the next
	activity         // the share of samples far from the middle
	viewCount
)

// views turns values into what is watched.
type views struct {
	n            float64 // samples
	before       float64 // the value before
	mean, spread float64 // slowly moving, for the logarithm

	past, long, sure, short, recent, steps, far window
	day, logDay                                 profile
	size                                        [buckets]average // of what is left of the day's profile
	anySize                                     average
}

// Windows in samples. The benchmark's series have a sample every 5 minutes, for the most part.
func newViews() views {
	return views{past: newWindow(96), long: newWindow(48), sure: newWindow(24), short: newWindow(12), recent: newWindow(12), steps: newWindow(144), far: newWindow(96)}
}

// observe returns the views of a value.
func (w *views) observe(t time.Time, v float64) (out [viewCount]float64) {
	z := w.logarithm(v)
	if w.n == 1 {
		w.before = v
	} else {
		out[jump] = v - w.past.mean()
	}
	w.past.add(v)
	w.steps.add(math.Abs(v - w.before))
	w.before = v
	w.recent.add(z)
	if math.Abs(z) > 1.5 {
		w.far.add(1)
	} else {
		w.far.add(0)
	}
	out[value], out[unrest], out[level], out[activity] = v, w.steps.mean(), w.recent.mean(), w.far.mean()

	hour := hourOf(t)
	rest := w.day.residual(hour, v)
	w.long.add(rest)
	out[ofDay], out[ofDayLong] = rest, w.long.mean()
	w.sure.add(w.sized(int(hour), rest))
	out[ofDaySure] = w.sure.mean()
	w.short.add(w.logDay.residual(hour, z))
	out[ofDayLog] = w.short.mean()
	return out
}

// logarithm is asinh of the distance from the middle in units of the spread: linear near
// the middle, a logarithm with a sign far from it. What is far moves middle and spread little.
func (w *views) logarithm(v float64) float64 {
	w.n++
	if w.n == 1 {
		w.mean = v
		return 0
	}
	unit := max(w.spread, 1e-3*math.Abs(w.mean), 1e-9)
	z := (v - w.mean) / unit
	kept := z
	if w.n > 50 {
		kept = max(-5, min(5, z))
	}
	rate := 1 / min(w.n, 2000)
	w.mean += rate * kept * unit
	w.spread += rate * (math.Abs(kept)*unit - w.spread)
	return math.Asinh(z)
}

// sized is a residual in units of its usual size in this hour of the day, with the size of
// all hours as the prior.
func (w *views) sized(hour int, rest float64) float64 {
	const prior, most = 6, 24
	of, seen := &w.size[hour], min(w.size[hour].n, most)
	size := max((of.value*seen+w.anySize.value*prior)/(seen+prior), 1e-9)
	if w.anySize.n == 0 {
		of.add(math.Abs(rest), 100)
		w.anySize.add(math.Abs(rest), 2000)
		return 0
	}
	kept := math.Abs(rest)
	if w.anySize.n >= 30 {
		kept = min(kept, 6*size)
	}
	of.add(kept, 100)
	w.anySize.add(kept, 2000)
	return rest / size
}

// buckets divide the day.
const buckets = 24

// hourOf is the hour of the day with its fraction, in UTC.
func hourOf(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	seconds := t.Unix() % 86400
	if seconds < 0 {
		seconds += 86400
	}
	return float64(seconds) / 3600
}

// average is the mean of what came, old things fading once there are many.
type average struct{ value, n float64 }

func (a *average) add(x, memory float64) {
	a.n++
	a.value += (x - a.value) / min(a.n, memory)
}

// profile is what is usual at each hour of the day.
type profile struct {
	usual [buckets]average
	hour  int     // the hour that is going on
	now   average // of this hour
	any   average // of all values, for hours not seen yet
}

// dayMemory is the number of days from which on older ones fade.
const dayMemory = 1 / 0.15

// residual is a value less what was usual so far at this hour, between the middles of two
// hours in proportion. Then the value becomes part of the usual.
func (p *profile) residual(hour, v float64) float64 {
	at := int(hour)
	usual := p.any.value
	if p.usual[at].n > 0 {
		usual = p.usual[at].value
		part, next := hour-float64(at)-0.5, at+1
		if part < 0 {
			part, next = -part, at-1+buckets
		}
		if other := p.usual[next%buckets]; other.n > 0 {
			usual += part * (other.value - usual)
		}
	}
	if p.now.n > 0 && at != p.hour {
		p.usual[p.hour].add(p.now.value, dayMemory)
		p.now = average{}
	}
	p.hour = at
	p.now.add(v, math.Inf(1))
	p.any.add(v, 2000)
	return v - usual
}

// window is the last so many values with their mean.
type window struct {
	ring  []float64
	n, at int
	sum   float64
}

func newWindow(n int) window { return window{ring: make([]float64, n)} }

func (w *window) add(v float64) {
	if w.n == len(w.ring) {
		w.sum -= w.ring[w.at]
	} else {
		w.n++
	}
	w.ring[w.at] = v
	w.sum += v
	if w.at++; w.at < len(w.ring) {
		return
	}
	// Once around, the sum is made anew: what rounding left is gone.
	w.at, w.sum = 0, 0
	for _, x := range w.ring {
		w.sum += x
	}
}

// mean is 0 of nothing.
func (w *window) mean() float64 { return w.sum / float64(max(w.n, 1)) }
