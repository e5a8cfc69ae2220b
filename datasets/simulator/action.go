package simulator

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func sortedScript(s []Planned) []Planned {
	s = slices.Clone(s)
	slices.SortStableFunc(s, func(a, b Planned) int { return cmp.Compare(a.After, b.After) })
	return s
}

const (
	recycleSeconds = 2.0 // until a restarted unit is up
	recycleHarm    = 0.0005
	resetHarm      = 0.01
	migrateHarm    = 0.005
)

func resetFreeze(bytes float64) float64   { return 15 + 0.2*bytes/gib }
func migrateFreeze(bytes float64) float64 { return 0.2 + 0.02*bytes/gib }

// Outcome is what an action achieved.
type Outcome struct {
	// Done is false where the host could not do it; Detail says why.
	Done bool `json:"done"`
	// Cured lists the faults that it ended, or whose danger it took from the VMs.
	Cured []int `json:"cured"`
	// Remaining lists those that last.
	Remaining []int `json:"remaining"`
	// Harmed is true where the action itself crashed the host or lost a VM.
	Harmed bool `json:"harmed"`
	// FreezeSeconds is the interruption of each VM that the action touched, by its id.
	FreezeSeconds map[string]float64 `json:"freeze_s"`
	// VMSeconds is the whole interruption that the action itself caused.
	VMSeconds float64 `json:"vm_s"`
	// Moved says where VMs went, by their ids.
	Moved map[string]fleet.HostID `json:"moved,omitempty"`
	// Lasts is how long the action takes.
	Lasts  time.Duration `json:"lasts"`
	Detail string        `json:"detail"`
}

// Apply carries out a phase on a host, at once in virtual time. units are those to
// restart in a recycle; nil means all. An error means that the host, the phase or a unit
// does not exist.
func (f *Fleet) Apply(id fleet.HostID, phase fleet.Phase, units []string) (Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.byID[id]
	if h == nil {
		return Outcome{}, fmt.Errorf("simulated fleet: host %q does not exist", id)
	}
	var restart [unitCount]bool
	for _, u := range units {
		n := unitIndex(u)
		if n < 0 {
			return Outcome{}, fmt.Errorf("simulated fleet: host %s has no unit %q; it has %v", id, u, unitNames)
		}
		restart[n] = true
	}
	if len(units) == 0 {
		restart = [unitCount]bool{true, true, true, true}
	}
	out := Outcome{Cured: []int{}, Remaining: []int{}, FreezeSeconds: map[string]float64{}}
	if h.down(f.now) {
		out.Detail = "the host is down"
		return out, nil
	}
	out.Done = true
	switch phase {
	case fleet.PhaseRecycle:
		f.recycle(h, restart, &out)
	case fleet.PhaseDiagnose:
		out.Lasts = 20 * time.Second
		out.Detail = "logs collected"
	case fleet.PhaseReset:
		f.reset(h, &out)
	case fleet.PhaseMigrate:
		f.migrate(h, &out)
	default:
		return Outcome{}, fmt.Errorf("simulated fleet: phase %q is unknown", phase)
	}
	for _, x := range h.faults {
		if !slices.Contains(out.Cured, f.history[x.index].ID) {
			out.Remaining = append(out.Remaining, f.history[x.index].ID)
		}
	}
	return out, nil
}

// HandOver calls a person, who repairs the host after the time that its worst
// fault needs. The VMs stay on it meanwhile, and lose HandOverSeconds each when it is
// repaired under them. It returns how long that takes, 0 where
// there is nothing to repair.
func (f *Fleet) HandOver(id fleet.HostID) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.byID[id]
	if h == nil {
		return 0, fmt.Errorf("simulated fleet: host %q does not exist", id)
	}
	longest := 0.0
	for i := range h.faults {
		longest = max(longest, f.repair(&h.faults[i], Repaired))
	}
	return time.Duration(longest * float64(time.Second)), nil
}

// repair plans the repair of a fault and returns how long it takes.
func (f *Fleet) repair(x *fault, how Ending) float64 {
	lasts := f.cfg.repairSeconds(&x.t)
	if x.repairAt == 0 {
		x.repairAt, x.how = f.now+lasts, how
	}
	return x.repairAt - f.now
}

func (c *Config) repairSeconds(t *trait) float64 {
	switch {
	case c.RepairSeconds > 0:
		return c.RepairSeconds
	case t.hardware:
		return 4 * 3600
	}
	return 900
}

