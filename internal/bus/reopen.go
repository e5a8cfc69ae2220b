package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The embedded server writes nothing more to a stream of which a write once failed, as on a
// full disk: what it has in memory of the stream may not be what is on the disk. What it
// acknowledged is there. Once there is room, JetStream is started anew within the server, which
// reads its files as after a crash; connections stay. A cluster looks after itself.
const (
	// streamsEvery is how often the server is asked which streams it cannot write.
	streamsEvery = time.Second
	// reopenEvery is how often JetStream is started anew at most: what is wrong with the disk may
	// be no lack of room.
	reopenEvery = time.Minute
)

// ErrUnwritable is wrapped by the errors of writes that were refused because an earlier one to
// the same stream failed.
var ErrUnwritable = errors.New("the bus cannot be written")

// unwritable is a stream that takes no writes.
type unwritable struct {
	since time.Time
	why   string
}

// Unwritable says which tables and streams of the embedded server take no writes, since when, why,
// and what to do; "" where there is none.
func (b *Bus) Unwritable() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(b.unwritable)) {
		all = append(all, b.unwritable[name].say(name))
	}
	if all == nil {
		return ""
	}
	return strings.Join(all, "; ") + ": " + b.cure()
}

// writable returns [ErrUnwritable] while the stream takes no writes.
func (b *Bus) writable(stream string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range []string{stream, ""} {
		if u, ok := b.unwritable[name]; ok {
			return fmt.Errorf("%w: %s: %s", ErrUnwritable, u.say(name), b.cure())
		}
	}
	return nil
}

// wrote is the error of a write to a stream, with the reason where that is known.
func (b *Bus) wrote(stream string, err error) error {
	if err == nil {
		return nil
	}
	if why := b.writable(stream); why != nil {
		return fmt.Errorf("%w: %w", why, err)
	}
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: %s: %w", ErrUnwritable, leaderless, err)
	}
	return err
}

const leaderless = "the stream has no leader: most servers of the cluster must run"

// Leaderless says why an external cluster cannot store anything now, "" where it can.
func (b *Bus) Leaderless(ctx context.Context) string {
	if b.server != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := b.JS.Stream(ctx, StreamAudit)
	if err != nil {
		return fmt.Sprintf("%s (%v)", leaderless, err)
	}
	if c := s.CachedInfo().Cluster; c != nil && c.Leader == "" {
		return leaderless
	}
	return ""
}

func (u unwritable) say(stream string) string {
	what := "the stream " + stream
	if table, ok := strings.CutPrefix(stream, tablePrefix); ok {
		what = "the table " + table
	} else if files, ok := strings.CutPrefix(stream, filesPrefix); ok {
		what = "the store of files " + files
	} else if stream == "" {
		what = "the whole bus"
	}
	return fmt.Sprintf("%s takes no writes since %s (%s)", what, u.since.UTC().Format(time.RFC3339), u.why)
}

// The names of the streams behind tables and files begin with these.
const (
	tablePrefix = "KV_"
	filesPrefix = "OBJ_"
)

// lookAtStreams asks the server which streams it cannot write, and starts JetStream anew where
// there is room for it.
func (b *Bus) lookAtStreams(now time.Time, room bool) {
	if !b.takeStock(now) || !room || now.Sub(b.reopenedAt) < reopenEvery {
		return
	}
	b.reopenedAt = now
	b.log.Warn("there is room on the disk: opening the bus anew", "because", b.Unwritable())
	begin := time.Now()
	closed := func(why string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		u, known := b.unwritable[""]
		if !known {
			u.since = begin
		}
		u.why = why
		b.unwritable[""] = u
	}
	closed("it is being opened anew")
	if err := b.reopen(); err != nil {
		closed(fmt.Sprintf("opening it anew failed: %v", err))
		b.log.Error("the bus could not be opened anew: "+b.cure(), "err", err)
		return
	}
	b.mu.Lock()
	close(b.reopened) // those who follow tables and streams look again
	b.reopened = make(chan struct{})
	b.mu.Unlock()
	if !b.takeStock(now) {
		b.log.Info("the bus takes writes again", "took", time.Since(begin).Round(time.Millisecond))
	}
}

// takeStock notes which streams cannot be written now, and says whether there is one.
func (b *Bus) takeStock(now time.Time) bool {
	found := make(map[string]string)
	for _, e := range b.server.Healthz(&server.HealthzOptions{Details: true}).Errors {
		switch e.Type {
		case server.HealthzErrorStream:
			_, why, ok := strings.Cut(e.Error, "write error: ")
			if !ok {
				why = e.Error
			}
			found[e.Stream] = why
		case server.HealthzErrorJetStream:
			found[""] = e.Error
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.unwritable, func(stream string, _ unwritable) bool { return found[stream] == "" })
	for stream, why := range found {
		if _, known := b.unwritable[stream]; !known {
			b.unwritable[stream] = unwritable{now, why}
			b.log.Error(b.unwritable[stream].say(stream) + ": " + b.cure())
		}
	}
	return len(found) > 0
}

func (b *Bus) cure() string {
	return fmt.Sprintf("make room on the disk of %s, or mend it; the bus is opened anew by itself then", b.dir)
}

// reopen starts JetStream anew within the server.
func (b *Bus) reopen() error {
	if err := b.server.ShutdownJetStream(); err != nil {
		return err
	}
	cfg := b.jetStream
	err := b.server.EnableJetStream(&cfg)
	if err != nil {
		// It is half open now, in which state it would not be opened the next time.
		err = errors.Join(err, b.server.ShutdownJetStream())
	}
	return err
}

// again is closed when JetStream was started anew.
func (b *Bus) again() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reopened
}
