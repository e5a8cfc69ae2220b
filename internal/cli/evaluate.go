package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/series"
	"github.com/tardigrade-recovery/tardigrade/model/detector"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

func (a *app) evaluate() *cobra.Command {
	cmd := &cobra.Command{Use: "evaluate", Short: "Judge models on labelled data"}
	cmd.AddCommand(a.evaluateAnomaly(), a.evaluateNAB())
	return cmd
}

func (a *app) evaluateAnomaly() *cobra.Command {
	var data, protocol, name string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "anomaly", Short: "Judge an anomaly detector on a directory of labelled series",
		Long: `Judge an anomaly detector on a directory of labelled series: NAME.train.csv.gz, NAME.test.csv.gz
with a label in the last column, and series.csv, which lists them. Two protocols:

  split   learn from the train file, score the test file
  prefix  drop the first skip_rows of the test file, learn from the next prefix_rows, score all
          that is left; series without prefix_rows are left out

Detectors:

` + detectorList() + `

One line for each series, and a last one with the mean VUS-PR.`,
		Example: `  tardigrade evaluate anomaly --data data/smd --protocol prefix --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if protocol != "split" && protocol != "prefix" {
				return usageError{fmt.Errorf("--protocol %q is not split or prefix", protocol)}
			}
			d, err := detector.Find(name)
			if err != nil {
				return usageError{fmt.Errorf("--detector: %w", err)}
			}
			if data == "" {
				return usageError{errors.New("--data must name a directory of series")}
			}
			all, err := series.Open(data)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			return judgeSeries(cmd.Context(), all, protocol, d, out, asJSON || !isTerminalWriter(out))
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "`directory` of series")
	f.StringVar(&protocol, "protocol", "split", "split or prefix")
	f.StringVar(&name, "detector", "default", "`name` of the detector")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

type seriesResult struct {
	Series  string  `json:"series"`
	VUSPR   float64 `json:"vus_pr"`
	VUSROC  float64 `json:"vus_roc"`
	AUCPR   float64 `json:"auc_pr"`
	AUCROC  float64 `json:"auc_roc"`
	F1      float64 `json:"best_f1"`
	EventF1 float64 `json:"event_f1"`
	// Delay is the mean number of samples from the begin of an event to its detection, at
	// the threshold of EventF1, over the events that are found.
	Delay *float64 `json:"delay"`
	Found int      `json:"events_found"`
	Event int      `json:"events"`
}

// detectorList names and describes the detectors.
func detectorList() string {
	var b strings.Builder
	for _, d := range detector.All() {
		fmt.Fprintf(&b, "  %-9s %s\n", d.Name, d.About)
	}
	return b.String()
}

// judgeSeries evaluates a detector on all series.
func judgeSeries(ctx context.Context, all []series.Series, protocol string, d detector.Detector, out io.Writer, asJSON bool) error {
	var sum, train, score float64
	count, samples := 0, 0
	encode := json.NewEncoder(out)
	for _, s := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if protocol == "prefix" && s.Prefix == 0 {
			continue
		}
		test, err := s.Test()
		if err != nil {
			return err
		}
		learn, rows, labels, window := [][]float64(nil), test.Rows, test.Labels, s.Window
		if protocol == "prefix" {
			if s.Skip+s.Prefix > len(rows) {
				return fmt.Errorf("series %s: skip_rows %d and prefix_rows %d are more than its %d rows", s.Name, s.Skip, s.Prefix, len(rows))
			}
			rows, labels, window = rows[s.Skip:], labels[s.Skip:], s.PrefixWindow
			learn = rows[:s.Prefix]
		} else {
			data, err := s.Train()
			if err != nil {
				return err
			}
			if len(data.Columns) != len(test.Columns) {
				return fmt.Errorf("series %s: %d columns to train on and %d to score", s.Name, len(data.Columns), len(test.Columns))
			}
			learn = data.Rows
		}
		scores := make([]float64, len(rows))
		began := time.Now()
		if d.Whole != nil {
			if scores, err = d.Whole(rows); err != nil {
				return fmt.Errorf("series %s: %w", s.Name, err)
			}
		} else {
			watch, err := d.Watch(learn)
			if err != nil {
				return fmt.Errorf("series %s: %w", s.Name, err)
			}
			train += time.Since(began).Seconds()
			began = time.Now()
			for i, x := range rows {
				scores[i], _ = watch(x)
			}
		}
		score += time.Since(began).Seconds()
		samples += len(rows)
		r, err := judge(s.Name, scores, labels, window)
		if err != nil {
			return fmt.Errorf("series %s: %w", s.Name, err)
		}
		sum += r.VUSPR
		count++
		if asJSON {
			err = encode.Encode(r)
		} else {
			_, err = fmt.Fprintf(out, "%-24s VUS-PR %.3f  AUC-PR %.3f  event F1 %.3f  %d of %d events\n", r.Series, r.VUSPR, r.AUCPR, r.EventF1, r.Found, r.Event)
		}
		if err != nil {
			return err
		}
	}
	if count == 0 {
		return fmt.Errorf("no series is part of the %s protocol", protocol)
	}
	last := struct {
		Mean   float64 `json:"mean_vus_pr"`
		Series int     `json:"series"`
		Train  float64 `json:"train_s"`
		Micros float64 `json:"score_us_per_sample"`
	}{sum / float64(count), count, train, score / float64(samples) * 1e6}
	if asJSON {
		return encode.Encode(last)
	}
	_, err := fmt.Fprintf(out, "mean VUS-PR %.3f over %d series; %.1f s to train, %.1f µs a sample\n", last.Mean, last.Series, last.Train, last.Micros)
	return err
}

func judge(name string, scores []float64, labels []bool, window int) (seriesResult, error) {
	r := seriesResult{Series: name}
	var err error
	if r.VUSPR, r.VUSROC, err = metrics.VUS(scores, labels, window); err != nil {
		return r, err
	}
	if r.AUCPR, err = metrics.AUCPR(scores, labels); err != nil {
		return r, err
	}
	if r.AUCROC, err = metrics.AUCROC(scores, labels); err != nil {
		return r, err
	}
	if r.F1, _, err = metrics.BestF1(scores, labels); err != nil {
		return r, err
	}
	var threshold float64
	if r.EventF1, threshold, err = metrics.EventF1(scores, labels); err != nil {
		return r, err
	}
	delays, err := metrics.Delays(scores, labels, math.Nextafter(threshold, math.Inf(1)))
	if err != nil {
		return r, err
	}
	r.Event = len(delays)
	sum := 0.0
	for _, d := range delays {
		if d >= 0 {
			sum += float64(d)
			r.Found++
		}
	}
	if r.Found > 0 {
		mean := sum / float64(r.Found)
		r.Delay = &mean
	}
	return r, nil
}
