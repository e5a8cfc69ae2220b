// Package explore looks at telemetry with the truth beside it: what there is, how faults show,
// and what only looks like one.
package explore

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"gonum.org/v1/plot/plotter"
)

// Data is a directory of telemetry, as 'tardigrade dataset simulate' writes it.
type Data struct {
	set    *telemetry.Set
	number map[fleet.HostID]int
	faults []simulator.Fault
}

// Open opens a directory. The caller closes it.
func Open(dir string) (*Data, error) {
	set, err := telemetry.Open(dir)
	if err != nil {
		return nil, err
	}
	d := &Data{set: set, number: make(map[fleet.HostID]int)}
	for i, h := range set.Manifest.Hosts {
		d.number[h.ID] = i
	}
	err = set.Faults(func(line []byte) error {
		var f simulator.Fault
		if err := json.Unmarshal(line, &f); err != nil {
			return err
		}
		if _, ok := d.number[f.Host]; !ok {
			return fmt.Errorf("fault %d is on the host %q, which the manifest does not have", f.ID, f.Host)
		}
		d.faults = append(d.faults, f)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, set.Close())
	}
	return d, nil
}

// Close ends the reading.
func (d *Data) Close() error { return d.set.Close() }

// Simulate writes a small set: three days of two hosts for each kind of fault, and of four without any.
// Each fault begins on the second day and lasts for about half a day. Nobody acts.
func Simulate(dir string, seed uint64) error {
	const days, copies, sound = 3, 2, 4
	c := simulator.Config{Hosts: copies*len(simulator.Kinds()) + sound, FaultRate: -1, Seed: seed}
	for i, k := range slices.Repeat(simulator.Kinds(), copies) {
		c.Script = append(c.Script, simulator.Planned{Host: i, Kind: k, After: time.Duration(30+i%7) * time.Hour, Lasts: 12 * time.Hour})
	}
	f, err := simulator.New(c)
	if err != nil {
		return err
	}
	m := telemetry.Manifest{Source: fmt.Sprintf("notebooks-go/explore, seed %d", seed), Start: f.Now(), Interval: f.Interval().Seconds(), Series: simulator.Series()}
	number := make(map[fleet.HostID]int)
	for i, h := range f.Hosts() {
		number[h.ID] = i
		m.Hosts = append(m.Hosts, telemetry.Host{ID: h.ID, FaultDomain: h.FaultDomain, VMs: len(h.VMs)})
	}
	w, err := telemetry.Create(dir, m)
	if err != nil {
		return err
	}
	var samples []fleet.Sample
	for range days * 24 * 60 {
		samples = f.Step(samples)
		for _, s := range samples {
			if err := w.Append(number[s.Host], s.Time, s.Boot, s.Values); err != nil {
				return err
			}
		}
	}
	truth := []any{}
	for _, x := range f.History() {
		truth = append(truth, x)
	}
	_, err = w.Close(truth)
	return err
}

