package agent

import (
	"slices"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	// recentFor is how far back the samples go that a diagnosis gets, and recentEvery the
	// least time between two of them.
	recentFor   = 30 * time.Minute
	recentEvery = 5 * time.Second
)

// recent keeps the newest samples of the host. It is safe for concurrent use.
type recent struct {
	mu   sync.Mutex
	kept []fleet.Sample
}

func (r *recent) add(s fleet.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.kept); n > 0 {
		switch since := s.Time.Sub(r.kept[n-1].Time); {
		case since < 0: // the clock was set back
			r.kept = nil
		case since < recentEvery:
			return
		}
	}
	s.Values = slices.Clone(s.Values)
	r.kept = append(r.kept, s)
	old := 0
	for old < len(r.kept) && s.Time.Sub(r.kept[old].Time) > recentFor {
		old++
	}
	r.kept = slices.Delete(r.kept, 0, old)
}

// all returns them, oldest first.
func (r *recent) all() []fleet.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.kept)
}
