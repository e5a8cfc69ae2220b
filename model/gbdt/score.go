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
	inner      = 1 << mostPlanes
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
	index    []int32        // of each of them, among the model's
	keys     [][block]int64 // of the values of each, in all rows
	above    []uint64       // for each threshold of each feature, the rows above it
	missing  []uint64       // for each feature, the rows that don't have it
	trees    []sliced
	slow     bool // more leaves or thresholds than there is room for

	// Kept from row to row, since to clear them all takes longer than to use them.
	in    [256]uint64       // rows in each bin
	reach [2 * inner]uint64 // rows at each leaf of a tree and, from inner on, at each inner node
}

// column is a feature that some tree uses.
type column struct {
	first  int // place of its lowest threshold
	edges  int
	search *search
}

// sliced is a tree: its inner nodes, parents first, and what its leaves add.
type sliced struct {
	nodes  []fork
	planes int
	count  int // of leaves
	leaves [inner]float64
}

type fork struct {
	above             uint32 // place of its threshold
	from, left, right uint16 // places in reach: its own and its children's
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
		s.features = append(s.features, column{first: len(s.above) / 2, edges: len(edges[f]), search: newSearch(edges[f])})
		s.index = append(s.index, int32(f))
		s.above = append(s.above, make([]uint64, 2*len(edges[f]))...)
	}
	s.keys = make([][block]int64, len(s.features))
	s.missing = make([]uint64, len(s.features))
	s.trees = make([]sliced, len(m.trees))
	for i, t := range m.trees {
		one := &s.trees[i]
		place := make([]uint16, len(t)) // in reach
		for i, n := range t {
			if n.feature < 0 {
				place[i] = uint16(one.count)
				one.leaves[one.count] = n.value
				one.count++
			} else {
				place[i] = inner + uint16(len(one.nodes))
				one.nodes = append(one.nodes, fork{from: place[i]})
			}
		}
		for i, n := range t {
			if n.feature < 0 {
				continue
			}
			k, _ := slices.BinarySearch(edges[n.feature], n.value)
			f := &one.nodes[place[i]-inner]
			f.above = uint32(2*(s.features[at[n.feature]].first+k) + int(n.missing))
			f.left, f.right = place[n.left], place[n.left+1]
		}
		one.planes = bits.Len(uint(one.count - 1))
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
		s.load(rows[:n])
		for c := range s.features {
			s.compare(c)
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

// load takes over what the trees look at.
func (s *Scorer) load(rows [][]float64) {
	clear(s.missing)
	for i, r := range rows {
		odd := 0.0 // not a number if some value isn't, or is infinite
		keys := s.keys
		for c, f := range s.index {
			v := r[f]
			keys[c][i&(block-1)] = key(v)
			odd += v - v
		}
		if odd == 0 {
			continue
		}
		for c, f := range s.index {
			if v := r[f]; v != v {
				s.missing[c] |= 1 << (i & 63)
			}
		}
	}
}

// compare finds which rows are above each threshold of a feature.
func (s *Scorer) compare(c int) {
	f, missing, keys := &s.features[c], s.missing[c], &s.keys[c]
	in := &s.in
	clear(in[:f.edges+1])
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
	above := s.above[2*f.first : 2*(f.first+f.edges)]
	rest := uint64(0)
	for k := f.edges; k > 0 && len(above) >= 2; k-- {
		rest |= in[uint8(k)]
		two := above[len(above)-2:]
		two[0], two[1] = rest&^missing, rest|missing
		above = above[:len(above)-2]
	}
}

// add adds what a tree says of each row.
func (s *Scorer) add(t *sliced, sum *[block]float64) {
	reach := &s.reach
	reach[inner] = ^uint64(0) // the root, unless it is a leaf
	for i := range t.nodes {
		n := &t.nodes[i]
		right := s.above[n.above]
		here := reach[n.from&(2*inner-1)]
		reach[n.left&(2*inner-1)] = here &^ right
		reach[n.right&(2*inner-1)] = here & right
	}
	at := (*[inner]uint64)(reach[:])
	clear(at[t.count : 1<<t.planes])
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
	leaves := &t.leaves
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
