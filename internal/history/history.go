// Package history reads what hosts sent in the past, for training and for replay, from a
// directory of telemetry or from InfluxDB, host by host and in the order of time.
package history

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Host is a host of the past.
type Host struct {
	ID          fleet.HostID
	FaultDomain string
	// VMs is how many ran there, 0 where it is not known.
	VMs int
}

// Source is the past of a fleet.
type Source interface {
	// Hosts lists the hosts in a fixed order.
	Hosts(ctx context.Context) ([]Host, error)
	// Samples yields the samples of a host in order of time. A sample's values are
	// overwritten by the next. After an error it ends.
	Samples(ctx context.Context, id fleet.HostID) iter.Seq2[fleet.Sample, error]
	// Incidents are those that the source itself knows of.
	Incidents() ([]fleet.Incident, error)
	// Step is the time between the samples of a host, 0 where it is not known.
	Step() time.Duration
	// Calm is for how long each host is sound from its first sample on, 0 where it is not known.
	Calm() time.Duration
	// String names the source for a person.
	String() string
	Close() error
}

// directory is a directory of telemetry.
type directory struct {
	set      *telemetry.Set
	path     string
	from, to time.Time
	number   map[fleet.HostID]int
}

// Directory opens a directory of telemetry, of which what is in [from, to) counts; zero
// times are no bounds.
func Directory(path string, from, to time.Time) (Source, error) {
	set, err := telemetry.Open(path)
	if err != nil {
		return nil, err
	}
	d := directory{set, path, from, to, make(map[fleet.HostID]int)}
	for i, h := range set.Manifest.Hosts {
		if _, twice := d.number[h.ID]; twice {
			set.Close()
			return nil, fmt.Errorf("telemetry %s: the host %s is twice in the manifest", path, h.ID)
		}
		d.number[h.ID] = i
	}
	return d, nil
}

func (d directory) Hosts(context.Context) ([]Host, error) {
	var out []Host
	for _, h := range d.set.Manifest.Hosts {
		out = append(out, Host{h.ID, h.FaultDomain, h.VMs})
	}
	return out, nil
}

func (d directory) Samples(ctx context.Context, id fleet.HostID) iter.Seq2[fleet.Sample, error] {
	return func(yield func(fleet.Sample, error) bool) {
		n, ok := d.number[id]
		if !ok {
			yield(fleet.Sample{}, fmt.Errorf("telemetry %s has no host %s", d.path, id))
			return
		}
		var last time.Time
		for s, err := range d.set.Host(n) {
			if err == nil && s.Time.Before(last) {
				err = fmt.Errorf("telemetry %s: host %s: the sample at %s comes after one at %s: they must be in the order of time", d.path, id, s.Time.Format(time.RFC3339), last.Format(time.RFC3339))
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(fleet.Sample{}, err)
				return
			}
			last = s.Time
			if !within(s.Time, d.from, d.to) {
				continue
			}
			if !yield(s, nil) {
				return
			}
		}
	}
}

func within(t, from, to time.Time) bool {
	return (from.IsZero() || !t.Before(from)) && (to.IsZero() || t.Before(to))
}

// truth is a line of faults.jsonl, as far as it matters here.
type truth struct {
	ID        int             `json:"id"`
	Host      fleet.HostID    `json:"host"`
	Signature fleet.Signature `json:"signature"`
	Benign    bool            `json:"benign"`
	Start     time.Time       `json:"start"`
	Effect    time.Time       `json:"effect"`
	End       time.Time       `json:"end"`
	Ending    string          `json:"ending"`
}

// Incidents turns the directory's faults into incidents: one that crashed the host, or made its
// service fail, is from then on, any other from when it could be seen.
func (d directory) Incidents() ([]fleet.Incident, error) {
	var out []fleet.Incident
	err := d.set.Faults(func(line []byte) error {
		var f truth
		if err := json.Unmarshal(line, &f); err != nil {
			return err
		}
		if f.Benign {
			return nil
		}
		if _, ok := d.number[f.Host]; !ok {
			return fmt.Errorf("its host %.150q is not in the manifest", f.Host)
		}
		if !slices.Contains(fleet.Signatures(), f.Signature) {
			return fmt.Errorf("its signature %.50q is not one of %v", f.Signature, fleet.Signatures())
		}
		i := fleet.Incident{ID: fmt.Sprintf("truth-%d", f.ID), Host: f.Host, From: f.Effect, To: f.End, Signature: f.Signature, Source: fleet.IncidentTruth, By: "data set"}
		if i.From.IsZero() {
			return nil // it never showed
		}
		if i.To.IsZero() { // lasts beyond the end of the data
			i.To = i.From
		}
		if i.To.Before(i.From) {
			return fmt.Errorf("it ends at %s, before it has an effect at %s", i.To.Format(time.RFC3339), i.From.Format(time.RFC3339))
		}
		if f.Ending == "crashed" || f.Ending == "failed" {
			if f.End.IsZero() {
				return fmt.Errorf("it %s, and does not say when: its end is missing", f.Ending)
			}
			i.Failed, i.Seen, i.From = true, f.Effect, f.End
		}
		if within(i.From, d.from, d.to) {
			out = append(out, i)
		}
		return nil
	})
	return out, err
}

func (d directory) Step() time.Duration {
	return time.Duration(d.set.Manifest.Interval * float64(time.Second))
}
func (d directory) Calm() time.Duration {
	if !d.from.IsZero() { // the first samples may be left out
		return 0
	}
	return time.Duration(d.set.Manifest.Calm * float64(time.Second))
}
func (d directory) String() string { return "the telemetry in " + d.path }
func (d directory) Close() error   { return d.set.Close() }

