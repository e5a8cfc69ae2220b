package page

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
)

func drawn(t *testing.T) *plot.Plot {
	t.Helper()
	p := New("title", "x", "y")
	var points plotter.XYs
	for i := range 10_000 {
		points = append(points, plotter.XY{X: float64(i), Y: math.Sin(float64(i))})
	}
	points[5000].Y, points[5001].Y = 77, math.NaN()
	if err := Line(p, 0, "line", points); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestALongLineStaysSmallAndKeepsItsPeak: a peak of one sample is what one looks for.
func TestALongLineStaysSmallAndKeepsItsPeak(t *testing.T) {
	p := drawn(t)
	if p.Y.Max != 77 {
		t.Errorf("the highest value drawn is %v", p.Y.Max)
	}
	svg, err := Figure{Name: "f", Plots: []*plot.Plot{p}}.SVG()
	if err != nil || len(svg) > 30_000 {
		t.Errorf("%d bytes, %v", len(svg), err)
	}
	if _, err := (Figure{Name: "empty"}).SVG(); err == nil {
		t.Error("a figure without a plot was drawn")
	}
}

func TestAPageIsWrittenWithItsFigures(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "name-gone.svg")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	table := Table{Columns: []string{"a", "b"}}
	table.Add("x|y", 1234.5)
	s := Section{Title: "Section", Text: "text", Tables: []Table{table}, Figures: []Figure{{Name: "f", Caption: "caption", Plots: []*plot.Plot{drawn(t)}}}}
	p := Page{Name: "name", Title: "Title", Sections: []Section{s}}
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "name.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Title\n", "## Section\n", `| x\|y | 1234 |`, "![caption](name-f.svg)"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "name-f.svg")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("a figure that the page has no more is still there: %v", err)
	}
	p.Sections = append(p.Sections, s)
	if _, err := p.Render(); err == nil {
		t.Error("two figures have one name")
	}
	var shown []string
	if err := s.Show(func(m string) { shown = append(shown, m) }, func(svg string) { shown = append(shown, svg) }); err != nil {
		t.Fatal(err)
	}
	if len(shown) != 3 || !strings.HasPrefix(shown[1], "<svg") {
		t.Errorf("a notebook shows %d parts", len(shown))
	}
}
