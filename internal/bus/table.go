package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Table is a key-value bucket of JSON records with a local copy that follows it.
// Reads come from the copy and may be a moment old; decide only by [Table.Update],
// which compares revisions. It is safe for concurrent use.
type Table[T any] struct {
	bus *Bus
	kv  jetstream.KeyValue

	mu      sync.RWMutex
	records map[string]record[T]
	changed func(key string, value T)
}

type record[T any] struct {
	value    T
	revision uint64
}

// OpenTable opens or makes the bucket and waits until the copy is complete.
// changed, if not nil, is called in order for the changes after that; a record that changes again at
// once may be told of only as it is then.
func OpenTable[T any](ctx context.Context, b *Bus, bucket string, changed func(key string, value T)) (*Table[T], error) {
	kv, err := b.JS.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, History: 1, Storage: jetstream.FileStorage, Replicas: b.replicas,
	})
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", bucket, err)
	}
	again := b.again()
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch table %s: %w", bucket, err)
	}
	t := &Table[T]{bus: b, kv: kv, records: make(map[string]record[T]), changed: changed}
	ready := make(chan struct{})
	go t.follow(ctx, w, again, ready)
	select {
	case <-ready:
		return t, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("open table %s: %w", bucket, ctx.Err())
	}
}

// follow keeps the copy up to date until ctx ends. ready is closed once it is complete.
func (t *Table[T]) follow(ctx context.Context, w jetstream.KeyWatcher, again <-chan struct{}, ready chan struct{}) {
	initial := true
	var seen uint64 // the last revision that came
	for {
		var e jetstream.KeyValueEntry
		var open bool
		select {
		case <-ctx.Done():
			w.Stop()
			return
		case e, open = <-w.Updates():
		case <-again: // the server forgot the watcher
		}
		if !open {
			w.Stop()
			if w, again = t.watchAgain(ctx, seen); w == nil {
				return
			}
			continue
		}
		if e == nil {
			if initial {
				initial = false
				close(ready)
			}
			continue
		}
		seen = e.Revision()
		if e.Operation() != jetstream.KeyValuePut {
			t.mu.Lock()
			delete(t.records, e.Key())
			t.mu.Unlock()
			continue
		}
		var v T
		if err := json.Unmarshal(e.Value(), &v); err != nil {
			t.bus.log.Error("a record cannot be read and is left out", "bucket", t.kv.Bucket(), "key", e.Key(), "err", err)
			continue
		}
		t.keep(e.Key(), v, e.Revision())
		if !initial && t.changed != nil {
			t.changed(e.Key(), v)
		}
	}
}

// watchAgain watches the bucket from the revision after seen on. The watcher is nil where ctx or
// the connection ended.
func (t *Table[T]) watchAgain(ctx context.Context, seen uint64) (jetstream.KeyWatcher, <-chan struct{}) {
	for {
		again := t.bus.again()
		w, err := t.kv.WatchAll(ctx, jetstream.ResumeFromRevision(seen+1))
		if err == nil {
			return w, again
		}
		if t.bus.Conn.IsClosed() || !pause(ctx, time.Second) {
			return nil, nil
		}
		t.bus.log.Warn("a table cannot be followed, trying again", "bucket", t.kv.Bucket(), "err", err)
	}
}

func (t *Table[T]) keep(key string, v T, revision uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records[key].revision < revision {
		t.records[key] = record[T]{v, revision}
	}
}

// Find returns the local copy of a record.
func (t *Table[T]) Find(key string) (v T, revision uint64, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, ok := t.records[key]
	return r.value, r.revision, ok
}

// All returns the local copies, ordered by key.
func (t *Table[T]) All() []T {
	out := []T{}
	t.Each(func(_ string, v T, _ uint64) { out = append(out, v) })
	return out
}

