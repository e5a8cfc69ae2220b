package predictor

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Costs are the figures by which the policy prices an action, in seconds of
// interruption of one VM.
type Costs struct {
	// CrashSeconds is lost by a VM when its host fails under it.
	CrashSeconds float64
	// HandOverSeconds is what a VM on a failing host is expected to lose until a
	// person has dealt with it.
	HandOverSeconds float64
}

// price is what an action costs where it works, and the chance that it harms.
type price struct {
	freezeSeconds float64 // of each VM, where all goes well
	harm          float64 // probability that the action itself crashes the VMs
}

// prices: a recycle does not touch the guests; the freeze of a preserving reset
// includes the kexec of the host, that of a live migration is its downtime.
var prices = map[fleet.Action]price{
	fleet.ActionRecycle:         {0, 0.0005},
	fleet.ActionPreservingReset: {20, 0.01},
	fleet.ActionLiveMigrate:     {0.5, 0.005},
}

// cures is the probability that an action ends a fault of a signature for the
// VMs. These are stated beliefs from which a deployment starts, chosen by what
// each action touches: a recycle cures what lives in one process, a reset also
// what lives in the kernel, and only leaving the host escapes from hardware.
var cures = map[fleet.Signature]map[fleet.Action]float64{
	fleet.SignatureServiceHang:    {fleet.ActionRecycle: 0.9, fleet.ActionPreservingReset: 0.95, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureMemoryLeak:     {fleet.ActionRecycle: 0.85, fleet.ActionPreservingReset: 0.95, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureKernelFault:    {fleet.ActionRecycle: 0.1, fleet.ActionPreservingReset: 0.85, fleet.ActionLiveMigrate: 0.8},
	fleet.SignatureDisk:           {fleet.ActionRecycle: 0.05, fleet.ActionPreservingReset: 0.1, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureMemoryHardware: {fleet.ActionRecycle: 0.01, fleet.ActionPreservingReset: 0.05, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureNetwork:        {fleet.ActionRecycle: 0.3, fleet.ActionPreservingReset: 0.5, fleet.ActionLiveMigrate: 0.7},
	fleet.SignatureThermal:        {fleet.ActionRecycle: 0.02, fleet.ActionPreservingReset: 0.02, fleet.ActionLiveMigrate: 0.9},
	fleet.SignatureNoisyNeighbour: {fleet.ActionRecycle: 0.02, fleet.ActionPreservingReset: 0.02, fleet.ActionLiveMigrate: 0.85},
	fleet.SignatureUnknown:        {fleet.ActionRecycle: 0.3, fleet.ActionPreservingReset: 0.5, fleet.ActionLiveMigrate: 0.7},
}

// actUnder is the failure probability under which nothing is recommended.
const actUnder = 0.15

// PolicyName identifies this policy in recommendations.
const PolicyName = "expected-vm-seconds/1"

// Decision is what the policy makes of a prediction.
type Decision struct {
	Action        fleet.Action
	CostVMSeconds float64
	Alternatives  []fleet.Alternative
	Reason        string
	// Propensity is the probability with which the policy chose the action.
	Propensity float64
}

// Decide prices every action for a host and picks the cheapest.
//
// An action's cost is its own interruption plus the probability that it does not
// cure the fault times the cost of what follows: recycle leads to the reset, the
// reset and the migration to a person. A host without VMs is priced as if it had
// one, since the next VM may be placed there at any time.
//
// tried has the actions that were carried out on the host against this signature a
// short while ago, and when: the fault is back, so they did not cure it and are not
// tried again. nil means none.
func Decide(p fleet.Prediction, h fleet.Host, c Costs, tried map[fleet.Action]time.Time) Decision {
	vms := math.Max(float64(running(h.VMs)), 1)
	crash := c.CrashSeconds * vms
	person := p.FailureProbability * c.HandOverSeconds * vms

	cost := func(a fleet.Action, then float64) float64 {
		return prices[a].freezeSeconds*vms + prices[a].harm*crash + (1-cures[p.Signature][a])*then
	}
	migrate := cost(fleet.ActionLiveMigrate, person)
	reset := cost(fleet.ActionPreservingReset, person)
	next, nextName := person, "a person"
	open := func(a fleet.Action) bool { return can(h, a) && tried[a].IsZero() }
	if open(fleet.ActionPreservingReset) && reset < next {
		next, nextName = reset, "a preserving reset"
	}
	if open(fleet.ActionLiveMigrate) && migrate < next {
		next, nextName = migrate, "live migration"
	}
	recycle := cost(fleet.ActionRecycle, next)

	d := Decision{Propensity: 1, Alternatives: []fleet.Alternative{
		{Action: fleet.ActionNone, Available: true, CostVMSeconds: p.FailureProbability * crash,
			Why: fmt.Sprintf("a crash costs %s %.0f s each and comes with probability %.2f", count(vms), c.CrashSeconds, p.FailureProbability)},
		alternative(p, h, tried, fleet.ActionRecycle, recycle, "guests do not notice; if it fails, "+nextName+" follows"),
		alternative(p, h, tried, fleet.ActionPreservingReset, reset, "guests freeze for the reset and go on; if it fails, a person follows"),
		alternative(p, h, tried, fleet.ActionLiveMigrate, migrate, "guests move to a healthy host; if it fails, a person follows"),
		{Action: fleet.ActionHandOver, Available: true, CostVMSeconds: person,
			Why: fmt.Sprintf("until a person has acted, %s may lose %.0f s each", count(vms), c.HandOverSeconds)},
	}}
	if p.State != fleet.PredictionScoring || p.FailureProbability < actUnder || p.Signature == fleet.SignatureNone {
		d.Action, d.CostVMSeconds = fleet.ActionNone, d.Alternatives[0].CostVMSeconds
		d.Reason = fmt.Sprintf("%s shows nothing that calls for action.", p.Host)
		return d
	}
	best := 0
	for i, a := range d.Alternatives {
		if a.Available && a.CostVMSeconds < d.Alternatives[best].CostVMSeconds {
			best = i
		}
	}
	d.Action, d.CostVMSeconds = d.Alternatives[best].Action, d.Alternatives[best].CostVMSeconds
	if at := tried[fleet.ActionHandOver]; !at.IsZero() && d.Action == fleet.ActionHandOver {
		d.Action = fleet.ActionNone
		d.Reason = fmt.Sprintf("%s was handed over to a person at %s.", p.Host, at.UTC().Format("15:04:05"))
		return d
	}
	d.Reason = reason(p, d, vms)
	return d
}

func alternative(p fleet.Prediction, h fleet.Host, tried map[fleet.Action]time.Time, a fleet.Action, cost float64, why string) fleet.Alternative {
	alt := fleet.Alternative{Action: a, Available: can(h, a), CostVMSeconds: cost, CureProbability: cures[p.Signature][a], Why: why}
	if !alt.Available {
		alt.Why = "this host cannot do it: its agent does not offer " + string(a)
		return alt
	}
	if at := tried[a]; !at.IsZero() {
		alt.Available = false
		alt.Why = fmt.Sprintf("it was done at %s and the fault is back", at.UTC().Format("15:04:05"))
	}
	return alt
}

func can(h fleet.Host, a fleet.Action) bool {
	for _, have := range h.Actions {
		if have == a {
			return true
		}
	}
	return false
}

func running(vms []fleet.VM) int {
	n := 0
	for _, v := range vms {
		if v.State != "shut-off" {
			n++
		}
	}
	return n
}

func count(n float64) string {
	if n == 1 {
		return "1 VM"
	}
	return fmt.Sprintf("%.0f VMs", n)
}

var words = map[fleet.Signature]string{
	fleet.SignatureServiceHang:    "a hanging service",
	fleet.SignatureMemoryLeak:     "a memory leak",
	fleet.SignatureKernelFault:    "a kernel fault",
	fleet.SignatureDisk:           "a failing disk",
	fleet.SignatureMemoryHardware: "failing memory",
	fleet.SignatureNetwork:        "a network fault",
	fleet.SignatureThermal:        "overheating",
	fleet.SignatureNoisyNeighbour: "a noisy neighbour",
	fleet.SignatureUnknown:        "an unknown fault",
}

var doing = map[fleet.Action]string{
	fleet.ActionNone:            "doing nothing",
	fleet.ActionRecycle:         "restarting its services",
	fleet.ActionPreservingReset: "a preserving reset",
	fleet.ActionLiveMigrate:     "live migration",
	fleet.ActionHandOver:        "handing it over to a person",
}

func reason(p fleet.Prediction, d Decision, vms float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s shows %s", p.Host, words[p.Signature])
	if p.Culprit != "" {
		fmt.Fprintf(&b, " in %s", p.Culprit)
	}
	if len(p.Evidence) > 0 {
		fmt.Fprintf(&b, " (%s)", p.Evidence[0])
	}
	fmt.Fprintf(&b, " and fails with probability %.2f within %s; %s is expected to cost %s %.1f VM-seconds, doing nothing %.1f.",
		p.FailureProbability, horizonWords(p.HorizonSeconds), doing[d.Action], count(vms), d.CostVMSeconds, d.Alternatives[0].CostVMSeconds)
	return b.String()
}

func horizonWords(seconds float64) string {
	switch {
	case seconds == 3600:
		return "the hour"
	case seconds >= 3600:
		return fmt.Sprintf("%.3g h", seconds/3600)
	case seconds >= 60:
		return fmt.Sprintf("%.3g min", seconds/60)
	}
	return fmt.Sprintf("%.3g s", seconds)
}
