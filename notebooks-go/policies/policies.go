// Package policies tries recovery policies on a small simulated fleet, and estimates what a policy would cost
// from the decisions that another one logged.
package policies

import (
	"context"
	"fmt"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/trial"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"github.com/tardigrade-recovery/tardigrade/predictor"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
)

// Size is how much is simulated.
type Size struct {
	// Hosts and Days are the fleet that policies are tried on.
	Hosts int
	Days  float64
	// TrainHosts and TrainDays are the one that the failure model learns from. Policies that learn keep one of that
	// size before, too.
	TrainHosts int
	TrainDays  float64
	// Logs is the number of logs of each length that off-policy estimates are made from.
	Logs int
	Seed uint64
}

// Small takes half a minute of a processor.
func Small(seed uint64) Size {
	return Size{Hosts: 120, Days: 15, TrainHosts: 100, TrainDays: 12, Logs: 40, Seed: seed}
}

// costs are the default ones of serve.
func costs() predictor.Costs {
	c := config.Default().Policy
	return predictor.Costs{CrashSeconds: c.CrashSeconds, HandOverSeconds: c.HandOverSeconds}
}

// Learn trains the model through which policies see the fleet, on another fleet with many faults.
func Learn(ctx context.Context, s Size) (*failure.Model, error) {
	return trial.Learn(ctx, trial.Training{Fleet: trial.Fleet{Hosts: s.TrainHosts, Days: s.TrainDays, Seed: s.Seed ^ 0x7e57_7e57, FaultRate: 12}, Operated: true, Sound: 6000}, nil, nil)
}

