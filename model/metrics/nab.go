package metrics

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// The score of the Numenta Anomaly Benchmark (Lavin and Ahmad, "Evaluating Real-time
// Anomaly Detection Algorithms: the Numenta Anomaly Benchmark", ICMLA 2015), as version 1.1
// computes it. A detection inside a window of an anomaly is worth the more, the earlier it
// is, and only the best one of a window counts; each detection outside costs, less so just
// after a window; a window without a detection costs. The first rows of a series are
// probation and do not count. One threshold serves all series.

// NABProfile is what detections are worth to a user of the benchmark.
type NABProfile struct {
	Name string
	// TP is what the earliest detection in a window gives, FP what a detection far from all
	// windows costs, and FN what a missed window costs.
	TP, FP, FN float64
}

// NABProfiles are the three of the benchmark.
var NABProfiles = []NABProfile{
	{Name: "standard", TP: 1, FP: 0.11, FN: 1},
	{Name: "reward_low_FP_rate", TP: 1, FP: 0.22, FN: 1},
	{Name: "reward_low_FN_rate", TP: 1, FP: 0.11, FN: 2},
}

// NABWindow is the rows of an anomaly and around it, from First to Last, both included.
type NABWindow struct{ First, Last int }

// NABSeries is a series with its scores, in 0 to 1, larger being more anomalous.
type NABSeries struct {
	Scores []float64
	// Windows are in order and do not overlap.
	Windows []NABWindow
}

// NABResult is the outcome of a corpus of series.
type NABResult struct {
	// Points is the sum over the corpus; Null is what a detector gets that detects nothing,
	// Perfect what one gets that detects the first row of each window and nothing else.
	Points, Null, Perfect float64
	// Threshold is the score from which on a row is a detection. It is 1.1, which no score
	// reaches, where it is best to detect nothing.
	Threshold float64
	// Windows counts the windows and Found those with a detection. False counts the rows
	// detected outside of windows.
	Windows, Found, False int
}

// Score is 100 for a perfect detector and 0 for one that detects nothing; without windows, 0.
func (r NABResult) Score() float64 {
	if r.Perfect <= r.Null {
		return 0
	}
	return 100 * (r.Points - r.Null) / (r.Perfect - r.Null)
}

// NABProbation is the number of rows at the start of a series that do not count: 15 %, and
// 750 at most.
func NABProbation(rows int) int {
	return int(math.Ceil(min(math.Floor(0.15*float64(rows)), 0.15*5000)))
}

// nabSilent is a threshold that no score reaches.
const nabSilent = 1.1

// nabRow is a row that counts: what a detection there gives, and in which window it is, -1
// outside of all.
type nabRow struct {
	score, worth float64
	window       int
}

// nabSigmoid is the worth of a detection by its place: -1 at the left edge of a window, 0 at
// the right one, and positive after it, in widths of the window.
func nabSigmoid(place float64) float64 {
	if place > 3 {
		return -1
	}
	return 2/(1+math.Exp(5*place)) - 1
}

// nabRows lists the rows that count, and how many windows have such a row.
func nabRows(all []NABSeries, p NABProfile) (rows []nabRow, windows, scorable int, err error) {
	if len(all) == 0 {
		return nil, 0, 0, errors.New("there is no series to judge")
	}
	best := nabSigmoid(-1)
	for at, s := range all {
		last := -1
		for _, w := range s.Windows {
			if w.First <= last || w.Last < w.First || w.Last >= len(s.Scores) {
				return nil, 0, 0, fmt.Errorf("series %d: the window from row %d to %d is out of order or outside of its %d rows", at, w.First, w.Last, len(s.Scores))
			}
			last = w.Last
		}
		probation, next := NABProbation(len(s.Scores)), 0
		for i, score := range s.Scores {
			if !(score >= 0 && score <= 1) {
				return nil, 0, 0, fmt.Errorf("series %d: the score of row %d is %v, it must be from 0 to 1", at, i, score)
			}
			for next < len(s.Windows) && i > s.Windows[next].Last {
				next++
			}
			if i < probation {
				continue
			}
			if next < len(s.Windows) && i >= s.Windows[next].First {
				w := s.Windows[next]
				width := float64(w.Last - w.First + 1)
				rows = append(rows, nabRow{score, nabSigmoid(-float64(w.Last-i+1)/width) / best * p.TP, windows + next})
				continue
			}
			worth := -p.FP
			if next > 0 {
				w := s.Windows[next-1]
				worth *= -nabSigmoid(float64(i-w.Last) / float64(w.Last-w.First))
			}
			rows = append(rows, nabRow{score, worth, -1})
		}
		for _, w := range s.Windows {
			if w.Last >= probation {
				scorable++
			}
		}
		windows += len(s.Windows)
	}
	return rows, windows, scorable, nil
}

// NAB scores a corpus at the threshold that is best for it, as the benchmark does.
func NAB(all []NABSeries, p NABProfile) (NABResult, error) {
	return nabScore(all, p, math.NaN())
}

// NABAt scores a corpus at a given threshold.
func NABAt(all []NABSeries, p NABProfile, threshold float64) (NABResult, error) {
	if math.IsNaN(threshold) {
		return NABResult{}, errors.New("the threshold is not a number")
	}
	return nabScore(all, p, threshold)
}

func nabScore(all []NABSeries, p NABProfile, threshold float64) (NABResult, error) {
	rows, windows, scorable, err := nabRows(all, p)
	if err != nil {
		return NABResult{}, err
	}
	fixed := !math.IsNaN(threshold)
	if !fixed && scorable == 0 {
		return NABResult{}, errors.New("no series has a window after its probation: there is nothing to find")
	}
	slices.SortFunc(rows, func(a, b nabRow) int { return cmp.Compare(b.score, a.score) })
	now := NABResult{Null: -p.FN * float64(scorable), Perfect: p.TP * float64(windows), Threshold: nabSilent, Windows: windows}
	now.Points = now.Null
	out := now
	gained := make([]float64, windows) // what the best detection of a window gives
	found := make([]bool, windows)
	for i, r := range rows {
		if fixed && r.score < threshold {
			break
		}
		switch {
		case r.window < 0:
			now.Points += r.worth
			now.False++
		case !found[r.window]:
			found[r.window] = true
			now.Found++
			gained[r.window] = r.worth
			now.Points += r.worth + p.FN
		case r.worth > gained[r.window]:
			now.Points += r.worth - gained[r.window]
			gained[r.window] = r.worth
		}
		if i+1 < len(rows) && rows[i+1].score == r.score {
			continue
		}
		now.Threshold = r.score
		if fixed || now.Points > out.Points {
			out = now
		}
	}
	if fixed {
		out.Threshold = threshold
	}
	return out, nil
}
