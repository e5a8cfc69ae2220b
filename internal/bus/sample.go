package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// A sample on the wire is self-describing and checksummed:
//
//	byte     version (1)
//	byte     flags: bit 0 simulated
//	varint   time, Unix nanoseconds
//	string   host            a string is a uvarint length and its bytes
//	string   boot
//	uint64   FNV-1a of the names block, little-endian
//	string   names block: the series names joined by '\n'
//	uvarint  number of values
//	float64  each value, little-endian; NaN is missing
//	uint32   CRC-32C of all before
//
// The hash lets a reader reuse the Schema of an earlier sample without parsing
// the names again.
const sampleVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeSample appends the wire form of s to dst.
func EncodeSample(dst []byte, s *fleet.Sample) []byte {
	start := len(dst)
	flags := byte(0)
	if s.Simulated {
		flags |= 1
	}
	dst = append(dst, sampleVersion, flags)
	dst = binary.AppendVarint(dst, s.Time.UnixNano())
	dst = appendString(dst, string(s.Host))
	dst = appendString(dst, s.Boot)
	names := strings.Join(s.Schema.Names(), "\n")
	dst = binary.LittleEndian.AppendUint64(dst, hashNames(names))
	dst = appendString(dst, names)
	dst = binary.AppendUvarint(dst, uint64(len(s.Values)))
	for _, v := range s.Values {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
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

// Decode decodes one sample. The result shares nothing with data.
func (d *Decoder) Decode(data []byte) (fleet.Sample, error) {
	var s fleet.Sample
	if len(data) < 6 {
		return s, fmt.Errorf("%w: %d bytes", errSample, len(data))
	}
	if data[0] != sampleVersion {
		return s, fmt.Errorf("%w: version %d, this release reads version %d", errSample, data[0], sampleVersion)
	}
	body, sum := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return s, fmt.Errorf("%w: checksum does not match", errSample)
	}
	s.Simulated = body[1]&1 != 0
	rest := body[2:]
	nanos, n := binary.Varint(rest)
	if n <= 0 {
		return s, fmt.Errorf("%w: time", errSample)
	}
	s.Time, rest = time.Unix(0, nanos).UTC(), rest[n:]
	host, rest, ok := cutString(rest)
	boot, rest, ok2 := cutString(rest)
	if !ok || !ok2 || len(rest) < 8 {
		return s, fmt.Errorf("%w: header", errSample)
	}
	s.Host, s.Boot = fleet.HostID(host), string(boot)
	if err := s.Host.Validate(); err != nil {
		return s, fmt.Errorf("%w: %w", errSample, err)
	}
	hash, rest := binary.LittleEndian.Uint64(rest), rest[8:]
	names, rest, ok := cutString(rest)
	if !ok {
		return s, fmt.Errorf("%w: names", errSample)
	}
	s.Schema = d.schema(hash, names)
	count, n := binary.Uvarint(rest)
	if n <= 0 || count != uint64(s.Schema.Len()) || uint64(len(rest)-n) != count*8 {
		return s, fmt.Errorf("%w: %d values for %d names", errSample, count, s.Schema.Len())
	}
	rest = rest[n:]
	s.Values = make([]float64, count)
	for i := range s.Values {
		v := math.Float64frombits(binary.LittleEndian.Uint64(rest[8*i:]))
		if math.IsInf(v, 0) {
			v = math.NaN()
		}
		s.Values[i] = v
	}
	return s, nil
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

func publishSample(ctx context.Context, js jetstream.JetStream, s *fleet.Sample) error {
	msg := &nats.Msg{
		Subject: subjectSamples + string(s.Host),
		Data:    EncodeSample(nil, s),
		Header:  nats.Header{nats.MsgIdHdr: {string(s.Host) + "/" + strconv.FormatInt(s.Time.UnixNano(), 10)}},
	}
	_, err := js.PublishMsg(ctx, msg)
	return err
}
