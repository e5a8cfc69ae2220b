package predictor

import (
	"fmt"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// clearly is by how much the failure probability must be higher than it has been for what is recommended, for
// evidence that points elsewhere to count at once.
const clearly = 0.5

// Standing is a recommendation that was made. What the evidence points to may change with each sample: on a host that
// starves, a service looks hung in one and its neighbours noisy in the next. What is recommended does not. It
// stands until
//
//   - nothing has been wrong in 3 samples in a row;
//   - the evidence has pointed to another action, or to another culprit, in 15 in a row, always the same one;
//   - the evidence points there and is clearly stronger: the host fails with a probability that is higher by 0.5 than any
//     that spoke for what stands.
//
// That an action was tried and did not help ends its recommendation, too: the next one is a new one.
// It is not safe for concurrent use.
type Standing struct {
	action      fleet.Action
	culprit     string
	probability float64 // the highest that spoke for it
	calm        int     // samples in a row in which nothing was wrong
	other       string  // what the last samples spoke for instead
	against     int     // how many of them
}

// Stand begins with a recommendation of an action that was made on a prediction.
func Stand(a fleet.Action, p fleet.Prediction) *Standing {
	return &Standing{action: a, culprit: p.Culprit, probability: p.FailureProbability}
}

// Over takes the next prediction of the host and what would be decided on it now. It says why the
// recommendation does not stand any more, and "" while it does.
func (s *Standing) Over(p fleet.Prediction, d Decision) string {
	if !p.Anomalous {
		s.against = 0
		if s.calm++; s.calm < confirm {
			return ""
		}
		return "the evidence is gone"
	}
	s.calm = 0
	now := string(d.Action)
	switch {
	case d.Action == fleet.ActionNone: // speaks for nothing else
		s.against = 0
		return ""
	case d.Action != s.action:
	case p.Culprit != s.culprit && p.FailureProbability >= 0.5:
		now += " of " + p.Culprit
	default:
		s.against, s.probability = 0, max(s.probability, p.FailureProbability)
		return ""
	}
	if s.against++; now != s.other {
		s.other, s.against = now, 1
	}
	switch {
	case p.FailureProbability >= s.probability+clearly:
		return fmt.Sprintf("the evidence is clearly stronger now and points to %s: %s", p.Signature, now)
	case s.against >= clearAfter:
		return fmt.Sprintf("the evidence has pointed to %s in %d samples: %s", p.Signature, s.against, now)
	}
	return ""
}

// Calm tells whether nothing was wrong in the last sample; false for nil.
func (s *Standing) Calm() bool { return s != nil && s.calm > 0 }
