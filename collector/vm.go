package collector

import (
	"context"
	"math"
)

// VMStat is what the hypervisor says of one VM. A number that it does not know
// is NaN. Counters grow from the start of the VM.
type VMStat struct {
	// Name tells VMs apart: an id or a unique name.
	Name    string
	Running bool // as against paused or shut off
	// CPUSeconds is the CPU time that the VM used (counter).
	CPUSeconds float64
	// StealSeconds is the time for which its CPUs were ready and not let run (counter).
	StealSeconds float64
	// MemoryBytes is the host's memory that the VM holds.
	MemoryBytes                                   float64
	BlockReadBytes, BlockWriteBytes, BlockErrors  float64 // counters
	NetReceiveBytes, NetTransmitBytes, NetDropped float64 // counters; drops include errors
}

// VMs asks the hypervisor.
type VMs interface {
	// VMStats returns all VMs of the host.
	VMStats(ctx context.Context) ([]VMStat, error)
}

var vmMetrics = append([]Metric{
	gauge("vms_total", "1", "VMs that the hypervisor knows", "hypervisor driver"),
	gauge("vms_running", "1", "VMs that run", "hypervisor driver"),
	gauge("vms_cpus_used", "1", "CPUs that all VMs keep busy", "hypervisor driver"),
	gauge("vms_memory_bytes", "bytes", "memory that all VMs hold", "hypervisor driver"),
	gauge("vm_steal_max_seconds_per_second", "1", "time a second for which the CPUs of the worst-off VM waited for a CPU", "hypervisor driver"),
}, each("vm",
	state("vm_running", "whether the VM runs", "hypervisor driver"),
	gauge("vm_cpus_used", "1", "CPUs that the VM keeps busy", "hypervisor driver"),
	gauge("vm_steal_seconds_per_second", "1", "time a second for which the VM's CPUs waited for a CPU of the host", "hypervisor driver"),
	gauge("vm_memory_bytes", "bytes", "memory that the VM holds", "hypervisor driver"),
	rate("vm_block_read_bytes_per_second", "bytes/s", "read by the VM's disks", "hypervisor driver"),
	rate("vm_block_write_bytes_per_second", "bytes/s", "written by the VM's disks", "hypervisor driver"),
	rate("vm_block_errors_per_second", "1/s", "failed requests of the VM's disks", "hypervisor driver"),
	rate("vm_network_receive_bytes_per_second", "bytes/s", "received by the VM", "hypervisor driver"),
	rate("vm_network_transmit_bytes_per_second", "bytes/s", "sent by the VM", "hypervisor driver"),
	rate("vm_network_drops_per_second", "1/s", "packets from and to the VM that were lost", "hypervisor driver"),
)...)

type vmSource struct{ vms VMs }

func newVMSource(h *host) source {
	if h.config.VMs == nil {
		return nil
	}
	return &vmSource{h.config.VMs}
}

func (s *vmSource) collect(ctx context.Context, f *frame) error {
	all, err := s.vms.VMStats(ctx)
	if err != nil {
		return err
	}
	nan := math.NaN()
	running, cpus, memory, steal := 0, nan, nan, nan
	if len(all) == 0 {
		cpus, memory = 0, 0
	}
	for _, vm := range all {
		if vm.Running {
			running++
		}
		name := instanceName(vm.Name)
		if name == "" {
			continue
		}
		shown := f.admit(name)
		put := func(metric string, v float64) float64 {
			if shown {
				f.setOf(metric, name, v)
			}
			return v
		}
		per := func(metric string, counter, scale float64) float64 {
			if !(counter >= 0 && counter*scale < 1<<63) {
				return nan
			}
			d, seconds := f.delta(metric, name, uint64(counter*scale), counter64)
			return put(metric, d/scale/seconds)
		}
		put("vm_running", b2f(vm.Running))
		sumOf(&memory, put("vm_memory_bytes", vm.MemoryBytes))
		sumOf(&cpus, per("vm_cpus_used", vm.CPUSeconds, 1e6))
		maxOf(&steal, per("vm_steal_seconds_per_second", vm.StealSeconds, 1e6))
		per("vm_block_read_bytes_per_second", vm.BlockReadBytes, 1)
		per("vm_block_write_bytes_per_second", vm.BlockWriteBytes, 1)
		per("vm_block_errors_per_second", vm.BlockErrors, 1)
		per("vm_network_receive_bytes_per_second", vm.NetReceiveBytes, 1)
		per("vm_network_transmit_bytes_per_second", vm.NetTransmitBytes, 1)
		per("vm_network_drops_per_second", vm.NetDropped, 1)
	}
	f.set("vms_total", float64(len(all)))
	f.set("vms_running", float64(running))
	f.set("vms_cpus_used", cpus)
	f.set("vms_memory_bytes", memory)
	f.set("vm_steal_max_seconds_per_second", steal)
	return nil
}
