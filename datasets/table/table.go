// Package table reads a table of numbers with a column of labels from a CSV file, plain or
// compressed by gzip.
package table

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/tardigrade-recovery/tardigrade/datasets/csvfile"
)

// Table is what a file holds.
type Table struct {
	// Columns are the names of the features, in the order of the file.
	Columns []string
	// Rows have as many values as there are columns; NaN is missing.
	Rows [][]float64
	// Labels has one for each row, none where no label was asked for.
	Labels []bool
}

// Limits of a file, so that a hostile one does not take all memory.
const (
	mostRows    = 10_000_000
	mostColumns = 10_000
	mostValues  = 200_000_000
)

// Read reads the file, in which the first row names the columns and the one named label has
// 0 or 1; "" reads a file without labels. Empty, NaN, NA and null are missing values.
func Read(path, label string) (Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return Table{}, err
	}
	defer f.Close()
	t, err := read(f, label)
	if err != nil {
		return Table{}, fmt.Errorf("%s:%w", path, err)
	}
	return t, nil
}

// read returns errors that begin with the line, or with a space.
func read(r io.Reader, label string) (t Table, err error) {
	c, err := csvfile.New(r)
	if err != nil {
		return t, fmt.Errorf(" %w", csvfile.Reason(err))
	}
	c.FieldsPerRecord = -1 // compared below, for a better error
	header, err := c.Read()
	if err != nil {
		return t, fmt.Errorf(" %w", csvfile.Reason(err))
	}
	if len(header) > mostColumns {
		return t, fmt.Errorf("1: %d columns, at most %d are possible", len(header), mostColumns)
	}
	at := -1
	seen := make(map[string]int)
	for i, name := range header {
		name = strings.TrimSpace(name)
		if name == "" {
			return t, fmt.Errorf("1: column %d has no name", i+1)
		}
		if before, ok := seen[name]; ok {
			return t, fmt.Errorf("1: columns %d and %d are both named %q", before, i+1, name)
		}
		seen[name] = i + 1
		if name == label && label != "" {
			at = i
			continue
		}
		t.Columns = append(t.Columns, strings.Clone(name))
	}
	if at < 0 && label != "" {
		return t, fmt.Errorf("1: there is no column %q; the columns are %s", label, listed(t.Columns))
	}
	if len(t.Columns) == 0 {
		return t, fmt.Errorf("1: there is no column but the label %q: nothing to predict it from", label)
	}
	width := len(header)
	for {
		row, err := c.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return t, fmt.Errorf(" %w", csvfile.Reason(err))
		}
		line, _ := c.FieldPos(0)
		if len(row) != width {
			return t, fmt.Errorf("%d: %d values, the header has %d columns", line, len(row), width)
		}
		if len(t.Rows) == mostRows || len(t.Rows)*len(t.Columns) > mostValues {
			return t, fmt.Errorf("%d: more than %d rows or %d values are too many: take a sample", line, mostRows, mostValues)
		}
		if at >= 0 {
			v, err := strconv.ParseFloat(strings.TrimSpace(row[at]), 64)
			if err != nil || v != 0 && v != 1 {
				return t, fmt.Errorf("%d: the label %s is %q, it must be 0 or 1", line, label, clip(row[at]))
			}
			t.Labels = append(t.Labels, v == 1)
		}
		values := make([]float64, 0, len(t.Columns))
		for i, text := range row {
			if i == at {
				continue
			}
			v, err := value(strings.TrimSpace(text))
			if err != nil {
				return t, fmt.Errorf("%d: column %s is %q, which is not a number", line, t.Columns[len(values)], clip(text))
			}
			values = append(values, v)
		}
		t.Rows = append(t.Rows, values)
	}
	if len(t.Rows) == 0 {
		return t, errors.New(" there are no rows under the header")
	}
	return t, nil
}

// BothLabels returns an error, to be put behind the label's name, unless rows of both labels
// are there.
func (t Table) BothLabels() error {
	for _, l := range t.Labels {
		if l != t.Labels[0] {
			return nil
		}
	}
	v := 0
	if len(t.Labels) > 0 && t.Labels[0] {
		v = 1
	}
	return fmt.Errorf("is %d in all %d rows: there is one class only, and nothing to tell apart; take rows of both", v, len(t.Labels))
}

// Varies tells whether any column has two values; a missing one counts as one.
func Varies(rows [][]float64) bool {
	for _, r := range rows {
		for c, v := range r {
			if first := rows[0][c]; v != first && !(math.IsNaN(v) && math.IsNaN(first)) {
				return true
			}
		}
	}
	return false
}

// value is a number. Infinite ones are kept: they are larger than any other.
func value(text string) (float64, error) {
	switch text {
	case "", "NA", "N/A", "null", "None":
		return math.NaN(), nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if errors.Is(err, strconv.ErrRange) {
		err = nil // the nearest there is
	}
	return v, err
}

func clip(text string) string {
	if len(text) > 40 {
		return text[:40] + "…"
	}
	return text
}

func listed(names []string) string {
	if len(names) > 20 {
		return strings.Join(names[:20], ", ") + fmt.Sprintf(" and %d more", len(names)-20)
	}
	return strings.Join(names, ", ")
}
