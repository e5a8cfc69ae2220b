package control

import (
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/baseline"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

const detectorName = "baseline/1"

// newDetector makes the detectors that predictors use.
func newDetector(learn, interval time.Duration) func(fleet.HostID, int) (predictor.Detector, error) {
	return func(_ fleet.HostID, columns int) (predictor.Detector, error) {
		d, err := baseline.New(columns, baseline.Config{Learn: max(20, int(learn/interval))})
		return detector{d}, err
	}
}

type detector struct{ *baseline.Detector }

func (d detector) Observe(at time.Time, x []float64) predictor.Observation {
	learned, tail := d.Detector.Observe(at, x)
	return predictor.Observation{Learning: learned < 1, Learned: learned, Tail: tail}
}
