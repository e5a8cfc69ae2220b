package control

import (
	"context"
	"math"
	"strconv"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
)

// DeadLetters returns what InfluxDB refuses for good, oldest first.
func (p *Plane) DeadLetters(ctx context.Context, limit int) ([]api.DeadLetter, error) {
	var out []api.DeadLetter
	var d bus.Decoder
	err := p.bus.DeadLetters(ctx, func(s bus.DeadSample) bool {
		out = append(out, deadLetter(&d, s))
		return len(out) < limit
	})
	return out, problem(err)
}

// DeadLetter returns one of them.
func (p *Plane) DeadLetter(ctx context.Context, id string) (api.DeadLetter, error) {
	sequence, err := deadSequence(id)
	if err != nil {
		return api.DeadLetter{}, err
	}
	s, err := p.bus.DeadLetterAt(ctx, sequence)
	if err != nil {
		return api.DeadLetter{}, problem(err)
	}
	return deadLetter(new(bus.Decoder), s), nil
}

// RetryDeadLetter puts one back into the stream, from where it goes to InfluxDB again.
func (p *Plane) RetryDeadLetter(ctx context.Context, id, who string) error {
	sequence, err := deadSequence(id)
	if err != nil {
		return err
	}
	if err := p.bus.RetryDeadLetter(ctx, sequence); err != nil {
		return problem(err)
	}
	return problem(p.audit.Append(ctx, who, "retry-dead-letter", id, nil))
}

func deadSequence(id string) (uint64, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil || n == 0 {
		return 0, api.ErrNotFound.Errorf("there is no dead letter %q; /api/v1/deadletters lists them", id)
	}
	return n, nil
}

func deadLetter(d *bus.Decoder, s bus.DeadSample) api.DeadLetter {
	out := api.DeadLetter{ID: strconv.FormatUint(s.Sequence, 10), Time: s.Time, Host: s.Host, Reason: s.Reason, Bytes: len(s.Data), Samples: []api.DeadSample{}}
	samples, err := d.Decode(s.Data)
	if err != nil {
		return out
	}
	out.Simulated = samples[0].Simulated
	for _, x := range samples {
		one := api.DeadSample{Time: x.Time, Values: make(map[string]float64)}
		for i, name := range x.Schema.Names() {
			if v := x.Values[i]; !math.IsNaN(v) {
				one.Values[name] = v
			}
		}
		out.Samples = append(out.Samples, one)
	}
	return out
}
