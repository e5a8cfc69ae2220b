package datadir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOneProcessAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "data")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("opened twice: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = Open(path)
	if err != nil {
		t.Fatalf("after it was closed: %v", err)
	}
	d.Close()
}

func TestADirectoryOfANewerReleaseIsRefused(t *testing.T) {
	for content, want := range map[string]string{"2\n": "newer release", "hello": "not a data directory", "": "not a data directory", "-1": "not a data directory"} {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, "format"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("format %q: error is %v, want one that says %q", content, err, want)
		}
	}
}

func TestADirectoryThatCannotBeWrittenIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below"), "/proc/tardigrade"} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "--data") {
			t.Errorf("%s: error is %v, want one that says what to do", path, err)
		}
	}
}
