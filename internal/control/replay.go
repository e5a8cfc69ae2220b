package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	past "github.com/tardigrade-recovery/tardigrade/internal/history"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// Replay says what to run over the past.
type Replay struct {
	Source past.Source
	// Incidents are what happened, beside what the source itself knows.
	Incidents []fleet.Incident
	// Models are files of the registry, at most one of each kind, that score as champions;
	// without an anomaly model each host is learned from its own begin.
	Models [][]byte
	Config config.Config
	// Policy is one of [ReplayPolicies].
	Policy string
	// Actions are what hosts could have done, and VMs how many they had where the source
	// does not say.
	Actions []fleet.Action
	VMs     int
	// Progress, where it is not nil, is told how many of how many hosts are done.
	Progress func(done, of int)
}

// Replayed is a recommendation that would have been made.
type Replayed struct {
	Host fleet.HostID `json:"host"`
	Time time.Time    `json:"time"`
	// Until is when it stood no more, see [predictor.Standing].
	Until              time.Time       `json:"until"`
	Action             fleet.Action    `json:"action"`
	Signature          fleet.Signature `json:"signature"`
	Culprit            string          `json:"culprit,omitempty"`
	FailureProbability float64         `json:"failure_probability"`
	AnomalyScore       float64         `json:"anomaly_score"`
	CostVMSeconds      float64         `json:"cost_vm_s"`
	CostOfNothing      float64         `json:"cost_of_nothing_vm_s"`
	// Propensity is the probability with which the policy chose the action.
	Propensity float64 `json:"propensity"`
	Model      string  `json:"model"`
	Policy     string  `json:"policy"`
	Reason     string  `json:"reason"`
	// Incident is what it was about, and Happened what that was; "" where nothing happened: a
	// false one.
	Incident string          `json:"incident,omitempty"`
	Happened fleet.Signature `json:"happened,omitempty"`
	// LeadSeconds is how long before the host failed it came; negative after that; absent
	// where the incident was no failure, or there was none.
	LeadSeconds    *float64 `json:"lead_s,omitempty"`
	SignatureRight *bool    `json:"signature_right,omitempty"`
}

