package anomaly

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// A saved detector is, little-endian: the magic, the version, the body, and the SHA-256
// of all that.
const (
	magic        = "TGANOMAL"
	stateVersion = 2
	headBytes    = len(magic) + 4
)

// ErrDamaged says that a saved detector is not what was written.
var ErrDamaged = errors.New("anomaly detector: the saved state is damaged: learn again, or restore it from a copy")

// visitor walks over the numbers of a state, to write or to read them.
type visitor interface {
	ints(...*int)
	floats(...*float64)
	bools(...*bool)
	f64([]float64)
	f32([]float32)
	i16([]int16)
	i32([]int32)
	i64([]int64)
	times(...*time.Time)
}

func (m *Model) visit(v visitor) {
	v.floats(&m.slow)
	v.ints(&m.phase)
	v.i16(m.profile)
	for _, s := range [][]float32{m.mean, m.inverse, m.coef, m.calm} {
		v.f32(s)
	}
	for k := range m.excess {
		e := &m.excess[k]
		v.f32(e.base)
		v.f32(e.size)
		v.floats(&e.median, &e.scale)
	}
	for _, g := range []*gauss{&m.spread, &m.surprise} {
		v.f32(g.mean)
		v.f32(g.precision)
		v.floats(&g.median, &g.scale)
	}
}

func (l *Scorer) visit(v visitor) {
	v.ints(&l.head, &l.seen)
	v.i16(l.ring)
	v.f32(l.drift)
	for k := range windows {
		v.i32(l.sum[k])
		v.i64(l.square[k])
	}
	v.floats(&l.slow, &l.total)
	for k := range holds {
		v.f64(l.held[k])
	}
	v.f64(l.parts)
	d, count := &l.day, int(l.day.count)
	v.ints(&d.phase, &count)
	d.count = int32(count)
	v.i16(d.profile)
	v.i32(d.total)
	v.f32(d.base)
	v.f32(d.size)
}

func (p *peaks) visit(v visitor) {
	v.floats(&p.base, &p.rate, &p.mean, &p.square, &p.n, &p.episodes, &p.peak)
	v.ints(&p.calm)
}

// MarshalBinary returns the state with what was learned.
func (d *Detector) MarshalBinary() ([]byte, error) {
	w := writer{b: binary.LittleEndian.AppendUint32([]byte(magic), stateVersion)}
	modelled, period, interval := 0, 0, int(d.cfg.Interval/time.Millisecond)
	if d.live != nil {
		modelled, period = d.live.m.columns, d.live.m.period
	}
	learning, rows := d.rows != nil, 0
	if d.columns > 0 {
		rows = len(d.rows) / d.columns
	}
	w.ints(&d.cfg.Learn, &d.columns, &modelled, &rows, &period, &interval)
	w.bools(&d.done, &d.loud, &learning, &d.even)
	w.times(&d.first, &d.last)
	w.floats(&d.cfg.Memory)
	d.tail.visit(&w)
	w.f32(d.rows)
	if d.live != nil {
		d.live.m.visit(&w)
		d.live.visit(&w)
	}
	sum := sha256.Sum256(w.b)
	return append(w.b, sum[:]...), nil
}

// UnmarshalBinary takes over a saved state. Its number of columns must be the
// detector's; after an error the detector is as it was.
func (d *Detector) UnmarshalBinary(b []byte) error {
	n, err := Unmarshal(b)
	if err != nil {
		return err
	}
	if n.columns != d.columns {
		return fmt.Errorf("anomaly detector: the saved state has %d columns, the detector %d", n.columns, d.columns)
	}
	*d = *n
	return nil
}

// Unmarshal returns the detector that was saved.
func Unmarshal(b []byte) (*Detector, error) {
	if len(b) < headBytes+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w (it does not begin as one)", ErrDamaged)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if v := binary.LittleEndian.Uint32(b[len(magic):]); v != stateVersion {
		return nil, fmt.Errorf("anomaly detector: the saved state has version %d, this release reads %d: learn again with this release", v, stateVersion)
	}
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w (its checksum does not match)", ErrDamaged)
	}
	return decode(body[headBytes:])
}

