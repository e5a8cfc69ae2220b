package collector

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shirou/gopsutil/v3/common"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Config says what to sample. Only Host is required.
type Config struct {
	Host fleet.HostID
	// Interval is how often Sample is going to be called; 0 means one second.
	Interval time.Duration
	// Deadline is how long one source may take before the sample goes out
	// without it; 0 means a tenth of Interval, at least 20 and at most 500 ms.
	Deadline time.Duration
	// HostProc, HostSys and HostDev are where /proc, /sys and /dev are; empty
	// means there.
	HostProc, HostSys, HostDev string
	// Units are the systemd units to watch, by full name ("libvirtd.service").
	Units []string
	// UnitStats asks systemd about units. Without it a unit counts as active
	// while its cgroup has processes, and restarts are not known.
	UnitStats UnitStats
	// UnitHealth returns what the health check of each unit found. It may return what an earlier
	// check found.
	UnitHealth func(ctx context.Context) map[string]UnitHealth
	// VMs is the hypervisor; nil means that there is none to ask.
	VMs VMs
	// MaxInstances bounds the series of each source that come and go with
	// devices, file systems and VMs; 0 means 32 instances of each kind.
	MaxInstances int
}

// source reads one subsystem into a frame. It may block for ever. What this
// host does not have is left out, or reported as errNoData where that is all.
type source interface {
	collect(ctx context.Context, f *frame) error
}

// errNoData is the error of a source for which this host has nothing.
var errNoData = errors.New("this host does not have it")

// absent stands for a source that the configuration has no use for. Its metrics
// of the host stay in the schema, so that the columns are those of every host.
type absent struct{}

func (absent) collect(context.Context, *frame) error { return errNoData }

// description is a source as the catalogue and the sampler see it.
type description struct {
	name string
	// every is how often the source runs; 0 means for each sample. In between
	// its values stand.
	every   time.Duration
	metrics []Metric
	make    func(*host) source
}

// host is what sources share.
type host struct {
	config Config
	proc   string
	sys    string
	dev    string
	clock  func() instant
	statfs func(path string) (usage, error)
	adjust func() (clockState, error)
	smart  drives
	groups controlGroups
}

// kept returns a file to be kept open.
func (h *host) kept(path string) *file { return &file{path: path} }

// SourceState says how a source fared in a sample.
type SourceState string

// The states of a source.
const (
	SourceRead   SourceState = "read"   // values are of this sample
	SourceHeld   SourceState = "held"   // not due yet: the values of its last run stand
	SourceAbsent SourceState = "absent" // this host does not have it
	SourceFailed SourceState = "failed" // Err says why; its values are missing
	SourceHung   SourceState = "hung"   // it did not return in time; its values are missing
)

// SourceReport is what one source did in one sample.
type SourceReport struct {
	Source string
	State  SourceState
	// Duration is how long it took, or for how long it has been hanging.
	Duration time.Duration
	// Values is how many series it knew.
	Values int
	// Dropped is how many instances found no place (see Config.MaxInstances).
	Dropped int
	Err     error
}

// worker is a source with what the sampler knows of it. While hanging is true,
// source and frame belong to the goroutine that hangs; else to the sampler.
type worker struct {
	description
	source       source
	frame        *frame
	hanging      atomic.Bool
	hangingSince time.Time
	next         time.Duration // when it is due, as running time
	outcome      SourceState   // in this sample
	version      int           // of the frame, when keys were copied
	keys         []seriesKey
}

func newWorker(d description, src source, maxInstances int) *worker {
	f := newFrame(d.metrics, maxInstances)
	return &worker{description: d, source: src, frame: f, version: f.version, keys: append([]seriesKey(nil), f.keys...)}
}

// Sampler samples one host. It is safe for concurrent use; samples are taken
// one after another.
type Sampler struct {
	host    *host
	mu      sync.Mutex
	workers []*worker
	schema  *fleet.Schema
	columns []column
	boot    string
	bootID  *file
	timer   *time.Timer
	due     []*worker
	closed  bool
}

// column is where a value of a sample comes from.
type column struct {
	worker *worker
	series int
}

// New returns a sampler, which keeps files open until Close. The error says
// what is wrong with the configuration.
func New(c Config) (*Sampler, error) {
	return newSampler(c, &host{clock: now, statfs: statfs, adjust: adjtimex, smart: drives{nvmeHealth, ataSMART}})
}

