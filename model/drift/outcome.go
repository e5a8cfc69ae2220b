package drift

import (
	"fmt"
	"math"
)

// Outcome is what came of a host of which a failure was foretold with some probability.
type Outcome uint8

// The outcomes.
const (
	// Sound means that it did not fail within the horizon.
	Sound Outcome = iota
	// Failed means that it did.
	Failed
	// Averted means that somebody acted on it, so that nobody knows what it would have come to.
	Averted
)

// Outcomes holds the probabilities of rare failures against what happened. Each should be of a
// stretch of time of a host that overlaps with no other, so that a failure counts once.
type Outcomes struct {
	// Judged is how many outcomes there are, Expected the sum of their probabilities.
	Judged   int     `json:"judged"`
	Expected float64 `json:"expected"`
	Failed   int     `json:"failed"`
	Averted  int     `json:"averted"`
}

// Check says what is wrong with outcomes that were read.
func (o *Outcomes) Check() error {
	if o.Failed < 0 || o.Averted < 0 || o.Failed > o.Judged || o.Averted > o.Judged-o.Failed || !(o.Expected >= 0 && o.Expected <= float64(o.Judged)) {
		return fmt.Errorf("drift: %d failed and %d were averted of %d, of which %v were expected to fail", o.Failed, o.Averted, o.Judged, o.Expected)
	}
	return nil
}

// Add takes a probability, 0..1, and what came of it.
func (o *Outcomes) Add(p float64, came Outcome) {
	if math.IsNaN(p) {
		return
	}
	o.Judged++
	o.Expected += min(max(p, 0), 1)
	switch came {
	case Failed:
		o.Failed++
	case Averted:
		o.Averted++
	}
}

// leastFailures is how many failures must have been expected, or have come, to be judged on.
const leastFailures = 10

// Error is by how many powers of ten more or fewer failures came than the probabilities amount to.
// What was averted may have been a failure or not, whichever is nearer. It is 0 where there
// are too few failures to judge on, or where chance would do as much: two standard deviations of the
// number that came.
func (o *Outcomes) Error() float64 {
	least, most := float64(o.Failed), float64(o.Failed+o.Averted)
	if max(o.Expected, most) < leastFailures {
		return 0
	}
	came := min(max(o.Expected, least), most)
	if math.Abs(came-o.Expected) <= 2*math.Sqrt(max(o.Expected, 1)) {
		return 0
	}
	return math.Abs(math.Log10(max(came, 0.5) / max(o.Expected, 0.5)))
}
