package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/nab"
	"github.com/tardigrade-recovery/tardigrade/model/detector"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/model/rival/gaussian"
	"github.com/tardigrade-recovery/tardigrade/model/univariate"
)

// nabObserve scores the next value of a series from 0 to 1.
type nabObserve func(t time.Time, value float64) float64

// nabDetector makes detectors of new series. Each is told the length of the probation in rows,
// as the benchmark allows.
type nabDetector struct {
	create nabCreate
	// others are further settings, among which --leave-one-out chooses.
	others []nabSetting
}

type nabCreate func(probation int) (nabObserve, error)

// nabSetting is a setting in words.
type nabSetting struct {
	name   string
	create nabCreate
}

var nabDetectors = allNABDetectors()

// allNABDetectors are the detector of single metrics, the benchmark's simplest one, and those of
// whole hosts, with one column.
func allNABDetectors() map[string]nabDetector {
	out := map[string]nabDetector{
		"default": {watchOne(univariate.Config{}), otherSettings()},
		"gaussian": {create: func(int) (nabObserve, error) {
			d := gaussian.New()
			return func(_ time.Time, value float64) float64 { return d.Observe(value) }, nil
		}},
	}
	for _, d := range detector.All() {
		// One that sees the whole series is no match, and of one column there is no subspace.
		if d.Fit == nil || d.Name == "subspace" {
			continue
		}
		name := d.Name
		if name == "default" {
			name = "anomaly"
		}
		out[name] = nabDetector{create: watchColumn(d)}
	}
	return out
}

// watchColumn lets a detector of hosts learn from the probation and scores the other rows by
// their tail probability, a power of ten as a step. What lasts is scored once, as by default: a
// step is given again after a quarter of the probation.
func watchColumn(d detector.Detector) nabCreate {
	const steps = 30
	return func(probation int) (nabObserve, error) {
		var rows [][]float64
		var watch detector.Watch
		var failed bool
		var given [steps + 1]int // the row at which a step was last given
		row := 0
		for i := range given {
			given[i] = math.MinInt32
		}
		return func(_ time.Time, value float64) float64 {
			row++
			if row <= probation {
				rows = append(rows, []float64{value})
				return 0
			}
			if watch == nil && !failed {
				failed = len(rows) == 0
				if !failed {
					var err error
					watch, err = d.Watch(rows, false)
					failed = err != nil // such as of too few rows: it has no opinion
				}
				rows = nil
			}
			if failed {
				return 0
			}
			_, tail := watch([]float64{value})
			if math.IsNaN(tail) {
				return 0
			}
			at := int(min(max(-math.Log10(tail), 0), steps))
			if row-given[at] <= probation/4 {
				return 0
			}
			for i := range at + 1 {
				given[i] = row
			}
			return float64(at) / steps
		}, nil
	}
}

// watchOne gives the samples with which an alarm begins a score by how unusual they are, and
// all other ones 0.
func watchOne(c univariate.Config) nabCreate {
	return func(probation int) (nabObserve, error) {
		c.Learn = max(probation, 20)
		d, err := univariate.New(c)
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
	}
}

// otherSettings are the levels of alarm and the quiet times around the default ones, and the
// default ones without one of the views.
func otherSettings() (out []nabSetting) {
	for _, surprise := range []float64{0.35, 0.5, 0.65} {
		for _, quiet := range []float64{0.15, 0.2, 0.25} {
			out = append(out, nabSetting{fmt.Sprintf("surprise %v, quiet %v", surprise, quiet), watchOne(univariate.Config{Surprise: surprise, Quiet: quiet})})
		}
	}
	for _, view := range univariate.Views() {
		out = append(out, nabSetting{"without " + view, watchOne(univariate.Config{Without: []string{view}})})
	}
	return out
}

