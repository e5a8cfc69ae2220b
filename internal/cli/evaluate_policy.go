package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/trial"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// modelFlags say where the failure model of a trial comes from.
type modelFlags struct {
	seed uint64
	file string
}

func (o *modelFlags) add(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&o.seed, "train-seed", 0, "seed of the fleet that the failure model is trained on; 0 is one that no --seed has")
	cmd.Flags().StringVar(&o.file, "model", "", "`file` of a failure model to use instead of training one; one that is missing is trained and written")
}

// check refuses to judge a model on the fleet that it learned from.
func (o *modelFlags) check(judged uint64) error {
	if o.seed == judged {
		return usageError{fmt.Errorf("--train-seed and --seed are both %d: a model may not be judged on the fleet that it was trained on", judged)}
	}
	return nil
}

// trainSeed is that of the fleet to train on.
func (o *modelFlags) trainSeed(judged uint64) uint64 {
	if o.seed != 0 {
		return o.seed
	}
	return judged ^ 0x7e57_7e57_7e57_7e57
}

// model trains the failure model, or reads it, and says on out how far it is. It has the needed horizons
// first.
func (o *modelFlags) model(ctx context.Context, judged uint64, needed []time.Duration, out io.Writer) (*failure.Model, error) {
	if o.file != "" {
		data, err := readModel(o.file)
		if err == nil {
			if h, state, err := registry.Decode(data); err == nil && h.Kind == registry.KindFailure { // of 'train failure'
				data = state
			}
			m, err := failure.Unmarshal(data)
			if err == nil {
				err = m.Accept(feature.Names())
			}
			if err == nil && !slices.Equal(m.Horizons()[:min(len(needed), len(m.Horizons()))], needed) {
				err = fmt.Errorf("it has the horizons %v, and %v are needed", m.Horizons(), needed)
			}
			if err != nil {
				return nil, fmt.Errorf("--model %s: %w", o.file, err)
			}
			return m, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("--model: %w", err)
		}
		if err := canWrite("--model", o.file); err != nil {
			return nil, err
		}
	}
	t := trial.TrainingFleet(o.trainSeed(judged))
	bar := newProgress(out, "simulating a fleet to train on", int(t.Days*24*60))
	var parts *progress
	m, err := trial.Learn(ctx, t, bar.step, func(_, of int) {
		if parts == nil {
			bar.end()
			parts = newProgress(out, "training the failure model", of)
		}
		parts.step()
	})
	if err != nil {
		return nil, err
	}
	parts.end()
	if o.file != "" {
		data, err := m.MarshalBinary()
		if err == nil {
			err = writeFile(o.file, data)
		}
		if err != nil {
			return nil, fmt.Errorf("--model: %w", err)
		}
	}
	return m, nil
}

