package page

import (
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Colours are told apart by most people with defective colour vision (Okabe and Ito).
var Colours = []color.Color{
	color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255},
	color.RGBA{204, 121, 167, 255}, color.RGBA{86, 180, 233, 255}, color.RGBA{230, 159, 0, 255}, color.RGBA{90, 90, 90, 255},
}

// mostPoints keeps a line small: of more points the lowest and the highest of each stretch remain.
const mostPoints = 400

// New is an empty plot with labelled axes and a grid.
func New(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font.Size = 10
	p.X.Label.TextStyle.Font.Size, p.Y.Label.TextStyle.Font.Size = 8, 8
	p.X.Tick.Label.Font.Size, p.Y.Tick.Label.Font.Size = 7, 7
	p.Legend.TextStyle.Font.Size = 8
	p.Legend.Top = true
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{230}, color.Gray{230}
	p.Add(grid)
	return p
}

// Line adds a line in the n-th colour, and a line to the legend unless name is "". Points that are
// not finite are left out.
func Line(p *plot.Plot, n int, name string, points plotter.XYs) error {
	line, err := plotter.NewLine(thin(points))
	if err != nil {
		return err
	}
	line.Color, line.Width = Colours[n%len(Colours)], vg.Points(1.2)
	p.Add(line)
	if name != "" {
		p.Legend.Add(name, line)
	}
	return nil
}

// Mark adds a dashed vertical line at x over the height of what was drawn before, with its name in the legend
// unless that is "".
func Mark(p *plot.Plot, n int, name string, x float64) error {
	low, high := p.Y.Min, p.Y.Max
	if !(low < high) {
		low, high = low-1, high+1
	}
	line, err := plotter.NewLine(plotter.XYs{{X: x, Y: low}, {X: x, Y: high}})
	if err != nil {
		return err
	}
	line.Color, line.Dashes = Colours[n%len(Colours)], []vg.Length{3, 3}
	p.Add(line)
	if name != "" {
		p.Legend.Add(name, line)
	}
	return nil
}

// Bars adds a bar for each value and puts its name under it.
func Bars(p *plot.Plot, names []string, values []float64) error {
	bars, err := plotter.NewBarChart(plotter.Values(values), vg.Points(20))
	if err != nil {
		return err
	}
	bars.Color, bars.LineStyle.Width = Colours[0], 0
	p.Add(bars)
	p.NominalX(names...)
	return nil
}

// Lying adds a horizontal bar for each value, the first one at the top, with its name on the left.
func Lying(p *plot.Plot, names []string, values []float64) error {
	n := len(names)
	turned, labels := make(plotter.Values, n), make([]string, n)
	for i := range names {
		turned[n-1-i], labels[n-1-i] = values[i], names[i]
	}
	bars, err := plotter.NewBarChart(turned, vg.Points(8))
	if err != nil {
		return err
	}
	bars.Color, bars.LineStyle.Width, bars.Horizontal = Colours[0], 0, true
	p.Add(bars)
	p.NominalY(labels...)
	return nil
}

func thin(points plotter.XYs) plotter.XYs {
	var finite plotter.XYs
	for _, q := range points {
		if !math.IsNaN(q.X+q.Y) && !math.IsInf(q.X+q.Y, 0) {
			finite = append(finite, q)
		}
	}
	if len(finite) <= mostPoints {
		return finite
	}
	const stretches = mostPoints / 2
	var out plotter.XYs
	for s := range stretches {
		part := finite[s*len(finite)/stretches : (s+1)*len(finite)/stretches]
		low, high := 0, 0
		for i, q := range part {
			if q.Y < part[low].Y {
				low = i
			}
			if q.Y > part[high].Y {
				high = i
			}
		}
		out = append(out, part[min(low, high)])
		if low != high {
			out = append(out, part[max(low, high)])
		}
	}
	return out
}