// Page explores the simulated set of a seed, by way of a temporary directory.
func Page(seed uint64) (p page.Page, err error) {
	dir, err := os.MkdirTemp("", "tardigrade-explore-")
	if err != nil {
		return page.Page{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := Simulate(dir, seed); err != nil {
		return page.Page{}, err
	}
	d, err := Open(dir)
	if err != nil {
		return page.Page{}, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	p = page.Page{Name: "explore", Title: "Telemetry and faults",
		Text: fmt.Sprintf("A small simulated fleet (seed %d) on which one fault of each kind develops on two hosts and nobody acts. How it is made up says `go doc ./datasets/simulator`. Written by `make pages`; the same as a notebook: [explore.ipynb](../explore.ipynb).", seed)}
	for _, make := range []func() (page.Section, error){
		d.Overview,
		func() (page.Section, error) { return d.Fault(simulator.MemoryLeak) },
		func() (page.Section, error) { return d.Fault(simulator.ServiceHang) },
		func() (page.Section, error) { return d.Fault(simulator.DiskWear) },
		d.LookAlikes,
		d.Marks,
	} {
		s, err := make()
		if err != nil {
			return page.Page{}, err
		}
		p.Sections = append(p.Sections, s)
	}
	return p, nil
}

// Overview counts what there is.
func (d *Data) Overview() (page.Section, error) {
	m := d.set.Manifest
	t := page.Table{Columns: []string{"what", "signature", "times", "hours until it shows", "hours it lasts", "crashed the host"}}
	if len(d.faults) == 0 {
		return page.Section{}, errors.New("the set has no truth (faults.jsonl): there is nothing to say of faults")
	}
	for _, k := range d.kinds() {
		var shows, lasts []float64
		n, crashed, signature := 0, 0, "none: a look-alike"
		for _, f := range d.faults {
			if f.Kind != k {
				continue
			}
			n++
			if !f.Benign {
				signature = string(f.Signature)
			}
			if !f.Effect.IsZero() {
				shows = append(shows, f.Effect.Sub(f.Start).Hours())
			}
			if !f.End.IsZero() {
				lasts = append(lasts, f.End.Sub(f.Start).Hours())
			}
			if f.Ending == simulator.Crashed {
				crashed++
			}
		}
		t.Add(k, signature, n, median(shows), median(lasts), crashed)
	}
	return page.Section{Title: "What there is", Tables: []page.Table{t},
		Text: fmt.Sprintf("%d hosts, %d samples of %d series, one each %g s. Medians are of those that showed or ended in the time; NaN stands for none.",
			len(m.Hosts), m.Samples, len(m.Series), m.Interval)}, nil
}

// kinds lists the kinds that occur, faults first.
func (d *Data) kinds() []simulator.Kind {
	var out []simulator.Kind
	for _, k := range append(simulator.Kinds(), simulator.Backup, simulator.Deploy, simulator.BatchJob) {
		if slices.ContainsFunc(d.faults, func(f simulator.Fault) bool { return f.Kind == k }) {
			out = append(out, k)
		}
	}
	return out
}

// longest finds the one of a kind that lasts longest; for a look-alike, on a host without a fault.
func (d *Data) longest(k simulator.Kind) (simulator.Fault, error) {
	var best simulator.Fault
	var length time.Duration = -1
	for _, f := range d.faults {
		end := f.End
		if end.IsZero() {
			end = f.Due
		}
		if f.Kind == k && end.Sub(f.Start) > length && !(f.Benign && d.faulty(f)) {
			best, length = f, end.Sub(f.Start)
		}
	}
	if length < 0 {
		return best, fmt.Errorf("the set has no %s", k)
	}
	return best, nil
}

// view is one plot of a fault: a series in a unit that is read easily.
type view struct {
	title, unit string
	series      string // "{}" stands for the culprit
	scale       float64
}

var views = map[simulator.Kind][]view{
	simulator.MemoryLeak: {
		{"Memory of the leaking unit", "GiB", "unit_memory_bytes{}", 1.0 / (1 << 30)},
		{"Memory available on the host", "GiB", "memory_available_bytes", 1.0 / (1 << 30)},
		{"Time in which something waited for memory", "%", "pressure_memory_some_ratio", 100},
	},
	simulator.ServiceHang: {
		{"Tasks of the hanging unit", "tasks", "unit_tasks{}", 1},
		{"CPUs that it uses", "CPUs", "unit_cpus_used{}", 1},
		{"Its health check", "1 = healthy", "unit_healthy{}", 1},
	},
	simulator.DiskWear: {
		{"Latency of reads", "ms", "disk_read_latency_max_seconds", 1000},
		{"I/O errors", "per second", "disks_io_errors_per_second", 1},
		{"Time in which something waited for a disk", "%", "pressure_io_some_ratio", 100},
	},
}

var explained = map[simulator.Kind]string{
	simulator.MemoryLeak:  "The unit's memory grows from the first minute. What is available on the host falls with it, but batch jobs take a bite out of that, too, and give it back. Waiting for memory comes last, when hardly anything is left to be done. So the slope of a unit's memory is the early sign, and pressure the late one.",
	simulator.ServiceHang: "Tasks pile up before the health check fails, and the unit does less and less. A watch over health checks alone would see this one late.",
	simulator.DiskWear:    "Latency grows by a factor, not by a sum, and swings with the load; hence features look at its logarithm. Errors are rare at first: the time since the last one says more than their rate.",
}

// Fault shows the longest fault of a kind: a memory leak, a hang or a worn disk.
func (d *Data) Fault(k simulator.Kind) (page.Section, error) {
	f, err := d.longest(k)
	if err != nil {
		return page.Section{}, err
	}
	if views[k] == nil {
		return page.Section{}, fmt.Errorf("there is no view of a %s", k)
	}
	end := f.End
	if end.IsZero() {
		end = f.Due
	}
	around := end.Sub(f.Start) / 2
	figure := page.Figure{Name: string(k), Caption: fmt.Sprintf("A %s on %s", k, f.Host), Height: 120}
	for _, v := range views[k] {
		series := v.series
		if metric, ok := cut(series); ok {
			series = fleet.SeriesName(metric, f.Culprit)
		}
		points, err := d.points(f, series, f.Start.Add(-around), end.Add(around/4), v.scale)
		if err != nil {
			return page.Section{}, err
		}
		p := page.New(v.title, "", v.unit)
		if err := page.Line(p, 0, "", points); err != nil {
			return page.Section{}, fmt.Errorf("%s of %s: %w", series, f.Host, err)
		}
		marks := []struct {
			name string
			at   time.Time
		}{{"fault begins", f.Start}, {"shows", f.Effect}, {string(f.Ending), f.End}}
		for i, m := range marks {
			if m.at.IsZero() {
				continue
			}
			if len(figure.Plots) > 0 {
				m.name = ""
			}
			if err := page.Mark(p, i+1, m.name, m.at.Sub(f.Start).Hours()); err != nil {
				return page.Section{}, err
			}
		}
		p.Legend.Left = true
		figure.Plots = append(figure.Plots, p)
	}
	figure.Plots[len(figure.Plots)-1].X.Label.Text = "hours since the fault began"
	return page.Section{Title: fmt.Sprintf("A fault: %s", k), Text: explained[k], Figures: []page.Figure{figure}}, nil
}

// cut takes the braces off a series that stands for the culprit's.
func cut(series string) (string, bool) {
	if n := len(series) - 2; n > 0 && series[n:] == "{}" {
		return series[:n], true
	}
	return series, false
}

// points reads a series of a fault's host, over hours since the fault began.
func (d *Data) points(f simulator.Fault, series string, from, to time.Time, scale float64) (plotter.XYs, error) {
	c := d.set.Schema().Index(series)
	if c < 0 {
		return nil, fmt.Errorf("the set has no series %s", series)
	}
	var out plotter.XYs
	for s, err := range d.set.Host(d.number[f.Host]) {
		if err != nil {
			return nil, err
		}
		if s.Time.After(to) {
			break
		}
		if !s.Time.Before(from) {
			out = append(out, plotter.XY{X: s.Time.Sub(f.Start).Hours(), Y: s.Values[c] * scale})
		}
	}
	return out, nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
