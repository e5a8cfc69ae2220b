package train

import (
	"context"
	"fmt"
	"iter"
	"math"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/history"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

var begin = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

// month is a host that sends a sample a minute for 30 days.
type month struct{ history.Source }

func (month) Samples(_ context.Context, id fleet.HostID) iter.Seq2[fleet.Sample, error] {
	return func(yield func(fleet.Sample, error) bool) {
		schema := fleet.NewSchema([]string{"load_1m"})
		for i := range 30 * 24 * 60 {
			s := fleet.Sample{Host: id, Time: begin.Add(time.Duration(i) * time.Minute), Schema: schema, Values: []float64{float64(i % 7)}}
			if !yield(s, nil) {
				return
			}
		}
	}
}

// A fleet that is too large is not refused: it is thinned, and what stays stands for all.
func TestALargeFleetIsThinned(t *testing.T) {
	const hosts, most = 10, 3000
	g := newGathering(most)
	for i := range hosts {
		id := fleet.HostID(fmt.Sprintf("h%d", i))
		// A disk that wears out for ten days and then fails its host.
		end := begin.Add(time.Duration(15+i) * 24 * time.Hour)
		wears := fleet.Incident{Host: id, Signature: fleet.SignatureDisk, Failed: true, Seen: end.Add(-10 * 24 * time.Hour), From: end, To: end}
		if err := g.host(t.Context(), month{}, id, []fleet.Incident{wears}, &registry.Header{}); err != nil {
			t.Fatal(err)
		}
	}
	n := len(g.X)
	if n > most || len(g.Failure) != n || len(g.Known) != n || len(g.Signature) != n || len(g.Weight) != n || len(g.Host) != n || len(g.at) != n {
		t.Fatalf("%d examples, at most %d", n, most)
	}
	var minutes [groups]float64
	of := make(map[string]int)
	for i, weight := range g.Weight {
		minutes[g.group[i]] += weight
		of[g.Host[i]]++
		k := int(g.Host[i][1] - '0')
		left := begin.Add(time.Duration(15+k) * 24 * time.Hour).Sub(g.at[i]).Seconds()
		want := math.Inf(1)
		if left >= 0 {
			want = left
		}
		if g.Failure[i] != want {
			t.Fatalf("%s at %s fails in %v s, not in %v s", g.Host[i], g.at[i], g.Failure[i], want)
		}
		if worn := left >= 0 && left <= 10*86400; (g.Signature[i] == string(fleet.SignatureDisk)) != worn {
			t.Fatalf("%s at %s, %v s before it fails, has the signature %s", g.Host[i], g.at[i], left, g.Signature[i])
		}
	}
	for group, want := range [groups]float64{quiet: hosts * 20 * 1440, faulty: hosts * (10*1440 - 60), failing: hosts * 60} {
		if math.Abs(minutes[group]/want-1) > 0.05 {
			t.Errorf("group %d stands for %v minutes, not %v", group, minutes[group], want)
		}
	}
	if len(of) != hosts {
		t.Errorf("of %d hosts some have no example: %v", hosts, of)
	}
}

// Before the cut nobody knows what came after it.
func TestWhatIsKnownAtACut(t *testing.T) {
	g := &gathering{at: []time.Time{begin, begin, begin.Add(2 * time.Hour)}}
	g.Examples = failure.Examples{Failure: []float64{1800, 7200, 60}, Known: []float64{9000, 9000, 9000}}
	e := g.knownAt(begin.Add(time.Hour))
	for i, want := range []struct{ fails, known float64 }{{1800, 3600}, {math.Inf(1), 3600}, {60, 9000}} {
		if e.Failure[i] != want.fails || e.Known[i] != want.known {
			t.Errorf("example %d fails after %v s of %v known, want %+v", i, e.Failure[i], e.Known[i], want)
		}
	}
	if g.Failure[1] != 7200 || g.Known[0] != 9000 {
		t.Error("what the examples say has changed")
	}
}