func newSampler(c Config, h *host) (*Sampler, error) {
	if err := c.Host.Validate(); err != nil {
		return nil, fmt.Errorf("collector: %w", err)
	}
	if c.Interval < 0 || c.Deadline < 0 || c.MaxInstances < 0 {
		return nil, errors.New("collector: interval, deadline and number of instances must not be negative")
	}
	for _, u := range c.Units {
		if err := validUnit(u); err != nil {
			return nil, fmt.Errorf("collector: %w", err)
		}
	}
	if c.Interval == 0 {
		c.Interval = time.Second
	}
	if c.Deadline == 0 {
		c.Deadline = min(max(c.Interval/10, 20*time.Millisecond), 500*time.Millisecond)
	}
	if c.MaxInstances == 0 {
		c.MaxInstances = 32
	}
	h.config = c
	for _, d := range []struct{ set, from *string }{{&h.proc, &c.HostProc}, {&h.sys, &c.HostSys}, {&h.dev, &c.HostDev}} {
		*d.set = *d.from
	}
	if h.proc == "" {
		h.proc = "/proc"
	}
	if h.sys == "" {
		h.sys = "/sys"
	}
	if h.dev == "" {
		h.dev = "/dev"
	}
	if _, err := os.Stat(filepath.Join(h.proc, "stat")); err != nil {
		return nil, fmt.Errorf("collector: %s is not a mounted proc file system: %w", h.proc, err)
	}
	s := &Sampler{host: h, bootID: h.kept(filepath.Join(h.proc, "sys/kernel/random/boot_id")), timer: time.NewTimer(time.Hour)}
	s.timer.Stop()
	for _, d := range descriptions() {
		src := d.make(h)
		if src == nil {
			src = absent{}
		}
		limit := c.MaxInstances
		if d.name == "unit" {
			limit = max(limit, len(c.Units))
		}
		s.workers = append(s.workers, newWorker(d, src, limit))
	}
	return s, nil
}

// Close lets go of the files that the sampler keeps open. A source that still
// hangs lets go of its files when it returns, if it ever does.
func (s *Sampler) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.bootID.close()
	var err error
	for _, w := range s.workers {
		if c, ok := w.source.(interface{ close() error }); ok && !w.hanging.Load() {
			err = errors.Join(err, c.close())
		}
	}
	return err
}

// Sample takes one sample and reports on each source. It waits for no source
// longer than its deadline, and for all of them together no longer than three
// deadlines; where ctx ends first, what is not yet read is missing. The caller
// owns what is returned. Two samples have the same *Schema unless a series came
// or went in between.
func (s *Sampler) Sample(ctx context.Context) (fleet.Sample, []SourceReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := s.host.clock()
	rebooted := s.checkBoot()
	s.due = s.due[:0]
	for _, w := range s.workers {
		w.outcome = SourceHeld
		switch {
		case w.hanging.Load():
			w.outcome = SourceHung
		case s.closed:
			w.outcome = SourceFailed
		case rebooted || start.running >= w.next:
			if rebooted {
				w.frame.forget()
			}
			w.outcome = SourceFailed // until it has been read
			w.next = start.running
			if w.every > 0 { // a tick that comes a little early still counts
				w.next += w.every - s.host.config.Interval/2
			}
			s.due = append(s.due, w)
		}
	}
	if len(s.due) > 0 {
		s.read(withRoots(ctx, s.host), s.due)
	}
	sample := fleet.Sample{Host: s.host.config.Host, Time: start.wall.UTC(), Boot: s.boot}
	s.fill(&sample)
	return sample, s.reports()
}

// checkBoot tells whether the host has restarted since the sample before.
func (s *Sampler) checkBoot() bool {
	b, err := s.bootID.read()
	if err != nil {
		return false
	}
	id := trimSpace(b)
	if s.boot == string(id) {
		return false
	}
	was := s.boot
	s.boot = strings.ToValidUTF8(string(id[:min(len(id), 64)]), "")
	return was != ""
}

// withRoots tells gopsutil where /proc and /sys are.
func withRoots(ctx context.Context, h *host) context.Context {
	if h.proc == "/proc" && h.sys == "/sys" && h.dev == "/dev" {
		return ctx
	}
	return context.WithValue(ctx, common.EnvKey, common.EnvMap{
		common.HostProcEnvKey: h.proc, common.HostSysEnvKey: h.sys, common.HostDevEnvKey: h.dev,
	})
}

// run is one pass over the sources that are due. The source at step is being
// read; a sampler that tires of it sets step to abandoned, and whoever changes
// step first decides whether that source's values count.
type run struct {
	workers []*worker
	step    atomic.Int64
	began   atomic.Int64 // when the current source began, in nanoseconds since the program did
	done    chan struct{}
}

const abandoned = -1

var programStart = time.Now()

// read runs the sources that are due, one after another in a goroutine of
// their own. When one of them takes longer than the deadline, it is left alone
// in that goroutine and the rest goes on in another one.
func (s *Sampler) read(ctx context.Context, due []*worker) {
	deadline := s.host.config.Deadline
	budget := time.Now().Add(3 * deadline)
	for len(due) > 0 && ctx.Err() == nil && time.Now().Before(budget) {
		// The slice is copied, since an abandoned run outlives this call.
		r := &run{workers: append([]*worker(nil), due...), done: make(chan struct{})}
		r.began.Store(int64(time.Since(programStart)))
		go s.work(ctx, r)
		step := s.watch(ctx, r, deadline, budget)
		for _, w := range due[:step] {
			w.outcome = SourceRead
		}
		if step == len(due) {
			return
		}
		due[step].outcome = SourceHung
		due = due[step+1:]
	}
}

