// Package journal is an append-only file of records that survives crashes: a
// record that [Journal.Append] accepted is on disk, whatever happens next.
//
// The file begins with the 8 bytes "TGJRNL" and a format version, big endian. Each
// record is a frame: length of the payload (4 bytes, little endian), CRC-32C of the
// payload (4 bytes), payload. A crash can tear only the last frame, since each one
// is synced before the next begins; a torn tail is cut off when the file is opened.
// A damaged frame with an intact one after it is no torn tail, but corruption, and
// reported as [ErrCorrupt].
package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Version is the version of the file format that this code writes.
const Version = 1

// MaxRecord is the largest payload in bytes.
const MaxRecord = 1 << 20

const (
	headerSize = 8
	frameSize  = 8
)

var (
	// ErrCorrupt means that a record that was once on disk is damaged. The journal
	// cannot be trusted; a person has to look at it.
	ErrCorrupt = errors.New("the journal is damaged")
	// ErrNewer means that a newer release wrote the journal.
	ErrNewer = errors.New("the journal was written by a newer version")
	// ErrFull means that there is no room for the record. The journal is as it was.
	ErrFull = errors.New("no space left for the journal")
	// ErrBroken means that an earlier write failed in a way that leaves the end of
	// the file unknown. Open the journal anew.
	ErrBroken = errors.New("the journal broke at an earlier write")
)

var table = crc32.MakeTable(crc32.Castagnoli)

// File is what a journal needs of its file; *os.File has it.
type File interface {
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

// Journal is an open journal. It is not safe for concurrent use.
type Journal struct {
	root *os.Root
	name string
	f    File
	file *os.File // what f writes to
	size int64
	err  error
	wrap func(File) File
}

// Options are for tests of what happens when the disk fails.
type Options struct {
	// Wrap, if not nil, stands between the journal and its files.
	Wrap func(File) File
}

// Open opens or makes the journal called name in root and returns its records,
// oldest first. The journal keeps root, but does not close it.
func Open(root *os.Root, name string, o Options) (*Journal, [][]byte, error) {
	j := &Journal{root: root, name: name, wrap: o.Wrap}
	if j.wrap == nil {
		j.wrap = func(f File) File { return f }
	}
	path := filepath.Join(root.Name(), name)
	// What a compaction left behind when it was interrupted was never in force.
	if err := root.Remove(name + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("read journal %s: %w", path, err)
	}
	records, good, err := Decode(data)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("journal %s: %w", path, err)
	}
	j.f, j.file = j.wrap(f), f
	if good == 0 {
		if err := j.begin(); err != nil {
			f.Close()
			return nil, nil, err
		}
		return j, nil, nil
	}
	if good < int64(len(data)) {
		if err := errors.Join(j.f.Truncate(good), j.f.Sync()); err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("cut the torn end off journal %s: %w", path, err)
		}
	}
	j.size = good
	return j, records, nil
}

func header() []byte { return append([]byte("TGJRNL"), 0, Version) }

// begin writes the header of a new file and makes its name durable.
func (j *Journal) begin() error {
	if err := j.f.Truncate(0); err != nil {
		return j.failure("begin", err)
	}
	if _, err := j.f.WriteAt(header(), 0); err != nil {
		return j.failure("begin", err)
	}
	if err := j.f.Sync(); err != nil {
		return j.failure("begin", err)
	}
	j.size = headerSize
	return j.syncDir()
}

func (j *Journal) syncDir() error {
	d, err := j.root.Open(".")
	if err != nil {
		return fmt.Errorf("sync the directory of the journal: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the directory of the journal: %w", err)
	}
	return nil
}

func (j *Journal) failure(what string, err error) error {
	path := filepath.Join(j.root.Name(), j.name)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s journal %s: %w: free some space, nothing was changed on this host: %w", what, path, ErrFull, err)
	}
	return fmt.Errorf("%s journal %s: %w", what, path, err)
}

// Size is the length of the file in bytes.
func (j *Journal) Size() int64 { return j.size }

// Append adds a record of 1 to [MaxRecord] bytes and returns once it is on disk.
// After an error the record is not in the journal, unless the error is
// [ErrBroken]: then only opening the journal anew tells.
func (j *Journal) Append(payload []byte) error {
	if j.err != nil {
		return j.err
	}
	if len(payload) == 0 || len(payload) > MaxRecord {
		return fmt.Errorf("a record of the journal has 1 to %d bytes, not %d", MaxRecord, len(payload))
	}
	frame := appendFrame(nil, payload)
	if _, err := j.f.WriteAt(frame, j.size); err != nil {
		// What was written of the frame must not stay, or the next one would stand
		// behind garbage.
		if undo := errors.Join(j.f.Truncate(j.size), j.f.Sync()); undo != nil {
			return j.broken(errors.Join(err, undo))
		}
		return j.failure("write to", err)
	}
	// After a failed fsync the kernel may have dropped the pages: nobody knows what
	// is on disk.
	if err := j.f.Sync(); err != nil {
		return j.broken(err)
	}
	j.size += int64(len(frame))
	return nil
}

