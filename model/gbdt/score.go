package gbdt

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// block is how many rows are scored together.
const block = 64

// Scorer scores many rows at once, several times as fast as one by one. It keeps
// its tables in memory, about 12 KiB for a tree, and is not safe for concurrent use.
//
// It is QuickScorer (Lucchese et al., SIGIR 2015) with a table in place of each list of
// thresholds. A tree's leaves are bits of a word, from the left; each split that a
// row passes to the right rules out the leaves on its left. For each feature of a tree and
// each bin of its values the table has all that the tree's splits on it rule out. The leaf is
// the lowest bit that is left over once the features' words are joined by and. Nothing there depends on the row but
// what is read, so the processor can work on many rows at a time.
type Scorer struct {
	m      *Model
	search []*search // by feature; nil where no tree uses it
	trees  []table
	bins   [][block]uint8
	slow   bool // more leaves or thresholds than the tables have room for
}

type table struct {
	features []int32
	masks    [][256]uint32 // for each of them
	leaves   [32]float64
}

// NewScorer prepares the tables for a model.
func NewScorer(m *Model) *Scorer {
	s := &Scorer{m: m, search: make([]*search, len(m.features)), bins: make([][block]uint8, len(m.features))}
	edges := make([][]float64, len(m.features))
	for _, t := range m.trees {
		if len(t) > 2*32-1 {
			s.slow = true
			return s
		}
		for _, n := range t {
			if n.feature >= 0 {
				edges[n.feature] = append(edges[n.feature], n.value)
			}
		}
	}
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
		s.search[f] = newSearch(edges[f])
	}
	s.trees = make([]table, len(m.trees))
	for i, t := range m.trees {
		s.trees[i].build(t, edges)
	}
	return s
}

func (t *table) build(nodes []node, edges [][]float64) {
	leaves := 0
	at := make(map[int32]int)
	var visit func(i int32) (mask uint32)
	visit = func(i int32) uint32 {
		n := nodes[i]
		if n.feature < 0 {
			t.leaves[leaves] = n.value
			leaves++
			return 1 << (leaves - 1)
		}
		k, ok := at[n.feature]
		if !ok {
			k = len(t.features)
			at[n.feature] = k
			t.features = append(t.features, n.feature)
			t.masks = append(t.masks, [256]uint32{})
			for b := range t.masks[k] {
				t.masks[k][b] = math.MaxUint32
			}
		}
		left := visit(n.left)
		right := visit(n.left + 1)
		edge, _ := slices.BinarySearch(edges[n.feature], n.value)
		for b := range missingBin {
			if b > edge {
				t.masks[k][b] &^= left
			}
		}
		if n.missing == 1 {
			t.masks[k][missingBin] &^= left
		}
		return left | right
	}
	visit(0)
	for len(t.features)%4 != 0 && len(t.features) > 0 { // so that four are always joined at once
		k := len(t.features)
		t.features = append(t.features, t.features[0])
		t.masks = append(t.masks, [256]uint32{})
		for b := range t.masks[k] {
			t.masks[k][b] = math.MaxUint32
		}
	}
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
	var mask [block]uint32
	for len(rows) > 0 {
		n := min(block, len(rows))
		s.quantise(rows[:n])
		for i := range sum {
			sum[i] = s.m.base
		}
		for k := range s.trees {
			t := &s.trees[k]
			for i := range mask {
				mask[i] = math.MaxUint32
			}
			for f := 0; f+4 <= len(t.features); f += 4 {
				c := t.features[f : f+4 : f+4]
				m := t.masks[f : f+4 : f+4]
				join(&mask, &m[0], &m[1], &m[2], &m[3], &s.bins[c[0]], &s.bins[c[1]], &s.bins[c[2]], &s.bins[c[3]])
			}
			for i := range mask {
				sum[i] += t.leaves[bits.TrailingZeros32(mask[i])&31]
			}
		}
		copy(dst, sum[:n])
		dst, rows = dst[n:], rows[n:]
	}
}

func join(mask *[block]uint32, a, b, c, d *[256]uint32, i, j, k, l *[block]uint8) {
	for r := range mask {
		mask[r] &= a[i[r]] & b[j[r]] & c[k[r]] & d[l[r]]
	}
}

// quantise finds the bins of a block of rows.
func (s *Scorer) quantise(rows [][]float64) {
	for f, search := range s.search {
		if search == nil {
			continue
		}
		bins := &s.bins[f]
		for i, r := range rows {
			v := r[f]
			b := search.find(v)
			if v != v {
				b = missingBin
			}
			bins[i&(block-1)] = b
		}
	}
}

// Predict is Raw with calibrated probabilities.
func (s *Scorer) Predict(dst []float64, rows [][]float64) {
	s.Raw(dst, rows)
	for i, v := range dst {
		dst[i] = s.m.shape.Probability(v)
	}
}
