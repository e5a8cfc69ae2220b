package collector

import "time"

// descriptions lists the sources. Their order is that of the catalogue, and of
// the columns of a sample.
func descriptions() []description {
	return []description{
		{"cpu", 0, cpuMetrics, newCPUSource},
		{"memory", 0, memoryMetrics, newMemorySource},
		{"vmstat", 0, vmstatMetrics, newVMStatSource},
		{"pressure", 0, pressureMetrics, newPressureSource},
		{"disk", 0, diskMetrics, newDiskSource},
		{"filesystem", 5 * time.Second, filesystemMetrics, newFilesystemSource},
		{"network-filesystem", 10 * time.Second, networkFilesystemMetrics, newNetworkFilesystemSource},
		{"network", 0, networkMetrics, newNetworkSource},
		{"protocol", 0, protocolMetrics, newProtocolSource},
		{"kernel", 0, kernelMetrics, newKernelSource},
		{"kernel-log", 0, kernelLogMetrics, newKernelLogSource},
		{"process", 10 * time.Second, processMetrics, newProcessSource},
		{"hardware", 10 * time.Second, hardwareMetrics, newHardwareSource},
		{"smart", 5 * time.Minute, smartMetrics, newSMARTSource},
		{"clock", 0, clockMetrics, newClockSource},
		{"systemd", 2 * time.Second, systemdMetrics, newSystemdSource},
		{"unit", 0, unitMetrics, newUnitSource},
		{"health", 0, healthMetrics, newHealthSource},
		{"vm", 0, vmMetrics, newVMSource},
	}
}
