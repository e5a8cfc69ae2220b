package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Record samples this machine as [RunHost] does, and gives the samples to write until ctx
// ends or write fails. Nothing is sent, and nothing acts.
func Record(ctx context.Context, c config.Agent, id fleet.HostID, write func(fleet.Sample) error, log *slog.Logger) error {
	services := newServices(c, log)
	defer services.Close()
	names := services.Names()
	health := &healthWatch{services: services}
	cfg := collector.Config{Host: id, Interval: c.Interval.D(), Units: names, UnitHealth: health.latest}
	if len(names) > 0 {
		cfg.UnitStats = unitStats{services}
	}
	sampler, err := collector.New(cfg)
	if err != nil {
		return err
	}
	defer sampler.Close()
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { health.run(ctx, c.Interval.D()) })
	tick := time.NewTicker(c.Interval.D())
	defer tick.Stop()
	hung := make(map[string]bool)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s, reports := sampler.Sample(ctx)
		logSources(log, hung, reports)
		if err := write(s); err != nil {
			return err
		}
	}
}
