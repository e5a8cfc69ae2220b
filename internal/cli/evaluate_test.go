package cli

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		}
		var last struct {
			Mean   float64 `json:"mean_vus_pr"`
			Series int
		}
		if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &one) != nil || json.Unmarshal([]byte(lines[1]), &last) != nil {
			t.Fatalf("%v: %s", c.args, out)
		}
		if one.Series != "one" || one.Events != 4 || last.Series != 1 || last.Mean != one.VUS || last.Mean < c.least {
			t.Errorf("%v: %s", c.args, out)
		}
	}
	for _, args := range [][]string{{"--protocol", "both"}, {"--detector", "magic"}, {}} {
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