// ReplaySummary is what a replay comes to.
type ReplaySummary struct {
	Hosts   int       `json:"hosts"`
	Samples int       `json:"samples"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	// LearnSeconds is for how long each host was only learned, from its first sample on.
	LearnSeconds float64 `json:"learn_s"`
	// HostDays is the time from the first sample to the last of each host, of all hosts together.
	HostDays float64 `json:"host_days"`
	// Recommendations are all, True those about an incident, False the others.
	Recommendations int     `json:"recommendations"`
	True            int     `json:"true"`
	False           int     `json:"false"`
	FalsePerHostDay float64 `json:"false_per_host_day"`
	// Incidents are what happened; Failures those in which a host failed its VMs, of which
	// Foreseen were recommended to act on before that, MedianLeadSeconds ahead; in SignatureRight
	// of these the first such recommendation named the right signature.
	Incidents         int     `json:"incidents"`
	Seen              int     `json:"seen"`
	Failures          int     `json:"failures"`
	Foreseen          int     `json:"foreseen"`
	MedianLeadSeconds float64 `json:"median_lead_s"`
	SignatureRight    int     `json:"signature_right"`
	// CostVMSeconds is what was recommended was expected to cost, and CrashVMSeconds what the
	// failures cost at the configured price of a crash.
	CostVMSeconds  float64 `json:"cost_vm_s"`
	CrashVMSeconds float64 `json:"crash_vm_s"`
	// Actions counts what was recommended.
	Actions map[fleet.Action]int `json:"actions"`
	// Missed are the incidents that nothing was recommended about.
	Missed []fleet.Incident `json:"missed"`
}

// Run goes over the past and returns what would have been recommended, by time. The same
// past and options give the same answer.
func (r Replay) Run(ctx context.Context) ([]Replayed, ReplaySummary, error) {
	var sum ReplaySummary
	decide, err := r.policy()
	if err != nil {
		return nil, sum, err
	}
	hosts, err := r.Source.Hosts(ctx)
	if err != nil {
		return nil, sum, err
	}
	if len(hosts) == 0 {
		return nil, sum, errors.New("no host sent anything in that range")
	}
	own, err := r.Source.Incidents()
	if err != nil {
		return nil, sum, err
	}
	all := append(own, r.Incidents...)
	interval := cmp.Or(r.Source.Step(), r.Config.Agent.Interval.D())
	made := newDetectors(r.Config.Model, interval, newRoster(r.Config.Model, interval))
	for _, file := range r.Models {
		h, state, err := registry.Decode(file)
		if err == nil {
			err = usableModel(h, state)
		}
		if err != nil {
			return nil, sum, err
		}
		m, err := newSeated(registry.Version{ID: registry.ID(h.Kind, file), Header: h}, h, state)
		if err != nil {
			return nil, sum, err
		}
		made.roster.seat(h.Kind, registry.Champion, m)
	}
	var out []Replayed
	vms := make(map[fleet.HostID]int)
	for i, host := range hosts {
		if host.VMs == 0 {
			host.VMs = max(r.VMs, 1)
		}
		vms[host.ID] = host.VMs
		found, err := r.host(ctx, host, made, interval, decide, &sum)
		if err != nil {
			return nil, sum, err
		}
		out = append(out, found...)
		if r.Progress != nil {
			r.Progress(i+1, len(hosts))
		}
	}
	slices.SortStableFunc(out, func(a, b Replayed) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Host, b.Host)) })
	sum.Hosts, sum.LearnSeconds = len(hosts), r.learn().Seconds()
	r.judge(out, past.Within(all, sum.From, sum.To.Add(1)), vms, &sum)
	return out, sum, nil
}

// learn is how long each host is learned before it is judged: as configured, but not from the fault
// itself where the past says for how long hosts are sound.
func (r Replay) learn() time.Duration {
	learn := r.Config.Model.Learn.D()
	if calm := r.Source.Calm(); calm > 0 {
		learn = min(learn, calm/2)
	}
	return learn
}

// host goes over the past of one host.
func (r Replay) host(ctx context.Context, h past.Host, made *detectors, interval time.Duration, decide replayPolicy, sum *ReplaySummary) ([]Replayed, error) {
	learn := r.learn()
	p, err := predictor.New(h.ID, predictor.Config{
		NewDetector: made.new(learn), Model: detectorName,
		FalseAlarms: r.Config.Model.FalseAlarmsPerMonth, Interval: interval, Horizon: r.Config.Model.Horizon.D(),
	})
	if err != nil {
		return nil, err
	}
	view := fleet.Host{ID: h.ID, FaultDomain: h.FaultDomain, Actions: permitted(r.Config.Policy, r.Actions)}
	for i := range h.VMs {
		view.VMs = append(view.VMs, fleet.VM{ID: fmt.Sprint(i), State: "running"})
	}
	host := fnv.New64a()
	host.Write([]byte(h.ID))
	ahead := newForecast()
	var out []Replayed
	var open *predictor.Standing // the recommendation that stands, nil for none
	var first, last time.Time
	for s, err := range r.Source.Samples(ctx, h.ID) {
		if err != nil {
			return nil, err
		}
		sum.Samples++
		if sum.From.IsZero() || s.Time.Before(sum.From) {
			sum.From = s.Time
		}
		if s.Time.After(sum.To) {
			sum.To = s.Time
		}
		prediction, err := p.Observe(&s)
		if err != nil {
			continue // as live: what is not newer than the last one is refused
		}
		if first.IsZero() {
			first = s.Time
		}
		ahead.features.Observe(&s)
		ahead.improve(made.roster, &prediction)
		last = s.Time
		// As live, luck is drawn once for each recommendation; nothing was done in the past, so
		// nothing was tried.
		propose := func(made int) predictor.Decision {
			return decide(situation(prediction, view, nil, nil), rand.New(rand.NewPCG(host.Sum64(), uint64(made))))
		}
		if open != nil {
			if open.Over(prediction, propose(len(out)-1)) == "" {
				continue
			}
			out[len(out)-1].Until, open = s.Time, nil
		}
		d := propose(len(out))
		if d.Action == fleet.ActionNone {
			continue
		}
		out = append(out, Replayed{
			Host: h.ID, Time: s.Time, Action: d.Action, Signature: prediction.Signature, Culprit: prediction.Culprit, FailureProbability: prediction.FailureProbability,
			AnomalyScore: prediction.AnomalyScore, CostVMSeconds: d.CostVMSeconds, CostOfNothing: d.Alternatives[0].CostVMSeconds, Propensity: d.Propensity,
			Model: prediction.Model, Policy: r.Policy, Reason: d.Reason,
		})
		open = predictor.Stand(d.Action, prediction)
	}
	if open != nil {
		out[len(out)-1].Until = last
	}
	sum.HostDays += last.Sub(first).Hours() / 24
	return out, nil
}

type replayPolicy func(predictor.Situation, *rand.Rand) predictor.Decision

// ReplayPolicies are the names that [Replay] knows, of those that 'evaluate policy' compares; the
// others of these know the simulator's truth, or recommend nothing. All have the stated beliefs:
// nothing is done in a replay, and so nothing is learned.
//
//	expected  the policy of serve where a person approves: the least expected cost
//	ours      that of serve in mode automatic: with drawn rates, and exploring
//	static    the first phase that the host can do, whatever is wrong
//	bandit    drawn rates that are the same for each signature and of which nothing is believed
func ReplayPolicies() []string { return []string{"expected", "ours", "static", "bandit"} }

func (r Replay) policy() (replayPolicy, error) {
	expected, drawn := policyOf(r.Config.Policy, false), policyOf(r.Config.Policy, true)
	switch r.Policy {
	case "expected":
		return expected.Decide, nil
	case "ours":
		return drawn.Decide, nil
	case "static":
		return func(s predictor.Situation, _ *rand.Rand) predictor.Decision {
			d := expected.Decide(s, nil)
			for _, a := range d.Alternatives[1:] {
				if a.Available && d.Action != fleet.ActionNone {
					d.Action, d.CostVMSeconds, d.Propensity = a.Action, a.CostVMSeconds, 1
					d.Reason = "the first phase that the host can do: " + a.Why
					break
				}
			}
			return d
		}, nil
	case "bandit":
		drawn.Greedy, drawn.Cures = false, predictor.NewCures(0)
		return func(s predictor.Situation, src *rand.Rand) predictor.Decision {
			if s.Prediction.Signature != fleet.SignatureNone {
				s.Prediction.Signature, s.SignatureProbability = fleet.SignatureServiceHang, 0 // any one will do
			}
			d := drawn.Decide(s, src)
			if d.Action != fleet.ActionNone {
				d.Reason = fmt.Sprintf("drawn with probability %.2f, whatever is wrong", d.Propensity)
			}
			return d
		}, nil
	}
	return nil, fmt.Errorf("the policy %q is not one of %s", r.Policy, strings.Join(ReplayPolicies(), ", "))
}

// judge compares what would have been recommended with what happened. A recommendation is
// about an incident of its host if it comes between when the fault could be seen (a horizon
// before the failure where nobody knows) and its end.
func (r Replay) judge(all []Replayed, incidents []fleet.Incident, vms map[fleet.HostID]int, sum *ReplaySummary) {
	sum.Recommendations, sum.Incidents, sum.Missed, sum.Actions = len(all), len(incidents), []fleet.Incident{}, map[fleet.Action]int{}
	type foresight struct {
		lead  float64
		right bool
	}
	seen, foreseen := make(map[string]bool), make(map[string]foresight)
	for i := range all {
		rec := &all[i]
		sum.CostVMSeconds += rec.CostVMSeconds
		sum.Actions[rec.Action]++
		for _, in := range incidents {
			begin := in.Seen
			if begin.IsZero() {
				begin = in.From.Add(-r.Config.Model.Horizon.D())
			}
			if in.Host != rec.Host || rec.Until.Before(begin) || rec.Time.After(in.To.Add(time.Minute)) {
				continue
			}
			rec.Incident, rec.Happened = in.ID, in.Signature
			right := rec.Signature == in.Signature
			rec.SignatureRight = &right
			seen[in.ID] = true
			if in.Failed {
				lead := in.From.Sub(rec.Time).Seconds()
				rec.LeadSeconds = &lead
				if best := foreseen[in.ID]; lead > best.lead {
					foreseen[in.ID] = foresight{lead, right}
				}
			}
			break
		}
		if rec.Incident == "" {
			sum.False++
			continue
		}
		sum.True++
	}
	for _, in := range incidents {
		if in.Failed {
			sum.Failures++
			sum.CrashVMSeconds += r.Config.Policy.CrashSeconds * float64(vms[in.Host])
		}
		if seen[in.ID] {
			sum.Seen++
		} else {
			sum.Missed = append(sum.Missed, in)
		}
	}
	sum.Foreseen = len(foreseen)
	var leads []float64
	for _, f := range foreseen {
		leads = append(leads, f.lead)
		if f.right {
			sum.SignatureRight++
		}
	}
	if slices.Sort(leads); len(leads) > 0 {
		sum.MedianLeadSeconds = leads[len(leads)/2]
	}
	if sum.HostDays > 0 {
		sum.FalsePerHostDay = float64(sum.False) / sum.HostDays
	}
}
