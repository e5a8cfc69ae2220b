package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/table"
	"github.com/tardigrade-recovery/tardigrade/internal/bench"
	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
	"github.com/tardigrade-recovery/tardigrade/model/golearn"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

func (a *app) evaluateFailure() *cobra.Command {
	var csv, test, label string
	var asJSON bool
	var c gbdt.Config
	cmd := &cobra.Command{
		Use: "failure", Short: "Judge the failure model on a table of numbers with a label",
		Long: `Judge the failure model, gradient-boosted trees, on a CSV file (plain or .gz): the first row
names the columns, one of them is the label, 0 or 1, and all others are numbers, where empty and NaN are
missing values. Beside it stands the reference that it must beat: a random forest over golearn's
trees, each of which sees 2000 rows at most, since golearn is slow.

Four fifths of the rows, drawn by --seed, are learned from and the others are judged; with --test all
are learned from and the rows of that file are judged, as is right where rows of one host or one day
are alike. One line for each model:

  auc, auc_pr, log_loss  on the rows held out
  train_s                CPU seconds to learn, one thread, reading the file not counted
  rows_per_s             rows scored in a CPU second, one thread

On a terminal golearn's confusion matrix for each model is printed as well, at a probability of
one half.`,
		Example: `  tardigrade evaluate failure --csv windows.csv.gz --label failed --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if csv == "" || label == "" {
				return usageError{errors.New("--csv must name a file and --label a column of it")}
			}
			if c.Trees < 1 || c.Leaves < 2 {
				return usageError{fmt.Errorf("--trees %d --leaves %d: at least 1 tree of 2 leaves is needed", c.Trees, c.Leaves)}
			}
			t, err := table.Read(csv, label)
			if err != nil {
				return err
			}
			if !table.Varies(t.Rows) {
				return fmt.Errorf("%s: every column but the label is constant: nothing tells its rows apart", csv)
			}
			c.Features = t.Columns
			train, judged := divide(t, c.Seed)
			if test != "" {
				other, err := table.Read(test, label)
				if err != nil {
					return err
				}
				if !slices.Equal(t.Columns, other.Columns) {
					return fmt.Errorf("%s has other columns than %s: %s", test, csv, firstDifference(other.Columns, t.Columns))
				}
				train, judged = gbdt.Data{X: t.Rows, Y: t.Labels}, gbdt.Data{X: other.Rows, Y: other.Labels}
			}
			out := cmd.OutOrStdout()
			return judgeFailure(cmd.Context(), train, judged, c, out, asJSON || !isTerminalWriter(out))
		},
	}
	f := cmd.Flags()
	f.StringVar(&csv, "csv", "", "`file` to learn from and to judge on")
	f.StringVar(&test, "test", "", "`file` to judge on in place of a fifth of the rows")
	f.StringVar(&label, "label", "", "`column` with 1 where a row is to be predicted and 0 elsewhere")
	f.Uint64Var(&c.Seed, "seed", 1, "draws the rows that are held out, and whatever else is random")
	f.IntVar(&c.Trees, "trees", 100, "how many trees to learn")
	f.IntVar(&c.Leaves, "leaves", 31, "how many leaves a boosted tree has at most")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

type failureResult struct {
	Model   string  `json:"model"`
	AUC     float64 `json:"auc"`
	AUCPR   float64 `json:"auc_pr"`
	LogLoss float64 `json:"log_loss"`
	TrainS  float64 `json:"train_s"`
	RowsPS  float64 `json:"rows_per_s"`
	Trees   int     `json:"trees"`
	Train   int     `json:"train_rows"`
	Test    int     `json:"test_rows"`
}

// classifier puts the probabilities of rows into dst.
type classifier func(dst []float64, rows [][]float64)

// divide draws the fifth of the rows that is judged.
func divide(t table.Table, seed uint64) (train, test gbdt.Data) {
	order := rand.New(rand.NewPCG(seed, 0x5011d)).Perm(len(t.Rows))
	for k, i := range order {
		d := &train
		if k >= len(order)*4/5 {
			d = &test
		}
		d.X, d.Y = append(d.X, t.Rows[i]), append(d.Y, t.Labels[i])
	}
	return train, test
}

func firstDifference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("%q in place of %q", a[i], b[i])
		}
	}
	return fmt.Sprintf("%d in place of %d", len(a), len(b))
}

func judgeFailure(ctx context.Context, train, test gbdt.Data, c gbdt.Config, out io.Writer, asJSON bool) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, m := range []struct {
		name  string
		train func() (classifier, int, error)
	}{
		{"gbdt", func() (classifier, int, error) {
			m, err := gbdt.Train(ctx, train, c)
			if err != nil {
				return nil, 0, err
			}
			return gbdt.NewScorer(m).Predict, m.Trees(), nil
		}},
		{"golearn", func() (classifier, int, error) {
			f, err := golearn.Train(ctx, train.X, train.Y, golearn.Config{Trees: c.Trees, Seed: c.Seed})
			if err != nil {
				return nil, 0, err
			}
			return func(dst []float64, rows [][]float64) {
				for i, row := range rows {
					dst[i] = f.Predict(row)
				}
			}, c.Trees, nil
		}},
	} {
		runtime.GC()
		began := bench.CPUTime()
		predict, trees, err := m.train()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		res := failureResult{Model: m.name, TrainS: (bench.CPUTime() - began).Seconds(), Trees: trees, Train: len(train.X), Test: len(test.X)}
		p := make([]float64, len(test.X))
		scored := 0
		for began = bench.CPUTime(); bench.CPUTime()-began < 100*time.Millisecond && ctx.Err() == nil; scored += len(p) {
			predict(p, test.X)
		}
		res.RowsPS = float64(scored) / (bench.CPUTime() - began).Seconds()
		if err := res.judge(p, test.Y); err != nil {
			return fmt.Errorf("%s: on the %d rows held out: %w", m.name, len(p), err)
		}
		if asJSON {
			err = json.NewEncoder(out).Encode(res)
		} else {
			err = res.print(out, p, test.Y)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (r *failureResult) judge(p []float64, labels []bool) (err error) {
	if r.AUC, err = metrics.AUCROC(p, labels); err != nil {
		return err
	}
	if r.AUCPR, err = metrics.AUCPR(p, labels); err != nil {
		return err
	}
	for i, y := range labels {
		q := min(max(p[i], 1e-15), 1-1e-15)
		if !y {
			q = 1 - q
		}
		r.LogLoss -= math.Log(q)
	}
	r.LogLoss /= float64(len(p))
	return nil
}

func (r *failureResult) print(out io.Writer, p []float64, labels []bool) error {
	said := make([]bool, len(p))
	for i := range p {
		said[i] = p[i] >= 0.5
	}
	confusion, err := golearn.Confusion(labels, said)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: AUC %.4f  AUC-PR %.4f  log loss %.4f  %.2f s to learn from %d rows  %.0f rows/s\n%s\n",
		r.Model, r.AUC, r.AUCPR, r.LogLoss, r.TrainS, r.Train, r.RowsPS, confusion)
	return err
}