func (a *app) evaluateNAB() *cobra.Command {
	names := strings.Join(slices.Sorted(maps.Keys(nabDetectors)), ", ")
	var data, detector, scores string
	var asJSON, files, leave, each bool
	cmd := &cobra.Command{
		Use: "nab", Short: "Judge a detector of single metrics by the Numenta Anomaly Benchmark",
		Long: `Judge a detector of single metrics by the Numenta Anomaly Benchmark, version 1.1, by its
own rules: one detector with one setting reads each file from its first row to its last,
the first 15 % of a file (750 rows at most) do not count, and one threshold for all files is
the best one for the profile. A profile says what an early detection is worth, and what a false
one and a missed window cost. The score is 100 for a perfect detector, 0 for a silent one.

One line for each of the three profiles, and a last one with the three scores.

With --leave-one-out, each folder is scored with the setting and at the threshold that are best
for the other folders. For the default detector, that chooses how unusual a sample has to be, how
long an alarm is not repeated, and whether to do without one of the views.
With --settings, the three scores with each of these settings are printed: how much depends on them.
With --scores, scores that lie in files are judged: FOLDER/NAME.csv or .csv.gz, with the
columns timestamp and anomaly_score.

Detectors: default, which watches single metrics; gaussian, the benchmark's own windowed Gaussian;
and those of 'evaluate anomaly' with one column, its default being called anomaly here: they learn
from the probation and do not repeat an alarm at once. All: ` + names + `.`,
		Example: `  tardigrade evaluate nab --data data/nab --json
  tardigrade evaluate nab --data data/nab --scores data/nab/reference/contextOSE`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			chosen, ok := nabDetectors[detector]
			if !ok {
				return usageError{fmt.Errorf("--detector %q is not one of %s", detector, names)}
			}
			if data == "" {
				return usageError{errors.New("--data must name the directory of the benchmark")}
			}
			if each && (leave || files || scores != "") {
				return usageError{errors.New("--settings excludes --leave-one-out, --files and --scores")}
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
			out := cmd.OutOrStdout()
			p := nabPrinter{out: out, files: files, asJSON: asJSON || !isTerminalWriter(out)}
			settings := []nabSetting{{"default", chosen.create}}
			if (leave || each) && given == nil {
				settings = append(settings, chosen.others...)
			}
			bar := newProgress(cmd.ErrOrStderr(), "scoring", len(settings)*len(all))
			left := make(map[string]leftOut)
			for _, s := range settings {
				judged, err := nabScores(cmd.Context(), all, given, s.create, bar)
				if err != nil {
					return err
				}
				switch {
				case each:
					if err := p.setting(s.name, judged); err != nil {
						return err
					}
					continue
				case !leave:
					bar.end()
					return p.best(all, judged)
				}
				if err := leaveOut(left, all, judged); err != nil {
					return err
				}
			}
			bar.end()
			if each {
				return nil
			}
			return p.leftOut(all, left)
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "`directory` of the benchmark")
	f.StringVar(&detector, "detector", "default", "which detector: "+names)
	f.StringVar(&scores, "scores", "", "judge the scores in this `directory` instead of a detector")
	f.BoolVar(&files, "files", false, "print a line for each file, too")
	f.BoolVar(&each, "settings", false, "print one line for each setting that --leave-one-out chooses from, and nothing else")
	f.BoolVar(&leave, "leave-one-out", false, "take for each folder the setting and threshold that are best for the other ones")
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

// nabScores scores the series, with given scores or with a new detector for each.
func nabScores(ctx context.Context, all []nab.Series, given [][]float64, create nabCreate, bar *progress) ([]metrics.NABSeries, error) {
	judged := make([]metrics.NABSeries, len(all))
	for i, s := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		bar.step()
		for _, w := range s.Windows {
			judged[i].Windows = append(judged[i].Windows, metrics.NABWindow(w))
		}
		if given != nil {
			judged[i].Scores = given[i]
			continue
		}
		observe, err := create(metrics.NABProbation(len(s.Values)))
		if err != nil {
			return nil, err
		}
		judged[i].Scores = make([]float64, len(s.Values))
		for k, v := range s.Values {
			judged[i].Scores[k] = observe(s.Times[k], v)
		}
	}
	return judged, nil
}

// leftOut is how a folder fares with what is best for the others.
type leftOut struct {
	others float64 // mean score of the others over the profiles
	files  map[string][]metrics.NABResult
}

// leaveOut judges each folder at the thresholds that are best for the others, and keeps it
// where the others fare better than with the settings before.
func leaveOut(left map[string]leftOut, all []nab.Series, judged []metrics.NABSeries) error {
	done := make(map[string]bool)
	for _, s := range all {
		folder := s.Folder()
		if done[folder] {
			continue
		}
		done[folder] = true
		var others []metrics.NABSeries
		for i, o := range all {
			if o.Folder() != folder {
				others = append(others, judged[i])
			}
		}
		one := leftOut{files: make(map[string][]metrics.NABResult)}
		for _, p := range metrics.NABProfiles {
			best, err := metrics.NAB(others, p)
			if err != nil {
				return fmt.Errorf("without the folder %s: %w", folder, err)
			}
			one.others += best.Score() / float64(len(metrics.NABProfiles))
			for i, o := range all {
				if o.Folder() != folder {
					continue
				}
				r, err := metrics.NABAt(judged[i:i+1], p, best.Threshold)
				if err != nil {
					return err
				}
				one.files[o.Name] = append(one.files[o.Name], r)
			}
		}
		if before, ok := left[folder]; !ok || one.others > before.others {
			left[folder] = one
		}
	}
	return nil
}

// nabPrinter prints results.
type nabPrinter struct {
	out           io.Writer
	files, asJSON bool
}

// best prints the results at the thresholds that are best for all series.
func (p nabPrinter) best(all []nab.Series, judged []metrics.NABSeries) error {
	last := make(map[string]float64)
	for _, profile := range metrics.NABProfiles {
		best, err := metrics.NAB(judged, profile)
		if err != nil {
			return err
		}
		for i, s := range all {
			if !p.files {
				break
			}
			r, err := metrics.NABAt(judged[i:i+1], profile, best.Threshold)
			if err != nil {
				return err
			}
			if err := p.line(s.Name, profile.Name, r, &best.Threshold); err != nil {
				return err
			}
		}
		if err := p.line("", profile.Name, best, &best.Threshold); err != nil {
			return err
		}
		last[profile.Name] = best.Score()
	}
	return p.last(last)
}

// setting prints the scores with a setting.
func (p nabPrinter) setting(name string, judged []metrics.NABSeries) error {
	scores := make([]float64, len(metrics.NABProfiles))
	for i, profile := range metrics.NABProfiles {
		best, err := metrics.NAB(judged, profile)
		if err != nil {
			return err
		}
		scores[i] = best.Score()
	}
	if !p.asJSON {
		_, err := fmt.Fprintf(p.out, "%-30s %6.2f %6.2f %6.2f\n", name, scores[0], scores[1], scores[2])
		return err
	}
	line := map[string]any{"setting": name}
	for i, profile := range metrics.NABProfiles {
		line[profile.Name] = scores[i]
	}
	return json.NewEncoder(p.out).Encode(line)
}

// leftOut prints the results of folders that were left out.
func (p nabPrinter) leftOut(all []nab.Series, left map[string]leftOut) error {
	last := make(map[string]float64)
	for k, profile := range metrics.NABProfiles {
		var sum metrics.NABResult
		for _, s := range all {
			r := left[s.Folder()].files[s.Name][k]
			if p.files {
				if err := p.line(s.Name, profile.Name, r, &r.Threshold); err != nil {
					return err
				}
			}
			sum.Points += r.Points
			sum.Null += r.Null
			sum.Perfect += r.Perfect
			sum.Windows += r.Windows
			sum.Found += r.Found
			sum.False += r.False
		}
		if err := p.line("", profile.Name, sum, nil); err != nil {
			return err
		}
		last[profile.Name] = sum.Score()
	}
	return p.last(last)
}

func (p nabPrinter) line(file, profile string, r metrics.NABResult, threshold *float64) error {
	l := nabLine{File: file, Profile: profile, Score: r.Score(), Threshold: threshold, Windows: r.Windows, Found: r.Found, False: r.False}
	if p.asJSON {
		return json.NewEncoder(p.out).Encode(l)
	}
	name := profile
	if file != "" {
		name = "  " + file
	}
	_, err := fmt.Fprintf(p.out, "%-60s %7.2f  %d of %d windows found, %d rows outside\n", name, l.Score, l.Found, l.Windows, l.False)
	return err
}

func (p nabPrinter) last(scores map[string]float64) error {
	if !p.asJSON {
		return nil
	}
	return json.NewEncoder(p.out).Encode(scores)
}
