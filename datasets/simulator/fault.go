package simulator

import (
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Kind is what is wrong with a host.
type Kind string

// The kinds of faults; the package comment says what each does.
const (
	MemoryLeak       Kind = "memory-leak"
	ServiceHang      Kind = "service-hang"
	DescriptorLeak   Kind = "descriptor-leak"
	KernelMemoryLeak Kind = "kernel-memory-leak"
	LockUp           Kind = "lock-up"
	DiskWear         Kind = "disk-wear"
	ECCStorm         Kind = "ecc-storm"
	LinkFlaps        Kind = "link-flaps"
	Overheating      Kind = "overheating"
	NoisyNeighbour   Kind = "noisy-neighbour"
)

// The kinds of what looks like a fault and is none.
const (
	Backup   Kind = "backup"
	Deploy   Kind = "deploy"
	BatchJob Kind = "batch-job"
)

// trait is how a kind behaves.
type trait struct {
	signature fleet.Signature
	// weight is the kind's share of all faults, unnormalised.
	weight float64
	// least and most bound how long it lasts; the draw is log-uniform.
	least, most time.Duration
	// fatal is the probability that it ends in a crash.
	fatal float64
	// unit is the service whose restart may help, -1 for a random one.
	unit int
	// recycle, reset and migrate are the cure rates of the actions.
	recycle, reset, migrate float64
	// hardware needs a repair of hours, other faults a reinstallation.
	hardware bool
	// visible is the level from which the metrics show it.
	visible float64
}

var traits = map[Kind]trait{
	MemoryLeak:       {fleet.SignatureMemoryLeak, 20, time.Hour, 72 * time.Hour, 0.85, -1, 0.92, 0.97, 0.95, false, 0.02},
	ServiceHang:      {fleet.SignatureServiceHang, 20, 5 * time.Minute, 2 * time.Hour, 0.6, -1, 0.93, 0.97, 0.9, false, 0.1},
	DescriptorLeak:   {fleet.SignatureServiceHang, 8, 2 * time.Hour, 48 * time.Hour, 0.7, -1, 0.95, 0.97, 0.93, false, 0.05},
	KernelMemoryLeak: {fleet.SignatureKernelFault, 8, 6 * time.Hour, 120 * time.Hour, 0.9, libvirtUnit, 0.04, 0.96, 0.93, false, 0.03},
	LockUp:           {fleet.SignatureKernelFault, 10, 10 * time.Minute, 6 * time.Hour, 0.75, libvirtUnit, 0.08, 0.9, 0.8, false, 0.1},
	DiskWear:         {fleet.SignatureDisk, 12, 6 * time.Hour, 168 * time.Hour, 0.7, storageUnit, 0.03, 0.05, 0.92, true, 0.1},
	ECCStorm:         {fleet.SignatureMemoryHardware, 8, time.Hour, 96 * time.Hour, 0.55, libvirtUnit, 0.01, 0.1, 0.93, true, 0.05},
	LinkFlaps:        {fleet.SignatureNetwork, 6, 10 * time.Minute, 12 * time.Hour, 0.4, networkUnit, 0.35, 0.5, 0.8, true, 0.1},
	Overheating:      {fleet.SignatureThermal, 4, 30 * time.Minute, 12 * time.Hour, 0.5, metricsUnit, 0.01, 0.02, 0.94, true, 0.15},
	NoisyNeighbour:   {fleet.SignatureNoisyNeighbour, 4, 10 * time.Minute, 6 * time.Hour, 0, libvirtUnit, 0.02, 0.02, 0.88, false, 0.1},
}

// Kinds lists the kinds of faults, in the order in which a rotation takes them.
func Kinds() []Kind {
	return []Kind{MemoryLeak, ServiceHang, LockUp, DiskWear, DescriptorLeak, ECCStorm, KernelMemoryLeak, LinkFlaps, Overheating, NoisyNeighbour}
}

// Signature is the class of fault that a kind belongs to, "" for one that is unknown or benign.
func (k Kind) Signature() fleet.Signature { return traits[k].signature }

// FatalProbability is the probability with which a fault of this kind ends in a crash.
func (k Kind) FatalProbability() float64 { return traits[k].fatal }

// unitCure is how well a restart of each unit goes, compared with the best.
var unitCure = [unitCount]float64{storageUnit: 0.85, networkUnit: 0.97, metricsUnit: 1, libvirtUnit: 0.92}

// Ending is how a fault ended.
type Ending string

// The endings. A fault that still lasts has the ending "".
const (
	Cured     Ending = "cured"     // by an action
	Evacuated Ending = "evacuated" // the VMs left, then the host was repaired
	Repaired  Ending = "repaired"  // by a person
	Crashed   Ending = "crashed"   // this fault crashed the host
	Swept     Ending = "swept"     // another fault, or an action that harmed, crashed the host
	Subsided  Ending = "subsided"  // by itself
)

// Fault is the truth about one fault, or about something that looks like one.
type Fault struct {
	ID        int             `json:"id"`
	Host      fleet.HostID    `json:"host"`
	Kind      Kind            `json:"kind"`
	Signature fleet.Signature `json:"signature"`
	// Benign is true for what is no fault: backups, deploys, batch jobs.
	Benign bool `json:"benign"`
	// Culprit is the unit, disk or interface that is at fault, "" if there is none.
	Culprit string    `json:"culprit,omitempty"`
	Start   time.Time `json:"start"`
	// Effect is when the metrics began to show it; zero before.
	Effect time.Time `json:"effect,omitzero"`
	// Due is when it is expected to end by itself, at the load that the host has on average.
	Due time.Time `json:"due"`
	// Fatal is true where that end is a crash.
	Fatal bool `json:"fatal"`
	// End is when it ended and Ending how; zero and "" while it lasts.
	End    time.Time `json:"end,omitzero"`
	Ending Ending    `json:"ending,omitempty"`
	// By is the phase that ended it, "" where no action did.
	By fleet.Phase `json:"by,omitempty"`
	// Level is how far it has developed, 0..1.
	Level float64 `json:"level"`
	// Would says what each action would achieve; empty where Benign.
	Would []Achievement `json:"would,omitempty"`
	// Moments say what each action would have achieved earlier, where [Config.Moments] asks for it.
	Moments []Moment `json:"moments,omitempty"`
}

// Moment is what each action would have achieved at one time.
type Moment struct {
	Time  time.Time     `json:"time"`
	Level float64       `json:"level"`
	Would []Achievement `json:"would"`
}

// levels are those of a fault at which [Config.Moments] keeps the truth: when the metrics
// begin to show it, and then at each of these.
var levels = [...]float64{0.25, 0.5, 0.75, 0.9}

// Achievement is what an action would achieve against a fault, by itself.
type Achievement struct {
	Action fleet.Action `json:"action"`
	// CureProbability is the probability that it ends the danger to the VMs.
	CureProbability float64 `json:"cure_probability"`
	// Cures is what the next attempt would come to: the draw is fixed in advance.
	Cures bool `json:"cures"`
	// CostVMSeconds is its own expected interruption, whether it cures or not; for
	// none, that of what the fault does when it is left alone.
	CostVMSeconds float64 `json:"cost_vm_s"`
}

// CureProbability is the probability with which a phase cures a fault of this
// kind in this unit ("" where it is in none) at this level on the first attempt.
//
// Up to a level of 0.7 it is the kind's rate; from there on it falls, by 30 % at level 1.
func (k Kind) CureProbability(p fleet.Phase, unit string, level float64) float64 {
	t := traits[k]
	return t.cureProbability(p, unit, level)
}

func (t *trait) cureProbability(p fleet.Phase, unit string, level float64) float64 {
	rate := 0.0
	switch p {
	case fleet.PhaseRecycle:
		rate = t.recycle
		for i, name := range unitNames {
			if name == unit && t.unit < 0 {
				rate *= unitCure[i]
			}
		}
	case fleet.PhaseReset:
		rate = t.reset
	case fleet.PhaseMigrate:
		rate = t.migrate
	}
	return rate * (1 - max(0, min(level, 1)-0.7))
}
