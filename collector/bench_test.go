package collector

import (
	"testing"
	"time"
)

// TestBenchKeepsToTheBudget takes a short bench. The budget for CPU time is 1.5 ms;
// the test leaves room for a machine that does other things at the same time.
func TestBenchKeepsToTheBudget(t *testing.T) {
	r, err := Bench(t.Context(), Config{Host: "bench", Deadline: time.Second}, 40, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.Metrics < 80 {
		t.Errorf("%d metrics, want at least 80", r.Metrics)
	}
	if r.Allocs > 300 {
		t.Errorf("%v allocations a sample, want at most 300", r.Allocs)
	}
	if r.CPUMillis <= 0 || r.CPUMillis > 6 {
		t.Errorf("%v ms of CPU time a sample", r.CPUMillis)
	}
	if _, err := Bench(t.Context(), Config{Host: "bench"}, 1, 0); err == nil {
		t.Error("a bench of one sample has no error")
	}
}

func BenchmarkSample(b *testing.B) {
	s, err := New(Config{Host: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		s.Sample(b.Context())
	}
}
