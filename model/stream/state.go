package stream

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

// A saved detector is, little-endian: the magic, the version, the method's name, the body,
// and the SHA-256 of all that.
const (
	magic        = "TGDETECT"
	stateVersion = 1
	nameBytes    = 8
	headBytes    = len(magic) + 4 + nameBytes
)

// ErrDamaged says that a saved detector is not what was written.
var ErrDamaged = errors.New("detector: the saved state is damaged: learn again, or restore it from a copy")

// Visitor walks over the numbers of a state, to write or to read them.
type Visitor interface {
	Ints(...*int)
	Floats(...*float64)
	Bools(...*bool)
	Times(...*time.Time)
	F64([]float64)
	F32([]float32)
	I16([]int16)
	I32([]int32)
	I64([]int64)
}

func visitTail(t *tail.Tail, v Visitor) {
	v.Floats(&t.Base, &t.Rate, &t.Mean, &t.Square, &t.N, &t.Episodes, &t.Peak)
	v.Ints(&t.Calm)
}

func header(m Method) []byte {
	b := binary.LittleEndian.AppendUint32([]byte(magic), stateVersion)
	var name [nameBytes]byte
	copy(name[:], m.Name())
	return append(b, name[:]...)
}

// MarshalBinary returns the state with what was learned.
func (d *Detector) MarshalBinary() ([]byte, error) {
	w := writer{b: header(d.method)}
	modelled, period, interval := 0, 0, int(d.cfg.Interval/time.Millisecond)
	if d.live != nil {
		modelled, period = d.live.Size()
	}
	learning, rows := d.rows != nil, 0
	if d.columns > 0 {
		rows = len(d.rows) / d.columns
	}
	w.Ints(&d.cfg.Learn, &d.columns, &modelled, &rows, &period, &interval)
	w.Bools(&d.done, &d.loud, &learning, &d.even)
	w.Times(&d.first, &d.last)
	w.Floats(&d.cfg.Memory)
	visitTail(&d.tail, &w)
	w.F32(d.rows)
	if d.live != nil {
		d.live.Visit(&w)
	}
	sum := sha256.Sum256(w.b)
	return append(w.b, sum[:]...), nil
}

// UnmarshalBinary takes over a saved state. Its method and number of columns must be the
// detector's; after an error the detector is as it was.
func (d *Detector) UnmarshalBinary(b []byte) error {
	n, err := Unmarshal(d.method, b)
	if err != nil {
		return err
	}
	if n.columns != d.columns {
		return fmt.Errorf("%s detector: the saved state has %d columns, the detector %d", d.method.Name(), n.columns, d.columns)
	}
	*d = *n
	return nil
}

// Unmarshal returns the detector that was saved, which must be of this method.
func Unmarshal(method Method, b []byte) (*Detector, error) {
	if len(b) < headBytes+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w (it does not begin as one)", ErrDamaged)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if v := binary.LittleEndian.Uint32(b[len(magic):]); v != stateVersion {
		return nil, fmt.Errorf("%s detector: the saved state has version %d, this release reads %d: learn again with this release", method.Name(), v, stateVersion)
	}
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w (its checksum does not match)", ErrDamaged)
	}
	if !bytes.HasPrefix(body, header(method)) {
		return nil, fmt.Errorf("%s detector: the saved state is of detector %q: learn again with this one", method.Name(), bytes.TrimRight(body[headBytes-nameBytes:headBytes], "\x00"))
	}
	return decode(method, body[headBytes:])
}

// decode reads a body. What it allocates is bounded by what the body holds, and by what the
// most columns need.
func decode(method Method, body []byte) (*Detector, error) {
	r := &reader{b: body}
	d := &Detector{method: method}
	var modelled, rows, period, interval int
	var learning bool
	r.Ints(&d.cfg.Learn, &d.columns, &modelled, &rows, &period, &interval)
	r.Bools(&d.done, &d.loud, &learning, &d.even)
	r.Times(&d.first, &d.last)
	d.cfg.Interval = time.Duration(interval) * time.Millisecond
	r.Floats(&d.cfg.Memory)
	visitTail(&d.tail, r)
	c := d.cfg
	if r.bad || c.Learn < Least || c.Learn > MostLearn || !(c.Memory >= 1) ||
		d.columns > MostColumns || modelled > d.columns || rows >= c.Learn || d.done && modelled == 0 || !d.done && !learning && d.columns > 0 ||
		period > 0 && modelled == 0 || (rows > 0 || learning) && d.columns == 0 || rows > 0 && !learning || modelled > 0 && !d.tail.Sound() {
		return nil, fmt.Errorf("%w (its sizes do not fit together)", ErrDamaged)
	}
	want := sizer(4 * rows * d.columns)
	if modelled > 0 {
		live, err := method.Empty(modelled, period)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
		}
		d.live = live
		live.Visit(&want)
	}
	if len(r.b) != int(want) {
		return nil, fmt.Errorf("%w (%d bytes of content, not %d)", ErrDamaged, len(r.b), want)
	}
	if learning {
		d.rows = make([]float32, rows*d.columns, c.Learn*d.columns)
		r.missing = true
		r.F32(d.rows)
		r.missing = false
	}
	if d.live != nil {
		d.live.Visit(r)
	}
	if r.bad || d.live != nil && !d.live.Sound() {
		return nil, fmt.Errorf("%w (a value is impossible)", ErrDamaged)
	}
	return d, nil
}