// Try runs each policy through the same faults.
func Try(ctx context.Context, s Size, m *failure.Model) ([]trial.Result, error) {
	var out []trial.Result
	try := trial.Trial{Fleet: trial.Fleet{Hosts: s.Hosts, Days: s.Days, Seed: s.Seed}, Model: m, Costs: costs(),
		School: trial.Fleet{Hosts: s.TrainHosts, Days: s.TrainDays, Seed: s.Seed ^ 0x5c00_15c0, FaultRate: 4}}
	for _, name := range trial.Policies() {
		r, err := try.Run(ctx, name, nil)
		if err != nil {
			return nil, fmt.Errorf("the policy %s: %w", name, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Compare sets the policies beside each other.
func Compare(s Size, results []trial.Result) (page.Section, error) {
	t := page.Table{Columns: []string{"policy", "VM-seconds", "of reactive", "of which crashes", "freezes", "people at work", "noise", "hosts crashed", "false actions", "their VM-seconds"}}
	actions := page.Table{Columns: []string{"policy"}}
	for _, a := range fleet.Actions() {
		if a != fleet.ActionNone {
			actions.Columns = append(actions.Columns, string(a))
		}
	}
	var names []string
	var lost []float64
	saved := ""
	for _, r := range results {
		if less := results[0].VMSeconds - r.VMSeconds; r.Policy == "ours" && less > 0 && r.VMSeconds > 0 {
			saved = fmt.Sprintf(" Ours saves %.1f %% of what reactive loses. Its false actions cost %.1f %% of what it saves, and are %.0f %% of what it loses: the failure model learned from a small fleet, too.",
				100*less/results[0].VMSeconds, 100*r.FalseCost/less, 100*r.FalseCost/r.VMSeconds)
		}
		t.Add(r.Policy, r.VMSeconds, fmt.Sprintf("%.0f %%", 100*r.VMSeconds/results[0].VMSeconds), r.Tally.CrashVMSeconds, r.Tally.FreezeVMSeconds,
			r.Tally.HandOverVMSeconds, r.Tally.SlowVMSeconds, r.Crashes, r.FalseActions, r.FalseCost)
		row := []any{r.Policy}
		for _, a := range actions.Columns[1:] {
			row = append(row, r.Actions[fleet.Action(a)])
		}
		actions.Add(row...)
		names, lost = append(names, r.Policy), append(lost, r.VMSeconds)
	}
	p := page.New("Interruption of all VMs together", "", "VM-seconds")
	if err := page.Bars(p, names, lost); err != nil {
		return page.Section{}, err
	}
	p.Y.Min = 0
	return page.Section{Title: "Policies beside each other", Tables: []page.Table{t, actions},
		Text: fmt.Sprintf("%d hosts for %g days; each policy goes through the same faults with the same luck. Reactive waits for the crash. Static goes through the phases in order, whatever is wrong. "+
			"Bandit learns what each action cures without knowing signatures, ours with them; both have kept another fleet before (%d hosts for %g days), ours-cold has not. These and static see telemetry through one failure model, trained on yet another fleet. Oracle knows the faults, hindsight the dice as well. "+
			"A fleet this small has few faults, so one crash more or less moves the figures. A migration in two hundred loses a VM, which is 300 VM-seconds, so that a few hundred between the policies that learn are chance too. [docs/policy.md](../../docs/policy.md) has the figures of 500 hosts.", s.Hosts, s.Days, s.TrainHosts, s.TrainDays) + saved,
		Figures: []page.Figure{{Name: "interruption", Caption: "Interruption by policy", Plots: []*plot.Plot{p}}}}, nil
}

// lengths are the numbers of faults in a log.
var lengths = []int{500, 2000, 8000}

// OffPolicy shows how long a log must be for an estimate to be worth something.
func OffPolicy(ctx context.Context, s Size) (page.Section, error) {
	t := page.Table{Columns: []string{"faults in a log", "estimator", "truth", "mean estimate", "mean error", "interval, of the truth", "intervals that have the truth"}}
	wrong, width := page.New("Mean error of an estimate", "faults in a log", "%"), page.New("Width of the 95 % interval", "faults in a log", "% of the truth")
	var logged, truth float64
	points := map[string][2]plotter.XYs{}
	var names []string
	for _, n := range lengths {
		off, err := trial.EvaluateOffPolicy(ctx, s.Logs, n, s.Seed, costs(), nil)
		if err != nil {
			return page.Section{}, fmt.Errorf("logs of %d faults: %w", n, err)
		}
		names = names[:0]
		for _, x := range off {
			t.Add(n, x.Estimator, x.Truth, x.Mean, percent(x.ErrorRatio), percent(x.Width), percent(x.Coverage))
			q := points[x.Estimator]
			q[0] = append(q[0], plotter.XY{X: float64(n), Y: 100 * x.ErrorRatio})
			q[1] = append(q[1], plotter.XY{X: float64(n), Y: 100 * x.Width})
			points[x.Estimator] = q
			names = append(names, x.Estimator)
			logged, truth = x.Logged, x.Truth
		}
	}
	for i, name := range names {
		if err := page.Line(wrong, i, name, points[name][0]); err != nil {
			return page.Section{}, err
		}
		if err := page.Line(width, i, "", points[name][1]); err != nil {
			return page.Section{}, err
		}
	}
	wrong.Y.Min, width.Y.Min = 0, 0
	return page.Section{Title: "Judging a policy on the decisions of another one", Tables: []page.Table{t},
		Text: fmt.Sprintf("A log is of the policy that learns, as it begins, which costs %.1f VM-seconds a fault; what is judged on it is the same once it has learned, which costs %.1f. "+
			"The truth is known here, since faults are simulated. %d logs of each length; inverse propensity (ips), self-normalised (snips), doubly robust (dr): `go doc ./predictor/ope`. "+
			"An interval is to be read before its estimate: where it is wide, the log is too short for a decision. It counts one more fault, which costs the most that one can: what is dear and rare is mostly not in a short log.", logged, truth, s.Logs),
		Figures: []page.Figure{{Name: "off-policy", Caption: "Error and width of the intervals over the length of the log", Plots: []*plot.Plot{wrong, width}}}}, nil
}

func percent(ratio float64) string { return fmt.Sprintf("%.1f %%", 100*ratio) }

// Page is the whole analysis.
func Page(ctx context.Context, s Size) (page.Page, error) {
	m, err := Learn(ctx, s)
	if err != nil {
		return page.Page{}, err
	}
	results, err := Try(ctx, s, m)
	if err != nil {
		return page.Page{}, err
	}
	compared, err := Compare(s, results)
	if err != nil {
		return page.Page{}, err
	}
	off, err := OffPolicy(ctx, s)
	if err != nil {
		return page.Page{}, err
	}
	return page.Page{Name: "policies", Title: "Recovery policies",
		Text:     fmt.Sprintf("On a small simulated fleet (seed %d). Written by `make pages`; a smaller one as a notebook: [policies.ipynb](../policies.ipynb).", s.Seed),
		Sections: []page.Section{compared, off}}, nil
}
