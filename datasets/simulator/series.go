package simulator

import "github.com/tardigrade-recovery/tardigrade/internal/fleet"

// Units are the services of every simulated host, in the order of a recycle.
func Units() []string { return append([]string(nil), unitNames[:]...) }

var unitNames = [...]string{"storage-agent.service", "network-agent.service", "metrics-agent.service", "libvirtd.service"}

const (
	storageUnit = iota
	networkUnit
	metricsUnit
	libvirtUnit
	unitCount
)

// The columns of a sample.
const (
	cpuUser = iota
	cpuSystem
	cpuIOWait
	cpuSoftIRQ
	cpuGuest
	cpuBusy
	cpuBusiest
	load1
	load5
	load1PerCPU
	contextSwitches
	interrupts
	forks
	tasksRunning
	tasksBlocked
	memTotal
	memAvailable
	memAvailableRatio
	memFree
	memCached
	memAnonymous
	memDirty
	memSlabUnreclaimable
	memCorrupted
	pageFaults
	majorFaults
	reclaimDirect
	allocStalls
	pressureCPU
	pressureMemory
	pressureMemoryFull
	pressureIO
	pressureIOFull
	disksRead
	disksWrite
	diskReadLatency
	diskWriteLatency
	diskUtilization
	diskQueue
	diskErrors
	diskErrorsOf
	fsAvailable
	fsReadOnly
	netReceive
	netTransmit
	netReceivePackets
	netErrors
	netDrops
	netLinkChanges
	netLinksDown
	tcpRetransmits
	tcpConnections
	fileHandles
	fileHandlesRatio
	threads
	kernelTainted
	kernelWarnings
	kernelHungTasks
	edacCorrected
	edacUncorrected
	temperature
	throttles
	unitsUnhealthy
	vmsTotal
	vmsRunning
	vmsCPUs
	vmsMemory
	vmSteal
	hostColumns
)

// The columns of a unit, from hostColumns + unit*unitColumns.
const (
	unitActive = iota
	unitHealthy
	unitMemory
	unitCPUs
	unitTasks
	unitRestarts
	unitColumns
)

const columns = hostColumns + unitCount*unitColumns

const diskName = "nvme0n1"

var hostNames = [hostColumns]string{
	cpuUser: "cpu_user_ratio", cpuSystem: "cpu_system_ratio", cpuIOWait: "cpu_iowait_ratio", cpuSoftIRQ: "cpu_softirq_ratio",
	cpuGuest: "cpu_guest_ratio", cpuBusy: "cpu_busy_ratio", cpuBusiest: "cpu_busiest_ratio",
	load1: "load_1m", load5: "load_5m", load1PerCPU: "load_1m_per_cpu",
	contextSwitches: "context_switches_per_second", interrupts: "interrupts_per_second", forks: "forks_per_second",
	tasksRunning: "tasks_running", tasksBlocked: "tasks_blocked",
	memTotal: "memory_total_bytes", memAvailable: "memory_available_bytes", memAvailableRatio: "memory_available_ratio",
	memFree: "memory_free_bytes", memCached: "memory_cached_bytes", memAnonymous: "memory_anonymous_bytes", memDirty: "memory_dirty_bytes",
	memSlabUnreclaimable: "memory_slab_unreclaimable_bytes", memCorrupted: "memory_hardware_corrupted_bytes",
	pageFaults: "page_faults_per_second", majorFaults: "major_page_faults_per_second",
	reclaimDirect: "reclaim_scanned_direct_pages_per_second", allocStalls: "allocation_stalls_per_second",
	pressureCPU: "pressure_cpu_some_ratio", pressureMemory: "pressure_memory_some_ratio", pressureMemoryFull: "pressure_memory_full_ratio",
	pressureIO: "pressure_io_some_ratio", pressureIOFull: "pressure_io_full_ratio",
	disksRead: "disks_read_bytes_per_second", disksWrite: "disks_write_bytes_per_second",
	diskReadLatency: "disk_read_latency_max_seconds", diskWriteLatency: "disk_write_latency_max_seconds",
	diskUtilization: "disk_utilization_max_ratio", diskQueue: "disk_queue_max",
	diskErrors: "disks_io_errors_per_second", diskErrorsOf: "disk_io_errors_per_second{" + diskName + "}",
	fsAvailable: "filesystem_available_min_ratio", fsReadOnly: "filesystems_read_only",
	netReceive: "network_receive_bytes_per_second", netTransmit: "network_transmit_bytes_per_second",
	netReceivePackets: "network_receive_packets_per_second", netErrors: "network_receive_errors_per_second",
	netDrops: "network_receive_drops_per_second", netLinkChanges: "network_link_changes_per_second", netLinksDown: "network_links_down",
	tcpRetransmits: "tcp_retransmit_ratio", tcpConnections: "tcp_connections",
	fileHandles: "file_handles_used", fileHandlesRatio: "file_handles_used_ratio", threads: "threads_total",
	kernelTainted: "kernel_tainted_by_fault", kernelWarnings: "kernel_warnings_per_second", kernelHungTasks: "kernel_hung_tasks_per_second",
	edacCorrected: "edac_corrected_errors_per_second", edacUncorrected: "edac_uncorrected_errors_per_second",
	temperature: "temperature_max_celsius", throttles: "cpu_core_throttles_per_second",
	unitsUnhealthy: "units_unhealthy",
	vmsTotal:       "vms_total", vmsRunning: "vms_running", vmsCPUs: "vms_cpus_used", vmsMemory: "vms_memory_bytes",
	vmSteal: "vm_steal_max_seconds_per_second",
}

var unitMetrics = [unitColumns]string{
	unitActive: "unit_active", unitHealthy: "unit_healthy", unitMemory: "unit_memory_bytes",
	unitCPUs: "unit_cpus_used", unitTasks: "unit_tasks", unitRestarts: "unit_restarts_per_second",
}

// Series lists the series of a sample in order, by the names of the collector's
// catalogue.
func Series() []string {
	names := append(make([]string, 0, columns), hostNames[:]...)
	for _, u := range unitNames {
		for _, m := range unitMetrics {
			names = append(names, fleet.SeriesName(m, u))
		}
	}
	return names
}
