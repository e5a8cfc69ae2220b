package telemetry

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Limits of what is read, so that a hostile file does not take all memory.
const (
	mostHosts    = 1_000_000
	mostSeries   = 20_000
	mostRows     = 4096
	mostPayload  = 1 << 28
	mostManifest = 1 << 28
	mostParts    = 4 * mostHosts // of the manifest: what small ones come to in memory is much more
	mostLine     = 1 << 20
	mostVMs      = 10_000 // of a host
	mostSeconds  = 1e9
	// leastInterval is the shortest between two samples, in seconds: what alarms remember is counted in it.
	leastInterval = 0.001
)

// Set is a directory of telemetry, open for reading.
type Set struct {
	Manifest Manifest
	dir      string
	file     *os.File
	schema   *fleet.Schema
	blocks   [][]int64 // of each host, where its blocks begin
}

// Open reads the manifest and finds the blocks. The caller closes the set.
func Open(dir string) (*Set, error) {
	s := &Set{dir: dir}
	if err := s.open(); err != nil {
		if s.file != nil {
			s.file.Close()
		}
		return nil, fmt.Errorf("telemetry %s: %w", dir, err)
	}
	return s, nil
}

func (s *Set) open() error {
	for _, name := range []string{manifestFile, telemetryFile, faultsFile} {
		// A pipe would be waited for without end, and a device read.
		if info, err := os.Stat(filepath.Join(s.dir, name)); err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is a directory, a pipe or a device, not a file", name)
		}
	}
	info, err := os.Stat(filepath.Join(s.dir, manifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no %s: it is no directory of telemetry, or it was not written to its end", manifestFile)
	}
	if err != nil {
		return err
	}
	if info.Size() > mostManifest {
		return fmt.Errorf("%s has %d bytes, at most %d are possible", manifestFile, info.Size(), mostManifest)
	}
	data, err := os.ReadFile(filepath.Join(s.dir, manifestFile))
	if err != nil {
		return err
	}
	if n := bytes.Count(data, []byte{','}); n > mostParts {
		return fmt.Errorf("%s has %d parts, at most %d are possible", manifestFile, n, mostParts)
	}
	m := &s.Manifest
	if err := json.Unmarshal(data, m); err != nil {
		return fmt.Errorf("%s: %w", manifestFile, err)
	}
	switch {
	case m.Version != version:
		return fmt.Errorf("%s has version %d, this release reads %d", manifestFile, m.Version, version)
	case len(m.Hosts) < 1 || len(m.Hosts) > mostHosts || len(m.Series) < 1 || len(m.Series) > mostSeries:
		return fmt.Errorf("%s has %d hosts and %d series: 1 to %d and 1 to %d are possible", manifestFile, len(m.Hosts), len(m.Series), mostHosts, mostSeries)
	}
	for what, v := range map[string]float64{"interval_s": m.Interval, "calm_s": m.Calm} {
		if v < 0 || v > mostSeconds {
			return fmt.Errorf("%s: %s is %v, it must be a number of seconds from 0 to %v", manifestFile, what, v, mostSeconds)
		}
	}
	if m.Interval > 0 && m.Interval < leastInterval {
		return fmt.Errorf("%s: interval_s is %v, it must be at least %v, or 0 where it is not known", manifestFile, m.Interval, leastInterval)
	}
	for i, h := range m.Hosts {
		if err := h.ID.Validate(); err != nil {
			return fmt.Errorf("%s: host %d: %w", manifestFile, i, err)
		}
		if h.VMs < 0 || h.VMs > mostVMs {
			return fmt.Errorf("%s: host %s has %d VMs, 0 to %d are possible", manifestFile, h.ID, h.VMs, mostVMs)
		}
	}
	names := make(map[string]bool, len(m.Series))
	for _, name := range m.Series {
		if names[name] {
			return fmt.Errorf("%s: the series %q is there twice", manifestFile, name)
		}
		names[name] = true
	}
	if s.file, err = os.Open(filepath.Join(s.dir, telemetryFile)); err != nil {
		return err
	}
	if info, err = s.file.Stat(); err != nil {
		return err
	}
	if info.Size() != m.Bytes {
		return fmt.Errorf("%s has %d bytes, the manifest says %d: it is cut off or not of this manifest", telemetryFile, info.Size(), m.Bytes)
	}
	s.schema = fleet.NewSchema(m.Series)
	return s.scan(info.Size())
}

