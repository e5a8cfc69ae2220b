package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/series"
	"github.com/tardigrade-recovery/tardigrade/internal/bench"
	"github.com/tardigrade-recovery/tardigrade/model/detector"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

func (a *app) evaluate() *cobra.Command {
	cmd := &cobra.Command{Use: "evaluate", Short: "Judge models on labelled data"}
	cmd.AddCommand(a.evaluateAnomaly(), a.evaluateNAB(), a.evaluateFailure(), a.evaluateDrives())
	cmd.AddCommand(a.evaluateCalibration())
	cmd.AddCommand(a.evaluatePolicy(), a.evaluateOffPolicy(), a.evaluateHorizon(), a.evaluateChild())
	for _, c := range cmd.Commands() {
		c.RunE = interruptible(c.RunE)
	}
	return cmd
}

// interruptible lets a command that only computes end soon after it was interrupted, though one
// of its steps goes on: to decompose a wide matrix takes minutes.
func interruptible(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ended := make(chan error, 1)
		go func() { ended <- run(cmd, args) }()
		select {
		case err := <-ended:
			return err
		case <-cmd.Context().Done():
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(interruptPatience):
			return context.Cause(cmd.Context())
		}
	}
}

// interruptPatience is for how long a command may tidy up.
const interruptPatience = 2 * time.Second

