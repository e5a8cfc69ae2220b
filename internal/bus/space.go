package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// The embedded server stops for good when its disk is full. So before that, while there
// is a reserve for commands, state and audit, the stream of samples takes no more: agents
// keep their samples until there is room again.
const (
	// mostReserve bounds the reserve, which is a fifth of the file system.
	mostReserve = 128 << 20
	// spaceEvery is how often the disk is looked at.
	spaceEvery = 100 * time.Millisecond
)

// WatchSpace looks after the disk of the embedded server until ctx ends. With an
// external one it has nothing to do.
func (b *Bus) WatchSpace(ctx context.Context) error {
	if b.server == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		if err := b.lookAtSpace(ctx); err != nil && ctx.Err() == nil {
			b.log.Error("the disk of the bus cannot be looked after", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Full says why no samples are taken, "" if they are.
func (b *Bus) Full() string {
	if why := b.full.Load(); why != nil {
		return *why
	}
	return ""
}

// ErrFull is wrapped by the errors of what takes much room, while there is little.
var ErrFull = errors.New("the disk is nearly full")

// Room returns [ErrFull] while no samples are taken.
func (b *Bus) Room() error {
	if why := b.Full(); why != "" {
		return fmt.Errorf("%w: %s", ErrFull, why)
	}
	return nil
}

func (b *Bus) lookAtSpace(ctx context.Context) error {
	var s unix.Statfs_t
	if err := unix.Statfs(b.dir, &s); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", b.dir, err)
	}
	free, total := s.Bavail*uint64(s.Bsize), s.Blocks*uint64(s.Bsize)
	reserve := min(total/5, mostReserve)
	full := b.Full() != ""
	switch {
	case !full && free < reserve:
		stream, err := b.JS.Stream(ctx, StreamSamples)
		if err != nil {
			return err
		}
		held := b.samples
		held.Discard, held.MaxBytes = jetstream.DiscardNew, max(int64(stream.CachedInfo().State.Bytes), 1)
		if _, err := b.JS.UpdateStream(ctx, held); err != nil {
			return fmt.Errorf("hold the stream of samples: %w", err)
		}
		why := fmt.Sprintf("the disk of %s has %d MiB left: no samples are taken, and agents keep theirs; make room", b.dir, free>>20)
		b.full.Store(&why)
		b.log.Error(why)
	case full && free > 2*reserve:
		if _, err := b.JS.UpdateStream(ctx, b.samples); err != nil {
			return fmt.Errorf("take samples again: %w", err)
		}
		b.full.Store(nil)
		b.log.Info("there is room on the disk again: samples are taken")
	}
	return nil
}
