package cli

import (
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/control"
)

// The same past gives the same answer, and it is held against what happened.
func TestReplay(t *testing.T) {
	data := simulated(t, "20", "3", "10m")
	out, err := run(t, "replay", "--data", data, "--json")
	if err != nil {
		t.Fatal(err)
	}
	again, err := run(t, "replay", "--data", data, "--json")
	if err != nil || again != out {
		t.Errorf("a second time it says something else: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	sum := decoded[control.ReplaySummary](t, lines[len(lines)-1])
	if sum.Hosts != 20 || sum.Samples < 7000 || sum.Recommendations != len(lines)-1 || sum.True+sum.False != sum.Recommendations ||
		sum.Seen+len(sum.Missed) != sum.Incidents || sum.Incidents == 0 || sum.Recommendations == 0 {
		t.Errorf("%+v", sum)
	}
	var last control.Replayed
	for _, l := range lines[:len(lines)-1] {
		r := decoded[control.Replayed](t, l)
		if r.Time.Before(last.Time) || r.Until.Before(r.Time) || r.Action == "" || r.Reason == "" || r.Model == "" {
			t.Errorf("%s", l)
		}
		last = r
	}
	static, err := run(t, "replay", "--data", data, "--policy", "static", "--json")
	if err != nil || !strings.Contains(static, `"policy":"static"`) {
		t.Errorf("%v", err)
	}
	for args, want := range map[string]string{
		"replay":                                     "--data DIR or --influx",
		"replay --data x --policy whim":              "whim",
		"replay --data /nonexistent":                 "manifest.json",
		"replay --influx --from -1h":                 "influx.url",
		"replay --data " + data + " --model x.model": "x.model",
	} {
		if _, err := run(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
