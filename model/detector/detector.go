// Package detector lists the detectors of unusual samples by name, behind one interface, so that
// they are judged and measured alike.
package detector

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/baseline"
	"github.com/tardigrade-recovery/tardigrade/model/fast"
	"github.com/tardigrade-recovery/tardigrade/model/pca"
	"github.com/tardigrade-recovery/tardigrade/model/rival/forecast"
	"github.com/tardigrade-recovery/tardigrade/model/rival/iforest"
	"github.com/tardigrade-recovery/tardigrade/model/rival/kmeans"
	"github.com/tardigrade-recovery/tardigrade/model/rival/knn"
	"github.com/tardigrade-recovery/tardigrade/model/rival/subspace"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

// Model is what was learned of a host, or of many that are alike.
type Model interface {
	// Scorer returns one at the begin of a stream.
	Scorer() Scorer
	// Bytes is the memory that the model holds.
	Bytes() int
}

// Scorer scores the samples of one host, in order; it is not safe for concurrent use.
type Scorer interface {
	// Score is at least 0, and the larger the more unusual the sample is; NaN is missing.
	Score(x []float64) float64
	// Bytes is the memory that the scorer holds beside its model.
	Bytes() int
}

// Watch scores the next sample of a host, and says how probable it is that a healthy host's is
// as unusual.
type Watch func(x []float64) (score, tail float64)

// Detector is one way to tell unusual samples.
type Detector struct {
	Name, About string
	// Fit learns from samples in order, all with as many values. It is nil for a method
	// that must see a whole series before it scores.
	Fit func(rows [][]float64) (Model, error)
	// Whole scores a whole series, for such a method.
	Whole func(rows [][]float64) ([]float64, error)

	watch func(rows [][]float64, again bool) (Watch, error) // for one that calibrates itself
}

// All lists the detectors, the default one first.
func All() []Detector {
	return []Detector{
		{Name: "default", About: "moving deviations, forecasts, steps and the time of day, judged together by Mahalanobis distances and each in its own tail", Fit: fitter(anomaly.Fit), watch: watcher(anomaly.Method)},
		{Name: "fast", About: "what default does, at rank 12 and 4 instead of full, for a million samples a second", Fit: fitter(fast.Fit), watch: watcher(fast.Method)},
		{Name: "baseline", About: "each metric against its own slowly moving normal", Fit: fitBaseline, watch: watchBaseline},
		{Name: "iforest", About: "isolation forest", Fit: fitter(iforest.Fit)},
		{Name: "kmeans", About: "k-means of each metric's windows, as Netdata does", Fit: fitter(kmeans.Fit)},
		{Name: "knn", About: "distance to the fifth nearest of 1,500 samples", Fit: fitter(knn.Fit)},
		{Name: "forecast", About: "residual of a linear forecast", Fit: fitter(forecast.Fit)},
		{Name: "subspace", About: "distance to the principal subspace", Fit: fitter(subspace.Fit)},
		{Name: "pca", About: "TSB-AD's PCA, which sees the whole series before it scores, so it cannot be used live", Whole: pca.Scores},
	}
}

// Names lists the names, in the order of [All].
func Names() []string {
	var out []string
	for _, d := range All() {
		out = append(out, d.Name)
	}
	return out
}

// Find returns the detector of a name.
func Find(name string) (Detector, error) {
	all := All()
	i := slices.IndexFunc(all, func(d Detector) bool { return d.Name == name })
	if i < 0 {
		return Detector{}, fmt.Errorf("detector %q is unknown, there are %s", name, strings.Join(Names(), ", "))
	}
	return all[i], nil
}

// Watch learns as Fit does, and calibrates as package stream does, once, unless the detector has a
// calibration of its own: on the last quarter of the samples, under a model of those before.
// What is watched follows the rows in time or, with again, begins with them once more.
func (d Detector) Watch(rows [][]float64, again bool) (Watch, error) {
	if d.watch != nil {
		return d.watch(rows, again)
	}
	first := len(rows) * 3 / 4
	early, err := d.Fit(rows[:first])
	if err != nil {
		return nil, err
	}
	s, held := early.Scorer(), make([]float64, 0, len(rows)-first)
	for i, x := range rows {
		if v := s.Score(x); i >= first {
			held = append(held, v)
		}
	}
	t, err := tail.New(held)
	if err != nil {
		return nil, err
	}
	m, err := d.Fit(rows)
	if err != nil {
		return nil, err
	}
	s = m.Scorer()
	return func(x []float64) (score, tail float64) {
		score = s.Score(x)
		return score, t.Of(score)
	}, nil
}

// model gives a package's model the interface.
type model[S Scorer, M interface {
	Scorer() S
	Bytes() int
}] struct{ of M }

func (m model[S, M]) Scorer() Scorer { return m.of.Scorer() }
func (m model[S, M]) Bytes() int     { return m.of.Bytes() }

func fitter[S Scorer, M interface {
	Scorer() S
	Bytes() int
}](fit func([][]float64) (M, error)) func([][]float64) (Model, error) {
	return func(rows [][]float64) (Model, error) {
		m, err := fit(rows)
		if err != nil {
			return nil, err
		}
		return model[S, M]{m}, nil
	}
}

func watcher(method stream.Method) func([][]float64, bool) (Watch, error) {
	return func(rows [][]float64, again bool) (Watch, error) {
		d, err := stream.New(method, len(rows[0]), stream.Config{Learn: max(stream.Least, min(len(rows), stream.MostLearn))})
		if err != nil {
			return nil, err
		}
		if err := d.Fit(rows); err != nil {
			return nil, err
		}
		if again {
			d.Rewind()
		}
		parts := make([]float64, len(rows[0]))
		return func(x []float64) (float64, float64) {
			_, tail := d.Observe(time.Time{}, x)
			return d.Explain(parts), tail
		}, nil
	}
}

// learned is a baseline detector that is done learning. Each host has its own.
type learned struct {
	state   []byte
	columns int
}

func fitBaseline(rows [][]float64) (Model, error) {
	d, err := newBaseline(rows)
	if err != nil {
		return nil, err
	}
	state, err := d.MarshalBinary()
	return learned{state, len(rows[0])}, err
}

func newBaseline(rows [][]float64) (*baseline.Detector, error) {
	d, err := baseline.New(len(rows[0]), baseline.Config{Learn: len(rows)})
	if err != nil {
		return nil, err
	}
	for _, x := range rows {
		d.Observe(time.Time{}, x)
	}
	return d, nil
}

func (l learned) Bytes() int { return 0 }

func (l learned) Scorer() Scorer {
	d, err := baseline.New(l.columns, baseline.Config{Learn: 20})
	if err == nil {
		err = d.UnmarshalBinary(l.state)
	}
	if err != nil {
		panic(err) // it was saved by this process
	}
	return baselineScorer{d, make([]float64, l.columns)}
}

type baselineScorer struct {
	d     *baseline.Detector
	parts []float64
}

func (s baselineScorer) Score(x []float64) float64 {
	s.d.Observe(time.Time{}, x)
	return s.d.Explain(s.parts)
}

func (s baselineScorer) Bytes() int { return 5 * 8 * len(s.parts) }

func watchBaseline(rows [][]float64, _ bool) (Watch, error) {
	d, err := newBaseline(rows)
	if err != nil {
		return nil, err
	}
	parts := make([]float64, len(rows[0]))
	return func(x []float64) (float64, float64) {
		_, tail := d.Observe(time.Time{}, x)
		return d.Explain(parts), tail
	}, nil
}
