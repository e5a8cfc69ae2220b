package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Leases hands out exclusive, expiring rights with fencing tokens. The token is
// the revision at which the lease was made; it grows with every lease of a
// bucket, also across expiry and restarts.
type Leases struct {
	bus    *Bus
	kv     jetstream.KeyValue
	bucket string
	ttl    time.Duration
}

// Lease is one held right. It is not safe for concurrent use.
type Lease struct {
	Key string
	// Token is the fencing token.
	Token    uint64
	revision uint64
}

// OpenLeases opens or makes the bucket; a lease that is not renewed ends after ttl.
func OpenLeases(ctx context.Context, b *Bus, bucket string, ttl time.Duration) (*Leases, error) {
	kv, err := b.JS.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, History: 1, Storage: jetstream.FileStorage, Replicas: b.replicas, LimitMarkerTTL: time.Hour,
	})
	if err != nil {
		return nil, fmt.Errorf("open leases %s: %w", bucket, err)
	}
	return &Leases{bus: b, kv: kv, bucket: bucket, ttl: ttl}, nil
}

// Outgrow makes all tokens from now on larger than any before, also than those that this bus does not know
// because it was made anew or is an older copy: they begin with the time. Nobody may hold a lease, nor take one
// meanwhile.
func (l *Leases) Outgrow(ctx context.Context, now time.Time) error {
	s, err := l.bus.JS.Stream(ctx, tablePrefix+l.bucket)
	if err == nil && s.CachedInfo().State.LastSeq < uint64(now.UnixMilli()) {
		err = s.Purge(ctx, jetstream.WithPurgeSequence(uint64(now.UnixMilli())))
	}
	if err != nil {
		return fmt.Errorf("make room for new tokens in %s: %w", l.bucket, err)
	}
	return nil
}

// Acquire takes the lease of key for owner, or answers [ErrConflict] where
// somebody holds it.
func (l *Leases) Acquire(ctx context.Context, key, owner string) (*Lease, error) {
	if err := l.bus.writable(tablePrefix + l.bucket); err != nil {
		return nil, fmt.Errorf("lease of %s: %w", key, err)
	}
	l.bus.onWrite(l.bucket, false)
	defer l.bus.onWrite(l.bucket, true)
	revision, err := l.kv.Create(ctx, key, []byte(owner), jetstream.KeyTTL(l.ttl))
	if errors.Is(err, jetstream.ErrKeyExists) {
		return nil, fmt.Errorf("lease of %s: %w", key, ErrConflict)
	}
	if err = l.bus.wrote(tablePrefix+l.bucket, err); err != nil {
		return nil, fmt.Errorf("lease of %s: %w", key, err)
	}
	return &Lease{Key: key, Token: revision, revision: revision}, nil
}

// Renew starts the lease's time anew. [ErrConflict] means that it was lost.
func (l *Leases) Renew(ctx context.Context, lease *Lease, owner string) error {
	if err := l.bus.writable(tablePrefix + l.bucket); err != nil {
		return fmt.Errorf("renew the lease of %s: %w", lease.Key, err)
	}
	l.bus.onWrite(l.bucket, false)
	defer l.bus.onWrite(l.bucket, true)
	// KeyValue.Update would drop the TTL, so publish what it does, with one.
	msg := &nats.Msg{Subject: "$KV." + l.bucket + "." + lease.Key, Data: []byte(owner), Header: nats.Header{
		jetstream.MsgTTLHeader:              {l.ttl.String()},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(lease.revision, 10)},
	}}
	ack, err := l.bus.JS.PublishMsg(ctx, msg)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return fmt.Errorf("lease of %s: %w", lease.Key, ErrConflict)
	}
	if err = l.bus.wrote(tablePrefix+l.bucket, err); err != nil {
		return fmt.Errorf("renew the lease of %s: %w", lease.Key, err)
	}
	lease.revision = ack.Sequence
	return nil
}

// Holder returns the owner of key's lease and its last revision; [ErrNotFound]
// where nobody holds it.
func (l *Leases) Holder(ctx context.Context, key string) (owner string, revision uint64, err error) {
	e, err := l.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return "", 0, fmt.Errorf("lease of %s: %w", key, ErrNotFound)
	}
	if err != nil {
		return "", 0, fmt.Errorf("lease of %s: %w", key, err)
	}
	return string(e.Value()), e.Revision(), nil
}

// Holders returns the owner of each lease that is held, by key.
func (l *Leases) Holders(ctx context.Context) (map[string]string, error) {
	keys, err := l.kv.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the leases: %w", err)
	}
	out := make(map[string]string)
	for key := range keys.Keys() {
		owner, _, err := l.Holder(ctx, key)
		if errors.Is(err, ErrNotFound) {
			continue // it ended
		}
		if err != nil {
			return nil, err
		}
		out[key] = owner
	}
	return out, nil
}

// Adopt returns the lease of key if owner holds it, for a process that restarted
// under the same name; its token is the given one.
func (l *Leases) Adopt(ctx context.Context, key, owner string, token uint64) (*Lease, error) {
	holder, revision, err := l.Holder(ctx, key)
	if err != nil {
		return nil, err
	}
	if holder != owner {
		return nil, fmt.Errorf("lease of %s is held by %s: %w", key, holder, ErrConflict)
	}
	return &Lease{Key: key, Token: token, revision: revision}, nil
}

// Release ends the lease at once. A lease that was lost already is no error.
func (l *Leases) Release(ctx context.Context, lease *Lease) error {
	if err := l.bus.writable(tablePrefix + l.bucket); err != nil {
		return fmt.Errorf("release the lease of %s: %w", lease.Key, err)
	}
	l.bus.onWrite(l.bucket, false)
	defer l.bus.onWrite(l.bucket, true)
	err := l.kv.Delete(ctx, lease.Key, jetstream.LastRevision(lease.revision))
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return nil
	}
	return err
}
