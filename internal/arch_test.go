// Package internal_test holds the rules that span packages.
package internal_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

const module = "github.com/tardigrade-recovery/tardigrade"

type pkg struct {
	ImportPath, Dir, Doc string
	GoFiles              []string
	Imports              []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Doc,GoFiles,Imports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// ban says that packages under one of From may not import what starts with Banned.
type ban struct {
	from    []string
	banned  []string
	allowed []string
	why     string
}

var sideways = []string{"collector", "model", "predictor", "executor", "api", "datasets"}

func bans() []ban {
	var out []ban
	for _, a := range sideways {
		for _, b := range sideways {
			if a != b {
				out = append(out, ban{from: []string{a}, banned: []string{module + "/" + b},
					why: "these packages share the words of internal/fleet only, so that a model reaches a driver through the guard alone"})
			}
		}
		out = append(out, ban{from: []string{a}, banned: []string{module + "/internal/"}, allowed: []string{module + "/internal/fleet", module + "/internal/loopback"},
			why: "internal/control and internal/cli adapt these packages to each other; they know nothing of the wiring"})
	}
	return append(out,
		ban{from: []string{"collector", "predictor", "executor", "api", "internal", "datasets", "main"}, banned: []string{"github.com/sjwhitworth/golearn"},
			why: "golearn panics, draws from the global random source and pulls a large module graph: model/golearn fences it in"},
		ban{from: []string{"model", "predictor", "executor", "api", "internal", "datasets", "main"}, banned: []string{"github.com/influxdata/influxdb-client-go"},
			why: "collector/influx alone knows how that client loses data and how not to"},
		ban{from: []string{"collector", "model", "predictor", "executor", "api", "datasets"}, banned: []string{"github.com/nats-io/"},
			why: "internal/bus alone knows how durable state is kept"},
		ban{from: append([]string{"internal", "main"}, sideways...), banned: []string{"gonum.org/v1/plot", module + "/notebooks-go"},
			why: "plots are for the analyses of notebooks-go; the binary has no use for fonts and canvases"},
		ban{from: []string{"collector"}, banned: []string{"os/exec"}, why: "sampling must not start processes on a host that may be failing"},
	)
}

func under(path string, dirs []string) bool {
	rel := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
	if rel == "" {
		rel = "main"
	}
	for _, d := range dirs {
		if rel == d || strings.HasPrefix(rel, d+"/") {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	all := packages(t)
	for _, b := range bans() {
		for _, p := range all {
			if !under(p.ImportPath, b.from) || strings.HasSuffix(p.ImportPath, "test") { // a package for tests alone
				continue
			}
			for _, i := range p.Imports {
				banned, allowed := false, false
				for _, x := range b.banned {
					banned = banned || i == strings.TrimSuffix(x, "/") || strings.HasPrefix(i, strings.TrimSuffix(x, "/")+"/")
				}
				for _, x := range b.allowed {
					allowed = allowed || i == x
				}
				if banned && !allowed {
					t.Errorf("%s imports %s: %s", p.ImportPath, i, b.why)
				}
			}
		}
	}
}

func TestEachPackageIsDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s (%s) has no package comment", p.ImportPath, filepath.Base(p.Dir))
		}
	}
}

// What a model looks at, and what the simulator calls it, is what hosts send.
func TestAllKnowTheCatalogue(t *testing.T) {
	known := make(map[string]bool)
	for _, m := range collector.Catalogue() {
		known[m.Name] = true
	}
	var simulated []string
	for _, s := range simulator.Series() {
		m, _ := fleet.SplitSeries(s)
		simulated = append(simulated, m)
	}
	for who, metrics := range map[string][]string{"the predictor": predictor.Metrics(), "model/feature": feature.Metrics(), "the simulator": simulated} {
		for _, m := range metrics {
			if !known[m] {
				t.Errorf("%s relies on the metric %q, which the collector's catalogue does not have", who, m)
			}
		}
	}
}
