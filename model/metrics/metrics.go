// Package metrics judges anomaly scores against labels. Scores may have any scale;
// larger is more anomalous. Labels are true where a sample is anomalous.
//
// The volumes under surfaces are those of Paparrizos et al., "Volume Under the Surface: A
// New Accuracy Evaluation Measure for Time-Series Anomaly Detection", VLDB 2022, with the
// buffers and thresholds of TSB-AD (Liu and Paparrizos, NeurIPS 2024). There is no
// point-adjusted measure here: a random score does well by it.
package metrics

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// ErrOneClass says that no sample is anomalous, or every one.
var ErrOneClass = errors.New("the labels are all the same: there is nothing to tell apart")

// check refuses what cannot be judged.
func check(scores []float64, labels []bool) error {
	if len(scores) != len(labels) {
		return fmt.Errorf("%d scores for %d labels", len(scores), len(labels))
	}
	positive := 0
	for i, s := range scores {
		if math.IsNaN(s) || math.IsInf(s, 0) {
			return fmt.Errorf("score %d is %v", i, s)
		}
		if labels[i] {
			positive++
		}
	}
	if positive == 0 || positive == len(labels) {
		return ErrOneClass
	}
	return nil
}

// span is a run of samples, both ends included.
type span struct{ first, last int }

// events are the runs of true labels.
func events(labels []bool) []span {
	var out []span
	for i, l := range labels {
		switch {
		case !l:
		case i > 0 && labels[i-1]:
			out[len(out)-1].last = i
		default:
			out = append(out, span{i, i})
		}
	}
	return out
}

// thresholds is how many are tried.
const thresholds = 250

// VUS returns the volumes under the precision-recall and the ROC surface, over buffers of
// 0 to window samples around each event, window being at most as long as the series. It takes O(n log n + window·(m + 250)) with m
// samples in or near events.
func VUS(scores []float64, labels []bool, window int) (pr, roc float64, err error) {
	if err := check(scores, labels); err != nil {
		return 0, 0, err
	}
	n := len(scores)
	if window < 0 || window > n {
		return 0, 0, fmt.Errorf("a buffer of %d samples around events (vus_window): 0 to the %d of the series are possible", window, n)
	}
	sorted := slices.Clone(scores)
	slices.SortFunc(sorted, func(a, b float64) int { return cmp.Compare(b, a) })
	// The k-th threshold is one of the scores themselves, evenly spaced by rank.
	var limit, predicted [thresholds]float64
	for k := range limit {
		limit[k] = sorted[int(float64(k)*float64(n-1)/(thresholds-1))]
	}
	for k := range limit {
		count, _ := slices.BinarySearchFunc(sorted, limit[k], func(s, t float64) int {
			if s >= t {
				return -1
			}
			return 1
		})
		predicted[k] = float64(count)
	}
	// from is the first threshold at which a sample counts as anomalous.
	from := func(score float64) int {
		k, _ := slices.BinarySearchFunc(limit[:], score, func(t, s float64) int {
			if t > s {
				return -1
			}
			return 1
		})
		return k
	}
	seq := events(labels)
	positive := 0.0
	for _, s := range seq {
		positive += float64(s.last - s.first + 1)
	}
	widest := merge(seq, window, n)
	for w := range window + 1 {
		extended := merge(seq, w, n)
		// At threshold k: truth has the labels of what is predicted, near the extended
		// labels outside of events of what is predicted, and found the events seen.
		var truth, near, found [thresholds + 1]float64
		for _, s := range extended {
			earliest := thresholds
			for i := s.first; i <= s.last; i++ {
				earliest = min(earliest, from(scores[i]))
			}
			found[earliest]++
		}
		for _, s := range widest {
			for i := s.first; i <= s.last; i++ {
				if labels[i] {
					truth[from(scores[i])]++
					continue
				}
				if v := buffer(seq, i, w); v > 0 {
					k := from(scores[i])
					truth[k] += v
					near[k] += v
				}
			}
		}
		var lastTPR, lastFPR, areaPR, areaROC, tp, outside, seen float64
		for k := range thresholds {
			tp += truth[k]
			outside += near[k]
			seen += found[k]
			fp := predicted[k] - tp
			p := (positive + positive + outside) / 2
			tpr := min(tp/p, 1) * seen / float64(len(extended))
			fpr := fp / (float64(n) - p)
			areaPR += (tpr - lastTPR) * tp / predicted[k]
			areaROC += (fpr - lastFPR) * (tpr + lastTPR) / 2
			lastTPR, lastFPR = tpr, fpr
		}
		areaROC += (1 - lastFPR) * (1 + lastTPR) / 2
		pr += areaPR
		roc += areaROC
	}
	return pr / float64(window+1), roc / float64(window+1), nil
}

// merge widens the events by half a buffer to each side and joins those that touch.
func merge(seq []span, window, n int) []span {
	half := window / 2
	var out []span
	first := max(seq[0].first-half, 0)
	for i := range seq[:len(seq)-1] {
		if seq[i].last+half < seq[i+1].first-half {
			out = append(out, span{first, seq[i].last + half})
			first = seq[i+1].first - half
		}
	}
	return append(out, span{first, min(seq[len(seq)-1].last+half, n-1)})
}

