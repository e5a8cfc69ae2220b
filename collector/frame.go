package collector

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// maxGap is the longest time that a rate is averaged over: after a longer gap,
// the average says nothing of the present and the rate starts anew.
const maxGap = 5 * time.Minute

// seriesKey names a series within a source.
type seriesKey struct{ metric, instance string }

// counter is what a counter read when, in nanoseconds of running time.
type counter struct {
	raw uint64
	at  time.Duration
}

// frame is where one source puts its values, and what it remembers from one
// sample to the next. It belongs to the goroutine that runs the source.
type frame struct {
	known     map[string]bool // metrics that the source may set
	keys      []seriesKey
	values    []float64
	index     map[seriesKey]int
	fixed     int // the first so many series are of the host and never leave
	counters  map[seriesKey]counter
	instances map[string]uint64 // when an instance was last seen, as a round
	max       int               // most instances at a time
	dropped   int               // instances of this round that found no place
	round     uint64
	version   int // grows when keys change
	now       time.Duration
	err       error         // of this round
	took      time.Duration // how long this round took
}

func newFrame(metrics []Metric, maxInstances int) *frame {
	f := &frame{
		known:     make(map[string]bool, len(metrics)),
		index:     make(map[seriesKey]int, len(metrics)),
		counters:  make(map[seriesKey]counter, len(metrics)),
		instances: make(map[string]uint64),
		max:       maxInstances,
		version:   1,
	}
	for _, m := range metrics {
		f.known[m.Name] = true
		if m.Instance == "" {
			f.add(seriesKey{m.Name, ""})
		}
	}
	f.fixed = len(f.keys)
	return f
}

func (f *frame) add(k seriesKey) int {
	f.index[k] = len(f.keys)
	f.keys = append(f.keys, k)
	f.values = append(f.values, math.NaN())
	return len(f.keys) - 1
}

// begin starts a round: nothing is known until it is set.
func (f *frame) begin(now time.Duration) {
	f.now = now
	f.round++
	f.dropped = 0
	if f.round%512 == 0 { // counters of what is gone and never had a place
		for k, c := range f.counters {
			if now-c.at > maxGap {
				delete(f.counters, k)
			}
		}
	}
	for i := range f.values {
		f.values[i] = math.NaN()
	}
}

// forget drops what the counters read, so that no rate spans this point.
func (f *frame) forget() { clear(f.counters) }

// admit makes room for an instance. Where there are too many, the one that has
// been gone longest gives way; if all are here, the new one is left out.
func (f *frame) admit(instance string) bool {
	if _, ok := f.instances[instance]; ok {
		f.instances[instance] = f.round
		return true
	}
	if len(f.instances) >= f.max {
		oldest, when := "", uint64(0)
		for name, seen := range f.instances {
			if seen+1 >= f.round { // here a round ago, so it may still come in this one
				continue
			}
			if oldest == "" || seen < when || seen == when && name < oldest {
				oldest, when = name, seen
			}
		}
		if oldest == "" {
			f.dropped++
			return false
		}
		f.evict(oldest)
	}
	f.instances[instance] = f.round
	return true
}

func (f *frame) evict(instance string) {
	delete(f.instances, instance)
	for k := range f.counters {
		if k.instance == instance {
			delete(f.counters, k)
		}
	}
	kept, values := f.keys[:0], f.values[:0]
	for i, k := range f.keys {
		if i < f.fixed || k.instance != instance {
			kept, values = append(kept, k), append(values, f.values[i])
		}
	}
	f.keys, f.values = kept, values
	clear(f.index)
	for i, k := range f.keys {
		f.index[k] = i
	}
	f.version++
}

// set puts the value of a metric of the host.
func (f *frame) set(metric string, v float64) { f.setOf(metric, "", v) }

