package series

import (
	"bytes"
	"compress/gzip"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func zip(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(text))
	w.Close()
	return b.Bytes()
}

func dir(t *testing.T, list, train, test string) string {
	t.Helper()
	d := t.TempDir()
	for name, data := range map[string][]byte{"series.csv": []byte(list), "a.train.csv.gz": zip(t, train), "a.test.csv.gz": zip(t, test)} {
		if err := os.WriteFile(filepath.Join(d, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

const list = "series,dims,vus_window,skip_rows,prefix_rows,prefix_vus_window\na,2,10,3,4,5\nb,2,7,,,\n"

func TestReads(t *testing.T) {
	all, err := Open(dir(t, list, "x,y\n1,2\n3,\n", "x,y,label\n5,6,0\n7,nan,1\n"))
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	a := all[0]
	if a.Window != 10 || a.Skip != 3 || a.Prefix != 4 || a.PrefixWindow != 5 || all[1].Prefix != 0 {
		t.Errorf("%+v", all)
	}
	train, err := a.Train()
	if err != nil || len(train.Rows) != 2 || train.Rows[1][0] != 3 || !math.IsNaN(train.Rows[1][1]) || train.Labels != nil {
		t.Errorf("%+v, %v", train, err)
	}
	test, err := a.Test()
	if err != nil || len(test.Columns) != 2 || test.Labels[0] || !test.Labels[1] || !math.IsNaN(test.Rows[1][1]) {
		t.Errorf("%+v, %v", test, err)
	}
	if _, err := all[1].Test(); err == nil {
		t.Error("a file that is not there was read")
	}
}

// Spreadsheets write a byte-order mark, and people unpack files.
func TestReadsMarkedAndPlainFiles(t *testing.T) {
	d := dir(t, "\ufeff"+list, "\ufeffx,y\n1,2\n", "")
	if err := os.Remove(filepath.Join(d, "a.test.csv.gz")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d, "a.test.csv"), []byte("x,y,label\n5,6,1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	train, err := all[0].Train()
	if err != nil || train.Columns[0] != "x" || train.Rows[0][1] != 2 {
		t.Errorf("%+v, %v", train, err)
	}
	if test, err := all[0].Test(); err != nil || test.Rows[0][1] != 6 || !test.Labels[0] {
		t.Errorf("%+v, %v", test, err)
	}
}

func TestBadInput(t *testing.T) {
	for name, c := range map[string]struct{ list, test, want string }{
		"no column":       {"series\na\n", "", "vus_window"},
		"bad window":      {"series,vus_window\na,x\n", "", "vus_window"},
		"no window":       {"series,vus_window\na,\n", "", "vus_window"},
		"half a prefix":   {"series,vus_window,skip_rows,prefix_rows\na,1,2,3\n", "", "prefix_vus_window"},
		"very wide":       {list, "x" + strings.Repeat(",", mostColumns) + ",label\n", "columns: 1 to 10000 are possible"},
		"twice":           {"series,vus_window\na,1\na,1\n", "", "series.csv:3: the series a is listed twice"},
		"column twice":    {list, "x,x,label\n1,1,0\n", "twice"},
		"quote":           {list, "x,label\n1,0\n\"1,0\n", "line 3"},
		"a path":          {"series,vus_window\n../a,5\n", "", "name of a series"},
		"nothing":         {"series,vus_window\n", "", "no series"},
		"ragged":          {list, "x,label\n1,0\n1\n", "a.test.csv.gz:3: 1 values"},
		"no label":        {list, "x,y\n1,0\n", "label"},
		"label 2":         {list, "x,label\n1,2\n", "0 or 1"},
		"not a number":    {list, "x,label\none,0\n", "not a number"},
		"infinity":        {list, "x,label\ninf,0\n", "not a number"},
		"no rows":         {list, "x,label\n", "no rows"},
		"only the labels": {list, "label\n1\n", "columns"},
		"empty":           {list, "", "is empty"},
		"too large":       {list, "x,label\n1e300,0\n", "a.test.csv.gz:2: column x: \"1e300\" is too large"},
		"out of range":    {list, "x,label\n1e400,0\n", "is too large"},
		"rows beyond all": {"series,vus_window,skip_rows,prefix_rows,prefix_vus_window\na,1,9223372036854775807,5,1\n", "", "series.csv:2: skip_rows"},
		"window":          {"series,vus_window\na,1000000000\n", "", "series.csv:2: vus_window"},
		"listed twice":    {"series,vus_window,vus_window\na,1,2\n", "", "twice"},
		"a long name":     {"series,vus_window\n" + strings.Repeat("a", 5000) + ",5\n", "", "aaa…\" is not the name"},
		"not there":       {"series,vus_window\nb,5\n", "", "series b of series.csv: there is neither"},
		"an empty list":   {"", "", "series.csv: the file is empty"},
	} {
		all, err := Open(dir(t, c.list, "x\n1\n", c.test))
		if err == nil {
			_, err = all[0].Test()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := dir(t, list, "x\n1\n", "x,label\n1,0\n")
	whole := zip(t, "x,label\n"+strings.Repeat("1.25,0\n", 5000))
	if err := os.WriteFile(filepath.Join(d, "a.test.csv.gz"), whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	all, _ := Open(d)
	if _, err := all[0].Test(); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("half a file: %v", err)
	}
	// A pipe into which nobody writes is not waited for.
	if err := errors.Join(os.Remove(filepath.Join(d, "a.test.csv.gz")), unix.Mkfifo(filepath.Join(d, "a.test.csv"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := all[0].Test(); err == nil || !strings.Contains(err.Error(), "a.test.csv is a directory, a pipe or a device") {
		t.Errorf("a pipe: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "series.csv") {
		t.Errorf("no list: %v", err)
	}
}
