package metrics

import "slices"

// Affiliation is the precision and the recall of Huet, Navarro and Rossi ("Local Evaluation of
// Time Series Anomaly Detection Algorithms", KDD 2022) where samples over the threshold count as
// anomalous. Each sample of the series belongs to the event that is nearest. Precision is how
// near what is predicted is to its event, as the probability that a random sample of
// that event's surroundings is farther off; it is averaged over the events near which something is
// predicted. Recall is likewise how near what is predicted comes to each sample of the event,
// averaged over all events. Both are 0 where nothing is predicted.
func Affiliation(scores []float64, labels []bool, threshold float64) (precision, recall float64, err error) {
	if err := check(scores, labels); err != nil {
		return 0, 0, err
	}
	precision, recall = affiliation(predicted(nil, scores, threshold), events(labels), float64(len(labels)))
	return precision, recall, nil
}

// AffiliationF1 is the harmonic mean of both at the best of 100 thresholds that are evenly
// spaced over the scores, as TSB-AD has it, and that threshold.
func AffiliationF1(scores []float64, labels []bool) (f1, threshold float64, err error) {
	if err := check(scores, labels); err != nil {
		return 0, 0, err
	}
	truth := events(labels)
	low, high := slices.Min(scores), slices.Max(scores)
	const tried = 100
	var buf []span
	for k := range tried {
		limit := low + (high-low)*float64(k)/(tried-1)
		buf = predicted(buf[:0], scores, limit)
		p, r := affiliation(buf, truth, float64(len(labels)))
		if f := harmonic(p, r); f > f1 {
			f1, threshold = f, limit
		}
	}
	return f1, threshold, nil
}

func harmonic(a, b float64) float64 {
	if a+b == 0 {
		return 0
	}
	return 2 * a * b / (a + b)
}

// predicted appends the runs of samples over the threshold.
func predicted(dst []span, scores []float64, threshold float64) []span {
	for i, s := range scores {
		switch {
		case !(s > threshold):
		case len(dst) > 0 && dst[len(dst)-1].last == i-1:
			dst[len(dst)-1].last = i
		default:
			dst = append(dst, span{i, i})
		}
	}
	return dst
}

// interval is a piece of time; sample i is from i to i+1.
type interval struct{ from, to float64 }

// within is the part of v in w, empty if to is not after from.
func (v interval) within(w interval) interval {
	return interval{max(v.from, w.from), min(v.to, w.to)}
}

func affiliation(found, truth []span, n float64) (precision, recall float64) {
	near, k := 0, 0
	var inside []interval
	for j, e := range truth {
		event, zone := interval{float64(e.first), float64(e.last + 1)}, interval{0, n}
		if j > 0 {
			zone.from = (float64(truth[j-1].last+1) + event.from) / 2
		}
		if j+1 < len(truth) {
			zone.to = (event.to + float64(truth[j+1].first)) / 2
		}
		for k < len(found) && float64(found[k].last+1) <= zone.from {
			k++
		}
		inside = inside[:0]
		for i := k; i < len(found) && float64(found[i].first) < zone.to; i++ {
			inside = append(inside, interval{float64(found[i].first), float64(found[i].last + 1)}.within(zone))
		}
		if len(inside) == 0 {
			continue
		}
		near++
		sum, length := 0.0, 0.0
		for _, v := range inside {
			sum += toEvent(v, event, zone)
			length += v.to - v.from
		}
		precision += sum / length
		sum = 0
		for i, v := range inside {
			mine := zone // what is nearer to v than to others
			if i > 0 {
				mine.from = (inside[i-1].to + v.from) / 2
			}
			if i+1 < len(inside) {
				mine.to = (v.to + inside[i+1].from) / 2
			}
			sum += fromEvent(event.within(mine), v, zone)
		}
		recall += sum / (event.to - event.from)
	}
	if near == 0 {
		return 0, 0
	}
	return precision / float64(near), recall / float64(len(truth))
}

// toEvent integrates, over the times x in v, the probability that a random time in the zone
// is at least as far from the event as x.
func toEvent(v, event, zone interval) float64 {
	size, width := zone.to-zone.from, event.to-event.from
	before, after := v.within(interval{zone.from, event.from}), v.within(interval{event.to, zone.to})
	sum := integral(before, event.from-(zone.to-event.to), func(x float64) float64 {
		d := event.from - x
		return 1 - (width+d+min(d, zone.to-event.to))/size
	})
	sum += integral(after, event.to+(event.from-zone.from), func(x float64) float64 {
		d := x - event.to
		return 1 - (width+d+min(d, event.from-zone.from))/size
	})
	if in := v.within(event); in.to > in.from {
		sum += in.to - in.from
	}
	return sum
}

// fromEvent integrates, over the times y of the event, the probability that a random time
// in the zone is at least as far from y as v is.
func fromEvent(event, v, zone interval) float64 {
	size := zone.to - zone.from
	sum := integral(event.within(interval{zone.from, v.from}), (zone.from+v.from)/2, func(y float64) float64 {
		d := v.from - y
		return 1 - (d+min(d, y-zone.from))/size
	})
	sum += integral(event.within(interval{v.to, zone.to}), (zone.to+v.to)/2, func(y float64) float64 {
		d := y - v.to
		return 1 - (d+min(d, zone.to-y))/size
	})
	if in := event.within(v); in.to > in.from {
		sum += in.to - in.from
	}
	return sum
}

// integral is that of f over v, where f is linear on either side of the bend.
func integral(v interval, bend float64, f func(float64) float64) float64 {
	if v.to <= v.from {
		return 0
	}
	piece := func(a, b float64) float64 { return (f(a) + f(b)) / 2 * (b - a) }
	if bend > v.from && bend < v.to {
		return piece(v.from, bend) + piece(bend, v.to)
	}
	return piece(v.from, v.to)
}
