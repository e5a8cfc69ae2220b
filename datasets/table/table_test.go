package table

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "t.csv")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func zipped(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestATableIsRead(t *testing.T) {
	text := "\ufeffload,fails,errors\n1.5,0,\n-2e3,1,NaN\n inf ,1.0,1e999\n"
	for _, content := range [][]byte{[]byte(text), zipped(t, text)} {
		got, err := Read(write(t, content), "fails")
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Columns, []string{"load", "errors"}) || !reflect.DeepEqual(got.Labels, []bool{false, true, true}) {
			t.Errorf("%v %v", got.Columns, got.Labels)
		}
		r := got.Rows
		if r[0][0] != 1.5 || !math.IsNaN(r[0][1]) || r[1][0] != -2000 || !math.IsNaN(r[1][1]) || !math.IsInf(r[2][0], 1) || !math.IsInf(r[2][1], 1) {
			t.Errorf("%v", r)
		}
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	long := "a,y\n" + strings.Repeat("1,0\n", 20000)
	gz := zipped(t, long)
	var wide strings.Builder
	for i := range 1_000_000 {
		fmt.Fprintf(&wide, "c%d,", i)
	}
	for name, c := range map[string]struct{ content, want string }{
		"empty":                     {"", "the file is empty"},
		"no rows":                   {"a,y\n", "no rows"},
		"label missing":             {"a,b\n1,0\n", `no column "y"; the columns are a, b`},
		"label alone":               {"y\n1\n", "no column but the label"},
		"two columns of a name":     {"a,y,a\n1,0,1\n", `columns 1 and 3 are both named "a"`},
		"two labels":                {"y,a,y\n1,0,1\n", `both named "y"`},
		"no name":                   {"a,,y\n1,1,0\n", "column 2 has no name"},
		"ragged":                    {"a,y\n1,0\n1,0,3\n", "t.csv:3: 3 values, the header has 2"},
		"label 2":                   {"a,y\n1,0\n1,2\n", `t.csv:3: the label y is "2", it must be 0 or 1`},
		"label empty":               {"a,y\n1,\n", "must be 0 or 1"},
		"text":                      {"a,y\nx,0\n", `column a is "x", which is not a number`},
		"truncated gzip":            {string(gz[:len(gz)/2]), "the file is cut off"},
		"gzip of nothing":           {string(gz[:2]), "the file is cut off"},
		"a million columns":         {wide.String() + "y\n", "columns"},
		"a line without end":        {"a,y\n" + strings.Repeat("1", 5<<20), "a row of more than"},
		"more columns than allowed": {strings.Repeat("c,", 20_000) + "y\n", "20001 columns, at most 10000"},
	} {
		_, err := Read(write(t, []byte(c.content)), "y")
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "t.csv:") {
			t.Errorf("%s: %v, not %q", name, err, c.want)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.csv"), "y"); err == nil {
		t.Error("a file that there is not was read")
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("a,y\n1,0\n"))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Add([]byte("a,y\n\"1\n\",1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := read(bytes.NewReader(b), "y")
		if err != nil {
			return
		}
		if len(got.Rows) == 0 || len(got.Rows) != len(got.Labels) {
			t.Fatalf("%d rows, %d labels", len(got.Rows), len(got.Labels))
		}
		for _, r := range got.Rows {
			if len(r) != len(got.Columns) {
				t.Fatalf("%d values for %d columns", len(r), len(got.Columns))
			}
		}
	})
}

func TestVaries(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		rows [][]float64
		want bool
	}{
		{nil, false}, {[][]float64{{1, nan}, {1, nan}}, false}, {[][]float64{{1, nan}, {1, 0}}, true}, {[][]float64{{1, 2}, {1, 3}}, true},
	} {
		if got := Varies(c.rows); got != c.want {
			t.Errorf("%v: %v", c.rows, got)
		}
	}
}
