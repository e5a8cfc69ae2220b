package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nabDirectory makes a benchmark of two folders with a file each, whose values break away
// from a daily wave at one place.
func nabDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(3, 4))
	windows := make(map[string][][2]string)
	for _, name := range []string{"a/one.csv", "b/two.csv"} {
		var b strings.Builder
		fmt.Fprintln(&b, "timestamp,value")
		at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		stamp := func(i int) string { return at.Add(time.Duration(i) * 5 * time.Minute).Format("2006-01-02 15:04:05") }
		for i := range 3000 {
			v := 50 + 10*math.Sin(2*math.Pi*float64(i)/288) + r.NormFloat64()
			if i >= 2000 && i < 2060 {
				v += 60
			}
			fmt.Fprintf(&b, "%s,%.3f\n", stamp(i), v)
		}
		windows[name] = [][2]string{{stamp(1990), stamp(2200)}}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(windows)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "combined_windows.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEvaluateNAB(t *testing.T) {
	dir := nabDirectory(t)
	for _, c := range []struct {
		args  []string
		lines int
		least float64
	}{
		{nil, 4, 80}, {[]string{"--detector", "gaussian"}, 4, 20}, {[]string{"--detector", "kmeans"}, 4, 20}, {[]string{"--files"}, 10, 80}, {[]string{"--detector", "baseline"}, 4, 80},
		// With one file to choose the threshold by, that threshold is as high as it can be.
		{[]string{"--leave-one-out"}, 4, 40},
	} {
		out, err := run(t, append([]string{"evaluate", "nab", "--data", dir, "--json"}, c.args...)...)
		if err != nil {
			t.Fatalf("%v: %v", c.args, err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var profile nabLine
		var last map[string]float64
		if len(lines) != c.lines || json.Unmarshal([]byte(lines[len(lines)-2]), &profile) != nil || json.Unmarshal([]byte(lines[len(lines)-1]), &last) != nil {
			t.Fatalf("%v: %s", c.args, out)
		}
		if len(last) != 3 || profile.Profile != "reward_low_FN_rate" || profile.Score != last["reward_low_FN_rate"] || profile.Windows != 2 || profile.Found < 1 {
			t.Errorf("%v: %s", c.args, out)
		}
		for name, score := range last {
			if score < c.least || score > 100 {
				t.Errorf("%v: %s: %.1f of 100 for what nobody can miss", c.args, name, score)
			}
		}
	}
	out, err := run(t, "evaluate", "nab", "--data", dir, "--settings", "--json")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); err != nil || len(lines) != 19 || !strings.Contains(lines[18], `"setting":"without `) {
		t.Errorf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"--settings", "--files", "--data", dir}, {"--detector", "magic", "--data", dir}, {"--scores", dir, "--detector", "baseline", "--data", dir}, {}} {
		if _, err := run(t, append([]string{"evaluate", "nab"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestEvaluateNABOfLittle has files with next to nothing in them, for each detector.
func TestEvaluateNABOfLittle(t *testing.T) {
	dir := nabDirectory(t)
	var windows map[string][][2]string
	data, err := os.ReadFile(filepath.Join(dir, "combined_windows.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &windows); err != nil {
		t.Fatal(err)
	}
	for name, rows := range map[string]int{"c/one.csv": 1, "c/six.csv": 6, "c/ten.csv": 10, "c/flat.csv": 800} {
		var b strings.Builder
		fmt.Fprintln(&b, "timestamp,value")
		for i := range rows {
			fmt.Fprintf(&b, "%s,7\n", time.Date(2024, 1, 1, 0, i, 0, 0, time.UTC).Format("2006-01-02 15:04:05"))
		}
		if err := os.MkdirAll(filepath.Join(dir, "c"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		windows[name] = nil
	}
	if data, err = json.Marshal(windows); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "combined_windows.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for name := range nabDetectors {
		out, err := run(t, "evaluate", "nab", "--data", dir, "--detector", name, "--files", "--json")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "flat.csv") && !strings.Contains(line, `"false_rows":0}`) {
				t.Errorf("%s sees something in a constant: %s", name, line)
			}
		}
	}
}

// benchmark is where the benchmark's data are, "" where they are not beside the repository.
func benchmark(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("TARDIGRADE_DATA")
	if dir == "" {
		dir = "../../../shared/data"
	}
	dir = filepath.Join(dir, "nab")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		t.Log("the benchmark data are not here; model/metrics and model/univariate have cases of their own")
		return ""
	}
	return dir
}

// lastLine runs the command and returns the three scores.
func lastLine(t *testing.T, args ...string) map[string]float64 {
	t.Helper()
	out, err := run(t, append([]string{"evaluate", "nab", "--json"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var got map[string]float64
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil || len(got) != 3 {
		t.Fatalf("%s: %v", out, err)
	}
	return got
}

// TestNABOfTheDefault keeps the default detector ahead of what was published.
func TestNABOfTheDefault(t *testing.T) {
	dir := benchmark(t)
	if dir == "" {
		return
	}
	got := lastLine(t, "--data", dir)
	for profile, least := range map[string]float64{"standard": 75, "reward_low_FP_rate": 67, "reward_low_FN_rate": 80.4} {
		if got[profile] < least {
			t.Errorf("%s: %.2f, less than %v", profile, got[profile], least)
		}
	}
}

// TestNABAgainstTheReference compares with the scores that the benchmark's own scorer gave for
// two detectors, where the benchmark's data lie beside the repository.
func TestNABAgainstTheReference(t *testing.T) {
	dir := benchmark(t)
	if dir == "" {
		return
	}
	reference := filepath.Join(dir, "reference")
	data, err := os.ReadFile(filepath.Join(reference, "final_results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]map[string]float64
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	// From the files to the score: the benchmark's simplest detector, made anew.
	for profile, score := range lastLine(t, "--data", dir, "--detector", "gaussian") {
		if math.Abs(score-want["windowedGaussian"][profile]) > 0.01 {
			t.Errorf("our windowed Gaussian, %s: %.3f, the published one has %.3f", profile, score, want["windowedGaussian"][profile])
		}
	}
	for _, detector := range []string{"windowedGaussian", "contextOSE"} {
		got := lastLine(t, "--data", dir, "--scores", filepath.Join(reference, detector))
		if len(want[detector]) != 3 {
			t.Fatalf("%s: %v", detector, want[detector])
		}
		for profile, score := range want[detector] {
			if math.Abs(got[profile]-score) > 0.01 {
				t.Errorf("%s, %s: %.3f, the reference has %.3f", detector, profile, got[profile], score)
			}
		}
	}
}