// Reserve makes room for n bytes of records, which [Journal.Append] has then however full the disk gets,
// until the next [Journal.Compact]. File systems that cannot do that make no promise.
func (j *Journal) Reserve(n int64) error {
	if j.err != nil {
		return j.err
	}
	err := unix.Fallocate(int(j.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, j.size, n)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return j.failure("make room in", err)
	}
	return nil
}

func (j *Journal) broken(err error) error {
	j.err = fmt.Errorf("journal %s: %w: %w", filepath.Join(j.root.Name(), j.name), ErrBroken, err)
	return j.err
}

func appendFrame(dst, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(payload, table))
	return append(dst, payload...)
}

// Compact replaces all records by the given ones, at once: after a crash the
// journal has either the old or the new ones.
func (j *Journal) Compact(records [][]byte) error {
	if j.err != nil {
		return j.err
	}
	f, err := j.root.OpenFile(j.name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return j.failure("compact", err)
	}
	file := j.wrap(f)
	data := header()
	for _, r := range records {
		if len(r) == 0 || len(r) > MaxRecord {
			file.Close()
			return fmt.Errorf("a record of the journal has 1 to %d bytes, not %d", MaxRecord, len(r))
		}
		data = appendFrame(data, r)
	}
	_, err = file.WriteAt(data, 0)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = j.root.Rename(j.name+".new", j.name)
	}
	if err != nil {
		file.Close()
		j.root.Remove(j.name + ".new")
		return j.failure("compact", err)
	}
	if err := j.syncDir(); err != nil {
		file.Close()
		return j.broken(err)
	}
	j.f.Close()
	j.f, j.file, j.size = file, f, int64(len(data))
	return nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.f.Close() }

// Decode returns the records of a journal's bytes, and how many bytes of it are
// good: what follows is a torn tail. 0 means that even the header is torn or that
// data is empty.
func Decode(data []byte) (records [][]byte, good int64, err error) {
	if len(data) < headerSize {
		if bytes.HasPrefix(header(), data) || len(bytes.Trim(data, "\x00")) == 0 {
			return nil, 0, nil
		}
		return nil, 0, fmt.Errorf("%w: it does not begin as one", ErrCorrupt)
	}
	if len(bytes.Trim(data, "\x00")) == 0 {
		return nil, 0, nil
	}
	if !bytes.HasPrefix(data, []byte("TGJRNL")) {
		return nil, 0, fmt.Errorf("%w: it does not begin as one", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(data[6:8]); v != Version {
		if v > Version {
			return nil, 0, fmt.Errorf("%w: format %d, this one reads up to %d", ErrNewer, v, Version)
		}
		return nil, 0, fmt.Errorf("%w: there is no format %d", ErrCorrupt, v)
	}
	at := headerSize
	for at < len(data) {
		payload, ok := frame(data[at:])
		if !ok {
			if next := intact(data, at+1); next >= 0 {
				return nil, 0, fmt.Errorf("%w: the record at byte %d cannot be read, but there is one at byte %d", ErrCorrupt, at, next)
			}
			break
		}
		records = append(records, payload)
		at += frameSize + len(payload)
	}
	return records, int64(at), nil
}

// frame reads the frame at the beginning of data.
func frame(data []byte) ([]byte, bool) {
	if len(data) < frameSize {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(data)
	if n == 0 || n > MaxRecord || uint64(n) > uint64(len(data)-frameSize) {
		return nil, false
	}
	payload := data[frameSize : frameSize+int(n)]
	return payload, crc32.Checksum(payload, table) == binary.LittleEndian.Uint32(data[4:])
}

// intact finds a frame that can be read at or after from, or returns -1. The work
// is bounded: where too much had to be tried, the first plausible frame counts as
// found, so that nothing is cut off that might have been a record.
func intact(data []byte, from int) int {
	budget := 64 << 20
	for at := from; at+frameSize < len(data); at++ {
		n := int(binary.LittleEndian.Uint32(data[at:]))
		if n == 0 || n > MaxRecord || n > len(data)-at-frameSize {
			continue
		}
		if budget -= n; budget < 0 {
			return at
		}
		if _, ok := frame(data[at:]); ok {
			return at
		}
	}
	return -1
}
