package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/nab"
	"github.com/tardigrade-recovery/tardigrade/model/baseline"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/model/univariate"
)

// nabDetectors make a detector of a new series: it is told the length of the probation in
// rows, as the benchmark allows, and scores each value from 0 to 1.
var nabDetectors = map[string]func(probation int) (observe func(t time.Time, value float64) float64, err error){
	"default": func(probation int) (func(time.Time, float64) float64, error) {
		d, err := univariate.New(univariate.Config{Learn: max(probation, 20)})
		if err != nil {
			return nil, err
		}
		return func(t time.Time, value float64) float64 {
			_, expected := d.Observe(t, value)
			if began, _ := d.Alarm(); !began {
				return 0
			}
			return 1 / (1 + expected)
		}, nil
	},
	"baseline": func(probation int) (func(time.Time, float64) float64, error) {
		d, err := baseline.New(1, baseline.Config{Learn: max(probation, 20)})
		if err != nil {
			return nil, err
		}
		return func(t time.Time, value float64) float64 {
			_, tail := d.Observe(t, []float64{value})
			return 1 - tail
		}, nil
	},
}

func (a *app) evaluateNAB() *cobra.Command {
	names := strings.Join(slices.Sorted(maps.Keys(nabDetectors)), ", ")
	var data, detector, scores string
	var asJSON, files, leave bool
	cmd := &cobra.Command{
		Use: "nab", Short: "Judge a detector of single metrics by the Numenta Anomaly Benchmark",
		Long: `Judge a detector of single metrics by the Numenta Anomaly Benchmark, version 1.1, by its
own rules: one detector with one setting reads each file from its first row to its last,
the first 15 % of a file (750 rows at most) do not count, and one threshold for all files is
the best one for the profile. A profile says what an early detection is worth, and what a false
one and a missed window cost. The score is 100 for a perfect detector, 0 for a silent one.

One line for each of the three profiles, and a last one with the three scores.

With --leave-one-out, each folder is scored at the threshold that is best for the other folders.
With --scores, scores that lie in files are judged: FOLDER/NAME.csv or .csv.gz, with the
columns timestamp and anomaly_score.

Detectors: ` + names + `.`,
		Example: `  tardigrade evaluate nab --data data/nab --json
  tardigrade evaluate nab --data data/nab --scores data/nab/reference/contextOSE`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			create, ok := nabDetectors[detector]
			if !ok {
				return usageError{fmt.Errorf("--detector %q is not one of %s", detector, names)}
			}
			if data == "" {
				return usageError{errors.New("--data must name the directory of the benchmark")}
			}
			if scores != "" && cmd.Flags().Changed("detector") {
				return usageError{errors.New("--scores and --detector exclude each other")}
			}
			all, err := nab.Open(data)
			if err != nil {
				return err
			}
			var given [][]float64
			if scores != "" {
				if given, err = nab.Scores(scores, all); err != nil {
					return err
				}
			}
			judged := make([]metrics.NABSeries, len(all))
			for i, s := range all {
				if err := cmd.Context().Err(); err != nil {
					return err
				}
				for _, w := range s.Windows {
					judged[i].Windows = append(judged[i].Windows, metrics.NABWindow(w))
				}
				if given != nil {
					judged[i].Scores = given[i]
					continue
				}
				observe, err := create(metrics.NABProbation(len(s.Values)))
				if err != nil {
					return err
				}
				judged[i].Scores = make([]float64, len(s.Values))
				for k, v := range s.Values {
					judged[i].Scores[k] = observe(s.Times[k], v)
				}
			}
			out := cmd.OutOrStdout()
			return printNAB(out, all, judged, files, leave, asJSON || !isTerminalWriter(out))
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "`directory` of the benchmark")
	f.StringVar(&detector, "detector", "default", "which detector: "+names)
	f.StringVar(&scores, "scores", "", "judge the scores in this `directory` instead of a detector")
	f.BoolVar(&files, "files", false, "print a line for each file, too")
	f.BoolVar(&leave, "leave-one-out", false, "take for each folder the threshold that is best for the other ones")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

// nabLine is what is printed of a profile, for all files or for one.
type nabLine struct {
	File    string  `json:"file,omitempty"`
	Profile string  `json:"profile"`
	Score   float64 `json:"score"`
	// Threshold is the score from which on a row is a detection; absent where each folder has
	// its own.
	Threshold *float64 `json:"threshold,omitempty"`
	Windows   int      `json:"windows"`
	Found     int      `json:"found"`
	False     int      `json:"false_rows"`
}

func printNAB(out io.Writer, all []nab.Series, judged []metrics.NABSeries, files, leave, asJSON bool) error {
	encode := json.NewEncoder(out)
	line := func(l nabLine) error {
		if asJSON {
			return encode.Encode(l)
		}
		name := l.Profile
		if l.File != "" {
			name = "  " + l.File
		}
		_, err := fmt.Fprintf(out, "%-60s %7.2f  %d of %d windows found, %d rows outside\n", name, l.Score, l.Found, l.Windows, l.False)
		return err
	}
	last := make(map[string]float64)
	for _, p := range metrics.NABProfiles {
		best, err := metrics.NAB(judged, p)
		if err != nil {
			return err
		}
		thresholds, sum, of := make([]float64, len(all)), best, &best.Threshold
		for i := range thresholds {
			thresholds[i] = best.Threshold
		}
		if leave {
			if thresholds, err = othersThresholds(all, judged, p); err != nil {
				return err
			}
			sum, of = metrics.NABResult{}, nil
		}
		for i, s := range all {
			r, err := metrics.NABAt(judged[i:i+1], p, thresholds[i])
			if err != nil {
				return err
			}
			if leave {
				sum.Points += r.Points
				sum.Null += r.Null
				sum.Perfect += r.Perfect
				sum.Windows += r.Windows
				sum.Found += r.Found
				sum.False += r.False
			}
			if files {
				if err := line(nabLine{File: s.Name, Profile: p.Name, Score: r.Score(), Threshold: &thresholds[i], Windows: r.Windows, Found: r.Found, False: r.False}); err != nil {
					return err
				}
			}
		}
		last[p.Name] = sum.Score()
		if err := line(nabLine{Profile: p.Name, Score: sum.Score(), Threshold: of, Windows: sum.Windows, Found: sum.Found, False: sum.False}); err != nil {
			return err
		}
	}
	if asJSON {
		return encode.Encode(last)
	}
	return nil
}

// othersThresholds is for each series the threshold that is best for the other folders.
func othersThresholds(all []nab.Series, judged []metrics.NABSeries, p metrics.NABProfile) ([]float64, error) {
	out, known := make([]float64, len(all)), make(map[string]float64)
	for i, s := range all {
		threshold, ok := known[s.Folder()]
		if !ok {
			var others []metrics.NABSeries
			for k, o := range all {
				if o.Folder() != s.Folder() {
					others = append(others, judged[k])
				}
			}
			r, err := metrics.NAB(others, p)
			if err != nil {
				return nil, fmt.Errorf("without the folder %s: %w", s.Folder(), err)
			}
			threshold = r.Threshold
			known[s.Folder()] = threshold
		}
		out[i] = threshold
	}
	return out, nil
}
