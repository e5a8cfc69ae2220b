package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestProbeOfThisMachine(t *testing.T) {
	out, err := run(t, "agent", "probe", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var found []struct {
		Name    string
		Ready   bool
		Missing []string
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	seen := map[string]bool{}
	for _, c := range found {
		seen[c.Name] = true
		if c.Name != "diagnose" && c.Ready || c.Ready == (len(c.Missing) > 0) {
			t.Errorf("%+v, though nothing is allowed", c)
		}
	}
	if !seen["recycle"] || !seen["diagnose"] || !seen["preserving-reset"] {
		t.Errorf("%s", out)
	}
}

func TestUnit(t *testing.T) {
	if _, err := run(t, "agent", "unit"); !errors.As(err, new(usageError)) {
		t.Errorf("%v", err)
	}
	dir := t.TempDir()
	config := file(t, fmt.Sprintf("agent: {data: %s, reset: {enabled: true, mode: kexec, dir: /pmem/reset}}\n", dir))
	out, err := run(t, "agent", "unit", "--config", config)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ConditionPathExists=/pmem/reset/plan.json", "RequiresMountsFor=" + dir + " /pmem/reset", " agent resume --config " + config, "Before=basic.target", "KillMode=process"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "@") {
		t.Errorf("not filled in:\n%s", out)
	}
	bad := file(t, "agent: {data: \"/var/lib/with blank\"}\n")
	if _, err := run(t, "agent", "unit", "--config", bad); err == nil || !strings.Contains(err.Error(), "without blanks") {
		t.Errorf("%v", err)
	}
}

func TestResumeWithNothingOut(t *testing.T) {
	config := file(t, fmt.Sprintf("agent: {host: h, data: %s}\n", t.TempDir()))
	out, err := run(t, "agent", "resume", "--config", config)
	if err != nil || !strings.HasPrefix(out, `{"was":false`) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run(t, "agent", "resume", "--config", config, "--give-up", "web"); err == nil || !strings.Contains(err.Error(), "no VM is out") {
		t.Errorf("%v", err)
	}
}