// buffer is the label that a sample outside of events gets from the events near it:
// it falls off with the root of the distance, and sums up to 1 at most.
func buffer(seq []span, i, window int) float64 {
	half := window / 2
	if half == 0 {
		return 0
	}
	j, _ := slices.BinarySearchFunc(seq, i, func(s span, i int) int { return cmp.Compare(s.first, i) })
	v := 0.0
	for k := j; k < len(seq) && seq[k].first-i <= half; k++ {
		v += math.Sqrt(1 - float64(seq[k].first-i)/float64(window))
	}
	for k := j - 1; k >= 0 && i-seq[k].last <= half; k-- {
		v += math.Sqrt(1 - float64(i-seq[k].last)/float64(window))
	}
	return min(v, 1)
}

// ranked calls each with the counts of true and false positives at each distinct score
// as threshold, from the highest down. Where there are weights, a sample counts as that many.
func ranked(scores []float64, labels []bool, weights []float64, each func(tp, fp, score float64)) (positive float64) {
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(scores[b], scores[a]) })
	var tp, fp float64
	for i, at := range order {
		w := 1.0
		if weights != nil {
			w = weights[at]
		}
		if labels[at] {
			tp += w
		} else {
			fp += w
		}
		if i+1 == len(order) || scores[order[i+1]] != scores[at] {
			each(tp, fp, scores[at])
		}
	}
	return tp
}

// AUCPR is the average precision: the mean of the precision over the recall, without
// interpolation.
func AUCPR(scores []float64, labels []bool) (float64, error) {
	pr, _, err := WeightedAUC(scores, labels, nil)
	return pr, err
}

// AUCROC is the probability that an anomalous sample scores higher than another, ties
// counting half.
func AUCROC(scores []float64, labels []bool) (float64, error) {
	_, roc, err := WeightedAUC(scores, labels, nil)
	return roc, err
}

// WeightedAUC is [AUCPR] and [AUCROC] where each sample stands for as many as its weight, over 0,
// says; nil is one each.
func WeightedAUC(scores []float64, labels []bool, weights []float64) (pr, roc float64, err error) {
	if err := check(scores, labels); err != nil {
		return 0, 0, err
	}
	if weights != nil && len(weights) != len(scores) {
		return 0, 0, fmt.Errorf("%d scores have %d weights", len(scores), len(weights))
	}
	var lastTP, lastFP float64
	positive := ranked(scores, labels, weights, func(tp, fp, _ float64) {
		pr += (tp - lastTP) * tp / (tp + fp)
		roc += (fp - lastFP) * (tp + lastTP) / 2
		lastTP, lastFP = tp, fp
	})
	return pr / positive, roc / (positive * lastFP), nil
}

// BestF1 is the F1 of samples at the threshold that is best for it, and that threshold: a
// sample counts as anomalous from it on.
func BestF1(scores []float64, labels []bool) (f1, threshold float64, err error) {
	if err := check(scores, labels); err != nil {
		return 0, 0, err
	}
	positive := 0.0
	for _, l := range labels {
		if l {
			positive++
		}
	}
	ranked(scores, labels, nil, func(tp, fp, score float64) {
		if f := 2 * tp / (tp + fp + positive); f > f1 {
			f1, threshold = f, score
		}
	})
	return f1, threshold, nil
}

// F1At is the F1 of samples where those over the threshold count as anomalous.
func F1At(scores []float64, labels []bool, threshold float64) (float64, error) {
	if err := check(scores, labels); err != nil {
		return 0, err
	}
	var tp, wrong float64
	for i, s := range scores {
		switch {
		case s > threshold && labels[i]:
			tp++
		case (s > threshold) != labels[i]:
			wrong++
		}
	}
	return 2 * tp / (2*tp + wrong), nil
}

// EventF1 is the harmonic mean of the recall of events, each found if one of its samples
// is, and the precision of samples (Garg et al., "An Evaluation of Anomaly Detection and
// Diagnosis in Multivariate Time Series", TNNLS 2022), at the best of 100 thresholds that
// are evenly spaced over the scores, as TSB-AD has it: a sample over the threshold counts as
// anomalous.
func EventF1(scores []float64, labels []bool) (f1, threshold float64, err error) {
	if err := check(scores, labels); err != nil {
		return 0, 0, err
	}
	var peaks []float64 // an event is found below its highest score
	for _, e := range events(labels) {
		peaks = append(peaks, slices.Max(scores[e.first:e.last+1]))
	}
	low, high := slices.Min(scores), slices.Max(scores)
	const tried = 100
	for k := range tried {
		limit := low + (high-low)*float64(k)/(tried-1)
		var tp, fp, found float64
		for i, s := range scores {
			if s > limit {
				if labels[i] {
					tp++
				} else {
					fp++
				}
			}
		}
		for _, p := range peaks {
			if p > limit {
				found++
			}
		}
		if tp == 0 {
			continue
		}
		precision, recall := tp/(tp+fp), found/float64(len(peaks))
		if f := 2 * precision * recall / (precision + recall); f > f1 {
			f1, threshold = f, limit
		}
	}
	return f1, threshold, nil
}

// Delays is for each event how many samples after its begin the score is first at least
// the threshold, -1 where it never is.
func Delays(scores []float64, labels []bool, threshold float64) ([]int, error) {
	if err := check(scores, labels); err != nil {
		return nil, err
	}
	var out []int
	for _, e := range events(labels) {
		delay := slices.IndexFunc(scores[e.first:e.last+1], func(s float64) bool { return s >= threshold })
		out = append(out, delay)
	}
	return out, nil
}
