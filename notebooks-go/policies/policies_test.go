package policies

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestThePageTellsWhatWasTried makes a smaller page, of another seed than the one that is kept.
func TestThePageTellsWhatWasTried(t *testing.T) {
	p, err := Page(t.Context(), Size{Hosts: 40, Days: 6, TrainHosts: 50, TrainDays: 8, Logs: 3, Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	lost := map[string]float64{}
	for _, row := range p.Sections[0].Tables[0].Rows {
		if lost[row[0]], err = strconv.ParseFloat(row[1], 64); err != nil {
			t.Fatal(err)
		}
	}
	if len(lost) != 7 || !(lost["hindsight"] < lost["reactive"]) || !(lost["ours"] < lost["reactive"]) {
		t.Errorf("%v", lost)
	}
	if row := p.Sections[0].Tables[1].Rows[0]; strings.Join(row, " ") != "reactive 0 0 0 0" {
		t.Errorf("who waits for the crash acts: %v", row)
	}
	if n := len(p.Sections[1].Tables[0].Rows); n != 3*len(lengths) {
		t.Errorf("%d estimates", n)
	}
	files, err := p.Render()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if len(data) > 100_000 {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		if _, err := os.Stat(filepath.Join("..", "pages", name)); err != nil {
			t.Errorf("%v: run make pages", err)
		}
	}
}
