package notebooks_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNotebooksRun runs the code of each notebook as one program, in which each cell with %% is a function
// and a stand-in takes the place of the kernel's display. 'make notebooks' does it with the kernel.
func TestNotebooksRun(t *testing.T) {
	paths, err := filepath.Glob("*.ipynb")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%v, %v", paths, err)
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			program, cells := assemble(t, path)
			source := filepath.Join(t.TempDir(), "main.go")
			if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			wd, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			// Seen as a file of this module, so that it may import what it needs.
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(wd, "cells", "main.go"): source}})
			if err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(t.TempDir(), "overlay.json")
			if err := os.WriteFile(config, overlay, 0o600); err != nil {
				t.Fatal(err)
			}
			binary := filepath.Join(t.TempDir(), "notebook")
			if out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", config, "-o", binary, "./cells").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			cmd := exec.CommandContext(t.Context(), binary)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if n := strings.Count(string(out), "markdown: ## "); n < cells {
				t.Errorf("%d cells show %d sections:\n%s", cells, n, out)
			}
			if !strings.Contains(string(out), "svg: <svg") {
				t.Errorf("no plot is shown:\n%s", out)
			}
		})
	}
}

var imports = regexp.MustCompile(`(?s)^import \(\n(.*?)\n\)\n`)

// assemble makes a program of a notebook, and counts the cells that do something.
func assemble(t *testing.T, path string) (string, int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var notebook struct {
		Cells []struct {
			Kind    string            `json:"cell_type"`
			Source  []string          `json:"source"`
			Outputs []json.RawMessage `json:"outputs"`
		} `json:"cells"`
		Metadata struct {
			Kernel struct {
				Name string `json:"name"`
			} `json:"kernelspec"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(data, &notebook); err != nil {
		t.Fatal(err)
	}
	if notebook.Metadata.Kernel.Name != "gonb" {
		t.Errorf("the kernel is %q", notebook.Metadata.Kernel.Name)
	}
	var head, body, run strings.Builder
	n, pinned := 0, false
	for _, c := range notebook.Cells {
		if c.Kind != "code" {
			continue
		}
		if len(c.Outputs) > 0 {
			t.Error("a cell is stored with its output: clear it")
		}
		source := strings.Join(c.Source, "") + "\n"
		switch {
		case strings.HasPrefix(source, "!*"):
			pinned = strings.Contains(source, "go mod edit") && n == 0
		case strings.HasPrefix(source, "%%\n"):
			fmt.Fprintf(&body, "func cell%d() {\n%s}\n", n, strings.TrimPrefix(source, "%%\n"))
			fmt.Fprintf(&run, "\tcell%d()\n", n)
			n++
		default:
			if m := imports.FindStringSubmatch(source); m != nil {
				head.WriteString(m[1] + "\n")
				source = source[len(m[0]):]
			}
			body.WriteString(source)
		}
	}
	if !pinned {
		t.Error("the first cell does not pin versions")
	}
	listed := strings.Replace(head.String(), "\t\"github.com/janpfeifer/gonb/gonbui\"\n", "", 1)
	return "package main\n\nimport (\n\tdisplayed \"fmt\"\n" + listed + ")\n\n" + body.String() + `
type display struct{}

func (display) DisplayMarkdown(s string) { displayed.Println("markdown: " + s) }
func (display) DisplaySvg(s string)      { displayed.Println("svg: " + s[:60]) }

var gonbui display

func main() {
` + run.String() + "}\n", n
}
