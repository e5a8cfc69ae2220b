package simulator

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	// seenLate is the level of a fault that is seen at the latest: below that from which cure rates fall.
	seenLate = 0.6
	// noisePerSecond is what a VM loses each second to a noisy neighbour.
	noisePerSecond = 0.3 * 0.7
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
	c.Level = t.visible + (seenLate-t.visible)*r.Float64()
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

// Stratum is all the cases of one kind in one unit.
type Stratum struct {
	// Case is their mean: what it costs is what they cost in expectation, and each action cures it as it
	// cures them.
	Case Case
	// Share is how many of all cases they are, 0..1.
	Share float64
}

// Strata divides what [Cases] draws by all that cure rates depend on, so that what a policy
// costs in expectation is an exact sum and needs no drawing. An error means that cfg is wrong.
func Strata(cfg Config) ([]Stratum, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	var out []Stratum
	for i := range kinds {
		k := &kinds[i]
		units := []string{""}
		if k.unit < 0 {
			units = unitNames[:]
		}
		for _, u := range units {
			c := Case{Kind: k.Kind, t: &k.trait, Unit: u, VMs: cfg.VMsPerHost, crashSeconds: cfg.CrashSeconds}
			for _, m := range memories {
				bytes := vmBytes(m, c.VMs)
				c.resetFreeze += resetFreeze(bytes) * float64(c.VMs) / float64(len(memories))
				c.migrateFreeze += migrateFreeze(bytes) * float64(c.VMs) / float64(len(memories))
			}
			c.Level, c.LeftSeconds, c.person = c.mean(&cfg)
			out = append(out, Stratum{c, k.weight / totalWeight / float64(len(units))})
		}
	}
	return out, nil
}

// MostVMSeconds is the most that a case can cost: each phase is tried once and harms, and then nobody does anything.
// An error means that cfg is wrong.
func MostVMSeconds(cfg Config) (float64, error) {
	if err := cfg.fill(); err != nil {
		return 0, err
	}
	vms := float64(cfg.VMsPerHost)
	bytes := vmBytes(slices.Max(memories[:]), cfg.VMsPerHost)
	phases := (resetFreeze(bytes)+migrateFreeze(bytes)+2*cfg.CrashSeconds)*vms + cfg.CrashSeconds
	alone := cfg.CrashSeconds * vms
	for _, t := range traits {
		if t.signature == fleet.SignatureNoisyNeighbour {
			alone = max(alone, noisePerSecond*vms*(1-t.visible)*t.most.Seconds())
		}
	}
	return phases + alone, nil
}

// mean averages over the level, which is uniform, and over how long a fault lasts, which is
// log-uniform: over the second in closed form, over the first by the midpoint rule.
func (c *Case) mean(cfg *Config) (level, left, person float64) {
	const points = 1000
	least, most := c.t.least.Seconds(), c.t.most.Seconds()
	span := math.Log(most / least)
	for i := range points {
		l := c.t.visible + (seenLate-c.t.visible)*(float64(i)+0.5)/points
		a, b := (1-l)*least, (1-l)*most
		level += l / points
		left += (b - a) / span / points
		// A person saves what the fault costs beyond the price of calling one, if the repair ends before the fault.
		call, repair, saved := cfg.HandOverSeconds*float64(c.VMs), cfg.repairSeconds(c.t), 0.0
		if c.Kind == NoisyNeighbour {
			perSecond := noisePerSecond * float64(c.VMs)
			if m := min(max(a, repair, call/perSecond), b); m < b {
				saved = (perSecond*(b-m) - call*math.Log(b/m)) / span
			}
		} else if m := min(max(a, repair), b); m < b {
			saved = max(c.Alone()-call, 0) * math.Log(b/m) / span
		}
		person -= saved / points
	}
	mean := *c
	mean.LeftSeconds = left
	return level, left, person + mean.Alone()
}

// Signature is the class of the fault.
func (c *Case) Signature() fleet.Signature { return c.t.signature }

// Alone is the expected interruption in VM-seconds where nobody does anything.
func (c *Case) Alone() float64 {
	if c.Kind == NoisyNeighbour {
		return noisePerSecond * float64(c.VMs) * c.LeftSeconds
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
