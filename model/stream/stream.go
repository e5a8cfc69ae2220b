// Package stream is the life of the detector of one host, whatever it scores by: it learns
// from the samples as they come, says how probable each is on a healthy host, takes up new
// columns, and is saved and loaded. Packages anomaly and fast are the two ways to score.
package stream

import (
	"fmt"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

// Method is a way to score samples that learns what is normal.
type Method interface {
	// Name names it in errors and in what is saved.
	Name() string
	// Fit learns from rows of so many columns, one after the other, NaN where a value is
	// missing. It returns the scorer as it is after the last of them.
	Fit(rows []float32, columns int, days Days) (Scorer, error)
	// Empty is a scorer of so many columns, with days of so many samples (0: none), that
	// knows nothing: what is saved is loaded into it. The error says that there can be none.
	Empty(columns, period int) (Scorer, error)
}

// Days says what is known of the time of day at which rows were sampled. The zero value
// says that there is no telling.
type Days struct {
	// Search says that the length of a day is to be looked for in the rows.
	Search bool
	// Start is the time of the first row, and Interval the time between two, where they are
	// known.
	Start    time.Time
	Interval time.Duration
}

// Scorer scores the samples of one host, in order.
type Scorer interface {
	// Score is at least 0, and the larger the more unusual the sample is; NaN and infinities are
	// missing, and so is what is left out at the end.
	Score(x []float64) float64
	// Explain fills dst with each column's part of the last score, and returns their sum.
	Explain(dst []float64) float64
	// Seek says when the next sample was taken.
	Seek(at time.Time)
	// Reset forgets the last minutes, and Rewind all since it was learned.
	Reset()
	Rewind()
	// Size is what Empty is called with for one like it.
	Size() (columns, period int)
	// Visit walks over all numbers of the model and of the scorer, in the same order each
	// time, and Sound says whether the values can be gone on with.
	Visit(Visitor)
	Sound() bool
	// Bytes is the memory of the model, and of the scorer beside it.
	Bytes() (model, state int)
}

// Config sets up a [Detector].
type Config struct {
	// Learn is how many samples are watched before the scores count, at least [Least]
	// and at most [MostLearn]. They are kept until they have been learned.
	Learn int
	// Memory is the number of samples over which the tail of the scores is
	// forgotten to 1/e; 0 means [Memory].
	Memory float64
	// Interval is the time between samples, by which the times given to
	// [Detector.Observe] and [Detector.FitFrom] are places in a day. 0 means that it is not
	// known: then Fit looks for the length of a day in the samples themselves, samples are
	// taken to follow each other evenly, and what Observe learns by itself knows no days.
	Interval time.Duration
}

// The limits of a detector.
const (
	Least       = 20 // samples to learn from
	MostLearn   = 1 << 16
	MostColumns = 512
)

// Memory is the usual [Config.Memory], in samples.
const Memory = 20_000

const loud = 1e-3 // tail probability below which a sample may belong to an incident

// Detector scores the samples of one host. It is not safe for concurrent use.
type Detector struct {
	method  Method
	cfg     Config
	columns int

	live Scorer // of the first columns; nil until something was learned
	tail tail.Tail
	done bool      // the learning period is over
	loud bool      // the last sample was
	rows []float32 // what is to be learned, row by row; nil when nothing is
	// The rows began at first; even says that each was one interval after the last.
	first, last time.Time
	even        bool
}

// New returns a detector of so many columns, at most [MostColumns].
func New(method Method, columns int, cfg Config) (*Detector, error) {
	if cfg.Memory == 0 {
		cfg.Memory = Memory
	}
	if cfg.Interval < 0 {
		return nil, fmt.Errorf("%s detector: an interval of %v between samples", method.Name(), cfg.Interval)
	}
	if cfg.Learn < Least || cfg.Learn > MostLearn || !(cfg.Memory >= 1) || math.IsInf(cfg.Memory, 0) {
		return nil, fmt.Errorf("%s detector: %d samples to learn and a memory of %v samples: %d to %d and at least 1 are needed", method.Name(), cfg.Learn, cfg.Memory, Least, MostLearn)
	}
	d := &Detector{method: method, cfg: cfg}
	return d, d.Grow(columns)
}

// Grow adds columns. What was learned goes on scoring the columns that it knows,
// while a learning period of calm samples passes for all of them.
func (d *Detector) Grow(columns int) error {
	if columns > MostColumns {
		return fmt.Errorf("%s detector: %d columns are too many: at most %d are possible", d.method.Name(), columns, MostColumns)
	}
	if columns < d.columns {
		return fmt.Errorf("%s detector: %d columns cannot become %d: they can only grow", d.method.Name(), d.columns, columns)
	}
	if columns == d.columns {
		return nil
	}
	rows := make([]float32, 0, d.cfg.Learn*columns)
	for at := 0; at < len(d.rows); at += d.columns {
		rows = append(rows, d.rows[at:at+d.columns]...)
		for range columns - d.columns {
			rows = append(rows, float32(math.NaN()))
		}
	}
	d.rows, d.columns = rows, columns
	return nil
}

// Rows puts samples, at least [Least] and each of as many values, one after the other, as a
// [Method] learns them.
func Rows(samples [][]float64) (rows []float32, columns int, err error) {
	if len(samples) < Least {
		return nil, 0, fmt.Errorf("%d samples to learn from, at least %d are needed", len(samples), Least)
	}
	columns = len(samples[0])
	if columns == 0 || columns > MostColumns {
		return nil, 0, fmt.Errorf("samples of %d values: 1 to %d are possible", columns, MostColumns)
	}
	rows = make([]float32, 0, len(samples)*columns)
	for i, r := range samples {
		if len(r) != columns {
			return nil, 0, fmt.Errorf("sample %d has %d values, the first has %d", i, len(r), columns)
		}
		for _, v := range r {
			rows = append(rows, narrow(v))
		}
	}
	return rows, columns, nil
}

// narrow makes what is not finite missing.
func narrow(v float64) float32 {
	f := float32(v)
	if math.IsInf(float64(f), 0) {
		return float32(math.NaN())
	}
	return f
}

// Fit learns the samples, in order, and ends the learning period. What was learned
// before is forgotten. With an interval in the configuration, use [Detector.FitFrom]: without
// their times the samples tell nothing of days.
func (d *Detector) Fit(samples [][]float64) error { return d.FitFrom(time.Time{}, samples) }

// FitFrom is Fit for samples that follow each other at the configured interval, the first of
// them taken at start.
func (d *Detector) FitFrom(start time.Time, samples [][]float64) error {
	rows, columns, err := Rows(samples)
	if err != nil {
		return fmt.Errorf("%s detector: %w", d.method.Name(), err)
	}
	if columns != d.columns {
		return fmt.Errorf("%s detector: samples of %d values for %d columns", d.method.Name(), columns, d.columns)
	}
	if err := d.learn(rows, Days{Search: d.cfg.Interval == 0, Start: start, Interval: d.cfg.Interval}); err != nil {
		return err
	}
	d.rows, d.done = nil, true
	return nil
}

// Observe scores a sample; NaN and infinities are missing, and so is what is left
// out at the end. learned is the share of the learning period that is done, and
// tail the probability that on a healthy host an episode at least as unusual begins with a
// sample. While learning, tail is 1 at first, and then never below what so few samples can
// tell.
func (d *Detector) Observe(at time.Time, x []float64) (learned, tail float64) {
	tail = 1
	if d.live != nil {
		if d.cfg.Interval > 0 && !at.IsZero() {
			d.live.Seek(at)
		}
		score := d.live.Score(x)
		tail = d.tail.Of(score)
		d.loud = tail < loud
		d.tail.Adapt(score, d.cfg.Memory)
	}
	if d.rows == nil {
		return 1, tail
	}
	n := len(d.rows) / d.columns
	if !d.done {
		tail = max(tail, min(1, 2/float64(max(n, 1))))
	}
	if !d.done || !d.loud {
		d.keep(at, x)
		n++
		// The early models come at 32, 64, 128, ... samples.
		if n == d.cfg.Learn || !d.done && n >= 32 && n&(n-1) == 0 {
			var days Days
			if d.even {
				days = Days{Start: d.first, Interval: d.cfg.Interval}
			}
			err := d.learn(d.rows, days)
			switch {
			case n < d.cfg.Learn:
			case err != nil: // another learning period
				d.rows = d.rows[:0]
			default:
				d.rows, d.done = nil, true
			}
		}
	}
	if d.done {
		return 1, tail
	}
	return float64(n) / float64(d.cfg.Learn), tail
}

// keep adds a sample to those that are to be learned.
func (d *Detector) keep(at time.Time, x []float64) {
	if len(d.rows) == 0 {
		d.first, d.even = at, !at.IsZero()
	} else if off := at.Sub(d.last) - d.cfg.Interval; off.Abs() > d.cfg.Interval/2 {
		d.even = false
	}
	d.last = at
	for i := range d.columns {
		v := math.NaN()
		if i < len(x) {
			v = x[i]
		}
		d.rows = append(d.rows, narrow(v))
	}
}

// learn replaces live and tail by what the rows tell, of which the last quarter calibrates a
// model of those before; after an error they are as they were.
func (d *Detector) learn(rows []float32, days Days) error {
	n := len(rows) / d.columns
	first := n * 3 / 4
	s, err := d.method.Fit(rows[:first*d.columns], d.columns, days)
	if err != nil {
		return err
	}
	x := make([]float64, d.columns)
	held := make([]float64, 0, n-first)
	for r := first; r < n; r++ {
		for i, v := range rows[r*d.columns : (r+1)*d.columns] {
			x[i] = float64(v)
		}
		held = append(held, s.Score(x))
	}
	t, err := tail.New(held)
	if err != nil {
		return fmt.Errorf("%s detector: %w", d.method.Name(), err)
	}
	if s, err = d.method.Fit(rows, d.columns, days); err != nil {
		return err
	}
	d.live, d.tail = s, t
	return nil
}

// Reset forgets the last minutes but not what was learned: for the first sample
// after a pause, as of maintenance or a restart of the host.
func (d *Detector) Reset() {
	if d.live != nil {
		d.live.Reset()
	}
}

// Rewind prepares for a stream that begins once more with the samples that were learned.
func (d *Detector) Rewind() {
	if d.live != nil {
		d.live.Rewind()
	}
}

// Explain fills dst, of as many values as there are columns, with each column's
// part of the last score and returns the score, which is the sum of the parts. Both are 0 before
// anything was learned.
func (d *Detector) Explain(dst []float64) float64 {
	clear(dst)
	if d.live == nil {
		return 0
	}
	return d.live.Explain(dst)
}

// Bytes is the memory that the detector holds: of its model and of all else.
func (d *Detector) Bytes() (model, state int) {
	state = 4 * cap(d.rows)
	if d.live != nil {
		m, s := d.live.Bytes()
		model, state = m, state+s
	}
	return model, state
}
