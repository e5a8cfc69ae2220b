// Package drift tells how far live data are from what a model was trained on, and its
// probabilities from what happened.
//
// For each series the training data's deciles make bins; the live share of each bin is
// compared with the training share by the population stability index, the sum over bins of
// (live-train)·ln(live/train) (Siddiqi, "Credit Risk Scorecards", 2006: under 0.1 is stable,
// over 0.25 is a shift), and by the Kolmogorov-Smirnov distance at the bins' edges. A value
// that makes up a tenth of the training data has a bin of its own.
//
// Loads have days and weeks, so that a part of a week is unlike the whole also where nothing has
// changed. Therefore live data are compared over a window of time, of which what has not been seen
// yet counts as it was in training: a part weighs as much as it is of the window. Of a model that was
// trained on whole weeks a part of an ordinary week is then never farther than KS 0.204, at which the
// two weekend days and the work days would have no value in common: 2/7 · 5/7.
package drift

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/model/tail"
)

const (
	bins  = 10
	least = 1e-4 // share of a bin, so that an empty one has a logarithm
)

// Reference is the distribution of a model's training data. It does not change.
type Reference struct {
	Series []Histogram `json:"series"`
}

// Histogram is of one series.
type Histogram struct {
	Name string `json:"name"`
	// Edges divide the values: bin i has those in [Edges[i-1], Edges[i]). They ascend.
	Edges []float64 `json:"edges"`
	// Shares are of the values that are there, one more than there are edges.
	Shares []float64 `json:"shares"`
	// Missing is the share of the samples without a value, 0..1.
	Missing float64 `json:"missing"`
}

// weighed is a value that stands for as many as weight.
type weighed struct{ value, weight float64 }

// NewReference takes the distribution of rows, with a column for each name. Each row stands for as many
// as its weight, over 0; nil means that all weigh the same.
func NewReference(names []string, rows int, value func(row, column int) float64, weight []float64) *Reference {
	r := &Reference{}
	values := make([]weighed, 0, rows)
	for c, name := range names {
		values = values[:0]
		there, all := 0.0, 0.0
		for i := range rows {
			w := 1.0
			if weight != nil {
				w = weight[i]
			}
			all += w
			if v := value(i, c); !math.IsNaN(v) && !math.IsInf(v, 0) {
				values = append(values, weighed{v, w})
				there += w
			}
		}
		slices.SortFunc(values, func(a, b weighed) int { return cmp.Compare(a.value, b.value) })
		h := Histogram{Name: name, Edges: edges(values, there)}
		if all > 0 {
			h.Missing = max(0, 1-there/all)
		}
		h.Shares = make([]float64, len(h.Edges)+1)
		for _, v := range values {
			h.Shares[h.bin(v.value)] += v.weight / there
		}
		r.Series = append(r.Series, h)
	}
	return r
}

// edges are the inner deciles of sorted values that weigh so much together; a value that is two of
// them is an atom, and gets the bin from itself to the next number.
func edges(sorted []weighed, total float64) []float64 {
	out := []float64{}
	if len(sorted) == 0 {
		return out
	}
	at, below := 0, 0.0 // below is what weighs less than sorted[at]
	for i := 1; i < bins; i++ {
		for at < len(sorted)-1 && below+sorted[at].weight <= total*float64(i)/bins {
			below += sorted[at].weight
			at++
		}
		v := sorted[at].value
		if n := len(out); n > 0 && out[n-1] >= v {
			if out[n-1] == v && v < math.MaxFloat64 {
				out = append(out, math.Nextafter(v, math.Inf(1)))
			}
			continue
		}
		out = append(out, v)
	}
	return out
}

func (h *Histogram) bin(v float64) int {
	i, _ := slices.BinarySearchFunc(h.Edges, v, func(edge, v float64) int {
		if edge <= v {
			return -1
		}
		return 1
	})
	return i
}

// Check says what is wrong with a reference that was read.
func (r *Reference) Check() error {
	for _, h := range r.Series {
		if len(h.Edges) > 2*bins || len(h.Shares) != len(h.Edges)+1 {
			return fmt.Errorf("%.100q has %d edges and %d shares", h.Name, len(h.Edges), len(h.Shares))
		}
		for i, e := range h.Edges {
			if math.IsNaN(e) || math.IsInf(e, 0) || i > 0 && !(e > h.Edges[i-1]) {
				return fmt.Errorf("the edges of %.100q do not ascend", h.Name)
			}
		}
		for _, s := range append([]float64{h.Missing}, h.Shares...) {
			if !(s >= 0 && s <= 1.000001) {
				return fmt.Errorf("a share of %.100q is not in 0..1", h.Name)
			}
		}
	}
	return nil
}

// Window gathers live data to compare with a reference. It is not safe for concurrent use.
type Window struct {
	ref     *Reference
	counts  [][]float64
	missing []float64
	n       float64
}

// NewWindow returns an empty one.
func NewWindow(ref *Reference) *Window {
	w := &Window{ref: ref, counts: make([][]float64, len(ref.Series)), missing: make([]float64, len(ref.Series))}
	for i, h := range ref.Series {
		w.counts[i] = make([]float64, len(h.Shares))
	}
	return w
}

