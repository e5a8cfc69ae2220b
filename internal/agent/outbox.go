package agent

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/spool"
)

const (
	// memorySamples bounds the samples that wait in memory; the oldest are dropped.
	memorySamples = 900
	// sendRecords and sendBytes bound what is read from the disk at once.
	sendRecords = 2000
	sendBytes   = 1 << 20
	// sendTimeout is how long the bus may take to answer.
	sendTimeout = 3 * time.Second
	// sayAfter is for how long the bus may take nothing before that is said.
	sayAfter = 15 * time.Second
	// retryAfter is the pause after the bus did not answer.
	retryAfter = 500 * time.Millisecond
)

// outbox is the samples on their way to the bus. While the bus answers, a sample goes
// straight from memory to it, so that a disk that hangs delays nothing. When it does
// not, what is in memory goes to the spool on disk, from where it is sent first once
// the bus is back. Where the spool cannot take it, it stays in memory as long as there
// is room.
type outbox struct {
	host  fleet.HostID
	spool *spool.Spool // nil: memory only. Used by send alone.
	log   *slog.Logger

	mu      sync.Mutex
	samples []*fleet.Sample
	lost    int
	some    chan struct{}

	decoder bus.Decoder
	// the spool took no samples, or did not let go of some, and that was said
	unkept, unreleased bool
	refused            time.Time // since when the bus takes nothing
	said               bool      // that it does not

	// accepted counts the samples that the bus or the disk took over from memory.
	accepted atomic.Int64
	// kept is how many records are on disk.
	kept atomic.Int64
}

// Feed sends samples from next, until it returns nil, on the same way as those of a
// host, and returns once the bus has all of them, or ctx ends. No more than some
// hundreds are in memory at a time. progress, if not nil, is told now and then how many
// of the first are safe, on the bus or on disk.
func Feed(ctx context.Context, id fleet.HostID, b *bus.Agent, kept *spool.Spool, log *slog.Logger, next func() *fleet.Sample, progress func(accepted int64)) error {
	out := &outbox{host: id, spool: kept, log: log, some: make(chan struct{}, 1)}
	out.kept.Store(int64(kept.Len()))
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { out.send(ctx, b.PublishSamples) })
	defer wg.Wait()
	defer stop()
	var given, told int64
	for s := next(); s != nil || out.accepted.Load() < given || !out.idle(); {
		accepted := out.accepted.Load()
		if progress != nil && accepted > told {
			progress(accepted)
			told = accepted
		}
		for s != nil && given-accepted < memorySamples*3/4 {
			out.put(s)
			given++
			s = next()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	if progress != nil {
		progress(given)
	}
	return nil
}

// idle tells whether nothing waits on disk.
func (b *outbox) idle() bool { return b.kept.Load() == 0 }

// put adds the newest sample. It never waits.
func (b *outbox) put(s *fleet.Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.samples) >= memorySamples {
		b.samples = append(b.samples[:0], b.samples[1:]...)
		b.lost++
	}
	b.samples = append(b.samples, s)
	select {
	case b.some <- struct{}{}:
	default:
	}
}

// take empties the memory.
func (b *outbox) take() []*fleet.Sample {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.samples
	b.samples = nil
	if b.lost > 0 {
		b.log.Warn("the oldest samples were dropped: neither the bus nor the disk took them", "host", b.host, "dropped", b.lost)
		b.lost = 0
	}
	return out
}

// giveBack puts samples back before those that came meanwhile.
func (b *outbox) giveBack(samples []*fleet.Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.samples = append(samples, b.samples...)
	if over := len(b.samples) - memorySamples; over > 0 {
		b.samples, b.lost = b.samples[over:], b.lost+over
	}
}

