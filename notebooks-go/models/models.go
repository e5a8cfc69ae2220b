// Package models trains the failure model and its reference on a small simulated fleet and judges
// them: curves, calibration, what the answers come from; and compares the detectors of unusual samples.
package models

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
	"github.com/tardigrade-recovery/tardigrade/model/golearn"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Horizon is how far ahead a failure counts.
const Horizon = 6 * time.Hour

const (
	hosts, days = 180, 4
	every       = 20 // minutes between two examples of a host
	trees       = 40
)

// Set is examples of hosts, split by host: each host is in one part only.
type Set struct {
	Train, Calibrate, Test gbdt.Data
}

// Simulate makes examples: the features of each host every twenty minutes, and whether the host crashes
// within Horizon. The last hours, of which nobody knows what comes, are left out.
func Simulate(ctx context.Context, seed uint64) (Set, error) {
	f, err := simulator.New(simulator.Config{Hosts: hosts, Seed: seed, FaultRate: 15})
	if err != nil {
		return Set{}, err
	}
	type instant struct {
		at time.Time
		x  []float64
	}
	number, follow := make(map[fleet.HostID]int), make([]*feature.Extractor, hosts)
	for i, h := range f.Hosts() {
		number[h.ID], follow[i] = i, feature.New()
	}
	seen := make([][]instant, hosts)
	var samples []fleet.Sample
	for n := range days * 24 * 60 {
		if err := ctx.Err(); err != nil {
			return Set{}, err
		}
		samples = f.Step(samples)
		for i := range samples {
			h := number[samples[i].Host]
			follow[h].Observe(&samples[i])
			if n >= 12*60 && (n+h)%every == 0 {
				x := make([]float64, feature.Size)
				follow[h].Vector(x)
				seen[h] = append(seen[h], instant{samples[i].Time, x})
			}
		}
	}
	crashes := make([][]time.Time, hosts)
	for _, x := range f.History() {
		if x.Ending == simulator.Crashed {
			crashes[number[x.Host]] = append(crashes[number[x.Host]], x.End)
		}
	}
	var s Set
	for h := range seen {
		d := []*gbdt.Data{&s.Train, &s.Train, &s.Train, &s.Calibrate, &s.Test, &s.Test}[h%6]
		for _, e := range seen[h] {
			if f.Now().Sub(e.at) < Horizon {
				continue
			}
			d.X = append(d.X, e.x)
			d.Group = append(d.Group, strconv.Itoa(h))
			d.Y = append(d.Y, slices.ContainsFunc(crashes[h], func(c time.Time) bool { return !c.Before(e.at) && c.Sub(e.at) <= Horizon }))
		}
	}
	return s, nil
}

// Trained are the models, with what they say of the test examples.
type Trained struct {
	set    Set
	Boost  *gbdt.Model
	Forest *golearn.Forest
	// Answers are probabilities for each example of the test part, by the model's name.
	Answers []Answers
}

// Answers are what one model says.
type Answers struct {
	Model string
	P     []float64
}

// Train learns the boosted trees and golearn's forest from the same examples.
func Train(ctx context.Context, s Set, seed uint64) (*Trained, error) {
	b, err := gbdt.Train(ctx, s.Train, gbdt.Config{Trees: trees, Leaves: 16, Seed: seed, Features: feature.Names()})
	if err != nil {
		return nil, fmt.Errorf("boosted trees: %w", err)
	}
	raw := make([]float64, len(s.Test.X))
	gbdt.NewScorer(b).Predict(raw, s.Test.X)
	if err := b.Calibrate(s.Calibrate); err != nil {
		return nil, fmt.Errorf("boosted trees: %w", err)
	}
	calibrated := make([]float64, len(s.Test.X))
	gbdt.NewScorer(b).Predict(calibrated, s.Test.X)
	g, err := golearn.Train(ctx, s.Train.X, s.Train.Y, golearn.Config{Trees: trees, Rows: 500, Seed: seed})
	if err != nil {
		return nil, fmt.Errorf("golearn's forest: %w", err)
	}
	reference := make([]float64, len(s.Test.X))
	for i, x := range s.Test.X {
		reference[i] = g.Predict(x)
	}
	return &Trained{set: s, Boost: b, Forest: g,
		Answers: []Answers{{"gbdt, calibrated", calibrated}, {"gbdt, as trained", raw}, {"golearn forest", reference}}}, nil
}

