package predictor

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// finding is what the evidence says without any model: a fault that was seen.
type finding struct {
	signature   fleet.Signature
	culprit     string
	probability float64
	sentences   []string
}

// evidence follows the few series whose meaning is known: whether each unit is
// active and healthy, how the memory of each unit and of the machine develops,
// and the counters that are zero on a sound host.
type evidence struct {
	schema  *fleet.Schema
	health  []healthSeries
	memory  []memorySeries
	limits  []limitSeries
	counts  []countSeries
	slow    []slowSeries
	waits   [len(waitsFor)]int // what tasks wait for, or -1
	waitsV  [len(waitsFor)]float64
	blocked int    // processes_blocked, or -1
	avail   int    // memory_available_bytes, or -1
	resent  int    // tcp_retransmit_ratio, or -1
	lossy   uint32 // the last samples, a bit each
	availV  float64
	haveVal bool
}

type healthSeries struct {
	column int
	unit   string
	metric string
	bad    int       // samples in a row that were not healthy
	since  time.Time // of the first of them
	seen   bool      // was healthy once: a unit that never was is not failing now
}

// slowSeries is how long a unit's health check takes, as a share of its time limit.
type slowSeries struct {
	column int
	unit   string
	usual  float64 // mean of what was not slow
	n      int     // samples that it is known from
	slow   uint32  // the last samples, a bit each
	last   float64
}

type memorySeries struct {
	column, usedColumn int
	unit               string
	trend              trend
	limit              float64
}

// limitSeries is a share of something limited that is used up, or a number that grows.
type limitSeries struct {
	column   int
	instance string
	kind     *limited
	trend    trend
}

// limited is a metric of which a steady growth ends badly.
type limited struct {
	metric    string
	signature fleet.Signature
	// left is true where the metric is the share that is left, not the one that is used.
	left bool
	// open is true for a number without a known limit.
	open bool
	what string
}

// limits lists them. The metric of the whole host stands for those of its parts where it
// is the worst of them.
var limits = [...]limited{
	{metric: "unit_open_files_used_ratio", signature: fleet.SignatureServiceHang, what: "the open files of %s"},
	{metric: "unit_tasks", signature: fleet.SignatureServiceHang, open: true, what: "the tasks of %s"},
	{metric: "file_handles_used_ratio", signature: fleet.SignatureServiceHang, what: "the open files of the host"},
	{metric: "filesystem_available_min_ratio", signature: fleet.SignatureDisk, left: true, what: "the fullest file system"},
	{metric: "filesystem_inodes_free_min_ratio", signature: fleet.SignatureDisk, left: true, what: "the inodes of the fullest file system"},
}

const (
	limitGrowth = 0.03 // of what there is, within the window
	openGrowth  = 16   // of a number without a limit
	openRatio   = 1.5  // of the smallest value in the window
	openChance  = 0.5  // that such a growth ends badly
	rushRatio   = 2.0  // of the value 15 samples ago, from which growth is a rush
	rushFit     = 0.95 // and how straight it must be
	resentRatio = 0.03 // of the segments sent, from which a sample counts as lossy
	lossyOf     = 20   // last samples
	lossyLeast  = 6    // that must be lossy
	slowRatio   = 0.25 // of a health check's time limit, from which it may be slow
	slowTimes   = 4    // what is usual for it, and it is
	slowOf      = 20   // last samples
	slowLeast   = 10   // that must be slow
	slowKnown   = 15   // samples from which the usual is known
	slowMemory  = 60   // samples over which it is forgotten to 1/e
	waiting     = 0.5  // share of the time in which tasks wait, from which that is why
)

type countSeries struct {
	column    int
	metric    string
	instance  string
	signature fleet.Signature
	what      string
	hits      int
	quiet     int
}