// scan finds the blocks by their heads.
func (s *Set) scan(size int64) error {
	var head [headBytes]byte
	if _, err := s.file.ReadAt(head[:len(magic)], 0); err != nil || string(head[:len(magic)]) != magic {
		return fmt.Errorf("%s does not begin with %s", telemetryFile, magic)
	}
	s.blocks = make([][]int64, len(s.Manifest.Hosts))
	n := 0
	for at := int64(len(magic)); at < size; n++ {
		host, _, length, _, err := s.head(at)
		if err != nil {
			return err
		}
		s.blocks[host] = append(s.blocks[host], at)
		if at += headBytes + int64(length); at > size {
			return fmt.Errorf("block %d of %s ends behind the end of the file", n, telemetryFile)
		}
	}
	if n != s.Manifest.Blocks {
		return fmt.Errorf("%s has %d blocks, the manifest says %d", telemetryFile, n, s.Manifest.Blocks)
	}
	return nil
}

func (s *Set) head(at int64) (host, rows, length int, sum uint32, err error) {
	var head [headBytes]byte
	if _, err := s.file.ReadAt(head[:], at); err != nil {
		return 0, 0, 0, 0, fmt.Errorf("block at %d: %w", at, err)
	}
	h, r, l := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:])
	if int64(h) >= int64(len(s.Manifest.Hosts)) || r < 1 || r > mostRows || l > mostPayload {
		return 0, 0, 0, 0, fmt.Errorf("block at %d is damaged: host %d, %d rows, %d bytes", at, h, r, l)
	}
	return int(h), int(r), int(l), binary.LittleEndian.Uint32(head[12:]), nil
}

// Close ends the reading.
func (s *Set) Close() error { return s.file.Close() }

// Schema is the schema of all samples.
func (s *Set) Schema() *fleet.Schema { return s.schema }

// Host yields the samples of a host, by its number in the manifest, in order. A sample's
// values are overwritten by the next. After an error it ends.
func (s *Set) Host(n int) iter.Seq2[fleet.Sample, error] {
	return func(yield func(fleet.Sample, error) bool) {
		if n < 0 || n >= len(s.blocks) {
			yield(fleet.Sample{}, fmt.Errorf("telemetry %s: there is no host %d", s.dir, n))
			return
		}
		d, err := newDecoder(len(s.Manifest.Series))
		if err != nil {
			yield(fleet.Sample{}, err)
			return
		}
		defer d.z.Close()
		sample := fleet.Sample{Host: s.Manifest.Hosts[n].ID, Simulated: true, Schema: s.schema, Values: make([]float64, s.schema.Len())}
		for _, at := range s.blocks[n] {
			_, rows, length, sum, err := s.head(at)
			if err == nil {
				payload := make([]byte, length)
				if _, err = s.file.ReadAt(payload, at+headBytes); err == nil {
					err = d.decode(payload, n, rows, sum)
				}
			}
			if err != nil {
				yield(fleet.Sample{}, fmt.Errorf("telemetry %s: host %s, block at %d: %w", s.dir, sample.Host, at, err))
				return
			}
			boot := -1
			for r := range rows {
				if boot+1 < len(d.boots) && d.boots[boot+1].row == r {
					boot++
				}
				sample.Time, sample.Boot = time.UnixMilli(d.at[r]).UTC(), d.boots[boot].id
				d.row(sample.Values, r)
				if !yield(sample, nil) {
					return
				}
			}
		}
	}
}

