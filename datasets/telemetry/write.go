package telemetry

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	magic   = "TGTELEM1"
	version = 1

	manifestFile  = "manifest.json"
	telemetryFile = "telemetry.bin"
	faultsFile    = "faults.jsonl"

	headBytes = 16
	planes    = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Manifest says what a directory holds.
type Manifest struct {
	Version int `json:"version"`
	// Source is what made it: a command line, or what was recorded.
	Source string `json:"source"`
	// Start is before the first sample, Interval the time between two of a host.
	Start    time.Time `json:"start"`
	Interval float64   `json:"interval_s"`
	// Calm is for how many seconds from its first sample on each host is sound at least; 0 where
	// that is not known.
	Calm    float64  `json:"calm_s,omitempty"`
	Series  []string `json:"series"`
	Hosts   []Host   `json:"hosts"`
	Samples int64    `json:"samples"`
	Blocks  int      `json:"blocks"`
	Bytes   int64    `json:"bytes"`
	Faults  int      `json:"faults"`
}

// Host is a host of a directory.
type Host struct {
	ID          fleet.HostID `json:"id"`
	FaultDomain string       `json:"fault_domain,omitempty"`
	VMs         int          `json:"vms"`
}

// Writer makes a directory. It is not safe for concurrent use.
type Writer struct {
	dir      string
	manifest Manifest
	file     *os.File
	out      *bufio.Writer
	buffers  []buffer // those that are filled
	full     []buffer // those that are encoded and written meanwhile
	rows     int      // of a block
	written  int64
	encoders []*encoder
	err      error
	made     bool // the directory was not there before
	whole    bool // Close was called, and wrote everything

	flushing sync.WaitGroup
	failed   error // of what was flushed, to be read when it is done
}

// buffer has the samples of a host that are not in a block yet.
type buffer struct {
	at     []int64
	values []float32 // row by row
	boots  []boot
	block  []byte
}

type boot struct {
	row int
	id  string
}

// Create begins a directory, which must not exist or be empty. m needs Source, Start,
// Interval, Series and Hosts; the rest is filled in.
func Create(dir string, m Manifest) (*Writer, error) {
	if len(m.Hosts) == 0 || len(m.Series) == 0 || len(m.Hosts) > mostHosts || len(m.Series) > mostSeries {
		return nil, fmt.Errorf("telemetry %s: %d hosts and %d series: 1 to %d and 1 to %d are possible", dir, len(m.Hosts), len(m.Series), mostHosts, mostSeries)
	}
	_, err := os.Lstat(dir)
	made := errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) > 0 {
		switch {
		case err != nil:
		case len(there) == 1 && there[0].Name() == telemetryFile:
			err = errors.New("what is in it was not written to its end, or is still being written; remove it, or name a new directory")
		default:
			err = errors.New("it is not empty; name a new directory")
		}
		return nil, fmt.Errorf("telemetry %s: %w", dir, err)
	}
	f, err := os.Create(filepath.Join(dir, telemetryFile))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	m.Version = version
	w := &Writer{dir: dir, made: made, manifest: m, file: f, out: bufio.NewWriterSize(f, 1<<20), buffers: make([]buffer, len(m.Hosts)), full: make([]buffer, len(m.Hosts))}
	// All buffers together take some 300 MB at most.
	w.rows = min(360, max(20, 40_000_000/(len(m.Hosts)*len(m.Series))))
	for range runtime.GOMAXPROCS(0) {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
		if err != nil {
			return nil, fmt.Errorf("telemetry: %w", err)
		}
		w.encoders = append(w.encoders, &encoder{z: z})
	}
	_, w.err = w.out.WriteString(magic)
	return w, nil
}

// Append adds the next sample of a host, by its number in the manifest. values has one for
// each series. An error of the disk is returned by a later call or by Close.
func (w *Writer) Append(host int, at time.Time, bootID string, values []float64) error {
	if host < 0 || host >= len(w.buffers) || len(values) != len(w.manifest.Series) || len(bootID) > 255 {
		return fmt.Errorf("telemetry %s: host %d of %d with %d values of %d: no such sample is possible", w.dir, host, len(w.buffers), len(values), len(w.manifest.Series))
	}
	if len(w.buffers[host].at) == w.rows {
		w.flush()
	}
	b := &w.buffers[host]
	if w.err != nil {
		return fmt.Errorf("telemetry %s: %w", w.dir, w.err)
	}
	if b.values == nil {
		b.values = make([]float32, 0, w.rows*len(values))
	}
	if n := len(b.boots); n == 0 || b.boots[n-1].id != bootID {
		b.boots = append(b.boots, boot{len(b.at), bootID})
	}
	b.at = append(b.at, at.UnixMilli())
	for _, v := range values {
		b.values = append(b.values, float32(v))
	}
	return nil
}

// flush begins to encode and write what is buffered, and goes on with the other buffers meanwhile.
func (w *Writer) flush() {
	w.wait()
	w.buffers, w.full = w.full, w.buffers
	w.flushing.Go(w.writeFull)
}