func (a *app) evaluateAnomaly() *cobra.Command {
	var data, name string
	var asJSON bool
	j := judging{protocol: "split", falseAlarms: 1, interval: time.Minute}
	cmd := &cobra.Command{
		Use: "anomaly", Short: "Judge an anomaly detector on a directory of labelled series",
		Long: `Judge an anomaly detector on a directory of labelled series: NAME.train.csv.gz, NAME.test.csv.gz
(or plain .csv) with a header and numbers, empty where one is missing, in the test file a last column
label, 0 or 1; and series.csv, which lists them, with the columns series, vus_window and, for the protocol
prefix, skip_rows, prefix_rows and prefix_vus_window. Two protocols:

  split   learn from the train file, score the test file
  prefix  drop the first skip_rows of the test file, learn from the next prefix_rows, score all
          that is left; series without prefix_rows are left out

Detectors, or all, which prints the last line of each:

` + detectorList() + `
One line for each series, and a last one with the means. A series whose labels are all the same
has a line that says so and no part in the means. Times are CPU time.

  vus_pr, vus_roc        volumes under the surfaces, buffers and thresholds as in TSB-AD
  auc_pr, auc_roc        areas under the curves
  best_f1, event_f1,     of samples, of events found and samples right, and by affiliation, each at
  affiliation_f1         the threshold that is best for it, which takes the labels to know
  delay, delays          samples from the begin of an event until it is found, on average over
                         the found, and of each event in order, null where it is not found, at the threshold of event_f1
  calibrated_...         the same without the labels: where the detector's own tail probability
                         says less than --false-alarms a month at one sample every --interval
  alarm_...              events during which the alarm of serve is on, asked for that rate; alarms that
                         begin outside of events are false`,
		Example: `  tardigrade evaluate anomaly --data data/smd --protocol prefix --json
  tardigrade evaluate anomaly --data data/asd --interval 5m --detector all`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if j.protocol != "split" && j.protocol != "prefix" {
				return usageError{fmt.Errorf("--protocol %q is not split or prefix", j.protocol)}
			}
			if !(j.falseAlarms > 0) || j.interval <= 0 {
				return usageError{fmt.Errorf("--false-alarms %v and --interval %v must be positive", j.falseAlarms, j.interval)}
			}
			if most := 30 * 24 * time.Hour.Hours() / j.interval.Hours(); j.falseAlarms >= most {
				return usageError{fmt.Errorf("--false-alarms %v: with a sample every --interval %v there are only %.4g samples in 30 days", j.falseAlarms, j.interval, most)}
			}
			these := detector.All()
			if name != "all" {
				d, err := detector.Find(name)
				if err != nil {
					return usageError{fmt.Errorf("--detector: %w", err)}
				}
				these = []detector.Detector{d}
			}
			if data == "" {
				return usageError{errors.New("--data must name a directory of series")}
			}
			all, err := series.Open(data)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			j.json = asJSON || !isTerminalWriter(out)
			for _, d := range these {
				if err := j.run(cmd.Context(), all, d, out, name != "all"); err != nil {
					return fmt.Errorf("%s: %w", d.Name, err)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "`directory` of series")
	f.StringVar(&j.protocol, "protocol", j.protocol, "split or prefix")
	f.StringVar(&name, "detector", "default", "`name` of the detector, or all")
	f.Float64Var(&j.falseAlarms, "false-alarms", j.falseAlarms, "`number` of false alarms that are asked for, in 30 days")
	f.DurationVar(&j.interval, "interval", j.interval, "time between two samples, for the calibrated measures")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

// detectorList names and describes the detectors.
func detectorList() string {
	var b strings.Builder
	for _, d := range detector.All() {
		fmt.Fprintf(&b, "  %-9s %s\n", d.Name, d.About)
	}
	return b.String()
}

// seriesResult is what came of one series. What needs both classes of labels, or a tail
// probability, is nil without.
type seriesResult struct {
	Series        string   `json:"series"`
	VUSPR         *float64 `json:"vus_pr"`
	VUSROC        *float64 `json:"vus_roc"`
	AUCPR         *float64 `json:"auc_pr"`
	AUCROC        *float64 `json:"auc_roc"`
	BestF1        *float64 `json:"best_f1"`
	EventF1       *float64 `json:"event_f1"`
	AffiliationF1 *float64 `json:"affiliation_f1"`
	Delay         *float64 `json:"delay"`
	Delays        []*int   `json:"delays"`
	Found         int      `json:"events_found"`
	Events        int      `json:"events"`
	calibrated
	Note string `json:"note,omitempty"`
}

// calibrated is what came of the threshold that the detector itself knows.
type calibrated struct {
	F1       *float64 `json:"calibrated_f1"`
	Affinity *float64 `json:"calibrated_affiliation_f1"`
	Delay    *float64 `json:"calibrated_delay"`
	Found    *int     `json:"calibrated_events_found"`
	// Of the alarm that the predictor makes of the tail probabilities.
	AlarmFound  *int `json:"alarm_events_found"`
	FalseAlarms *int `json:"alarm_false"`
}

// totals is the last line.
type totals struct {
	Detector      string   `json:"detector"`
	VUSPR         float64  `json:"mean_vus_pr"`
	VUSROC        float64  `json:"mean_vus_roc"`
	AUCPR         float64  `json:"mean_auc_pr"`
	AUCROC        float64  `json:"mean_auc_roc"`
	BestF1        float64  `json:"mean_best_f1"`
	EventF1       float64  `json:"mean_event_f1"`
	AffiliationF1 float64  `json:"mean_affiliation_f1"`
	CalibratedF1  *float64 `json:"mean_calibrated_f1"`
	CalibratedAff *float64 `json:"mean_calibrated_affiliation_f1"`
	CalibratedHit *int     `json:"calibrated_events_found"`
	AlarmHit      *int     `json:"alarm_events_found"`
	AlarmFalse    *int     `json:"alarm_false"`
	Months        float64  `json:"months"` // of 30 days, in all series
	Found         int      `json:"events_found"`
	Events        int      `json:"events"`
	Series        int      `json:"series"`
	LeftOut       int      `json:"left_out"`
	Train         float64  `json:"train_s"`
	Micros        float64  `json:"score_us_per_sample"`
}

// judging is how detectors are judged.
type judging struct {
	protocol    string
	falseAlarms float64 // in 30 days
	interval    time.Duration
	json        bool
}

// run judges a detector on all series.
func (j judging) run(ctx context.Context, all []series.Series, d detector.Detector, out io.Writer, each bool) error {
	sum := totals{Detector: d.Name}
	samples := 0
	var score time.Duration
	encode := json.NewEncoder(out)
	for _, s := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if j.protocol == "prefix" && s.Prefix == 0 {
			continue
		}
		learn, test, window, err := j.read(s)
		if err != nil {
			return err
		}
		scores, tails := make([]float64, len(test.Rows)), make([]float64, len(test.Rows))
		began := bench.CPUTime()
		if d.Whole != nil {
			tails = nil
			if scores, err = d.Whole(test.Rows); err != nil {
				return fmt.Errorf("series %s: %w", s.Name, err)
			}
		} else {
			watch, err := d.Watch(learn, j.protocol == "prefix")
			if err != nil {
				return fmt.Errorf("series %s: %w", s.Name, err)
			}
			sum.Train += (bench.CPUTime() - began).Seconds()
			began = bench.CPUTime()
			for i, x := range test.Rows {
				scores[i], tails[i] = watch(x)
			}
		}
		score += bench.CPUTime() - began
		samples += len(test.Rows)
		r, err := j.judge(s.Name, scores, tails, test.Labels, window)
		if err != nil {
			return fmt.Errorf("series %s: %w", s.Name, err)
		}
		sum.add(r)
		sum.Months += float64(len(test.Rows)) * j.interval.Hours() / (30 * 24)
		if !each {
			continue
		}
		switch {
		case j.json:
			err = encode.Encode(r)
		case r.VUSPR == nil:
			_, err = fmt.Fprintf(out, "%-24s %s\n", r.Series, r.Note)
		default:
			_, err = fmt.Fprintf(out, "%-24s VUS-PR %.3f  AUC-PR %.3f  event F1 %.3f  %d of %d events\n", r.Series, *r.VUSPR, *r.AUCPR, *r.EventF1, r.Found, r.Events)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case sum.Series+sum.LeftOut == 0:
		return errors.New("no series is part of the prefix protocol: none has prefix_rows in series.csv; try --protocol split")
	case sum.Series == 0:
		return fmt.Errorf("no series can be judged: the labels of each (%d) are all the same", sum.LeftOut)
	}
	sum.Micros = score.Seconds() / float64(samples) * 1e6
	sum.mean()
	if j.json {
		return encode.Encode(sum)
	}
	_, err := fmt.Fprintf(out, "%-9s mean VUS-PR %.3f, AUC-PR %.3f, event F1 %.3f, affiliation F1 %.3f over %d series; %.1f s to train, %.1f µs a sample\n",
		d.Name, sum.VUSPR, sum.AUCPR, sum.EventF1, sum.AffiliationF1, sum.Series, sum.Train, sum.Micros)
	return err
}

// read returns what to learn from, what to score, and the buffer for VUS.
func (j judging) read(s series.Series) (learn [][]float64, test series.Data, window int, err error) {
	if test, err = s.Test(); err != nil {
		return nil, test, 0, err
	}
	if j.protocol == "prefix" {
		if s.Skip+s.Prefix > len(test.Rows) {
			return nil, test, 0, fmt.Errorf("series %s: skip_rows %d and prefix_rows %d are more than the %d rows of its test file", s.Name, s.Skip, s.Prefix, len(test.Rows))
		}
		test.Rows, test.Labels = test.Rows[s.Skip:], test.Labels[s.Skip:]
		return test.Rows[:s.Prefix], test, s.PrefixWindow, nil
	}
	train, err := s.Train()
	if err != nil {
		return nil, test, 0, err
	}
	if !slices.Equal(train.Columns, test.Columns) {
		return nil, test, 0, fmt.Errorf("series %s: the columns of the train file and those of the test file before the label must be the same, and are not: %s", s.Name, firstDifference(train.Columns, test.Columns))
	}
	return train.Rows, test, s.Window, nil
}

// judge computes the measures of one series.
func (j judging) judge(name string, scores, tails []float64, labels []bool, window int) (seriesResult, error) {
	r := seriesResult{Series: name, Delays: []*int{}}
	pr, roc, err := metrics.VUS(scores, labels, window)
	if errors.Is(err, metrics.ErrOneClass) {
		r.Note = "left out: " + err.Error()
		return r, nil
	}
	if err != nil {
		return r, err
	}
	r.VUSPR, r.VUSROC = &pr, &roc
	var failed error
	value := func(v float64, err error) *float64 {
		failed = errors.Join(failed, err)
		return &v
	}
	best := func(f1, _ float64, err error) *float64 { return value(f1, err) }
	r.AUCPR, r.AUCROC = value(metrics.AUCPR(scores, labels)), value(metrics.AUCROC(scores, labels))
	r.BestF1, r.AffiliationF1 = best(metrics.BestF1(scores, labels)), best(metrics.AffiliationF1(scores, labels))
	f1, threshold, err := metrics.EventF1(scores, labels)
	r.EventF1 = value(f1, err)
	over := math.Nextafter(threshold, math.Inf(1))
	r.Delays, r.Found, r.Delay, err = delays(scores, labels, over)
	r.Events = len(r.Delays)
	if failed = errors.Join(failed, err); failed != nil || tails == nil {
		return r, failed
	}
	surprise := make([]float64, len(tails))
	for i, p := range tails {
		surprise[i] = -math.Log10(min(max(p, 1e-300), 1))
	}
	asked := -math.Log10(j.falseAlarms * j.interval.Hours() / (30 * 24))
	r.F1 = value(metrics.F1At(surprise, labels, asked))
	precision, recall, err := metrics.Affiliation(surprise, labels, asked)
	r.Affinity = value(2*precision*recall/max(precision+recall, 1e-300), err)
	_, found, delay, err := delays(surprise, labels, math.Nextafter(asked, math.Inf(1)))
	r.calibrated.Found, r.calibrated.Delay = &found, delay
	hit, wrong := alarms(predictor.NewAlarm(j.falseAlarms, j.interval), surprise, labels)
	r.AlarmFound, r.FalseAlarms = &hit, &wrong
	return r, errors.Join(failed, err)
}

// alarms counts the events during which an alarm is on, and the alarms that begin outside of events.
func alarms(a *predictor.Alarm, scores []float64, labels []bool) (found, wrong int) {
	on, counted := false, false
	for i, s := range scores {
		was := on
		on = a.Observe(s)
		if !labels[i] {
			counted = false
			if on && !was {
				wrong++
			}
		} else if on && !counted {
			counted = true
			found++
		}
	}
	return found, wrong
}

// delays are those of each event, nil where it is not found, how many are found, and the mean over these.
func delays(scores []float64, labels []bool, threshold float64) (each []*int, found int, mean *float64, err error) {
	all, err := metrics.Delays(scores, labels, threshold)
	each, sum := make([]*int, len(all)), 0.0
	for i, d := range all {
		if d >= 0 {
			each[i] = &all[i]
			sum += float64(d)
			found++
		}
	}
	if found > 0 {
		sum /= float64(found)
		mean = &sum
	}
	return each, found, mean, err
}

func (t *totals) add(r seriesResult) {
	if r.VUSPR == nil {
		t.LeftOut++
		return
	}
	t.Series++
	t.VUSPR += *r.VUSPR
	t.VUSROC += *r.VUSROC
	t.AUCPR += *r.AUCPR
	t.AUCROC += *r.AUCROC
	t.BestF1 += *r.BestF1
	t.EventF1 += *r.EventF1
	t.AffiliationF1 += *r.AffiliationF1
	t.Found += r.Found
	t.Events += r.Events
	if r.F1 == nil {
		return
	}
	if t.CalibratedF1 == nil {
		t.CalibratedF1, t.CalibratedAff, t.CalibratedHit = new(float64), new(float64), new(int)
		t.AlarmHit, t.AlarmFalse = new(int), new(int)
	}
	*t.AlarmHit += *r.AlarmFound
	*t.AlarmFalse += *r.FalseAlarms
	*t.CalibratedF1 += *r.F1
	*t.CalibratedAff += *r.Affinity
	*t.CalibratedHit += *r.calibrated.Found
}

func (t *totals) mean() {
	n := float64(t.Series)
	for _, v := range []*float64{&t.VUSPR, &t.VUSROC, &t.AUCPR, &t.AUCROC, &t.BestF1, &t.EventF1, &t.AffiliationF1, t.CalibratedF1, t.CalibratedAff} {
		if v != nil {
			*v /= n
		}
	}
}
