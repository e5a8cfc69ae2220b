// Package staged is the detector that serve keeps of each host. It begins plain and
// becomes strong:
//
//  1. For a learning period the samples of the host-level series are kept, while package
//     baseline learns each column by itself; from then on baseline scores.
//  2. At its end package columns chooses at most 40 of the host-level series (the cost of
//     the strong detector grows with the square of the columns), and package anomaly learns
//     how they move together, from the kept samples and those that follow. What is kept and
//     learned meanwhile takes memory, so only so many hosts may be in this stage at once.
//  3. Then anomaly scores the chosen columns, and a baseline the rest (what was constant,
//     near duplicates, and what there is one of for each disk or unit), so that nothing
//     goes unseen. The first baseline is kept as the fall-back.
//
// After so many samples the strong detector is learned anew from those that follow, of
// which what is unusual teaches nothing, while the old one goes on scoring; and when half of
// the chosen columns stay away, the host falls back and begins at the first stage.
//
// A host that stays unusual would never be learned anew by that. Where unusual samples outnumber
// the others by as many as come between two lessons (a day in serve), it has changed for good, as by another mix of
// VMs: all that was learned is forgotten, and the host begins at the first stage as it is now.
package staged

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/baseline"
	"github.com/tardigrade-recovery/tardigrade/model/columns"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

// Config sets up a [Detector]. All lengths are in samples.
type Config struct {
	// Learn is the first stage, at least 20.
	Learn int
	// Strong is how many samples the strong detector learns from, the kept ones included:
	// at least 64, at most 4,096. 0 leaves it at the baseline.
	Strong int
	// Again is after how many samples the strong detector is learned anew, and how many unusual ones more than
	// others make a host one that has changed; 0 is never.
	Again int
	// Interval is the time between samples, where it is known.
	Interval time.Duration
	// Method is how the strong detector scores: [anomaly.Method], which is what nil means,
	// or fast.Method.
	Method stream.Method
	// Slots, where it is not nil, limits how many detectors learn at once.
	Slots *Slots
}

const (
	mostStrong = 4096
	mostKept   = 512 // samples of the first stage
	mostWide   = 256 // candidates among which is chosen
	quiet      = 1e-3
	goneAfter  = 120 // samples with half of the chosen columns missing
)

// Slots limits how many detectors learn at the same time. One that was not used for ten
// minutes, because its host is gone, loses its slot. It is safe for concurrent use.
type Slots struct {
	mu   sync.Mutex
	most int
	used map[*Detector]time.Time
}

const idle = 10 * time.Minute

// NewSlots returns so many slots.
func NewSlots(most int) *Slots { return &Slots{most: most, used: make(map[*Detector]time.Time)} }

// take gets or keeps a slot for a detector, if there is one.
func (s *Slots) take(d *Detector) bool {
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if _, ok := s.used[d]; !ok && len(s.used) >= s.most {
		for other, at := range s.used {
			if now.Sub(at) > idle {
				delete(s.used, other)
			}
		}
		if len(s.used) >= s.most {
			return false
		}
	}
	s.used[d] = now
	return true
}

func (s *Slots) give(d *Detector) {
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.used, d)
	}
}

// Detector scores the samples of one host. It is not safe for concurrent use.
type Detector struct {
	cfg  Config
	host []bool // for each column whether it is host-level

	first *baseline.Detector // of all columns

	wide []int     // candidates: columns that are host-level, in the first stage
	kept []float32 // their samples, row by row

	chosen []int            // columns of the strong detector, nil before the choice
	strong *stream.Detector // nil before it has learned
	next   *stream.Detector // what is learning; it holds a slot
	rest   *baseline.Detector
	others []int // columns of rest
	age    int   // samples since strong learned
	gone   int   // samples in a row with half of the chosen columns missing
	odd    int   // by how many the unusual samples outnumber the others since they last did not

	x, y []float64 // chosen, others
	last Result
}

// Result is what a detector says of one sample. A tail is the probability that a healthy
// host's sample is at least as unusual.
type Result struct {
	// Learned is the share of the first stage that is done, 0..1.
	Learned float64
	// Strong is true from the third stage on.
	Strong bool
	// Lead is the tail of the strong detector, 1 before the third stage.
	Lead float64
	// Rest is the tail of the baseline: of all columns, or in the third stage of those that
	// were not chosen. It is 1 while that learns.
	Rest float64
}

