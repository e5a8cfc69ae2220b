// Package calibrate learns what a model's scores mean: a map from raw scores, as log odds,
// to probabilities that come true as often as they say.
//
// Two shapes are tried: Platt's line through the log odds (Platt, "Probabilistic Outputs for
// Support Vector Machines", 1999), which needs little data, and the isotonic curve (Zadrozny
// and Elkan, KDD 2002), which can take any rising shape. The one with the lower log loss on
// data held out from it is kept.
package calibrate

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Map turns raw scores into probabilities. Its zero value takes raw scores as the log odds
// that they are meant to be. It never falls, and is safe for concurrent use.
type Map struct {
	kind kind
	a, b float64 // Platt: the log odds are a·raw+b
	// Isotonic: probabilities at rising scores, straight lines between them.
	at, p []float64
}

type kind uint8

const (
	identity kind = iota
	platt
	isotonic
)

// String is none, platt or isotonic.
func (m Map) String() string {
	return [...]string{"none", "platt", "isotonic"}[m.kind]
}

// Probability is in 0..1. It allocates nothing. NaN gives NaN.
func (m *Map) Probability(raw float64) float64 {
	switch m.kind {
	case platt:
		return sigmoid(m.a*raw + m.b)
	case isotonic:
		if raw != raw {
			return raw
		}
		k, _ := slices.BinarySearch(m.at, raw)
		if k == 0 {
			return m.p[0]
		}
		if k == len(m.at) {
			return m.p[k-1]
		}
		return m.p[k-1] + (m.p[k]-m.p[k-1])*((raw-m.at[k-1])/(m.at[k]-m.at[k-1]))
	}
	return sigmoid(raw)
}

func sigmoid(z float64) float64 { return 1 / (1 + math.Exp(-z)) }

// example is a score with the weights of what was so and of what was not.
type example struct{ raw, yes, no float64 }

// folds is how many parts the choice between the shapes is made on.
const folds = 5

// Fit learns a map. The rows must not be those that the model learned from. Weights may be
// nil. It is an error if all labels are the same or a score is not finite.
//
// Groups name what a row belongs to, such as its host, whose rows resemble each other: the choice
// between the shapes holds out whole groups, so that none is judged by what was learned from it.
// Of fewer than five groups each is a part of its own; of a single one nothing can be held out, and
// the line is taken without a choice. Nil takes each row for itself.
func Fit(raw []float64, labels []bool, weights []float64, groups []string) (Map, error) {
	if len(raw) != len(labels) || weights != nil && len(weights) != len(raw) || groups != nil && len(groups) != len(raw) {
		return Map{}, fmt.Errorf("calibration: %d scores, %d labels, %d weights and %d groups", len(raw), len(labels), len(weights), len(groups))
	}
	all := make([]example, len(raw))
	var yes, no float64
	for i, r := range raw {
		if math.IsNaN(r) || math.IsInf(r, 0) {
			return Map{}, fmt.Errorf("calibration: score %d is %v", i, r)
		}
		w := 1.0
		if weights != nil {
			w = weights[i]
		}
		all[i] = example{raw: r, no: w}
		if labels[i] {
			all[i] = example{raw: r, yes: w}
		}
		yes += all[i].yes
		no += all[i].no
	}
	if yes == 0 || no == 0 {
		return Map{}, errors.New("calibration: the labels are all the same: there is nothing to learn")
	}
	// Each part is judged by what was learned from the others.
	var lossP, lossI float64
	part := parts(len(all), groups)
	for k := range folds {
		var learn, held []example
		for i, e := range all {
			if part[i] == k {
				held = append(held, e)
			} else {
				learn = append(learn, e)
			}
		}
		if len(learn) == 0 || len(held) == 0 { // a single group, or fewer than folds
			break
		}
		p, i := fitPlatt(learn), fitIsotonic(learn)
		lossP += loss(&p, held)
		lossI += loss(&i, held)
	}
	if lossI < lossP {
		return fitIsotonic(all), nil
	}
	return fitPlatt(all), nil
}

// parts deals rows out into folds, in 0..folds-1: groups in the order in which they come first, or
// rows where there are none.
func parts(rows int, groups []string) []int {
	part := make([]int, rows)
	seen := map[string]int{}
	for i := range part {
		n := i
		if groups != nil {
			var ok bool
			if n, ok = seen[groups[i]]; !ok {
				n = len(seen)
				seen[groups[i]] = n
			}
		}
		part[i] = n % folds
	}
	return part
}

func loss(m *Map, held []example) float64 {
	sum := 0.0
	for _, e := range held {
		p := min(max(m.Probability(e.raw), 1e-15), 1-1e-15)
		sum -= e.yes*math.Log(p) + e.no*math.Log1p(-p)
	}
	return sum
}

