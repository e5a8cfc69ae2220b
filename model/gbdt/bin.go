package gbdt

import (
	"math"
	"math/rand/v2"
)

// missingBin is the bin of missing values; 0 to 254 are for the others.
const missingBin = 255

// mostSampled is how many rows the edges of bins are found from, as in scikit-learn.
const mostSampled = 200_000

// binned holds the bins of all rows, eight features to a word: feature f of row i is byte
// f%8 of words[f/8][i]. A histogram of eight features then fits the first-level cache.
type binned struct {
	edges [][]float64 // for each feature: what is not above edge b, and above b-1, is in bin b
	words [][]uint64
	holes []bool // whether a feature has missing values
}

func bin(x [][]float64, bins int, random *rand.Rand) *binned {
	features := len(x[0])
	b := &binned{edges: make([][]float64, features), holes: make([]bool, features)}
	for range (features + 7) / 8 {
		b.words = append(b.words, make([]uint64, len(x)))
	}
	var sample []int32
	if len(x) > mostSampled {
		sample = make([]int32, 0, mostSampled)
		for i := range x { // Knuth's selection sampling
			if random.IntN(len(x)-i) < mostSampled-len(sample) {
				sample = append(sample, int32(i))
			}
		}
	}
	column := make([]float64, len(x))
	var s sorter
	for f := range features {
		for i, row := range x {
			column[i] = row[f]
		}
		values := s.begin(len(x))
		if sample == nil {
			for _, v := range column {
				if v == v {
					values = append(values, v)
				}
			}
		} else {
			for _, i := range sample {
				if v := column[i]; v == v {
					values = append(values, v)
				}
			}
		}
		edges := edgesOf(s.sort(values), bins)
		b.edges[f] = edges
		search := newSearch(edges)
		words, shift := b.words[f/8], f%8*8
		for i := 0; i < len(column); i += 4 {
			var four [4]float64
			n := copy(four[:], column[i:])
			var found [4]uint8
			found[0], found[1], found[2], found[3] = search.find4(key(four[0]), key(four[1]), key(four[2]), key(four[3]))
			for j, v := range four[:n] {
				if v != v {
					found[j] = missingBin
					b.holes[f] = true
				}
				words[i+j] |= uint64(found[j]) << shift
			}
		}
	}
	return b
}

// edgesOf are the borders between the bins of sorted values: midway between distinct ones
// where there are few of them, else at quantiles.
func edgesOf(sorted []float64, bins int) []float64 {
	var edges []float64
	distinct := 0
	for i := range sorted {
		if i == 0 || sorted[i] != sorted[i-1] {
			if distinct++; distinct > bins {
				break
			}
			if i > 0 {
				edges = append(edges, between(sorted[i-1], sorted[i]))
			}
		}
	}
	if distinct <= bins {
		return edges
	}
	edges = edges[:0]
	for k := 1; k < bins; k++ {
		at := float64(k) / float64(bins) * float64(len(sorted)-1)
		e := between(sorted[int(at)], sorted[int(math.Ceil(at))])
		if len(edges) == 0 || e > edges[len(edges)-1] {
			edges = append(edges, e)
		}
	}
	return edges
}

// between is a number that is not below a and below b, as near to their middle as there
// is; a itself where they are equal.
func between(a, b float64) float64 {
	m := a/2 + b/2
	if !(m >= a && m < b) {
		return a
	}
	return m
}

// key is a number that orders as v does, except that it tells -0 from 0. Whole numbers
// compare in a fifth of the time.
func key(v float64) int64 {
	k := int64(math.Float64bits(v))
	return k ^ int64(uint64(k>>63)>>1)
}

// search finds bins without a branch: the edges as a complete tree, each node's children at
// twice its place plus one and two, filled up with what nothing is above.
type search struct {
	steps int
	tree  [256]int64
}

func newSearch(edges []float64) *search {
	s := &search{}
	for 1<<s.steps <= len(edges) {
		s.steps++
	}
	size := 1<<s.steps - 1
	at := 0
	var fill func(k int)
	fill = func(k int) {
		if k >= size {
			return
		}
		fill(2*k + 1)
		s.tree[k] = math.MaxInt64
		if at < len(edges) {
			s.tree[k] = key(edges[at] + 0) // never -0
		}
		at++
		fill(2*k + 2)
	}
	fill(0)
	return s
}

// find4 finds the bins of four keys. The processor looks for all of them at a time.
func (s *search) find4(i, j, k, l int64) (a, b, c, d uint8) {
	var w, x, y, z int
	for range s.steps {
		var p, q, r, t int // written so, the compiler makes them flags
		if i > s.tree[uint8(w)] {
			p = 1
		}
		if j > s.tree[uint8(x)] {
			q = 1
		}
		if k > s.tree[uint8(y)] {
			r = 1
		}
		if l > s.tree[uint8(z)] {
			t = 1
		}
		w, x, y, z = 2*w+1+p, 2*x+1+q, 2*y+1+r, 2*z+1+t
	}
	less := 1<<(s.steps&15) - 1 // nodes above the last level
	return uint8(w - less), uint8(x - less), uint8(y - less), uint8(z - less)
}

// sorter sorts numbers by radix.
type sorter struct {
	values     []float64
	keys, swap []uint64
}

func (s *sorter) begin(n int) []float64 {
	if cap(s.values) < n {
		s.values, s.keys, s.swap = make([]float64, 0, n), make([]uint64, n), make([]uint64, n)
	}
	return s.values[:0]
}

const digits, radix = 6, 1 << 11

func (s *sorter) sort(values []float64) []float64 {
	keys, swap := s.keys[:len(values)], s.swap[:len(values)]
	var count [digits][radix]uint32
	for i, v := range values {
		k := math.Float64bits(v + 0) // -0 becomes 0
		k ^= uint64(int64(k)>>63) | 1<<63
		keys[i] = k
		for d := range count {
			count[d][k>>(11*d)%radix]++
		}
	}
	for d := range count {
		c := &count[d]
		sum, single := uint32(0), false
		for i, n := range c {
			single = single || int(n) == len(keys)
			c[i] = sum
			sum += n
		}
		if single {
			continue
		}
		for _, k := range keys {
			at := &c[k>>(11*d)%radix]
			swap[*at] = k
			*at++
		}
		keys, swap = swap, keys
	}
	for i, k := range keys {
		k ^= uint64(int64(^k)>>63) | 1<<63
		values[i] = math.Float64frombits(k)
	}
	return values
}