// decode reads a body. What it allocates is bounded by what the body holds.
func decode(body []byte) (*Detector, error) {
	r := &reader{b: body}
	d := &Detector{}
	var modelled, rows, period, interval int
	var learning bool
	r.ints(&d.cfg.Learn, &d.columns, &modelled, &rows, &period, &interval)
	r.bools(&d.done, &d.loud, &learning, &d.even)
	r.times(&d.first, &d.last)
	d.cfg.Interval = time.Duration(interval) * time.Millisecond
	r.floats(&d.cfg.Memory)
	d.tail.visit(r)
	c := d.cfg
	if r.bad || c.Learn < leastLearn || c.Learn > mostLearn || !(c.Memory >= 1) ||
		d.columns > mostColumns || modelled > d.columns || rows >= c.Learn || d.done && modelled == 0 ||
		period > 0 && (modelled == 0 || period < days[0] || period > mostLearn/leastDays) || (rows > 0 && (!learning || d.columns == 0)) || modelled > 0 && !d.tail.sound() {
		return nil, fmt.Errorf("%w (its sizes do not fit together)", ErrDamaged)
	}
	if want := 4*rows*d.columns + bodyBytes(modelled, period); len(r.b) != want {
		return nil, fmt.Errorf("%w (%d bytes of content, not %d)", ErrDamaged, len(r.b), want)
	}
	if learning {
		d.rows = make([]float32, rows*d.columns, c.Learn*d.columns)
		r.missing = true
		r.f32(d.rows)
		r.missing = false
	}
	if modelled > 0 {
		m := newModel(modelled, period)
		m.visit(r)
		l := m.Scorer()
		l.visit(r)
		if l.head >= window || l.seen > window || !m.sound() || !l.sound() {
			r.bad = true
		}
		d.live = l
	}
	if r.bad {
		return nil, fmt.Errorf("%w (a value is impossible)", ErrDamaged)
	}
	return d, nil
}

func newModel(columns, period int) *Model {
	part := func(p int) gauss {
		return gauss{mean: make([]float32, p), precision: make([]float32, p*(p+1)/2)}
	}
	m := &Model{
		columns: columns, period: period, mean: make([]float32, columns), inverse: make([]float32, columns),
		coef: make([]float32, columns*(order*columns+1)), calm: make([]float32, len(windows)*columns), spread: part((len(windows) - 1) * columns), surprise: part(columns),
	}
	m.excess[restless], m.excess[strayed], m.excess[jumped] = newExcess(len(windows)*columns), newExcess(columns), newExcess(columns)
	if period > 0 {
		m.excess[untimely] = newExcess(columns)
		m.profile = make([]int16, min(mostSlots, period)*columns)
	}
	return m
}

func (m *Model) sound() bool {
	for k := range m.excess {
		if e := &m.excess[k]; len(e.base) > 0 && !e.sound() {
			return false
		}
	}
	return m.spread.sound() && m.surprise.sound() && m.phase <= max(0, m.period-1) && m.slow >= 0
}

func (g *gauss) sound() bool { return g.median >= 0 && g.scale > 0 }

// sound says whether the sums are those of the ring: all later sums come from them.
func (l *Scorer) sound() bool {
	if !l.day.sound() {
		return false
	}
	if l.seen == 0 {
		return l.slow >= 0
	}
	c := l.m.columns
	for k, w := range windows {
		for i := range c {
			var sum int32
			var square int64
			for ago := range w {
				q := l.row(ago)[i]
				sum += int32(q)
				square += int64(q) * int64(q)
			}
			if sum != l.sum[k][i] || square != l.square[k][i] {
				return false
			}
		}
	}
	return l.slow >= 0
}

// sound says whether the day can be gone on with.
func (d *day) sound() bool {
	if d.period == 0 {
		return d.phase == 0 && d.count == 0
	}
	for i, b := range d.base {
		if b < 0 || !(d.size[i] > 0) {
			return false
		}
	}
	// A slot has so many samples at most, or is left before.
	return d.phase < d.period && int(d.count) <= d.period/d.slots+1
}

