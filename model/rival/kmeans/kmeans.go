// Package kmeans watches each column by itself, as Netdata's agent does ("ML: unsupervised
// anomaly detection", learn.netdata.cloud): a column's samples are differenced, smoothed
// over 3, and taken as windows of 6; k-means with two centres is learned from each of 18
// spans of the training data; a window is anomalous if under every one of these models its
// mean distance to the centres is beyond 99 % of the range that the model has seen. The score is the share of
// anomalous columns, averaged over the last 5 samples, the way Netdata averages its rate of
// anomalous metrics of a node, which is in steps; a hundredth of the mean distance
// orders what is equal.
package kmeans

import (
	"math"

	"github.com/tardigrade-recovery/tardigrade/model/rival"
)

const (
	lag     = 6
	smooth  = 3
	models  = 18
	rounds  = 100 // of Lloyd's algorithm at most
	beyond  = 0.99
	average = 5
)

// centres is a model of one column.
type centres struct {
	at        [2][lag]float64
	low, span float64 // of the distances while learning
}

// Model is the models of all columns. It may be shared.
type Model struct {
	scale rival.Scale
	of    [][]centres
}

// Fit learns from rows in order.
func Fit(rows [][]float64) (*Model, error) {
	scale, err := rival.Learn(rows)
	if err != nil {
		return nil, err
	}
	m := &Model{scale: scale, of: make([][]centres, scale.Columns())}
	z := scale.All(rows)
	for j := range m.of {
		var w window
		var all [][lag]float64
		for _, r := range z {
			if w.push(r[j]) {
				all = append(all, w.last)
			}
		}
		n := min(models, max(1, len(all)/50))
		for k := range n {
			if span := all[k*len(all)/n : (k+1)*len(all)/n]; len(span) > 0 {
				m.of[j] = append(m.of[j], learn(span))
			}
		}
	}
	return m, nil
}

// window is the state of a column.
type window struct {
	value [smooth + 1]float64 // the latest first
	last  [lag]float64        // smoothed differences, the latest first
	seen  int
}

// push takes a value and says whether there are enough of them.
func (w *window) push(v float64) bool {
	copy(w.value[1:], w.value[:])
	w.value[0] = v
	if w.seen++; w.seen <= smooth {
		return false
	}
	copy(w.last[1:], w.last[:])
	w.last[0] = (w.value[0] - w.value[smooth]) / smooth
	return w.seen >= smooth+lag
}

func apart(a, b *[lag]float64) float64 {
	s := 0.0
	for i, v := range a {
		s += (v - b[i]) * (v - b[i])
	}
	return math.Sqrt(s)
}

// distance is the mean distance to both centres.
func (c *centres) distance(w *[lag]float64) float64 {
	return (apart(&c.at[0], w) + apart(&c.at[1], w)) / 2
}

// learn runs Lloyd's algorithm from the first window and the one farthest from it.
func learn(all [][lag]float64) centres {
	var c centres
	c.at[0] = all[0]
	for i := range all {
		if apart(&all[i], &all[0]) >= apart(&c.at[1], &all[0]) {
			c.at[1] = all[i]
		}
	}
	moved := true
	for round := 0; moved && round < rounds; round++ {
		var sum [2][lag]float64
		var n [2]float64
		for i := range all {
			k := 0
			if apart(&all[i], &c.at[1]) < apart(&all[i], &c.at[0]) {
				k = 1
			}
			n[k]++
			for l, v := range all[i] {
				sum[k][l] += v
			}
		}
		moved = false
		for k := range sum {
			for l := range sum[k] {
				if n[k] > 0 && c.at[k][l] != sum[k][l]/n[k] {
					c.at[k][l], moved = sum[k][l]/n[k], true
				}
			}
		}
	}
	c.low = math.Inf(1)
	high := 0.0
	for i := range all {
		d := c.distance(&all[i])
		c.low, high = min(c.low, d), max(high, d)
	}
	c.span = max(high-c.low, 1e-6)
	return c
}

// Bytes is the memory that the model holds.
func (m *Model) Bytes() int {
	n := m.scale.Bytes()
	for _, c := range m.of {
		n += len(c) * 8 * (2*lag + 2)
	}
	return n
}

// Scorer scores the samples of one host in order; it is not safe for concurrent use.
type Scorer struct {
	m       *Model
	z       []float64
	windows []window
	rates   [average]float64
	head    int
}

// Scorer returns one at the begin of a stream.
func (m *Model) Scorer() *Scorer {
	d := m.scale.Columns()
	return &Scorer{m: m, z: make([]float64, d), windows: make([]window, d)}
}

// Bytes is the memory that the scorer holds beside its model.
func (s *Scorer) Bytes() int { return 8 * (len(s.z) + len(s.windows)*(smooth+1+lag+1) + average + 1) }

// Score is the averaged rate; 0 for the first samples.
func (s *Scorer) Score(x []float64) float64 {
	s.m.scale.To(s.z, x)
	rate := 0.0
	for j := range s.windows {
		w := &s.windows[j]
		if !w.push(s.z[j]) {
			continue
		}
		least := math.Inf(1)
		for k := range s.m.of[j] {
			c := &s.m.of[j][k]
			least = min(least, (c.distance(&w.last)-c.low)/c.span)
		}
		if math.IsInf(least, 1) {
			continue
		}
		if least > beyond {
			rate++
		}
		rate += 0.01 * min(max(least, 0), 10)
	}
	s.rates[s.head] = rate / float64(len(s.windows))
	s.head = (s.head + 1) % average
	sum := 0.0
	for _, r := range s.rates {
		sum += r
	}
	return sum / average
}
