// Package tail turns the scores of a healthy host into tail probabilities, by the peaks over a
// high quantile (Siffer et al., "Anomaly Detection in Streams with Extreme Value Theory", KDD
// 2017) with runs declustering (Coles, "An Introduction to Statistical Modeling of Extreme
// Values", 2001, 5.3.2).
package tail

import (
	"errors"
	"math"
	"slices"
)

// Apart is how many samples lie between two episodes.
const Apart = 60

// Tail is the distribution of the scores. Scores over Base belong to one episode until
// [Apart] samples in a row are not, and the highest of an episode is its peak. Above Base the
// tail is the rate at which episodes begin times a generalised Pareto distribution of their peaks,
// so that what is below a tail of p begins p times a sample on average.
//
// An episode that does not end is one episode. Its scores stay in the tail for as long as it lasts, so that an alarm on
// them stays up; what they teach is one bounded peak, when it ends. After a thousand samples the rate is not forgotten meanwhile, since no
// episode can begin, and Base follows only scores near it. So an incident does not pass for normal however long it lasts,
// and what comes after it is judged as before. That a host has changed for good cannot be told from its
// scores alone: package staged learns it anew after a day.
type Tail struct {
	Base         float64 // the 0.9 quantile
	Rate         float64 // episodes a sample
	Mean, Square float64 // of the peaks' excess over Base, and of its square
	N, Episodes  float64 // samples and episodes that are remembered
	Peak         float64 // excess of the episode under way, 0 for none
	Calm         int     // samples below Base since
	lasts        int     // samples since its peak is beyond what teaches; begins anew where it is loaded
}

const (
	quantile   = 0.9  // of the scores, from where the tail begins
	mostShape  = 0.3  // of the generalised Pareto tail
	usualShape = 0.15 // before anything is known of it
	shapeCount = 50   // episodes that this counts as
	leastMean  = 0.05 // of the excess
	mostExcess = 5    // that teaches, in means
	long       = 1000 // samples of an incident from which on the rate is kept
)

// New learns from finite scores in order, which should not have been learned from by what gave
// them. Those below 0 count as 0.
func New(scores []float64) (Tail, error) {
	if len(scores) == 0 {
		return Tail{}, errors.New("tail: no scores to learn from")
	}
	s := slices.Clone(scores)
	slices.Sort(s)
	if math.IsNaN(s[0]) || math.IsInf(s[0], 0) || math.IsInf(s[len(s)-1], 0) {
		return Tail{}, errors.New("tail: a score is not a finite number")
	}
	t := Tail{Base: max(0, s[int(quantile*float64(len(s)-1))])}
	var found []float64
	for _, v := range scores {
		if e := t.next(v); e > 0 {
			found = append(found, e)
		}
	}
	if t.Peak > 0 {
		found = append(found, t.Peak)
	}
	t.Peak, t.Calm = 0, 0
	k := float64(len(found))
	for _, e := range found {
		t.Mean += e / k
		t.Square += e * e / k
	}
	t.N, t.Episodes = float64(len(scores)), max(k, 1)
	t.Rate = min(t.Episodes/t.N, 1-quantile)
	// With few episodes the mean is uncertain: it is widened by one standard error.
	wide := 1 + 1/math.Sqrt(t.Episodes)
	t.Mean, t.Square = t.Mean*wide, t.Square*wide*wide
	if least := max(leastMean, 0.05*t.Base); t.Mean < least {
		t.Mean, t.Square = least, 2*least*least
	}
	return t, nil
}

// next takes a score and returns the peak of the episode that it ends, or 0.
func (t *Tail) next(score float64) (ended float64) {
	if score > t.Base {
		t.Peak, t.Calm = max(t.Peak, score-t.Base), 0
		return 0
	}
	if t.Calm = min(t.Calm+1, Apart); t.Peak == 0 || t.Calm < Apart {
		return 0
	}
	ended, t.Peak = t.Peak, 0
	return ended
}

// shape is that of the generalised Pareto distribution by the method of moments, drawn
// towards what is usual where there are few episodes.
func (t *Tail) shape() float64 {
	spread := max(t.Square-t.Mean*t.Mean, 1e-9*t.Mean*t.Mean)
	found := max(-1, (1-t.Mean*t.Mean/spread)/2)
	return max(0.01, min(mostShape, (t.Episodes*found+shapeCount*usualShape)/(t.Episodes+shapeCount)))
}

// Of is the probability that an episode at least as high begins with a sample.
func (t *Tail) Of(score float64) float64 {
	if score <= t.Base {
		return 1 - (1-t.Rate)*max(score, 0)/max(t.Base, 1e-300)
	}
	shape := t.shape()
	return t.Rate * math.Pow(1+shape*(score-t.Base)/(t.Mean*(1-shape)), -1/shape)
}

// Adapt moves the distribution by one score's worth. Of an incident only its bounded peak
// teaches, and base moves little, so that it does not pass for normal soon.
func (t *Tail) Adapt(score, memory float64) {
	t.N = min(t.N+1, memory)
	if t.lasts++; t.Peak <= mostExcess*t.Mean {
		t.lasts = 0
	}
	if t.lasts < long {
		t.Rate *= 1 - 1/t.N
	}
	if ended := t.next(score); ended > 0 {
		t.Rate = min(t.Rate+1/t.N, 1-quantile)
		t.Episodes = min(t.Episodes+1, max(1, memory*t.Rate))
		e := min(ended, mostExcess*t.Mean)
		t.Mean = max(leastMean, t.Mean+(e-t.Mean)/t.Episodes)
		t.Square = max(t.Mean*t.Mean, t.Square+(e*e-t.Square)/t.Episodes)
	}
	// The density at the quantile is about (1-quantile)/mean. An episode that lasts moves
	// it no more.
	step := t.Mean / (1 - quantile) / t.N
	switch {
	case score <= t.Base:
		t.Base = max(0, t.Base-(1-quantile)*step)
	case t.Calm == 0 && score-t.Base < t.Mean:
		t.Base += quantile * step
	}
}

// Sound says whether the values are possible, as after loading them.
func (t *Tail) Sound() bool {
	return t.Base >= 0 && t.Rate > 0 && t.Rate <= 1-quantile && t.Mean > 0 && t.Square >= 0 && t.N >= 1 && t.Episodes >= 1 && t.Peak >= 0
}