// Influx says what to read from InfluxDB.
type Influx struct {
	influx.Config
	From, To time.Time
	// Window is the length of the windows whose means are read; 0 reads every sample.
	Window time.Duration
	// Only limits it to these hosts; none means all that wrote in the range.
	Only []fleet.HostID
}

type database struct {
	Influx
	client *influx.Client
}

// FromInflux opens a range of an InfluxDB.
func FromInflux(ctx context.Context, c Influx) (Source, error) {
	if !c.From.Before(c.To) {
		return nil, fmt.Errorf("the range from %s to %s is empty", c.From.Format(time.RFC3339), c.To.Format(time.RFC3339))
	}
	if c.Window < 0 || c.Window > 0 && c.Window < time.Second {
		return nil, fmt.Errorf("the window %v is neither 0 nor at least a second", c.Window)
	}
	client, err := influx.Open(c.Config)
	if err != nil {
		return nil, err
	}
	if err := client.Check(ctx); err != nil {
		client.Close()
		return nil, err
	}
	return database{c, client}, nil
}

// found are metrics of which every host has one, to find the hosts by.
var found = []string{"load_1m", "cpu_busy_ratio", "memory_available_bytes", "uptime_seconds"}

func (d database) Hosts(ctx context.Context) ([]Host, error) {
	ids := make(map[fleet.HostID]bool)
	for _, id := range d.Only {
		ids[id] = true
	}
	if len(ids) == 0 {
		for row, err := range d.client.Query(ctx, "", found, d.From, d.To, max(time.Minute, min(d.To.Sub(d.From), 24*time.Hour).Truncate(time.Second))) {
			if err != nil {
				return nil, err
			}
			if row.Host.Validate() == nil {
				ids[row.Host] = true
			}
		}
	}
	var out []Host
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		out = append(out, Host{ID: id})
	}
	return out, nil
}

// mostCell bounds the samples and the values that are held of a piece of the range.
const (
	mostTimes  = 200_000
	mostValues = 20_000_000
)

// piece is how much of the range is read at once.
func (d database) piece() time.Duration {
	if d.Window == 0 {
		return time.Hour
	}
	return max(d.Window, min(24*time.Hour, 1440*d.Window)/d.Window*d.Window)
}

func (d database) Samples(ctx context.Context, id fleet.HostID) iter.Seq2[fleet.Sample, error] {
	return func(yield func(fleet.Sample, error) bool) {
		schema := fleet.NewSchema(nil)
		for from := d.From; from.Before(d.To); {
			to := from.Add(d.piece())
			if d.Window > 0 {
				to = to.Truncate(d.Window)
			}
			if to.After(d.To) || !to.After(from) {
				to = d.To
			}
			table, names, err := d.read(ctx, id, from, to)
			if err != nil {
				yield(fleet.Sample{}, err)
				return
			}
			schema = extend(schema, names)
			values := make([]float64, schema.Len())
			for _, at := range slices.SortedFunc(maps.Keys(table), time.Time.Compare) {
				for i := range values {
					values[i] = math.NaN()
				}
				for series, v := range table[at] {
					values[schema.Index(series)] = v
				}
				if !yield(fleet.Sample{Host: id, Time: at, Schema: schema, Values: values}, nil) {
					return
				}
			}
			from = to
		}
	}
}

// read gets a piece of the range: for each time the values of the series.
func (d database) read(ctx context.Context, id fleet.HostID, from, to time.Time) (map[time.Time]map[string]float64, []string, error) {
	table, seen, n := make(map[time.Time]map[string]float64), make(map[string]bool), 0
	for row, err := range d.client.Query(ctx, id, nil, from, to, d.Window) {
		if err != nil {
			return nil, nil, err
		}
		at := table[row.Time]
		if at == nil {
			at = make(map[string]float64, len(seen))
			table[row.Time] = at
		}
		at[row.Series] = row.Value
		seen[row.Series] = true
		if n++; n > mostValues || len(table) > mostTimes {
			return nil, nil, fmt.Errorf("host %s has more than %d samples or %d values from %s to %s: ask for a longer step", id, mostTimes, mostValues, from.Format(time.RFC3339), to.Format(time.RFC3339))
		}
	}
	return table, slices.Sorted(maps.Keys(seen)), nil
}

// extend adds the names that a schema lacks.
func extend(s *fleet.Schema, names []string) *fleet.Schema {
	all := s.Names()
	for _, n := range names {
		if s.Index(n) < 0 {
			all = append(all, n)
		}
	}
	if len(all) == s.Len() {
		return s
	}
	return fleet.NewSchema(all)
}

func (d database) Incidents() ([]fleet.Incident, error) { return nil, nil }
func (d database) Step() time.Duration                  { return d.Window }
func (d database) Calm() time.Duration                  { return 0 }
func (d database) String() string {
	return fmt.Sprintf("InfluxDB %s from %s to %s", d.Bucket, d.From.UTC().Format(time.RFC3339), d.To.UTC().Format(time.RFC3339))
}
func (d database) Close() error { return d.client.Close() }

// Within returns the incidents of the hosts in [from, to), by time.
func Within(all []fleet.Incident, from, to time.Time) []fleet.Incident {
	var out []fleet.Incident
	for _, i := range all {
		if within(i.From, from, to) {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b fleet.Incident) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Host, b.Host), cmp.Compare(a.ID, b.ID))
	})
	return out
}
