package host

import (
	"context"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	// watchEvery is the least time between two looks at the guests; they take at most
	// one part in watchShare of the time.
	watchEvery = 50 * time.Millisecond
	watchShare = 4
)

// watch looks at the guests again and again until the returned function is called. That
// says for how long each guest was not seen to run, at the longest. Nobody knows what was
// between two looks, so that this is never less than it was.
func (r *Runner) watch(ctx context.Context) (stop func() map[string]time.Duration) {
	s := sightings{seen: make(map[string]time.Time), gaps: make(map[string]time.Duration)}
	if r.cfg.Guests == nil {
		return func() map[string]time.Duration { return s.gaps }
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			begin := r.cfg.Clock()
			guests, err := r.guests(ctx)
			end := r.cfg.Clock()
			if err == nil {
				s.look(guests, begin, end)
			}
			if !sleep(ctx, max(watchEvery, (watchShare-1)*end.Sub(begin))) {
				return
			}
		}
	}()
	return func() map[string]time.Duration {
		cancel()
		<-done
		return s.gaps
	}
}

// sightings is what is known of guests that are looked at.
type sightings struct {
	seen map[string]time.Time
	gaps map[string]time.Duration
}

// look takes one look into account. A guest that runs was seen at some time of it.
func (s *sightings) look(guests []fleet.GuestReport, begin, end time.Time) {
	for _, g := range guests {
		if !g.Alive || g.State != "running" {
			continue
		}
		if last, ok := s.seen[g.ID]; ok {
			s.gaps[g.ID] = max(s.gaps[g.ID], end.Sub(last))
		}
		s.seen[g.ID] = begin
	}
}