// New returns a detector of no columns; see [Detector.Grow].
func New(cfg Config) (*Detector, error) {
	first, err := baseline.New(0, baseline.Config{Learn: cfg.Learn})
	if err != nil {
		return nil, err
	}
	if cfg.Strong != 0 && (cfg.Strong < 64 || cfg.Strong > mostStrong) || cfg.Again < 0 {
		return nil, fmt.Errorf("staged detector: %d samples for the strong detector, again after %d: 64 to %d, or 0 for none, are possible", cfg.Strong, cfg.Again, mostStrong)
	}
	if cfg.Method == nil {
		cfg.Method = anomaly.Method
	}
	return &Detector{cfg: cfg, first: first}, nil
}

// Grow adds columns: one for each entry, which is true where the series is host-level, one
// of the host as a whole.
func (d *Detector) Grow(hostLevel []bool) error {
	had := len(d.host)
	if len(hostLevel) < had {
		return fmt.Errorf("staged detector: %d columns cannot shrink to %d", had, len(hostLevel))
	}
	if err := d.first.Grow(len(hostLevel)); err != nil {
		return err
	}
	added := 0
	if d.chosen == nil && d.cfg.Strong > 0 {
		for c := had; c < len(hostLevel) && len(d.wide) < mostWide; c++ {
			if hostLevel[c] {
				d.wide = append(d.wide, c)
				added++
			}
		}
		d.widen(added)
	}
	if d.rest != nil {
		for c := had; c < len(hostLevel); c++ {
			d.others = append(d.others, c)
		}
		if err := d.rest.Grow(len(d.others)); err != nil {
			return err
		}
		d.y = make([]float64, len(d.others))
	}
	d.host = append(d.host, hostLevel[had:]...)
	return nil
}

// widen lets the kept rows have columns that were not there before.
func (d *Detector) widen(added int) {
	before := len(d.wide) - added
	if added == 0 || before == 0 || len(d.kept) == 0 {
		return
	}
	var kept []float32
	for at := 0; at < len(d.kept); at += before {
		kept = append(kept, d.kept[at:at+before]...)
		for range added {
			kept = append(kept, float32(math.NaN()))
		}
	}
	d.kept = kept
}

// Observe scores a sample, one value for each column; NaN is missing.
func (d *Detector) Observe(at time.Time, x []float64) Result {
	r := d.observe(at, x)
	if min(r.Lead, r.Rest) < quiet {
		d.odd++
	} else {
		d.odd = max(0, d.odd-1)
	}
	if d.cfg.Again > 0 && d.odd >= d.cfg.Again {
		d.forget()
	}
	return r
}

func (d *Detector) observe(at time.Time, x []float64) Result {
	learned, tail := d.first.Observe(at, x)
	d.last = Result{Learned: learned, Lead: 1, Rest: tail}
	if d.cfg.Strong == 0 {
		return d.last
	}
	if d.chosen == nil {
		d.keep(x)
		if learned == 1 && len(d.kept) >= min(d.cfg.Learn, mostKept)*len(d.wide) {
			d.choose(at)
		}
		return d.last
	}
	d.pick(x)
	known, rest := d.rest.Observe(at, d.y)
	lead := 1.0
	if d.strong != nil {
		_, lead = d.strong.Observe(at, d.x)
		d.age++
	}
	if d.strong != nil && known == 1 {
		d.last = Result{Learned: learned, Strong: true, Lead: lead, Rest: rest}
	}
	d.teach(at)
	d.fallBack()
	return d.last
}

func (d *Detector) keep(x []float64) {
	w := len(d.wide)
	if w == 0 {
		return
	}
	if len(d.kept) >= mostKept*w {
		d.kept = d.kept[:copy(d.kept, d.kept[w:mostKept*w])]
	}
	for _, c := range d.wide {
		d.kept = append(d.kept, float32(x[c]))
	}
}

// choose ends the first stage.
func (d *Detector) choose(now time.Time) {
	w := len(d.wide)
	rows := 0
	if w > 0 {
		rows = len(d.kept) / w
	}
	chosen := columns.Choose(rows, w, columns.Most, func(r, c int) float64 { return float64(d.kept[r*w+c]) })
	if len(chosen) == 0 { // an idle host: perhaps later
		d.kept = d.kept[:0]
		return
	}
	for _, c := range chosen {
		d.chosen = append(d.chosen, d.wide[c])
	}
	kept, wide := d.kept, d.wide
	d.kept, d.wide = nil, nil
	d.divide()
	if !d.begin() {
		return
	}
	// What was kept teaches too.
	place := make(map[int]int, w)
	for i, c := range wide {
		place[c] = i
	}
	for r := range rows {
		for i, c := range d.chosen {
			d.x[i] = float64(kept[r*w+place[c]])
		}
		d.lesson(now.Add(time.Duration(r-rows+1) * d.cfg.Interval))
		if d.next == nil {
			return
		}
	}
}