// soundlyZero lists the metrics that are zero on a sound host, what a rate above
// zero points to, and the words for it.
var soundlyZero = []struct {
	metric    string
	signature fleet.Signature
	what      string
}{
	{"memory_hardware_corrupted_bytes", fleet.SignatureMemoryHardware, "RAM that the hardware corrupted"},
	{"disk_io_errors_per_second", fleet.SignatureDisk, "I/O errors"},
	{"filesystems_read_only", fleet.SignatureDisk, "file systems that became read-only"},
	{"kernel_hung_tasks_per_second", fleet.SignatureKernelFault, "hung tasks"},
	{"kernel_oopses_per_second", fleet.SignatureKernelFault, "kernel oopses"},
	{"nic_link_changes_per_second", fleet.SignatureNetwork, "link flaps"},
}

// unscored lists metrics that move on a sound host whatever it does, so that
// there is no normal to compare them with.
var unscored = map[string]bool{"uptime_seconds": true, "clock_max_error_seconds": true}

// Metrics lists the metrics whose meaning this package relies on, for a test that
// the catalogue has them.
func Metrics() []string {
	out := []string{unitMemory, unitUsed, unitHealthy, unitActive, availableBytes, healthUsed, blocked}
	for _, w := range waitsFor {
		out = append(out, w.metric)
	}
	for _, z := range soundlyZero {
		out = append(out, z.metric)
	}
	for _, l := range limits {
		out = append(out, l.metric)
	}
	out = append(out, resent)
	for m := range unscored {
		out = append(out, m)
	}
	return out
}

const (
	unhealthyAfter = 3        // samples in a row
	trendWindow    = 90       // samples
	trendLeast     = 15       // samples before a trend is believed
	countHits      = 2        // samples with errors before they count
	countQuiet     = 60       // samples without, after which they are forgotten
	leastGrowth    = 16 << 20 // bytes
	leakRatio      = 1.3      // of the smallest value in the window
	leakFit        = 0.85     // share of variance that a straight line explains
	unitMemory     = "unit_memory_bytes"
	unitUsed       = "unit_memory_used_ratio"
	unitHealthy    = "unit_healthy"
	unitActive     = "unit_active"
	availableBytes = "memory_available_bytes"
	resent         = "tcp_retransmit_ratio"
	healthUsed     = "unit_health_used_ratio"
	blocked        = "processes_blocked"
)

// waitsFor lists the pressures that make a health check slow, and what each points to. As long as anything else
// runs, tasks that wait for a disk are not all of them ("full"): then it tells that some do, and that they are
// blocked.
var waitsFor = [...]struct {
	metric    string
	blocked   float64 // processes in uninterruptible sleep, at least
	signature fleet.Signature
	what      string
}{
	{"pressure_io_full_ratio", 0, fleet.SignatureDisk, "I/O"},
	{"pressure_memory_full_ratio", 0, fleet.SignatureMemoryLeak, "memory"},
	{"pressure_io_some_ratio", 2, fleet.SignatureDisk, "I/O"},
	{"pressure_cpu_some_ratio", 0, fleet.SignatureNoisyNeighbour, "a CPU"},
}

// restart forgets trends and counts after a boot.
func (e *evidence) restart() { e.schema = nil; *e = evidence{} }

// recovered forgets what was seen before an action that ended well, but not that a unit has been
// healthy: one that hangs again at once is failing.
func (e *evidence) recovered() {
	for i := range e.health {
		e.health[i].bad = 0
	}
	for i := range e.slow {
		e.slow[i].slow = 0
	}
	for i := range e.memory {
		e.memory[i].trend = trend{}
	}
	for i := range e.counts {
		e.counts[i].hits, e.counts[i].quiet = 0, 0
	}
}

