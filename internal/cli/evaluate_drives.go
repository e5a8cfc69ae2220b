package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/drives"
	"github.com/tardigrade-recovery/tardigrade/internal/bench"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/model/drive"
)

func (a *app) evaluateDrives() *cobra.Command {
	var asJSON bool
	var cutoff string
	j := drivesJudging{}
	child := jobs.Child{Args: judgingCommand}
	cmd := &cobra.Command{
		Use: "drives", Short: "Judge the prediction of disk failures on the lives of real drives",
		Long: `Judge the prediction of disk failures within 30 days on the lives of real drives: a directory with
CSV files (plain or .gz) in the form of the Backblaze history in dynamichazard, one row for each
change of a drive's SMART values, from power-on hours tstart to tstop, fails being 1 where the
drive failed at tstop. See docs/drives.md.

The model, boosted trees, is asked at each instant at which a drive says something new, and knows
what the drive has said until then, its age, size and model. Two lines:

  drives    a quarter of the drives, drawn by --seed, is judged over its whole life by a model that was trained on
            the others
  calendar  all drives are judged from --cutoff on by a model that knows nothing of what came later

With --model a saved model is judged on all drives of the directory; make sure that it was not
trained on some of them. One line, "other". All that is done in a process of its own with limited memory.

An instant counts if its outcome is known: the drive fails, or is seen working for the 30 days after it.

  auc_pr                  over all instants: is there a failure within 30 days?
  detected_at_far_0.1pct  share of the failing drives that get an alarm before they fail, with the
  detected_at_far_1pct    threshold at which one in 1000 (100) of the drives that go on working gets an
                          alarm at any time while it is judged. Drives that say nothing new in the
                          30 days before they fail (silent) are not counted: nothing could be judged
  detected_within_30d_... the same, but only alarms in the 30 days before the failure count
  detected_of_all_...     the same with the silent drives counted
  ..._monthly             the same with one false alarm in 1000 (100) drives and 30 days
  median_lead_days        from the first alarm to the failure, at 1 %
  ..._with_bad_sectors    share of the failing and of the working drives that count any bad sector
  train_s                 CPU seconds to train`,
		Example: `  tardigrade evaluate drives --data data/hdd --json
  tardigrade evaluate drives --data data/hdd --save drives.model
  tardigrade evaluate drives --data data/other --model drives.model --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if j.Data == "" {
				return usageError{errors.New("--data must name a directory with a CSV file of drives")}
			}
			if j.Load != "" && j.Save != "" {
				return usageError{errors.New("--model judges a saved model, --save trains one: give one of them")}
			}
			var err error
			if j.Cutoff, err = time.Parse(time.DateOnly, cutoff); err != nil {
				return usageError{fmt.Errorf("--cutoff %q is not a day such as 2016-01-01", cutoff)}
			}
			if child.Program, err = os.Executable(); err != nil {
				return err
			}
			out, name := cmd.OutOrStdout(), j.Data
			files, err := handOver(&j.Data)
			if err != nil {
				return err
			}
			return judgeInProcess(cmd.Context(), child, judgingOrder{Drives: &j}, files, func(l judgedLine) error {
				switch {
				case l.Error != "":
					return errors.New(strings.ReplaceAll(l.Error, handed, name))
				case l.Drives == nil:
					fmt.Fprintln(cmd.ErrOrStderr(), l.Said)
					return nil
				case asJSON || !isTerminalWriter(out):
					return json.NewEncoder(out).Encode(l.Drives)
				}
				return l.Drives.print(out)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&j.Data, "data", "", "`directory` with CSV files of drives, or one such file")
	f.Uint64Var(&j.Seed, "seed", 1, "draws the drives that are judged")
	f.StringVar(&cutoff, "cutoff", "2016-01-01", "`day` from which on the second line judges")
	f.StringVar(&j.Load, "model", "", "judge this saved model, `file`, on all drives")
	f.StringVar(&j.Save, "save", "", "write the model of the first line to this `file`")
	f.IntVar(&child.MemoryMiB, "memory-mib", 4096, "how much memory the process may have")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

// drivesJudging is what the process is asked for.
type drivesJudging struct {
	Data   string    `json:"data"`
	Seed   uint64    `json:"seed"`
	Cutoff time.Time `json:"cutoff"`
	Load   string    `json:"load,omitempty"`
	Save   string    `json:"save,omitempty"`

	say func(judgedLine)
}

type drivesResult struct {
	Split string `json:"split"`
	drive.Verdict
	TrainDrives int     `json:"train_drives"`
	TrainS      float64 `json:"train_s"`
}

// aLife is what the model sees of a drive.
func aLife(d *drives.Drive) drive.Drive {
	out := drive.Drive{Model: d.Model, SizeTB: d.SizeTB, End: d.End, Failed: d.Failed, Seen: make([]drive.Observation, len(d.Rows))}
	for i, r := range d.Rows {
		out.Seen[i] = drive.Observation{Hours: r.Start, Values: r.Values}
	}
	return out
}

// judgeAll is the process's side.
func (j *drivesJudging) judgeAll(ctx context.Context, say func(judgedLine)) error {
	j.say = say
	var m *drive.Model
	if j.Load != "" {
		b, err := readModel(j.Load)
		if err != nil {
			return err
		}
		if m, err = drive.Unmarshal(b); err != nil {
			return fmt.Errorf("%s: %w", j.Load, err)
		}
	}
	all, err := drives.Open(j.Data)
	if err != nil {
		return err
	}
	if m == nil {
		return j.trainAndJudge(ctx, all)
	}
	var test []drive.Drive
	for i := range all {
		test = append(test, aLife(&all[i]))
	}
	return j.judge(drivesResult{Split: "other"}, m, test)
}

func (j *drivesJudging) trainAndJudge(ctx context.Context, all []drives.Drive) error {
	if err := j.checkCutoff(all); err != nil {
		return err
	}
	if j.Save != "" {
		if err := canWrite("--save", j.Save); err != nil {
			return err
		}
	}
	var train, test []drive.Drive
	r := rand.New(rand.NewPCG(j.Seed, 0xd15c))
	for k, i := range r.Perm(len(all)) {
		if k < len(all)/4 {
			test = append(test, aLife(&all[i]))
		} else {
			train = append(train, aLife(&all[i]))
		}
	}
	m, err := j.train(ctx, "drives", train, test)
	if err != nil {
		return err
	}
	if j.Save != "" {
		b, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		if err := writeFile(j.Save, b); err != nil {
			return err
		}
	}
	train, test = nil, nil
	for i := range all {
		d := aLife(&all[i])
		at := j.cutoffHours(&all[i])
		if at > d.Seen[0].Hours {
			early := d
			if at < d.End { // nobody knew what came of it
				early.End, early.Failed = at, false
			}
			train = append(train, early)
		}
		if at < d.End {
			d.From = max(at, 0)
			test = append(test, d)
		}
	}
	_, err = j.train(ctx, "calendar", train, test)
	return err
}

// cutoffHours is the cutoff in power-on hours of a drive.
func (j *drivesJudging) cutoffHours(d *drives.Drive) float64 {
	return d.Rows[0].Start + j.Cutoff.Sub(d.Since).Hours()
}

// checkCutoff refuses one on one side of which there is nothing.
func (j *drivesJudging) checkCutoff(all []drives.Drive) error {
	first, last := all[0].Since, all[0].Since
	before, after := false, false
	for i := range all {
		d := &all[i]
		at := j.cutoffHours(d)
		before, after = before || at > d.Rows[0].Start, after || at < d.End
		if d.Since.Before(first) {
			first = d.Since
		}
		if end := d.At(d.End); end.After(last) {
			last = end
		}
	}
	if !before || !after {
		return fmt.Errorf("--cutoff %s leaves nothing to learn from, or nothing to judge: these drives were seen from %s to %s; name a day between", j.Cutoff.Format(time.DateOnly), first.Format(time.DateOnly), last.Format(time.DateOnly))
	}
	return nil
}

// train trains a model, and prints the verdict on it.
func (j *drivesJudging) train(ctx context.Context, split string, train, test []drive.Drive) (*drive.Model, error) {
	began := bench.CPUTime()
	m, err := drive.Train(ctx, train, j.Seed, func(done, of int) {
		if done%25 == 0 {
			j.say(judgedLine{Said: fmt.Sprintf("%s: %d of %d trees", split, done, of)})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", split, err)
	}
	res := drivesResult{Split: split, TrainDrives: len(train), TrainS: (bench.CPUTime() - began).Seconds()}
	return m, j.judge(res, m, test)
}

func (j *drivesJudging) judge(res drivesResult, m *drive.Model, test []drive.Drive) (err error) {
	if res.Verdict, err = m.Judge(test); err != nil {
		return fmt.Errorf("%s: %w", res.Split, err)
	}
	j.say(judgedLine{Drives: &res})
	return nil
}

func (res *drivesResult) print(out io.Writer) error {
	_, err := fmt.Fprintf(out, `%s: AUC-PR %.3f over %d instants, %d of them before a failure
  %.1f %% of the failing drives get an alarm where 0.1 %% of the others do, %.0f days ahead, %.1f %% where 1 %% do, %.0f days ahead
  %.1f %% and %.1f %% with that many false alarms in 30 days
  %d drives fail, %d of them silent, %d go on working
`, res.Split, res.AUCPR, res.Instants, res.Positive, 100*res.Detected01, res.Lead01, 100*res.Detected1, res.Lead, 100*res.Monthly01, 100*res.Monthly1, res.Failing, res.Silent, res.Working)
	return err
}
