package control

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// A host is scored plainly at first and by the stronger detector later; what it has
// learned by then survives a restart, and a fault is seen and explained.
func TestTheStrongDetectorTakesOver(t *testing.T) {
	for name, want := range strong {
		t.Run(name, func(t *testing.T) { takesOver(t, name, want.name) })
	}
}

func takesOver(t *testing.T, detector, strongName string) {
	cfg := config.Default().Model
	cfg.Detector = detector
	cfg.Learn, cfg.LearnFully = config.Duration(time.Minute), config.Duration(5*time.Minute)
	made := newDetectors(cfg, time.Second, newRoster(cfg, time.Second))
	begin := func() *predictor.Predictor {
		p, err := predictor.New("h1", predictor.Config{NewDetector: made.new(cfg.Learn.D()), Model: detectorName,
			FalseAlarms: 1, Interval: time.Second, Horizon: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	schema := fleet.NewSchema([]string{"cpu_busy_ratio", "load_1m", "disks_write_bytes_per_second", "unit_tasks{a.service}", "memory_total_bytes"})
	r := rand.New(rand.NewPCG(1, 2))
	now, load := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), 0.3
	step := func(p *predictor.Predictor, change func(x []float64)) fleet.Prediction {
		t.Helper()
		now = now.Add(time.Second)
		load += 0.05*(0.3-load) + 0.01*r.NormFloat64()
		x := []float64{load + 0.01*r.NormFloat64(), 8*load + 0.2*r.NormFloat64(), 1e6 * (1 + r.Float64()), 12, 64 << 30}
		if change != nil {
			change(x)
		}
		out, err := p.Observe(&fleet.Sample{Host: "h1", Time: now, Boot: "b", Schema: schema, Values: x})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	p := begin()
	var out fleet.Prediction
	for range 100 {
		out = step(p, nil)
	}
	if out.Model != plainName || out.State != fleet.PredictionScoring {
		t.Fatalf("after 100 samples: %+v", out)
	}
	for range 600 {
		out = step(p, nil)
	}
	if out.Model != strongName {
		t.Fatalf("after 700 samples: %+v", out)
	}
	file, err := p.Save()
	if err != nil {
		t.Fatal(err)
	}
	p = begin()
	if err := p.Restore(file); err != nil {
		t.Fatal(err)
	}
	// With the other detector in the configuration, what was learned is refused, and the host learns.
	for other := range strong {
		if other == detector {
			continue
		}
		cfg := cfg
		cfg.Detector = other
		fresh, err := predictor.New("h1", predictor.Config{NewDetector: newDetectors(cfg, time.Second, newRoster(cfg, time.Second)).new(cfg.Learn.D()), Model: detectorName,
			FalseAlarms: 1, Interval: time.Second, Horizon: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if err := fresh.Restore(file); err == nil || !strings.Contains(err.Error(), "learn again") {
			t.Errorf("what %s has learned, restored into %s: %v", detector, other, err)
		}
		if out := step(fresh, nil); out.State != fleet.PredictionLearning {
			t.Errorf("after that it is %s", out.State)
		}
	}
	alarms := 0
	for range 300 {
		if out = step(p, nil); out.Anomalous {
			alarms++
		}
	}
	if out.Model != strongName || alarms > 0 {
		t.Fatalf("restored: %d alarms, %+v", alarms, out)
	}
	for i := range 60 {
		out = step(p, func(x []float64) { x[0], x[1], x[2] = 0.95, 90, 1e10*float64(1+i%2) })
	}
	if !out.Anomalous || out.Signature != fleet.SignatureDisk || out.Contributions[0].Series != "disks_write_bytes_per_second" {
		t.Errorf("with a host gone wild: %+v", out)
	}
}

// TestWhatBecomesOfAHostThatIsUnusual has a host whose metrics swing far more from the fourth day on, and looks for how many hours of
// each day the alarm is up.
func TestWhatBecomesOfAHostThatIsUnusual(t *testing.T) {
	t.Parallel()
	const day = 24 * 60 // samples
	names := []string{"load_1m", "cpu_busy_ratio", "memory_used_ratio", "pressure_io_some_ratio", "pressure_cpu_some_ratio", "disk_busy_ratio", "cpu_iowait_ratio", "load_5m", "load_15m"}
	schema := fleet.NewSchema(names)
	for name, c := range map[string]struct {
		hours    int // for how long it is
		repaired bool
		most     [6]float64 // hours of alarm on each day
		least    [6]float64 // of these 95 %
	}{
		"for good":           {1000, false, [6]float64{0, 0, 0, 24, 2, 0}, [6]float64{3: 24}},
		"until it passes":    {8, false, [6]float64{0, 0, 0, 11, 0, 0}, [6]float64{3: 8}},
		"until it is mended": {8, true, [6]float64{0, 0, 0, 8.1, 0, 0}, [6]float64{3: 8}},
	} {
		r := rand.New(rand.NewPCG(1, 2))
		p, err := predictor.New("h", predictor.Config{NewDetector: Detectors(config.Default().Model, time.Minute), Model: detectorName, FalseAlarms: 1, Interval: time.Minute, Horizon: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		course := make([]float64, len(names))
		var up [6]float64
		begins, on := 0, false
		for i := range 6 * day {
			at = at.Add(time.Minute)
			swing := 1.0
			if i >= 3*day && i < 3*day+c.hours*60 {
				swing = 30
			}
			if c.repaired && i == 3*day+c.hours*60 {
				p.Recovered()
			}
			x := make([]float64, len(names))
			for k := range x {
				course[k] = 0.8*course[k] + 0.6*r.NormFloat64()
				x[k] = 50 + course[k]
				if k%2 == 0 {
					x[k] = 50 + swing*course[k]
				}
			}
			out, err := p.Observe(&fleet.Sample{Host: "h", Time: at, Boot: "b", Schema: schema, Values: x})
			if err != nil {
				t.Fatal(err)
			}
			if out.Anomalous {
				up[i/day] += 1.0 / 60
				if !on {
					begins++
				}
			}
			on = out.Anomalous
		}
		for d, h := range up {
			if h > c.most[d] || h < 0.95*c.least[d] {
				t.Errorf("unusual %s: on day %d the alarm is up for %.1f hours", name, d, h)
			}
		}
		if begins != 1 {
			t.Errorf("unusual %s: %d alarms", name, begins)
		}
	}
}
