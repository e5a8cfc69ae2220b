// Package iforest is the isolation forest of Liu, Ting and Zhou ("Isolation Forest", ICDM
// 2008), with their settings: 100 trees, each of 256 samples, no deeper than 8.
package iforest

import (
	"math"
	"math/rand/v2"

	"github.com/tardigrade-recovery/tardigrade/model/rival"
)

const (
	trees     = 100
	subsample = 256
)

// Model is a forest. It may be shared.
type Model struct {
	scale rival.Scale
	nodes []node
	roots [trees]int32
	usual float64 // path length that a sample has on average
}

// node splits by a column, or is a leaf where left is 0: there value is the length of the
// path to it.
type node struct {
	value       float64
	column      int32
	left, right int32
}

// Fit grows a forest from rows; the same rows give the same forest.
func Fit(rows [][]float64) (*Model, error) {
	scale, err := rival.Learn(rows)
	if err != nil {
		return nil, err
	}
	z := scale.All(rows)
	r := rand.New(rand.NewPCG(uint64(len(rows)), uint64(scale.Columns())))
	m := &Model{scale: scale}
	size := min(subsample, len(z))
	limit := int(math.Ceil(math.Log2(float64(size))))
	order := make([]int, len(z))
	for i := range order {
		order[i] = i
	}
	for t := range m.roots {
		for i := range size { // without replacement
			j := i + r.IntN(len(order)-i)
			order[i], order[j] = order[j], order[i]
		}
		m.roots[t] = m.grow(r, z, order[:size], 0, limit)
	}
	m.usual = unsuccessful(size)
	return m, nil
}

func (m *Model) grow(r *rand.Rand, z [][]float64, at []int, depth, limit int) int32 {
	n := int32(len(m.nodes))
	m.nodes = append(m.nodes, node{value: float64(depth) + unsuccessful(len(at))})
	if depth == limit || len(at) < 2 {
		return n
	}
	// Of the columns that differ, one at random.
	column, seen := -1, 0
	var low, high float64
	for j := range z[0] {
		a, b := z[at[0]][j], z[at[0]][j]
		for _, i := range at[1:] {
			a, b = min(a, z[i][j]), max(b, z[i][j])
		}
		if b > a {
			if seen++; r.IntN(seen) == 0 {
				column, low, high = j, a, b
			}
		}
	}
	if column < 0 {
		return n
	}
	split := low + (high-low)*r.Float64()
	k := 0
	for i := range at {
		if z[at[i]][column] < split {
			at[k], at[i] = at[i], at[k]
			k++
		}
	}
	left := m.grow(r, z, at[:k], depth+1, limit)
	right := m.grow(r, z, at[k:], depth+1, limit)
	m.nodes[n] = node{value: split, column: int32(column), left: left, right: right}
	return n
}

// unsuccessful is the average length of an unsuccessful search in a binary search tree
// of n samples, c(n) in the paper.
func unsuccessful(n int) float64 {
	switch {
	case n < 2:
		return 0
	case n == 2:
		return 1
	}
	const gamma = 0.5772156649
	f := float64(n)
	return 2*(math.Log(f-1)+gamma) - 2*(f-1)/f
}

// Bytes is the memory that the model holds.
func (m *Model) Bytes() int { return 24*len(m.nodes) + m.scale.Bytes() }

// Scorer scores samples; it is not safe for concurrent use.
type Scorer struct {
	m *Model
	z []float64
}

// Scorer returns one.
func (m *Model) Scorer() *Scorer { return &Scorer{m, make([]float64, m.scale.Columns())} }

// Bytes is the memory that the scorer holds beside its model.
func (s *Scorer) Bytes() int { return 8 * len(s.z) }

// Score is 2 to the minus of the mean path length in units of the usual one: from 0 to 1, one
// half where the sample is ordinary.
func (s *Scorer) Score(x []float64) float64 {
	s.m.scale.To(s.z, x)
	sum := 0.0
	for _, at := range s.m.roots {
		n := &s.m.nodes[at]
		for n.left > 0 {
			if s.z[n.column] < n.value {
				at = n.left
			} else {
				at = n.right
			}
			n = &s.m.nodes[at]
		}
		sum += n.value
	}
	return math.Exp2(-sum / trees / max(s.m.usual, 1))
}
