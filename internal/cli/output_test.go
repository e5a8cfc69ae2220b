package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What others named is shown to a terminal, and not done by it.
func TestATerminalIsNotCommanded(t *testing.T) {
	for text, want := range map[string]string{
		"a\tb µs …\n":              "a\tb µs …\n",
		"\x1b]0;x\x07\x1b[31mred":  `\x1b]0;x\a\x1b[31mred`,
		"a\rb\x00\x7f":             `a\rb\x00\x7f`,
		"\u009b31m \u202egnp":      `\u009b31m \u202egnp`,
		"\x9b31m \xff":             `\x9b31m \xff`,
		strings.Repeat("日本", 1000): strings.Repeat("日本", 1000),
	} {
		if got := shown(text); got != want {
			t.Errorf("%q is shown as %q", text, got)
		}
	}
	if got := shownError(errors.New(strings.Repeat("日本", 10_000))); len(got) > longestError+3 || !strings.HasSuffix(got, "…") {
		t.Errorf("%d bytes", len(got))
	}
}

// A command whose answer nobody got is no success, though it did not look.
func TestALostAnswerIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	out := newOutput(full)
	fmt.Fprintln(out, "an answer")
	if !errors.Is(out.err, unix.ENOSPC) {
		t.Errorf("%v", out.err)
	}
}

// A device is written into; to put a file in its place would take it from everybody else. Behind a link
// the file changes, not the link.
func TestWritingAFile(t *testing.T) {
	dir := t.TempDir()
	pipe, link, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.Symlink("file", link), os.WriteFile(file, []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // does not wait for a writer
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, path := range []string{pipe, link} {
		if err := errors.Join(canWrite("--out", path), writeFile(path, []byte("new"))); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 3)
	if _, err := reader.Read(got); err != nil || string(got) != "new" {
		t.Errorf("the pipe has %q, %v", got, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "new" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); left != nil {
		t.Errorf("%v was left", left)
	}
}