func (e *evidence) align(s *fleet.Schema) {
	old := *e
	*e = evidence{schema: s, avail: s.Index(availableBytes), blocked: s.Index(blocked), resent: s.Index(resent), lossy: old.lossy}
	for i, w := range waitsFor {
		e.waits[i] = s.Index(w.metric)
	}
	for i, name := range s.Names() {
		metric, instance := fleet.SplitSeries(name)
		switch metric {
		case unitHealthy, unitActive:
			h := healthSeries{column: i, unit: instance, metric: metric}
			for _, o := range old.health {
				if o.unit == h.unit && o.metric == h.metric {
					h.bad, h.since, h.seen = o.bad, o.since, o.seen
				}
			}
			e.health = append(e.health, h)
		case healthUsed:
			h := slowSeries{column: i, unit: instance}
			for _, o := range old.slow {
				if o.unit == h.unit {
					h = o
					h.column = i
				}
			}
			e.slow = append(e.slow, h)
		case unitMemory:
			m := memorySeries{column: i, usedColumn: s.Index(fleet.SeriesName(unitUsed, instance)), unit: instance}
			for _, o := range old.memory {
				if o.unit == m.unit {
					m.trend = o.trend
				}
			}
			e.memory = append(e.memory, m)
		}
		for k := range limits {
			if metric == limits[k].metric {
				l := limitSeries{column: i, instance: instance, kind: &limits[k]}
				for _, o := range old.limits {
					if o.kind == l.kind && o.instance == instance {
						l.trend = o.trend
					}
				}
				e.limits = append(e.limits, l)
			}
		}
		for _, z := range soundlyZero {
			if metric == z.metric {
				c := countSeries{column: i, metric: metric, instance: instance, signature: z.signature, what: z.what}
				for _, o := range old.counts {
					if o.metric == c.metric && o.instance == c.instance {
						c.hits, c.quiet = o.hits, o.quiet
					}
				}
				e.counts = append(e.counts, c)
			}
		}
	}
}

func (e *evidence) observe(s *fleet.Sample) {
	if s.Schema != e.schema {
		e.align(s.Schema)
	}
	for i := range e.health {
		h := &e.health[i]
		switch v := s.Values[h.column]; {
		case math.IsNaN(v):
		case v > 0.5:
			h.bad, h.seen = 0, true
		case h.seen:
			if h.bad == 0 {
				h.since = s.Time
			}
			h.bad++
		}
	}
	for i := range e.slow {
		e.slow[i].observe(s.Values[e.slow[i].column])
	}
	for i, c := range e.waits {
		e.waitsV[i] = 0
		if c >= 0 && s.Values[c] > 0 && (waitsFor[i].blocked == 0 || e.blocked >= 0 && s.Values[e.blocked] >= waitsFor[i].blocked) {
			e.waitsV[i] = s.Values[c]
		}
	}
	for i := range e.memory {
		m := &e.memory[i]
		m.trend.add(s.Time, s.Values[m.column])
		m.limit = math.NaN()
		if m.usedColumn >= 0 && s.Values[m.usedColumn] > 0 {
			m.limit = s.Values[m.column] / s.Values[m.usedColumn]
		}
	}
	for i := range e.limits {
		l := &e.limits[i]
		v := s.Values[l.column]
		if l.kind.left {
			v = 1 - v
		}
		l.trend.add(s.Time, v)
	}
	if e.resent >= 0 && !math.IsNaN(s.Values[e.resent]) {
		e.lossy <<= 1
		if s.Values[e.resent] >= resentRatio {
			e.lossy |= 1
		}
	}
	for i := range e.counts {
		c := &e.counts[i]
		switch v := s.Values[c.column]; {
		case math.IsNaN(v):
		case v > 0:
			c.hits, c.quiet = c.hits+1, 0
		default:
			if c.quiet++; c.quiet > countQuiet {
				c.hits = 0
			}
		}
	}
	e.haveVal = false
	if e.avail >= 0 && !math.IsNaN(s.Values[e.avail]) {
		e.availV, e.haveVal = s.Values[e.avail], true
	}
}

