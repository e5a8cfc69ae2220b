package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// ingest drains the sample stream into InfluxDB. What InfluxDB refuses for good
// goes to the dead-letter stream; all else is tried until it is stored.
type ingest struct {
	bus    *bus.Bus
	client *influx.Client
	log    *slog.Logger

	mu      sync.Mutex
	failing error
}

func (i *ingest) run(ctx context.Context) error {
	defer i.client.Close()
	// Ask at once, so that a wrong token is said at the start and not first when
	// samples come.
	i.note(i.client.Check(ctx))
	return i.bus.Ingest(ctx, i.write)
}

func (i *ingest) write(ctx context.Context, samples []fleet.Sample) error {
	err := i.client.Write(ctx, samples)
	var failed *influx.WriteError
	if !errors.As(err, &failed) || failed.Cause != nil {
		i.note(err)
		return err // the whole batch comes again; what was stored is stored once
	}
	for _, r := range failed.Refused {
		s := &samples[r.Index]
		i.log.Warn("InfluxDB refused a sample for good", "host", s.Host, "time", s.Time, "err", r.Err)
		if err := i.bus.DeadLetter(ctx, string(s.Host), bus.EncodeSample(nil, s), r.Err.Error()); err != nil {
			return err
		}
	}
	i.note(nil)
	return nil
}

// note says once when InfluxDB fails, and when it is back.
func (i *ingest) note(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled):
		return
	case err != nil && i.failing == nil:
		i.log.Warn("InfluxDB does not take samples; they wait on the bus", "err", err)
	case err == nil && i.failing != nil:
		i.log.Info("InfluxDB takes samples again")
	}
	i.failing = err
}

func (i *ingest) err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.failing
}

// openHistory decides where telemetry is read from and written to.
func (p *Plane) openHistory() error {
	p.history = streamHistory{p.bus, func() []fleet.HostID {
		var out []fleet.HostID
		for _, h := range p.hosts.all() {
			out = append(out, h.ID)
		}
		return out
	}}
	c := p.cfg.Influx
	if c.URL == "" {
		return nil
	}
	client, err := influx.Open(influx.Config{URL: c.URL, Org: c.Org, Bucket: c.Bucket, Token: c.Token, CA: c.CA})
	if err != nil {
		return fmt.Errorf("influx: %w", err)
	}
	p.ingest = &ingest{bus: p.bus, client: client, log: p.log}
	p.history = influxHistory{client, p.history}
	return nil
}
