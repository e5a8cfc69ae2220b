package cli

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
)

func csvFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data.csv")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// rows has n rows with values missing, a column that never changes, and labels that three of the others decide together.
func rows(n int) string {
	var b strings.Builder
	b.WriteString("a,b,failed,c,same\n")
	r := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		x, y, z := r.NormFloat64(), r.NormFloat64(), r.NormFloat64()
		failed := 0
		if x*y+z+0.3*r.NormFloat64() > 1 {
			failed = 1
		}
		if i%10 == 0 {
			fmt.Fprintf(&b, "%g,NaN,%d,,5\n", x, failed)
		} else {
			fmt.Fprintf(&b, "%g,%g,%d,%g,5\n", x, y, failed, z)
		}
	}
	return b.String()
}

func TestEvaluateFailure(t *testing.T) {
	path := csvFile(t, rows(3000))
	out, err := run(t, "evaluate", "failure", "--csv", path, "--label", "failed", "--trees", "40", "--seed", "3", "--json")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]failureResult)
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var r failureResult
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		got[r.Model] = r
	}
	ours, its := got["gbdt"], got["golearn"]
	if len(got) != 2 || ours.AUC < 0.9 || ours.AUC < its.AUC || ours.AUCPR < its.AUCPR || ours.LogLoss > its.LogLoss || its.AUC < 0.6 {
		t.Errorf("%s", out)
	}
	if ours.Train != 2400 || ours.Test != 600 || ours.TrainS <= 0 || ours.RowsPS <= 0 || ours.Trees != 40 {
		t.Errorf("%+v", ours)
	}
}

func TestEvaluateFailureOnAnotherFile(t *testing.T) {
	path := csvFile(t, rows(1000))
	out, err := run(t, "evaluate", "failure", "--csv", path, "--test", csvFile(t, rows(500)), "--label", "failed", "--trees", "5", "--json")
	if err != nil || !strings.Contains(out, `"train_rows":1000,"test_rows":500`) {
		t.Errorf("%v\n%s", err, out)
	}
	other := csvFile(t, strings.Replace(rows(500), "a,b", "a,x", 1))
	if _, err := run(t, "evaluate", "failure", "--csv", path, "--test", other, "--label", "failed"); err == nil || !strings.Contains(err.Error(), `"x" in place of "b"`) {
		t.Error(err)
	}
}

func TestEvaluateFailureOfStandardInput(t *testing.T) {
	given := func(text string, args ...string) (string, error) {
		f, err := os.Open(csvFile(t, text))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		stdin := os.Stdin
		os.Stdin = f
		defer func() { os.Stdin = stdin }()
		return run(t, append([]string{"evaluate", "failure", "--label", "failed", "--trees", "5", "--json"}, args...)...)
	}
	for _, name := range []string{"-", "/dev/stdin"} {
		if out, err := given(rows(1000), "--csv", name); err != nil || !strings.Contains(out, `"train_rows":800`) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if _, err := given("a,failed\nx,1\n", "--csv", "-"); err == nil || !strings.HasPrefix(err.Error(), "standard input:2: column a") {
		t.Error(err)
	}
}

// truncated is the first half of a text's gzip.
func truncated(t *testing.T, text string) string {
	t.Helper()
	var b strings.Builder
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()[:b.Len()/2]
}

func TestEvaluateFailureOnBadInput(t *testing.T) {
	for name, c := range map[string]struct{ csv, want string }{
		"ten rows":                  {rows(10), "rows are too few"},
		"one class":                 {strings.ReplaceAll(rows(200), ",1,", ",0,"), "is 0 in all 200 rows: there is one class only"},
		"text":                      {"a,failed\nx,1\n", "not a number"},
		"a label that isn't 0 or 1": {strings.Replace(rows(200), ",1,", ",2,", 1), "it must be 0 or 1"},
		"a million columns":         {"failed" + strings.Repeat(",c", 1_000_000) + "\n", "at most"},
		"only a constant column":    {"a,failed\n" + strings.Repeat("1,0\n1,1\n", 100), "constant"},
		"only NaN":                  {"a,failed\n" + strings.Repeat("NaN,0\n,1\n", 100), "constant"},
		"a truncated gzip":          {truncated(t, rows(3000)), "cut off"},
	} {
		out, err := run(t, "evaluate", "failure", "--csv", csvFile(t, c.csv), "--label", "failed")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, not %q\n%s", name, err, c.want, out)
		}
	}
	if _, err := run(t, "evaluate", "failure", "--csv", csvFile(t, rows(10)), "--label", "nope"); err == nil || !strings.Contains(err.Error(), `no column "nope"`) {
		t.Error(err)
	}
}

// The process that judges has no more memory than it may have, and says so.
func TestEvaluateFailureWithinItsMemory(t *testing.T) {
	path := csvFile(t, rows(200_000))
	_, err := run(t, "evaluate", "failure", "--csv", path, "--label", "failed", "--memory-mib", "64", "--trees", "5")
	if !errors.Is(err, jobs.ErrMemory) {
		t.Errorf("with 64 MiB: %v", err)
	}
	if _, err := run(t, "evaluate", "failure", "--csv", path, "--label", "failed", "--memory-mib", "1"); err == nil || !strings.Contains(err.Error(), "at least 64 MiB") {
		t.Errorf("with 1 MiB: %v", err)
	}
}