// sizer counts the bytes.
type sizer int

func (s *sizer) Ints(p ...*int)        { *s += sizer(4 * len(p)) }
func (s *sizer) Floats(p ...*float64)  { *s += sizer(8 * len(p)) }
func (s *sizer) Bools(p ...*bool)      { *s += sizer(len(p)) }
func (s *sizer) F64(p []float64)       { *s += sizer(8 * len(p)) }
func (s *sizer) F32(p []float32)       { *s += sizer(4 * len(p)) }
func (s *sizer) I16(p []int16)         { *s += sizer(2 * len(p)) }
func (s *sizer) I32(p []int32)         { *s += sizer(4 * len(p)) }
func (s *sizer) I64(p []int64)         { *s += sizer(8 * len(p)) }
func (s *sizer) Times(p ...*time.Time) { *s += sizer(8 * len(p)) }

type writer struct{ b []byte }

var le = binary.LittleEndian

func (w *writer) Ints(p ...*int) {
	for _, v := range p {
		w.b = le.AppendUint32(w.b, uint32(*v))
	}
}

func (w *writer) Floats(p ...*float64) {
	for _, v := range p {
		w.b = le.AppendUint64(w.b, math.Float64bits(*v))
	}
}

func (w *writer) Bools(p ...*bool) {
	for _, v := range p {
		if *v {
			w.b = append(w.b, 1)
		} else {
			w.b = append(w.b, 0)
		}
	}
}

func (w *writer) F64(p []float64) {
	for i := range p {
		w.Floats(&p[i])
	}
}

func (w *writer) F32(p []float32) {
	for _, v := range p {
		w.b = le.AppendUint32(w.b, math.Float32bits(v))
	}
}

func (w *writer) I16(p []int16) {
	for _, v := range p {
		w.b = le.AppendUint16(w.b, uint16(v))
	}
}

func (w *writer) I32(p []int32) {
	for _, v := range p {
		w.b = le.AppendUint32(w.b, uint32(v))
	}
}

func (w *writer) I64(p []int64) {
	for _, v := range p {
		w.b = le.AppendUint64(w.b, uint64(v))
	}
}

// Times are nanoseconds since 1970; 0 is no time.
func (w *writer) Times(p ...*time.Time) {
	for _, v := range p {
		n := int64(0)
		if !v.IsZero() {
			n = v.UnixNano()
		}
		w.b = le.AppendUint64(w.b, uint64(n))
	}
}

// reader is bad once it was asked for more than there is, or met a number that is not
// finite where none may be missing. It reads zeros from then on.
type reader struct {
	b       []byte
	bad     bool
	missing bool // NaN is allowed
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) finite(v float64) {
	if math.IsInf(v, 0) || math.IsNaN(v) && !r.missing {
		r.bad = true
	}
}

func (r *reader) Ints(p ...*int) {
	for _, v := range p {
		n := le.Uint32(r.take(4))
		if n > math.MaxInt32 {
			r.bad = true
			n = 0
		}
		*v = int(n)
	}
}

func (r *reader) Floats(p ...*float64) {
	for _, v := range p {
		*v = math.Float64frombits(le.Uint64(r.take(8)))
		r.finite(*v)
	}
}

func (r *reader) Bools(p ...*bool) {
	for _, v := range p {
		c := r.take(1)[0]
		if c > 1 {
			r.bad = true
		}
		*v = c == 1
	}
}

func (r *reader) F64(p []float64) {
	for i := range p {
		r.Floats(&p[i])
	}
}

func (r *reader) F32(p []float32) {
	for i := range p {
		p[i] = math.Float32frombits(le.Uint32(r.take(4)))
		r.finite(float64(p[i]))
	}
}

func (r *reader) I16(p []int16) {
	for i := range p {
		p[i] = int16(le.Uint16(r.take(2)))
	}
}

func (r *reader) I32(p []int32) {
	for i := range p {
		p[i] = int32(le.Uint32(r.take(4)))
	}
}

func (r *reader) I64(p []int64) {
	for i := range p {
		p[i] = int64(le.Uint64(r.take(8)))
	}
}

func (r *reader) Times(p ...*time.Time) {
	for _, v := range p {
		if n := int64(le.Uint64(r.take(8))); n != 0 {
			*v = time.Unix(0, n).UTC()
		}
	}
}
