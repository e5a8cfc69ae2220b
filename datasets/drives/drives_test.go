package drives

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const header = "serial_number,model,size_tb,min_date,tstart,tstop,fails,smart_5,smart_10,smart_12,smart_187,smart_188,smart_189,smart_196,smart_197,smart_198\n"

const good = header +
	"A,X1,4.0,2015-01-01,100,200,0,0,0,3,,,,0,0,0\n" +
	"B,X2,,2015-02-01,5,10,0,0,0,3,1,2,3,0,0,0\n" +
	"A,X1,4.0,2015-01-01,200,230,1,8,0,3,,,,0,16,0\n"

func dir(t *testing.T, files map[string]string) string {
	t.Helper()
	d := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(d, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.String()
}

func TestDrivesAreRead(t *testing.T) {
	z := zipped(t, "\ufeff"+header+"C,X1,1,2016-01-01,0,1,0,,,,,,,,,\n")
	all, err := Open(dir(t, map[string]string{"a.csv": good, "b.csv.gz": z, "README.md": "x"}))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 {
		t.Fatalf("%d drives", len(all))
	}
	a, b := all[0], all[1]
	if a.Serial != "A" || a.Model != "X1" || a.SizeTB != 4 || len(a.Rows) != 2 || !a.Failed || a.End != 230 || a.Rows[1].Values[7] != 16 || !math.IsNaN(a.Rows[0].Values[3]) {
		t.Errorf("%+v", a)
	}
	if b.Failed || b.End != 10 || !math.IsNaN(b.SizeTB) {
		t.Errorf("%+v", b)
	}
	if at := a.At(124); !at.Equal(time.Date(2015, 1, 2, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("24 hours after the first: %s", at)
	}
}

// hours are so many rows of one drive.
func hours(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "A,X1,4.0,2015-01-01,%d,%d,0,0,0,3,,,,0,0,0\n", i, i+1)
	}
	return b.String()
}

func TestFilesThatAreRefused(t *testing.T) {
	row := "A,X1,4.0,2015-01-01,100,200,0,0,0,3,,,,0,0,0\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":               {"", "the file is empty"},
		"another table":       {"a,b\n1,2\n", "1: the column serial_number is missing"},
		"no drives":           {header, "no drives"},
		"out of order":        {header + row + strings.Replace(row, "100,200", "50,90", 1), ":3: drive A: times out of order"},
		"overlap":             {header + row + strings.Replace(row, "100,200", "150,290", 1), "times out of order"},
		"no span":             {header + strings.Replace(row, "100,200", "200,200", 1), "no span of time"},
		"time not a number":   {header + strings.Replace(row, "100,200", "NaN,200", 1), ":2: drive A: from NaN to 200 hours is no span of time"},
		"no time":             {header + strings.Replace(row, "100,200", ",200", 1), "no span of time"},
		"before its birth":    {header + strings.Replace(row, "100,200", "-5,200", 1), "no span of time"},
		"column twice":        {strings.Replace(header, "smart_10", "smart_5", 1), "1: columns 8 and 9 are both named \"smart_5\""},
		"column missing":      {strings.Replace(header, ",smart_187", "", 1), "1: the column smart_187 is missing"},
		"after its failure":   {header + strings.Replace(row, "200,0", "200,1", 1) + strings.Replace(row, "100,200", "300,400", 1), "after its failure"},
		"fails":               {header + strings.Replace(row, "200,0", "200,2", 1), `fails is "2"`},
		"day":                 {header + strings.Replace(row, "2015-01-01", "1.1.15", 1), "min_date"},
		"text":                {header + strings.Replace(row, ",3,", ",x,", 1), `smart_12 is "x"`},
		"not finite":          {header + strings.Replace(row, ",3,", ",inf,", 1), `smart_12 is "inf"`},
		"no serial number":    {header + row[1:], "without serial number"},
		"a long name":         {header + strings.Repeat("A", 500) + row[1:], ":2: a serial number or a model of more than 200 bytes"},
		"a drive without end": {header + hours(mostOfOne+1), ":10002: drive A: more than 10000 rows"},
		"ragged":              {header + "A,X\n", "wrong number of fields"},
		"cut off":             {"\x1f\x8b\x08\x00\x00", "the file is cut off"},
		"cut off later":       {zipped(t, good)[:len(zipped(t, good))-20], "the file is cut off"},
	} {
		_, err := Open(dir(t, map[string]string{"d.csv": c.text}))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, not %q", name, err, c.want)
		}
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no .csv") {
		t.Error(err)
	}
	pipe := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(pipe, "d.csv"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(pipe); err == nil || !strings.Contains(err.Error(), "d.csv is a directory, a pipe or a device") {
		t.Errorf("a pipe: %v", err)
	}
}

// A directory's name is no pattern.
func TestADirectoryOfAnyName(t *testing.T) {
	odd := filepath.Join(t.TempDir(), "[1]*")
	if err := errors.Join(os.Mkdir(odd, 0o700), os.WriteFile(filepath.Join(odd, "d.csv"), []byte(good), 0o600)); err != nil {
		t.Fatal(err)
	}
	if all, err := Open(odd); err != nil || len(all) == 0 {
		t.Errorf("%d drives, %v", len(all), err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := builder{at: make(map[string]int)}
		if b.read(bytes.NewReader(text)) != nil {
			return
		}
		for _, d := range b.drives {
			if len(d.Rows) == 0 || d.End <= d.Rows[len(d.Rows)-1].Start {
				t.Fatalf("%+v", d)
			}
		}
	})
}
