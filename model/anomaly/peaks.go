package anomaly

import (
	"math"
	"slices"
)

// peaks is the distribution of the score, by the peaks over a high quantile (Siffer et
// al., "Anomaly Detection in Streams with Extreme Value Theory", KDD 2017) with runs
// declustering (Coles, "An Introduction to Statistical Modeling of Extreme Values", 2001,
// 5.3.2): scores over base belong to one episode until apart samples in a row are not, and
// the highest of an episode is its peak. Above base the tail is the rate at which episodes begin
// times a generalised Pareto distribution of their peaks, so that what is below a tail of p
// begins p times a sample on average.
type peaks struct {
	base         float64
	rate         float64 // episodes a sample
	mean, square float64 // of the peaks' excess over base, and of its square
	n, episodes  float64 // that are remembered
	peak         float64 // excess of the episode under way, 0 for none
	calm         int     // samples below base since
}

const (
	quantile   = 0.9  // of the scores, from where the tail begins
	apart      = 60   // samples between two episodes
	mostShape  = 0.3  // of the generalised Pareto tail
	usualShape = 0.15 // before anything is known of it
	shapeCount = 50   // episodes that this counts as
	leastMean  = 0.05 // of the excess
	mostExcess = 5    // that teaches, in means
)

func newPeaks(scores []float64) peaks {
	s := slices.Clone(scores)
	slices.Sort(s)
	p := peaks{base: s[int(quantile*float64(len(s)-1))]}
	var found []float64
	for _, v := range scores {
		if e := p.next(v); e > 0 {
			found = append(found, e)
		}
	}
	if p.peak > 0 {
		found = append(found, p.peak)
	}
	p.peak, p.calm = 0, 0
	k := float64(len(found))
	for _, e := range found {
		p.mean += e / k
		p.square += e * e / k
	}
	p.n, p.episodes = float64(len(scores)), max(k, 1)
	p.rate = min(p.episodes/p.n, 1-quantile)
	// With few episodes the mean is uncertain: it is widened by one standard error.
	wide := 1 + 1/math.Sqrt(p.episodes)
	p.mean, p.square = p.mean*wide, p.square*wide*wide
	if least := max(leastMean, 0.05*p.base); p.mean < least {
		p.mean, p.square = least, 2*least*least
	}
	return p
}

// next takes a score and returns the peak of the episode that it ends, or 0.
func (p *peaks) next(score float64) (ended float64) {
	if score > p.base {
		p.peak, p.calm = max(p.peak, score-p.base), 0
		return 0
	}
	if p.calm = min(p.calm+1, apart); p.peak == 0 || p.calm < apart {
		return 0
	}
	ended, p.peak = p.peak, 0
	return ended
}

// shape is that of the generalised Pareto distribution by the method of moments, drawn
// towards what is usual where there are few episodes.
func (p *peaks) shape() float64 {
	spread := max(p.square-p.mean*p.mean, 1e-9*p.mean*p.mean)
	found := max(-1, (1-p.mean*p.mean/spread)/2)
	return max(0.01, min(mostShape, (p.episodes*found+shapeCount*usualShape)/(p.episodes+shapeCount)))
}

// of is the probability that an episode at least as high begins with a sample.
func (p *peaks) of(score float64) float64 {
	if score <= p.base {
		return 1 - (1-p.rate)*max(score, 0)/max(p.base, 1e-300)
	}
	shape := p.shape()
	return p.rate * math.Pow(1+shape*(score-p.base)/(p.mean*(1-shape)), -1/shape)
}

// adapt moves the distribution by one score's worth. Of an incident only its bounded peak
// teaches, and base moves little, so that it does not pass for normal soon.
func (p *peaks) adapt(score, memory float64) {
	p.n = min(p.n+1, memory)
	p.rate *= 1 - 1/p.n
	if ended := p.next(score); ended > 0 {
		p.rate = min(p.rate+1/p.n, 1-quantile)
		p.episodes = min(p.episodes+1, max(1, memory*p.rate))
		e := min(ended, mostExcess*p.mean)
		p.mean = max(leastMean, p.mean+(e-p.mean)/p.episodes)
		p.square = max(p.mean*p.mean, p.square+(e*e-p.square)/p.episodes)
	}
	// The density at the quantile is about (1-quantile)/mean. An episode that lasts moves
	// it no more.
	step := p.mean / (1 - quantile) / p.n
	switch {
	case score <= p.base:
		p.base = max(0, p.base-(1-quantile)*step)
	case p.calm == 0 && score-p.base < p.mean:
		p.base += quantile * step
	}
}

func (p *peaks) sound() bool {
	return p.base >= 0 && p.rate > 0 && p.rate <= 1-quantile && p.mean > 0 && p.square >= 0 && p.n >= 1 && p.episodes >= 1 && p.peak >= 0
}
