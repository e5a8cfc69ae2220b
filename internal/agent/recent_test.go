package agent

import (
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func TestRecentIsBounded(t *testing.T) {
	r := &recent{}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	values := []float64{0}
	for i := range 7200 {
		values[0] = float64(i)
		r.add(fleet.Sample{Time: at.Add(time.Duration(i) * time.Second), Values: values})
	}
	all := r.all()
	if n := int(recentFor/recentEvery) + 1; len(all) != n {
		t.Fatalf("%d samples are kept, want %d", len(all), n)
	}
	if first, last := all[0].Values[0], all[len(all)-1].Values[0]; last-first != recentFor.Seconds() || last < 7190 {
		t.Errorf("from %v to %v", first, last)
	}
	r.add(fleet.Sample{Time: at, Values: values})
	if all := r.all(); len(all) != 1 {
		t.Errorf("%d samples are kept after the clock was set back", len(all))
	}
}
