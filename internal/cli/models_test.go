package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// TestMain is also the process of a training, and of an evaluation.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && (slices.Equal(os.Args[1:3], trainingCommand) || slices.Equal(os.Args[1:3], judgingCommand)) {
		root := newRoot("test")
		root.SetArgs(os.Args[1:])
		if err := root.ExecuteContext(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// simulated writes a small fleet's telemetry.
func simulated(t *testing.T, hosts, days, interval string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fleet")
	if out, err := run(t, "dataset", "simulate", "--hosts", hosts, "--days", days, "--seed", "3", "--interval", interval, "--out", dir); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

func decoded[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// From telemetry to a champion, by the command line alone.
func TestFromTelemetryToAChampion(t *testing.T) {
	data := simulated(t, "8", "1", "2m")
	file := filepath.Join(t.TempDir(), "anomaly.model")
	out, err := run(t, "train", "anomaly", "--data", data, "--out", file)
	if err != nil {
		t.Fatal(err)
	}
	m := decoded[modelFile](t, out)
	if m.Kind != registry.KindAnomaly || m.Hosts != 8 || m.Rows < 1000 || m.StepSeconds != 120 || len(m.Series) < 5 || m.From.IsZero() || m.Metrics["held_out_rows"] == 0 {
		t.Errorf("%s", out)
	}
	if again, err := run(t, "model", "show", file); err != nil || decoded[modelFile](t, again).ID != m.ID {
		t.Errorf("%v: %s", err, again)
	}
	if _, err := run(t, "replay", "--data", data, "--model", file, "--model", file); !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), "both of the kind anomaly") {
		t.Errorf("a replay with two models of a kind: %v", err)
	}
	server := "--server=" + serving(t, "agent: {disabled: true}\n")
	for _, c := range []struct{ args, state string }{
		{"import " + file, "candidate"}, {"promote " + m.ID, "shadow"}, {"promote " + m.ID + " --note=go", "champion"}, {"show " + m.ID, "champion"}, {"retire " + m.ID, "retired"},
	} {
		out, err := run(t, append(append([]string{"model"}, strings.Fields(c.args)...), server)...)
		if err != nil || decoded[api.Model](t, out).State != c.state {
			t.Errorf("model %s: %v: %s", c.args, err, out)
		}
		if w := decoded[api.Model](t, out).Warnings; len(w) != 1 || !strings.Contains(w[0], "120s apart, and agent.interval is 1s here") {
			t.Errorf("model %s warns of the other step by %q", c.args, w)
		}
	}
	if _, err := run(t, "model", "rollback", "anomaly", server); err == nil || !strings.Contains(err.Error(), "no model is in use") {
		t.Errorf("%v", err)
	}
	copied := filepath.Join(t.TempDir(), "copy.model")
	if out, err := run(t, "model", "export", m.ID, copied, server); err != nil || decoded[modelFile](t, out).ID != m.ID {
		t.Errorf("%v: %s", err, out)
	}
	data2, _ := os.ReadFile(file)
	data2[len(data2)/2] ^= 1
	if err := os.WriteFile(copied, data2, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "model", "import", copied, server); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a damaged file was imported: %v", err)
	}
	for _, kind := range []string{"list", "shadow", "drift"} {
		if out, err := run(t, "model", kind, server); err != nil || kind == "list" && !strings.Contains(out, m.ID) {
			t.Errorf("model %s: %v: %s", kind, err, out)
		}
	}
	for args, want := range map[string]string{"--dataset lab": "no data set", "--dataset ../bus": "not a name", "--hosts ../h1": "hosts", "--dataset lab --step 1s": "as it is", "--step 0s": "1s or more"} {
		if _, err := run(t, append(strings.Fields("train anomaly --submit "+args), server)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("train --submit %s: %v", args, err)
		}
	}
	out, err = run(t, "train", "anomaly", "--submit", "--from", "-2h", server)
	if err != nil {
		t.Fatal(err)
	}
	j := decoded[api.Job](t, out)
	until(t, "the job has ended", func() bool {
		out, err := run(t, "job", "show", j.ID, server)
		return err == nil && decoded[api.Job](t, out).State == "failed" // there are no samples
	})
	if _, err := run(t, "job", "cancel", j.ID, server); err == nil || !strings.Contains(err.Error(), "failed since") {
		t.Errorf("%v", err)
	}
	if _, err := run(t, "incident", "add", "--host", "nobody", "--from", "-1h", server); err == nil || !strings.Contains(err.Error(), "no host") {
		t.Errorf("%v", err)
	}
	if out, err := run(t, "incident", "list", server); err != nil || out != "" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTrainFailureFromTelemetry(t *testing.T) {
	data := simulated(t, "150", "8", "5m")
	file := filepath.Join(t.TempDir(), "failure.model")
	out, err := run(t, "train", "failure", "--data", data, "--out", file)
	if err != nil {
		t.Fatal(err)
	}
	m := decoded[modelFile](t, out)
	if m.Kind != registry.KindFailure || m.Hosts != 150 || !(m.Metrics["auc_roc_86400s"] >= 0.6) || m.Metrics["calibration_error_86400s"] > 0.1 || m.Metrics["later_held_out_rows"] == 0 {
		t.Errorf("%s", out)
	}
	// It can be judged on a simulated fleet; trials of policies need a horizon that it has not.
	if out, err := run(t, "evaluate", "horizon", "--hosts", "5", "--days", "1", "--model", file, "--json"); err != nil || !strings.Contains(out, `"horizon_s":86400,"signature":"all"`) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run(t, "evaluate", "policy", "--hosts", "5", "--days", "1", "--model", file); err == nil || !strings.Contains(err.Error(), "168h0m0s] are needed") {
		t.Errorf("%v", err)
	}
}

func TestIncidentsAreReadAndChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "incidents.jsonl")
	good := `{"id":"1","host":"h1","from":"2026-01-02T00:00:00Z","to":"2026-01-02T01:00:00Z","failed":true,"signature":"disk"}`
	for text, want := range map[string]string{
		good + "\n\n" + good + "\n":                                  "",
		good + "\n{":                                                 ":2:",
		strings.Replace(good, "disk", "gremlins", 1):                 "gremlins",
		strings.Replace(good, "02T01:00", "01T01:00", 1):             "before it begins",
		strings.Replace(good, `"to":"2026-01-02T01:00:00Z",`, "", 1): "from and to",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := readIncidents(path)
		if want == "" && (err != nil || len(all) != 2 || all[0].Signature != fleet.SignatureDisk) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, %v", text, all, err)
		}
	}
}