// decoder turns payloads into rows.
type decoder struct {
	z       *zstd.Decoder
	columns int
	rows    int
	raw     []byte
	at      []int64
	boots   []boot
	values  []byte
}

func newDecoder(columns int) (*decoder, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(mostPayload))
	return &decoder{z: z, columns: columns}, err
}

var errDamaged = errors.New("the block is damaged")

func (d *decoder) decode(payload []byte, host, rows int, sum uint32) error {
	if checksum(host, rows, payload) != sum {
		return fmt.Errorf("%w: its checksum is wrong", errDamaged)
	}
	// What it must come to is known but for the boots, so that a small block cannot
	// unfold without end.
	least := rows*8 + 2 + rows*d.columns*planes
	var frame zstd.Header
	if err := frame.Decode(payload); err != nil || !frame.HasFCS || frame.FrameContentSize < uint64(least) || frame.FrameContentSize > uint64(least+rows*(3+255)) {
		return fmt.Errorf("%w: its length is not that of %d rows with %d series", errDamaged, rows, d.columns)
	}
	var err error
	if d.raw, err = d.z.DecodeAll(payload, d.raw[:0]); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	raw := d.raw
	if len(raw) < least {
		return fmt.Errorf("%w: it is too short", errDamaged)
	}
	d.at, d.boots, d.rows = d.at[:0], d.boots[:0], rows
	last := int64(0)
	for r := range rows {
		last += int64(binary.LittleEndian.Uint64(raw[8*r:]))
		d.at = append(d.at, last)
	}
	raw = raw[8*rows:]
	n := int(binary.LittleEndian.Uint16(raw))
	raw = raw[2:]
	for i := range n {
		if len(raw) < 3 || len(raw) < 3+int(raw[2]) {
			return fmt.Errorf("%w: its boots are cut off", errDamaged)
		}
		b := boot{int(binary.LittleEndian.Uint16(raw)), string(raw[3 : 3+int(raw[2])])}
		if i == 0 && b.row != 0 || i > 0 && b.row <= d.boots[i-1].row || b.row >= rows {
			return fmt.Errorf("%w: its boots are out of order", errDamaged)
		}
		d.boots = append(d.boots, b)
		raw = raw[3+int(raw[2]):]
	}
	if n == 0 || len(raw) != rows*d.columns*planes {
		return fmt.Errorf("%w: %d bytes of values, %d expected", errDamaged, len(raw), rows*d.columns*planes)
	}
	d.values = raw
	return nil
}

func (d *decoder) row(dst []float64, r int) {
	for c := range dst {
		at := c*planes*d.rows + r
		q := uint32(d.values[at])<<8 | uint32(d.values[at+d.rows])<<16 | uint32(d.values[at+2*d.rows])<<24
		dst[c] = float64(math.Float32frombits(q))
	}
}

// Faults calls decode with each line of the truth. A directory without truth has none.
func (s *Set) Faults(decode func(line []byte) error) error {
	f, err := os.Open(filepath.Join(s.dir, faultsFile))
	if errors.Is(err, os.ErrNotExist) {
		if s.Manifest.Faults > 0 {
			return fmt.Errorf("telemetry %s: %s is missing, the manifest says that it has %d lines", s.dir, faultsFile, s.Manifest.Faults)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.Reader(f))
	lines.Buffer(nil, mostLine)
	n := 0
	for lines.Scan() {
		n++
		if err := decode(lines.Bytes()); err != nil {
			return fmt.Errorf("telemetry %s: %s, line %d: %w", s.dir, faultsFile, n, err)
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("telemetry %s: %s, line %d: it is longer than %d MiB", s.dir, faultsFile, n+1, mostLine>>20)
	} else if err != nil {
		return fmt.Errorf("telemetry %s: %s: %w", s.dir, faultsFile, err)
	}
	if n != s.Manifest.Faults {
		return fmt.Errorf("telemetry %s: %s has %d lines, the manifest says %d", s.dir, faultsFile, n, s.Manifest.Faults)
	}
	return nil
}