// judge returns the strongest finding.
func (e *evidence) judge(horizon time.Duration) finding {
	best := finding{signature: fleet.SignatureNone}
	consider := func(f finding) {
		if f.probability > best.probability {
			best = f
		}
	}
	for _, h := range e.health {
		if h.bad < unhealthyAfter {
			continue
		}
		words := fmt.Sprintf("%s fails its health check for %d samples, since %s", h.unit, h.bad, h.since.Format(time.TimeOnly))
		probability := 0.9
		if h.metric == unitActive {
			words = fmt.Sprintf("%s is not active for %d samples, since %s", h.unit, h.bad, h.since.Format(time.TimeOnly))
			probability = 0.95
		}
		consider(finding{fleet.SignatureServiceHang, h.unit, probability, []string{words}})
	}
	for i := range e.slow {
		if n := bits.OnesCount32(e.slow[i].slow & (1<<slowOf - 1)); n >= slowLeast {
			consider(e.slowness(&e.slow[i], n))
		}
	}
	for i := range e.memory {
		if f, ok := e.memory[i].judge(horizon, e.availV, e.haveVal); ok {
			consider(f)
		}
	}
	for i := range e.limits {
		if f, ok := e.limits[i].judge(horizon); ok {
			consider(f)
		}
	}
	if n := bits.OnesCount32(e.lossy & (1<<lossyOf - 1)); n >= lossyLeast {
		consider(finding{fleet.SignatureNetwork, "", 0.5, []string{fmt.Sprintf("TCP had to send much again in %d of the last %d samples", n, lossyOf)}})
	}
	for _, c := range e.counts {
		if c.hits >= countHits {
			where := ""
			if c.instance != "" {
				where = " on " + c.instance
			}
			consider(finding{c.signature, c.instance, 0.6, []string{fmt.Sprintf("%s%s in %d samples", c.what, where, c.hits)}})
		}
	}
	return best
}

// observe takes the share of the time limit that the last check took.
func (h *slowSeries) observe(used float64) {
	if math.IsNaN(used) {
		return
	}
	h.slow <<= 1
	h.last = used
	if h.n >= slowKnown && used >= max(slowRatio, slowTimes*h.usual) {
		h.slow |= 1
		return
	}
	h.n = min(h.n+1, slowMemory)
	h.usual += (used - h.usual) / float64(h.n)
}

// slowness is a health check that still passes and takes long: what the host waits for tells
// why, and where it waits for nothing the service itself is failing.
func (e *evidence) slowness(h *slowSeries, n int) finding {
	f := finding{fleet.SignatureServiceHang, h.unit, 0.5, []string{fmt.Sprintf(
		"the health check of %s was slow in %d of the last %d samples: it takes %.0f %% of its time limit, and %.0f %% usually", h.unit, n, slowOf, 100*h.last, 100*h.usual)}}
	for i, w := range waitsFor {
		if e.waitsV[i] >= waiting {
			f.signature, f.culprit = w.signature, ""
			f.sentences = append(f.sentences, fmt.Sprintf("tasks of the host wait for %s in %.0f %% of the time", w.what, 100*e.waitsV[i]))
			break
		}
	}
	return f
}

// judge tells whether the unit leaks: its memory grows along a straight line, by
// much of what it was, and would reach its limit or the machine's free memory
// within a few horizons.
func (m *memorySeries) judge(horizon time.Duration, available float64, haveAvailable bool) (finding, bool) {
	slope, fit, low, high, n := m.trend.line()
	grown := high - low
	if n < trendLeast || slope <= 0 || fit < leakFit || grown < leastGrowth || high < leakRatio*low {
		return finding{}, false
	}
	room, what := math.Inf(1), ""
	if !math.IsNaN(m.limit) && m.limit > 0 {
		room, what = m.limit-high, "its limit"
	}
	if haveAvailable && available < room {
		room, what = available, "all free memory"
	}
	if math.IsInf(room, 1) {
		return finding{}, false
	}
	left := time.Duration(max(room, 0) / slope * float64(time.Second))
	ratio := left.Seconds() / horizon.Seconds()
	probability := 1 / (1 + ratio*ratio) // one half where it lasts exactly one horizon
	if probability < 0.1 {
		return finding{}, false
	}
	return finding{fleet.SignatureMemoryLeak, m.unit, probability, []string{fmt.Sprintf(
		"%s grew by %.0f MiB in %.0f s, steadily (%.1f MiB/s): it reaches %s in %s",
		m.unit, grown/(1<<20), m.trend.span().Seconds(), slope/(1<<20), what, left.Round(time.Second))}}, true
}