func TestTrainingsThatCannotWork(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"train anomaly", "one source"},
		{"train anomaly --csv a.csv --data b --out c", "one source"},
		{"train anomaly --csv a.csv", "--out"},
		{"train anomaly --csv a.csv --out c --timeout -1s", "--timeout -1s must be"},
		{"train anomaly --csv a.csv --out /nonexistent/c", "--out /nonexistent/c cannot be written"},
		{"train anomaly --data b --hosts h1 --out c", "--hosts is for --influx"},
		{"train failure --csv a.csv --out c", "label"},
		{"train anomaly --influx --from -1h --out c", "influx.url"},
		{"train anomaly --data b --from soon --out c", "--from"},
		{"train anomaly --data b --from -1h --to -2h --out c", "--from"},
		{"train anomaly --data /nonexistent --out c", "manifest.json"},
		{"train anomaly --submit --csv a.csv", "leave --csv out"},
		{"train anomaly --submit --memory-mib 64", "leave --memory-mib out"},
		{"train anomaly --dataset lab --data b --out c", "for --submit"},
		{"model promote", "one version"},
		{"model rollback weather", "anomaly or failure"},
		{"model show nonsense", "nonsense"},
		{"model show /dev/zero", "larger than 256 MiB"},
		{"model import /dev/zero", "larger than 256 MiB"},
		{"train anomaly --data b --out c --incidents /dev/zero", "line of more than 1 MiB"},
		{"--config /dev/zero train anomaly --data b --out c", "larger than 2 MiB"},
		{"dataset record --out r --faults cpu-hog,cpu-hog", "twice"},
		{"dataset record --out r --faults=", "names none"},
	} {
		if _, err := run(t, strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}
