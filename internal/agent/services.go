package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/systemd"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

const (
	// discoverLimit bounds one look for the services of the host.
	discoverLimit = 10 * time.Second
	// discoverEvery is how often they are looked for.
	discoverEvery = time.Minute
)

// newServices is the services of this host, so far as they are configured.
func newServices(c config.Agent, log *slog.Logger) *systemd.Services {
	return systemd.New(systemd.Config{Units: configured(c), Exclude: c.Exclude, Log: log})
}

func configured(c config.Agent) []driver.Unit {
	var units []driver.Unit
	for _, u := range c.Units {
		h := u.Health
		units = append(units, driver.Unit{Name: u.Name, Health: driver.Health{
			TCP: h.TCP, HTTP: h.HTTP, Exec: h.Exec, DBus: h.DBus, ActiveFor: h.ActiveFor.D(), Timeout: h.Timeout.D(),
		}})
	}
	return units
}

// discover finds the services to restart: those of the configuration first.
func discover(ctx context.Context, s *systemd.Services, c config.Agent, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, discoverLimit)
	defer cancel()
	found, err := s.Discover(ctx, c.Include)
	if err != nil {
		return fmt.Errorf("discover the services of this host: %w", err)
	}
	units := configured(c)
	for _, f := range found {
		if f.Left == "" && !slices.ContainsFunc(units, func(u driver.Unit) bool { return u.Name == f.Name }) {
			units = append(units, f.Unit)
		}
	}
	before := s.Names()
	s.Use(units)
	if now := s.Names(); !slices.Equal(before, now) {
		log.Info("the services that a recycle restarts", "units", now)
	}
	return nil
}

// rediscover looks again and again, until ctx ends.
func rediscover(ctx context.Context, s *systemd.Services, c config.Agent, log *slog.Logger) {
	tick := time.NewTicker(discoverEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := discover(ctx, s, c, log); err != nil && ctx.Err() == nil {
			log.Warn("the services of this host are not known anew, those known before stay", "err", err)
		}
	}
}
