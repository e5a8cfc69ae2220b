package cli

import (
	"os"
	"strings"
	"testing"
)

// TestMetricsAreDocumented holds docs/metrics.md to the catalogue.
func TestMetricsAreDocumented(t *testing.T) {
	table, err := run(t, "metrics", "--markdown")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(doc), "\n\n"+table) {
		t.Error("docs/metrics.md is not what the catalogue says: put the output of 'tardigrade metrics --markdown' under its first paragraph")
	}
}
