package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/table"
	"github.com/tardigrade-recovery/tardigrade/internal/bench"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
	"github.com/tardigrade-recovery/tardigrade/model/golearn"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

func (a *app) evaluateFailure() *cobra.Command {
	var o tableJudging
	var asJSON bool
	child := jobs.Child{Args: judgingCommand}
	cmd := &cobra.Command{
		Use: "failure", Short: "Judge the failure model on a table of numbers with a label",
		Long: `Judge the failure model, gradient-boosted trees, on a CSV file (plain or .gz): the first row
names the columns, one of them is the label, 0 or 1, and all others are numbers, where empty and NaN are
missing values. Beside it stands the reference that it must beat: a random forest over golearn's
trees, each of which sees 2000 rows at most, since golearn is slow.

Four fifths of the rows, drawn by --seed, are learned from and the others are judged; with --test all
are learned from and the rows of that file are judged, as is right where rows of one host or one day
are alike. All that is done in a process of its own with limited memory. One line for each model:

  auc, auc_pr, log_loss  on the rows held out
  train_s                CPU seconds to learn, one thread, reading the file not counted
  rows_per_s             rows scored in a CPU second, one thread

On a terminal golearn's confusion matrix for each model is printed as well, at a probability of
one half.`,
		Example: `  tardigrade evaluate failure --csv windows.csv.gz --label failed --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.CSV == "" || o.Label == "" {
				return usageError{errors.New("--csv must name a file and --label a column of it")}
			}
			if o.Trees < 1 || o.Leaves < 2 {
				return usageError{fmt.Errorf("--trees %d --leaves %d: at least 1 tree of 2 leaves is needed", o.Trees, o.Leaves)}
			}
			var err error
			if child.Program, err = os.Executable(); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			return o.inProcess(cmd.Context(), child, cmd.ErrOrStderr(), func(r failureResult) error {
				if asJSON || !isTerminalWriter(out) {
					r.Confusion = ""
					return json.NewEncoder(out).Encode(r)
				}
				_, err := fmt.Fprintf(out, "%s: AUC %.4f  AUC-PR %.4f  log loss %.4f  %.2f s to learn from %d rows  %.0f rows/s\n%s\n",
					r.Model, r.AUC, r.AUCPR, r.LogLoss, r.TrainS, r.Train, r.RowsPS, r.Confusion)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.CSV, "csv", "", "`file` to learn from and to judge on; - is standard input")
	f.StringVar(&o.Test, "test", "", "`file` to judge on in place of a fifth of the rows")
	f.StringVar(&o.Label, "label", "", "`column` with 1 where a row is to be predicted and 0 elsewhere")
	f.Uint64Var(&o.Seed, "seed", 1, "draws the rows that are held out, and whatever else is random")
	f.IntVar(&o.Trees, "trees", 100, "how many trees to learn")
	f.IntVar(&o.Leaves, "leaves", 31, "how many leaves a boosted tree has at most")
	f.IntVar(&child.MemoryMiB, "memory-mib", 4096, "how much memory the process may have")
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
	// Confusion is golearn's confusion matrix at one half, for a person.
	Confusion string `json:"confusion,omitempty"`
}

// judgingOrder is the order to the process that judges, one of the two, and judgedLine a line of what it writes.
type judgingOrder struct {
	MemoryMiB int            `json:"memory_mib"`
	Table     *tableJudging  `json:"table,omitempty"`
	Drives    *drivesJudging `json:"drives,omitempty"`
}

type tableJudging struct {
	CSV    string `json:"csv"`
	Test   string `json:"test,omitempty"`
	Label  string `json:"label"`
	Seed   uint64 `json:"seed"`
	Trees  int    `json:"trees"`
	Leaves int    `json:"leaves"`
}

type judgedLine struct {
	Trained int            `json:"trained,omitempty"` // trees of the forest so far
	Said    string         `json:"said,omitempty"`    // how far it is, for a person
	Result  *failureResult `json:"result,omitempty"`
	Drives  *drivesResult  `json:"drives,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// judgingCommand are the arguments of that process.
var judgingCommand = []string{"evaluate", "child"}

func (a *app) evaluateChild() *cobra.Command {
	return &cobra.Command{
		Use: "child", Short: "The process that judges, as 'evaluate failure' and 'evaluate drives' start it", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var o judgingOrder
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&o); err != nil {
				return fmt.Errorf("the order of an evaluation: %w", err)
			}
			if err := jobs.Limit(o.MemoryMiB); err != nil {
				return err
			}
			lines := json.NewEncoder(cmd.OutOrStdout())
			var err, unsaid error
			say := func(j judgedLine) { unsaid = cmp.Or(unsaid, lines.Encode(j)) }
			if o.Drives != nil {
				err = o.Drives.judgeAll(cmd.Context(), say)
			} else if o.Table != nil {
				err = o.Table.judge(cmd.Context(), say)
			}
			if err = cmp.Or(err, unsaid); err != nil {
				return lines.Encode(judgedLine{Error: err.Error()})
			}
			return nil
		},
	}
}