func (f *Fleet) recycle(h *host, units [unitCount]bool, out *Outcome) {
	out.Lasts = time.Duration(recycleSeconds * float64(time.Second))
	for u, chosen := range units {
		if chosen {
			h.restart(u, f.now+recycleSeconds)
		}
	}
	for i := len(h.faults) - 1; i >= 0; i-- {
		x := &h.faults[i]
		if !units[x.unit] {
			continue
		}
		if f.try(x, fleet.PhaseRecycle) {
			out.Cured = append(out.Cured, f.history[x.index].ID)
			f.end(h, i, Cured, fleet.PhaseRecycle)
		} else if x.t.unit < 0 && x.kind != ServiceHang {
			x.level = 0 // what it held is released, and it begins again
		}
	}
	if f.draw(h, 0, uint64(h.restarts[storageUnit]+h.restarts[libvirtUnit]), 7) < recycleHarm*share(units) {
		f.harm(h, out)
	}
}

// share is the part of the units that a recycle restarts.
func share(units [unitCount]bool) float64 {
	n := 0.0
	for _, u := range units {
		n += flag(u)
	}
	return n / unitCount
}

func (f *Fleet) reset(h *host, out *Outcome) {
	longest := 0.0
	for _, v := range h.vms {
		freeze := resetFreeze(f.vms[v].bytes)
		out.FreezeSeconds[f.vms[v].id] = freeze
		out.VMSeconds += freeze
		longest = max(longest, freeze)
	}
	if len(h.vms) == 0 {
		longest = 15
	}
	f.tally.FreezeVMSeconds += out.VMSeconds
	out.Lasts = time.Duration(longest * float64(time.Second))
	if f.draw(h, 0, uint64(h.boots), 8) < resetHarm {
		f.harm(h, out)
		return
	}
	for i := len(h.faults) - 1; i >= 0; i-- {
		x := &h.faults[i]
		switch {
		case f.try(x, fleet.PhaseReset):
			out.Cured = append(out.Cured, f.history[x.index].ID)
			f.end(h, i, Cured, fleet.PhaseReset)
		case x.span > 0:
			x.level = 0
		}
	}
	h.reboot(f.cfg.Seed)
	h.wentDown, h.upAt = f.now, f.now+longest
	for u := range unitCount {
		h.restart(u, f.now+longest)
	}
	h.job.end, h.backup.end = min(h.job.end, f.now), min(h.backup.end, f.now)
}

func (f *Fleet) migrate(h *host, out *Outcome) {
	out.Moved = map[string]fleet.HostID{}
	escapes := true
	for i := range h.faults {
		escapes = f.try(&h.faults[i], fleet.PhaseMigrate) && escapes
	}
	if !escapes {
		out.Detail = "the migration did not get through; the VMs stay"
	}
	h.migrations++
	lost := f.draw(h, 0, uint64(h.migrations), 9) < migrateHarm
	for k := 0; k < len(h.vms); {
		v := h.vms[k]
		freeze := migrateFreeze(f.vms[v].bytes)
		out.FreezeSeconds[f.vms[v].id] = freeze
		out.VMSeconds += freeze
		f.tally.FreezeVMSeconds += freeze
		out.Lasts += time.Duration(f.vms[v].bytes / (1.2 * gib) * float64(time.Second))
		if lost {
			lost, out.Harmed = false, true
			out.VMSeconds += f.cfg.CrashSeconds
			f.tally.CrashVMSeconds += f.cfg.CrashSeconds
		}
		if !escapes {
			k++
			continue
		}
		to := f.room(h, f.vms[v].bytes)
		if to == nil {
			escapes = false
			out.Detail = "no host has room for the VMs that stay"
			k++
			continue
		}
		f.move(v, to)
		out.Moved[f.vms[v].id] = to.id
	}
	if !escapes {
		return
	}
	for i := range h.faults {
		x := &h.faults[i]
		if x.repairAt == 0 {
			out.Cured = append(out.Cured, f.history[x.index].ID)
			f.history[x.index].By = fleet.PhaseMigrate
		}
		f.repair(x, Evacuated)
	}
	if len(h.faults) == 0 {
		f.home(h)
	}
}

// room is the sound host with the most available memory that a VM fits on.
func (f *Fleet) room(not *host, bytes float64) *host {
	var best *host
	most := 0.0
	for _, h := range f.hosts {
		if h == not || h.down(f.now) || len(h.faults) > 0 {
			continue
		}
		free := 0.85 * h.memory
		for _, v := range h.vms {
			free -= f.vms[v].bytes
		}
		if free -= bytes; free/h.memory > most {
			best, most = h, free/h.memory
		}
	}
	return best
}

func (f *Fleet) move(v int, to *host) {
	from := f.hosts[f.vms[v].at]
	from.vms = slices.DeleteFunc(from.vms, func(x int) bool { return x == v })
	to.vms = append(to.vms, v)
	f.vms[v].at = to.n
}

