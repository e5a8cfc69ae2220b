package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
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
	if days := sum.HostDays; days < 40 || days > 60 { // hosts that are being repaired send nothing, at the end as well
		t.Errorf("20 hosts for 3 days are %v host days", days)
	}
	var last control.Replayed
	for _, l := range lines[:len(lines)-1] {
		r := decoded[control.Replayed](t, l)
		if r.Time.Before(last.Time) || r.Until.Before(r.Time) || r.Action == "" || r.Reason == "" || r.Model == "" {
			t.Errorf("%s", l)
		}
		last = r
	}
	actions := map[string]map[fleet.Action]int{}
	for _, policy := range control.ReplayPolicies() {
		out, err := run(t, "replay", "--data", data, "--policy", policy, "--json")
		again, _ := run(t, "replay", "--data", data, "--policy", policy, "--json")
		if err != nil || again != out || !strings.Contains(out, `"policy":"`+policy+`"`) {
			t.Errorf("%s: %v", policy, err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for _, l := range lines[:len(lines)-1] {
			if r := decoded[control.Replayed](t, l); !(r.Propensity > 0 && r.Propensity <= 1) || (policy == "expected" || policy == "static") && r.Propensity != 1 {
				t.Errorf("%s: %s", policy, l)
			}
		}
		actions[policy] = decoded[control.ReplaySummary](t, lines[len(lines)-1]).Actions
	}
	if static := actions["static"]; len(static) != 1 || static[fleet.ActionRecycle] == 0 {
		t.Errorf("static recommends %v", static)
	}
	for args, want := range map[string]string{
		"replay": "--data DIR and --influx",
		"replay --data " + data + " --hosts sim-1":                     "--hosts is for --influx",
		"replay --data " + data + " --step 10s":                        "--step is for --influx",
		"replay --data " + data + " --vms -1":                          "--vms -1 is out of range",
		"replay --data " + data + " --model " + data + "/faults.jsonl": "faults.jsonl: model file cannot be used",
		"replay --data " + data + " --from 2100-01-01T00:00:00Z":       "no sample in that range",
		"replay --data x --policy whim":                                "whim",
		"replay --data /nonexistent":                                   "manifest.json",
		"replay --influx --from -1h":                                   "influx.url",
		"replay --data " + data + " --model x.model":                   "x.model",
	} {
		if _, err := run(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// What is printed for a person says of each recommendation what happened then, and what was missed.
func TestReplayForAPerson(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before, after := 90.0, -30.0
	var b strings.Builder
	err := printReplay(&b, []control.Replayed{
		{Host: "h1", Time: at, Action: fleet.ActionRecycle, Signature: fleet.SignatureMemoryLeak, FailureProbability: 0.9, CostVMSeconds: 4.5, CostOfNothing: 270, Incident: "7", Happened: fleet.SignatureMemoryLeak, LeadSeconds: &before},
		{Host: "h2", Time: at, Action: fleet.ActionLiveMigrate, Signature: fleet.SignatureDisk, Incident: "8", Happened: fleet.SignatureKernelFault, LeadSeconds: &after},
		{Host: "h3", Time: at, Action: fleet.ActionRecycle, Signature: fleet.SignatureServiceHang},
	}, control.ReplaySummary{Hosts: 4, From: at, To: at, Recommendations: 3, Actions: map[fleet.Action]int{fleet.ActionRecycle: 2, fleet.ActionLiveMigrate: 1},
		Missed: []fleet.Incident{{ID: "9", Host: "h4", From: at, Signature: fleet.SignatureThermal, Failed: true}}})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"2026-01-02 03:04:05 h1 recycle memory-leak 0.90 4.5 270.0 memory-leak (7), failed 1m30s later",
		"kernel-fault (8), had failed 30s before",
		"h3 recycle service-hang 0.00 0.0 0.0 nothing",
		"h4 none thermal (9), the host failed: missed",
		"3 recommendations (2 recycle, 1 live-migrate)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}
