// Package series reads labelled time series of hosts from a directory: NAME.train.csv.gz
// and NAME.test.csv.gz (or plain .csv), with a header each, the test file's last column being the label, 0
// or 1, and series.csv, which lists the series with what an evaluation needs to know:
// vus_window, and for the prefix protocol skip_rows, prefix_rows and prefix_vus_window.
package series

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tardigrade-recovery/tardigrade/datasets/csvfile"
)

// Series is an entry of a directory.
type Series struct {
	Name string
	// Window is the length of the buffer around events in the split protocol.
	Window int
	// Skip is how many first rows of the test file the prefix protocol leaves out, Prefix how
	// many it then trains on, and PrefixWindow its buffer. Prefix is 0 where the series is not
	// part of it.
	Skip, Prefix, PrefixWindow int

	dir string
}

// Data is what one file holds.
type Data struct {
	Columns []string
	// Rows are the samples; they all have as many values as there are columns.
	Rows [][]float64
	// Labels is nil for training data.
	Labels []bool
}

// Limits of a file, so that a hostile one does not take all memory.
const (
	mostRows    = 5_000_000
	mostColumns = 10_000
	mostValues  = 200_000_000
	mostName    = 200 // bytes of a series' name, which is that of a file
)

// Open lists the series of a directory, in the order of series.csv.
func Open(dir string) ([]Series, error) {
	path := filepath.Join(dir, "series.csv")
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: a directory of series has a file series.csv that lists them", err)
	}
	defer f.Close()
	r, err := csvfile.New(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, csvfile.Reason(err))
	}
	header, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, csvfile.Reason(err))
	}
	column := make(map[string]int)
	for i, name := range header {
		if _, ok := column[name]; ok {
			return nil, fmt.Errorf("%s:1: the column %q is there twice", path, name)
		}
		column[strings.Clone(name)] = i
	}
	for _, name := range []string{"series", "vus_window"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("%s: the column %s is missing", path, name)
		}
	}
	var out []Series
	listed := make(map[string]bool)
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, csvfile.Reason(err))
		}
		line, _ := r.FieldPos(0)
		s := Series{Name: strings.Clone(row[column["series"]]), dir: dir}
		if s.Name == "" || len(s.Name) > mostName || s.Name != filepath.Base(s.Name) {
			return nil, fmt.Errorf("%s:%d: %q is not the name of a series", path, line, clip(s.Name))
		}
		for name, to := range map[string]*int{"vus_window": &s.Window, "skip_rows": &s.Skip, "prefix_rows": &s.Prefix, "prefix_vus_window": &s.PrefixWindow} {
			i, ok := column[name]
			if !ok || row[i] == "" && to != &s.Window {
				continue
			}
			if *to, err = strconv.Atoi(row[i]); err != nil || *to < 0 || *to > mostRows {
				return nil, fmt.Errorf("%s:%d: %s is %q, it must be a number of rows from 0 to %d", path, line, name, clip(row[i]), mostRows)
			}
		}
		if i, ok := column["prefix_vus_window"]; s.Prefix > 0 && (!ok || row[i] == "") {
			return nil, fmt.Errorf("%s:%d: prefix_rows without prefix_vus_window", path, line)
		}
		if listed[s.Name] {
			return nil, fmt.Errorf("%s:%d: the series %s is listed twice", path, line, s.Name)
		}
		listed[s.Name] = true
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s lists no series", path)
	}
	return out, nil
}

// Train reads the training data.
func (s Series) Train() (Data, error) { return s.read("train", false) }

// Test reads the test data with its labels.
func (s Series) Test() (Data, error) { return s.read("test", true) }

func (s Series) read(part string, labelled bool) (Data, error) {
	path := filepath.Join(s.dir, s.Name+"."+part+".csv.gz")
	f, err := open(path)
	if errors.Is(err, os.ErrNotExist) {
		plain := strings.TrimSuffix(path, ".gz")
		if f, err = open(plain); errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("there is neither %s nor %s", path, filepath.Base(plain))
		}
		path = plain
	}
	if err != nil {
		return Data{}, fmt.Errorf("series %s of series.csv: %w", s.Name, err)
	}
	defer f.Close()
	return read(f, path, labelled)
}

func open(path string) (*os.File, error) {
	if err := csvfile.File(os.Stat, path); err != nil {
		return nil, err
	}
	return os.Open(path)
}

func read(f io.Reader, path string, labelled bool) (Data, error) {
	var d Data
	r, err := csvfile.New(f)
	if err != nil {
		return d, fmt.Errorf("%s: %w", path, csvfile.Reason(err))
	}
	header, err := r.Read()
	if err != nil {
		return d, fmt.Errorf("%s:1: %w", path, csvfile.Reason(err))
	}
	d.Columns = append(d.Columns, header...)
	if labelled {
		last := len(d.Columns) - 1
		if d.Columns[last] != "label" {
			return d, fmt.Errorf("%s:1: the last column is %q, it must be label", path, clip(d.Columns[last]))
		}
		d.Columns = d.Columns[:last]
	}
	if len(d.Columns) == 0 || len(d.Columns) > mostColumns {
		return d, fmt.Errorf("%s: %d columns: 1 to %d are possible", path, len(d.Columns), mostColumns)
	}
	for i, name := range d.Columns {
		if slices.Contains(d.Columns[:i], name) {
			return d, fmt.Errorf("%s:1: the column %q is there twice", path, clip(name))
		}
	}
	line := 1
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, csv.ErrFieldCount) {
			at, _ := r.FieldPos(0)
			return d, fmt.Errorf("%s:%d: %d values, the header has %d", path, at, len(row), len(header))
		}
		if err != nil {
			return d, fmt.Errorf("%s: after line %d: %w", path, line, csvfile.Reason(err))
		}
		line, _ = r.FieldPos(0)
		if len(d.Rows) == mostRows || len(d.Rows)*len(d.Columns) > mostValues {
			return d, fmt.Errorf("%s: more than %d rows or %d values", path, mostRows, mostValues)
		}
		values := make([]float64, len(d.Columns))
		for i := range values {
			if values[i], err = value(row[i]); err != nil {
				return d, fmt.Errorf("%s:%d: column %s: %w", path, line, clip(d.Columns[i]), err)
			}
		}
		d.Rows = append(d.Rows, values)
		if labelled {
			switch strings.TrimSuffix(row[len(row)-1], ".0") {
			case "0":
				d.Labels = append(d.Labels, false)
			case "1":
				d.Labels = append(d.Labels, true)
			default:
				return d, fmt.Errorf("%s:%d: the label is %q, it must be 0 or 1", path, line, clip(row[len(row)-1]))
			}
		}
	}
	if len(d.Rows) == 0 {
		return d, fmt.Errorf("%s has no rows", path)
	}
	return d, nil
}

// value is a number; what is empty or NaN is missing. Detectors compute in single precision, in
// which larger ones would silently be missing.
func value(text string) (float64, error) {
	if text == "" {
		return math.NaN(), nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if errors.Is(err, strconv.ErrRange) || math.Abs(v) > math.MaxFloat32 && !math.IsInf(v, 0) {
		return 0, fmt.Errorf("%q is too large: values are from -3.4e38 to 3.4e38; leave out what is no measurement", clip(text))
	}
	if err != nil || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%q is not a number", clip(text))
	}
	return v, nil
}

// clip shortens what is quoted in an error.
func clip(text string) string {
	if len(text) > 40 {
		return text[:40] + "…"
	}
	return text
}
