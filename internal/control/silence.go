package control

import (
	"context"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// watchSilence says when a host sends no fresh samples any more, and when it does again, until ctx ends:
// what fails without a warning gives no prediction, and followers would go on with its last one.
func (p *Plane) watchSilence(ctx context.Context) error {
	began := time.Now()
	const fresh, silent, ahead = "", "silent", "ahead"
	said := make(map[fleet.HostID]string)
	return regularly(ctx, time.Second, func(time.Time) {
		limit := p.policies.current().EvidenceMaxAge.D()
		if time.Since(began) < limit { // the past is read again, and agents connect again
			return
		}
		for _, h := range p.hosts.all() {
			prediction, sample, ok := p.predictions.find(h.ID, limit)
			now := fresh
			switch {
			case prediction.State == fleet.PredictionStale, !ok && time.Since(h.FirstSeen) > limit:
				now = silent
			case ok && time.Until(sample.Time) > limit:
				now = ahead
			}
			if now == said[h.ID] {
				continue
			}
			said[h.ID] = now
			switch {
			case now == fresh:
				p.log.Info("a host sends fresh samples again", "host", h.ID, "simulated", h.Simulated)
			case now == ahead:
				p.log.Warn("a host's clock is ahead: nothing is done to it before that is right", "host", h.ID, "simulated", h.Simulated, "last_sample", sample.Time)
			case time.Since(p.hosts.counted(h.ID)) < limit:
				p.log.Warn("a host's agent is there, and has sent no fresh sample: compare its clock, and look at its log", "host", h.ID, "simulated", h.Simulated, "last_sample", sample.Time)
			default:
				p.log.Warn("a host is silent: it, its agent or its network is down", "host", h.ID, "simulated", h.Simulated, "last_seen", h.LastSeen)
			}
			if ok && now == silent {
				p.events.emit("prediction", string(h.ID), prediction)
			}
		}
	})
}
