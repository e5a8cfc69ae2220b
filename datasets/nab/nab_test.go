package nab

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dir makes a directory of files; those that end in .gz are compressed.
func dir(t *testing.T, files map[string]string) string {
	t.Helper()
	d := t.TempDir()
	for name, text := range files {
		data := []byte(text)
		if strings.HasSuffix(name, ".gz") {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write(data)
			z.Close()
			data = b.Bytes()
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(d, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

const rows = `timestamp,value
2014-04-10 07:00:00,1
2014-04-10 07:05:00,2.5
2014-04-10 07:10:00,-3
2014-04-10 07:10:00,4
2014-04-10 07:15:00,5
`

func TestReads(t *testing.T) {
	d := dir(t, map[string]string{
		windowsFile:      `{"b/two.csv": [], "a/one.csv": [["2014-04-10 07:05:00.000000", "2014-04-10 07:10:00.000000"]]}`,
		"a/one.csv.gz":   rows,
		"b/two.csv":      rows,
		"scores/one.csv": "",
	})
	all, err := Open(d)
	if err != nil || len(all) != 2 || all[0].Name != "a/one.csv" || all[0].Folder() != "a" {
		t.Fatalf("%+v, %v", all, err)
	}
	one := all[0]
	if len(one.Values) != 5 || one.Values[1] != 2.5 || one.Times[1].Sub(one.Times[0]).Minutes() != 5 || len(one.Windows) != 1 || one.Windows[0] != (Window{1, 2}) {
		t.Errorf("%+v", one)
	}
	given := strings.NewReplacer("value", "anomaly_score", "2.5", "0.25", "-3", "0", ",4", ",1", ",5", ",0").Replace(rows)
	scores, err := Scores(dir(t, map[string]string{"a/one.csv": given, "b/two.csv.gz": given}), all)
	if err != nil || len(scores) != 2 || scores[1][1] != 0.25 {
		t.Errorf("%v, %v", scores, err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"out of range":  {strings.Replace(given, "0.25", "1.5", 1), "from 0 to 1"},
		"a row missing": {strings.Replace(given, "2014-04-10 07:15:00,0\n", "", 1), "4 rows"},
	} {
		if _, err := Scores(dir(t, map[string]string{"a/one.csv": c.text, "b/two.csv": given}), all); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("scores, %s: %v", name, err)
		}
	}
}

func TestBadInput(t *testing.T) {
	window := func(first, last string) string { return `{"a/one.csv": [["` + first + `", "` + last + `"]]}` }
	good := window("2014-04-10 07:05:00", "2014-04-10 07:10:00")
	for name, c := range map[string]struct{ windows, rows, want string }{
		"no json":              {"no", rows, windowsFile},
		"no file named":        {"{}", rows, "lists 0 files"},
		"a path out of it":     {`{"../one.csv": []}`, rows, "not the name"},
		"an absolute path":     {`{"/one.csv": []}`, rows, "not the name"},
		"not a csv":            {`{"a/one.txt": []}`, rows, "not the name"},
		"a file that is not":   {`{"a/two.csv": []}`, rows, "a/two.csv"},
		"one time":             {`{"a/one.csv": [["2014-04-10 07:05:00"]]}`, rows, "two"},
		"no time":              {window("noon", "2014-04-10 07:10:00"), rows, "not a time"},
		"a time between rows":  {window("2014-04-10 07:05:00", "2014-04-10 07:12:00"), rows, "07:12:00"},
		"a window turned":      {window("2014-04-10 07:10:00", "2014-04-10 07:05:00"), rows, "no row after"},
		"a window of one row":  {window("2014-04-10 07:05:00", "2014-04-10 07:05:00"), rows, "one row"},
		"no columns":           {good, "a,b\n1,2\n", "timestamp"},
		"not a number":         {good, strings.Replace(rows, "2.5", "much", 1), ":3: value"},
		"too large":            {good, strings.Replace(rows, "2.5", "1e300", 1), ":3: value"},
		"infinity":             {good, strings.Replace(rows, "2.5", "Inf", 1), "number"},
		"a time that is not":   {good, strings.Replace(rows, "2014-04-10 07:05:00", "soon", 1), "not a time"},
		"time that goes back":  {good, rows + "2014-04-10 05:15:00,5\n", "goes back"},
		"a row that is longer": {good, rows + "2014-04-10 07:15:00,5,6\n", "wrong number of fields"},
		"no rows":              {good, "timestamp,value\n", "no rows"},
		"nothing":              {good, "", "empty"},
	} {
		if _, err := Open(dir(t, map[string]string{windowsFile: c.windows, "a/one.csv": c.rows})); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), windowsFile) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a directory that is not there was read")
	}
	d := dir(t, map[string]string{windowsFile: good, "a/one.csv.gz": rows + strings.Repeat("2014-04-10 07:15:00,5\n", 3000)})
	path := filepath.Join(d, "a/one.csv.gz")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("half a file: %v", err)
	}
	if err := os.WriteFile(path, []byte("plain"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d); err == nil || !strings.Contains(err.Error(), "one.csv.gz") {
		t.Errorf("no gzip: %v", err)
	}
}
