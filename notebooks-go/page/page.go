// Package page puts the results of an analysis, text, tables and plots, on a page: Markdown with
// SVG beside it, or cells of a notebook.
package page

import (
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Table is a table whose cells are text as it is to be read.
type Table struct {
	Columns []string
	// Rows have as many cells as there are columns.
	Rows [][]string
}

// Add appends a row. Floating-point numbers get three significant digits, and all before the point.
func (t *Table) Add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case float64:
			if row[i] = fmt.Sprintf("%.3g", c); math.Abs(c) >= 100 {
				row[i] = fmt.Sprintf("%.0f", c)
			}
		default:
			row[i] = fmt.Sprint(c)
		}
	}
	t.Rows = append(t.Rows, row)
}

// Markdown is the table in GitHub's Markdown.
func (t Table) Markdown() string {
	var b strings.Builder
	line := func(cells []string) {
		b.WriteString("|")
		for _, c := range cells {
			b.WriteString(" " + strings.ReplaceAll(c, "|", `\|`) + " |")
		}
		b.WriteString("\n")
	}
	line(t.Columns)
	b.WriteString(strings.Repeat("|---", len(t.Columns)) + "|\n")
	for _, r := range t.Rows {
		line(r)
	}
	return b.String()
}

// Figure is one plot, or several over one another with a common width.
type Figure struct {
	// Name is that of its file, without the page's name and the suffix.
	Name, Caption string
	Plots         []*plot.Plot
	// Height is that of each plot; 0 is 5 cm.
	Height vg.Length
}

const width = 18 * vg.Centimeter

// SVG draws the figure.
func (f Figure) SVG() ([]byte, error) {
	if len(f.Plots) == 0 {
		return nil, fmt.Errorf("the figure %s has no plot", f.Name)
	}
	height := f.Height
	if height == 0 {
		height = 5 * vg.Centimeter
	}
	canvas := vgsvg.New(width, height*vg.Length(len(f.Plots)))
	rows := make([][]*plot.Plot, len(f.Plots))
	for i, p := range f.Plots {
		rows[i] = []*plot.Plot{p}
	}
	for i, tile := range plot.Align(rows, draw.Tiles{Rows: len(rows), Cols: 1, PadX: 2, PadY: 2}, draw.New(canvas)) {
		f.Plots[i].Draw(tile[0])
	}
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("drawing %s: %w", f.Name, err)
	}
	return b.Bytes(), nil
}

// Section is a part of a page.
type Section struct {
	// Title and Text are Markdown.
	Title, Text string
	Tables      []Table
	Figures     []Figure
}

// Show gives the section to a notebook, whose display functions it is told.
func (s Section) Show(markdown, svg func(string)) error {
	var b strings.Builder
	s.write(&b)
	markdown(b.String())
	for _, f := range s.Figures {
		drawn, err := f.SVG()
		if err != nil {
			return err
		}
		// The kernel wants the element alone.
		svg(string(drawn[max(0, bytes.Index(drawn, []byte("<svg"))):]))
		markdown("*" + f.Caption + "*")
	}
	return nil
}

func (s Section) write(b *strings.Builder) {
	fmt.Fprintf(b, "## %s\n\n%s\n", s.Title, strings.TrimSpace(s.Text))
	for _, t := range s.Tables {
		b.WriteString("\n" + t.Markdown())
	}
}

// Page is what is written to NAME.md, and NAME-FIGURE.svg for each figure.
type Page struct {
	Name, Title, Text string
	Sections          []Section
}

// Write puts the page into a directory, which must exist. Figures of the page that it has no more
// are removed.
func (p Page) Write(dir string) error {
	files, err := p.Render()
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, p.Name+"-*.svg"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if _, ok := files[filepath.Base(path)]; !ok {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, fs.FileMode(0o644)); err != nil {
			return fmt.Errorf("writing the page %s: %w", p.Name, err)
		}
	}
	return nil
}

// Render is what Write writes, by name.
func (p Page) Render() (map[string][]byte, error) {
	files := make(map[string][]byte)
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n", p.Title, strings.TrimSpace(p.Text))
	for _, s := range p.Sections {
		b.WriteString("\n")
		s.write(&b)
		for _, f := range s.Figures {
			name := p.Name + "-" + f.Name + ".svg"
			if _, ok := files[name]; ok {
				return nil, fmt.Errorf("the page %s has two figures %s", p.Name, f.Name)
			}
			drawn, err := f.SVG()
			if err != nil {
				return nil, err
			}
			files[name] = drawn
			fmt.Fprintf(&b, "\n![%s](%s)\n", f.Caption, name)
		}
	}
	files[p.Name+".md"] = []byte(b.String())
	return files, nil
}

func init() {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
}
