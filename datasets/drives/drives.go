// Package drives reads the lives of disk drives from CSV files in the form of the Backblaze
// history in github.com/boennecd/dynamichazard: one row for each change of a drive's SMART values, with the
// power-on hours tstart at which they were first seen and tstop at which they had changed, the drive had failed
// (fails is 1) or was seen for the last time.
package drives

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/csvfile"
)

// Attributes are the SMART values that a row has, in order: reallocated sectors, spin retries, power
// cycles, uncorrectable errors, command timeouts, high fly writes, reallocation events, pending sectors and
// offline uncorrectable sectors.
var Attributes = [...]string{"smart_5", "smart_10", "smart_12", "smart_187", "smart_188", "smart_189", "smart_196", "smart_197", "smart_198"}

// Values are the raw values of Attributes; NaN is missing.
type Values [len(Attributes)]float64

// Row is what a drive said from Start on, in power-on hours.
type Row struct {
	Start  float64
	Values Values
}

// Drive is the life of a drive as far as it was watched.
type Drive struct {
	Serial, Model string
	SizeTB        float64   // NaN where the file doesn't say
	Since         time.Time // day on which it was first seen, at Rows[0].Start
	Rows          []Row     // in order, at least one
	End           float64   // power-on hours at the failure, or when it was last seen
	Failed        bool
}

// At is the calendar time of an instant in power-on hours. Drives run without pause, nearly:
// the time that one was off is not known and counts as none.
func (d *Drive) At(hours float64) time.Time {
	return d.Since.Add(time.Duration((hours - d.Rows[0].Start) * float64(time.Hour)))
}

// Limits of what a hostile file takes. What is computed of a drive grows with the square of its rows.
const (
	mostRows  = 50_000_000
	mostOfOne = 10_000 // rows of a drive
	mostName  = 200    // bytes of a serial number or a model
)

// Open reads all CSV files of a directory, plain or compressed by gzip, or one file.
func Open(path string) ([]Drive, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if info.IsDir() {
		files = nil
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if name := e.Name(); strings.HasSuffix(name, ".csv") || strings.HasSuffix(name, ".csv.gz") {
				file := filepath.Join(path, name)
				if err := csvfile.File(os.Stat, file); err != nil {
					return nil, err
				}
				files = append(files, file)
			}
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s: there is no .csv or .csv.gz file of drives", path)
		}
	}
	b := builder{at: make(map[string]int)}
	for _, file := range files {
		if err := b.file(file); err != nil {
			return nil, fmt.Errorf("%s:%w", file, err)
		}
	}
	if len(b.drives) == 0 {
		return nil, fmt.Errorf("%s: there are no drives in it", path)
	}
	return b.drives, nil
}

type builder struct {
	drives []Drive
	at     map[string]int // by serial number
	rows   int
}

func (b *builder) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf(" %w", err)
	}
	defer f.Close()
	return b.read(f)
}

// read returns errors that begin with the line, or with a space.
func (b *builder) read(r io.Reader) error {
	c, err := csvfile.New(r)
	if err != nil {
		return fmt.Errorf(" %w", csvfile.Reason(err))
	}
	header, err := c.Read()
	if err != nil {
		return fmt.Errorf(" %w", csvfile.Reason(err))
	}
	column := make(map[string]int)
	for i, name := range header {
		if before, ok := column[name]; ok {
			return fmt.Errorf("1: columns %d and %d are both named %q", before+1, i+1, name)
		}
		column[strings.Clone(name)] = i
	}
	for _, name := range append([]string{"serial_number", "model", "min_date", "tstart", "tstop", "fails"}, Attributes[:]...) {
		if _, ok := column[name]; !ok {
			return fmt.Errorf("1: the column %s is missing", name)
		}
	}
	size, sized := column["size_tb"]
	for {
		row, err := c.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf(" %w", csvfile.Reason(err))
		}
		line, _ := c.FieldPos(0)
		if b.rows++; b.rows > mostRows {
			return fmt.Errorf("%d: more than %d rows", line, mostRows)
		}
		text := func(name string) string { return row[column[name]] }
		if err := b.add(text, sized, row[min(size, len(row)-1)]); err != nil {
			return fmt.Errorf("%d: %w", line, err)
		}
	}
}

func (b *builder) add(text func(string) string, sized bool, size string) error {
	serial := text("serial_number")
	if serial == "" {
		return errors.New("a drive without serial number")
	}
	if max(len(serial), len(text("model"))) > mostName {
		return fmt.Errorf("a serial number or a model of more than %d bytes", mostName)
	}
	start, err := number("tstart", text("tstart"))
	if err != nil {
		return err
	}
	stop, err := number("tstop", text("tstop"))
	if err != nil {
		return err
	}
	if !(start >= 0 && stop > start && stop < 1e9) {
		return fmt.Errorf("drive %s: from %v to %v hours is no span of time", serial, start, stop)
	}
	i, ok := b.at[serial]
	if !ok {
		since, err := time.Parse(time.DateOnly, text("min_date"))
		if err != nil {
			return fmt.Errorf("drive %s: min_date is %.60q, it must be a day such as 2016-01-31", serial, text("min_date"))
		}
		d := Drive{Serial: strings.Clone(serial), Model: strings.Clone(text("model")), Since: since, SizeTB: math.NaN()}
		if sized && size != "" {
			if d.SizeTB, err = number("size_tb", size); err != nil {
				return err
			}
		}
		i = len(b.drives)
		b.at[d.Serial] = i
		b.drives = append(b.drives, d)
	}
	d := &b.drives[i]
	if d.Failed {
		return fmt.Errorf("drive %s: a row after its failure at %v hours", serial, d.End)
	}
	if len(d.Rows) > 0 && start < d.End {
		return fmt.Errorf("drive %s: times out of order: a row from %v hours after one to %v", serial, start, d.End)
	}
	if len(d.Rows) == mostOfOne {
		return fmt.Errorf("drive %s: more than %d rows; there is one for each change of its values, at most", serial, mostOfOne)
	}
	r := Row{Start: start}
	for k, name := range Attributes {
		if r.Values[k], err = number(name, text(name)); err != nil {
			return err
		}
	}
	switch text("fails") {
	case "0":
	case "1":
		d.Failed = true
	default:
		return fmt.Errorf("drive %s: fails is %.60q, it must be 0 or 1", serial, text("fails"))
	}
	d.Rows = append(d.Rows, r)
	d.End = stop
	return nil
}

func number(name, text string) (float64, error) {
	if text == "" {
		return math.NaN(), nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%s is %.60q, which is not a number", name, text)
	}
	return v, nil
}
