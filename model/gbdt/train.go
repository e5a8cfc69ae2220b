package gbdt

import (
	"context"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// histogram has for eight features at a time, and each of their bins, the packed sum of its rows.
type histogram [][8][256]int64

// packing says how gradient, curvature and count of rows share 64 bits: the gradient on
// top, as it may be negative, and each field wide enough for the sum over all rows. Sums and
// differences of packed numbers are then packed sums and differences.
type packing struct {
	h, g   uint    // first bit of the curvature and of the gradient
	hMask  int64   // of the curvature, after shifting
	nMask  int64   // of the count
	hScale float64 // units of the curvature
	gScale float64
}

func packFor(rows int, sumG, sumH float64) packing {
	n := uint(bits.Len(uint(rows)))
	width := (63 - n) / 2 // of the curvature; the gradient has at least a bit more
	p := packing{h: n, g: n + width, hMask: 1<<width - 1, nMask: 1<<n - 1}
	// A tenth of headroom for the rounding, which is at random.
	p.hScale = 0.9 * float64(p.hMask) / max(sumH, 1e-300)
	p.gScale = 0.9 * float64(int64(1)<<(63-p.g)-1) / max(sumG, 1e-300)
	// No row needs more than this; rows that are few could overflow otherwise.
	p.hScale, p.gScale = min(p.hScale, 1<<20), min(p.gScale, 1<<20)
	return p
}

// leaf is a node that may be split.
type leaf struct {
	at         int // in the tree
	from, to   int // rows
	depth      int
	hist       histogram
	low, high  float64 // what monotone constraints leave possible
	best       split
	splittable bool
}

type split struct {
	gain        float64
	feature     int
	bin         uint8 // the last on the left
	missingLeft bool
	left, right float64 // what the children would answer
}

type trainer struct {
	c    Config
	b    *binned
	y    []bool
	w    []float64 // nil: all 1
	all  []int32   // rows to learn from
	rows []int32   // the same, in the order of leaves
	swap []int32
	raw  []float64
	grad []float64
	hess []float64
	pack packing
	cell []int64 // packed gradients by row
	node []int64 // those of a node, in the order of its rows
	free []histogram
	used []bool // features that this tree may use
	rnd  *rand.Rand
}

func train(ctx context.Context, d Data, c Config) (*Model, error) {
	t := &trainer{c: c, y: d.Y, w: d.Weight, rnd: rand.New(rand.NewPCG(c.Seed, 0x7ab5))}
	t.b = bin(d.X, c.Bins, t.rnd)
	n := len(d.X)
	t.all = make([]int32, n)
	for i := range t.all {
		t.all[i] = int32(i)
	}
	t.rows = slices.Clone(t.all)
	t.swap, t.raw, t.grad, t.hess = make([]int32, n), make([]float64, n), make([]float64, n), make([]float64, n)
	t.cell, t.node, t.used = make([]int64, n), make([]int64, n), make([]bool, len(d.X[0]))

	m := &Model{features: c.Features, base: t.logOdds()}
	for i := range t.raw {
		t.raw[i] = m.base
	}
	for k := range c.Trees {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t.gradients()
		tree, depth := t.grow()
		if tree == nil {
			break // no split gains anything
		}
		m.trees = append(m.trees, tree)
		m.depth = max(m.depth, depth)
		if c.Progress != nil {
			c.Progress(k+1, c.Trees)
		}
	}
	return m, nil
}

func (t *trainer) weight(i int32) float64 {
	if t.w == nil {
		return 1
	}
	return t.w[i]
}

func (t *trainer) logOdds() float64 {
	var yes, all float64
	for _, i := range t.rows {
		w := t.weight(i)
		all += w
		if t.y[i] {
			yes += w
		}
	}
	// Held-out rows may have taken all of one kind.
	return math.Log(max(yes, 1e-9*all)+1e-300) - math.Log(max(all-yes, 1e-9*all)+1e-300)
}

// gradients of the log loss, as they are and packed.
func (t *trainer) gradients() {
	copy(t.rows, t.all)
	var sumG, sumH float64
	for _, i := range t.rows {
		p := 1 / (1 + math.Exp(-t.raw[i]))
		g, h := p, p*(1-p)
		if t.y[i] {
			g = p - 1
		}
		if t.w != nil {
			g *= t.w[i]
			h *= t.w[i]
		}
		t.grad[i], t.hess[i] = g, h
		sumG += math.Abs(g)
		sumH += h
	}
	p := packFor(len(t.rows), sumG, sumH)
	t.pack = p
	for _, i := range t.rows {
		r := t.rnd.Uint64()
		g := int64(math.Floor(t.grad[i]*p.gScale + float64(r>>40)*0x1p-24))
		h := int64(t.hess[i]*p.hScale + float64(r&(1<<24-1))*0x1p-24)
		t.cell[i] = g<<p.g + h<<p.h + 1
	}
}

func (t *trainer) histogram() histogram {
	if k := len(t.free); k > 0 {
		h := t.free[k-1]
		t.free = t.free[:k-1]
		return h
	}
	return make(histogram, len(t.b.words))
}

func (t *trainer) fill(h histogram, rows []int32) {
	node := t.node[:len(rows)]
	for j, i := range rows {
		node[j] = t.cell[i]
	}
	for g := range h {
		add(&h[g], t.b.words[g], rows, node)
	}
}

// add sums up the rows of a node for eight features. It's where training spends its time.
func add(h *[8][256]int64, words []uint64, rows []int32, cells []int64) {
	*h = [8][256]int64{}
	if len(cells) < len(rows) {
		return
	}
	for j, i := range rows {
		w, v := words[i], cells[j]
		h[0][uint8(w)] += v
		h[1][uint8(w>>8)] += v
		h[2][uint8(w>>16)] += v
		h[3][uint8(w>>24)] += v
		h[4][uint8(w>>32)] += v
		h[5][uint8(w>>40)] += v
		h[6][uint8(w>>48)] += v
		h[7][uint8(w>>56)] += v
	}
}

// less makes the histogram of a node that of its other child.
func (h histogram) less(child histogram) {
	for g := range h {
		a, b := &h[g], &child[g]
		for f := range a {
			for k := range a[f] {
				a[f][k] -= b[f][k]
			}
		}
	}
}

// grow returns the next tree, nil where no split gains anything, and adds it to the raw scores.
func (t *trainer) grow() (tree []node, depth int) {
	t.draw()
	root := &leaf{to: len(t.rows), low: math.Inf(-1), high: math.Inf(1), hist: t.histogram()}
	t.fill(root.hist, t.rows)
	t.search(root)
	tree = append(tree, node{feature: -1})
	leaves := []*leaf{root}
	for len(leaves) < t.c.Leaves {
		at := -1
		for i, l := range leaves {
			if l.splittable && (at < 0 || l.best.gain > leaves[at].best.gain) {
				at = i
			}
		}
		if at < 0 {
			break
		}
		l := leaves[at]
		a, b := t.split(l)
		s := l.best
		tree[l.at] = node{value: t.b.edge(s.feature, s.bin), feature: int32(s.feature), left: int32(len(tree))}
		if s.missingLeft {
			tree[l.at].missing = 0
		} else {
			tree[l.at].missing = 1
		}
		a.at, b.at = len(tree), len(tree)+1
		tree = append(tree, node{feature: -1}, node{feature: -1})
		leaves[at] = a
		leaves = append(leaves, b)
		depth = max(depth, a.depth)
		if len(leaves) == t.c.Leaves {
			t.give(l.hist)
			break
		}
		t.descend(l, a, b)
	}
	for _, l := range leaves {
		t.give(l.hist)
	}
	if len(leaves) == 1 {
		return nil, 0
	}
	for _, l := range leaves {
		rows := t.rows[l.from:l.to]
		var g, h, w float64
		for _, i := range rows {
			g += t.grad[i]
			h += t.hess[i]
		}
		if t.w == nil {
			w = float64(len(rows))
		} else {
			for _, i := range rows {
				w += t.w[i]
			}
		}
		v := t.c.Rate * min(max(-g/(h+t.c.L2+1e-12), l.low), l.high)
		tree[l.at].value, tree[l.at].cover = v, w
		for _, i := range rows {
			t.raw[i] += v
		}
	}
	for i := len(tree) - 1; i >= 0; i-- {
		if n := &tree[i]; n.feature >= 0 {
			n.cover = tree[n.left].cover + tree[n.left+1].cover
		}
	}
	return tree, depth
}

// edge is the threshold between a bin and the next; the last has no next but the missing values.
func (b *binned) edge(feature int, bin uint8) float64 {
	if int(bin) < len(b.edges[feature]) {
		return b.edges[feature][bin]
	}
	return math.Inf(1)
}

// draw chooses the features that a tree may use.
func (t *trainer) draw() {
	k := len(t.used)
	if t.c.FeatureShare < 1 {
		k = max(1, int(math.Round(t.c.FeatureShare*float64(k))))
	}
	left := k
	for f := range t.used {
		t.used[f] = left == len(t.used)-f || t.rnd.IntN(len(t.used)-f) < left
		if t.used[f] {
			left--
		}
	}
}

func (t *trainer) give(h histogram) {
	if h != nil {
		t.free = append(t.free, h)
	}
}

// split divides the rows of a leaf among two new ones.
func (t *trainer) split(l *leaf) (a, b *leaf) {
	s := l.best
	var right [256]uint8
	for k := range right {
		if k > int(s.bin) {
			right[k] = 1
		}
	}
	right[missingBin] = 1
	if s.missingLeft {
		right[missingBin] = 0
	}
	rows, swap := t.rows[l.from:l.to], t.swap[:l.to-l.from]
	words, shift := t.b.words[s.feature/8], uint(s.feature%8*8)
	left, other := 0, 0
	for _, i := range rows {
		rows[left] = i
		swap[other] = i
		r := int(right[uint8(words[i]>>(shift&63))])
		left += 1 - r
		other += r
	}
	copy(rows[left:], swap[:other])
	middle := l.from + left
	a = &leaf{from: l.from, to: middle, depth: l.depth + 1, low: l.low, high: l.high}
	b = &leaf{from: middle, to: l.to, depth: l.depth + 1, low: l.low, high: l.high}
	if m := (s.left + s.right) / 2; t.c.Monotone != nil && t.c.Monotone[s.feature] != 0 {
		if t.c.Monotone[s.feature] > 0 {
			a.high, b.low = m, m
		} else {
			a.low, b.high = m, m
		}
	}
	return a, b
}

// descend finds the best splits of the children: the smaller one's histogram is summed up,
// the other's is what that leaves of their parent's.
func (t *trainer) descend(l, a, b *leaf) {
	small, large := a, b
	if small.to-small.from > large.to-large.from {
		small, large = large, small
	}
	least := 2 * t.c.MinLeaf
	if large.to-large.from < least {
		t.give(l.hist)
		return
	}
	h := t.histogram()
	t.fill(h, t.rows[small.from:small.to])
	l.hist.less(h)
	large.hist = l.hist
	t.search(large)
	if small.to-small.from < least {
		t.give(h)
		return
	}
	small.hist = h
	t.search(small)
}

// leastHessian is the least curvature of a leaf, as in scikit-learn.
const leastHessian = 1e-3

// search finds the best split of a leaf.
func (t *trainer) search(l *leaf) {
	l.best = split{}
	total := int64(0)
	for _, v := range l.hist[0][0] {
		total += v
	}
	for f, used := range t.used {
		if !used {
			continue
		}
		h := &l.hist[f/8][f%8]
		bins := len(t.b.edges[f]) + 1
		hole := int64(0)
		if t.b.holes[f] {
			hole = h[missingBin]
		}
		if t.c.Monotone != nil {
			t.scanBounded(l, f, h[:bins], 0, total, hole != 0)
			if hole != 0 {
				t.scanBounded(l, f, h[:bins], hole, total, true)
			}
			continue
		}
		t.scan(l, f, h[:bins], 0, total, hole != 0)
		if hole != 0 {
			t.scan(l, f, h[:bins], hole, total, true)
		}
	}
	l.splittable = l.best.gain > 0
}

// scan tries all splits on a feature, from the left; sum is what is on the left
// whatever the split: the missing values, or nothing. With holes, the last split is between
// all values and the missing ones.
func (t *trainer) scan(l *leaf, feature int, h []int64, sum, total int64, holes bool) {
	p := t.pack
	hs, gs := p.h&63, p.g&63
	least := int64(t.c.MinLeaf)
	most := total&p.nMask - least
	leastH := max(leastHessian*p.hScale, 1)
	l2 := t.c.L2 * p.hScale
	allH, allG := float64(total>>hs&p.hMask), float64(total>>gs)
	base := allG * allG / (allH + l2)
	unit := p.hScale / (p.gScale * p.gScale)
	best := l.best.gain/unit + base + 1e-9*base
	at := -1
	missingLeft := sum != 0
	if !holes && len(h) > 0 {
		h = h[:len(h)-1]
	}
	for k, v := range h {
		if v == 0 {
			continue
		}
		sum += v
		n := sum & p.nMask
		if n < least {
			continue
		}
		if n > most {
			break
		}
		lh, lg := float64(sum>>hs&p.hMask), float64(sum>>gs)
		rh, rg := allH-lh, allG-lg
		if lh < leastH || rh < leastH {
			continue
		}
		lh += l2
		rh += l2
		if gain := (lg*lg*rh + rg*rg*lh) / (lh * rh); gain > best {
			best, at = gain, k
		}
	}
	if at < 0 {
		return
	}
	l.best = split{gain: (best - base) * unit, feature: feature, bin: uint8(at), missingLeft: missingLeft}
	if !holes { // what is missing later goes where most rows went
		left := int64(0)
		for _, v := range h[:at+1] {
			left += v & p.nMask
		}
		l.best.missingLeft = left*2 > total&p.nMask
	}
}

// scanBounded is scan where some features are monotone: what a child answers is bounded,
// and the gain is what those answers gain (as in scikit-learn).
func (t *trainer) scanBounded(l *leaf, feature int, h []int64, sum, total int64, holes bool) {
	p := t.pack
	missingLeft := sum != 0
	least := int64(t.c.MinLeaf)
	all := total & p.nMask
	allH, allG := float64(total>>p.h&p.hMask)/p.hScale, float64(total>>p.g)/p.gScale
	answer := func(g, h float64) (value, loss float64) {
		value = min(max(-g/(h+t.c.L2), l.low), l.high)
		return value, 2*g*value + (h+t.c.L2)*value*value
	}
	_, now := answer(allG, allH)
	direction := float64(t.c.Monotone[feature])
	if !holes && len(h) > 0 {
		h = h[:len(h)-1]
	}
	for k, v := range h {
		if v == 0 {
			continue
		}
		sum += v
		n := sum & p.nMask
		if n < least || all-n < least {
			continue
		}
		lh, lg := float64(sum>>p.h&p.hMask)/p.hScale, float64(sum>>p.g)/p.gScale
		rh, rg := allH-lh, allG-lg
		if lh < leastHessian || rh < leastHessian {
			continue
		}
		a, lossA := answer(lg, lh)
		b, lossB := answer(rg, rh)
		if direction*(b-a) < 0 {
			continue
		}
		if gain := now - lossA - lossB; gain > l.best.gain+1e-9*math.Abs(now) {
			l.best = split{gain: gain, feature: feature, bin: uint8(k), missingLeft: missingLeft, left: a, right: b}
			if !holes {
				l.best.missingLeft = n*2 > all
			}
		}
	}
}
