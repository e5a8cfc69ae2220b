package gbdt

import (
	"fmt"
	"math/bits"
	"slices"
)

const (
	// block is how many rows are scored together: as many as a word has bits.
	block = 64
	// mostPlanes is how many bits the number of a leaf has at most.
	mostPlanes = 8
)

// Scorer scores many rows at once, ten times as fast as one by one. It is not safe for
// concurrent use.
//
// 64 rows go down a tree together. For each threshold of a feature there is a word that says
// which rows are above it; with all rows at the root, a node's rows and that word give the rows of both children
// by one operation each. The number of the leaf that each row is in is then put together from
// the words of the leaves, bit by bit. Nothing there branches on what a row holds.
type Scorer struct {
	m        *Model
	features []column
	above    []uint64 // for each threshold of each feature, the rows above it
	missing  []uint64 // for each feature, the rows that don't have it
	trees    []sliced
	reach    [2 * 1 << mostPlanes]uint64 // rows at each node of a tree
	slow     bool                        // more leaves or thresholds than there is room for
}

// column is a feature that some tree uses.
type column struct {
	feature int
	first   int // place of its lowest threshold
	edges   int
	search  *search
}

// sliced is a tree: its inner nodes, parents first, and what its leaves add.
type sliced struct {
	nodes  []fork
	planes int
	leaves []float64
	slots  []uint16 // where in reach the rows of each leaf are
}

type fork struct {
	above       uint32 // place of its threshold
	column      uint32
	missing     uint64 // all bits where missing values go to the right
	from, below uint16 // places in reach: its own and its left child's
}

// NewScorer prepares the scoring of many rows.
func NewScorer(m *Model) *Scorer {
	s := &Scorer{m: m}
	edges := make([][]float64, len(m.features))
	for _, t := range m.trees {
		if len(t) > 2*1<<mostPlanes-1 {
			s.slow = true
			return s
		}
		for _, n := range t {
			if n.feature >= 0 {
				edges[n.feature] = append(edges[n.feature], n.value+0) // never -0
			}
		}
	}
	at := make([]int, len(m.features)) // place in columns
	for f, e := range edges {
		if e == nil {
			continue
		}
		slices.Sort(e)
		edges[f] = slices.Compact(e)
		if len(edges[f]) >= missingBin {
			s.slow = true
			return s
		}
		at[f] = len(s.features)
		s.features = append(s.features, column{feature: f, first: len(s.above), edges: len(edges[f]), search: newSearch(edges[f])})
		s.above = append(s.above, make([]uint64, len(edges[f]))...)
	}
	s.missing = make([]uint64, len(s.features))
	for _, t := range m.trees {
		var one sliced
		for i, n := range t {
			if n.feature < 0 {
				one.leaves = append(one.leaves, n.value)
				one.slots = append(one.slots, uint16(i))
				continue
			}
			c := at[n.feature]
			k, _ := slices.BinarySearch(edges[n.feature], n.value)
			f := fork{above: uint32(s.features[c].first + k), column: uint32(c), from: uint16(i), below: uint16(n.left)}
			if n.missing == 1 {
				f.missing = ^uint64(0)
			}
			one.nodes = append(one.nodes, f)
		}
		one.planes = bits.Len(uint(len(one.leaves) - 1))
		for len(one.leaves) < 1<<mostPlanes { // so that any byte is a place in it
			one.leaves = append(one.leaves, 0)
		}
		s.trees = append(s.trees, one)
	}
	return s
}

// Raw puts the raw score of each row into dst, which must be as long. It allocates
// nothing and panics where a row's length is not that of the model's features.
func (s *Scorer) Raw(dst []float64, rows [][]float64) {
	if len(dst) != len(rows) {
		panic(fmt.Sprintf("gbdt: %d places for the scores of %d rows", len(dst), len(rows)))
	}
	for _, r := range rows {
		if len(r) != len(s.m.features) {
			panic(fmt.Sprintf("gbdt: a row of %d values for %d features", len(r), len(s.m.features)))
		}
	}
	if s.slow {
		for i, r := range rows {
			dst[i] = s.m.Raw(r)
		}
		return
	}
	var sum [block]float64
	for len(rows) > 0 {
		n := min(block, len(rows))
		for c := range s.features {
			s.compare(c, rows[:n])
		}
		for i := range sum {
			sum[i] = s.m.base
		}
		for k := range s.trees {
			s.add(&s.trees[k], &sum)
		}
		copy(dst, sum[:n])
		dst, rows = dst[n:], rows[n:]
	}
}

// compare finds which rows are above each threshold of a feature.
func (s *Scorer) compare(c int, rows [][]float64) {
	f := &s.features[c]
	var keys [block]int64
	missing := uint64(0)
	for i, r := range rows {
		v := r[f.feature]
		keys[i&(block-1)] = key(v)
		nan := uint64(0)
		if v != v {
			nan = 1
		}
		missing |= nan << (i & 63)
	}
	s.missing[c] = missing
	var in [256]uint64 // rows in each bin
	one := uint64(1)
	for i := 0; i < block; i += 4 {
		four := (*[4]int64)(keys[i:])
		a, b, c, d := f.search.find4(four[0], four[1], four[2], four[3])
		in[a] |= one
		in[b] |= one << 1
		in[c] |= one << 2
		in[d] |= one << 3
		one <<= 4
	}
	above := s.above[f.first : f.first+f.edges]
	rest := uint64(0)
	for k := len(above) - 1; k >= 0; k-- {
		rest |= in[uint8(k+1)]
		above[k] = rest &^ missing
	}
}

// add adds what a tree says of each row.
func (s *Scorer) add(t *sliced, sum *[block]float64) {
	reach := &s.reach
	const mask = 2*1<<mostPlanes - 1
	reach[0] = ^uint64(0)
	for i := range t.nodes {
		n := &t.nodes[i]
		right := s.above[n.above] | s.missing[n.column]&n.missing
		here := reach[n.from&mask]
		reach[n.below&mask] = here &^ right
		reach[(n.below+1)&mask] = here & right
	}
	var at [1 << mostPlanes]uint64
	for k, slot := range t.slots {
		at[k&(1<<mostPlanes-1)] = reach[slot&mask]
	}
	// Of the leaves left, the upper half has the highest bit; then both halves are laid
	// on each other, and so on.
	var plane [mostPlanes]uint64
	for p := t.planes - 1; p >= 0; p-- {
		half := 1 << p
		low, high := at[:half], at[half:2*half]
		any := uint64(0)
		for i, v := range high {
			any |= v
			low[i] |= v
		}
		plane[p] = any
	}
	leaves := (*[1 << mostPlanes]float64)(t.leaves)
	for i := 0; i < block; i += 8 {
		leaf := uint64(0)
		for p, v := range plane[:t.planes] {
			leaf |= spread[uint8(v>>i)] << p
		}
		eight := (*[8]float64)(sum[i:])
		for k := range eight {
			eight[k] += leaves[uint8(leaf>>(8*k))]
		}
	}
}

// spread has for each byte its bits as the lowest ones of eight bytes.
var spread = func() (out [256]uint64) {
	for b := range out {
		for k := range 8 {
			out[b] |= uint64(b>>k&1) << (8 * k)
		}
	}
	return out
}()

// Predict is Raw with calibrated probabilities.
func (s *Scorer) Predict(dst []float64, rows [][]float64) {
	s.Raw(dst, rows)
	for i, v := range dst {
		dst[i] = s.m.shape.Probability(v)
	}
}
