package feature

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

var start = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

var series = []string{"cpu_busy_ratio", "memory_total_bytes", "memory_available_bytes", "memory_available_ratio", "memory_slab_unreclaimable_bytes",
	"edac_corrected_errors_per_second", "unit_memory_bytes{a.service}", "unit_memory_bytes{b.service}", "unit_healthy{a.service}", "unit_healthy{b.service}"}

// host gives samples of a sound host; change changes one.
type host struct {
	e      *Extractor
	schema *fleet.Schema
	at     time.Time
	boot   string
}

func newHost() *host {
	return &host{e: New(), schema: fleet.NewSchema(series), at: start, boot: "b1"}
}

func (h *host) run(n int, every time.Duration, change func(i int, x map[string]float64)) {
	for i := range n {
		h.at = h.at.Add(every)
		x := map[string]float64{"cpu_busy_ratio": 0.3, "memory_total_bytes": 64e9, "memory_available_bytes": 30e9, "memory_slab_unreclaimable_bytes": 1e9,
			"unit_memory_bytes{a.service}": 2e8, "unit_memory_bytes{b.service}": 3e8, "unit_healthy{a.service}": 1, "unit_healthy{b.service}": 1}
		if change != nil {
			change(i, x)
		}
		x["memory_available_ratio"] = x["memory_available_bytes"] / x["memory_total_bytes"]
		s := fleet.Sample{Host: "h", Time: h.at, Boot: h.boot, Schema: h.schema}
		for _, name := range series {
			s.Values = append(s.Values, x[name])
		}
		h.e.Observe(&s)
	}
}

func (h *host) value(t *testing.T, name string) float64 {
	t.Helper()
	x := make([]float64, Size)
	h.e.Vector(x)
	i := slices.Index(Names(), name)
	if i < 0 {
		t.Fatalf("there is no feature %q", name)
	}
	return x[i]
}

func TestNamesAreAsManyAsValues(t *testing.T) {
	names := Names()
	if len(names) != Size {
		t.Errorf("%d names, %d values", len(names), Size)
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != Size {
		t.Error("a name is there twice")
	}
}

// TestARiseIsTheSameAtAnyInterval: a unit that grows by 1 GB an hour with 27 GB available at the end.
func TestARiseIsTheSameAtAnyInterval(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 10 * time.Second, time.Minute, 5 * time.Minute} {
		h := newHost()
		h.run(int(8*time.Hour/max(every, time.Minute)), max(every, time.Minute), nil)
		h.run(int(3*time.Hour/every), every, func(i int, x map[string]float64) {
			hours := (time.Duration(i+1) * every).Hours()
			x["unit_memory_bytes{b.service}"] += 1e9 * hours
			x["memory_available_bytes"] = 30e9 - 1e9*hours
		})
		if v := h.value(t, "unit_memory_rise"); math.Abs(v-1.0/27) > 0.1/27 {
			t.Errorf("every %v: it grows by %.4f of what is available an hour, not 0.037", every, v)
		}
		// 27 GB of 64 are left and fall by 1 GB an hour: 1/(1+27).
		if v := h.value(t, "memory_exhausted"); math.Abs(v-1.0/28) > 0.1/28 {
			t.Errorf("every %v: exhausted %.4f, not 0.0357", every, v)
		}
	}
}

func TestWhatNeverHappensIsRemembered(t *testing.T) {
	h := newHost()
	h.run(600, time.Minute, nil)
	if v := h.value(t, "ecc_corrected_longer"); v != 0 {
		t.Errorf("%v before any error", v)
	}
	h.run(10, time.Minute, func(_ int, x map[string]float64) { x["edac_corrected_errors_per_second"] = 0.05 })
	lately := h.value(t, "ecc_corrected_lately")
	if v := h.value(t, "ecc_corrected_now"); v <= 0 || lately < 0.2 {
		t.Errorf("with errors: now %v, lately %v", v, lately)
	}
	h.run(30, time.Minute, nil)
	if v := h.value(t, "ecc_corrected_lately"); v <= 0 || v >= lately {
		t.Errorf("half an hour later: %v, was %v", v, lately)
	}
	h.e.Recovered()
	h.run(1, time.Minute, nil)
	if v := h.value(t, "ecc_corrected_longer"); v != 0 {
		t.Errorf("after an action: %v", v)
	}
}

