package staged

import (
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/tardigrade-recovery/tardigrade/model/baseline"
	"github.com/tardigrade-recovery/tardigrade/model/columns"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

// stateVersion begins the saved state. Version 2 had no count of unusual samples.
const stateVersion = 3

// mostColumns bounds what a saved state may claim.
const mostColumns = 1 << 17

var le = binary.LittleEndian

// MarshalBinary returns the state: the version, the lengths of the stages, the columns,
// and the detectors' own states, each after its length.
func (d *Detector) MarshalBinary() ([]byte, error) {
	b := le.AppendUint32(nil, stateVersion)
	for _, n := range []int{len(d.host), d.age, d.gone, d.odd} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, h := range d.host {
		b = append(b, flag(h))
	}
	b = append(b, flag(d.chosen != nil))
	for _, list := range [][]int{d.wide, d.chosen, d.others} {
		b = le.AppendUint32(b, uint32(len(list)))
		for _, c := range list {
			b = le.AppendUint32(b, uint32(c))
		}
	}
	b = le.AppendUint32(b, uint32(len(d.kept)))
	for _, v := range d.kept {
		b = le.AppendUint32(b, math.Float32bits(v))
	}
	for _, part := range []struct {
		there bool
		state encoding.BinaryMarshaler
	}{{true, d.first}, {d.rest != nil, d.rest}, {d.strong != nil, d.strong}, {d.next != nil, d.next}} {
		if !part.there {
			b = le.AppendUint32(b, 0)
			continue
		}
		state, err := part.state.MarshalBinary()
		if err != nil {
			return nil, err
		}
		b = append(le.AppendUint32(b, uint32(len(state))), state...)
	}
	return b, nil
}

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// UnmarshalBinary takes over a saved state of a detector of the same columns; after an
// error the detector is as it was.
func (d *Detector) UnmarshalBinary(b []byte) error {
	n, err := d.decode(b)
	if err != nil {
		return fmt.Errorf("staged detector: %w", err)
	}
	d.Close()
	if n.next != nil && !d.cfg.Slots.take(d) {
		n.next = nil // it begins again when there is room
	}
	*d = *n
	return nil
}

var errState = errors.New("the saved state is damaged")

func (d *Detector) decode(b []byte) (*Detector, error) {
	r := &reader{b: b}
	version := r.number(math.MaxUint32)
	if version != 2 && version != stateVersion {
		return nil, fmt.Errorf("the saved state has version %d, this release reads 2 and %d", version, stateVersion)
	}
	width := r.number(mostColumns)
	n := &Detector{cfg: d.cfg, age: r.number(math.MaxInt32), gone: r.number(goneAfter)}
	if version > 2 {
		n.odd = r.number(math.MaxInt32)
	}
	if width != len(d.host) {
		return nil, fmt.Errorf("the saved state has %d columns, the detector %d", width, len(d.host))
	}
	for _, f := range r.take(width) {
		n.host = append(n.host, f == 1)
	}
	chosen := r.take(1)[0] == 1
	n.wide, n.chosen, n.others = r.list(width), r.list(width), r.list(width)
	if !chosen {
		n.chosen = nil
	}
	for i, k := 0, r.number(mostKept*mostWide); i < k && !r.bad; i++ {
		n.kept = append(n.kept, math.Float32frombits(le.Uint32(r.take(4))))
	}
	if r.bad || len(n.wide) > mostWide || len(n.chosen) > columns.Most || !chosen && len(n.others) > 0 ||
		chosen && (len(n.wide) > 0 || len(n.chosen)+len(n.others) != width) ||
		len(n.kept) > 0 && (len(n.wide) == 0 || len(n.kept)%len(n.wide) != 0) || !n.once() {
		return nil, errState
	}
	first, rest, strong, next := r.bytes(), r.bytes(), r.bytes(), r.bytes()
	if r.bad || len(r.b) > 0 || first == nil || chosen != (rest != nil) || chosen != (len(n.chosen) > 0) || !chosen && (strong != nil || next != nil) {
		return nil, errState
	}
	var err error
	if n.first, err = restored(first, width, d.cfg.Learn); err != nil {
		return nil, err
	}
	n.x, n.y = make([]float64, len(n.chosen)), make([]float64, len(n.others))
	if rest != nil {
		if n.rest, err = restored(rest, len(n.others), d.cfg.Learn); err != nil {
			return nil, err
		}
	}
	for _, part := range []struct {
		state []byte
		to    **stream.Detector
	}{{strong, &n.strong}, {next, &n.next}} {
		if part.state == nil {
			continue
		}
		if *part.to, err = stream.New(d.cfg.Method, len(n.chosen), stream.Config{Learn: max(d.cfg.Strong, 64), Interval: d.cfg.Interval}); err != nil {
			return nil, err
		}
		if err := (*part.to).UnmarshalBinary(part.state); err != nil {
			return nil, err
		}
	}
	n.last.Lead, n.last.Rest = 1, 1
	return n, nil
}

// once says whether no column is in two lists, or twice in one.
func (d *Detector) once() bool {
	seen := make(map[int]bool)
	for _, list := range [][]int{d.wide, d.chosen, d.others} {
		for _, c := range list {
			if seen[c] {
				return false
			}
			seen[c] = true
		}
	}
	return true
}

func restored(state []byte, columns, learn int) (*baseline.Detector, error) {
	d, err := baseline.New(columns, baseline.Config{Learn: learn})
	if err != nil {
		return nil, err
	}
	return d, d.UnmarshalBinary(state)
}

// reader is bad once it was asked for more than there is, or met a number beyond its
// bound. It reads zeros from then on.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, min(n, 4))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) number(most int) int {
	n := int(le.Uint32(r.take(4)))
	if n > most {
		r.bad = true
		return 0
	}
	return n
}

// list reads indexes of columns.
func (r *reader) list(columns int) []int {
	n := r.number(columns)
	out := []int{}
	for i := 0; i < n && !r.bad; i++ {
		c := r.number(columns)
		if c >= columns {
			r.bad = true
		}
		out = append(out, c)
	}
	return out
}

func (r *reader) bytes() []byte {
	n := r.number(math.MaxInt32)
	if n == 0 {
		return nil
	}
	return r.take(n)
}