// Add takes a sample, a value for each series of the reference.
func (w *Window) Add(x []float64) {
	w.n++
	for i := range w.ref.Series {
		v := math.NaN()
		if i < len(x) {
			v = x[i]
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			w.missing[i]++
			continue
		}
		w.counts[i][w.ref.Series[i].bin(v)]++
	}
}

// Counts is what a window has counted, to be stored: of each series how many values fell into
// each bin, and how many were missing.
type Counts struct {
	Samples float64     `json:"samples"`
	Values  [][]float64 `json:"values"`
	Missing []float64   `json:"missing"`
}

// Counts is a copy of what it has counted.
func (w *Window) Counts() Counts {
	c := Counts{Samples: w.n, Missing: slices.Clone(w.missing)}
	for _, of := range w.counts {
		c.Values = append(c.Values, slices.Clone(of))
	}
	return c
}

// Restore takes the place of what it has counted. What cannot be of a window on this reference
// is refused, and the window stays as it is.
func (w *Window) Restore(c Counts) error {
	if !count(c.Samples) || len(c.Values) != len(w.counts) || len(c.Missing) != len(w.counts) {
		return fmt.Errorf("drift: counts of %v samples of %d series, where %d are looked at", c.Samples, len(c.Values), len(w.counts))
	}
	for i, of := range c.Values {
		sum, whole := c.Missing[i], count(c.Missing[i])
		for _, n := range of {
			sum, whole = sum+n, whole && count(n)
		}
		if len(of) != len(w.counts[i]) || !whole || sum != c.Samples {
			return fmt.Errorf("drift: the counts of %.100q do not add up to %v samples in %d bins", w.ref.Series[i].Name, c.Samples, len(w.counts[i]))
		}
	}
	w.n = c.Samples
	copy(w.missing, c.Missing)
	for i, of := range c.Values {
		copy(w.counts[i], of)
	}
	return nil
}

// count tells whether a number can be one of samples.
func count(n float64) bool { return n >= 0 && n <= 1<<52 && n == math.Trunc(n) }

// Reset empties it.
func (w *Window) Reset() { *w = *NewWindow(w.ref) }

// Samples is how many were added.
func (w *Window) Samples() int { return int(w.n) }

// Distance is how far a series has drifted.
type Distance struct {
	Series string `json:"series"`
	// PSI is the population stability index, with the missing values as a bin of their own.
	PSI float64 `json:"psi"`
	// KS is the largest difference of the two distribution functions at the bins' edges, 0..1.
	KS float64 `json:"ks"`
}

// Distances compares, the farthest series first. seen is the share of the window of time that its samples
// are of, over 0 and up to 1: the rest counts as it was in training.
func (w *Window) Distances(seen float64) []Distance {
	out := make([]Distance, 0, len(w.ref.Series))
	for i, h := range w.ref.Series {
		d := Distance{Series: h.Name}
		if w.n > 0 {
			mixed := func(train, live float64) float64 { return train + seen*(live/w.n-train) }
			missing := mixed(h.Missing, w.missing[i])
			d.PSI = index(h.Missing, missing)
			train, live := 0.0, 0.0
			for k, share := range h.Shares {
				got := mixed(share*(1-h.Missing), w.counts[i][k])
				d.PSI += index(share*(1-h.Missing), got)
				train, live = train+share, live+got
				if missing < 1 && h.Missing < 1 {
					d.KS = max(d.KS, math.Abs(train-live/(1-missing)))
				}
			}
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b Distance) int {
		switch {
		case a.PSI > b.PSI:
			return -1
		case a.PSI < b.PSI:
			return 1
		}
		return 0
	})
	return out
}

func index(train, live float64) float64 {
	if train < least && live < least {
		return 0
	}
	train, live = max(train, least), max(live, least)
	return (live - train) * math.Log(live/train)
}

// Limits say from where on drift asks for a new model.
type Limits struct {
	// PSI is the index from which a series counts as shifted, and KS the distance from which it does,
	// whatever the other says. A KS over 1 never does.
	PSI float64
	KS  float64
	// Ratio is the share of the series that must have shifted, 0..1.
	Ratio float64
	// Samples is how many a window must have to be judged.
	Samples int
	// Calibration is by how many powers of ten more or less may come than was predicted; see
	// [Tails.Error] and [Outcomes.Error].
	Calibration float64
}

// Check says what is wrong with the limits.
func (l Limits) Check() error {
	if !(l.PSI > 0) || !(l.KS > 0) || !(l.Ratio > 0 && l.Ratio <= 1) || l.Samples < 1 || !(l.Calibration > 0) {
		return errors.New("drift: limits on the index and the distance over 0, a ratio in 0..1, at least one sample and a limit on calibration over 0 are needed")
	}
	return nil
}