// Compare sets the models beside each other: a table, precision over recall, and ROC.
func (t *Trained) Compare() (page.Section, error) {
	y := t.set.Test.Y
	table := page.Table{Columns: []string{"model", "AUC", "AUC-PR", "log loss", "recall at 1 % false alarms", "calibration error"}}
	pr, roc := page.New("Precision over recall", "recall", "precision"), page.New("Receiver operating characteristic", "share of the others alarmed", "recall")
	positive := 0
	for _, v := range y {
		if v {
			positive++
		}
	}
	for n, a := range t.Answers {
		auc, err := metrics.AUCROC(a.P, y)
		if err != nil {
			return page.Section{}, fmt.Errorf("%s: %w", a.Model, err)
		}
		aucpr, err := metrics.AUCPR(a.P, y)
		if err != nil {
			return page.Section{}, fmt.Errorf("%s: %w", a.Model, err)
		}
		curve := Curve(a.P, y)
		var over, under plotter.XYs
		at := 0.0
		for _, q := range curve {
			over = append(over, plotter.XY{X: q.Recall, Y: q.Precision})
			under = append(under, plotter.XY{X: q.FalseRatio, Y: q.Recall})
			if q.FalseRatio <= 0.01 {
				at = q.Recall
			}
		}
		_, wrong := Reliability(a.P, y)
		table.Add(a.Model, auc, aucpr, logLoss(a.P, y), at, wrong)
		if n == 1 {
			continue // the same order, so nearly the same curves
		}
		if err := errors.Join(page.Line(pr, n, a.Model, over), page.Line(roc, n, a.Model, under)); err != nil {
			return page.Section{}, err
		}
	}
	pr.Y.Min, pr.Y.Max, roc.Y.Min, roc.Y.Max = 0, 1, 0, 1
	roc.Legend.Top = false
	return page.Section{Title: "The models beside each other", Tables: []page.Table{table},
		Text: fmt.Sprintf("%d examples of some hosts to learn from, %d of others to calibrate on, %d of yet others to judge, of which %.1f %% are followed by a crash within %g hours, many of them by a fault that has not begun yet, which nothing can tell. The forest over golearn's trees is the reference that our own trees must beat. With so few crashes a figure moves by up to a tenth from seed to seed.",
			len(t.set.Train.X), len(t.set.Calibrate.X), len(y), 100*float64(positive)/float64(len(y)), Horizon.Hours()),
		Figures: []page.Figure{{Name: "curves", Caption: "Precision over recall, and ROC", Plots: []*plot.Plot{pr, roc}, Height: 7 * vg.Centimeter}}}, nil
}

// Calibration shows whether what is said comes true as often.
func (t *Trained) Calibration() (page.Section, error) {
	p := page.New("What came, over what was said", "probability that was said", "share that crashed")
	if err := page.Line(p, 6, "perfect", plotter.XYs{{X: 0, Y: 0}, {X: 1, Y: 1}}); err != nil {
		return page.Section{}, err
	}
	table := page.Table{Columns: []string{"model", "instants said under 10 %", "of which crashed", "instants said over 90 %", "of which crashed"}}
	for n, a := range t.Answers {
		bins, _ := Reliability(a.P, t.set.Test.Y)
		var points plotter.XYs
		for _, b := range bins {
			if b.N > 0 {
				points = append(points, plotter.XY{X: b.Said, Y: b.Came})
			}
		}
		if err := page.Line(p, n, a.Model, points); err != nil {
			return page.Section{}, err
		}
		table.Add(a.Model, bins[0].N, bins[0].Came, bins[len(bins)-1].N, bins[len(bins)-1].Came)
	}
	p.Legend.Left = true
	return page.Section{Title: "Calibration", Tables: []page.Table{table},
		Text:    "Ten bins of equal width: the mean of what was said in each, and the share of its instants that a crash followed. The policy multiplies these probabilities with costs, so they have to be right, not only in the right order. The map was learned by '" + t.Boost.Calibration() + "', which had the lower log loss of two. NaN stands for an empty bin.",
		Figures: []page.Figure{{Name: "calibration", Caption: "Calibration of the models", Plots: []*plot.Plot{p}, Height: 8 * vg.Centimeter}}}, nil
}

