// Package placement chooses where the VMs of a failing host go. It is a pure function
// of what is known of the fleet, and says why it chose, or why nothing fits.
package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Host is a host as a source or as a target of moves.
type Host struct {
	fleet.Host
	// Healthy is true where newer evidence says so.
	Healthy bool
	// Unfit says why no VM may be moved there, for example that it is cordoned, or that
	// an execution is under way on it; "" if nothing is in the way.
	Unfit string
	// AvailableBytes is the memory that it could give to programs now; NaN if unknown.
	AvailableBytes float64
	// BusyRatio is the share of its CPU time that is used, 0..1; NaN if unknown.
	BusyRatio float64
}

// Reserve is the share of a target's memory that stays free for the host itself.
const Reserve = 0.1

// How much each preference counts. They add up to 1.
const (
	weighMemory = 0.5 // free memory left after the move, as a share
	weighLoad   = 0.3 // idle CPU time
	weighDomain = 0.2 // another fault domain than the failing host's
)

// Choose finds a target for every VM of a host that runs or is paused, the largest
// first, each where it leaves the best balance of free memory, idle CPUs and distance
// from the fault. The same input gives the same choice. An error says of each VM
// that cannot be moved what is in the way of it on every host; nothing is chosen then.
func Choose(from Host, hosts []Host) ([]fleet.Target, error) {
	var vms []fleet.VM
	var problems []string
	for _, vm := range from.VMs {
		if vm.State != "running" && vm.State != "paused" {
			continue
		}
		switch {
		case vm.Pinned != "":
			problems = append(problems, fmt.Sprintf("VM %s cannot leave the host: %s", name(vm), vm.Pinned))
		case vm.MemoryBytes <= 0:
			problems = append(problems, fmt.Sprintf("VM %s cannot be placed: the size of its memory is not known", name(vm)))
		}
		vms = append(vms, vm)
	}
	slices.SortFunc(vms, func(a, b fleet.VM) int {
		if d := cmp.Compare(b.MemoryBytes, a.MemoryBytes); d != 0 {
			return d
		}
		return cmp.Compare(a.ID, b.ID)
	})
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b Host) int { return cmp.Compare(a.ID, b.ID) })
	free := make([]float64, len(hosts))
	given := make([]int, len(hosts))
	for i, h := range hosts {
		free[i] = room(h)
	}
	targets := []fleet.Target{}
	for _, vm := range vms {
		if len(problems) > 0 {
			break
		}
		best, bestScore, others := -1, 0.0, 0
		var why []string
		for i, h := range hosts {
			if h.ID == from.ID {
				continue
			}
			if reason := unfit(from, h, vm, free[i]); reason != "" {
				why = append(why, fmt.Sprintf("%s: %s", h.ID, reason))
				continue
			}
			others++
			if s := score(from, h, vm, free[i], given[i], len(vms)); best < 0 || s > bestScore {
				best, bestScore = i, s
			}
		}
		if best < 0 {
			if len(why) == 0 {
				why = append(why, "there is no other host")
			}
			problems = append(problems, fmt.Sprintf("VM %s (%s) fits nowhere: %s", name(vm), size(float64(vm.MemoryBytes)), clip(why)))
			break
		}
		h := hosts[best]
		free[best] -= float64(vm.MemoryBytes)
		given[best]++
		address := h.Address
		if address == "" {
			address = string(h.ID)
		}
		targets = append(targets, fleet.Target{VM: vm.ID, Host: h.ID, Address: address, Why: reasons(from, h, free[best], others)})
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(problems, "; "))
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("no VM runs on %s, so there is nothing to move", from.ID)
	}
	return targets, nil
}

// room is the memory that VMs may still be given on a host: what is available now and
// what is not promised to the VMs that it has, whichever is less. NaN: unknown.
func room(h Host) float64 {
	free := h.AvailableBytes
	if h.MemoryBytes > 0 {
		promised := 0.0
		for _, vm := range h.VMs {
			if vm.State == "running" || vm.State == "paused" {
				promised += float64(vm.MemoryBytes)
			}
		}
		if rest := float64(h.MemoryBytes) - promised; math.IsNaN(free) || rest < free {
			free = rest
		}
		free -= Reserve * float64(h.MemoryBytes)
	}
	return free
}

// unfit says why a VM cannot go to a host, "" if it can.
func unfit(from, h Host, vm fleet.VM, free float64) string {
	switch {
	case h.Simulated != from.Simulated:
		return "it is not of the same fleet (simulated or not)"
	case !h.AcceptsVMs:
		return "it does not take VMs of others (agent.migrate.accept)"
	case h.Unfit != "":
		return h.Unfit
	case !h.Healthy:
		return "it is not known to be healthy"
	case from.CPU.Arch != "" && h.CPU.Arch != from.CPU.Arch:
		return fmt.Sprintf("its architecture is %q, not %q", h.CPU.Arch, from.CPU.Arch)
	case math.IsNaN(free):
		return "its free memory is not known"
	case free < float64(vm.MemoryBytes):
		return fmt.Sprintf("only %s of memory are free for VMs", size(max(free, 0)))
	}
	if vm.HostCPU {
		if lack := lacks(from.CPU, h.CPU); lack != "" {
			return "the VM was given its host's CPU, and this one lacks " + lack
		}
	}
	return ""
}

// lacks lists the first features of a CPU that another does not have.
func lacks(from, to fleet.CPU) string {
	if from.Flags == "" || to.Flags == "" {
		return "a list of its features"
	}
	has := map[string]bool{}
	for f := range strings.FieldsSeq(to.Flags) {
		has[f] = true
	}
	var missing []string
	for f := range strings.FieldsSeq(from.Flags) {
		if !has[f] {
			missing = append(missing, f)
		}
	}
	if len(missing) > 5 {
		missing = append(missing[:5], fmt.Sprintf("and %d more", len(missing)-5))
	}
	return strings.Join(missing, " ")
}

// score is how good a target is, at most 1. given counts the VMs that it was given
// already, of all: each will take CPU time too.
func score(from, h Host, vm fleet.VM, free float64, given, all int) float64 {
	total := float64(h.MemoryBytes)
	if total <= 0 {
		total = free
	}
	busy := h.BusyRatio
	if math.IsNaN(busy) {
		busy = 0.5
	}
	s := weighMemory*(free-float64(vm.MemoryBytes))/total + weighLoad*(1-busy)*(1-float64(given)/float64(all))
	if h.FaultDomain != from.FaultDomain {
		s += weighDomain
	}
	return s
}

func reasons(from, h Host, free float64, candidates int) string {
	text := []string{fmt.Sprintf("best of %d", candidates), fmt.Sprintf("healthy, %s of memory left for VMs", size(free))}
	if !math.IsNaN(h.BusyRatio) {
		text = append(text, fmt.Sprintf("CPUs %.0f %% busy", 100*h.BusyRatio))
	}
	if h.FaultDomain != from.FaultDomain {
		text = append(text, "in another fault domain")
	}
	return strings.Join(text, ", ")
}

func name(vm fleet.VM) string {
	if vm.Name == "" || vm.Name == vm.ID {
		return vm.ID
	}
	return vm.Name + " (" + vm.ID + ")"
}

func size(bytes float64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%.0f MiB", bytes/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", bytes/(1<<30))
}

// clip keeps a list of reasons readable.
func clip(why []string) string {
	if len(why) > 10 {
		why = append(why[:10:10], fmt.Sprintf("and %d more hosts", len(why)-10))
	}
	return strings.Join(why, "; ")
}
