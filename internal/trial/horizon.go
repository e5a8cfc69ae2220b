package trial

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
)

// Horizon is how well failures are predicted a stated time ahead, of all faults or of those of
// one signature. A host fails when it crashes, or when a neighbour's noise takes its VMs' time.
type Horizon struct {
	HorizonSeconds float64 `json:"horizon_s"`
	// Signature is "all", or what the line is restricted to: failures by faults of it, and false
	// alarms that were taken for it.
	Signature string `json:"signature"`
	// Precision and Recall are of instants, at a probability of one half. Instants before a failure whose
	// fault has not begun yet are left out: nothing shows it.
	Precision float64 `json:"precision"`
	Recall    float64 `json:"recall"`
	AUCPR     float64 `json:"auc_pr"`
	// CalibrationError is the expected calibration error: over ten bins of equal width the mean
	// difference of what was said and what came, weighted by instants, those left out above included;
	// only for all signatures.
	CalibrationError *float64 `json:"calibration_error,omitempty"`
	// Failures that began in the time, and how many of them were foreseen: the probability was one half or
	// more at some time between the begin of the fault and the failure.
	Failures int `json:"failures"`
	Foreseen int `json:"foreseen"`
	// MedianLead is from the first such instant to the failure.
	MedianLead float64 `json:"median_lead_s"`
	// SignatureRight is the share of the foreseen failures whose signature was right then.
	SignatureRight float64 `json:"signature_right_ratio"`
	// FalsePerHostDay is how many alarms a host gives in a day that no fault is behind.
	FalsePerHostDay float64 `json:"false_alarms_per_host_day"`
}

// scored is what the model said of a host at one instant; probabilities in 1/65535.
type scored struct {
	step      int32
	weight    int8 // minutes that it stands for
	signature int8
	p         [3]uint16
}

// idleEvery is how often a host is scored while nothing seems to be wrong with it, in samples.
const (
	idleEvery = 10
	idleUnder = 0.05
)

// EvaluateHorizon scores a fleet on whose faults nobody acts. The model must have three horizons.
func EvaluateHorizon(ctx context.Context, c Fleet, m *failure.Model, step func()) ([]Horizon, error) {
	f, err := simulator.New(simulator.Config{Hosts: c.Hosts, Seed: c.Seed})
	if err != nil {
		return nil, err
	}
	hosts, start := f.Hosts(), f.Now()
	number := make(map[fleet.HostID]int, len(hosts))
	follow := make([]*feature.Extractor, len(hosts))
	all := make([][]scored, len(hosts))
	for i, h := range hosts {
		number[h.ID], follow[i] = i, feature.New()
	}
	horizons := m.Horizons()[:3]
	p, s := make([]float64, len(m.Horizons())), make([]float64, len(m.Signatures()))
	x := make([][]float64, len(hosts))
	for i := range x {
		x[i] = make([]float64, feature.Size)
	}
	scorer := m.Scorer()
	var rows [][]float64
	var odd []float64
	steps := c.steps(f.Interval())
	var samples []fleet.Sample
	for n := range steps {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		samples = f.Step(samples)
		rows = rows[:0]
		for i := range samples {
			h := number[samples[i].Host]
			follow[h].Observe(&samples[i])
			follow[h].Vector(x[h])
			rows = append(rows, x[h])
		}
		odd = append(odd[:0], make([]float64, len(rows))...)
		scorer.Odd(odd, rows)
		for i := range samples {
			if time.Duration(n)*f.Interval() < warm {
				break
			}
			h := number[samples[i].Host]
			e := scored{step: int32(n + 1), weight: 1, signature: -1}
			if odd[i] < idleUnder {
				if (n+h)%idleEvery != 0 {
					continue
				}
				e.weight = idleEvery
			} else {
				e.signature = int8(m.Signature(s, x[h]))
			}
			m.Failure(p, x[h])
			for i := range horizons {
				e.p[i] = uint16(math.Round(p[i] * 65535))
			}
			all[h] = append(all[h], e)
		}
		if step != nil {
			step()
		}
	}
	return judgeHorizons(all, incidents(hosts, f.History()), start, f.Now(), f.Interval(), horizons, m.Signatures()), nil
}

const (
	alarmAt  = 32768            // one half
	alarmGap = 30 * time.Minute // a new alarm, where there was none for so long
)

// levels counts instants by what was said of them.
type levels struct{ yes, no [1 << 16]float64 }

