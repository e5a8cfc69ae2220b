package fast

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

// A saved detector is, little-endian: the magic, the version, a header, the rows that are
// to be learned, the numbers of the model and of the scorer, and the SHA-256 of all that.
const (
	magic        = "TGFAST\r\n"
	stateVersion = 1
)

// ErrDamaged says that a saved detector is not what was written.
var ErrDamaged = errors.New("fast detector: the saved state is damaged: learn again, or restore it from a copy")

type header struct {
	Learn, Columns, Modelled, Rows uint32
	Done, Loud, Learning           bool
	Memory                         float64
	Tail                           tail.Tail
	// Of the model and the scorer.
	Spread, Surprise [2]float32 // median and unit
	Usual            float32
	Seen             uint32
	Rate, Slow       float32
	Total            float64
}

// MarshalBinary returns the state with what was learned.
func (d *Detector) MarshalBinary() ([]byte, error) {
	h := header{
		Learn: uint32(d.cfg.Learn), Columns: uint32(d.columns), Done: d.done, Loud: d.loud, Learning: d.rows != nil,
		Memory: d.cfg.Memory, Tail: d.tail,
	}
	lists := [][]float32{d.rows}
	if d.columns > 0 {
		h.Rows = uint32(len(d.rows) / d.columns)
	}
	if s := d.live; s != nil {
		h.Modelled, h.Seen, h.Rate, h.Slow, h.Total = uint32(s.m.columns), uint32(s.seen), s.rate, s.slow, s.total
		h.Spread, h.Surprise = [2]float32{s.m.spread.median, s.m.spread.unit}, [2]float32{s.m.surprise.median, s.m.surprise.unit}
		h.Usual = s.m.slow
		lists = append(append(lists, s.m.numbers()...), s.state)
	}
	b := binary.LittleEndian.AppendUint32([]byte(magic), stateVersion)
	b, err := binary.Append(b, binary.LittleEndian, h)
	for _, l := range lists {
		if err == nil {
			b, err = binary.Append(b, binary.LittleEndian, l)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("fast detector: %w", err)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// UnmarshalBinary takes over a saved state. Its number of columns must be the
// detector's; after an error the detector is as it was.
func (d *Detector) UnmarshalBinary(b []byte) error {
	n, err := Unmarshal(b)
	if err != nil {
		return err
	}
	if n.columns != d.columns {
		return fmt.Errorf("fast detector: the saved state has %d columns, the detector %d", n.columns, d.columns)
	}
	*d = *n
	return nil
}

// Unmarshal returns the detector that was saved.
func Unmarshal(b []byte) (*Detector, error) {
	if len(b) < len(magic)+4+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w (it does not begin as one)", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[len(magic):]); v != stateVersion {
		return nil, fmt.Errorf("fast detector: the saved state has version %d, this release reads %d: learn again with this release", v, stateVersion)
	}
	body := b[:len(b)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, fmt.Errorf("%w (its checksum does not match)", ErrDamaged)
	}
	return decode(body[len(magic)+4:])
}

// decode reads what follows the version. What it allocates is bounded by what is there, and
// by what 512 columns need.
func decode(b []byte) (*Detector, error) {
	var h header
	n, err := binary.Decode(b, binary.LittleEndian, &h)
	if err != nil {
		return nil, fmt.Errorf("%w (its header is cut off)", ErrDamaged)
	}
	b = b[n:]
	c, modelled := int(h.Columns), int(h.Modelled)
	if h.Learn < leastLearn || h.Learn > mostLearn || c > mostColumns || modelled > c || h.Rows >= h.Learn || h.Rows > 0 && !h.Learning ||
		h.Learning && c == 0 || h.Done && modelled == 0 || !h.Done && !h.Learning && c > 0 || h.Seen > warm {
		return nil, fmt.Errorf("%w (its sizes do not fit together)", ErrDamaged)
	}
	d := &Detector{cfg: Config{Learn: int(h.Learn), Memory: h.Memory}, columns: c, tail: h.Tail, done: h.Done, loud: h.Loud}
	rows := int(h.Rows) * c
	want := 4 * rows
	var lists [][]float32
	if modelled > 0 {
		m := newModel(modelled)
		s := m.Scorer()
		d.live = s
		lists = append(m.numbers(), s.state)
		for _, l := range lists {
			want += 4 * len(l)
		}
		m.spread.median, m.spread.unit, m.surprise.median, m.surprise.unit, m.slow = h.Spread[0], h.Spread[1], h.Surprise[0], h.Surprise[1], h.Usual
		s.seen, s.rate, s.slow, s.total = int(h.Seen), h.Rate, h.Slow, h.Total
	}
	if len(b) != want {
		return nil, fmt.Errorf("%w (%d bytes of content, not %d)", ErrDamaged, len(b), want)
	}
	if h.Learning {
		d.rows = make([]float32, rows, int(h.Learn)*c)
		lists = append([][]float32{d.rows}, lists...)
	}
	for _, l := range lists {
		n, err := binary.Decode(b, binary.LittleEndian, l)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
		}
		b = b[n:]
	}
	if !(h.Memory >= 1) || math.IsInf(h.Memory, 0) || d.live != nil && !(d.tail.Sound() && d.live.sound()) {
		return nil, fmt.Errorf("%w (a value is impossible)", ErrDamaged)
	}
	return d, nil
}

// sound says whether all values are possible, so that no score is ever not a number.
func (s *Scorer) sound() bool {
	m := s.m
	for _, c := range []struct {
		values    []float32
		low, high float32
	}{
		{m.mean, -math.MaxFloat32, math.MaxFloat32}, {m.inverse, 0, 1.01 / floor}, {m.calm, 0, 1e3},
		{m.a, -1e6, 1e6}, {m.b, -1.01, 1.01}, {m.bias, -1e6, 1e6},
		{m.spread.scale, 0, 10.01}, {m.spread.u, -1.01, 1.01}, {m.surprise.scale, 0, 10.01}, {m.surprise.u, -1.01, 1.01},
		{s.past, -100, 100}, {s.variance, 0, 1e5}, {s.drift, -1e3, 1e3}, {s.held, -1e9, 1e9}, {s.parts, -1e9, 1e9},
		{s.spread, -1e9, 1e9}, {s.rest, -1e15, 1e15},
		{[]float32{m.spread.unit, m.surprise.unit}, 0.05, 1e9}, {[]float32{m.spread.median, m.surprise.median}, 0, 1e9},
		{[]float32{m.slow, s.slow}, 0, slowCap}, {[]float32{s.rate}, 0, 1.01 / driftTau},
	} {
		for _, v := range c.values {
			if !(v >= c.low && v <= c.high) {
				return false
			}
		}
	}
	return s.total >= -1e12 && s.total <= 1e12
}
