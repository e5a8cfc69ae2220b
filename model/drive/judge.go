package drive

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
	"github.com/tardigrade-recovery/tardigrade/model/metrics"
)

// Verdict is how well failures are predicted. Shares are in 0..1.
type Verdict struct {
	// AUCPR is the area under the precision-recall curve over all instants whose outcome is known.
	AUCPR float64 `json:"auc_pr"`
	// Detected are the shares of failing drives that got an alarm before they failed, at
	// thresholds at which one in 1000 and one in 100 of the other drives gets a false alarm, ever.
	Detected01 float64 `json:"detected_at_far_0.1pct"`
	Detected1  float64 `json:"detected_at_far_1pct"`
	// Lead is the median of days from the first alarm to the failure, at one in 100; Lead01 at one in 1000.
	Lead   float64 `json:"median_lead_days"`
	Lead01 float64 `json:"median_lead_days_at_far_0.1pct"`
	// All are the shares of all failing drives, also of the silent ones.
	All01 float64 `json:"detected_of_all_at_far_0.1pct"`
	All1  float64 `json:"detected_of_all_at_far_1pct"`
	// Timely are the shares of those that are not silent with an alarm in the last Horizon before they failed, at
	// the same thresholds: earlier alarms don't count.
	Timely01 float64 `json:"detected_within_30d_at_far_0.1pct"`
	Timely1  float64 `json:"detected_within_30d_at_far_1pct"`
	// Monthly are the shares detected where one in 1000 and one in 100 of the other drives gets
	// a false alarm in 30 days.
	Monthly01 float64 `json:"detected_at_far_0.1pct_monthly"`
	Monthly1  float64 `json:"detected_at_far_1pct_monthly"`
	// Working and Failing are how many drives were judged; Silent are those of the failing that
	// said nothing new in their last 30 days, so that there was nothing to judge.
	Working int `json:"working"`
	Failing int `json:"failing"`
	Silent  int `json:"silent"`
	// FailingBad and WorkingBad are which shares of the failing drives that are not silent, and of the
	// working ones, ever counted a bad sector while they were judged: more than the first can hardly
	// be detected, with fewer false alarms than the second.
	FailingBad float64 `json:"failing_with_bad_sectors"`
	WorkingBad float64 `json:"working_with_bad_sectors"`
	// Instants are those with a known outcome, Positive those of them that a failure follows within Horizon.
	Instants int `json:"instants"`
	Positive int `json:"positive"`
}

// judged is a drive with its scores.
type judged struct {
	*Drive
	at, score []float64 // by instant, those with a known outcome only
	bad       bool      // it counted a bad sector at one of them
}

// Judge scores drives, none of which may have been learned from, at each instant with a known
// outcome: where the drive was not seen for the whole horizon after an instant, and did not
// fail, nobody can say whether an alarm would have been right.
func (m *Model) Judge(drives []Drive) (Verdict, error) {
	var v Verdict
	var scores []float64
	var labels []bool
	var all []judged
	var rows [][]float64
	scorer := gbdt.NewScorer(m.trees)
	for i := range drives {
		j := judged{Drive: &drives[i]}
		j.instants(func(k int, now float64) {
			fails, known := j.label(now)
			if !known {
				return
			}
			n := len(j.at)
			if n == len(rows) {
				rows = append(rows, make([]float64, len(m.trees.Features())))
			}
			fill(rows[n], j.Seen[:k+1], now, j.SizeTB, m.rates.of(j.Model))
			j.at = append(j.at, now)
			j.bad = j.bad || bad(j.Seen[k]) > 0
			labels = append(labels, fails)
			if fails {
				v.Positive++
			}
		})
		if len(j.at) == 0 {
			continue
		}
		j.score = make([]float64, len(j.at))
		scorer.Predict(j.score, rows[:len(j.at)])
		scores = append(scores, j.score...)
		all = append(all, j)
	}
	v.Instants = len(labels)
	var ever, monthly []float64 // highest score of a working drive, ever and in each 30 days
	months, failingBad, workingBad := 0, 0, 0
	for _, j := range all {
		if j.Failed {
			v.Failing++
			if j.silent() {
				v.Silent++
			} else if j.bad {
				failingBad++
			}
			continue
		}
		v.Working++
		if j.bad {
			workingBad++
		}
		ever = append(ever, slices.Max(j.score))
		begin := max(j.From, j.Seen[0].Hours)
		months += int((j.End-Horizon-begin)/Horizon) + 1
		last := -1
		for i, at := range j.at {
			if month := int((at - begin) / Horizon); month > last {
				monthly = append(monthly, j.score[i])
				last = month
			} else if top := &monthly[len(monthly)-1]; j.score[i] > *top {
				*top = j.score[i]
			}
		}
	}
	switch {
	case v.Failing == v.Silent:
		return v, fmt.Errorf("drives: none of the %d drives to judge fails and said something new in the 30 days before: there is nothing to detect", len(all))
	case v.Working == 0:
		return v, errors.New("drives: none of the drives to judge goes on working: there are no false alarms to count")
	}
	var err error
	if v.AUCPR, err = metrics.AUCPR(scores, labels); err != nil {
		return v, fmt.Errorf("drives: %w", err)
	}
	v.FailingBad, v.WorkingBad = float64(failingBad)/float64(v.Failing-v.Silent), float64(workingBad)/float64(v.Working)
	rare := detected(all, threshold(ever, len(ever), 0.001), v)
	v.Detected01, v.All01, v.Timely01, v.Lead01 = rare.heard, rare.ofAll, rare.timely, rare.lead
	often := detected(all, threshold(ever, len(ever), 0.01), v)
	v.Detected1, v.All1, v.Timely1, v.Lead = often.heard, often.ofAll, often.timely, often.lead
	v.Monthly01 = detected(all, threshold(monthly, months, 0.001), v).heard
	v.Monthly1 = detected(all, threshold(monthly, months, 0.01), v).heard
	return v, nil
}

// silent drives said nothing new in the horizon before they failed.
func (j *judged) silent() bool { return j.End-j.at[len(j.at)-1] > Horizon }

// threshold is the lowest that at most a share of n scores are above. Those that are not listed are below all.
func threshold(scores []float64, n int, share float64) float64 {
	slices.SortFunc(scores, func(a, b float64) int { return cmp.Compare(b, a) })
	k := int(share * float64(n))
	if k >= len(scores) {
		return 0
	}
	return scores[k]
}

// detection is how many of the failing drives had a score above a threshold.
type detection struct {
	heard  float64 // share of those that are not silent
	timely float64 // the same, with only the scores of the last Horizon
	ofAll  float64
	lead   float64 // median of days from the first such score to the failure
}

func detected(all []judged, threshold float64, v Verdict) detection {
	var leads []float64
	heard, timely := 0, 0
	for _, j := range all {
		if !j.Failed {
			continue
		}
		above := func(s float64) bool { return s > threshold }
		i := slices.IndexFunc(j.score, above)
		if i < 0 {
			continue
		}
		leads = append(leads, (j.End-j.at[i])/day)
		if !j.silent() {
			heard++
		}
		late := slices.IndexFunc(j.at, func(at float64) bool { return j.End-at <= Horizon })
		if late >= 0 && slices.ContainsFunc(j.score[late:], above) {
			timely++
		}
	}
	loud := float64(v.Failing - v.Silent)
	d := detection{heard: float64(heard) / loud, timely: float64(timely) / loud, ofAll: float64(len(leads)) / float64(v.Failing)}
	if len(leads) > 0 {
		slices.Sort(leads)
		d.lead = leads[len(leads)/2]
	}
	return d
}
