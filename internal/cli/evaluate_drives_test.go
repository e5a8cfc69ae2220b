package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
)

// drivesFile has drives of which a fifth fails after its sectors went bad, and where the calendar
// decides which of the two years of a drive were before the cutoff.
func drivesFile(t *testing.T, seed uint64) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("serial_number,model,size_tb,min_date,tstart,tstop,fails,smart_5,smart_10,smart_12,smart_187,smart_188,smart_189,smart_196,smart_197,smart_198\n")
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 400 {
		since := time.Date(2015, time.Month(1+i%12), 1, 0, 0, 0, 0, time.UTC).Format(time.DateOnly)
		fails := i%5 == 0
		end := (200 + r.IntN(500)) * 24
		bad := 0
		for h := 0; h < end; {
			next := min(end, h+24*(1+r.IntN(20)))
			if fails && end-h < 40*24 {
				bad += r.IntN(20)
			} else if r.IntN(200) == 0 {
				bad += 3
			}
			fmt.Fprintf(&b, "S%d-%d,M%d,4,%s,%d,%d,%d,%d,0,%d,,,,0,0,0\n", seed, i, i%3, since, h, next, map[bool]int{true: 1}[fails && next == end], bad, h/100)
			h = next
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "drives.csv"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEvaluateDrives(t *testing.T) {
	model := filepath.Join(t.TempDir(), "m")
	out, err := run(t, "evaluate", "drives", "--data", drivesFile(t, 1), "--save", model, "--json")
	if err != nil {
		t.Fatal(err)
	}
	other, err := run(t, "evaluate", "drives", "--data", drivesFile(t, 2), "--model", model, "--json")
	if err != nil {
		t.Fatal(err)
	}
	seen := ""
	for _, line := range strings.Split(out+other, "\n") {
		if !strings.HasPrefix(line, "{") { // progress
			continue
		}
		var r drivesResult
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		seen += r.Split + " "
		if r.AUCPR < 0.5 || r.Detected1 < 0.5 || r.Detected1 < r.Detected01 || r.Lead < 7 || r.Failing == 0 || r.Working == 0 {
			t.Error(line)
		}
		for _, key := range []string{"detected_at_far_0.1pct", "detected_at_far_1pct", "median_lead_days"} {
			if !strings.Contains(line, `"`+key+`":`) {
				t.Errorf("%s is missing in %s", key, line)
			}
		}
	}
	if seen != "drives calendar other " {
		t.Errorf("%q", seen)
	}
}

// The process that judges has no more memory than it may have, and says so.
func TestEvaluateDrivesWithinItsMemory(t *testing.T) {
	var b strings.Builder
	b.WriteString("serial_number,model,size_tb,min_date,tstart,tstop,fails,smart_5,smart_10,smart_12,smart_187,smart_188,smart_189,smart_196,smart_197,smart_198\n")
	for i := range 1_000_000 {
		fmt.Fprintf(&b, "S%d,M,4,2015-01-01,%d,%d,0,0,0,0,,,,0,0,0\n", i/1000, i%1000, i%1000+1)
	}
	path := filepath.Join(t.TempDir(), "drives.csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "evaluate", "drives", "--data", path, "--memory-mib", "80"); !errors.Is(err, jobs.ErrMemory) {
		t.Errorf("with 80 MiB: %v", err)
	}
}

func TestEvaluateDrivesOnBadInput(t *testing.T) {
	empty := t.TempDir()
	broken := filepath.Join(empty, "broken")
	if err := os.WriteFile(broken, []byte("TGDRIVE\x00not a model at all, but long enough to hold a checksum"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--data", empty}, "no .csv"},
		{[]string{"--data", empty, "--model", broken}, "version"},
		{[]string{"--data", empty, "--cutoff", "soon"}, "not a day"},
		{[]string{"--data", drivesFile(t, 1), "--cutoff", "2010-01-01"}, "--cutoff 2010-01-01 leaves nothing to learn from, or nothing to judge: these drives were seen from 2015-01-01 to 201"},
		{[]string{"--data", drivesFile(t, 1), "--save", filepath.Join(empty, "none", "m")}, "cannot be written"},
		{[]string{"--data", drivesFile(t, 1), "--save", empty}, "it is a directory"},
		{nil, "--data must name"},
	} {
		if out, err := run(t, append([]string{"evaluate", "drives"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, not %q\n%s", c.args, err, c.want, out)
		} else if strings.Contains(out, "trees") {
			t.Errorf("%v: it was trained first:\n%s", c.args, out)
		}
	}
}
