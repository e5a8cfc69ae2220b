package explore

import (
	"fmt"
	"math"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/datasets/series"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"gonum.org/v1/plot/plotter"
)

// Public looks at a directory of labelled series of real hosts (see package series): what there is, and for its
// first series the longest event by the columns that moved most.
func Public(dir string) (page.Section, error) {
	all, err := series.Open(dir)
	if err != nil {
		return page.Section{}, err
	}
	t := page.Table{Columns: []string{"series", "columns", "rows to learn from", "rows to judge", "of which unusual", "events", "median rows of an event"}}
	s := page.Section{Title: "Labelled series of real hosts"}
	for n, x := range all {
		train, err := x.Train()
		if err != nil {
			return page.Section{}, err
		}
		test, err := x.Test()
		if err != nil {
			return page.Section{}, err
		}
		events := eventsOf(test.Labels)
		var lengths []float64
		sum := 0
		for _, e := range events {
			lengths, sum = append(lengths, float64(e[1]-e[0])), sum+e[1]-e[0]
		}
		t.Add(x.Name, len(test.Columns), len(train.Rows), len(test.Rows), fmt.Sprintf("%.1f %%", 100*float64(sum)/float64(len(test.Rows))), len(events), median(lengths))
		if n > 0 || len(events) == 0 {
			continue
		}
		f, err := drawEvent(x.Name, train, test, events)
		if err != nil {
			return page.Section{}, fmt.Errorf("%s: %w", x.Name, err)
		}
		s.Figures = append(s.Figures, f)
	}
	s.Tables = []page.Table{t}
	s.Text = "What is unusual was labelled by people. NaN stands for no event. The figure has the longest event of the first series, by the three columns whose mean in it is the most deviations from that of the training rows."
	return s, nil
}

// eventsOf lists the runs of labels that are true, as the first row and the one after the last.
func eventsOf(labels []bool) [][2]int {
	var out [][2]int
	for i, l := range labels {
		switch {
		case l && (i == 0 || !labels[i-1]):
			out = append(out, [2]int{i, i + 1})
		case l:
			out[len(out)-1][1] = i + 1
		}
	}
	return out
}

func drawEvent(name string, train, test series.Data, events [][2]int) (page.Figure, error) {
	e := slices.MaxFunc(events, func(a, b [2]int) int { return (a[1] - a[0]) - (b[1] - b[0]) })
	z := make([]float64, len(test.Columns))
	order := make([]int, len(z))
	for c := range z {
		order[c] = c
		m, d := moments(train.Rows, c)
		in, _ := moments(test.Rows[e[0]:e[1]], c)
		if z[c] = math.Abs(in-m) / max(d, 1e-3, 0.01*math.Abs(m)); math.IsNaN(z[c]) {
			z[c] = 0
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case z[a] > z[b]:
			return -1
		case z[a] < z[b]:
			return 1
		}
		return 0
	})
	f := page.Figure{Name: "event", Caption: "The longest event of " + name, Height: 120}
	around := e[1] - e[0]
	for _, c := range order[:min(3, len(order))] {
		p := page.New(fmt.Sprintf("%s, %.0f deviations", test.Columns[c], z[c]), "row", "")
		var points plotter.XYs
		for i := max(0, e[0]-around); i < min(len(test.Rows), e[1]+around); i++ {
			points = append(points, plotter.XY{X: float64(i), Y: test.Rows[i][c]})
		}
		if err := page.Line(p, 0, "", points); err != nil {
			return f, err
		}
		for _, x := range e {
			if err := page.Mark(p, 1, "", float64(x)); err != nil {
				return f, err
			}
		}
		f.Plots = append(f.Plots, p)
	}
	return f, nil
}

// moments are mean and deviation of a column over what is not missing.
func moments(rows [][]float64, c int) (mean, deviation float64) {
	n, s, ss := 0.0, 0.0, 0.0
	for _, r := range rows {
		if v := r[c]; !math.IsNaN(v) {
			n, s, ss = n+1, s+v, ss+v*v
		}
	}
	mean = s / n
	return mean, math.Sqrt(max(ss/n-mean*mean, 0))
}

// PublicPage is the page of a directory of series; source says what the data are, and where from.
func PublicPage(dir, source string) (page.Page, error) {
	s, err := Public(dir)
	if err != nil {
		return page.Page{}, err
	}
	return page.Page{Name: "series", Title: "Public telemetry", Text: source, Sections: []page.Section{s}}, nil
}