// Verdict is what the limits make of a window.
type Verdict struct {
	// Ready is false while the window has too few samples to be judged.
	Ready bool `json:"ready"`
	// Drifted asks for a new model; Why says so for a person.
	Drifted bool   `json:"drifted"`
	Why     string `json:"why,omitempty"`
	Samples int    `json:"samples"`
	// Shifted is how many of how many series are over the limit.
	Shifted int `json:"shifted"`
	Series  int `json:"series"`
	// Calibration is the error, 0 where nothing is known of it.
	Calibration float64 `json:"calibration_error"`
	// Worst are the series that are farthest beyond a limit, or nearest to it, the farthest first.
	Worst []Distance `json:"worst"`
}

// Judge compares a window, of which so much was seen (see [Window.Distances]), and a calibration error,
// with the limits.
func (l Limits) Judge(w *Window, seen, calibration float64) Verdict {
	all := w.Distances(seen)
	slices.SortStableFunc(all, func(a, b Distance) int { return cmp.Compare(l.beyond(b), l.beyond(a)) })
	v := Verdict{Samples: w.Samples(), Series: len(all), Calibration: calibration, Worst: all[:min(5, len(all))]}
	v.Ready = v.Samples >= l.Samples
	for _, d := range all {
		if l.beyond(d) >= 1 {
			v.Shifted++
		}
	}
	if !v.Ready {
		return v
	}
	if v.Series > 0 && float64(v.Shifted) >= l.Ratio*float64(v.Series) && v.Shifted > 0 {
		v.Drifted = true
		v.Why = fmt.Sprintf("%d of %d series have shifted (PSI of %.2f or more, or KS of %.2f), most of all %s", v.Shifted, v.Series, l.PSI, l.KS, l.say(v.Worst[0]))
		return v
	}
	if calibration >= l.Calibration {
		v.Drifted = true
		v.Why = fmt.Sprintf("what it says is off by %.2f powers of ten from what comes (limit %.2f)", calibration, l.Calibration)
	}
	return v
}

// beyond is how far a series is as a share of the limit, of the measure by which that is more.
func (l Limits) beyond(d Distance) float64 { return max(d.PSI/l.PSI, d.KS/l.KS) }

// say names a series and the measure by which it is that far.
func (l Limits) say(d Distance) string {
	if d.KS/l.KS > d.PSI/l.PSI {
		return fmt.Sprintf("%s (KS %.2f)", d.Series, d.KS)
	}
	return fmt.Sprintf("%s (PSI %.2f)", d.Series, d.PSI)
}

// Calibration follows whether probabilities come true.
type Calibration struct {
	n, predicted, came [bins]float64
}

// Add takes a probability and whether what it is of came, which stands for as many as weight.
func (c *Calibration) Add(p float64, came bool, weight float64) {
	if math.IsNaN(p) {
		return
	}
	b := min(bins-1, int(max(0, min(1, p))*bins))
	c.n[b] += weight
	c.predicted[b] += weight * p
	if came {
		c.came[b] += weight
	}
}

// Error is the expected calibration error, 0..1: the mean over all predictions of the
// difference between the mean probability and the share that came, bin by bin.
func (c *Calibration) Error() float64 {
	total, sum := 0.0, 0.0
	for b := range bins {
		total += c.n[b]
		sum += math.Abs(c.predicted[b] - c.came[b])
	}
	if total == 0 {
		return 0
	}
	return sum / total
}

// Tails follows whether tail probabilities are what they say: of a calibrated detector on
// healthy hosts, an episode of tails of at most p begins p times a sample.
type Tails struct {
	// Samples is how many were added, Below at how many of these an episode of tails of at most 0.3, 0.1,
	// 0.03, 0.01, 0.003 and 0.001 began.
	Samples float64                 `json:"samples"`
	Below   [len(tailSteps)]float64 `json:"below"`
}

var tailSteps = [...]float64{0.3, 0.1, 0.03, 0.01, 0.003, 0.001}

// Episodes is in which episodes a host is: for how many of its samples each goes on unless another one
// is of it. The zero value is in none.
type Episodes [len(tailSteps)]int

// Add takes the tail of the next sample of a host.
func (t *Tails) Add(p float64, host *Episodes) {
	if math.IsNaN(p) {
		return
	}
	t.Samples++
	for i, step := range tailSteps {
		switch {
		case p <= step:
			if host[i] == 0 {
				t.Below[i]++
			}
			host[i] = tail.Apart
		case host[i] > 0:
			host[i]--
		}
	}
}

// Error is by how many powers of ten the rarest tails that can be judged come too often, 0 where they
// do not. seen is the share of the window of time that they are of: the rest counts as calibrated.
func (t *Tails) Error(seen float64) float64 {
	worst := 0.0
	for i, step := range tailSteps {
		if t.Samples*step < 20 {
			break // too few are expected
		}
		worst = max(worst, math.Log10(1+seen*(t.Below[i]/(t.Samples*step)-1)))
	}
	return worst
}

// Check says what is wrong with tails that were read.
func (t *Tails) Check() error {
	for _, n := range append([]float64{t.Samples}, t.Below[:]...) {
		if !count(n) || n > t.Samples {
			return fmt.Errorf("drift: at %v of %v samples episodes of tails of at most %v began", t.Below, t.Samples, tailSteps)
		}
	}
	return nil
}
