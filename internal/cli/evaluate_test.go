package cli

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/model/detector"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// labelled makes a directory of one series in which columns break apart now and then.
func labelled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	file := func(name string, rows int, labels bool) {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z := gzip.NewWriter(f)
		defer z.Close()
		if labels {
			fmt.Fprintln(z, "a,b,c,label")
		} else {
			fmt.Fprintln(z, "a,b,c")
		}
		load := 0.5
		for i := range rows {
			load += 0.1*(0.5-load) + 0.03*r.NormFloat64()
			odd := labels && i%500 >= 450
			b := load
			if odd {
				b = 1 - load + 0.5
			}
			fmt.Fprintf(z, "%.4f,%.4f,%.4f", load+0.01*r.NormFloat64(), b+0.01*r.NormFloat64(), 0.3)
			if labels {
				fmt.Fprintf(z, ",%d", map[bool]int{true: 1}[odd])
			}
			fmt.Fprintln(z)
		}
	}
	file("one.train.csv.gz", 1000, false)
	file("one.test.csv.gz", 2000, true)
	if err := os.WriteFile(filepath.Join(dir, "series.csv"), []byte("series,vus_window,skip_rows,prefix_rows,prefix_vus_window\none,20,10,400,30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEvaluateAnomaly(t *testing.T) {
	dir := labelled(t)
	for _, c := range []struct {
		args  []string
		least float64
	}{
		{[]string{"--protocol", "split"}, 0.8}, {[]string{"--protocol", "prefix"}, 0.8},
		{[]string{"--detector", "baseline"}, 0.3}, {[]string{"--detector", "pca"}, 0.05},
		{[]string{"--detector", "forecast", "--interval", "5m", "--false-alarms", "2"}, 0.5},
	} {
		out, err := run(t, append([]string{"evaluate", "anomaly", "--data", dir, "--json"}, c.args...)...)
		if err != nil {
			t.Fatalf("%v: %v", c.args, err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var one struct {
			Series string
			VUS    float64 `json:"vus_pr"`
			Events int     `json:"events"`
			Delays []*int  `json:"delays"`
		}
		var last struct {
			Mean   float64 `json:"mean_vus_pr"`
			Series int
		}
		if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &one) != nil || json.Unmarshal([]byte(lines[1]), &last) != nil {
			t.Fatalf("%v: %s", c.args, out)
		}
		if one.Series != "one" || one.Events != 4 || len(one.Delays) != 4 || last.Series != 1 || last.Mean != one.VUS || last.Mean < c.least {
			t.Errorf("%v: %s", c.args, out)
		}
	}
	out, err := run(t, "evaluate", "anomaly", "--data", dir, "--detector", "all", "--json")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); err != nil || len(lines) != len(detector.Names()) {
		t.Errorf("all: %v, %s", err, out)
	}
	for _, args := range [][]string{{"--protocol", "both"}, {"--detector", "magic"}, {"--interval", "0s"}, {"--false-alarms", "0"}, {}} {
		if len(args) > 0 {
			args = append(args, "--data", dir)
		}
		if _, err := run(t, append([]string{"evaluate", "anomaly"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestBenchScore(t *testing.T) {
	out, err := run(t, "bench", "score", "--dims", "12", "--hosts", "40", "--models", "2", "--learn", "200", "--samples", "100", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Detector    string
		Dims, Hosts int
		PerS        float64 `json:"samples_per_s"`
		Allocs      float64 `json:"allocs_per_sample"`
		HostBytes   float64 `json:"bytes_per_host"`
		ModelBytes  int     `json:"model_bytes"`
		Samples     int
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Detector != "default" || r.Dims != 12 || r.Hosts != 40 || r.Samples != 120 || !(r.PerS > 0) || r.Allocs > 0.1 || r.HostBytes == 0 || r.ModelBytes <= 0 {
		t.Errorf("%s", out)
	}
	if _, err := run(t, "bench", "score", "--detector", "magic"); !errors.As(err, new(usageError)) {
		t.Errorf("%v", err)
	}
	for _, args := range [][]string{{"--detector", "pca"}, {"--dims", "0"}, {"--models", "2", "--hosts", "1"}} {
		if _, err := run(t, append([]string{"bench", "score"}, args...)...); err == nil {
			t.Errorf("%v was measured", args)
		}
	}
}

// directory makes one of the files' text; those of names in .gz are compressed.
func directory(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".gz") {
			z := gzip.NewWriter(f)
			fmt.Fprint(z, text)
			err = z.Close()
		} else {
			_, err = fmt.Fprint(f, text)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestEvaluateSeriesWithoutAnomaly(t *testing.T) {
	dir := labelled(t)
	train, err := os.ReadFile(filepath.Join(dir, "one.train.csv.gz"))
	if err != nil {
		t.Fatal(err)
	}
	calm := "a,b,c,label\n" + strings.Repeat("0.5,0.5,0.3,0\n", 100)
	more := directory(t, map[string]string{"calm.test.csv.gz": calm})
	if err := os.Rename(filepath.Join(more, "calm.test.csv.gz"), filepath.Join(dir, "calm.test.csv.gz")); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"calm.train.csv.gz": string(train), "series.csv": "series,vus_window\ncalm,5\none,20\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := run(t, "evaluate", "anomaly", "--data", dir, "--json")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"vus_pr":null`) || !strings.Contains(lines[0], "left out") || !strings.Contains(lines[2], `"series":1,"left_out":1`) {
		t.Errorf("%s", out)
	}
}

func TestEvaluateRefusesBadData(t *testing.T) {
	train := "a,b\n" + strings.Repeat("1,2\n2,1\n", 50)
	test := "a,b,label\n" + strings.Repeat("1,2,0\n2,1,1\n", 50)
	const list = "series,vus_window\none,5\n"
	wide := "a"
	for i := range 599 {
		wide += fmt.Sprint(",c", i)
	}
	wide += "\n" + strings.Repeat(strings.Repeat("1,", 599)+"1\n", 25)
	for name, c := range map[string]struct {
		list, train, test string
		args              []string
		want              string
	}{
		"other columns": {list, "a,c" + train[3:], test, nil, "must be the same"},
		"one row":       {list, "a,b\n1,2\n", test, nil, "series one: default detector: 1 samples"},
		"one calm row":  {list, train, "a,b,label\n1,2,0\n", nil, "no series can be judged"},
		"no prefix":     {list, train, test, []string{"--protocol", "prefix"}, "no series is part of the prefix protocol"},
		"long prefix": {"series,vus_window,skip_rows,prefix_rows,prefix_vus_window\none,5,50,60,5\n", train, test,
			[]string{"--protocol", "prefix"}, "more than the 100 rows"},
		"not a number": {list, train + "x,2\n", test, nil, "one.train.csv.gz:102: column a"},
		"ragged":       {list, train, test + "1,2,3,4\n", nil, "one.test.csv.gz:102: 4 values"},
		"no label":     {list, train, train, nil, "must be label"},
		"long buffer":  {"series,vus_window\none,101\n", train, test, nil, "series one: a buffer of 101 samples"},
		"many columns": {list, wide, strings.ReplaceAll(strings.Replace(wide, "\n", ",label\n", 1), "1\n", "1,0\n"), nil, "600 columns are too many"},
	} {
		dir := directory(t, map[string]string{"series.csv": c.list, "one.train.csv.gz": c.train, "one.test.csv.gz": c.test})
		_, err := run(t, append([]string{"evaluate", "anomaly", "--data", dir}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, args := range [][]string{{"--false-alarms", "Inf"}, {"--false-alarms", "NaN"}, {"--interval", "1000h"}} {
		if _, err := run(t, append([]string{"evaluate", "anomaly", "--data", t.TempDir()}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run(t, "evaluate", "anomaly", "--data", t.TempDir()); err == nil || !strings.Contains(err.Error(), "series.csv") {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestEvaluateGivesTheReferencesFigures runs TSB-AD's PCA end to end, where the benchmark data lie beside
// the repository.
func TestEvaluateGivesTheReferencesFigures(t *testing.T) {
	dir := os.Getenv("TARDIGRADE_DATA")
	if dir == "" {
		dir = "../../../shared/data"
	}
	if _, err := os.Stat(dir + "/smd/series.csv"); errors.Is(err, fs.ErrNotExist) {
		t.Log("the benchmark data are not here; the measures' own tests have cases worked out by hand")
		return
	}
	out, err := run(t, "evaluate", "anomaly", "--data", dir+"/smd", "--protocol", "prefix", "--detector", "pca", "--json")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var r struct {
			Series any
			VUS    float64 `json:"vus_pr"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		got[fmt.Sprint(r.Series)] = r.VUS
	}
	for name, want := range map[string]float64{"machine-1-7": 0.458, "machine-2-2": 0.181, "machine-2-8": 0.857, "machine-3-4": 0.246} {
		if math.Abs(got[name]-want) > 0.0006 {
			t.Errorf("%s: %.4f, TSB-AD has %.3f", name, got[name], want)
		}
	}
}

func TestAlarmsCountOnceAnEpisode(t *testing.T) {
	scores, labels := make([]float64, 400), make([]bool, 400)
	for i := range scores {
		switch {
		case i >= 100 && i < 110 || i >= 210 && i < 230: // outside of events, and within one
			scores[i] = 9
		case i >= 300 && i < 302: // too short
			scores[i] = 9
		}
		labels[i] = i >= 200 && i < 240 || i >= 299 && i < 310
	}
	if found, wrong := alarms(predictor.NewAlarm(1, time.Minute), scores, labels); found != 1 || wrong != 1 {
		t.Errorf("%d events found, %d false alarms", found, wrong)
	}
}

func TestAnEvaluationEndsWhenItIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		free := make(chan struct{})
		defer close(free)
		cmd := &cobra.Command{SilenceErrors: true, SilenceUsage: true, RunE: interruptible(func(*cobra.Command, []string) error {
			interrupt()
			<-free // a step that looks at nothing
			return nil
		})}
		if err := cmd.ExecuteContext(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