// setOf puts the value of a metric of an admitted instance ("" is the host).
// Infinities are taken for missing. It panics where the catalogue does not have
// the metric, which the sampler reports as an error of the source.
func (f *frame) setOf(metric, instance string, v float64) {
	k := seriesKey{metric, instance}
	i, ok := f.index[k]
	if !ok {
		if !f.known[metric] || instance == "" {
			panic(fmt.Sprintf("metric %s is not in the catalogue of its source", metric))
		}
		i = f.add(k)
		f.version++
	}
	if math.IsInf(v, 0) {
		v = math.NaN()
	}
	f.values[i] = v
}

// width is how a counter of the kernel wraps around.
type width struct {
	bits uint
	// perSecond is the fastest plausible growth. A counter of 32 bits that
	// seems to have grown faster was not wrapped but reset.
	perSecond float64
}

var counter64 = width{bits: 64}

// counter32 may or may not have only 32 bits, as times in /proc/diskstats and
// the counters of some network drivers.
func counter32(perSecond float64) width { return width{bits: 32, perSecond: perSecond} }

// delta is by how much a counter grew since the source last read it, and over
// how many seconds of running time. Both are NaN where that cannot be known:
// the first reading, a reset, a gap of more than maxGap.
func (f *frame) delta(metric, instance string, raw uint64, w width) (growth, seconds float64) {
	k := seriesKey{metric, instance}
	prev, ok := f.counters[k]
	f.counters[k] = counter{raw, f.now}
	nan := math.NaN()
	if !ok || f.now <= prev.at || f.now-prev.at > maxGap {
		return nan, nan
	}
	seconds = (f.now - prev.at).Seconds()
	switch {
	case raw >= prev.raw:
		return float64(raw - prev.raw), seconds
	case prev.raw >= 3<<62 && raw < 1<<62:
		return float64(raw - prev.raw), seconds // unsigned arithmetic wraps as the counter did
	case w.bits == 32 && prev.raw < 1<<32 && prev.raw >= 3<<30 && raw < 1<<30:
		growth = float64(raw + 1<<32 - prev.raw)
		if growth <= w.perSecond*seconds {
			return growth, seconds
		}
	}
	return nan, nan
}

// rate sets a metric of the host to the growth per second of a counter, times a
// factor that brings it to the metric's unit.
func (f *frame) rate(metric string, raw uint64, factor float64) {
	f.rateOf(metric, "", raw, factor, counter64)
}

func (f *frame) rateOf(metric, instance string, raw uint64, factor float64, w width) {
	d, s := f.delta(metric, instance, raw, w)
	f.setOf(metric, instance, d*factor/s)
}

// share is part/whole, or NaN where the whole is not positive.
func share(part, whole float64) float64 {
	if whole > 0 {
		return part / whole
	}
	return math.NaN()
}

// clampRatio brings a ratio of two clocks that do not tick together into 0..1.
func clampRatio(v float64) float64 {
	if math.IsNaN(v) {
		return v
	}
	return min(max(v, 0), 1)
}

// maxOf and sumOf fold a value into an aggregate that is NaN while nothing was
// known.
func maxOf(aggregate *float64, v float64) {
	if !math.IsNaN(v) && (math.IsNaN(*aggregate) || v > *aggregate) {
		*aggregate = v
	}
}

func minOf(aggregate *float64, v float64) {
	if !math.IsNaN(v) && (math.IsNaN(*aggregate) || v < *aggregate) {
		*aggregate = v
	}
}

func sumOf(aggregate *float64, v float64) {
	if math.IsNaN(v) {
		return
	}
	if math.IsNaN(*aggregate) {
		*aggregate = 0
	}
	*aggregate += v
}

// instanceName makes a name from outside (a device, a mount point, a VM) fit for
// a series: no braces, no control characters, no more than 96 bytes.
func instanceName(s string) string {
	if len(s) <= 96 && strings.IndexFunc(s, badInInstance) < 0 {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if badInInstance(r) {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
	for len(s) > 96 {
		s = s[:len(s)-1]
	}
	return strings.ToValidUTF8(s, "")
}

func badInInstance(r rune) bool {
	return r < ' ' || r == '{' || r == '}' || r == 0x7f || r == 0xfffd
}
