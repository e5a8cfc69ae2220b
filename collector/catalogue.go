package collector

import (
	"fmt"
	"io"
	"strings"
)

// Kind says how a metric's value behaves.
type Kind string

// The kinds of metrics.
const (
	// KindGauge is a value at the instant of the sample.
	KindGauge Kind = "gauge"
	// KindRate is a kernel counter's growth per second since the sample before.
	KindRate Kind = "rate"
	// KindRatio is a share in 0..1.
	KindRatio Kind = "ratio"
	// KindState is 0 (no) or 1 (yes).
	KindState Kind = "state"
)

// Metric is one entry of the catalogue.
type Metric struct {
	// Name is snake_case and ends with its unit, such as memory_available_bytes.
	Name string `json:"name"`
	// Unit of the value: "bytes", "seconds", "ratio", "1" (a number of things),
	// "celsius", or one of them per second ("bytes/s", "1/s").
	Unit string `json:"unit"`
	Kind Kind   `json:"kind"`
	// Help is its meaning, in a sentence for a person.
	Help string `json:"help"`
	// Source is where it comes from: a library call or a kernel file.
	Source string `json:"source"`
	// Instance says what the metric has one series for each of: "cpu", "disk",
	// "filesystem", "nic", "unit" or "vm". Empty for a metric of the whole host.
	Instance string `json:"instance,omitempty"`
	// Group is the name of the source that samples it, as in [SourceReport].
	Group string `json:"group"`
}

// Catalogue returns every metric that this package can sample, in the order of
// the columns of a sample. The caller owns the slice.
func Catalogue() []Metric {
	var all []Metric
	seen := make(map[string]bool)
	for _, s := range descriptions() {
		for _, m := range s.metrics {
			if seen[m.Name] { // another source fills in where the first one is absent
				continue
			}
			seen[m.Name] = true
			m.Group = s.name
			all = append(all, m)
		}
	}
	return all
}

// WriteTable writes the catalogue as a Markdown table.
func WriteTable(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| metric | unit | kind | of each | meaning | from |\n|---|---|---|---|---|---|\n")
	for _, m := range Catalogue() {
		of := m.Instance
		if of == "" {
			of = "host"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", m.Name, m.Unit, m.Kind, of, m.Help, m.Source)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// gauge, rate, ratio and state shorten the tables of the sources.
func gauge(name, unit, help, source string) Metric {
	return Metric{Name: name, Unit: unit, Kind: KindGauge, Help: help, Source: source}
}

func rate(name, unit, help, source string) Metric {
	return Metric{Name: name, Unit: unit, Kind: KindRate, Help: help, Source: source}
}

func ratio(name, help, source string) Metric {
	return Metric{Name: name, Unit: "ratio", Kind: KindRatio, Help: help, Source: source}
}

func state(name, help, source string) Metric {
	return Metric{Name: name, Unit: "1", Kind: KindState, Help: help, Source: source}
}

// each marks metrics as having one series for each instance.
func each(instance string, metrics ...Metric) []Metric {
	for i := range metrics {
		metrics[i].Instance = instance
	}
	return metrics
}
