// Package baseline is the plain detector: each column is compared with its own
// slowly moving mean and deviation, and a sample's score is the sum over columns
// of log1p(z²/9), so that each column's part is exact and no single column can
// drown the others. The score becomes a tail probability by the peaks over a high
// quantile of the scores seen while learning (Siffer et al., "Anomaly Detection in
// Streams with Extreme Value Theory", KDD 2017). Minutes of learning do not suffice to
// estimate the tail's shape, so it is set: 0.1, and the heavier the less was learned.
package baseline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Config sets up a [Detector].
type Config struct {
	// Learn is how many samples are watched before scores count: half for the
	// columns' normal, half for the distribution of the score.
	Learn int
	// Memory is the number of samples over which the normal is forgotten to 1/e;
	// 0 means 20,000.
	Memory float64
}

// leastLearn is the smallest Config.Learn: below, no quantile can be told.
const leastLearn = 20

const (
	quantile   = 0.9  // of the learning scores, from where the tail begins
	leastShape = 0.1  // of the generalised Pareto tail
	floorRate  = 0.01 // least deviation, as a share of the mean's size
	floor      = 1e-9 // least deviation, absolute
	loud       = 1e-4 // tail probability from which a sample teaches nothing
)

// Detector scores the samples of one host. It is not safe for concurrent use.
type Detector struct {
	cfg    Config
	mean   []float64
	m2     []float64 // variance
	seen   []float64 // samples of the column
	parts  []float64
	scores []float64 // of the second half of learning
	n      int
	total  float64
	base   float64 // score at the quantile
	scale  float64 // of the peaks over it
	shape  float64 // of the tail beyond
}

// New returns a detector of so many columns.
func New(columns int, cfg Config) (*Detector, error) {
	if columns < 0 || cfg.Learn < leastLearn {
		return nil, fmt.Errorf("baseline detector: %d columns, %d samples to learn: at least 0 and %d are needed", columns, cfg.Learn, leastLearn)
	}
	if cfg.Memory == 0 {
		cfg.Memory = 20_000
	}
	d := &Detector{cfg: cfg, scores: make([]float64, 0, cfg.Learn)}
	return d, d.Grow(columns)
}

// Grow adds columns. A new column learns by itself before it counts.
func (d *Detector) Grow(columns int) error {
	if columns < len(d.mean) {
		return fmt.Errorf("baseline detector: %d columns cannot shrink to %d", len(d.mean), columns)
	}
	grow := func(s []float64) []float64 { return append(s, make([]float64, columns-len(s))...) }
	d.mean, d.m2, d.seen, d.parts = grow(d.mean), grow(d.m2), grow(d.seen), grow(d.parts)
	return nil
}

// Observe scores a sample; NaN is missing. learned is the share of the learning
// period that is done, and tail the probability that a healthy host's sample is
// at least as unusual, 1 while learning.
func (d *Detector) Observe(_ time.Time, x []float64) (learned, tail float64) {
	d.total = 0
	for i, v := range x {
		d.parts[i] = 0
		if math.IsNaN(v) || d.seen[i] < float64(d.cfg.Learn/2) {
			continue
		}
		sd := math.Sqrt(d.m2[i])
		sd = max(sd, floorRate*math.Abs(d.mean[i]), floor)
		z := (v - d.mean[i]) / sd
		d.parts[i] = math.Log1p(z * z / 9)
		d.total += d.parts[i]
	}
	tail = 1
	switch {
	case d.n < d.cfg.Learn:
		d.n++
		if d.n > d.cfg.Learn/2 {
			d.scores = append(d.scores, d.total)
		}
		if d.n == d.cfg.Learn {
			d.calibrate()
		}
	default:
		tail = d.tail(d.total)
	}
	if tail > loud {
		d.learn(x)
	}
	return float64(d.n) / float64(d.cfg.Learn), tail
}

