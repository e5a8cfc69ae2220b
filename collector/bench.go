package collector

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// BenchResult is what sampling costs.
type BenchResult struct {
	Samples int `json:"samples"`
	// Metrics is how many series the last sample had a value for.
	Metrics int `json:"metrics"`
	// CPUMillis is the CPU time of the process, user and system, in ms a sample.
	CPUMillis float64 `json:"cpu_ms_per_sample"`
	// Allocs is how many objects were allocated a sample.
	Allocs float64 `json:"allocs_per_sample"`
	// RSSMiB is the resident memory of the process at the end.
	RSSMiB float64 `json:"rss_mib"`
	// Sources is what each source took on average over the samples in which it
	// ran, in ms of elapsed time.
	Sources map[string]float64 `json:"source_ms"`
}

// Bench takes samples, at least 2, with a pause after each, in which caches cool
// down as they do between real samples. To the sources each sample comes an
// Interval after the one before, so that those which run now and then have their
// due share.
func Bench(ctx context.Context, c Config, samples int, pause time.Duration) (BenchResult, error) {
	if samples < 2 || pause < 0 {
		return BenchResult{}, fmt.Errorf("collector: a bench of %d samples, %s apart, measures nothing", samples, pause)
	}
	if c.Interval == 0 {
		c.Interval = time.Second
	}
	at := now()
	s, err := newSampler(c, &host{clock: func() instant { return at }, statfs: statfs, adjust: adjtimex, smart: drives{nvmeHealth, ataSMART}})
	if err != nil {
		return BenchResult{}, err
	}
	defer s.Close()
	result := BenchResult{Samples: samples, Sources: make(map[string]float64)}
	runs := make(map[string]int)
	s.Sample(ctx) // opens files and makes the schema, once in a process's life
	var before, after runtime.MemStats
	var used time.Duration // CPU time within samples
	var allocs uint64
	tick := time.NewTicker(max(pause, 1))
	defer tick.Stop()
	for i := range samples {
		select {
		case <-ctx.Done():
			return result, context.Cause(ctx)
		case <-tick.C:
		}
		at.wall, at.running, at.boot = at.wall.Add(c.Interval), at.running+c.Interval, at.boot+c.Interval
		runtime.ReadMemStats(&before)
		start := cpuTime()
		sample, reports := s.Sample(ctx)
		used += cpuTime() - start
		runtime.ReadMemStats(&after)
		allocs += after.Mallocs - before.Mallocs
		for _, r := range reports {
			if r.State == SourceRead || r.State == SourceFailed {
				result.Sources[r.Source] += float64(r.Duration) / 1e6
				runs[r.Source]++
			}
		}
		if i == samples-1 {
			for _, v := range sample.Values {
				if !math.IsNaN(v) {
					result.Metrics++
				}
			}
		}
	}
	for name, n := range runs {
		result.Sources[name] = round3(result.Sources[name] / float64(n))
	}
	result.CPUMillis = round3(float64(used) / 1e6 / float64(samples))
	result.Allocs = round3(float64(allocs) / float64(samples))
	if b, err := os.ReadFile(filepath.Join("/proc", "self/statm")); err == nil {
		_, rest := cutField(b)
		if v, _, ok := cutUint(rest); ok {
			result.RSSMiB = round3(float64(v) * pageSize / (1 << 20))
		}
	}
	return result, nil
}

func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

// cpuTime is the CPU time that this process has used.
func cpuTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
