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
	rows  int
	edges [][]float64 // for each feature: what is not above edge b, and above b-1, is in bin b
	words [][]uint64
	holes []bool // whether a feature has missing values
}

func bin(x [][]float64, bins int, random *rand.Rand) *binned {
	features := len(x[0])
	b := &binned{rows: len(x), edges: make([][]float64, features), holes: make([]bool, features)}
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
		for i, v := range column {
			k := uint64(missingBin)
			if v == v {
				k = uint64(search.find(v))
			} else {
				b.holes[f] = true
			}
			words[i] |= k << shift
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

// search finds bins without a branch: a complete tree of the edges in one array.
type search struct {
	steps int
	edges [256]float64
}

func newSearch(edges []float64) *search {
	s := &search{}
	for 1<<s.steps <= len(edges) {
		s.steps++
	}
	for i := range s.edges {
		s.edges[i] = math.Inf(1)
	}
	copy(s.edges[:], edges)
	return s
}

// find is how many edges are below v, which is not NaN.
func (s *search) find(v float64) uint8 {
	var at uint
	for half := uint(1) << s.steps >> 1; half > 0; half >>= 1 {
		var step uint
		if v > s.edges[(at+half-1)&255] {
			step = half
		}
		at += step
	}
	return uint8(at)
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
