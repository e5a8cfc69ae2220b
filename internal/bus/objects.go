package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Objects is a bucket of files that are read and written whole. It is safe for concurrent use.
type Objects struct {
	bus    *Bus
	bucket string
	store  jetstream.ObjectStore
}

// OpenObjects opens or makes a bucket.
func OpenObjects(ctx context.Context, b *Bus, bucket string) (*Objects, error) {
	store, err := b.JS.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: bucket, Replicas: b.replicas, Storage: jetstream.FileStorage})
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", bucket, err)
	}
	return &Objects{b, bucket, store}, nil
}

// Put writes a file, in place of one with the same name. While the disk is nearly full it returns
// [ErrFull], so that what is left is there for what is small; see also [ErrUnwritable].
func (o *Objects) Put(ctx context.Context, name string, data []byte) error {
	if err := o.bus.Room(); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	stream := filesPrefix + o.bucket
	if err := o.bus.writable(stream); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	_, err := o.store.PutBytes(ctx, name, data)
	if err = o.bus.wrote(stream, err); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

// Get reads a file, or returns [ErrNotFound].
func (o *Objects) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := o.store.GetBytes(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// Delete removes a file; that there is none is not an error.
func (o *Objects) Delete(ctx context.Context, name string) error {
	if err := o.store.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// List returns the names of the files.
func (o *Objects) List(ctx context.Context) ([]string, error) {
	all, err := o.store.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	var out []string
	for _, i := range all {
		out = append(out, i.Name)
	}
	return out, nil
}
