package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func TestParsePolicy(t *testing.T) {
	p, err := ParsePolicy([]byte(`version: 1
mode: approve
actions:
  recycle: {approval: automatic}
  preserving-reset: {approval_expires: 5m}
  live-migrate: {approval: never}
maintenance_windows:
  - {days: [sat, sun], begin: "22:00", end: "06:30"}
  - {begin: 00:00, end: "24:00"}
deadlines: {migrate: 2h}
`))
	if err != nil {
		t.Fatal(err)
	}
	if p.Approval(fleet.ActionRecycle) != "automatic" || p.Approval(fleet.ActionPreservingReset) != "person" || p.Approval(fleet.ActionLiveMigrate) != "never" {
		t.Errorf("%+v", p.Actions)
	}
	if p.Expires(fleet.ActionRecycle) != 15*time.Minute || p.Expires(fleet.ActionPreservingReset) != 5*time.Minute {
		t.Errorf("%+v", p.Actions)
	}
	days, begin, end := p.Windows[0].Times()
	if len(days) != 2 || days[0] != time.Saturday || days[1] != time.Sunday || begin != 22*time.Hour || end != 6*time.Hour+30*time.Minute {
		t.Errorf("%v %v %v", days, begin, end)
	}
	if p.MaxConcurrent != 1 || p.Cooldown.D() != 10*time.Minute {
		t.Errorf("what the file does not say has its default: %+v", p)
	}
	if d := p.Deadlines; d.Migrate.D() != 2*time.Hour || d.Begin.D() != 15*time.Second || d.Recycle.D() != 2*time.Minute || d.Reset.D() != 10*time.Minute {
		t.Errorf("%+v", d)
	}
	if q, err := ParsePolicy([]byte("\ufeffversion: 1\r\nmax_concurrent: 2.0\r\n")); err != nil || q.MaxConcurrent != 2 {
		t.Errorf("with a byte-order mark: %+v, %v", q, err)
	}
	if q, _ := ParsePolicy([]byte("version: 1\ncooldown: 9m\n")); q.Revision() == DefaultPolicy().Revision() || len(q.Revision()) != 12 {
		t.Errorf("the revision is %q", q.Revision())
	}
}

