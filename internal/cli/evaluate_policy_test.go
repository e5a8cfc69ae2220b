package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		{"horizon", "--hosts", "-1"}, {"horizon", "--seed", "3", "--train-seed", "3"}, {"ope", "--faults", "1"},
	} {
		if _, err := run(t, append([]string{"evaluate"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run(t, "evaluate", "horizon", "--hosts", "5", "--days", "1", "--model", damaged); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged model: %v", err)
	}
}
