package univariate

import "math"

// kept is how many peaks a tail keeps.
const kept = 12

const (
	fewest    = 8    // peaks from which the distribution is estimated, once there are as many
	share     = 0.6  // of the peaks seen, that count as the tail while they are few
	shape     = 0.2  // of the generalised Pareto distribution
	leastSize = 0.01 // of the excesses, as a share of the threshold's size
)

// logs are the logarithms of small numbers.
var logs = func() (out [kept + 1]float64) {
	for k := range out {
		out[k] = math.Log(float64(k))
	}
	return out
}()

// tail holds the highest peaks of one view in one direction. A peak is the highest value of
// a time in which values are close to it.
type tail struct {
	peaks  [kept]peak // the highest first
	n      int        // how many of peaks are there
	seen   int64      // peaks ever, those that are lower than the kept ones included
	newest peak       // the one that may still grow
}

type peak struct {
	value float64
	at    int64 // the sample
}

// observe returns the surprise of a value: minus the logarithm of how many peaks at least as
// high the past should have had. Then the value becomes part of the past.
func (t *tail) observe(v float64, now, separate, forget int64) float64 {
	for i := 0; i < t.n; {
		if now-t.peaks[i].at > forget {
			t.remove(i)
		} else {
			i++
		}
	}
	if now < burn {
		return math.Inf(-1)
	}
	s := t.surprise(v)
	switch {
	case t.seen == 0 || now-t.newest.at > separate:
		t.seen++
		t.insert(peak{v, now})
	case v > t.newest.value:
		for i := range t.n {
			if t.peaks[i].at == t.newest.at {
				t.remove(i)
				break
			}
		}
		t.insert(peak{v, now})
	}
	return s
}

func (t *tail) remove(i int) {
	copy(t.peaks[i:t.n-1], t.peaks[i+1:t.n])
	t.n--
}

func (t *tail) insert(p peak) {
	t.newest = p
	i := t.n
	for i > 0 && t.peaks[i-1].value < p.value {
		i--
	}
	if i == kept {
		return
	}
	t.n = min(t.n+1, kept)
	copy(t.peaks[i+1:t.n], t.peaks[i:t.n-1])
	t.peaks[i] = p
}

func (t *tail) surprise(v float64) float64 {
	if t.n < 3 {
		return math.Inf(-1)
	}
	k := min(t.n, max(fewest, int(share*float64(t.seen))))
	threshold := t.peaks[k-1].value
	excess := 0.0
	for _, p := range t.peaks[:k-1] {
		excess += p.value - threshold
	}
	excess = max(excess/float64(k-1), leastSize*math.Abs(threshold), 1e-9)
	// Of a mean excess m, the scale of the distribution is m·(1-shape).
	over := (v - threshold) / (excess * (1 - shape))
	s := -logs[k]
	if over > 0 {
		s += math.Log1p(shape*over) / shape
	}
	return s
}