func TestAMetricThatIsMissingIsMissing(t *testing.T) {
	h := newHost()
	h.run(5, time.Minute, func(_ int, x map[string]float64) {
		x["cpu_busy_ratio"], x["edac_corrected_errors_per_second"] = math.NaN(), math.NaN()
	})
	for _, name := range []string{"cpu_busy_level", "cpu_busy_off", "temperature_level", "ecc_corrected_now", "disk_errors_lately"} {
		if v := h.value(t, name); !math.IsNaN(v) {
			t.Errorf("%s is %v", name, v)
		}
	}
	if v := h.value(t, "memory_available_level"); math.IsNaN(v) {
		t.Error("what is there is missing")
	}
}

func TestUnhealthyAndBoots(t *testing.T) {
	h := newHost()
	h.run(10, time.Minute, nil)
	h.run(5, time.Minute, func(_ int, x map[string]float64) { x["unit_healthy{b.service}"] = 0 })
	if v := h.value(t, "unhealthy_minutes"); v != 5 {
		t.Errorf("unhealthy for %v minutes, not 5", v)
	}
	h.boot = "b2"
	h.run(31, time.Minute, nil)
	if v := h.value(t, "unhealthy_minutes"); v != 0 {
		t.Errorf("unhealthy for %v minutes", v)
	}
	if v := h.value(t, "since_boot"); v != 0.5 {
		t.Errorf("%v hours since the boot, not 0.5", v)
	}
}

func TestOldAndRepeatedSamplesChangeNothing(t *testing.T) {
	h := newHost()
	h.run(60, time.Minute, nil)
	before, after := make([]float64, Size), make([]float64, Size)
	h.e.Vector(before)
	at := h.at
	h.at = h.at.Add(-10 * time.Minute)
	h.run(5, time.Minute, func(_ int, x map[string]float64) { x["cpu_busy_ratio"] = 1 })
	h.at = at
	h.e.Vector(after)
	for i := range before {
		if math.Float64bits(before[i]) != math.Float64bits(after[i]) {
			t.Fatalf("%s went from %v to %v", Names()[i], before[i], after[i])
		}
	}
}

func TestAnotherSchemaKeepsWhatIsKnown(t *testing.T) {
	h := newHost()
	h.run(600, time.Minute, nil)
	h.schema = fleet.NewSchema(series)
	h.run(1, time.Minute, func(_ int, x map[string]float64) { x["unit_memory_bytes{b.service}"] = 6e8 })
	if v := h.value(t, "unit_memory_jump"); v <= 0.005 {
		t.Errorf("a jump by 300 MB of 30 GB is %v", v)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	h := newHost()
	h.run(10, time.Minute, nil)
	s := fleet.Sample{Host: "h", Time: h.at, Boot: h.boot, Schema: h.schema, Values: make([]float64, len(series))}
	x := make([]float64, Size)
	if n := testing.AllocsPerRun(100, func() {
		s.Time = s.Time.Add(time.Minute)
		h.e.Observe(&s)
		h.e.Vector(x)
	}); n != 0 {
		t.Errorf("%v allocations a sample", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	h := newHost()
	h.run(10, time.Minute, nil)
	s := fleet.Sample{Host: "h", Time: h.at, Boot: h.boot, Schema: h.schema, Values: make([]float64, len(series))}
	x := make([]float64, Size)
	for b.Loop() {
		s.Time = s.Time.Add(time.Minute)
		h.e.Observe(&s)
		h.e.Vector(x)
	}
}
