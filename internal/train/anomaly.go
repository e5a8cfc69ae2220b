package train

import (
	"cmp"
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/series"
	"github.com/tardigrade-recovery/tardigrade/datasets/table"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/history"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/columns"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

const (
	leastRows = 200 // to learn from
	mostRows  = 60_000
	mostWide  = 512 // columns among which is chosen
	heldOut   = 5   // of so many rows, the last one of each host is not learned from
)

// run is a stretch of samples of one host, in order.
type run struct {
	rows [][]float32
	odd  []bool // of each row, nil where all are normal
}

// trainAnomaly learns the normal of hosts that are alike: of each host the first four fifths
// without incidents. The last fifth says how it does.
func trainAnomaly(ctx context.Context, s Spec, h *registry.Header, progress Progress) ([]byte, error) {
	progress("reading", 0)
	names, runs, err := gather(ctx, s, h, progress)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, r := range runs {
		total += len(r.rows)
	}
	if total < leastRows {
		return nil, unfit("%d normal samples, at least %d are needed", total, leastRows)
	}
	all := flatten(runs, nil, 0, 1)
	progress("choosing columns", 0.5)
	chosen := columns.Choose(len(all), len(names), columns.Most, func(r, c int) float64 { return all[r][c] })
	if len(chosen) == 0 {
		return nil, unfit("all %d columns are constant or mostly missing", len(names))
	}
	for _, c := range chosen {
		h.Series = append(h.Series, names[c])
	}
	h.Rows, h.Hosts = total, len(runs)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	progress("judging", 0.6)
	if err := judge(runs, chosen, h); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	progress("learning", 0.8)
	rows := flatten(runs, chosen, 0, 1)
	d, err := learn(rows)
	if err != nil {
		return nil, err
	}
	h.Reference = drift.NewReference(h.Series, len(rows), func(r, c int) float64 { return rows[r][c] }, nil)
	return d.MarshalBinary()
}

func learn(rows [][]float64) (*stream.Detector, error) {
	d, err := stream.New(anomaly.Method, len(rows[0]), stream.Config{Learn: min(max(len(rows), 20), 1<<16)})
	if err != nil {
		return nil, err
	}
	if err := d.Fit(rows); err != nil {
		return nil, unfit("%v", err)
	}
	return d, nil
}

// flatten takes the chosen columns (nil: all) of a share of each run's normal rows.
func flatten(runs []run, chosen []int, from, to float64) [][]float64 {
	var out [][]float64
	for _, r := range runs {
		a, b := int(from*float64(len(r.rows))), int(to*float64(len(r.rows)))
		for i := a; i < b; i++ {
			if r.odd != nil && r.odd[i] {
				continue
			}
			out = append(out, pick(r.rows[i], chosen))
		}
	}
	return out
}

func pick(row []float32, chosen []int) []float64 {
	if chosen == nil {
		out := make([]float64, len(row))
		for i, v := range row {
			out[i] = float64(v)
		}
		return out
	}
	out := make([]float64, len(chosen))
	for i, c := range chosen {
		out[i] = float64(row[c])
	}
	return out
}

// judge learns from the first part of each run and scores the last.
func judge(runs []run, chosen []int, h *registry.Header) error {
	const until = 1 - 1.0/heldOut
	first := flatten(runs, chosen, 0, until)
	if len(first) < leastRows/2 {
		return nil
	}
	state, err := learn(first)
	if err != nil {
		return err
	}
	saved, err := state.MarshalBinary()
	if err != nil {
		return err
	}
	var scores []float64
	var labels []bool
	var tails drift.Tails
	below, n := 0.0, 0.0
	for _, r := range runs {
		d, err := stream.Unmarshal(anomaly.Method, saved)
		if err != nil {
			return err
		}
		d.Reset()
		parts := make([]float64, len(chosen))
		var episodes drift.Episodes
		begin := int(until * float64(len(r.rows)))
		for i := max(0, begin-60); i < len(r.rows); i++ { // the first minute warms it up
			_, tail := d.Observe(time.Time{}, pick(r.rows[i], chosen))
			if i < begin {
				continue
			}
			odd := r.odd != nil && r.odd[i]
			scores, labels = append(scores, d.Explain(parts)), append(labels, odd)
			if !odd {
				tails.Add(tail, &episodes)
				n++
				if tail <= 0.01 {
					below++
				}
			}
		}
	}
	h.Metrics["held_out_rows"] = float64(len(scores))
	if n > 0 {
		h.Metrics["tail_below_1pct"] = below / n
		h.Metrics["tail_error"] = tails.Error(1)
	}
	odd := 0
	for _, l := range labels {
		if l {
			odd++
		}
	}
	if odd > 0 && odd < len(labels) {
		if v, err := metrics.AUCPR(scores, labels); err == nil {
			h.Metrics["auc_pr"] = v
		}
		if v, err := metrics.AUCROC(scores, labels); err == nil {
			h.Metrics["auc_roc"] = v
		}
		h.Metrics["odd_share"] = float64(odd) / float64(len(labels))
	}
	return nil
}

// gather reads what a spec names.
func gather(ctx context.Context, s Spec, h *registry.Header, progress Progress) ([]string, []run, error) {
	switch {
	case s.CSV != "":
		t, err := table.Read(s.CSV, s.Label)
		if err != nil {
			return nil, nil, err
		}
		if h.Source == "" {
			h.Source = "the table " + filepath.Base(s.CSV)
		}
		return ofTable(t.Columns, t.Rows, t.Labels)
	case s.Influx == nil && exists(filepath.Join(s.Directory, "series.csv")):
		return ofSeries(s, h)
	}
	return ofHistory(ctx, s, h, progress)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func ofTable(names []string, rows [][]float64, labels []bool) ([]string, []run, error) {
	if len(names) > mostWide {
		return nil, nil, unfit("%d columns, at most %d are possible", len(names), mostWide)
	}
	r := run{odd: labels}
	for _, row := range rows[max(0, len(rows)-mostRows):] {
		values := make([]float32, len(row))
		for i, v := range row {
			values[i] = float32(v)
		}
		r.rows = append(r.rows, values)
	}
	if labels != nil {
		r.odd = labels[max(0, len(rows)-mostRows):]
		if normal := countNormal(r.odd); normal < leastRows {
			return nil, nil, unfit("%d of %d rows are labelled as normal, at least %d are needed", normal, len(r.odd), leastRows)
		}
	}
	return names, []run{r}, nil
}

func countNormal(odd []bool) int {
	n := 0
	for _, o := range odd {
		if !o {
			n++
		}
	}
	return n
}

// ofSeries reads the training file of a series.
func ofSeries(s Spec, h *registry.Header) ([]string, []run, error) {
	all, err := series.Open(s.Directory)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(all, func(x series.Series) bool { return x.Name == s.Series })
	if s.Series == "" && len(all) == 1 {
		i = 0
	}
	if i < 0 {
		return nil, nil, unfit("%s has %d series and none of them is %q: name one, for example %s", s.Directory, len(all), s.Series, all[0].Name)
	}
	d, err := all[i].Train()
	if err != nil {
		return nil, nil, err
	}
	if h.Source == "" {
		h.Source = "the training part of the series " + all[i].Name
	}
	return ofTable(d.Columns, d.Rows, nil)
}

// ofHistory reads the host-level series that all hosts have, without what incidents touch.
func ofHistory(ctx context.Context, s Spec, h *registry.Header, progress Progress) ([]string, []run, error) {
	src, err := s.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer src.Close()
	hosts, err := src.Hosts(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(hosts) == 0 {
		return nil, nil, unfit("no host sent anything in that range")
	}
	own, err := src.Incidents()
	if err != nil {
		return nil, nil, err
	}
	incidents := byHost(append(own, s.Incidents...))
	if h.Source == "" {
		h.Source = src.String()
	}
	h.StepSeconds = src.Step().Seconds()
	// Of a large fleet some hosts stand for all, evenly over the list.
	each := max(2*leastRows, mostRows/len(hosts))
	if most := mostRows / each; len(hosts) > most {
		thin := make([]int, most)
		for i := range thin {
			thin[i] = i * len(hosts) / most
		}
		kept := hosts[:0:0]
		for _, i := range thin {
			kept = append(kept, hosts[i])
		}
		hosts = kept
	}
	var names []string
	var frames []frame
	for i, host := range hosts {
		f, err := read(ctx, src, host.ID, each, incidents[host.ID])
		if err != nil {
			return nil, nil, err
		}
		if len(f.rows) > 0 {
			frames = append(frames, f)
			h.From, h.To = earliest(h.From, f.from), latest(h.To, f.to)
			if names == nil {
				names = f.names
			} else {
				names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(f.names, n) })
			}
		}
		progress("reading", 0.5*float64(i+1)/float64(len(hosts)))
	}
	if len(frames) == 0 {
		return nil, nil, unfit("no host has a sample outside of incidents in that range")
	}
	if len(names) == 0 {
		return nil, nil, unfit("the hosts have no host-level series in common")
	}
	var runs []run
	for _, f := range frames {
		at := make([]int, len(names))
		for i, n := range names {
			at[i] = slices.Index(f.names, n)
		}
		r := run{}
		for _, row := range f.rows {
			values := make([]float32, len(names))
			for i, c := range at {
				values[i] = row[c]
			}
			r.rows = append(r.rows, values)
		}
		runs = append(runs, r)
	}
	return names, runs, nil
}

// frame is the newest samples of one host.
type frame struct {
	host     fleet.HostID
	names    []string
	rows     [][]float32
	from, to time.Time
}

// guardTime is how long before and after an incident samples are not taken for normal.
const guardTime = time.Hour

// read takes the newest samples of a host that no incident touches.
func read(ctx context.Context, src history.Source, id fleet.HostID, most int, incidents []fleet.Incident) (frame, error) {
	f := frame{host: id}
	var schema *fleet.Schema
	var at []int
	for s, err := range src.Samples(ctx, id) {
		if err != nil {
			return f, err
		}
		if touched(incidents, s.Time) {
			continue
		}
		if s.Schema != schema {
			schema, at = s.Schema, at[:0]
			for _, name := range schema.Names() {
				c := -1
				if hostLevel(name) && !unscored[name] {
					if c = slices.Index(f.names, name); c < 0 && len(f.names) < mostWide {
						c = len(f.names)
						f.names = append(f.names, name)
					}
				}
				at = append(at, c)
			}
		}
		row := make([]float32, len(f.names))
		for i := range row {
			row[i] = float32(math.NaN())
		}
		for i, c := range at {
			if c >= 0 {
				row[c] = float32(s.Values[i])
			}
		}
		if f.from.IsZero() {
			f.from = s.Time
		}
		f.to = s.Time
		if f.rows = append(f.rows, row); len(f.rows) >= 2*most {
			f.rows = append(f.rows[:0], f.rows[len(f.rows)-most:]...)
		}
	}
	if len(f.rows) > most {
		f.rows = f.rows[len(f.rows)-most:]
	}
	for i, row := range f.rows { // columns that came later are missing before
		for len(row) < len(f.names) {
			row = append(row, float32(math.NaN()))
		}
		f.rows[i] = row
	}
	return f, nil
}

// unscored are the metrics that predictors leave out: they move on a sound host whatever it does.
var unscored = map[string]bool{"uptime_seconds": true, "clock_max_error_seconds": true}

func touched(incidents []fleet.Incident, at time.Time) bool {
	for _, i := range incidents {
		if at.After(i.From.Add(-guardTime)) && at.Before(i.To.Add(guardTime)) {
			return true
		}
	}
	return false
}

func byHost(all []fleet.Incident) map[fleet.HostID][]fleet.Incident {
	out := make(map[fleet.HostID][]fleet.Incident)
	for _, i := range all {
		out[i.Host] = append(out[i.Host], i)
	}
	for _, list := range out {
		slices.SortStableFunc(list, func(a, b fleet.Incident) int { return cmp.Compare(a.From.UnixNano(), b.From.UnixNano()) })
	}
	return out
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func hostLevel(series string) bool { return !strings.HasSuffix(series, "}") }
