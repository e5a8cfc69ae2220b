package history

import (
	"maps"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/collector/influx/influxtest"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// What hosts wrote into InfluxDB comes back host by host, in order, with what is missing
// missing, also where a host gets another series on the way.
func TestFromInfluxDB(t *testing.T) {
	server := influxtest.Start(t)
	cfg := influx.Config{URL: server.URL, Bucket: server.Bucket}
	client, err := influx.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	begin := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	one := fleet.NewSchema([]string{"load_1m", "cpu_busy_ratio"})
	two := fleet.NewSchema([]string{"load_1m", "cpu_busy_ratio", "unit_memory_bytes{a.service}"})
	var samples []fleet.Sample
	for i := range 120 {
		for _, id := range []fleet.HostID{"h2", "h1"} {
			s := fleet.Sample{Host: id, Time: begin.Add(time.Duration(i) * time.Minute), Boot: "b", Schema: one, Values: []float64{float64(i), math.NaN()}}
			if i >= 60 {
				s.Schema, s.Values = two, []float64{float64(i), 0.5, 1e6}
			}
			samples = append(samples, s)
		}
	}
	if err := client.Write(t.Context(), samples); err != nil {
		t.Fatal(err)
	}
	src, err := FromInflux(t.Context(), Influx{Config: cfg, From: begin, To: begin.Add(100 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	hosts, err := src.Hosts(t.Context())
	if err != nil || len(hosts) != 2 || hosts[0].ID != "h1" {
		t.Fatalf("%+v, %v", hosts, err)
	}
	n := 0
	for s, err := range src.Samples(t.Context(), "h2") {
		if err != nil {
			t.Fatal(err)
		}
		load, _ := s.Value("load_1m")
		memory, has := s.Value("unit_memory_bytes{a.service}")
		if !s.Time.Equal(begin.Add(time.Duration(n)*time.Minute)) || load != float64(n) || has != (n >= 60) || has && memory != 1e6 || s.Host != "h2" {
			t.Fatalf("sample %d: %+v", n, s)
		}
		n++
	}
	if n != 100 {
		t.Errorf("%d samples of 100", n)
	}
	if _, err := FromInflux(t.Context(), Influx{Config: cfg, From: begin, To: begin}); err == nil {
		t.Error("an empty range was taken")
	}
}

func TestWithinSortsAndCuts(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 1, 2, h, 0, 0, 0, time.UTC) }
	all := []fleet.Incident{{ID: "c", From: at(9)}, {ID: "b", From: at(3)}, {ID: "a", From: at(1)}, {ID: "d", From: at(2)}}
	got := Within(all, at(2), at(9))
	if len(got) != 2 || got[0].ID != "d" || got[1].ID != "b" {
		t.Errorf("%+v", got)
	}
}

// A directory whose times go back is refused, with the host and both times.
func TestTimesOutOfOrder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "fleet")
	begin := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	w, err := telemetry.Create(dir, telemetry.Manifest{Source: "test", Start: begin, Interval: 60, Series: []string{"load_1m"}, Hosts: []telemetry.Host{{ID: "h1"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, minute := range []time.Duration{1, 2, 5, 3} {
		if err := w.Append(0, begin.Add(minute*time.Minute), "b", []float64{1}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(nil); err != nil {
		t.Fatal(err)
	}
	src, err := Directory(dir, time.Time{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	n := 0
	for _, err = range src.Samples(t.Context(), "h1") {
		if err != nil {
			break
		}
		n++
	}
	if n != 3 || err == nil || !strings.Contains(err.Error(), "host h1: the sample at 2026-01-02T03:03:00Z comes after one at 2026-01-02T03:05:00Z") {
		t.Errorf("%d samples, %v", n, err)
	}
}

// A truth that cannot be is refused, with its line; a model would learn from it.
func TestTruthThatCannotBe(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	type line = map[string]any
	for want, lie := range map[string]line{
		`line 2: its host "h9" is not in the manifest`:             {"host": "h9"},
		`signature "magic" is not one of`:                          {"signature": "magic"},
		"it ends at 2026-01-02T02:00:00Z, before it has an effect": {"end": at.Add(-time.Hour)},
		"it crashed, and does not say when":                        {"ending": "crashed", "end": time.Time{}},
	} {
		fault := line{"id": 1, "host": "h1", "signature": "disk", "effect": at, "end": at.Add(time.Hour)}
		bad := maps.Clone(fault)
		maps.Copy(bad, lie)
		dir := filepath.Join(t.TempDir(), "fleet")
		w, err := telemetry.Create(dir, telemetry.Manifest{Series: []string{"load_1m"}, Hosts: []telemetry.Host{{ID: "h1"}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Close([]any{fault, bad}); err != nil {
			t.Fatal(err)
		}
		src, err := Directory(dir, time.Time{}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if _, err := src.Incidents(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
}
