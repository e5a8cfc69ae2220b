// Package spool is a queue of records on disk, first in, first out, of bounded size.
// It holds what cannot be sent now.
//
// A record that [Spool.Append] took is on disk and survives the end of the process and
// of the machine. A crash in the middle of an append leaves a torn record, which is cut
// off when the spool is opened next. What [Spool.Release] gave free may come again after
// a crash, or where the disk takes nothing any more, so that its reader must not mind a
// record that comes twice.
package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A segment is a file of records, each a little-endian uint32 with its length, a uint32
// with the CRC-32C of its bytes, and the bytes. The names of segments are numbers that
// grow; the file "head" says how many records at the front of which segment are gone.
const (
	headerBytes = 8
	suffix      = ".segment"
	// MaxRecord is the largest record, in bytes.
	MaxRecord = 1 << 20
	// segments is how many segments the limit is divided into, about: dropping the
	// oldest records drops one segment.
	segments     = 16
	leastSegment = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Spool is an open queue. It is not safe for concurrent use, and only one process may
// have it open.
type Spool struct {
	dir      string
	limit    int64
	segments []*segment // oldest first
	tail     *os.File   // of the last segment, nil before the first append
	next     uint64
	cutOff   int64
}

type segment struct {
	number   uint64
	bytes    int64
	records  int
	released int   // of the records, from the front
	offset   int64 // of the first that is not released
}

func (s *segment) name() string { return fmt.Sprintf("%016x%s", s.number, suffix) }

// Open opens the queue in a directory, which is made where it is missing. limit bounds
// the bytes on disk.
func Open(dir string, limit int64) (*Spool, error) {
	if limit < 2*leastSegment {
		return nil, fmt.Errorf("spool: a limit of %d bytes is too small, at least %d are needed", limit, 2*leastSegment)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &Spool{dir: dir, limit: limit}
	for _, e := range entries {
		text, ok := strings.CutSuffix(e.Name(), suffix)
		number, err := strconv.ParseUint(text, 16, 64)
		if !ok || err != nil || len(text) != 16 {
			continue
		}
		one, cutOff, err := scan(filepath.Join(dir, e.Name()), number)
		if err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
		s.cutOff += cutOff
		s.segments = append(s.segments, one)
		s.next = number + 1
	}
	s.head()
	s.prune()
	return s, nil
}

// CutOff is how many bytes were cut off when the queue was opened: what follows a record that is torn,
// as a crash leaves it, or damaged.
func (s *Spool) CutOff() int64 { return s.cutOff }

// scan counts the whole records of a segment and cuts off what follows them, so many bytes.
func scan(path string, number uint64) (*segment, int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	one := &segment{number: number}
	for rest := data; ; {
		record, after, ok := cut(rest)
		if !ok {
			break
		}
		one.records++
		one.bytes += headerBytes + int64(len(record))
		rest = after
	}
	if after := int64(len(data)) - one.bytes; after > 0 {
		return one, after, os.Truncate(path, one.bytes)
	}
	return one, 0, nil
}

func cut(data []byte) (record, rest []byte, ok bool) {
	if len(data) < headerBytes {
		return nil, nil, false
	}
	n, sum := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
	if n == 0 || n > MaxRecord || int(n) > len(data)-headerBytes {
		return nil, nil, false
	}
	record = data[headerBytes : headerBytes+int(n)]
	return record, data[headerBytes+int(n):], crc32.Checksum(record, castagnoli) == sum
}

// head reads how far the queue was released. Without a readable answer everything
// comes again.
func (s *Spool) head() {
	data, err := os.ReadFile(filepath.Join(s.dir, "head"))
	if err != nil {
		return
	}
	var number uint64
	var released int
	if n, err := fmt.Sscanf(string(data), "%x %d\n", &number, &released); n != 2 || err != nil {
		return
	}
	for _, one := range s.segments {
		switch {
		case one.number < number:
			one.released, one.offset = one.records, one.bytes
		case one.number == number && released <= one.records && released >= 0:
			file, err := os.ReadFile(filepath.Join(s.dir, one.name()))
			if err != nil {
				return
			}
			for range released {
				record, rest, ok := cut(file)
				if !ok {
					return
				}
				one.released++
				one.offset += headerBytes + int64(len(record))
				file = rest
			}
		}
	}
}

// prune removes the segments that are released whole.
func (s *Spool) prune() (err error) {
	for len(s.segments) > 0 && s.segments[0].released == s.segments[0].records {
		err = errors.Join(err, s.remove())
	}
	return err
}

// remove removes the oldest segment. One whose file stays comes again when the queue is opened anew.
func (s *Spool) remove() error {
	one := s.segments[0]
	s.forget()
	if err := os.Remove(filepath.Join(s.dir, one.name())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// forget takes the oldest segment out of the queue, but not from the disk.
func (s *Spool) forget() {
	if len(s.segments) == 1 {
		s.closeTail()
	}
	s.segments = s.segments[1:]
}

func (s *Spool) closeTail() {
	if s.tail != nil {
		s.tail.Close()
		s.tail = nil
	}
}

// Len is how many records wait.
func (s *Spool) Len() int {
	n := 0
	for _, one := range s.segments {
		n += one.records - one.released
	}
	return n
}

// Bytes is how much the queue takes on disk.
func (s *Spool) Bytes() int64 {
	var n int64
	for _, one := range s.segments {
		n += one.bytes
	}
	return n
}

// Append puts records at the end and returns once they are on disk. Where the limit
// is reached the oldest records are dropped, and it says how many. After an error none
// of the records is in the queue.
func (s *Spool) Append(records ...[]byte) (dropped int, err error) {
	var data []byte
	for _, r := range records {
		if len(r) == 0 || len(r) > MaxRecord {
			return 0, fmt.Errorf("spool: a record of %d bytes, 1 to %d are possible", len(r), MaxRecord)
		}
		data = binary.LittleEndian.AppendUint32(data, uint32(len(r)))
		data = binary.LittleEndian.AppendUint32(data, crc32.Checksum(r, castagnoli))
		data = append(data, r...)
	}
	if len(data) == 0 {
		return 0, nil
	}
	if int64(len(data)) > s.limit {
		return 0, fmt.Errorf("spool: records of %d bytes do not fit into its %d", len(data), s.limit)
	}
	for len(s.segments) > 0 && s.Bytes()+int64(len(data)) > s.limit {
		dropped += s.segments[0].records - s.segments[0].released
		if err := s.remove(); err != nil {
			return dropped, err
		}
	}
	if err := s.write(data, len(records)); err != nil {
		return dropped, fmt.Errorf("spool: %w", err)
	}
	return dropped, nil
}

func (s *Spool) write(data []byte, records int) error {
	size := max(s.limit/segments, leastSegment)
	var one *segment
	if n := len(s.segments); n > 0 && s.tail != nil && s.segments[n-1].bytes < size {
		one = s.segments[n-1]
	} else {
		s.closeTail()
		one = &segment{number: s.next}
		f, err := os.OpenFile(filepath.Join(s.dir, one.name()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		s.next++
		s.tail = f
		s.segments = append(s.segments, one)
		if err := syncDir(s.dir); err != nil {
			return err
		}
	}
	_, err := s.tail.WriteAt(data, one.bytes)
	if err == nil {
		err = s.tail.Sync()
	}
	if err != nil {
		// What is there of it must not come before the next record.
		err = errors.Join(err, s.tail.Truncate(one.bytes))
		s.closeTail()
		if one.records == 0 { // a full disk would get one with each attempt
			s.segments = s.segments[:len(s.segments)-1]
			_ = os.Remove(filepath.Join(s.dir, one.name()))
		}
		return err
	}
	one.bytes += int64(len(data))
	one.records += records
	return nil
}

// Peek returns up to n of the oldest records, in order, at most about maxBytes of them
// but at least one. They stay in the queue until they are released. With an error the oldest
// cannot be read; [Spool.Skip] gives it up.
func (s *Spool) Peek(n, maxBytes int) ([][]byte, error) {
	var out [][]byte
	total := 0
	for _, one := range s.segments {
		if one.released == one.records {
			continue
		}
		data, err := s.read(one)
		for left := one.records - one.released; err == nil && left > 0 && len(out) < n && (len(out) == 0 || total < maxBytes); left-- {
			record, rest, ok := cut(data)
			if !ok {
				err = s.changed(one)
				break
			}
			out, data, total = append(out, record), rest, total+len(record)
		}
		if err != nil && len(out) == 0 {
			return nil, err
		}
		if err != nil || len(out) == n || total >= maxBytes {
			break
		}
	}
	return out, nil
}

// read returns the records of a segment that are not released.
func (s *Spool) read(one *segment) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.dir, one.name()))
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	defer f.Close()
	data := make([]byte, one.bytes-one.offset)
	if _, err := f.ReadAt(data, one.offset); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	return data, nil
}

func (s *Spool) changed(one *segment) error {
	return fmt.Errorf("spool: %s changed under the queue", one.name())
}

// Skip takes the oldest segment out of the queue and says how many records were in it. What can be read of
// them comes again when the queue is opened anew.
func (s *Spool) Skip() int {
	if len(s.segments) == 0 {
		return 0
	}
	one := s.segments[0]
	s.forget()
	return one.records - one.released
}

// Release takes the n oldest records, which [Spool.Peek] returned, out of the queue. With an error they are
// out of it too, and come again when it is opened anew.
func (s *Spool) Release(n int) error {
	var failed error
	for _, one := range s.segments {
		if n == 0 {
			break
		}
		take := min(n, one.records-one.released)
		if take == 0 {
			continue
		}
		n -= take
		if one.released += take; one.released == one.records {
			continue
		}
		data, err := s.read(one)
		for i := 0; i < take && err == nil; i++ {
			record, rest, ok := cut(data)
			if !ok {
				err = s.changed(one)
			}
			one.offset += headerBytes + int64(len(record))
			data = rest
		}
		failed = errors.Join(failed, err)
	}
	if failed = errors.Join(failed, s.prune()); failed != nil {
		return failed
	}
	if len(s.segments) == 0 {
		return nil
	}
	// Not synced: after a crash of the machine the records come again.
	front := s.segments[0]
	path := filepath.Join(s.dir, "head")
	if err := os.WriteFile(path+".new", fmt.Appendf(nil, "%x %d\n", front.number, front.released), 0o600); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// Close closes the queue; the records stay.
func (s *Spool) Close() { s.closeTail() }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
