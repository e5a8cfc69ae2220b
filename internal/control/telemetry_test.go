package control

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/collector/influx/influxtest"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// TestHistoryIsTheSameFromStreamAndInflux asks both the same questions.
func TestHistoryIsTheSameFromStreamAndInflux(t *testing.T) {
	t.Parallel()
	server := influxtest.Start(t)
	client, err := influx.Open(influx.Config{URL: server.URL, Bucket: server.Bucket})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b, err := bus.Open(t.Context(), bus.Options{Dir: t.TempDir(), SampleAge: time.Hour, SampleBytes: 64 << 20, Agents: func(fleet.HostID, string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	schema := fleet.NewSchema([]string{"load_1m", "unit_memory_bytes{a.service}", "unit_memory_bytes{b.service}"})
	begin := time.Now().Add(-2 * time.Minute).Truncate(time.Minute).UTC()
	hosts := []fleet.HostID{"h1", "h2"}
	for _, id := range hosts {
		agent, err := bus.DialAgent(bus.AgentOptions{Host: id, InProcess: b})
		if err != nil {
			t.Fatal(err)
		}
		defer agent.Close()
		var samples []*fleet.Sample
		var values []fleet.Sample
		for i := range 60 {
			s := fleet.Sample{Host: id, Time: begin.Add(time.Duration(i) * time.Second), Boot: "b", Schema: schema, Values: []float64{float64(i), float64(100 * i), 7}}
			samples, values = append(samples, &s), append(values, s)
		}
		// The last twenty come first: the others waited on the agent's disk.
		late := append(slices.Clone(samples[40:]), samples[:40]...)
		if n, err := agent.PublishSamples(t.Context(), late); err != nil || n != 60 {
			t.Fatal(n, err)
		}
		if err := client.Write(t.Context(), values); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(h history, host fleet.HostID, metrics []string, step time.Duration) []string {
		t.Helper()
		var out []string
		for row, err := range h.Query(t.Context(), host, metrics, begin, begin.Add(time.Minute), step) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprint(row.Host, " ", row.Series, " ", row.Time.UTC().Format(time.RFC3339), " ", row.Value))
		}
		slices.Sort(out)
		return out
	}
	stream := streamHistory{b, func() []fleet.HostID { return hosts }}
	for _, q := range []struct {
		host    fleet.HostID
		metrics []string
		step    time.Duration
		rows    int
	}{
		{"h1", []string{"load_1m"}, 0, 60},
		{"h1", []string{"unit_memory_bytes{a.service}"}, 10 * time.Second, 6},
		{"h1", []string{"unit_memory_bytes"}, 20 * time.Second, 6},
		{"h2", nil, 30 * time.Second, 6},
		{"", []string{"load_1m"}, 30 * time.Second, 4},
		{"h3", nil, 0, 0},
	} {
		a, b := ask(stream, q.host, q.metrics, q.step), ask(client, q.host, q.metrics, q.step)
		if len(a) != q.rows || !slices.Equal(a, b) {
			t.Errorf("%+v: the stream says\n%q, InfluxDB\n%q", q, a, b)
		}
	}
	// While InfluxDB is away, the stream answers.
	server.Kill()
	if got := ask(influxHistory{client, stream}, "h1", []string{"load_1m"}, 0); len(got) != 60 {
		t.Errorf("without InfluxDB: %d rows", len(got))
	}
	// Whoever reads may stop.
	n := 0
	for range stream.Query(t.Context(), "", nil, begin, begin.Add(time.Minute), time.Second) {
		if n++; n == 10 {
			break
		}
	}
}