// shown is how many features a plot has.
const shown = 15

// Reasons shows what answers come from: over all, and of the most certain right alarm.
func (t *Trained) Reasons() (page.Section, error) {
	names, importance := t.Boost.Features(), t.Boost.Importance()
	alarm := -1
	for i, y := range t.set.Test.Y {
		if y && (alarm < 0 || t.Answers[1].P[i] > t.Answers[1].P[alarm]) {
			alarm = i
		}
	}
	if alarm < 0 {
		return page.Section{}, errors.New("no host of the test part crashes: there is no alarm to explain")
	}
	x := t.set.Test.X[alarm]
	shares := make([]float64, len(names))
	mean := t.Boost.Contributions(shares, x)
	draw := func(title string, of []float64) (*plot.Plot, []int, error) {
		order := make([]int, len(of))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch u, v := math.Abs(of[a]), math.Abs(of[b]); {
			case u > v:
				return -1
			case u < v:
				return 1
			}
			return 0
		})
		order = order[:min(shown, len(order))]
		var labels []string
		var values []float64
		for _, i := range order {
			labels, values = append(labels, names[i]), append(values, of[i])
		}
		p := page.New(title, "", "")
		return p, order, page.Lying(p, labels, values)
	}
	all, _, err := draw("Importance over all examples", importance)
	if err != nil {
		return page.Section{}, err
	}
	one, order, err := draw("Shares of one alarm, in log odds", shares)
	if err != nil {
		return page.Section{}, err
	}
	table := page.Table{Columns: []string{"feature", "value", "share in log odds"}}
	sum := mean
	for _, s := range shares {
		sum += s
	}
	table.Add("what an example has on average", "", mean)
	for _, i := range order[:5] {
		table.Add("`"+names[i]+"`", x[i], shares[i])
	}
	table.Add("all together", "", sum)
	return page.Section{Title: "Where answers come from", Tables: []page.Table{table},
		Text:    fmt.Sprintf("Above, by how much the splits of each feature moved the answers. Below, the Shapley values of the most certain of the right alarms: with the mean they add up to its raw score, %.3f in log odds. The words after the last underline are those of `go doc ./model/feature`.", t.Boost.Raw(x)),
		Figures: []page.Figure{{Name: "reasons", Caption: "Importances, and the shares of one alarm", Plots: []*plot.Plot{all, one}, Height: 8 * vg.Centimeter}}}, nil
}

// Page is the whole analysis.
func Page(ctx context.Context, seed uint64) (page.Page, error) {
	p := page.Page{Name: "models", Title: "Training and judging the models",
		Text: fmt.Sprintf("On a small simulated fleet (seed %d), so that it takes seconds: figures on real and on larger data are in [docs](../../docs). Written by `make pages`; the same as a notebook: [models.ipynb](../models.ipynb).", seed)}
	s, err := Simulate(ctx, seed)
	if err != nil {
		return page.Page{}, err
	}
	t, err := Train(ctx, s, seed)
	if err != nil {
		return page.Page{}, err
	}
	for _, make := range []func() (page.Section, error){t.Compare, t.Calibration, t.Reasons, func() (page.Section, error) { return Detectors(ctx, seed) }} {
		s, err := make()
		if err != nil {
			return page.Page{}, err
		}
		p.Sections = append(p.Sections, s)
	}
	return p, nil
}