// send hands the samples to publish, in order, until ctx ends; what is left then is on
// disk. publish returns how many of the first it stored.
func (b *outbox) send(ctx context.Context, publish func(context.Context, []*fleet.Sample) (int, error)) {
	defer func() { b.keep(b.take()) }()
	try := publish
	publish = func(ctx context.Context, samples []*fleet.Sample) (int, error) {
		stored, err := try(ctx, samples)
		b.note(err)
		return stored, err
	}
	if b.spool != nil {
		b.kept.Store(int64(b.spool.Len()))
	}
	for {
		for b.waiting() {
			if !b.sendKept(ctx, publish) && !b.pause(ctx) {
				return
			}
		}
		samples := b.take()
		if len(samples) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-b.some:
			}
			continue
		}
		limited, cancel := context.WithTimeout(ctx, sendTimeout)
		stored, err := publish(limited, samples)
		cancel()
		b.accepted.Add(int64(stored))
		if err != nil {
			b.keep(samples[stored:])
			if !b.pause(ctx) {
				return
			}
		}
	}
}

// note says when the bus has taken nothing for a while, though it may be connected, and when it does again.
func (b *outbox) note(err error) {
	switch {
	case err == nil && b.said:
		b.log.Info("the bus takes samples again", "host", b.host)
		fallthrough
	case err == nil:
		b.refused, b.said = time.Time{}, false
	case b.refused.IsZero():
		b.refused = time.Now()
	case !b.said && time.Since(b.refused) > sayAfter:
		b.said = true
		b.log.Warn("the bus takes no samples: /readyz of the control plane says why; they are kept meanwhile", "host", b.host, "err", err)
	}
}

func (b *outbox) waiting() bool { return b.spool != nil && b.spool.Len() > 0 }

// pause waits a little, while what is sampled meanwhile goes to disk.
func (b *outbox) pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(retryAfter):
	}
	b.keep(b.take())
	return true
}

// keep puts samples on disk, or back into memory.
func (b *outbox) keep(samples []*fleet.Sample) {
	if len(samples) == 0 {
		return
	}
	if b.spool == nil {
		b.giveBack(samples)
		return
	}
	records := make([][]byte, len(samples))
	for i, s := range samples {
		records[i] = bus.EncodeSample(nil, s)
	}
	dropped, err := b.spool.Append(records...)
	if dropped > 0 {
		b.log.Warn("the spool is full: the oldest samples were dropped", "host", b.host, "dropped", dropped)
	}
	if err != nil {
		if !b.unkept {
			b.log.Error("samples cannot be kept on disk; they wait in memory", "host", b.host, "err", err)
		}
		b.unkept = true
		b.giveBack(samples)
		return
	}
	b.accepted.Add(int64(len(samples)))
	b.kept.Store(int64(b.spool.Len()))
	if b.unkept {
		b.log.Info("samples are kept on disk again", "host", b.host)
	}
	b.unkept = false
}

// sendKept sends the oldest samples on disk.
func (b *outbox) sendKept(ctx context.Context, publish func(context.Context, []*fleet.Sample) (int, error)) bool {
	records, err := b.spool.Peek(sendRecords, sendBytes)
	if err != nil { // a disk that fails must not keep its host from being watched
		b.log.Error("samples on disk cannot be read, and are left out", "host", b.host, "samples", b.spool.Skip(), "err", err)
		return true
	}
	var samples []*fleet.Sample
	ends := make([]int, 0, len(records)) // of each record, in samples
	for _, r := range records {
		decoded, err := b.decoder.Decode(r)
		if err != nil || decoded[0].Host != b.host {
			b.log.Error("a sample on disk is left out", "host", b.host, "of", hostOf(decoded), "err", err)
		} else {
			for i := range decoded {
				samples = append(samples, &decoded[i])
			}
		}
		ends = append(ends, len(samples))
	}
	limited, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	stored := 0
	if len(samples) > 0 {
		stored, err = publish(limited, samples)
	}
	done := 0
	for done < len(ends) && ends[done] <= stored {
		done++
	}
	if failed := b.spool.Release(done); failed != nil && !b.unreleased {
		b.log.Error("samples that were sent stay on disk; they come again after a restart", "host", b.host, "err", failed)
		b.unreleased = true
	}
	b.kept.Store(int64(b.spool.Len()))
	return err == nil
}

func hostOf(samples []fleet.Sample) fleet.HostID {
	if len(samples) == 0 {
		return ""
	}
	return samples[0].Host
}
