package gbdt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/tardigrade-recovery/tardigrade/model/calibrate"
)

// A saved model is, little-endian: the magic, the version, the body, and the SHA-256 of all
// that. The body is the names of the features, the base, the calibration, and the trees: of each
// its number of nodes, and of each node value, cover, feature, left child and side of missing values.
const (
	magic        = "TGBOOST\x00"
	stateVersion = 1
	headBytes    = len(magic) + 4
	nodeBytes    = 8 + 8 + 4 + 4 + 1
)

// ErrDamaged says that a saved model is not what was written.
var ErrDamaged = errors.New("boosted trees: the saved model is damaged: train again, or restore it from a copy")

var le = binary.LittleEndian

// MarshalBinary returns the model as bytes, its features' names and its calibration included.
func (m *Model) MarshalBinary() ([]byte, error) {
	b := le.AppendUint32([]byte(magic), stateVersion)
	b = le.AppendUint32(b, uint32(len(m.features)))
	for _, name := range m.features {
		b = le.AppendUint16(b, uint16(len(name)))
		b = append(b, name...)
	}
	b = le.AppendUint64(b, math.Float64bits(m.base))
	b = m.shape.AppendBinary(b)
	b = le.AppendUint32(b, uint32(len(m.trees)))
	for _, t := range m.trees {
		b = le.AppendUint32(b, uint32(len(t)))
		for _, n := range t {
			b = le.AppendUint64(b, math.Float64bits(n.value))
			b = le.AppendUint64(b, math.Float64bits(n.cover))
			b = le.AppendUint32(b, uint32(n.feature))
			b = le.AppendUint32(b, uint32(n.left))
			b = append(b, byte(n.missing))
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// Unmarshal returns the model that was saved.
func Unmarshal(b []byte) (*Model, error) {
	if len(b) < headBytes+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w (it does not begin as one)", ErrDamaged)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if v := le.Uint32(b[len(magic):]); v != stateVersion {
		return nil, fmt.Errorf("boosted trees: the saved model has version %d, this release reads %d: train again with this release", v, stateVersion)
	}
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w (its checksum does not match)", ErrDamaged)
	}
	return decode(body[headBytes:])
}

// reader is bad once it was asked for more than there is. It reads zeros from then on.
type reader struct {
	b   []byte
	bad bool
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

func (r *reader) count(most int) int {
	n := le.Uint32(r.take(4))
	if n > uint32(most) {
		r.bad = true
		return 0
	}
	return int(n)
}

func (r *reader) float() float64 { return math.Float64frombits(le.Uint64(r.take(8))) }

// decode reads a body. What it allocates is bounded by what the body holds.
func decode(body []byte) (*Model, error) {
	r := &reader{b: body}
	m := &Model{}
	features := r.count(mostFeatures)
	for range features {
		name := string(r.take(int(le.Uint16(r.take(2)))))
		if r.bad || name == "" || len(name) > mostName {
			return nil, fmt.Errorf("%w (a feature's name)", ErrDamaged)
		}
		m.features = append(m.features, name)
	}
	m.base = r.float()
	if r.bad || features == 0 || !finite(m.base) {
		return nil, fmt.Errorf("%w (its features)", ErrDamaged)
	}
	var err error
	if m.shape, r.b, err = calibrate.Decode(r.b); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	for range r.count(mostTrees) {
		t, depth := readTree(r, int32(features))
		if t == nil {
			return nil, fmt.Errorf("%w (tree %d)", ErrDamaged, len(m.trees))
		}
		m.trees = append(m.trees, t)
		m.depth = max(m.depth, depth)
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("%w (its length)", ErrDamaged)
	}
	return m, nil
}

// readTree returns nil for what is not a tree: each node but the root must be the
// child of exactly one node before it.
func readTree(r *reader, features int32) ([]node, int) {
	size := r.count(2*mostLeaves - 1)
	if size == 0 || len(r.b) < size*nodeBytes {
		return nil, 0
	}
	t := make([]node, size)
	depth := make([]int, size)
	deepest, children := 0, 1
	for i := range t {
		n := node{value: r.float(), cover: r.float(), feature: int32(le.Uint32(r.take(4))), left: int32(le.Uint32(r.take(4))), missing: int32(r.take(1)[0])}
		if n.feature < -1 || n.feature >= features || math.IsNaN(n.value) || !finite(n.cover) || n.cover < 0 || n.missing > 1 || i >= children {
			return nil, 0
		}
		if n.feature < 0 {
			if !finite(n.value) || n.left != 0 || n.missing != 0 {
				return nil, 0
			}
		} else {
			// Children come in pairs, in the order in which their parents were split.
			if n.left <= int32(i) || int(n.left) >= size-1 || n.left%2 != 1 || depth[n.left] != 0 {
				return nil, 0
			}
			depth[n.left], depth[n.left+1] = depth[i]+1, depth[i]+1
			deepest = max(deepest, depth[i]+1)
			children += 2
		}
		t[i] = n
	}
	for i := 1; i < size; i++ {
		if depth[i] == 0 {
			return nil, 0
		}
	}
	return t, deepest
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