func TestPolicyMistakesHaveTheirLine(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		line int
		want string
	}{
		"empty":           {"\n", 0, "version: 1"},
		"only a comment":  {"# nothing\n", 0, "version: it is missing"},
		"a fraction":      {"version: 1\nmax_concurrent: 1.9\n", 2, "1.9 is not a whole number"},
		"a quoted one":    {"version: 1\nmax_concurrent: \"1.9\"\n", 2, "1.9 is not a whole number"},
		"half a version":  {"version: 1.5\n", 1, "1.5 is not a whole number"},
		"another type":    {"version: 1\nmode: [a]\n", 2, "a list stands here, it must be text"},
		"too large":       {"version: 1\nmax_concurrent: 99999999999999999999\n", 2, "is too large"},
		"nested lists":    {"version: 1\nvms: " + strings.Repeat("[", 500_000), 2, "nested more than 100 deep"},
		"nested mappings": {"version: 1\nvms:\n" + strings.Repeat("{a:\n", 500), 103, "nested more than 100 deep"},
		"lists in a line": {"version: 1\nvms:\n " + strings.Repeat("- ", 400_000), 3, "nested more than 100 deep"},
		"a long value":    {"version: 1\nmode: " + strings.Repeat("a", 1000), 2, "aaa…"},
		"no version":      {"mode: approve", 0, "version: it is missing; write 'version: 1'"},
		"newer version":   {"mode: approve\nversion: 2\n", 2, "version: 2 is not"},
		"unknown key":     {"version: 1\n\ncool_down: 5m\n", 3, "cool_down: there is no such key"},
		"unknown action":  {"version: 1\nactions:\n  explode: {approval: never}\n", 3, "explode"},
		"mode":            {"version: 1\n# a comment\nmode: auto\n", 3, `mode: "auto" is not approve, automatic or dry-run`},
		"deadline":        {"version: 1\ndeadlines:\n  reset: 1s\n", 3, "deadlines.reset: 1s is out of range: 5s to 24h"},
		"deadline of 0":   {"version: 1\ndeadlines: {begin: 0s}\n", 2, "deadlines.begin: 0s is out of range"},
		"duration":        {"version: 1\ncooldown: soon\n", 2, "not a duration"},
		"a word":          {"version: 1\nmax_concurrent: many\n", 2, ""},
		"not a number":    {"version: 1\nstorm_ratio: .nan\n", 2, "storm_ratio: NaN is not in 0..1"},
		"infinite":        {"version: 1\ncrash_seconds: .inf\n", 2, "crash_seconds"},
		"approval":        {"version: 1\nactions:\n  recycle:\n    approval: maybe\n", 4, "actions.recycle.approval"},
		"day":             {"version: 1\nmaintenance_windows:\n  - days: [mon, someday]\n    begin: 10:00\n    end: 11:00\n", 3, "someday"},
		"time":            {"version: 1\nmaintenance_windows:\n  - begin: 10:00\n    end: 25:00\n", 4, "25:00"},
		"no time":         {"version: 1\nmaintenance_windows:\n  - begin: 10:00\n    end: 10:00\n", 3, "ends when it begins"},
		"evidence":        {"version: 1\nevidence_max_age: 0s\n", 2, "evidence_max_age"},
		"another file":    {"version: 1\nfile: x.yaml\n", 2, "another one"},
		"not YAML":        {"version: 1\nactions: [\n", 2, ""},
		"two documents":   {"version: 1\n---\nversion: 1\n", 0, "2 documents"},
		"explore":         {"version: 1\nexplore: 2\n", 2, "not in 0..1"},
		"attempts":        {"version: 1\nattempts: 0\n", 2, "1 to 100"},
		"vm pattern":      {"version: 1\nvms: [{match: \"[\"}]\n", 2, "pattern"},
		"twice":           {"version: 1\nmode: approve\nmode: automatic\n", 3, "mode"},
		"a whole section": {"policy:\n  mode: approve\n", 1, "policy: there is no such key"},
		"the limits":      {"version: 1\nmax_concurrent: 0\nmax_concurrent_per_domain: 0\n", 2, "policy.freeze"},
	} {
		_, err := ParsePolicy([]byte(c.file))
		var m Mistakes
		if !errors.As(err, &m) || len(m) == 0 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m[0].Line != c.line || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, line %d; want %q on line %d", name, err, m[0].Line, c.want, c.line)
		}
	}
	// All mistakes are named at once, in the order of the lines.
	_, err := ParsePolicy([]byte("version: 1\nstorm_ratio: 2\nmode: x\nmax_concurrent: 0\n"))
	if m, _ := errors.AsType[Mistakes](err); len(m) != 3 || m[0].Line != 2 || m[1].Line != 3 || m[2].Line != 4 {
		t.Errorf("%v", err)
	}
}

func TestThePolicyHasOnePlace(t *testing.T) {
	dir := t.TempDir()
	policy, main := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "main.yaml")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(policy, "version: 1\nmode: dry-run\n")
	write(main, "policy: {file: "+policy+"}\n")
	c, err := Load(main)
	if err != nil || c.Policy.Mode != "dry-run" || c.Policy.File != policy {
		t.Fatalf("%+v, %v", c.Policy, err)
	}
	write(main, "policy: {file: "+policy+", cooldown: 1s}\n")
	if _, err := Load(main); err == nil || !strings.Contains(err.Error(), "move them into that file") {
		t.Errorf("two places for the policy: %v", err)
	}
	write(main, "policy: {file: "+policy+"}\n")
	write(policy, "version: 1\nmode: dry\n")
	if _, err := Load(main); err == nil || !strings.Contains(err.Error(), "policy.yaml: line 2: mode:") {
		t.Errorf("a wrong policy file: %v", err)
	}
	if err := os.Remove(policy); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(main); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing policy file: %v", err)
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("version: 1\nmode: automatic\nactions: {recycle: {approval: never}}\nmaintenance_windows: [{days: [mon], begin: 10:00, end: 11:00}]\n"))
	f.Add([]byte("version: 1\nstorm_ratio: .nan\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if m, ok := errors.AsType[Mistakes](err); err != nil && (!ok || len(m) == 0) {
			t.Errorf("an error without mistakes: %v", err)
		}
		if err == nil && len(p.mistakes()) > 0 {
			t.Error("accepted a policy that is not valid")
		}
	})
}
