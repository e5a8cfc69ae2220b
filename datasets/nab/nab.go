// Package nab reads the Numenta Anomaly Benchmark (Lavin and Ahmad, ICMLA 2015) from a
// directory: combined_windows.json, which names each file and the windows of its anomalies,
// and the files, FOLDER/NAME.csv.gz or FOLDER/NAME.csv, with the columns timestamp and value.
package nab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/csvfile"
)

// Series is one file of the benchmark.
type Series struct {
	// Name is the file's path as combined_windows.json has it: FOLDER/NAME.csv.
	Name   string
	Times  []time.Time // UTC, never going back by more than an hour (a clock's change)
	Values []float64
	// Windows are the rows of anomalies and around them, in order.
	Windows []Window
}

// Window is a run of rows, both ends included.
type Window struct{ First, Last int }

// Folder is the part of the name before the slash.
func (s Series) Folder() string {
	folder, _, _ := strings.Cut(s.Name, "/")
	return folder
}

// Limits, so that hostile files do not take all memory.
const (
	mostFiles = 10_000
	mostRows  = 5_000_000
	mostAll   = 20_000_000 // rows of all files
	mostBytes = 64 << 20   // of combined_windows.json
)

// windowsFile lists the files and their windows.
const windowsFile = "combined_windows.json"

// Open reads the whole benchmark, in the order of the names.
func Open(dir string) ([]Series, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	windows, err := readWindows(root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	names := make([]string, 0, len(windows))
	for name := range windows {
		names = append(names, name)
	}
	slices.Sort(names)
	out := make([]Series, 0, len(names))
	rows := 0
	for _, name := range names {
		s := Series{Name: name}
		if s.Times, s.Values, err = readColumn(root, name, "value", false); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if rows += len(s.Times); rows > mostAll {
			return nil, fmt.Errorf("%s: %s: with it there are more than %d rows in all files", dir, name, mostAll)
		}
		if s.Windows, err = place(windows[name], s.Times); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", dir, name, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// Scores reads what a detector gave for each series: files of the same names with the columns
// timestamp and anomaly_score.
func Scores(dir string, all []Series) ([][]float64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	out := make([][]float64, len(all))
	for i, s := range all {
		times, scores, err := readColumn(root, s.Name, "anomaly_score", true)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if !slices.EqualFunc(times, s.Times, time.Time.Equal) {
			return nil, fmt.Errorf("%s: %s: its %d rows do not have the times of the %d rows of the series", dir, s.Name, len(times), len(s.Times))
		}
		out[i] = scores
	}
	return out, nil
}

func open(root *os.Root, name string) (*os.File, error) {
	if err := csvfile.File(root.Stat, name); err != nil {
		return nil, err
	}
	return root.Open(name)
}

type span [2]time.Time

func readWindows(root *os.Root) (map[string][]span, error) {
	f, err := open(root, windowsFile)
	if err != nil {
		return nil, fmt.Errorf("%w: a directory of the benchmark has a file %s that lists its files", err, windowsFile)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > mostBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", windowsFile, mostBytes)
	}
	var text map[string][][]string
	if err := json.Unmarshal(data, &text); err != nil {
		return nil, fmt.Errorf("%s: %w", windowsFile, err)
	}
	if len(text) == 0 || len(text) > mostFiles {
		return nil, fmt.Errorf("%s lists %d files: 1 to %d are possible", windowsFile, len(text), mostFiles)
	}
	out := make(map[string][]span, len(text))
	for name, list := range text {
		folder, base, ok := strings.Cut(name, "/")
		if !ok || folder == "" || !strings.HasSuffix(base, ".csv") || strings.Contains(base, "/") || !fs.ValidPath(name) {
			return nil, fmt.Errorf("%s: %q is not the name of a file: FOLDER/NAME.csv", windowsFile, name)
		}
		spans := make([]span, 0, len(list))
		for _, w := range list {
			if len(w) != 2 {
				return nil, fmt.Errorf("%s: %s: a window has %d times, it must have two", windowsFile, name, len(w))
			}
			var s span
			for i, at := range w {
				if s[i], err = parseTime(at); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", windowsFile, name, err)
				}
			}
			spans = append(spans, s)
		}
		out[name] = spans
	}
	return out, nil
}

// place finds the rows of the windows.
func place(spans []span, times []time.Time) ([]Window, error) {
	var out []Window
	after := 0
	for _, s := range spans {
		var w Window
		from := after
		for i, to := range []*int{&w.First, &w.Last} {
			at := slices.IndexFunc(times[from:], s[i].Equal)
			if at < 0 {
				return nil, fmt.Errorf("the window from %s to %s: no row after row %d has the time %s", s[0].Format(layout), s[1].Format(layout), from, s[i].Format(layout))
			}
			*to = from + at
			from = *to
		}
		if w.Last == w.First {
			return nil, fmt.Errorf("the window at %s has one row only", s[0].Format(layout))
		}
		out = append(out, w)
		after = w.Last + 1
	}
	return out, nil
}

const layout = "2006-01-02 15:04:05"

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(layout, s) // takes fractions of a second, too
	if err != nil {
		return t, fmt.Errorf("%.60q is not a time like 2014-04-10 07:15:00", s)
	}
	return t, nil
}

// readColumn reads a file's times and one column of numbers.
func readColumn(root *os.Root, name, column string, ratio bool) ([]time.Time, []float64, error) {
	f, err := open(root, name+".gz")
	if err == nil {
		name += ".gz"
	} else if f, err = open(root, name); err != nil {
		return nil, nil, fmt.Errorf("%s.gz or %s: %w", name, name, err)
	}
	defer f.Close()
	r, err := csvfile.New(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, csvfile.Reason(err))
	}
	header, err := r.Read()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, csvfile.Reason(err))
	}
	stamp, number := slices.Index(header, "timestamp"), slices.Index(header, column)
	if stamp < 0 || number < 0 {
		return nil, nil, fmt.Errorf("%s: its columns are %.200q, it needs timestamp and %s", name, bytes.TrimSpace([]byte(strings.Join(header, ","))), column)
	}
	var times []time.Time
	var values []float64
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, csvfile.Reason(err))
		}
		line, _ := r.FieldPos(0)
		if len(times) == mostRows {
			return nil, nil, fmt.Errorf("%s has more than %d rows", name, mostRows)
		}
		at, err := parseTime(row[stamp])
		if err != nil {
			return nil, nil, fmt.Errorf("%s:%d: %w", name, line, err)
		}
		if n := len(times); n > 0 && times[n-1].Sub(at) > time.Hour {
			return nil, nil, fmt.Errorf("%s:%d: the time goes back from %s to %s", name, line, times[n-1].Format(layout), row[stamp])
		}
		v, err := strconv.ParseFloat(row[number], 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, nil, fmt.Errorf("%s:%d: %s is %.60q, it must be a number", name, line, column, row[number])
		}
		if math.Abs(v) > math.MaxFloat32 { // detectors compute in single precision
			return nil, nil, fmt.Errorf("%s:%d: %s is %.60q, it must be from -3.4e38 to 3.4e38", name, line, column, row[number])
		}
		if ratio && (v < 0 || v > 1) {
			return nil, nil, fmt.Errorf("%s:%d: %s is %.60q, it must be from 0 to 1", name, line, column, row[number])
		}
		times, values = append(times, at), append(values, v)
	}
	if len(times) == 0 {
		return nil, nil, fmt.Errorf("%s has no rows", name)
	}
	return times, values, nil
}