// watch waits for a run and returns how many of its sources were read. Where
// they are not all, the next one was abandoned.
func (s *Sampler) watch(ctx context.Context, r *run, deadline time.Duration, budget time.Time) int {
	wait := min(deadline, time.Until(budget))
	for {
		s.timer.Reset(wait)
		select {
		case <-r.done:
			s.timer.Stop()
			return len(r.workers)
		case <-s.timer.C:
		case <-ctx.Done():
			s.timer.Stop()
		}
		step := r.step.Load()
		if step == int64(len(r.workers)) {
			return len(r.workers)
		}
		elapsed := time.Since(programStart) - time.Duration(r.began.Load())
		if left := min(deadline-elapsed, time.Until(budget)); left > 0 && ctx.Err() == nil {
			wait = left
			continue
		}
		w := r.workers[step]
		w.hangingSince = time.Now().Add(-elapsed)
		w.hanging.Store(true)
		if r.step.CompareAndSwap(step, abandoned) {
			return int(step)
		}
		w.hanging.Store(false) // it came to its end after all
		wait = deadline
	}
}

// work reads the sources of a run until it is abandoned.
func (s *Sampler) work(ctx context.Context, r *run) {
	for i, w := range r.workers {
		begin := time.Since(programStart)
		r.began.Store(int64(begin))
		w.frame.err = w.collect(ctx, s.host.clock().running)
		w.frame.took = time.Since(programStart) - begin
		if !r.step.CompareAndSwap(int64(i), int64(i+1)) {
			// Nobody waits any more, and when the counters were read is unknown.
			w.frame.forget()
			w.hanging.Store(false)
			return
		}
	}
	close(r.done)
}

// collect calls the source and turns a panic over what it read into an error.
func (w *worker) collect(ctx context.Context, now time.Duration) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("what was read made no sense to the source: %v", p)
		}
	}()
	w.frame.begin(now)
	return w.source.collect(ctx, w.frame)
}

// fill puts the values of all sources into the sample, and makes a new schema
// where series came or went.
func (s *Sampler) fill(sample *fleet.Sample) {
	changed := s.schema == nil
	for _, w := range s.workers {
		if w.outcome != SourceHung && w.outcome != SourceFailed && w.version != w.frame.version {
			w.version = w.frame.version
			w.keys = append(w.keys[:0], w.frame.keys...)
			changed = true
		}
	}
	if changed {
		s.layOut()
	}
	sample.Schema = s.schema
	sample.Values = make([]float64, s.schema.Len())
	for i, c := range s.columns {
		if c.worker.outcome == SourceRead || c.worker.outcome == SourceHeld {
			sample.Values[i] = c.worker.frame.values[c.series]
		} else {
			sample.Values[i] = math.NaN()
		}
	}
}

// layOut makes the schema: the metrics of the host in the order of the
// catalogue, then the series of instances in the order in which they came.
func (s *Sampler) layOut() {
	var names []string
	s.columns = s.columns[:0]
	for _, ofHost := range []bool{true, false} {
		for _, w := range s.workers {
			for i, k := range w.keys {
				if (k.instance == "") == ofHost {
					names = append(names, fleet.SeriesName(k.metric, k.instance))
					s.columns = append(s.columns, column{w, i})
				}
			}
		}
	}
	s.schema = fleet.NewSchema(names)
}

func (s *Sampler) reports() []SourceReport {
	reports := make([]SourceReport, len(s.workers))
	for i, w := range s.workers {
		r := &reports[i]
		r.Source, r.State = w.name, w.outcome
		switch {
		case w.outcome == SourceHung:
			r.Duration = time.Since(w.hangingSince)
			r.Err = fmt.Errorf("source %s has been hanging for %s: a device or file system that it reads does not answer", w.name, r.Duration.Round(time.Millisecond))
			continue
		case w.outcome == SourceFailed && s.closed:
			r.Err = os.ErrClosed
			continue
		case w.outcome == SourceFailed:
			r.Err = errNotReached
			continue
		}
		if w.outcome == SourceRead {
			r.Duration = w.frame.took
		}
		r.Dropped = w.frame.dropped
		for _, v := range w.frame.values {
			if !math.IsNaN(v) {
				r.Values++
			}
		}
		switch err := w.frame.err; {
		case errors.Is(err, errNoData):
			r.State = SourceAbsent
		case err != nil:
			r.State, r.Err = SourceFailed, fmt.Errorf("source %s: %w", w.name, err)
		}
	}
	return reports
}

// errNotReached is the error of a source whose turn did not come.
var errNotReached = errors.New("not read: the time for this sample was over before its turn")