// judge tells whether what is limited is used up along a straight line, and would be gone
// within a few horizons.
func (l *limitSeries) judge(horizon time.Duration) (finding, bool) {
	slope, fit, low, high, n := l.trend.line()
	span := l.trend.span().Seconds()
	if l.kind.open {
		// What hangs may have a few seconds from its begin: the newest samples alone will do where they
		// leave no doubt.
		if s, f, from, to, k := l.trend.fit(min(trendLeast, l.trend.n)); k == trendLeast && s > 0 && f >= rushFit && to >= rushRatio*from && to-from >= openGrowth {
			slope, fit, low, high, n, span = s, f, from, to, k, (to-from)/s
		}
	}
	if n < trendLeast || slope <= 0 || fit < leakFit {
		return finding{}, false
	}
	what := l.kind.what
	if strings.Contains(what, "%s") {
		what = fmt.Sprintf(what, l.instance)
	}
	if l.kind.open {
		if high-low < openGrowth || high < openRatio*low {
			return finding{}, false
		}
		return finding{l.kind.signature, l.instance, openChance, []string{fmt.Sprintf(
			"%s grew from %.0f to %.0f in %.0f s, steadily", what, low, high, span)}}, true
	}
	if high-low < limitGrowth {
		return finding{}, false
	}
	left := time.Duration(max(1-high, 0) / slope * float64(time.Second))
	ratio := left.Seconds() / horizon.Seconds()
	probability := 1 / (1 + ratio*ratio) // one half where it lasts exactly one horizon
	if probability < 0.1 {
		return finding{}, false
	}
	return finding{l.kind.signature, l.instance, probability, []string{fmt.Sprintf(
		"%s grew from %.0f %% to %.0f %% of what there is in %.0f s, steadily: nothing is left in %s",
		what, 100*low, 100*high, span, left.Round(time.Second))}}, true
}

// trend keeps the last samples of a series for a straight line through them.
type trend struct {
	at    [trendWindow]time.Time
	v     [trendWindow]float64
	start int
	n     int
}

func (t *trend) add(at time.Time, v float64) {
	if math.IsNaN(v) {
		return
	}
	if t.n > 0 {
		// A fall by a third is a restart or a release of memory: begin anew.
		if last := t.v[(t.start+t.n-1)%trendWindow]; v < last*2/3 {
			t.n = 0
		}
	}
	if t.n == trendWindow {
		t.start, t.n = (t.start+1)%trendWindow, t.n-1
	}
	i := (t.start + t.n) % trendWindow
	t.at[i], t.v[i] = at, v
	t.n++
}

func (t *trend) span() time.Duration {
	if t.n < 2 {
		return 0
	}
	return t.at[(t.start+t.n-1)%trendWindow].Sub(t.at[t.start])
}

// line fits a straight line by least squares, over the newest third of the
// window at first and over more where that is steadier, since a leak begins
// somewhere inside it. slope is per second, fit the coefficient of
// determination, low and high the first and last fitted values.
func (t *trend) line() (slope, fit, low, high float64, n int) {
	for _, take := range []int{trendWindow / 3, 2 * trendWindow / 3, trendWindow} {
		s, f, l, h, k := t.fit(min(take, t.n))
		if k >= trendLeast && f > fit {
			slope, fit, low, high, n = s, f, l, h, k
		}
	}
	return slope, fit, low, high, n
}

