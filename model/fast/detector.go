package fast

import (
	"fmt"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

// Config sets up a [Detector].
type Config struct {
	// Learn is how many samples are watched before the scores count, at least 20
	// and at most 65,536. They are kept until they have been learned.
	Learn int
	// Memory is the number of samples over which the tail of the scores is
	// forgotten to 1/e; 0 means 20,000.
	Memory float64
}

const (
	mostLearn = 1 << 16
	loud      = 1e-3 // tail probability below which a sample may belong to an incident
)

// Detector learns from the samples of one host as they come, and scores them. It is not safe for
// concurrent use.
type Detector struct {
	cfg     Config
	columns int

	live *Scorer // of the first columns; nil until something was learned
	tail tail.Tail
	done bool      // the learning period is over
	loud bool      // the last sample was
	rows []float32 // what is to be learned, row by row; nil when nothing is
}

// New returns a detector of so many columns, at most 512.
func New(columns int, cfg Config) (*Detector, error) {
	if cfg.Memory == 0 {
		cfg.Memory = 20_000
	}
	if cfg.Learn < leastLearn || cfg.Learn > mostLearn || !(cfg.Memory >= 1) || math.IsInf(cfg.Memory, 0) {
		return nil, fmt.Errorf("fast detector: %d samples to learn and a memory of %v samples: %d to %d and at least 1 are needed", cfg.Learn, cfg.Memory, leastLearn, mostLearn)
	}
	d := &Detector{cfg: cfg}
	return d, d.Grow(columns)
}

// Grow adds columns. What was learned goes on scoring the columns that it knows,
// while a learning period of calm samples passes for all of them.
func (d *Detector) Grow(columns int) error {
	if columns < d.columns || columns > mostColumns {
		return fmt.Errorf("fast detector: %d columns cannot become %d: they can only grow, to %d at most", d.columns, columns, mostColumns)
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

// Fit learns the rows as [Fit] does, and ends the learning period. What was learned
// before is forgotten.
func (d *Detector) Fit(rows [][]float64) error {
	flat, columns, err := flatten(rows)
	if err != nil {
		return err
	}
	if columns != d.columns {
		return fmt.Errorf("fast detector: samples of %d values for %d columns", columns, d.columns)
	}
	if err := d.learn(flat); err != nil {
		return err
	}
	d.rows, d.done = nil, true
	return nil
}

// Observe scores a sample; NaN and infinities are missing, and so is what is left
// out at the end. learned is the share of the learning period that is done, and
// tail the probability that a healthy host's sample is at least as unusual. While learning, tail is 1 at
// first, and then never below what so few samples can tell.
func (d *Detector) Observe(_ time.Time, x []float64) (learned, tail float64) {
	tail = 1
	if d.live != nil {
		score := d.live.Score(x)
		tail = d.tail.Of(score)
		// Of an incident only the begin teaches, or it would soon pass for normal.
		before := d.loud
		if d.loud = tail < loud; !d.loud || !before {
			d.tail.Adapt(score, d.cfg.Memory)
		}
	}
	if d.rows == nil {
		return 1, tail
	}
	n := len(d.rows) / d.columns
	if !d.done {
		tail = max(tail, min(1, 2/float64(max(n, 1))))
	}
	if !d.done || !d.loud {
		for i := range d.columns {
			v := math.NaN()
			if i < len(x) {
				v = x[i]
			}
			d.rows = append(d.rows, float32(v))
		}
		n++
		// The early models come at 32, 64, 128, ... samples.
		if n == d.cfg.Learn || !d.done && n >= 32 && n&(n-1) == 0 {
			err := d.learn(d.rows)
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

// learn replaces model, live and tail by what the rows tell, of which the last quarter
// calibrates a model of those before; after an error they are as they were.
func (d *Detector) learn(rows []float32) error {
	n := len(rows) / d.columns
	first := n * 3 / 4
	_, s, err := fit(rows[:first*d.columns], d.columns)
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
		return err
	}
	if _, s, err = fit(rows, d.columns); err != nil {
		return err
	}
	d.live, d.tail = s, t
	return nil
}

// Reset forgets the last minutes but not what was learned: for the first sample
// after a pause, as of maintenance or a restart of the host.
func (d *Detector) Reset() {
	if d.live != nil {
		d.live = d.live.m.Scorer()
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
		model, state = d.live.m.Bytes(), state+d.live.Bytes()
	}
	return model, state
}