func (a *app) evaluatePolicy() *cobra.Command {
	var size fleetFlags
	var from modelFlags
	var logs, faults int
	var asJSON bool
	cmd := &cobra.Command{
		Use: "policy", Short: "Try recovery policies on a simulated fleet",
		Long: `Try recovery policies on a simulated fleet: each goes through the same faults, with the same luck,
and is judged by the seconds for which VMs were interrupted.

  reactive   waits for the crash
  static     goes through the phases in order, whatever is wrong: recycle, reset, migrate, a person
  bandit     learns what each action cures by Thompson sampling, without knowing signatures
  ours       the policy of serve: signatures, sequences of actions, learned cure rates
  ours-cold  the same on its first day, without the month before
  oracle     knows each fault from the moment at which telemetry shows it: its kind, its stage, and
             with which probability each action would cure it
  hindsight  knows the dice as well: what each attempt will come to, and which fault would be fatal

Static, bandit and ours see telemetry once a minute through the same failure model, which was trained on
another fleet (--train-seed), and learn whether an action cured from what they see after
it. They began with the stated beliefs of serve (bandit with none) and have since kept a third fleet for 30 days,
with 500 faults; what they learned there they bring along. Ours-cold has the stated beliefs alone. A false action
is one on a host without a fault.

The last line has the ratios, for the whole time, for its second half, and of ours-cold, and how well the
cost of a policy is estimated from the decisions of another one (see 'tardigrade evaluate ope').`,
		Example: `  tardigrade evaluate policy --hosts 500 --days 30 --seed 7 --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := size.check(); err != nil {
				return err
			}
			if err := checkLogs(logs, faults); err != nil {
				return err
			}
			if err := from.check(size.seed); err != nil {
				return err
			}
			return tryPolicies(cmd, size, &from, logs, faults, asJSON || !isTerminalWriter(cmd.OutOrStdout()))
		},
	}
	size.add(cmd, 500)
	from.add(cmd)
	f := cmd.Flags()
	f.IntVar(&logs, "logs", 200, "number of logs for the off-policy estimates of the last line")
	f.IntVar(&faults, "faults", 100_000, "number of faults in each of them")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

// trialCosts are the default costs, as serve has them.
func trialCosts() predictor.Costs {
	c := config.Default().Policy
	return predictor.Costs{CrashSeconds: c.CrashSeconds, HandOverSeconds: c.HandOverSeconds}
}

type policyRatios struct {
	OursToReactive  float64 `json:"ours_to_reactive"`
	OursToStatic    float64 `json:"ours_to_static"`
	OursToBandit    float64 `json:"ours_to_bandit"`
	OursToOracle    float64 `json:"ours_to_oracle"`
	OursToHindsight float64 `json:"ours_to_hindsight"`
}

func tryPolicies(cmd *cobra.Command, size fleetFlags, from *modelFlags, logs, faults int, asJSON bool) error {
	ctx, stop := context.WithCancelCause(cmd.Context())
	defer stop(nil)
	try := trial.Trial{Fleet: trial.Fleet{Hosts: size.hosts, Days: size.days, Seed: size.seed}, School: trial.School(from.trainSeed(size.seed)), Costs: trialCosts()}
	names := trial.Policies()
	results := make([]trial.Result, len(names))
	steps := logs
	for _, name := range names {
		steps += try.Steps(name)
	}
	bar := newProgress(cmd.ErrOrStderr(), "trying policies", steps)
	var off []trial.OffPolicy
	trained := make(chan struct{})
	// What needs no model is done while it is trained.
	jobs := []func() error{
		func() (err error) {
			try.Model, err = from.model(ctx, size.seed, trial.Horizons(), io.Discard)
			close(trained)
			return err
		},
		func() (err error) {
			off, err = trial.EvaluateOffPolicy(ctx, logs, faults, size.seed, trialCosts(), bar.step)
			return err
		},
	}
	var needing []func() error
	for i, name := range names {
		run := func() (err error) {
			results[i], err = try.Run(ctx, name, bar.step)
			return err
		}
		if !trial.NeedsModel(name) {
			jobs = append(jobs, run)
			continue
		}
		needing = append(needing, func() error {
			<-trained
			if try.Model == nil {
				return nil // why not says the job that trains
			}
			return run()
		})
	}
	next := make(chan func() error)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for job := range next {
				if err := job(); err != nil {
					stop(err)
				}
			}
		})
	}
	for _, job := range append(jobs, needing...) {
		next <- job
	}
	close(next)
	wg.Wait()
	bar.end()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	by := map[string]trial.Result{}
	for _, r := range results {
		by[r.Policy] = r
	}
	ratios := func(ours string, of func(trial.Result) float64) policyRatios {
		to := func(name string) float64 {
			if of(by[name]) == 0 {
				return 0
			}
			return of(by[ours]) / of(by[name])
		}
		return policyRatios{to("reactive"), to("static"), to("bandit"), to("oracle"), to("hindsight")}
	}
	whole := func(r trial.Result) float64 { return r.VMSeconds }
	last := struct {
		Ratios policyRatios `json:"ratios"`
		Later  policyRatios `json:"second_half_ratios"`
		Cold   policyRatios `json:"cold_ratios"`
		False  float64      `json:"false_cost_to_saved"`
		Off    offSummary   `json:"off_policy"`
	}{ratios("ours", whole), ratios("ours", func(r trial.Result) float64 { return r.LaterVMSeconds }), ratios("ours-cold", whole), 0, off}
	if saved := by["reactive"].VMSeconds - by["ours"].VMSeconds; saved > 0 {
		last.False = by["ours"].FalseCost / saved
	}
	out := cmd.OutOrStdout()
	if asJSON {
		encode := json.NewEncoder(out)
		for _, r := range results {
			if err := encode.Encode(r); err != nil {
				return err
			}
		}
		return encode.Encode(last)
	}
	for _, r := range results {
		fmt.Fprintf(out, "%-10s %10.0f VM-seconds, %4d crashes, %d false actions (%.0f VM-seconds); %v\n", r.Policy, r.VMSeconds, r.Crashes, r.FalseActions, r.FalseCost, r.Actions)
	}
	fmt.Fprintf(out, "ours: %.1f %% less than reactive, %.1f %% less than static, %.2f of the oracle (%.2f without the month before); false actions cost %.2f %% of what is saved\n",
		100*(1-last.Ratios.OursToReactive), 100*(1-last.Ratios.OursToStatic), last.Ratios.OursToOracle, last.Cold.OursToOracle, 100*last.False)
	return last.Off.print(out)
}

// checkLogs bounds the logs, each of which is held in memory.
func checkLogs(logs, faults int) error {
	if logs < 1 || logs > 100_000 || faults < 100 || faults > 10_000_000 {
		return usageError{fmt.Errorf("--logs %d --faults %d: 1 to 100000 logs of 100 to 10000000 faults are possible", logs, faults)}
	}
	return nil
}

type offSummary []trial.OffPolicy

func (o offSummary) print(out io.Writer) error {
	for _, x := range o {
		if _, err := fmt.Fprintf(out, "%-5s %.2f VM-seconds a fault, the truth is %.2f; off by %.1f %% on average, %.0f %% of the logs within 5 %%; the intervals cover the truth in %.1f %%, and are %.0f %% of it wide\n",
			x.Estimator, x.Mean, x.Truth, 100*x.ErrorRatio, 100*x.Within, 100*x.Coverage, 100*x.TypicalWidth); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) evaluateOffPolicy() *cobra.Command {
	var logs, faults int
	var seed uint64
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ope", Short: "Judge how well a policy is judged on the decisions of another one",
		Long: `Judge how well a policy is judged on the decisions of another one (off-policy evaluation), on
simulated faults, where the truth is known. The log is of the policy that learns, as it begins; the
policy that is judged on it is the same once it has learned. Three estimators: inverse propensity
(ips), self-normalised (snips), doubly robust (dr). A line for each: the truth, the mean of the
estimates over all logs, their mean and worst relative error, the share of logs within 5 %, and in
which share of the logs the 95 % interval has the truth in it. The truth is exact. Of 1000 logs that share is known to within
0.7 percent points, of 200 to within 1.5 (one standard deviation).`,
		Example: `  tardigrade evaluate ope --logs 200 --json
  tardigrade evaluate ope --faults 300       # how little a short log says`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkLogs(logs, faults); err != nil {
				return err
			}
			bar := newProgress(cmd.ErrOrStderr(), "logging and estimating", logs)
			off, err := trial.EvaluateOffPolicy(cmd.Context(), logs, faults, seed, trialCosts(), bar.step)
			if err != nil {
				return err
			}
			bar.end()
			out := cmd.OutOrStdout()
			if !asJSON && isTerminalWriter(out) {
				return offSummary(off).print(out)
			}
			for _, x := range off {
				if err := json.NewEncoder(out).Encode(x); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&logs, "logs", 1000, "number of logs")
	f.IntVar(&faults, "faults", 100_000, "number of faults in each log")
	f.Uint64Var(&seed, "seed", 1, "seed: the same one gives the same logs")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

func (a *app) evaluateHorizon() *cobra.Command {
	var size fleetFlags
	var from modelFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "horizon", Short: "Judge how well failures are predicted 5 minutes, an hour and a day ahead",
		Long: `Judge how well failures are predicted 5 minutes, an hour and a day ahead, on a simulated fleet on whose
faults nobody acts, by a failure model that was trained on another one (--train-seed). A host fails when
it crashes, or when a neighbour's noise takes its VMs' time.

A line for each horizon and signature, and for all signatures together. Instants, one a minute:

  precision, recall, auc_pr  at a probability of one half and over all; instants before the fault
                             behind a failure has begun are left out, since nothing shows it
  calibration_error          over ten bins, of all instants, those left out above included

and failures: how many there were, how many were foreseen, how long before (median), with the
right signature, and the false alarms a host gives in a day.`,
		Example: `  tardigrade evaluate horizon --hosts 500 --days 30 --seed 7 --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := size.check(); err != nil {
				return err
			}
			if err := from.check(size.seed); err != nil {
				return err
			}
			model, err := from.model(cmd.Context(), size.seed, failure.Horizons(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			bar := newProgress(cmd.ErrOrStderr(), "scoring", int(size.days*24*60))
			lines, err := trial.EvaluateHorizon(cmd.Context(), trial.Fleet{Hosts: size.hosts, Days: size.days, Seed: size.seed}, model, bar.step)
			if err != nil {
				return err
			}
			bar.end()
			out := cmd.OutOrStdout()
			for _, x := range lines {
				if asJSON || !isTerminalWriter(out) {
					err = json.NewEncoder(out).Encode(x)
				} else {
					_, err = fmt.Fprintf(out, "%6.0f s  %-16s precision %.2f  recall %.2f  AUC-PR %.2f  foreseen %d of %d, %.0f s before\n", x.HorizonSeconds, x.Signature, x.Precision, x.Recall, x.AUCPR, x.Foreseen, x.Failures, x.MedianLead)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	size.add(cmd, 500)
	from.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}
