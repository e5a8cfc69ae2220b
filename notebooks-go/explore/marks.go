package explore

import (
	"fmt"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/palette/moreland"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// LookAlikes sets a leak beside what takes memory, too, and is none.
func (d *Data) LookAlikes() (page.Section, error) {
	kinds := []simulator.Kind{simulator.MemoryLeak, simulator.BatchJob, simulator.Deploy, simulator.Backup}
	taken := page.New("Memory taken since the begin", "hours since it began", "GiB")
	busy := page.New("Share of the CPUs in use", "hours since it began", "%")
	t := page.Table{Columns: []string{"what", "hours", "GiB taken in the first 30 minutes", "GiB taken at most within 3 hours", "given back after 6 hours"}}
	for n, k := range kinds {
		f, err := d.longest(k)
		if err != nil {
			return page.Section{}, err
		}
		end := f.End
		if end.IsZero() {
			end = f.Due
		}
		memory, err := d.points(f, "memory_available_bytes", f.Start.Add(-time.Hour), f.Start.Add(6*time.Hour), 1.0/(1<<30))
		if err != nil {
			return page.Section{}, err
		}
		before := mean(memory, -1, 0)
		for i := range memory {
			memory[i].Y = before - memory[i].Y
		}
		cpu, err := d.points(f, "cpu_busy_ratio", f.Start.Add(-time.Hour), f.Start.Add(6*time.Hour), 100)
		if err != nil {
			return page.Section{}, err
		}
		if err := page.Line(taken, n, string(k), memory); err != nil {
			return page.Section{}, fmt.Errorf("%s on %s: %w", k, f.Host, err)
		}
		if err := page.Line(busy, n, "", cpu); err != nil {
			return page.Section{}, fmt.Errorf("%s on %s: %w", k, f.Host, err)
		}
		most := math.Inf(-1)
		for _, q := range memory {
			if q.X >= 0 && q.X <= 3 {
				most = max(most, q.Y)
			}
		}
		back := "no"
		if mean(memory, 5.5, 6) < most/2 {
			back = "yes"
		}
		t.Add(k, end.Sub(f.Start).Hours(), mean(memory, 0.4, 0.6)-mean(memory, -0.1, 0.02), most, back)
	}
	taken.Legend.Left = true
	return page.Section{Title: "What looks like a leak and is none", Tables: []page.Table{t},
		Text: "The longest of each kind. In its first half hour a batch job takes memory in a line as a leak does, and faster; it is given away by the CPUs that it takes at the same time and by whose memory it is: the host's, not a unit's. " +
			"A deploy restarts each unit, whose memory grows for some minutes and then stops; of the host's it is hardly seen. A threshold on growth alone would call a person for each batch job.",
		Figures: []page.Figure{{Name: "look-alikes", Caption: "Memory and CPUs from the begin of a leak, a batch job, a deploy and a backup", Plots: []*plot.Plot{taken, busy}}}}, nil
}

// mean is that of the points from x up to and without to.
func mean(points plotter.XYs, from, to float64) float64 {
	sum, n := 0.0, 0.0
	for _, q := range points {
		if q.X >= from && q.X < to {
			sum, n = sum+q.Y, n+1
		}
	}
	return sum / n
}

// marked are the metrics of the picture of all kinds.
var marked = []string{
	"cpu_busy_ratio", "cpu_iowait_ratio", "load_1m_per_cpu", "tasks_blocked", "memory_available_bytes", "memory_anonymous_bytes",
	"memory_slab_unreclaimable_bytes", "pressure_memory_some_ratio", "pressure_cpu_some_ratio", "pressure_io_some_ratio",
	"disks_read_bytes_per_second", "disk_read_latency_max_seconds", "disks_io_errors_per_second", "network_transmit_bytes_per_second",
	"network_receive_drops_per_second", "network_link_changes_per_second", "tcp_retransmit_ratio", "file_handles_used_ratio", "threads_total",
	"kernel_warnings_per_second", "edac_corrected_errors_per_second", "temperature_max_celsius", "cpu_core_throttles_per_second", "units_unhealthy", "vm_steal_max_seconds_per_second",
}

// grid is the picture: a row for each kind, a column for each metric.
type grid [][]float64

func (g grid) Dims() (c, r int)   { return len(g[0]), len(g) }
func (g grid) X(c int) float64    { return float64(c) }
func (g grid) Y(r int) float64    { return float64(r) }
func (g grid) Z(c, r int) float64 { return g[r][c] }

// most is where the scale of the picture ends, in deviations on a logarithmic scale: asinh(20).
var most = math.Asinh(20)

// Marks shows which metrics each kind moves: the last quarter of its time against the host's hours
// before, in deviations.
func (d *Data) Marks() (page.Section, error) {
	kinds := d.kinds()
	g := make(grid, len(kinds))
	t := page.Table{Columns: []string{"what", "moves most", "deviations"}}
	for r, k := range kinds {
		g[r] = make([]float64, len(marked))
		for _, f := range d.faults {
			if f.Kind != k || f.End.IsZero() || f.Benign && d.faulty(f) {
				continue
			}
			moved, err := d.moved(f)
			if err != nil {
				return page.Section{}, err
			}
			// Of several of a kind the one that moved a metric most counts.
			for c, z := range moved {
				if math.Abs(z) > math.Abs(g[r][c]) {
					g[r][c] = z
				}
			}
		}
		best := 0
		for c := range g[r] {
			if math.Abs(g[r][c]) > math.Abs(g[r][best]) {
				best = c
			}
		}
		t.Add(k, "`"+marked[best]+"`", g[r][best])
		for c := range g[r] {
			g[r][c] = min(max(math.Asinh(g[r][c]), -most), most)
		}
	}
	colours := moreland.SmoothBlueRed()
	colours.SetMin(-most)
	colours.SetMax(most)
	p := page.New("Deviations from what is normal for the host, blue below, red above", "", "")
	heat := plotter.NewHeatMap(g, colours.Palette(31))
	heat.Min, heat.Max = -most, most
	p.Add(heat)
	var names []string
	for _, k := range kinds {
		names = append(names, string(k))
	}
	p.NominalY(names...)
	p.NominalX(marked...)
	p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = math.Pi/3, -1, -0.5
	return page.Section{Title: "Which metrics each kind moves", Tables: []page.Table{t},
		Text:    "The mean of the last quarter of each, against the six hours before it began, in standard deviations of those hours (with a floor of one percent of the mean), on a logarithmic scale that ends at 20. Every fault has a mark of its own, but look-alikes move some of the same metrics: what tells them apart is the combination.",
		Figures: []page.Figure{{Name: "marks", Caption: "Which metrics each kind of fault and of look-alike moves", Plots: []*plot.Plot{p}, Height: 13 * vg.Centimeter}}}, nil
}

// faulty says whether its host has a fault in the time of a look-alike or in the six hours before.
func (d *Data) faulty(f simulator.Fault) bool {
	for _, x := range d.faults {
		if !x.Benign && x.Host == f.Host && x.Start.Before(f.End) && (x.End.IsZero() || x.End.After(f.Start.Add(-6*time.Hour))) {
			return true
		}
	}
	return false
}

// moved is by how many deviations each marked metric moved.
func (d *Data) moved(f simulator.Fault) ([]float64, error) {
	columns := make([]int, len(marked))
	for i, name := range marked {
		if columns[i] = d.set.Schema().Index(name); columns[i] < 0 {
			return nil, fmt.Errorf("the set has no series %s", name)
		}
	}
	type sums struct{ n, x, xx float64 }
	before, late := make([]sums, len(marked)), make([]sums, len(marked))
	quarter := f.End.Add(-f.End.Sub(f.Start) / 4)
	for s, err := range d.set.Host(d.number[f.Host]) {
		if err != nil {
			return nil, err
		}
		var to []sums
		switch {
		case s.Time.After(f.End):
		case !s.Time.Before(quarter):
			to = late
		case s.Time.Before(f.Start) && s.Time.After(f.Start.Add(-6*time.Hour)):
			to = before
		}
		for i, c := range columns {
			if v := s.Values[c]; to != nil && !math.IsNaN(v) {
				to[i].n, to[i].x, to[i].xx = to[i].n+1, to[i].x+v, to[i].xx+v*v
			}
		}
	}
	out := make([]float64, len(marked))
	for i := range out {
		a, b := before[i], late[i]
		if a.n < 10 || b.n == 0 {
			continue
		}
		m := a.x / a.n
		deviation := max(math.Sqrt(max(a.xx/a.n-m*m, 0)), 0.01*math.Abs(m), 1e-3)
		out[i] = (b.x/b.n - m) / deviation
	}
	return out, nil
}
