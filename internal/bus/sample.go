package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Samples of one host travel together, self-describing and checksummed:
//
//	byte     version (1)
//	byte     flags: bit 0 simulated
//	string   host            a string is a uvarint length and its bytes
//	string   boot
//	uint64   FNV-1a of the names block, little-endian
//	string   names block: the series names joined by '\n'
//	uvarint  number of series
//	uvarint  number of samples
//	  varint   time, Unix nanoseconds
//	  float64  each value, little-endian; NaN is missing
//	uint32   CRC-32C of all before
//
// The hash lets a reader reuse the Schema of an earlier message without parsing
// the names again.
const sampleVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchBytes is how large a message of samples may become, about, so that it stays
// well under the payload limit of 1 MiB.
const batchBytes = 384 << 10

// EncodeSample appends the wire form of s to dst.
func EncodeSample(dst []byte, s *fleet.Sample) []byte {
	return new(encoder).encode(dst, []*fleet.Sample{s})
}

// alike tells whether two samples fit in one message.
func alike(a, b *fleet.Sample) bool {
	return a.Host == b.Host && a.Boot == b.Boot && a.Schema == b.Schema && a.Simulated == b.Simulated
}

// fitting is how many of the first samples fit in one message, at least 1.
func fitting(samples []*fleet.Sample) int {
	n := 1
	for n < len(samples) && alike(samples[0], samples[n]) && (n+1)*(8*len(samples[0].Values)+10) <= batchBytes {
		n++
	}
	return n
}

// encoder remembers the names block of the last schema.
type encoder struct {
	schema *fleet.Schema
	names  string
	hash   uint64
}

// encode appends samples that are alike, at least one.
func (e *encoder) encode(dst []byte, samples []*fleet.Sample) []byte {
	start, first := len(dst), samples[0]
	if e.schema != first.Schema || e.hash == 0 {
		e.schema, e.names = first.Schema, strings.Join(first.Schema.Names(), "\n")
		e.hash = hashNames(e.names)
	}
	flags := byte(0)
	if first.Simulated {
		flags |= 1
	}
	dst = slices.Grow(dst, 64+len(first.Host)+len(first.Boot)+len(e.names)+len(samples)*(8*len(first.Values)+10))
	dst = append(dst, sampleVersion, flags)
	dst = appendString(dst, string(first.Host))
	dst = appendString(dst, first.Boot)
	dst = binary.LittleEndian.AppendUint64(dst, e.hash)
	dst = appendString(dst, e.names)
	dst = binary.AppendUvarint(dst, uint64(len(first.Values)))
	dst = binary.AppendUvarint(dst, uint64(len(samples)))
	for _, s := range samples {
		dst = binary.AppendVarint(dst, s.Time.UnixNano())
		for _, v := range s.Values {
			dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
		}
	}
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func hashNames(names string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(names))
	return h.Sum64()
}

// errSample is wrapped by every decoding error.
var errSample = errors.New("damaged sample")

// Decoder decodes samples and shares schemas between them. It is safe for
// concurrent use; the zero value is ready.
type Decoder struct {
	mu      sync.Mutex
	schemas map[uint64]schemaEntry
}

type schemaEntry struct {
	names  string
	schema *fleet.Schema
}

// maxSchemas bounds the memory that hostile name blocks can take.
const maxSchemas = 4096

// Decode decodes the samples of one message, at least one. They share nothing with
// data.
func (d *Decoder) Decode(data []byte) ([]fleet.Sample, error) {
	fail := func(what string) ([]fleet.Sample, error) { return nil, fmt.Errorf("%w: %s", errSample, what) }
	if len(data) < 6 {
		return fail(fmt.Sprintf("%d bytes", len(data)))
	}
	if data[0] != sampleVersion {
		return fail(fmt.Sprintf("version %d, this release reads version %d", data[0], sampleVersion))
	}
	body, sum := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return fail("checksum does not match")
	}
	host, rest, ok := cutString(body[2:])
	boot, rest, ok2 := cutString(rest)
	if !ok || !ok2 || len(rest) < 8 {
		return fail("header")
	}
	one := fleet.Sample{Host: fleet.HostID(host), Boot: string(boot), Simulated: body[1]&1 != 0}
	if err := one.Host.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errSample, err)
	}
	hash, rest := binary.LittleEndian.Uint64(rest), rest[8:]
	names, rest, ok := cutString(rest)
	if !ok {
		return fail("names")
	}
	one.Schema = d.schema(hash, names)
	width, used := binary.Uvarint(rest)
	if used <= 0 || width != uint64(one.Schema.Len()) {
		return fail(fmt.Sprintf("%d values for %d names", width, one.Schema.Len()))
	}
	rest = rest[used:]
	count, used := binary.Uvarint(rest)
	// Each sample has a time of at least a byte, so a lying count takes no memory.
	if used <= 0 || count == 0 || count > uint64(len(rest)-used)/(8*width+1) {
		return fail("number of samples")
	}
	rest = rest[used:]
	out := make([]fleet.Sample, count)
	values := make([]float64, count*width)
	for i := range out {
		nanos, n := binary.Varint(rest)
		if n <= 0 || uint64(len(rest)-n) < 8*width {
			return fail(fmt.Sprintf("sample %d of %d", i+1, count))
		}
		rest = rest[n:]
		out[i] = one
		out[i].Time, out[i].Values = time.Unix(0, nanos).UTC(), values[:width:width]
		values = values[width:]
		for j := range out[i].Values {
			v := math.Float64frombits(binary.LittleEndian.Uint64(rest[8*j:]))
			if math.IsInf(v, 0) {
				v = math.NaN()
			}
			out[i].Values[j] = v
		}
		rest = rest[8*width:]
	}
	if len(rest) != 0 {
		return fail("bytes after the last sample")
	}
	return out, nil
}

func cutString(b []byte) (s, rest []byte, ok bool) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)-used) {
		return nil, nil, false
	}
	return b[used : used+int(n)], b[used+int(n):], true
}

func (d *Decoder) schema(hash uint64, names []byte) *fleet.Schema {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.schemas[hash]; ok && e.names == string(names) {
		return e.schema
	}
	e := schemaEntry{names: string(names)}
	if e.names == "" {
		e.schema = fleet.NewSchema(nil)
	} else {
		e.schema = fleet.NewSchema(strings.Split(e.names, "\n"))
	}
	if d.schemas == nil || len(d.schemas) >= maxSchemas {
		d.schemas = make(map[uint64]schemaEntry)
	}
	d.schemas[hash] = e
	return e.schema
}

// publishSamples stores samples of one host, those that are alike in one message. It
// returns how many of the first are on disk.
func publishSamples(ctx context.Context, js jetstream.JetStream, samples []*fleet.Sample) (stored int, err error) {
	var e encoder
	for stored < len(samples) {
		n := fitting(samples[stored:])
		batch := samples[stored : stored+n]
		first := batch[0]
		_, err := js.PublishMsg(ctx, &nats.Msg{
			Subject: subjectSamples + string(first.Host), Data: e.encode(nil, batch),
			Header: nats.Header{nats.MsgIdHdr: {fmt.Sprintf("%s/%d/%d", first.Host, first.Time.UnixNano(), n)}},
		})
		if err != nil {
			return stored, err
		}
		stored += n
	}
	return stored, nil
}
