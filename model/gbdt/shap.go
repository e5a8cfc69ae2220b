package gbdt

import "fmt"

// Contributions puts each feature's share of the row's raw score into dst, in the order of
// Features, and returns the raw score that a row has on average: that and the shares add up to
// Raw. The shares are Shapley values given the rows that the model was trained on. It takes
// some hundred times as long as Predict. It panics where a length is not that of Features.
func (m *Model) Contributions(dst, row []float64) (mean float64) {
	if len(row) != len(m.features) || len(dst) != len(m.features) {
		panic(fmt.Sprintf("gbdt: a row of %d values and %d places for the shares of %d features", len(row), len(dst), len(m.features)))
	}
	clear(dst)
	mean = m.base
	s := shap{row: row, dst: dst, paths: make([]step, (m.depth+2)*(m.depth+3)/2)}
	for _, t := range m.trees {
		s.tree = t
		s.visit(0, s.paths, 0, 1, 1, -1)
		mean += average(t, 0)
	}
	return mean
}

// average is what a node answers on average over the training rows.
func average(t []node, at int32) float64 {
	n := t[at]
	if n.feature < 0 {
		return n.value
	}
	l, r := portions(t, n)
	return l*average(t, n.left) + r*average(t, n.left+1)
}

// portions are the shares of the training rows that go to the left and to the right.
func portions(t []node, n node) (left, right float64) {
	l, r := t[n.left].cover, t[n.left+1].cover
	if !(l+r > 0) {
		return 0.5, 0.5
	}
	l = min(max(l/(l+r), 1e-9), 1-1e-9) // a side that has only rows of no weight is not impossible
	return l, 1 - l
}

// step is one feature on the way to a node: which share of the ways through goes on
// where the feature is not known, whether it does where it is, and the weights of
// subsets so far, by size.
type step struct {
	feature           int32
	zero, one, weight float64
}

// shap is algorithm 2 of Lundberg, Erion and Lee, "Consistent Individualized Feature
// Attribution for Tree Ensembles", 2018.
type shap struct {
	tree     []node
	row, dst []float64
	paths    []step
}

// visit walks on. path has room for the steps here and, behind them, for those below; n is how many there are.
func (s *shap) visit(at int32, path []step, n int, zero, one float64, feature int32) {
	extend(path, n, zero, one, feature)
	n++
	t := s.tree[at]
	if t.feature < 0 {
		for i := 1; i < n; i++ {
			w := unwound(path, n, i)
			p := path[i]
			s.dst[p.feature] += w * (p.one - p.zero) * t.value
		}
		return
	}
	v := s.row[t.feature]
	hot := t.left
	if v > t.value {
		hot++
	}
	if v != v {
		hot = t.left + t.missing
	}
	cold := 2*t.left + 1 - hot
	l, r := portions(s.tree, t)
	hotZero, coldZero := l, r
	if hot != t.left {
		hotZero, coldZero = r, l
	}
	inZero, inOne := 1.0, 1.0
	below := n
	for i := 1; i < n; i++ {
		if path[i].feature == t.feature {
			inZero, inOne = path[i].zero, path[i].one
			unwind(path, n, i)
			below--
			break
		}
	}
	next := path[n:]
	copy(next, path[:below])
	s.visit(hot, next, below, inZero*hotZero, inOne, t.feature)
	copy(next, path[:below])
	s.visit(cold, next, below, inZero*coldZero, 0, t.feature)
}

func extend(p []step, n int, zero, one float64, feature int32) {
	p[n] = step{feature: feature, zero: zero, one: one}
	if n == 0 {
		p[n].weight = 1
	}
	size := float64(n + 1)
	for i := n - 1; i >= 0; i-- {
		p[i+1].weight += one * p[i].weight * float64(i+1) / size
		p[i].weight = zero * p[i].weight * float64(n-i) / size
	}
}

// unwind takes step k out again.
func unwind(p []step, n, k int) {
	last := n - 1
	zero, one := p[k].zero, p[k].one
	next := p[last].weight
	size := float64(n)
	for i := last - 1; i >= 0; i-- {
		if one != 0 {
			w := p[i].weight
			p[i].weight = next * size / (float64(i+1) * one)
			next = w - p[i].weight*zero*float64(last-i)/size
		} else {
			p[i].weight = p[i].weight * size / (zero * float64(last-i))
		}
	}
	for i := k; i < last; i++ {
		p[i].feature, p[i].zero, p[i].one = p[i+1].feature, p[i+1].zero, p[i+1].one
	}
}

// unwound is the sum of the weights without step k.
func unwound(p []step, n, k int) float64 {
	last := n - 1
	zero, one := p[k].zero, p[k].one
	next, total := p[last].weight, 0.0
	size := float64(n)
	for i := last - 1; i >= 0; i-- {
		if one != 0 {
			w := next * size / (float64(i+1) * one)
			total += w
			next = p[i].weight - w*zero*float64(last-i)/size
		} else if zero != 0 {
			total += p[i].weight * size / (zero * float64(last-i))
		}
	}
	return total
}