// judgeHorizons compares what was said with what came. start is the time of step 0.
func judgeHorizons(all [][]scored, happened [][]incident, start, end time.Time, interval time.Duration, horizons []time.Duration, signatures []string) []Horizon {
	var out []Horizon
	for i, horizon := range horizons {
		of, everything := map[string]*levels{"all": {}}, &levels{}
		lines := map[string]*Horizon{"all": {}}
		leads, right := map[string][]float64{}, map[string]int{}
		for _, s := range signatures {
			of[s], lines[s] = &levels{}, &Horizon{}
		}
		days := 0.0
		for h := range all {
			var last time.Time // of an alarm without a fault
			for _, e := range all[h] {
				at := start.Add(time.Duration(e.step) * interval)
				days += float64(e.weight) * interval.Hours() / 24
				why, fails, begun := failing(happened[h], at, horizon)
				if !fails && end.Sub(at) < horizon {
					continue // nobody knows
				}
				w := float64(e.weight)
				if fails {
					everything.yes[e.p[i]] += w
				} else {
					everything.no[e.p[i]] += w
				}
				switch {
				case fails && !begun:
					continue
				case !fails:
					for _, l := range of {
						l.no[e.p[i]] += w
					}
				default:
					of["all"].yes[e.p[i]] += w
					if l := of[string(why)]; l != nil {
						l.yes[e.p[i]] += w
					}
				}
				if e.p[i] < alarmAt {
					continue
				}
				taken := ""
				if e.signature >= 0 {
					taken = signatures[e.signature]
				}
				for _, name := range []string{"all", taken} {
					l := lines[name]
					if l == nil {
						continue
					}
					if !fails { // Precision holds the false ones until the end
						l.Precision += w
					}
					if !fails && !faulty(happened[h], at) {
						if name == "all" && at.Sub(last) > alarmGap {
							l.FalsePerHostDay++
							if t := lines[taken]; t != nil {
								t.FalsePerHostDay++
							}
						}
						last = at
					}
				}
			}
			for _, x := range happened[h] {
				if x.fails.IsZero() || x.fails.After(end) {
					continue
				}
				names := []string{"all", string(x.signature)}
				first := slices.IndexFunc(all[h], func(e scored) bool {
					at := start.Add(time.Duration(e.step) * interval)
					return !at.Before(x.start) && at.Before(later(x.fails, x.end)) && e.p[i] >= alarmAt
				})
				for _, name := range names {
					l := lines[name]
					if l == nil {
						continue
					}
					l.Failures++
					if first < 0 {
						continue
					}
					e := all[h][first]
					if lead := x.fails.Sub(start.Add(time.Duration(e.step) * interval)).Seconds(); lead > 0 {
						l.Foreseen++
						leads[name] = append(leads[name], lead)
						if e.signature >= 0 && signatures[e.signature] == string(x.signature) {
							right[name]++
						}
					}
				}
			}
		}
		for _, name := range append([]string{"all"}, signatures...) {
			l, v := lines[name], of[name]
			l.HorizonSeconds, l.Signature = horizon.Seconds(), name
			total, hit, bad := 0.0, 0.0, l.Precision
			for b, w := range v.yes {
				total += w
				if b >= alarmAt {
					hit += w
				}
			}
			l.Precision, l.Recall = ratio(hit, hit+bad), ratio(hit, total)
			l.AUCPR = v.averagePrecision(total)
			if name == "all" {
				e := everything.calibrationError()
				l.CalibrationError = &e
			}
			if n := len(leads[name]); n > 0 {
				slices.Sort(leads[name])
				l.MedianLead = leads[name][n/2]
				l.SignatureRight = float64(right[name]) / float64(n)
			}
			l.FalsePerHostDay = ratio(l.FalsePerHostDay, days)
			out = append(out, *l)
		}
	}
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// failing tells whether a host fails within a horizon from an instant on, or does already, by
// which class of fault, and whether that fault has begun.
func failing(all []incident, at time.Time, horizon time.Duration) (why fleet.Signature, fails, begun bool) {
	for _, x := range all {
		if x.fails.IsZero() || !x.end.IsZero() && !at.Before(x.end) || x.fails.Sub(at) > horizon {
			continue
		}
		if !x.start.After(at) {
			return x.signature, true, true
		}
		why, fails = x.signature, true
	}
	return why, fails, false
}

// faulty tells whether there is a fault on a host, or was a moment ago.
func faulty(all []incident, at time.Time) bool {
	return slices.ContainsFunc(all, func(x incident) bool {
		return !at.Before(x.start) && (x.end.IsZero() || at.Before(x.end.Add(alarmGap)))
	})
}

// averagePrecision is the area under precision and recall, as a step function.
func (l *levels) averagePrecision(total float64) float64 {
	if total == 0 {
		return 0
	}
	yes, no, area := 0.0, 0.0, 0.0
	for b := len(l.yes) - 1; b >= 0; b-- {
		yes += l.yes[b]
		no += l.no[b]
		if l.yes[b] > 0 {
			area += l.yes[b] / total * yes / (yes + no)
		}
	}
	return area
}

// calibrationError is over ten bins of equal width.
func (l *levels) calibrationError() float64 {
	var said, came, n [10]float64
	all := 0.0
	for b := range l.yes {
		bin := min(b*10>>16, 9)
		w := l.yes[b] + l.no[b]
		said[bin] += w * float64(b) / 65535
		came[bin] += l.yes[b]
		n[bin] += w
		all += w
	}
	e := 0.0
	for bin := range n {
		e += math.Abs(said[bin] - came[bin])
	}
	return ratio(e, all)
}
