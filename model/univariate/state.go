package univariate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// stateVersion begins the saved state. It changes with the views, too.
const stateVersion = 1

// MarshalBinary returns what was learned: the version, the numbers, little-endian, and a
// checksum (CRC-32C). The settings are not part of it.
func (d *Detector) MarshalBinary() ([]byte, error) {
	c := codec{data: binary.LittleEndian.AppendUint32(nil, stateVersion), writing: true}
	d.state(&c)
	return binary.LittleEndian.AppendUint32(c.data, crc32.Checksum(c.data, castagnoli)), nil
}

// UnmarshalBinary takes over what was learned, by a detector with the same Config.Learn. After an
// error the detector is as it was.
func (d *Detector) UnmarshalBinary(b []byte) error {
	const ends = 4 + 4
	if len(b) < ends {
		return errors.New("univariate detector: the saved state is cut off")
	}
	if v := binary.LittleEndian.Uint32(b); v != stateVersion {
		return fmt.Errorf("univariate detector: the saved state has version %d, this release reads %d", v, stateVersion)
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return errors.New("univariate detector: the saved state is damaged: its checksum is wrong")
	}
	next, err := New(d.cfg)
	if err != nil {
		return err
	}
	c := codec{data: body[4:]}
	next.state(&c)
	switch {
	case c.err != nil:
		return fmt.Errorf("univariate detector: the saved state: %w", c.err)
	case len(c.data) > 0:
		return fmt.Errorf("univariate detector: the saved state is %d bytes longer than it should be", len(c.data))
	}
	*d = *next
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// codec writes numbers to data, or reads them from it.
type codec struct {
	data    []byte
	writing bool
	err     error
}

func (c *codec) word(v uint64) uint64 {
	if c.writing {
		c.data = binary.LittleEndian.AppendUint64(c.data, v)
		return v
	}
	if len(c.data) < 8 {
		c.err = first(c.err, errors.New("it is cut off"))
		return 0
	}
	v = binary.LittleEndian.Uint64(c.data)
	c.data = c.data[8:]
	return v
}

// first keeps the first error.
func first(before, next error) error {
	if before != nil {
		return before
	}
	return next
}

// numbers are finite ones, no larger than what a detector can come to.
func (c *codec) numbers(to ...*float64) {
	for _, x := range to {
		v := math.Float64frombits(c.word(math.Float64bits(*x)))
		if !(math.Abs(v) <= 1e10*mostValue) {
			c.err = first(c.err, errors.New("it has a value that is not a number, or too large"))
			continue
		}
		*x = v
	}
}

// whole is a whole number from least to most.
func (c *codec) whole(x *int64, least, most int64) {
	v := int64(c.word(uint64(*x)))
	if v < least || v > most {
		c.err = first(c.err, fmt.Errorf("it has a number %d, which must be from %d to %d", v, least, most))
		return
	}
	*x = v
}

func (c *codec) index(x *int, most int) {
	v := int64(*x)
	c.whole(&v, 0, int64(most))
	*x = int(v)
}

// state goes through everything that a detector has learned.
func (d *Detector) state(c *codec) {
	learn := int64(d.cfg.Learn)
	c.whole(&learn, int64(d.cfg.Learn), int64(d.cfg.Learn))
	const samples = math.MaxInt64 / 4
	c.whole(&d.n, 0, samples)
	c.whole(&d.until, -1, samples)
	c.numbers(&d.top)
	for i := range d.tails {
		for side := range d.tails[i] {
			t := &d.tails[i][side]
			c.index(&t.n, kept)
			c.whole(&t.seen, 0, samples)
			for k := range t.peaks {
				c.peak(&t.peaks[k], samples)
				if k > 0 && k < t.n && t.peaks[k].value > t.peaks[k-1].value {
					c.err = first(c.err, errors.New("its peaks are out of order"))
				}
			}
			c.peak(&t.newest, samples)
		}
	}
	w := &d.views
	c.numbers(&w.n, &w.before, &w.mean, &w.spread)
	if w.n < 0 {
		c.err = first(c.err, errors.New("it has fewer than no samples"))
	}
	for _, x := range []*window{&w.past, &w.long, &w.sure, &w.short, &w.recent, &w.steps, &w.far} {
		c.index(&x.n, len(x.ring))
		c.index(&x.at, len(x.ring)-1)
		c.numbers(&x.sum)
		for i := range x.ring {
			c.numbers(&x.ring[i])
		}
	}
	for _, p := range []*profile{&w.day, &w.logDay} {
		c.index(&p.hour, buckets-1)
		c.averages(&p.now, &p.any)
		for i := range p.usual {
			c.averages(&p.usual[i])
		}
	}
	for i := range w.size {
		c.averages(&w.size[i])
	}
	c.averages(&w.anySize)
}

func (c *codec) peak(p *peak, most int64) {
	c.numbers(&p.value)
	c.whole(&p.at, 0, most)
}

func (c *codec) averages(to ...*average) {
	for _, a := range to {
		c.numbers(&a.value, &a.n)
		if a.n < 0 {
			c.err = first(c.err, errors.New("it has a mean of fewer than no values"))
		}
	}
}
