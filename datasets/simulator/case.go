package simulator

import (
	"math"
	"math/rand/v2"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Case is one fault on one host at one instant, without a fleet and its telemetry around it: for
// judging decisions by the hundred thousand. It follows the same rules as a [Fleet].
type Case struct {
	Kind Kind
	t    *trait
	// Unit is the service at fault, "" for kinds that are in none.
	Unit  string
	Level float64
	// LeftSeconds is the time to the fault's end.
	LeftSeconds float64
	// For how long VMs stand still in a reset and in a migration, summed over them.
	resetFreeze, migrateFreeze float64
	VMs                        int
	crashSeconds, person       float64
}

// Cases returns a function that draws faults as often as fleets have them, at a level between where
// each is first seen and 0.6, on a host as fleets have them. Of cfg only VMsPerHost, CrashSeconds,
// HandOverSeconds and RepairSeconds count. The function is safe for concurrent use, a source each. An
// error means that cfg is wrong.
func Cases(cfg Config) (func(*rand.Rand) Case, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	return func(r *rand.Rand) Case { return drawCase(r, &cfg) }, nil
}

func drawCase(r *rand.Rand, cfg *Config) Case {
	kind, t := drawKind(r)
	c := Case{Kind: kind, t: t, VMs: cfg.VMsPerHost, crashSeconds: cfg.CrashSeconds}
	if t.unit < 0 {
		c.Unit = unitNames[r.IntN(unitCount)]
	}
	c.Level = t.visible + (0.6-t.visible)*r.Float64()
	lasts := t.least.Seconds() * math.Pow(float64(t.most)/float64(t.least), r.Float64())
	c.LeftSeconds = (1 - c.Level) * lasts
	bytes := vmBytes(hostMemory(r), cfg.VMsPerHost)
	c.resetFreeze, c.migrateFreeze = resetFreeze(bytes)*float64(c.VMs), migrateFreeze(bytes)*float64(c.VMs)
	c.person = c.Alone()
	if cfg.repairSeconds(t) < c.LeftSeconds {
		c.person = min(c.person, cfg.HandOverSeconds*float64(c.VMs))
	}
	return c
}

// Signature is the class of the fault.
func (c *Case) Signature() fleet.Signature { return c.t.signature }

// Alone is the expected interruption in VM-seconds where nobody does anything.
func (c *Case) Alone() float64 {
	if c.Kind == NoisyNeighbour {
		return 0.3 * 0.7 * float64(c.VMs) * c.LeftSeconds
	}
	return c.t.fatal * c.crashSeconds * float64(c.VMs)
}

// Person is the expected interruption where a person is called.
func (c *Case) Person() float64 { return c.person }

// Try is what one attempt of a phase costs by itself, in expectation, and the probability that
// it cures, if it is not the first of its kind.
func (c *Case) Try(p fleet.Phase, again bool) (vmSeconds, cure float64) {
	crash := c.crashSeconds * float64(c.VMs)
	switch p {
	case fleet.PhaseRecycle:
		vmSeconds = recycleHarm * crash
	case fleet.PhaseReset:
		vmSeconds = c.resetFreeze + resetHarm*crash
	case fleet.PhaseMigrate:
		vmSeconds = c.migrateFreeze + migrateHarm*c.crashSeconds
	}
	cure = c.t.cureProbability(p, c.Unit, c.Level)
	if again {
		cure /= 4
	}
	return vmSeconds, cure
}

// Attempt carries one out: what it cost this time, and whether it cured.
func (c *Case) Attempt(r *rand.Rand, p fleet.Phase, again bool) (vmSeconds float64, cured bool) {
	_, cure := c.Try(p, again)
	harm, u := r.Float64(), r.Float64()
	switch p {
	case fleet.PhaseRecycle:
		if harm < recycleHarm {
			vmSeconds = c.crashSeconds * float64(c.VMs)
		}
	case fleet.PhaseReset:
		vmSeconds = c.resetFreeze
		if harm < resetHarm {
			vmSeconds += c.crashSeconds * float64(c.VMs)
		}
	case fleet.PhaseMigrate:
		vmSeconds = c.migrateFreeze
		if harm < migrateHarm {
			vmSeconds += c.crashSeconds
		}
	}
	return vmSeconds, u < cure
}

// drawKind draws a kind of fault by its share.
func drawKind(r *rand.Rand) (Kind, *trait) {
	pick := r.Float64() * totalWeight
	for i := range kinds {
		if pick -= kinds[i].weight; pick < 0 {
			return kinds[i].Kind, &kinds[i].trait
		}
	}
	return kinds[0].Kind, &kinds[0].trait
}

// kinds are [Kinds] with their traits.
var kinds = func() (out []struct {
	Kind
	trait
}) {
	for _, k := range Kinds() {
		out = append(out, struct {
			Kind
			trait
		}{k, traits[k]})
	}
	return out
}()

var totalWeight = func() (sum float64) {
	for i := range kinds {
		sum += kinds[i].weight
	}
	return sum
}()