// inProcess lets a process judge, and calls each with what it makes of each model.
func (o tableJudging) inProcess(ctx context.Context, child jobs.Child, stderr io.Writer, each func(failureResult) error) error {
	bar := newProgress(stderr, "growing golearn's trees", o.Trees)
	name := o.CSV
	if name == "-" {
		name, o.CSV = "standard input", "/dev/stdin"
	}
	files, err := handOver(&o.CSV)
	if err != nil {
		return err
	}
	return judgeInProcess(ctx, child, judgingOrder{Table: &o}, files, func(j judgedLine) error {
		if j.Error != "" {
			return errors.New(strings.ReplaceAll(j.Error, handed, name))
		}
		if j.Result != nil {
			return each(*j.Result)
		}
		bar.step()
		return nil
	})
}

// handed is what the process reads that it could not open by its name, such as standard input: it has
// descriptors of its own.
const handed = "/dev/fd/3"

// handOver opens such a path, and replaces it.
func handOver(path *string) ([]*os.File, error) {
	f, err := os.Stdin, error(nil)
	if *path != "/dev/stdin" {
		info, missing := os.Stat(*path)
		if missing != nil || info.IsDir() || info.Mode().IsRegular() {
			return nil, nil // the process opens it, or says why it can't
		}
		f, err = os.Open(*path)
	}
	*path = handed
	return []*os.File{f}, err
}

// judgeInProcess lets a process judge, and calls each with what it says until that returns an error.
func judgeInProcess(ctx context.Context, child jobs.Child, o judgingOrder, files []*os.File, each func(judgedLine) error) error {
	o.MemoryMiB = child.MemoryMiB
	var failed error
	err := child.Process(ctx, o, files, func(line []byte) {
		var j judgedLine
		if json.Unmarshal(line, &j) == nil && failed == nil {
			failed = each(j)
		}
	})
	return cmp.Or(failed, err)
}

// tables are what is learned from and what is judged.
func (o tableJudging) tables() (train, test gbdt.Data, columns []string, err error) {
	t, err := table.Read(o.CSV, o.Label)
	if err != nil {
		return train, test, nil, err
	}
	if err := t.BothLabels(); err != nil {
		return train, test, nil, fmt.Errorf("%s: the label %s %w", o.CSV, o.Label, err)
	}
	if !table.Varies(t.Rows) {
		return train, test, nil, fmt.Errorf("%s: every column but the label is constant: nothing tells its rows apart", o.CSV)
	}
	if o.Test == "" {
		train, test = divide(t, o.Seed)
		return train, test, t.Columns, nil
	}
	other, err := table.Read(o.Test, o.Label)
	if err != nil {
		return train, test, nil, err
	}
	if err := other.BothLabels(); err != nil {
		return train, test, nil, fmt.Errorf("%s: the label %s %w", o.Test, o.Label, err)
	}
	if !slices.Equal(t.Columns, other.Columns) {
		return train, test, nil, fmt.Errorf("%s has other columns than %s: %s", o.Test, o.CSV, firstDifference(other.Columns, t.Columns))
	}
	return gbdt.Data{X: t.Rows, Y: t.Labels}, gbdt.Data{X: other.Rows, Y: other.Labels}, t.Columns, nil
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
	return fmt.Sprintf("%d columns in place of %d", len(a), len(b))
}

// judge trains both models on one thread, and says what each comes to.
func (o tableJudging) judge(ctx context.Context, say func(judgedLine)) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	train, test, columns, err := o.tables()
	if err != nil {
		return err
	}
	for _, m := range []struct {
		name  string
		train func() (classifier, int, error)
	}{
		{"gbdt", func() (classifier, int, error) {
			m, err := gbdt.Train(ctx, train, gbdt.Config{Trees: o.Trees, Leaves: o.Leaves, Seed: o.Seed, Features: columns})
			if err != nil {
				return nil, 0, err
			}
			return gbdt.NewScorer(m).Predict, m.Trees(), nil
		}},
		{"golearn", func() (classifier, int, error) {
			f, err := golearn.Train(ctx, train.X, train.Y, golearn.Config{Trees: o.Trees, Seed: o.Seed, Progress: func(done, _ int) { say(judgedLine{Trained: done}) }})
			if err != nil {
				return nil, 0, err
			}
			return func(dst []float64, rows [][]float64) {
				for i, row := range rows {
					dst[i] = f.Predict(row)
				}
			}, o.Trees, nil
		}},
	} {
		runtime.GC()
		began := bench.CPUTime()
		predict, trees, err := m.train()
		if err != nil {
			return fmt.Errorf("%s: %s, from %d rows of it: %w", o.CSV, m.name, len(train.X), err)
		}
		res := failureResult{Model: m.name, TrainS: (bench.CPUTime() - began).Seconds(), Trees: trees, Train: len(train.X), Test: len(test.X)}
		p := make([]float64, len(test.X))
		scored := 0
		for began = bench.CPUTime(); bench.CPUTime()-began < 100*time.Millisecond && ctx.Err() == nil; scored += len(p) {
			predict(p, test.X)
		}
		res.RowsPS = float64(scored) / (bench.CPUTime() - began).Seconds()
		if err := res.judge(p, test.Y); err != nil {
			return fmt.Errorf("%s: %s, on the %d rows held out: %w", cmp.Or(o.Test, o.CSV), m.name, len(p), err)
		}
		said := make([]bool, len(p))
		for i := range p {
			said[i] = p[i] >= 0.5
		}
		if res.Confusion, err = golearn.Confusion(test.Y, said); err != nil {
			return err
		}
		say(judgedLine{Result: &res})
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