// fitPlatt finds the line by Newton's method, with Platt's targets, which keep it finite
// where the scores tell all apart (Lin, Lin and Weng, "A Note on Platt's Probabilistic
// Outputs", 2007).
func fitPlatt(all []example) Map {
	var yes, no float64
	for _, e := range all {
		yes += e.yes
		no += e.no
	}
	high, low := (yes+1)/(yes+2), 1/(no+2)
	objective := func(a, b float64) float64 {
		sum := 0.0
		for _, e := range all {
			z := a*e.raw + b
			w, t := e.yes+e.no, e.yes*high+e.no*low
			sum += w*(max(z, 0)+math.Log1p(math.Exp(-math.Abs(z)))) - t*z
		}
		return sum
	}
	a, b := 1.0, 0.0
	now := objective(a, b)
	for range 100 {
		ga, gb, haa, hab, hbb := 0.0, 0.0, 1e-9, 0.0, 1e-9
		for _, e := range all {
			p := sigmoid(a*e.raw + b)
			w := e.yes + e.no
			d := w*p - (e.yes*high + e.no*low)
			h := w * p * (1 - p)
			ga += d * e.raw
			gb += d
			haa += h * e.raw * e.raw
			hab += h * e.raw
			hbb += h
		}
		det := haa*hbb - hab*hab
		if !(det > 0) {
			break
		}
		da, db := -(hbb*ga-hab*gb)/det, -(haa*gb-hab*ga)/det
		step, moved := 1.0, false
		for ; step > 1e-10; step /= 2 {
			if next := objective(a+step*da, b+step*db); next < now {
				a, b, now, moved = a+step*da, b+step*db, next, true
				break
			}
		}
		if !moved || math.Abs(step*da)+math.Abs(step*db) < 1e-10 {
			break
		}
	}
	if !(a >= 0) { // scores that mean the opposite of what they say are no use: the mean is left
		a, b = 0, math.Log((yes+1)/(no+1))
	}
	return Map{kind: platt, a: a, b: b}
}

// fitIsotonic pools neighbours until the shares of yes rise with the score.
func fitIsotonic(all []example) Map {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(x, y example) int { return cmp.Compare(x.raw, y.raw) })
	var yes, weight float64
	type pool struct{ raw, yes, weight, total float64 } // raw is a sum, weighted by total
	var pools []pool
	for i := 0; i < len(sorted); {
		p := pool{}
		for j := i; i < len(sorted) && sorted[i].raw == sorted[j].raw; i++ {
			e := sorted[i]
			p.yes += e.yes
			p.weight += e.yes + e.no
		}
		p.total = max(p.weight, 1e-12)
		p.raw = sorted[i-1].raw * p.total
		yes += p.yes
		weight += p.weight
		pools = append(pools, p)
		for len(pools) > 1 {
			a, b := &pools[len(pools)-2], pools[len(pools)-1]
			if a.yes*b.total < b.yes*a.total {
				break
			}
			a.raw += b.raw
			a.yes += b.yes
			a.weight += b.weight
			a.total += b.total
			pools = pools[:len(pools)-1]
		}
	}
	m := Map{kind: isotonic}
	mean := (yes + 0.5) / (weight + 1)
	for _, p := range pools {
		// One row more, of the mean, so that nothing is certain.
		at, v := p.raw/p.total, (p.yes+mean)/(p.weight+1)
		if k := len(m.at); k > 0 {
			v = max(v, m.p[k-1])
			if !(at > m.at[k-1]) {
				m.p[k-1] = v
				continue
			}
		}
		m.at = append(m.at, at)
		m.p = append(m.p, v)
	}
	return m
}

// AppendBinary appends the map, which Decode reads.
func (m Map) AppendBinary(b []byte) []byte {
	b = append(b, byte(m.kind))
	put := func(v float64) { b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v)) }
	put(m.a)
	put(m.b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.at)))
	for i := range m.at {
		put(m.at[i])
		put(m.p[i])
	}
	return b
}

// ErrDamaged says that a stored map is not what was written.
var ErrDamaged = errors.New("calibration: the stored map is damaged")

// Decode reads a map from the begin of b and returns what is behind it.
func Decode(b []byte) (Map, []byte, error) {
	const head = 1 + 8 + 8 + 4
	if len(b) < head {
		return Map{}, nil, ErrDamaged
	}
	float := func(at int) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b[at:])) }
	m := Map{kind: kind(b[0]), a: float(1), b: float(9)}
	n := int(binary.LittleEndian.Uint32(b[17:]))
	if m.kind > isotonic || !finite(m.a) || !finite(m.b) || m.a < 0 || n > (len(b)-head)/16 || (n > 0) != (m.kind == isotonic) {
		return Map{}, nil, ErrDamaged
	}
	for i := range n {
		at, p := float(head+16*i), float(head+16*i+8)
		if !finite(at) || !(p >= 0 && p <= 1) || i > 0 && (at <= m.at[i-1] || p < m.p[i-1]) {
			return Map{}, nil, ErrDamaged
		}
		m.at, m.p = append(m.at, at), append(m.p, p)
	}
	return m, b[head+16*n:], nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