// wait waits for the end of the last flush.
func (w *Writer) wait() {
	w.flushing.Wait()
	if w.err == nil {
		w.err = w.failed
	}
}

// writeFull writes a block for each host that has samples, in the order of the hosts, however
// many workers encode them.
func (w *Writer) writeFull() {
	var wg sync.WaitGroup
	next := make(chan int)
	for _, e := range w.encoders {
		wg.Go(func() {
			for i := range next {
				w.full[i].block = e.encode(w.full[i].block[:0], i, &w.full[i], len(w.manifest.Series))
			}
		})
	}
	for i := range w.full {
		if len(w.full[i].at) > 0 {
			next <- i
		}
	}
	close(next)
	wg.Wait()
	for i := range w.full {
		b := &w.full[i]
		if len(b.at) == 0 {
			continue
		}
		if w.failed == nil {
			_, w.failed = w.out.Write(b.block)
		}
		w.manifest.Samples += int64(len(b.at))
		w.manifest.Blocks++
		w.written += int64(len(b.block))
		b.at, b.values, b.boots = b.at[:0], b.values[:0], b.boots[:0]
	}
}

// encoder turns a buffer into a block.
type encoder struct {
	z   *zstd.Encoder
	raw []byte
}

func (e *encoder) encode(dst []byte, host int, b *buffer, columns int) []byte {
	rows, raw := len(b.at), e.raw[:0]
	last := int64(0)
	for _, t := range b.at {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(t-last))
		last = t
	}
	raw = binary.LittleEndian.AppendUint16(raw, uint16(len(b.boots)))
	for _, x := range b.boots {
		raw = binary.LittleEndian.AppendUint16(raw, uint16(x.row))
		raw = append(append(raw, byte(len(x.id))), x.id...)
	}
	at := len(raw)
	if need := at + columns*planes*rows; cap(raw) < need {
		raw = append(make([]byte, 0, need), raw...)
	}
	raw = raw[:at+columns*planes*rows]
	for c := range columns {
		low := raw[at : at+rows : at+rows]
		mid := raw[at+rows : at+2*rows : at+2*rows]
		high := raw[at+2*rows : at+3*rows : at+3*rows]
		at += planes * rows
		for r := range low {
			q := quantise(b.values[r*columns+c])
			low[r], mid[r], high[r] = byte(q>>8), byte(q>>16), byte(q>>24)
		}
	}
	e.raw = raw
	dst = binary.LittleEndian.AppendUint32(dst, uint32(host))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(rows))
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = e.z.EncodeAll(raw, dst)
	payload := dst[headBytes:]
	binary.LittleEndian.PutUint32(dst[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(dst[12:], checksum(host, rows, payload))
	return dst
}

// checksum covers what a block is of, too.
func checksum(host, rows int, payload []byte) uint32 {
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], uint32(host))
	binary.LittleEndian.PutUint32(head[4:], uint32(rows))
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, payload)
}

// quantise rounds to 10 bits of mantissa, to even where it is in the middle.
func quantise(v float32) uint32 {
	b := math.Float32bits(v)
	if v != v {
		return 0x7fc00000
	}
	if b&0x7f800000 != 0x7f800000 { // not infinite
		b += 0xfff + b>>13&1
	}
	return b &^ 0x1fff
}

// Close writes what is buffered, the truth (a JSON value for each line; nil for none) and
// the manifest.
func (w *Writer) Close(faults []any) (Manifest, error) {
	w.flush()
	w.wait()
	err := w.err
	if err == nil {
		err = w.out.Flush()
	}
	w.manifest.Bytes = w.written + int64(len(magic))
	err = errors.Join(err, w.file.Close())
	if err == nil && faults != nil {
		w.manifest.Faults = len(faults)
		err = writeLines(filepath.Join(w.dir, faultsFile), faults)
	}
	if err == nil {
		var data []byte
		if data, err = json.MarshalIndent(w.manifest, "", " "); err == nil {
			err = os.WriteFile(filepath.Join(w.dir, manifestFile), append(data, '\n'), 0o644)
		}
	}
	if err != nil {
		return w.manifest, fmt.Errorf("telemetry %s: %w", w.dir, err)
	}
	w.whole = true
	return w.manifest, nil
}

// Discard removes what was written, and the directory if [Create] made it. After a Close
// without error it does nothing.
func (w *Writer) Discard() {
	if w.whole {
		return
	}
	w.wait()
	_ = w.file.Close()
	for _, name := range []string{telemetryFile, faultsFile, manifestFile} {
		_ = os.Remove(filepath.Join(w.dir, name))
	}
	if w.made {
		_ = os.Remove(w.dir)
	}
}

func writeLines(path string, values []any) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(f)
	encode := json.NewEncoder(out)
	for _, v := range values {
		if err = encode.Encode(v); err != nil {
			break
		}
	}
	return errors.Join(err, out.Flush(), f.Close())
}