// home brings a host's VMs back, at the price of a migration each.
func (f *Fleet) home(h *host) {
	for v := h.n * f.cfg.VMsPerHost; v < (h.n+1)*f.cfg.VMsPerHost; v++ {
		if at := f.hosts[f.vms[v].at]; at != h && !at.down(f.now) {
			f.move(v, h)
			f.tally.FreezeVMSeconds += migrateFreeze(f.vms[v].bytes)
		}
	}
}

// harm is an action that went wrong.
func (f *Fleet) harm(h *host, out *Outcome) {
	out.Harmed = true
	out.VMSeconds += f.cfg.CrashSeconds * float64(len(h.vms))
	out.Detail = "the action itself crashed the host"
	f.crash(h, -1)
}

// crash takes the host down; cause is the history index of the fault that did it,
// -1 where none did.
func (f *Fleet) crash(h *host, cause int) {
	f.tally.Crashes++
	f.tally.CrashVMSeconds += f.cfg.CrashSeconds * float64(len(h.vms))
	for i := len(h.faults) - 1; i >= 0; i-- {
		how := Swept
		if h.faults[i].index == cause {
			how = Crashed
		}
		f.end(h, i, how, "")
	}
	h.reboot(f.cfg.Seed)
	h.wentDown, h.upAt = f.now, f.now+f.cfg.BootSeconds
	for u := range unitCount {
		h.restart(u, h.upAt)
	}
	h.job.end, h.backup.end = min(h.job.end, f.now), min(h.backup.end, f.now)
}

// begin starts a fault.
func (f *Fleet) begin(h *host, kind Kind, lasts float64, unit int, fatal bool) {
	t := traits[kind]
	if t.unit >= 0 {
		unit = t.unit
	} else if unit < 0 {
		unit = h.arrivals.IntN(unitCount)
	}
	x := fault{index: len(f.history), kind: kind, t: t, rate: 1 / lasts, unit: unit, fatal: fatal}
	culprit := ""
	switch kind {
	case MemoryLeak, ServiceHang, DescriptorLeak:
		culprit = unitNames[unit]
	case DiskWear:
		culprit = diskName
	case LinkFlaps:
		culprit = "eth0"
	}
	switch kind {
	case MemoryLeak, KernelMemoryLeak:
		free := 0.95 * h.memory
		for _, v := range h.vms {
			free -= f.vms[v].bytes
		}
		x.span = free
		if !fatal {
			x.span *= 0.4
		}
	case DescriptorLeak:
		x.span = 0.96 * handleLimit
	}
	h.faults = append(h.faults, x)
	f.history = append(f.history, Fault{
		ID: len(f.history) + 1, Host: h.id, Kind: kind, Signature: t.signature, Culprit: culprit,
		Start: f.time(f.now), Due: f.time(f.now + lasts), Fatal: fatal,
	})
}

// note records something benign.
func (f *Fleet) note(h *host, kind Kind, end float64) {
	f.history = append(f.history, Fault{
		ID: len(f.history) + 1, Host: h.id, Kind: kind, Signature: fleet.SignatureNone, Benign: true,
		Start: f.time(f.now), Effect: f.time(f.now), Due: f.time(end), End: f.time(end), Ending: Subsided,
	})
}

// end takes fault i from the host and writes down how it ended.
func (f *Fleet) end(h *host, i int, how Ending, by fleet.Phase) {
	past := &f.history[h.faults[i].index]
	past.End, past.Ending, past.Level = f.time(f.now), how, min(h.faults[i].level, 1)
	if by != "" {
		past.By = by
	}
	h.faults = append(h.faults[:i], h.faults[i+1:]...)
}

// release lets go of what a restarted unit leaked.
func (f *Fleet) release(h *host, unit int) {
	for i := range h.faults {
		if x := &h.faults[i]; x.unit == unit && (x.kind == MemoryLeak || x.kind == DescriptorLeak) {
			x.level = 0
		}
	}
}

func phaseIndex(p fleet.Phase) int {
	switch p {
	case fleet.PhaseRecycle:
		return 0
	case fleet.PhaseReset:
		return 1
	}
	return 2
}

// chance is the probability that the next attempt of a phase cures x.
func (f *Fleet) chance(x *fault, p fleet.Phase) float64 {
	unit := ""
	if x.t.unit < 0 {
		unit = unitNames[x.unit]
	}
	c := x.kind.CureProbability(p, unit, x.level)
	if x.attempts[phaseIndex(p)] > 0 {
		c /= 4
	}
	return c
}