func (t *trend) fit(k int) (slope, fit, low, high float64, n int) {
	if k < 2 {
		return 0, 0, 0, 0, k
	}
	first := t.start + t.n - k
	origin := t.at[first%trendWindow]
	var sx, sy, sxx, sxy, syy float64
	for j := range k {
		i := (first + j) % trendWindow
		x, y := t.at[i].Sub(origin).Seconds(), t.v[i]
		sx, sy, sxx, sxy, syy = sx+x, sy+y, sxx+x*x, sxy+x*y, syy+y*y
	}
	m := float64(k)
	vx, vy, cov := sxx-sx*sx/m, syy-sy*sy/m, sxy-sx*sy/m
	if vx <= 0 || vy <= 0 {
		return 0, 0, sy / m, sy / m, k
	}
	slope = cov / vx
	fit = cov * cov / (vx * vy)
	mid := sx / m
	span := t.at[(first+k-1)%trendWindow].Sub(origin).Seconds()
	low = sy/m - slope*mid
	high = sy/m + slope*(span-mid)
	return slope, fit, max(low, 0), high, k
}

// suspect guesses the signature of an anomaly from the series that contribute
// most to it, weighted by their shares. A culprit is named only where it has most of
// the signature's weight: otherwise several would be named in turn.
func suspect(contributions []fleet.Contribution) (fleet.Signature, string) {
	weight := make(map[fleet.Signature]float64)
	instances := make(map[fleet.Signature]map[string]float64)
	for _, c := range contributions {
		metric, instance := fleet.SplitSeries(c.Series)
		s := signatureOf(metric)
		weight[s] += c.Share
		if instances[s] == nil {
			instances[s] = make(map[string]float64)
		}
		instances[s][instance] += c.Share
	}
	best := fleet.SignatureUnknown
	for _, s := range []fleet.Signature{
		fleet.SignatureServiceHang, fleet.SignatureMemoryLeak, fleet.SignatureKernelFault, fleet.SignatureDisk,
		fleet.SignatureMemoryHardware, fleet.SignatureNetwork, fleet.SignatureThermal, fleet.SignatureNoisyNeighbour,
	} {
		if weight[s] > weight[best] && weight[s] >= 0.3 {
			best = s
		}
	}
	for name, share := range instances[best] {
		if share > 0.6*weight[best] {
			return best, name
		}
	}
	return best, ""
}

func signatureOf(metric string) fleet.Signature {
	for _, p := range []struct {
		prefix    string
		signature fleet.Signature
	}{
		{"unit_memory", fleet.SignatureMemoryLeak}, {"unit_", fleet.SignatureServiceHang}, {"units_", fleet.SignatureServiceHang},
		{"memory_hardware", fleet.SignatureMemoryHardware},
		{"memory_", fleet.SignatureMemoryLeak}, {"swap_", fleet.SignatureMemoryLeak}, {"pressure_memory", fleet.SignatureMemoryLeak},
		{"reclaim_", fleet.SignatureMemoryLeak}, {"oom_", fleet.SignatureMemoryLeak}, {"allocation_stalls", fleet.SignatureMemoryLeak},
		{"disk", fleet.SignatureDisk}, {"filesystem", fleet.SignatureDisk}, {"pressure_io", fleet.SignatureDisk},
		{"network_", fleet.SignatureNetwork}, {"nic_", fleet.SignatureNetwork}, {"tcp_", fleet.SignatureNetwork}, {"udp_", fleet.SignatureNetwork}, {"softnet_", fleet.SignatureNetwork},
		{"thermal_", fleet.SignatureThermal},
		{"cpu_steal", fleet.SignatureNoisyNeighbour}, {"vm_steal", fleet.SignatureNoisyNeighbour},
		{"kernel_", fleet.SignatureKernelFault}, {"tasks_blocked", fleet.SignatureKernelFault},
	} {
		if strings.HasPrefix(metric, p.prefix) {
			return p.signature
		}
	}
	return fleet.SignatureUnknown
}
