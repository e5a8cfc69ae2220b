package failure

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
)

// A saved model is, little-endian: the magic, the version, the number of horizons and each in
// nanoseconds, the number of signatures and each as length and name, then the trees, each as length
// and what package gbdt saves: whether anything is wrong, the horizons, the signatures.
// The SHA-256 of all that follows.
const (
	magic        = "TGFAILUR"
	stateVersion = 1
	mostName     = 64
)

// ErrDamaged says that a saved model is not what was written.
var ErrDamaged = errors.New("failure model: the saved model is damaged: train again, or restore it from a copy")

var le = binary.LittleEndian

// MarshalBinary returns the model as bytes.
func (m *Model) MarshalBinary() ([]byte, error) {
	b := le.AppendUint32([]byte(magic), stateVersion)
	b = le.AppendUint32(b, uint32(len(m.horizons)))
	for _, h := range m.horizons {
		b = le.AppendUint64(b, uint64(h))
	}
	b = le.AppendUint32(b, uint32(len(m.signatures)))
	for _, s := range m.signatures {
		b = le.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	for _, part := range m.parts() {
		data, err := (*part).MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("failure model: %w", err)
		}
		b = le.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// parts lists the trees in the order in which they are saved.
func (m *Model) parts() []**gbdt.Model {
	out := []**gbdt.Model{&m.odd}
	for i := range m.fails {
		out = append(out, &m.fails[i])
	}
	for i := range m.is {
		out = append(out, &m.is[i])
	}
	return out
}

// Unmarshal returns the model that was saved.
func Unmarshal(b []byte) (*Model, error) {
	if len(b) < len(magic)+4+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w (it does not begin as one)", ErrDamaged)
	}
	if v := le.Uint32(b[len(magic):]); v != stateVersion {
		return nil, fmt.Errorf("failure model: the saved model has version %d, this release reads %d: train again with this release", v, stateVersion)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w (its checksum does not match)", ErrDamaged)
	}
	return decode(body[len(magic)+4:])
}

func decode(b []byte) (*Model, error) {
	bad := false
	take := func(n uint64) []byte {
		if bad || uint64(len(b)) < n {
			bad = true
			return make([]byte, 8)
		}
		out := b[:n]
		b = b[n:]
		return out
	}
	length := func() uint64 { return uint64(le.Uint32(take(4))) }
	m := &Model{}
	n := length()
	if n < 1 || n > mostHorizons {
		return nil, fmt.Errorf("%w (%d horizons)", ErrDamaged, n)
	}
	for range n {
		h := time.Duration(le.Uint64(take(8)))
		if h <= 0 || len(m.horizons) > 0 && h <= m.horizons[len(m.horizons)-1] {
			return nil, fmt.Errorf("%w (its horizons do not ascend)", ErrDamaged)
		}
		m.horizons = append(m.horizons, h)
	}
	n = length()
	if n < 1 || n > mostSignatures {
		return nil, fmt.Errorf("%w (%d signatures)", ErrDamaged, n)
	}
	for range n {
		l := length()
		if l < 1 || l > mostName {
			return nil, fmt.Errorf("%w (a signature of %d bytes)", ErrDamaged, l)
		}
		m.signatures = append(m.signatures, string(take(l)))
	}
	m.fails, m.is = make([]*gbdt.Model, len(m.horizons)), make([]*gbdt.Model, len(m.signatures))
	for _, part := range m.parts() {
		data := take(length())
		if bad {
			return nil, fmt.Errorf("%w (it is cut off)", ErrDamaged)
		}
		var err error
		if *part, err = gbdt.Unmarshal(data); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err := (*part).Accept(m.odd.Features()); err != nil {
			return nil, fmt.Errorf("%w (its parts look at different features): %w", ErrDamaged, err)
		}
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w (%d bytes follow)", ErrDamaged, len(b))
	}
	return m, nil
}
