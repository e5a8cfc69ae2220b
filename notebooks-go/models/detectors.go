package models

import (
	"context"
	"fmt"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/detector"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
)

// watched are the metrics that detectors see.
var watched = []string{
	"cpu_user_ratio", "cpu_system_ratio", "cpu_iowait_ratio", "load_1m_per_cpu", "context_switches_per_second", "tasks_blocked", "memory_available_ratio",
	"memory_slab_unreclaimable_bytes", "pressure_io_some_ratio", "disks_read_bytes_per_second", "disk_read_latency_max_seconds", "network_receive_bytes_per_second",
	"tcp_retransmit_ratio", "network_receive_drops_per_second", "file_handles_used_ratio", "threads_total", "temperature_max_celsius", "vm_steal_max_seconds_per_second",
}

// Watched is one host: rows to learn from, and rows to judge with the truth.
type Watched struct {
	Kind        simulator.Kind
	Train, Test [][]float64
	Labels      []bool
}

// window is the length of the buffer around events for VUS-PR, in samples.
const window = 30

// Watch simulates a host for each of some kinds: a day without a fault to learn from, and half a day in which
// one develops; samples count as unusual from when the metrics show it to its end.
func Watch(seed uint64) ([]Watched, error) {
	kinds := []simulator.Kind{simulator.MemoryLeak, simulator.LockUp, simulator.DiskWear, simulator.LinkFlaps, simulator.Overheating, simulator.NoisyNeighbour}
	c := simulator.Config{Hosts: len(kinds), Seed: seed, FaultRate: -1}
	for i, k := range kinds {
		c.Script = append(c.Script, simulator.Planned{Host: i, Kind: k, After: 27 * time.Hour, Lasts: 5 * time.Hour, Harmless: true})
	}
	f, err := simulator.New(c)
	if err != nil {
		return nil, err
	}
	out, number := make([]Watched, len(kinds)), make(map[fleet.HostID]int)
	times := make([][]time.Time, len(kinds))
	for i, h := range f.Hosts() {
		out[i].Kind, number[h.ID] = kinds[i], i
	}
	columns := make([]int, len(watched))
	for i, name := range watched {
		if columns[i] = f.Schema().Index(name); columns[i] < 0 {
			return nil, fmt.Errorf("the simulator has no series %s", name)
		}
	}
	var samples []fleet.Sample
	for n := range 36 * 60 {
		samples = f.Step(samples)
		for _, s := range samples {
			row := make([]float64, len(columns))
			for i, c := range columns {
				row[i] = s.Values[c]
			}
			w := &out[number[s.Host]]
			if n < 24*60 {
				w.Train = append(w.Train, row)
				continue
			}
			w.Test = append(w.Test, row)
			times[number[s.Host]] = append(times[number[s.Host]], s.Time)
		}
	}
	for i := range out {
		out[i].Labels = make([]bool, len(out[i].Test))
	}
	for _, x := range f.History() {
		if x.Benign || x.Effect.IsZero() {
			continue
		}
		h := number[x.Host]
		for i, at := range times[h] {
			out[h].Labels[i] = !at.Before(x.Effect) && (x.End.IsZero() || at.Before(x.End))
		}
	}
	return out, nil
}

// Detectors compares the detectors of unusual samples, none of which has seen a label.
func Detectors(ctx context.Context, seed uint64) (page.Section, error) {
	hosts, err := Watch(seed)
	if err != nil {
		return page.Section{}, err
	}
	t := page.Table{Columns: []string{"detector", "what it is", "VUS-PR", "AUC-PR", "AUC"}}
	var names []string
	var bars []float64
	score := page.New(fmt.Sprintf("What the default detector says of a host with a %s", hosts[0].Kind), "hours", "score")
	for n, d := range detector.All() {
		if d.Fit == nil {
			continue // sees the whole series before it scores
		}
		var vus, aucpr, auc float64
		for i, h := range hosts {
			if err := ctx.Err(); err != nil {
				return page.Section{}, err
			}
			m, err := d.Fit(h.Train)
			if err != nil {
				return page.Section{}, fmt.Errorf("%s on the host with a %s: %w", d.Name, h.Kind, err)
			}
			s, scores := m.Scorer(), make([]float64, len(h.Test))
			for j, row := range h.Test {
				scores[j] = s.Score(row)
			}
			a, _, err := metrics.VUS(scores, h.Labels, window)
			if err != nil {
				return page.Section{}, fmt.Errorf("%s on the host with a %s: %w", d.Name, h.Kind, err)
			}
			b, err := metrics.AUCPR(scores, h.Labels)
			if err != nil {
				return page.Section{}, err
			}
			c, err := metrics.AUCROC(scores, h.Labels)
			if err != nil {
				return page.Section{}, err
			}
			vus, aucpr, auc = vus+a/float64(len(hosts)), aucpr+b/float64(len(hosts)), auc+c/float64(len(hosts))
			if n == 0 && i == 0 {
				if err := drawScore(score, scores, h.Labels); err != nil {
					return page.Section{}, err
				}
			}
		}
		t.Add(d.Name, d.About, vus, aucpr, auc)
		names, bars = append(names, d.Name), append(bars, vus)
	}
	p := page.New("Mean VUS-PR", "", "")
	if err := page.Bars(p, names, bars); err != nil {
		return page.Section{}, err
	}
	p.Y.Min, p.Y.Max = 0, 1
	return page.Section{Title: "Detectors of unusual samples", Tables: []page.Table{t},
		Text: fmt.Sprintf("%d hosts with a fault each, a day to learn from and half a day to judge, %d metrics, means over the hosts. Backups and batch jobs are among the samples that count as usual. "+
			"This set is generated and small, and the order on it is not that on public sets of real servers, by which the default one was chosen: [docs/anomaly.md](../../docs/anomaly.md).", len(hosts), len(watched)),
		Figures: []page.Figure{{Name: "detectors", Caption: "Detectors beside each other, and the default one's score of one host", Plots: []*plot.Plot{p, score}}}}, nil
}

// drawScore adds the scores, and the begin and the end of what is labelled.
func drawScore(p *plot.Plot, scores []float64, labels []bool) error {
	var points plotter.XYs
	for i, s := range scores {
		points = append(points, plotter.XY{X: float64(i) / 60, Y: s})
	}
	if err := page.Line(p, 0, "", points); err != nil {
		return err
	}
	for i := 1; i < len(labels); i++ {
		if labels[i] == labels[i-1] {
			continue
		}
		name, n := "fault shows", 1
		if !labels[i] {
			name, n = "fault ends", 2
		}
		if err := page.Mark(p, n, name, float64(i)/60); err != nil {
			return err
		}
	}
	p.Legend.Left = true
	return nil
}
