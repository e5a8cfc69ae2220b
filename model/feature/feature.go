// Package feature turns the samples of a host, one after the other, into what a failure
// model looks at: how high each quantity is, how far from what is normal for this host, how fast
// it grows, how much it moves, and how long ago and how often what never happens on a sound host
// happened.
//
// The features have the same names and number for every host, whatever disks and services it
// has: of a metric with instances, the highest, the lowest or the sum counts. A metric that a
// host lacks makes its features missing (NaN). Scales are times, not numbers of samples: a
// moving average forgets with a time constant τ, exactly for whatever interval. For a straight
// rise of slope s an average lags behind by s·τ (after it has lasted for several τ), so the
// difference of two averages over the difference of their time constants is the slope.
package feature

import (
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// The time constants of the moving averages.
const (
	fast   = 3 * time.Minute
	middle = 30 * time.Minute
	slow   = 6 * time.Hour
	normal = 48 * time.Hour
)

// scales are the time constants in order.
var scales = [...]time.Duration{fast, middle, slow, normal}

// gathering says how the instances of a metric become one number.
type gathering uint8

const (
	highest gathering = iota
	lowest
	sum
)

// gauge is a quantity whose level and growth count.
type gauge struct {
	name    string
	metrics []string // any of them
	gather  gathering
	log     bool    // look at its logarithm: what matters is the ratio
	per     string  // divided by this metric
	floor   float64 // least deviation that counts as one, so that a constant is not infinitely calm
}

var gauges = []gauge{
	{"cpu_busy", []string{"cpu_busy_ratio"}, highest, false, "", 0.02},
	{"cpu_iowait", []string{"cpu_iowait_ratio"}, highest, false, "", 0.01},
	{"cpu_busiest", []string{"cpu_busiest_ratio"}, highest, false, "", 0.03},
	{"load_per_cpu", []string{"load_1m_per_cpu"}, highest, false, "", 0.05},
	{"tasks_blocked", []string{"tasks_blocked"}, highest, false, "", 0.5},
	{"memory_available", []string{"memory_available_ratio"}, highest, false, "", 0.005},
	{"memory_anonymous", []string{"memory_anonymous_bytes"}, highest, false, "memory_total_bytes", 0.002},
	{"slab", []string{"memory_slab_unreclaimable_bytes"}, highest, false, "memory_total_bytes", 0.0005},
	{"pressure_cpu", []string{"pressure_cpu_some_ratio"}, highest, false, "", 0.01},
	{"pressure_memory", []string{"pressure_memory_some_ratio"}, highest, false, "", 0.01},
	{"pressure_io", []string{"pressure_io_some_ratio"}, highest, false, "", 0.01},
	{"read_latency", []string{"disk_read_latency_max_seconds"}, highest, true, "", 0.1},
	{"write_latency", []string{"disk_write_latency_max_seconds"}, highest, true, "", 0.1},
	{"disk_utilization", []string{"disk_utilization_max_ratio"}, highest, false, "", 0.01},
	{"disk_read", []string{"disks_read_bytes_per_second"}, highest, true, "", 0.1},
	{"tcp_retransmits", []string{"tcp_retransmit_ratio"}, highest, false, "", 0.001},
	{"network_receive", []string{"network_receive_bytes_per_second"}, highest, true, "", 0.1},
	{"file_handles", []string{"file_handles_used_ratio"}, highest, false, "", 0.002},
	{"threads", []string{"threads_total"}, highest, true, "", 0.02},
	{"temperature", []string{"temperature_max_celsius"}, highest, false, "", 0.5},
	{"vm_steal", []string{"vm_steal_max_seconds_per_second"}, highest, false, "", 0.01},
	{"unit_tasks", []string{"unit_tasks"}, highest, true, "", 0.05},
	{"unit_cpus", []string{"unit_cpus_used"}, lowest, false, "", 0.01},
}

// perGauge are the features of a gauge.
var perGauge = [...]string{"level", "off", "jump", "rise", "drift", "spread"}

// count is something that does not happen on a sound host.
type count struct {
	name    string
	metrics []string
}

var counts = []count{
	{"disk_errors", []string{"disks_io_errors_per_second"}},
	{"read_only", []string{"filesystems_read_only"}},
	{"ecc_corrected", []string{"edac_corrected_errors_per_second"}},
	{"ecc_uncorrected", []string{"edac_uncorrected_errors_per_second"}},
	{"memory_corrupted", []string{"memory_hardware_corrupted_bytes"}},
	{"link_changes", []string{"network_link_changes_per_second", "nic_link_changes_per_second"}},
	{"network_drops", []string{"network_receive_drops_per_second"}},
	{"network_errors", []string{"network_receive_errors_per_second"}},
	{"kernel_warnings", []string{"kernel_warnings_per_second"}},
	{"hung_tasks", []string{"kernel_hung_tasks_per_second"}},
	{"oopses", []string{"kernel_oopses_per_second"}},
	{"throttles", []string{"cpu_core_throttles_per_second", "cpu_package_throttles_per_second"}},
	{"allocation_stalls", []string{"allocation_stalls_per_second"}},
	{"direct_reclaim", []string{"reclaim_scanned_direct_pages_per_second"}},
	{"oom_kills", []string{"oom_kills_per_second"}},
	{"unhealthy", []string{"units_unhealthy"}},
}

// perCount are the features of a count: the share of samples that had any, lately and for
// longer, and the logarithm of how much.
var perCount = [...]string{"now", "lately", "longer"}

// ofUnits are the features of the services' memory, over the unit that stands out most.
var ofUnits = [...]string{
	"unit_memory_jump", "unit_memory_rise", "unit_memory_drift", // growth as a share of the memory available, an hour
	"unit_memory_ratio", // over what is normal for the unit
	"unit_memory_share", // of all memory
	"units_restarted",   // hours since the last start of any, at most 48
	"memory_exhausted",  // 1 / (1 + hours until none is available at the present rise)
	"slab_exhausted", "handles_exhausted",
	"unhealthy_minutes", // since when any unit is not healthy, at most 60
	"vms",
	"since_boot", // hours, at most 48
}

// The metrics that the other features are made of.
const (
	memoryTotal     = "memory_total_bytes"
	memoryAvailable = "memory_available_bytes"
	vmsRunning      = "vms_running"

	unitMemory   = "unit_memory_bytes"
	unitHealthy  = "unit_healthy"
	unitActive   = "unit_active"
	unitRestarts = "unit_restarts_per_second"
)

// Metrics lists the metrics that the features are made of, for a test that the catalogue has them.
func Metrics() []string {
	out := []string{memoryTotal, memoryAvailable, vmsRunning, unitMemory, unitHealthy, unitActive, unitRestarts}
	for _, g := range gauges {
		out = append(out, g.metrics...)
		if g.per != "" {
			out = append(out, g.per)
		}
	}
	for _, c := range counts {
		out = append(out, c.metrics...)
	}
	return out
}

// Names lists the features, in order.
func Names() []string {
	var out []string
	for _, g := range gauges {
		for _, p := range perGauge {
			out = append(out, g.name+"_"+p)
		}
	}
	for _, c := range counts {
		for _, p := range perCount {
			out = append(out, c.name+"_"+p)
		}
	}
	return append(out, ofUnits[:]...)
}

// Size is the number of features.
var Size = len(gauges)*len(perGauge) + len(counts)*len(perCount) + len(ofUnits)

// average holds a quantity's moving averages.
type average struct {
	mean   [len(scales)]float64
	spread float64 // deviation around the middle mean, at the slow scale
	now    float64
	seen   bool
}

// Extractor follows one host. It is not safe for concurrent use. The zero value is not
// usable: see [New].
type Extractor struct {
	schema *fleet.Schema
	// columns of the schema, for each gauge, count and unit.
	gauges   [][]int
	per      []int
	counts   [][]int
	units    []unit
	healthy  []int
	active   []int
	total    int // memory_total_bytes
	free     int // memory_available_bytes
	restarts []int
	vms      int

	last      time.Time
	boot      string
	booted    time.Time
	restarted time.Time
	unhealthy time.Time // since when; zero while all are healthy
	dt        float64
	decay     [len(scales)]float64
	age       float64 // seconds of samples
	fresh     bool    // the averages but the slowest begin anew with the next sample

	level     []average
	recent    [][3]float64 // of each count
	freeBytes float64
	allBytes  float64
	vmsNow    float64
}

type unit struct {
	name   string
	column int
	average
}

// New returns the extractor of a host before its first sample.
func New() *Extractor {
	return &Extractor{level: make([]average, len(gauges)), recent: make([][3]float64, len(counts)), freeBytes: math.NaN(), allBytes: math.NaN(), vmsNow: math.NaN()}
}

func (e *Extractor) align(s *fleet.Schema) {
	old := e.units
	e.schema, e.units, e.healthy, e.active, e.restarts = s, nil, nil, nil, nil
	e.gauges, e.counts, e.per = make([][]int, len(gauges)), make([][]int, len(counts)), make([]int, len(gauges))
	e.total, e.free, e.vms = s.Index(memoryTotal), s.Index(memoryAvailable), s.Index(vmsRunning)
	for i, g := range gauges {
		e.per[i] = s.Index(g.per)
	}
	for c, name := range s.Names() {
		metric, instance := fleet.SplitSeries(name)
		for i, g := range gauges {
			for _, m := range g.metrics {
				if m == metric {
					e.gauges[i] = append(e.gauges[i], c)
				}
			}
		}
		for i, k := range counts {
			for _, m := range k.metrics {
				if m == metric {
					e.counts[i] = append(e.counts[i], c)
				}
			}
		}
		switch metric {
		case unitMemory:
			u := unit{name: instance, column: c}
			for _, o := range old {
				if o.name == instance {
					u.average = o.average
				}
			}
			e.units = append(e.units, u)
		case unitHealthy:
			e.healthy = append(e.healthy, c)
		case unitActive:
			e.active = append(e.active, c)
		case unitRestarts:
			e.restarts = append(e.restarts, c)
		}
	}
}

// Recovered tells that the host was acted on: what was seen before says nothing of it any more,
// but for what is normal for it. A new boot does the same.
func (e *Extractor) Recovered() {
	e.fresh = true
	for i := range e.recent {
		e.recent[i] = [3]float64{}
	}
	e.unhealthy = time.Time{}
}

// longGap is how long a host may be away before its averages jump rather than decay.
const longGap = 7 * 24 * time.Hour

// Observe takes the next sample of the host. One that is not newer than the last is ignored.
func (e *Extractor) Observe(s *fleet.Sample) {
	if s.Schema != e.schema {
		e.align(s.Schema)
	}
	if !s.Time.After(e.last) && !e.last.IsZero() && e.last.Sub(s.Time) < time.Hour {
		return
	}
	dt := s.Time.Sub(e.last).Seconds()
	if e.last.IsZero() || dt <= 0 || dt > longGap.Seconds() {
		dt = 0
	}
	e.last = s.Time
	if s.Boot != e.boot {
		if e.boot != "" {
			e.booted = s.Time
			e.Recovered()
		}
		e.boot = s.Boot
	}
	if dt != e.dt {
		e.dt = dt
		for i, tau := range scales {
			e.decay[i] = 1 - math.Exp(-dt/tau.Seconds())
		}
	}
	// While a host is young, its slow averages are the means of all there was.
	e.age += dt
	keep := e.decay
	for i := range keep {
		if e.age > 0 {
			keep[i] = max(keep[i], dt/e.age)
		}
	}
	if e.fresh {
		for i := range len(keep) - 1 {
			keep[i] = 1
		}
		e.fresh = false
	}
	x := s.Values
	if e.total >= 0 {
		e.allBytes = x[e.total]
	}
	if e.free >= 0 {
		e.freeBytes = x[e.free]
	}
	e.vmsNow = math.NaN()
	if e.vms >= 0 {
		e.vmsNow = x[e.vms]
	}
	for i := range gauges {
		v := gather(x, e.gauges[i], gauges[i].gather)
		if p := e.per[i]; p >= 0 {
			v /= x[p]
		}
		if gauges[i].log {
			v = math.Log(max(v, 1e-6))
		}
		e.level[i].add(v, &keep)
	}
	for i := range counts {
		v := gather(x, e.counts[i], sum)
		if math.IsNaN(v) {
			e.recent[i][0] = v
			continue
		}
		any := 0.0
		if v > 0 {
			any = 1
		}
		r := &e.recent[i]
		if math.IsNaN(r[0]) {
			*r = [3]float64{}
		}
		r[0] = 0
		if v != 0 { // it mostly is
			r[0] = math.Log1p(v * 60)
		}
		r[1] += e.decay[1] * (any - r[1])
		r[2] += e.decay[2] * (any - r[2])
	}
	for i := range e.units {
		e.units[i].add(x[e.units[i].column], &keep)
	}
	for _, c := range e.restarts {
		if x[c] > 0 {
			e.restarted = s.Time
		}
	}
	sound := true
	for _, c := range e.healthy {
		sound = sound && !(x[c] < 0.5)
	}
	for _, c := range e.active {
		sound = sound && !(x[c] < 0.5)
	}
	switch {
	case sound:
		e.unhealthy = time.Time{}
	case e.unhealthy.IsZero():
		e.unhealthy = s.Time
	}
}

func gather(x []float64, columns []int, how gathering) float64 {
	if len(columns) == 1 {
		return x[columns[0]]
	}
	out := math.NaN()
	for _, c := range columns {
		v := x[c]
		switch {
		case v != v:
		case out != out:
			out = v
		case how == highest:
			out = max(out, v)
		case how == lowest:
			out = min(out, v)
		default:
			out += v
		}
	}
	return out
}

// add moves the averages on.
func (a *average) add(v float64, decay *[len(scales)]float64) {
	a.now = v
	if v != v {
		return
	}
	if !a.seen {
		a.seen = true
		for i := range a.mean {
			a.mean[i] = v
		}
		return
	}
	for i := range a.mean {
		a.mean[i] += decay[i] * (v - a.mean[i])
	}
	a.spread += decay[2] * (math.Abs(v-a.mean[1]) - a.spread)
}

// Vector fills dst, which has [Size] values, with the features as of the last sample. It
// allocates nothing.
func (e *Extractor) Vector(dst []float64) {
	dst = dst[:Size]
	for i := range gauges {
		a, out := &e.level[i], dst[i*len(perGauge):(i+1)*len(perGauge)]
		_ = out[len(perGauge)-1]
		if !a.seen || a.now != a.now {
			for k := range out {
				out[k] = math.NaN()
			}
			continue
		}
		s := 1 / (1.25*a.spread + gauges[i].floor)
		out[0] = a.now
		out[1] = (a.mean[0] - a.mean[3]) * s
		out[2] = (a.now - a.mean[1]) * s
		out[3] = (a.mean[0] - a.mean[1]) * s
		out[4] = (a.mean[1] - a.mean[2]) * s
		out[5] = a.spread
	}
	dst = dst[len(gauges)*len(perGauge):]
	for i := range counts {
		r, out := &e.recent[i], dst[i*len(perCount):(i+1)*len(perCount)]
		_ = out[len(perCount)-1]
		out[0], out[1], out[2] = r[0], r[1], r[2]
		if r[0] != r[0] {
			out[1], out[2] = r[0], r[0]
		}
	}
	dst = dst[len(counts)*len(perCount):]
	jump, rise, drift, ratio, share := math.NaN(), math.NaN(), math.NaN(), math.NaN(), math.NaN()
	for i := range e.units {
		a := &e.units[i].average
		if !a.seen || a.now != a.now {
			continue
		}
		free := max(e.freeBytes, 1)
		jump = larger(jump, (a.now-a.mean[0])/free)
		rise = larger(rise, slope(a, 0)/free)
		drift = larger(drift, slope(a, 1)/free)
		ratio = larger(ratio, max(a.mean[0], 1)/max(a.mean[3], 1))
		share = larger(share, a.now/e.allBytes)
	}
	handles, unhealthy := &e.level[gaugeHandles], 0.0
	if !e.unhealthy.IsZero() {
		unhealthy = min(60, 1+e.last.Sub(e.unhealthy).Minutes())
	}
	copy(dst, []float64{
		jump, rise, drift, math.Log(ratio), share,
		since(e.restarted, e.last, 48*time.Hour, time.Hour),
		exhausted(&e.level[gaugeAvailable], -1, 0),
		exhausted(&e.level[gaugeSlab], 1, e.freeBytes/e.allBytes),
		exhausted(handles, 1, 1-handles.now),
		unhealthy,
		e.vmsNow,
		since(e.booted, e.last, 48*time.Hour, time.Hour),
	})
}

var gaugeAvailable, gaugeSlab, gaugeHandles = gaugeIndex("memory_available"), gaugeIndex("slab"), gaugeIndex("file_handles")

func gaugeIndex(name string) int {
	for i, g := range gauges {
		if g.name == name {
			return i
		}
	}
	panic("feature: no gauge " + name)
}

// slope is the growth an hour, from the averages i and i+1.
func slope(a *average, i int) float64 { return (a.mean[i] - a.mean[i+1]) / apart[i] }

// apart is how far neighbours among the scales are from each other, in hours.
var apart = func() (hours [len(scales) - 1]float64) {
	for i := range hours {
		hours[i] = (scales[i+1] - scales[i]).Hours()
	}
	return hours
}()

// exhausted is 1 / (1 + hours) until a quantity that grows by its slope in a direction has
// used room up; where room is 0 the quantity itself is the room.
func exhausted(a *average, direction, room float64) float64 {
	if !a.seen || a.now != a.now {
		return math.NaN()
	}
	if direction < 0 {
		room = a.now
	}
	s := max(direction*slope(a, 0), direction*slope(a, 1))
	if !(s > 0) {
		return 0
	}
	return 1 / (1 + max(room, 0)/s)
}

func larger(a, b float64) float64 {
	if a != a || b > a {
		return b
	}
	return a
}

func since(t, now time.Time, most, unit time.Duration) float64 {
	if t.IsZero() {
		return float64(most / unit)
	}
	return float64(min(max(now.Sub(t), 0), most)) / float64(unit)
}