// divide sets up what follows from the choice.
func (d *Detector) divide() {
	taken := make([]bool, len(d.host))
	for _, c := range d.chosen {
		taken[c] = true
	}
	d.others = d.others[:0]
	for c := range d.host {
		if !taken[c] {
			d.others = append(d.others, c)
		}
	}
	d.x, d.y = make([]float64, len(d.chosen)), make([]float64, len(d.others))
	d.rest, _ = baseline.New(len(d.others), baseline.Config{Learn: d.cfg.Learn}) // as the first one was made
}

// begin starts to learn a strong detector, where there is a slot.
func (d *Detector) begin() bool {
	if !d.cfg.Slots.take(d) {
		return false
	}
	next, err := stream.New(d.cfg.Method, len(d.chosen), stream.Config{Learn: d.cfg.Strong, Interval: d.cfg.Interval})
	if err != nil {
		d.cfg.Slots.give(d)
		return false
	}
	d.next = next
	return true
}

func (d *Detector) pick(x []float64) {
	for i, c := range d.chosen {
		d.x[i] = x[c]
	}
	for i, c := range d.others {
		d.y[i] = x[c]
	}
}

// teach lets what is learning take the sample.
func (d *Detector) teach(at time.Time) {
	if d.next == nil && (d.strong == nil || d.cfg.Again > 0 && d.age >= d.cfg.Again) && !d.begin() {
		return
	}
	if d.next == nil || min(d.last.Lead, d.last.Rest) < quiet {
		return
	}
	d.lesson(at)
}

// lesson gives a sample to what is learning, and puts it in charge once it has learned.
func (d *Detector) lesson(at time.Time) {
	if learned, _ := d.next.Observe(at, d.x); learned < 1 {
		d.cfg.Slots.take(d)
		return
	}
	d.strong, d.next, d.age = d.next, nil, 0
	d.cfg.Slots.give(d)
}

// fallBack returns to the first stage where the chosen columns have gone.
func (d *Detector) fallBack() {
	missing := 0
	for _, v := range d.x {
		if math.IsNaN(v) {
			missing++
		}
	}
	if 2*missing < len(d.x) {
		d.gone = 0
		return
	}
	if d.gone++; d.gone < goneAfter {
		return
	}
	d.restart()
}

// restart returns to the first stage, of which the baseline is kept.
func (d *Detector) restart() {
	d.Close()
	d.chosen, d.strong, d.rest, d.others, d.gone = nil, nil, nil, nil, 0
	d.wide, d.kept, d.last.Strong = nil, nil, false
	if d.cfg.Strong == 0 {
		return
	}
	for c, host := range d.host {
		if host && len(d.wide) < mostWide {
			d.wide = append(d.wide, c)
		}
	}
}

// forget begins anew with what the host is like now.
func (d *Detector) forget() {
	d.restart()
	d.first, _ = baseline.New(len(d.host), baseline.Config{Learn: d.cfg.Learn}) // as the first one was made
	d.odd = 0
}

// Close gives back what the detector holds of what is shared. It may be used on.
func (d *Detector) Close() {
	if d.next != nil {
		d.next = nil
		d.cfg.Slots.give(d)
	}
}

// Explain fills dst, of as many values as there are columns, with each column's part of the
// last score, of the detector whose tail was smaller, and returns the score, which is the
// sum of the parts.
func (d *Detector) Explain(dst []float64) float64 {
	if !d.last.Strong {
		return d.first.Explain(dst)
	}
	clear(dst)
	if d.last.Lead <= d.last.Rest {
		total := d.strong.Explain(d.x)
		for i, c := range d.chosen {
			dst[c] = d.x[i]
		}
		return total
	}
	return d.ExplainRest(dst)
}

// ExplainRest is [Detector.Explain] of the baseline.
func (d *Detector) ExplainRest(dst []float64) float64 {
	if !d.last.Strong {
		return d.first.Explain(dst)
	}
	clear(dst)
	total := d.rest.Explain(d.y)
	for i, c := range d.others {
		dst[c] = d.y[i]
	}
	return total
}

// Chosen is the columns of the strong detector, nil before the choice. The caller must not
// change it.
func (d *Detector) Chosen() []int { return d.chosen }