func (d *Detector) learn(x []float64) {
	for i, v := range x {
		if math.IsNaN(v) {
			continue
		}
		d.seen[i]++
		w := 1 / min(d.seen[i], d.cfg.Memory)
		delta := v - d.mean[i]
		d.mean[i] += w * delta
		d.m2[i] += w * (delta*(v-d.mean[i]) - d.m2[i])
	}
}

func (d *Detector) calibrate() {
	slices.Sort(d.scores)
	d.shape = leastShape + 1/math.Sqrt(float64(len(d.scores)))
	d.base = d.scores[int(quantile*float64(len(d.scores)-1))]
	excess, n := 0.0, 0
	for _, s := range d.scores {
		if s > d.base {
			excess += s - d.base
			n++
		}
	}
	// With few peaks the scale is uncertain: it is widened by one standard error.
	d.scale = max(0.05*d.base, 1e-3)
	if n > 0 {
		d.scale = max(d.scale, excess/float64(n)*(1+1/math.Sqrt(float64(n))))
	}
	d.scores = nil
}

// tail is the probability of a score at least as large.
func (d *Detector) tail(score float64) float64 {
	if score <= d.base {
		return 1 - quantile*score/max(d.base, 1e-300)
	}
	return (1 - quantile) * math.Pow(1+d.shape*(score-d.base)/d.scale, -1/d.shape)
}

// Explain fills dst with each column's part of the last score and returns the
// score, which is the sum of the parts.
func (d *Detector) Explain(dst []float64) float64 {
	copy(dst, d.parts)
	return d.total
}

// stateVersion begins the saved state.
const stateVersion = 1

// MarshalBinary returns the state: the version, the configuration and the numbers,
// little-endian.
func (d *Detector) MarshalBinary() ([]byte, error) {
	b := binary.LittleEndian.AppendUint32(nil, stateVersion)
	for _, n := range []int{d.cfg.Learn, len(d.mean), d.n, len(d.scores)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	for _, list := range [][]float64{{d.cfg.Memory, d.base, d.scale, d.shape}, d.mean, d.m2, d.seen, d.scores} {
		for _, v := range list {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		}
	}
	return b, nil
}

// UnmarshalBinary takes over a saved state. Its number of columns must be the
// detector's; after an error the detector is as it was.
func (d *Detector) UnmarshalBinary(b []byte) error {
	const head = 5 * 4
	if len(b) < head {
		return errors.New("baseline detector: the saved state is cut off")
	}
	at := func(i int) int { return int(binary.LittleEndian.Uint32(b[4*i:])) }
	if v := at(0); v != stateVersion {
		return fmt.Errorf("baseline detector: the saved state has version %d, this release reads %d", v, stateVersion)
	}
	learn, columns, n, scores := at(1), at(2), at(3), at(4)
	if columns != len(d.mean) || learn < leastLearn || n > learn || scores > learn {
		return fmt.Errorf("baseline detector: the saved state has %d columns, %d of %d samples and %d scores; the detector has %d columns", columns, n, learn, scores, len(d.mean))
	}
	if want := head + 8*(4+3*columns+scores); len(b) != want {
		return fmt.Errorf("baseline detector: the saved state is %d bytes long, not %d", len(b), want)
	}
	b = b[head:]
	next := func(k int) []float64 {
		out := make([]float64, k)
		for i := range out {
			out[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
		}
		b = b[8*k:]
		return out
	}
	fixed := next(4)
	mean, m2, seen, kept := next(columns), next(columns), next(columns), next(scores)
	for _, list := range [][]float64{fixed, mean, m2, seen, kept} {
		for _, v := range list {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return errors.New("baseline detector: the saved state has a value that is not a number")
			}
		}
	}
	d.cfg = Config{Learn: learn, Memory: fixed[0]}
	d.base, d.scale, d.shape, d.mean, d.m2, d.seen, d.n = fixed[1], fixed[2], fixed[3], mean, m2, seen, n
	d.scores = append(make([]float64, 0, learn), kept...)
	return nil
}