// bodyBytes is the length of a model and a scorer of so many columns, with days of so many
// samples.
func bodyBytes(columns, period int) int {
	if columns == 0 {
		return 0
	}
	var s sizer
	m := newModel(columns, period)
	m.visit(&s)
	m.Scorer().visit(&s)
	return int(s)
}

type sizer int

func (s *sizer) ints(p ...*int)        { *s += sizer(4 * len(p)) }
func (s *sizer) floats(p ...*float64)  { *s += sizer(8 * len(p)) }
func (s *sizer) bools(p ...*bool)      { *s += sizer(len(p)) }
func (s *sizer) f64(p []float64)       { *s += sizer(8 * len(p)) }
func (s *sizer) f32(p []float32)       { *s += sizer(4 * len(p)) }
func (s *sizer) i16(p []int16)         { *s += sizer(2 * len(p)) }
func (s *sizer) i32(p []int32)         { *s += sizer(4 * len(p)) }
func (s *sizer) i64(p []int64)         { *s += sizer(8 * len(p)) }
func (s *sizer) times(p ...*time.Time) { *s += sizer(8 * len(p)) }

type writer struct{ b []byte }

var le = binary.LittleEndian

func (w *writer) ints(p ...*int) {
	for _, v := range p {
		w.b = le.AppendUint32(w.b, uint32(*v))
	}
}

func (w *writer) floats(p ...*float64) {
	for _, v := range p {
		w.b = le.AppendUint64(w.b, math.Float64bits(*v))
	}
}

func (w *writer) bools(p ...*bool) {
	for _, v := range p {
		if *v {
			w.b = append(w.b, 1)
		} else {
			w.b = append(w.b, 0)
		}
	}
}

func (w *writer) f64(p []float64) {
	for i := range p {
		w.floats(&p[i])
	}
}

func (w *writer) f32(p []float32) {
	for _, v := range p {
		w.b = le.AppendUint32(w.b, math.Float32bits(v))
	}
}

func (w *writer) i16(p []int16) {
	for _, v := range p {
		w.b = le.AppendUint16(w.b, uint16(v))
	}
}

func (w *writer) i32(p []int32) {
	for _, v := range p {
		w.b = le.AppendUint32(w.b, uint32(v))
	}
}

func (w *writer) i64(p []int64) {
	for _, v := range p {
		w.b = le.AppendUint64(w.b, uint64(v))
	}
}

// times are nanoseconds since 1970; 0 is no time.
func (w *writer) times(p ...*time.Time) {
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

func (r *reader) ints(p ...*int) {
	for _, v := range p {
		n := le.Uint32(r.take(4))
		if n > math.MaxInt32 {
			r.bad = true
			n = 0
		}
		*v = int(n)
	}
}

func (r *reader) floats(p ...*float64) {
	for _, v := range p {
		*v = math.Float64frombits(le.Uint64(r.take(8)))
		r.finite(*v)
	}
}

func (r *reader) bools(p ...*bool) {
	for _, v := range p {
		c := r.take(1)[0]
		if c > 1 {
			r.bad = true
		}
		*v = c == 1
	}
}

func (r *reader) f64(p []float64) {
	for i := range p {
		r.floats(&p[i])
	}
}

func (r *reader) f32(p []float32) {
	for i := range p {
		p[i] = math.Float32frombits(le.Uint32(r.take(4)))
		r.finite(float64(p[i]))
	}
}

func (r *reader) i16(p []int16) {
	for i := range p {
		p[i] = int16(le.Uint16(r.take(2)))
	}
}

func (r *reader) i32(p []int32) {
	for i := range p {
		p[i] = int32(le.Uint32(r.take(4)))
	}
}

func (r *reader) i64(p []int64) {
	for i := range p {
		p[i] = int64(le.Uint64(r.take(8)))
	}
}

func (r *reader) times(p ...*time.Time) {
	for _, v := range p {
		if n := int64(le.Uint64(r.take(8))); n != 0 {
			*v = time.Unix(0, n).UTC()
		}
	}
}