// Each calls f for every local copy and its revision, ordered by key.
func (t *Table[T]) Each(f func(key string, v T, revision uint64)) {
	t.mu.RLock()
	records := maps.Clone(t.records)
	t.mu.RUnlock()
	for _, k := range slices.Sorted(maps.Keys(records)) {
		f(k, records[k].value, records[k].revision)
	}
}

// Load reads a record from the bus itself.
func (t *Table[T]) Load(ctx context.Context, key string) (v T, revision uint64, err error) {
	e, err := t.kv.Get(ctx, key)
	// Of a key that cannot be, there is no record either: keys come from addresses.
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return v, 0, fmt.Errorf("%s %q: %w", t.kv.Bucket(), key, ErrNotFound)
	}
	if err != nil {
		return v, 0, fmt.Errorf("read %s %q: %w", t.kv.Bucket(), key, err)
	}
	if err := json.Unmarshal(e.Value(), &v); err != nil {
		return v, 0, fmt.Errorf("read %s %q: %w", t.kv.Bucket(), key, err)
	}
	return v, e.Revision(), nil
}

// Create makes a record that must not exist yet; otherwise the error is [ErrConflict].
func (t *Table[T]) Create(ctx context.Context, key string, v T) (revision uint64, err error) {
	return t.write(key, v, func(data []byte) (uint64, error) { return t.kv.Create(ctx, key, data) })
}

// Update replaces the record if its revision is still the given one; otherwise
// the error is [ErrConflict].
func (t *Table[T]) Update(ctx context.Context, key string, v T, revision uint64) (uint64, error) {
	return t.write(key, v, func(data []byte) (uint64, error) { return t.kv.Update(ctx, key, data, revision) })
}

// Put writes the record whatever is there.
func (t *Table[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return t.write(key, v, func(data []byte) (uint64, error) { return t.kv.Put(ctx, key, data) })
}

// Change loads a record, lets f change it, and stores it, again and again until
// nobody else interfered. An error of f ends it.
func (t *Table[T]) Change(ctx context.Context, key string, f func(*T) error) (T, error) {
	for {
		v, revision, err := t.Load(ctx, key)
		if err != nil {
			return v, err
		}
		if err := f(&v); err != nil {
			return v, err
		}
		if _, err = t.Update(ctx, key, v, revision); !errors.Is(err, ErrConflict) {
			return v, err
		}
	}
}

// Delete removes a record; that there is none is not an error.
func (t *Table[T]) Delete(ctx context.Context, key string) error {
	_, revision, _ := t.Find(key)
	if err := t.bus.writable(tablePrefix + t.kv.Bucket()); err != nil {
		return fmt.Errorf("delete %s %q: %w", t.kv.Bucket(), key, err)
	}
	t.bus.onWrite(t.kv.Bucket(), false)
	err := t.kv.Delete(ctx, key)
	t.bus.onWrite(t.kv.Bucket(), true)
	if err = t.bus.wrote(tablePrefix+t.kv.Bucket(), err); err != nil {
		return fmt.Errorf("delete %s %q: %w", t.kv.Bucket(), key, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records[key].revision <= revision {
		delete(t.records, key)
	}
	return nil
}

func (t *Table[T]) write(key string, v T, put func([]byte) (uint64, error)) (uint64, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("write %s %q: %w", t.kv.Bucket(), key, err)
	}
	if err := t.bus.writable(tablePrefix + t.kv.Bucket()); err != nil {
		return 0, fmt.Errorf("write %s %q: %w", t.kv.Bucket(), key, err)
	}
	t.bus.onWrite(t.kv.Bucket(), false)
	revision, err := put(data)
	t.bus.onWrite(t.kv.Bucket(), true)
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return 0, fmt.Errorf("%s %q: %w", t.kv.Bucket(), key, ErrConflict)
	}
	if err = t.bus.wrote(tablePrefix+t.kv.Bucket(), err); err != nil {
		return 0, fmt.Errorf("write %s %q: %w", t.kv.Bucket(), key, err)
	}
	t.keep(key, v, revision)
	return revision, nil
}
