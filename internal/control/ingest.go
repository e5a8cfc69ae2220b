package control

import (
	"context"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// ingest drains the sample stream into a telemetry store.
type ingest struct {
	bus   *bus.Bus
	write func(context.Context, []fleet.Sample) error
}

// ingestBatch is how many samples are written at once.
const ingestBatch = 500

func (i *ingest) run(ctx context.Context) error { return i.bus.Ingest(ctx, ingestBatch, i.write) }

// openHistory decides where telemetry is read from and written to.
func (p *Plane) openHistory(context.Context) error {
	p.history = streamHistory{p.bus}
	return nil
}
