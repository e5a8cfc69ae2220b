package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// The embedded server writes no more to a stream that met a full disk (see reopen.go). So
// before that, while there is a reserve for commands, state and audit, the stream of samples
// takes no more: agents keep their samples until there is room again.
const (
	// mostReserve bounds the reserve, which is a fifth of the file system.
	mostReserve = 128 << 20
	// spaceEvery is how often the disk is looked at.
	spaceEvery = 100 * time.Millisecond
	// complainEvery bounds how often the log says that this does not work.
	complainEvery = 10 * time.Second
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
	var looked, complained time.Time
	for {
		room, err := b.lookAtSpace(ctx)
		if err != nil && ctx.Err() == nil && time.Since(complained) > complainEvery {
			complained = time.Now()
			b.log.Error("the disk of the bus cannot be looked after", "err", err)
		}
		if now := time.Now(); now.Sub(looked) >= streamsEvery {
			looked = now
			b.lookAtStreams(now, room)
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

// RoomFor is Room for a file of so many bytes.
func (b *Bus) RoomFor(bytes int64) error {
	err := b.Room()
	if err != nil || b.server == nil {
		return err
	}
	free, reserve, err := b.space()
	if err == nil && free < reserve+uint64(bytes) {
		err = fmt.Errorf("%w: the disk of %s has %d MiB left, and %d are to be stored; make room", ErrFull, b.dir, free>>20, bytes>>20)
	}
	return err
}

// space is what the disk has left, and what of that is to be left for commands, state and audit.
func (b *Bus) space() (free, reserve uint64, _ error) {
	var s unix.Statfs_t
	if err := unix.Statfs(b.dir, &s); err != nil {
		return 0, 0, fmt.Errorf("look at the disk of %s: %w", b.dir, err)
	}
	return s.Bavail * uint64(s.Bsize), min(s.Blocks*uint64(s.Bsize)/5, mostReserve), nil
}

// lookAtSpace holds the stream of samples or takes samples again. It says whether there is plenty
// of room.
func (b *Bus) lookAtSpace(ctx context.Context) (room bool, _ error) {
	free, reserve, err := b.space()
	if err != nil {
		return false, err
	}
	room = free > 2*reserve
	full := b.Full() != ""
	switch {
	case free < reserve && !b.held:
		if !full {
			why := fmt.Sprintf("the disk of %s has %d MiB left: no samples are taken, and agents keep theirs; make room", b.dir, free>>20)
			b.full.Store(&why)
			b.log.Error(why)
		}
		stream, err := b.JS.Stream(ctx, StreamSamples)
		if err != nil {
			return room, err
		}
		held := b.samples
		held.Discard, held.MaxBytes = jetstream.DiscardNew, max(int64(stream.CachedInfo().State.Bytes), 1)
		if _, err := b.JS.UpdateStream(ctx, held); err != nil {
			return room, fmt.Errorf("hold the stream of samples: %w", err)
		}
		b.held = true
	case full && room:
		if _, err := b.JS.UpdateStream(ctx, b.samples); err != nil {
			return room, fmt.Errorf("take samples again: %w", err)
		}
		b.held = false
		b.full.Store(nil)
		b.log.Info("there is room on the disk again: samples are taken")
	}
	return room, nil
}
