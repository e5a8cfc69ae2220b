package cli

import (
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/series"
	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/baseline"
	"github.com/tardigrade-recovery/tardigrade/model/fast"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// askedRates are the false alarms per host and 30 days that are asked for.
var askedRates = []float64{0.3, 1, 3, 10, 30}

func (a *app) evaluateCalibration() *cobra.Command {
	c := calibration{detector: "serve", hosts: 20, days: 14, seed: 1, interval: time.Minute, learn: 24 * time.Hour, benign: 1}
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "calibration", Short: "Count the false alarms of healthy hosts",
		Long: `Watch healthy hosts, and count for each rate of false alarms that is asked for those that come. An
alarm that begins is one, however long it lasts, and what comes while a host is learned counts
nothing. Without --data the hosts are simulated, without faults, but with what looks like one:
backups at night, deploys on workdays, batch jobs, and a load that differs by hour and weekday.
With --data they are the train files of a directory, taken as healthy: what is an
incident in them counts as a false alarm.

Detectors: serve (what the control plane uses, with the configuration's model.detector,
model.learn_fully and model.retrain_every), default, fast and baseline. Detector and alarm are those that run in serve.

  alarms          begins of alarms that the score gives, at each asked rate
  evidence        begins of findings that need no model, such as memory that grows in a line`,
		Example: `  tardigrade evaluate calibration --hosts 20 --days 14 --seed 1 --json
  tardigrade evaluate calibration --data data/asd --interval 5m --detector default`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			if c.hosts < 1 || !(c.days > 0 && c.days <= 3650) || c.interval < 100*time.Millisecond || c.learn <= 0 || !(c.benign >= 0) {
				return usageError{errors.New("--hosts, --days, --interval and --learn must be positive, and --benign not negative")}
			}
			make, err := c.maker(cfg.Model)
			if err != nil {
				return usageError{err}
			}
			var r calibrationResult
			if data == "" {
				r, err = c.simulate(cmd.Context(), make)
			} else {
				r, err = c.files(cmd.Context(), data, make)
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(r)
			}
			return r.print(out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "`directory` of series whose train files are watched instead of simulated hosts")
	f.StringVar(&c.detector, "detector", c.detector, "serve, default, fast or baseline")
	f.IntVar(&c.hosts, "hosts", c.hosts, "`number` of simulated hosts")
	f.Float64Var(&c.days, "days", c.days, "simulated `days`")
	f.Uint64Var(&c.seed, "seed", c.seed, "`number` that the simulated fleet is drawn from")
	f.Float64Var(&c.benign, "benign", c.benign, "batch jobs per simulated host and day; 0 leaves out backups and deploys too")
	f.DurationVar(&c.interval, "interval", c.interval, "time between two samples")
	f.DurationVar(&c.learn, "learn", c.learn, "how long a host is watched before it is scored")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

type calibration struct {
	detector string
	hosts    int
	days     float64
	seed     uint64
	benign   float64
	interval time.Duration
	learn    time.Duration
}

type calibrationResult struct {
	Source     string       `json:"source"`
	Detector   string       `json:"detector"`
	Hosts      int          `json:"hosts"`
	IntervalS  float64      `json:"interval_s"`
	LearnS     float64      `json:"learn_s"`
	Seed       uint64       `json:"seed,omitempty"`
	HostMonths float64      `json:"host_months"`
	Rates      []alarmCount `json:"rates"`
	Evidence   int          `json:"evidence"`
	PerMonth   float64      `json:"evidence_per_host_month"`
}

// alarmCount is what came where so many alarms per host and 30 days were asked for.
type alarmCount struct {
	Asked float64 `json:"asked_per_host_month"`
	// Samples is how many had a score over the threshold.
	Samples  int     `json:"samples_over"`
	Alarms   int     `json:"alarms"`
	PerMonth float64 `json:"alarms_per_host_month"`
}

// detectorMaker makes the detector of a host.
type detectorMaker = func(fleet.HostID, []string) (predictor.Detector, error)

func (c calibration) maker(cfg config.Model) (detectorMaker, error) {
	learn := max(20, int(c.learn/c.interval))
	switch c.detector {
	case "serve":
		cfg.Learn = config.Duration(c.learn)
		return control.Detectors(cfg, c.interval), nil
	case "default", "fast":
		method := map[string]stream.Method{"default": anomaly.Method, "fast": fast.Method}[c.detector]
		return func(_ fleet.HostID, series []string) (predictor.Detector, error) {
			d, err := stream.New(method, len(series), stream.Config{Learn: learn})
			return single{d}, err
		}, nil
	case "baseline":
		return func(_ fleet.HostID, series []string) (predictor.Detector, error) {
			d, err := baseline.New(len(series), baseline.Config{Learn: learn})
			return single{d}, err
		}, nil
	}
	return nil, fmt.Errorf("--detector %q is not serve, default, fast or baseline", c.detector)
}

// single is one detector of all columns, as the predictor wants it.
type single struct{ liveDetector }

type liveDetector interface {
	Observe(at time.Time, x []float64) (learned, tail float64)
	Explain(dst []float64) float64
	Grow(columns int) error
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

func (s single) Grow(series []string) error { return s.liveDetector.Grow(len(series)) }

func (s single) Observe(at time.Time, x []float64) predictor.Observation {
	learned, tail := s.liveDetector.Observe(at, x)
	return predictor.Observation{Learning: learned < 1, Learned: learned, Tail: tail}
}

// watched is a host whose alarms are counted.
type watched struct {
	p        *predictor.Predictor
	alarms   []*predictor.Alarm
	on       []bool
	evidence bool
}

func (c calibration) watch(host fleet.HostID, make detectorMaker) (*watched, error) {
	p, err := predictor.New(host, predictor.Config{NewDetector: make, Model: c.detector, FalseAlarms: 1, Interval: c.interval, Horizon: time.Hour})
	w := &watched{p: p}
	for _, asked := range askedRates {
		w.alarms = append(w.alarms, predictor.NewAlarm(asked, c.interval))
		w.on = append(w.on, false)
	}
	return w, err
}

// observe takes a sample and counts what begins with it.
func (r *calibrationResult) observe(w *watched, s *fleet.Sample) error {
	p, err := w.p.Observe(s)
	if err != nil {
		return err
	}
	if p.State == fleet.PredictionLearning {
		return nil
	}
	r.HostMonths += r.IntervalS / (30 * 24 * 3600)
	for i := range w.alarms {
		if p.AnomalyScore >= w.alarms[i].Threshold() {
			r.Rates[i].Samples++
		}
		was := w.on[i]
		if w.on[i] = w.alarms[i].Observe(p.AnomalyScore); w.on[i] && !was {
			r.Rates[i].Alarms++
		}
	}
	found := p.Signature != fleet.SignatureNone && p.FailureProbability != suspected
	if found && !w.evidence {
		r.Evidence++
	}
	w.evidence = found
	return nil
}

// suspected is the failure probability of an alarm that the score alone gives.
const suspected = 0.25

func (c calibration) result(source string) calibrationResult {
	r := calibrationResult{Source: source, Detector: c.detector, IntervalS: c.interval.Seconds(), LearnS: c.learn.Seconds()}
	for _, asked := range askedRates {
		r.Rates = append(r.Rates, alarmCount{Asked: asked})
	}
	return r
}

func (r *calibrationResult) finish() error {
	if r.HostMonths == 0 {
		return errors.New("the hosts were still being learned at the end: more time, or a shorter --learn, is needed")
	}
	for i := range r.Rates {
		r.Rates[i].PerMonth = float64(r.Rates[i].Alarms) / r.HostMonths
	}
	r.PerMonth = float64(r.Evidence) / r.HostMonths
	return nil
}

func (r calibrationResult) print(out io.Writer) error {
	fmt.Fprintf(out, "%s, %s: %d hosts, %.1f host-months after learning\n", r.Source, r.Detector, r.Hosts, r.HostMonths)
	for _, a := range r.Rates {
		fmt.Fprintf(out, "  asked for %4g a host and month: %6.2f (%d alarms)\n", a.Asked, a.PerMonth, a.Alarms)
	}
	_, err := fmt.Fprintf(out, "  found without a model:          %6.2f (%d)\n", r.PerMonth, r.Evidence)
	return err
}

func (c calibration) simulate(ctx context.Context, make detectorMaker) (calibrationResult, error) {
	r := c.result("simulator")
	r.Hosts, r.Seed = c.hosts, c.seed
	benign := c.benign
	if benign == 0 {
		benign = -1
	}
	f, err := simulator.New(simulator.Config{Hosts: c.hosts, Seed: c.seed, Interval: c.interval, FaultRate: -1, BenignRate: benign})
	if err != nil {
		return r, err
	}
	hosts := map[fleet.HostID]*watched{}
	var samples []fleet.Sample
	for range int(c.days * 24 * float64(time.Hour) / float64(c.interval)) {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		samples = f.Step(samples)
		for i := range samples {
			s := &samples[i]
			w := hosts[s.Host]
			if w == nil {
				if w, err = c.watch(s.Host, make); err != nil {
					return r, err
				}
				hosts[s.Host] = w
			}
			if err := r.observe(w, s); err != nil {
				return r, err
			}
		}
	}
	return r, r.finish()
}

func (c calibration) files(ctx context.Context, dir string, make detectorMaker) (calibrationResult, error) {
	r := c.result(filepath.Base(dir))
	all, err := series.Open(dir)
	if err != nil {
		return r, err
	}
	r.Hosts = len(all)
	for _, one := range all {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		data, err := one.Train()
		if err != nil {
			return r, err
		}
		w, err := c.watch(fleet.HostID(one.Name), make)
		if err != nil {
			return r, err
		}
		s := fleet.Sample{Host: fleet.HostID(one.Name), Boot: "b", Schema: fleet.NewSchema(data.Columns)}
		at := time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
		for _, x := range data.Rows {
			at = at.Add(c.interval)
			s.Time, s.Values = at, x
			if err := r.observe(w, &s); err != nil {
				return r, err
			}
		}
	}
	return r, r.finish()
}
