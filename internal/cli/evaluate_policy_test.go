package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/model/failure"
)

func TestEvaluateOffPolicy(t *testing.T) {
	out, err := run(t, "evaluate", "ope", "--logs", "3", "--faults", "2000", "--json")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	names := ""
	for _, l := range lines {
		var x struct {
			Estimator string
			Truth     float64 `json:"truth_vm_s"`
			Mean      float64 `json:"mean_estimate_vm_s"`
			Logs      int
		}
		if err := json.Unmarshal([]byte(l), &x); err != nil || !(x.Truth > 0) || !(x.Mean > 0) || x.Logs != 3 {
			t.Errorf("%s: %v", l, err)
		}
		names += x.Estimator + " "
	}
	if names != "ips snips dr " {
		t.Errorf("%s", out)
	}
}

func TestEvaluatePolicyRefuses(t *testing.T) {
	damaged := filepath.Join(t.TempDir(), "model")
	if err := os.WriteFile(damaged, []byte("not a model"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"policy", "--hosts", "0"}, {"policy", "--days", "0"}, {"policy", "--seed", "3", "--train-seed", "3"}, {"policy", "--logs", "0"},
		{"horizon", "--hosts", "-1"}, {"horizon", "--seed", "3", "--train-seed", "3"}, {"ope", "--faults", "1"}, {"ope", "--logs", "1", "--faults", "1000000000000"},
	} {
		if _, err := run(t, append([]string{"evaluate"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if out, err := run(t, "evaluate", "horizon", "--hosts", "5", "--days", "1", "--model", filepath.Join(damaged, "new")); err == nil || strings.Contains(out, "simulating") {
		t.Errorf("a model that cannot be written: %v\n%s", err, out)
	}
	if _, err := run(t, "evaluate", "horizon", "--hosts", "5", "--days", "1", "--model", damaged); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged model: %v", err)
	}
}

// A failure model that looks at other things than this release makes of samples is refused.
func TestEvaluateRefusesAModelOfAnotherCatalogue(t *testing.T) {
	e := failure.Examples{Features: []string{"phlogiston"}}
	for i := range 200 {
		left, signature := math.Inf(1), failure.Sound
		if i%2 == 1 {
			left, signature = 60, "disk"
		}
		e.X, e.Failure, e.Signature = append(e.X, []float64{float64(i % 2)}), append(e.Failure, left), append(e.Signature, signature)
		e.Known, e.Host = append(e.Known, 1e6), append(e.Host, fmt.Sprint("h", i%40/2))
	}
	m, err := failure.Train(t.Context(), e, failure.Config{Trees: 2})
	if err != nil {
		t.Fatal(err)
	}
	data, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "failure.model")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"horizon", "policy"} {
		if _, err := run(t, "evaluate", what, "--hosts", "2", "--days", "1", "--model", file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