// luck is the draw of the next attempt, fixed by the fault, the phase and its number.
func (f *Fleet) luck(x *fault, p fleet.Phase) float64 {
	past := &f.history[x.index]
	n := phaseIndex(p)
	key := mix(f.cfg.Seed^uint64(past.Start.UnixMilli())) ^ mix(uint64(f.byID[past.Host].n)<<8|uint64(n))
	return uniform(mix(key + uint64(x.attempts[n]) + uint64(len(x.kind))<<32 + uint64(x.kind[0])<<40))
}

// try makes an attempt.
func (f *Fleet) try(x *fault, p fleet.Phase) bool {
	ok := f.luck(x, p) < f.chance(x, p)
	x.attempts[phaseIndex(p)]++
	return ok
}

// draw is a fixed random number for a host, a count and a use.
func (f *Fleet) draw(h *host, a, b, use uint64) float64 {
	return uniform(mix(mix(f.cfg.Seed^use<<48) ^ mix(uint64(h.n)+a<<32) ^ b*0x9e3779b97f4a7c15))
}

func uniform(x uint64) float64 { return float64(x>>11) / (1 << 53) }

// Truth lists the faults that a host has now, with what each action would
// achieve. The caller owns the result; nil for a host that does not exist or is sound.
func (f *Fleet) Truth(id fleet.HostID) []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.byID[id]
	if h == nil {
		return nil
	}
	var out []Fault
	for i := range h.faults {
		out = append(out, f.truth(h, &h.faults[i]))
	}
	return out
}

func (f *Fleet) truth(h *host, x *fault) Fault {
	past := f.history[x.index]
	past.Level = x.level
	past.Would = f.would(h, x)
	return past
}

func (f *Fleet) would(h *host, x *fault) []Achievement {
	n := float64(len(h.vms))
	var reset, migrate float64
	for _, v := range h.vms {
		reset += resetFreeze(f.vms[v].bytes)
		migrate += migrateFreeze(f.vms[v].bytes)
	}
	crash := f.cfg.CrashSeconds * n
	none := 0.0
	switch {
	case x.kind == NoisyNeighbour:
		none = 0.3 * 0.7 * n * (1 - x.level) / x.rate
	case x.fatal:
		none = crash
	}
	of := func(a fleet.Action, p fleet.Phase, cost float64) Achievement {
		c := f.chance(x, p)
		return Achievement{Action: a, CureProbability: c, Cures: f.luck(x, p) < c, CostVMSeconds: cost}
	}
	person := none
	if f.inTime(x) {
		person = min(none, f.cfg.HandOverSeconds*n)
	}
	return []Achievement{
		{Action: fleet.ActionNone, CureProbability: flag(!x.fatal), Cures: !x.fatal, CostVMSeconds: none},
		of(fleet.ActionRecycle, fleet.PhaseRecycle, recycleHarm*crash),
		of(fleet.ActionPreservingReset, fleet.PhaseReset, reset+resetHarm*crash),
		of(fleet.ActionLiveMigrate, fleet.PhaseMigrate, migrate+migrateHarm*f.cfg.CrashSeconds),
		{Action: fleet.ActionHandOver, CureProbability: flag(f.inTime(x)), Cures: f.inTime(x), CostVMSeconds: person},
	}
}

// inTime tells whether a person called now would be done before the fault's end.
func (f *Fleet) inTime(x *fault) bool {
	y := *x
	return f.repair(&y, Repaired) < (1-x.level)/x.rate
}

// History lists all faults and look-alikes so far, in the order of their beginning.
// For those that lasted until now Level and Would are current; for the others Would
// is empty. The caller owns the result.
func (f *Fleet) History() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.Clone(f.history)
	for _, h := range f.hosts {
		for i := range h.faults {
			out[h.faults[i].index] = f.truth(h, &h.faults[i])
		}
	}
	return out
}

// UnitState is a service of a simulated host.
type UnitState struct {
	Active, Healthy bool
	// Restarts counts its starts since the beginning.
	Restarts int
}

// Unit is the state of a unit, at the instant of the last step. An error means that the host or
// the unit does not exist.
func (f *Fleet) Unit(id fleet.HostID, unit string) (UnitState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, u := f.byID[id], unitIndex(unit)
	if h == nil || u < 0 {
		return UnitState{}, fmt.Errorf("simulated fleet: host %q has no unit %q", id, unit)
	}
	s := UnitState{Active: !h.down(f.now) && f.now >= h.restarted[u], Restarts: h.restarts[u]}
	s.Healthy = s.Active
	for _, x := range h.faults {
		if x.unit == u && (x.kind == ServiceHang && x.level >= unhealthyLevel || x.kind == DescriptorLeak && x.level > starvedLevel) {
			s.Healthy = false
		}
	}
	return s, nil
}
