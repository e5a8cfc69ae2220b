// Package simulator is a fleet that does not exist: hosts with VMs in fault
// domains, whose metrics follow a stated physical model, on which faults develop,
// which actions can cure, and which knows the truth about itself. One seed gives
// one fleet, byte for byte, on one architecture.
//
// # Load
//
// A host's load is a share of its CPUs, 0..1. It is the sum of a day cycle (a
// cosine with its peak in the afternoon, shifted per host), a week cycle (weekends
// at 60 %), and two Ornstein-Uhlenbeck processes (time constants of 20 minutes and
// of 45 seconds), scaled by the share of its VMs that the host still has. All steps
// are exact for any interval. CPU, switches, interrupts, network, disks,
// temperature and memory follow the load through their own gains, with noise whose
// deviation grows with the level, and queueing where something gets short: waiting
// grows as u²/(1-u) with utilisation u, page reclaim sets in under 8 % of free memory.
//
// # Faults
//
// Each fault has a level that grows from 0 to 1 over the time that it lasts, faster
// under load, and shows in the metrics as follows.
//
//	kind                signature        what the level does
//	memory-leak         memory-leak      memory of one unit grows linearly, up to all that is available
//	service-hang        service-hang     the unit slows down, its tasks pile up; from 0.35 its health check fails
//	descriptor-leak     service-hang     open files grow to the limit; from 0.95 the unit's health check fails
//	kernel-memory-leak  kernel-fault     unreclaimable slab grows up to all that is available
//	lock-up             kernel-fault     tasks block, hung-task warnings come ever more often
//	disk-wear           disk             latency up to 40 times, I/O errors, read-only at the end
//	ecc-storm           memory-hardware  corrected errors ever more often, then pages are taken out, then uncorrected ones
//	link-flaps          network          the link flaps, packets drop, TCP retransmits
//	overheating         thermal          temperature rises to 100 °C; from 88 °C the CPUs throttle
//	noisy-neighbour     noisy-neighbour  one VM takes the CPUs, the others wait
//
// At level 1 a fatal fault crashes the host, and one that is not fatal subsides. A
// host without memory crashes whatever took it, so two leaks crash it earlier. A
// crash takes CrashSeconds from each VM, ends the host's faults, and the host is back after
// BootSeconds with a new boot id; meanwhile it gives no sample. A noisy neighbour
// takes a part of the VMs' time while it lasts and never crashes.
//
// # What looks like a fault and is none
//
// Backups each night (reads, page cache, sending), deploys on workdays (each
// unit restarts, then warms its caches up, so that its memory grows for minutes),
// batch jobs (CPUs, and memory that grows in a line for up to an hour and is then
// released). None of them ever crashes a host.
//
// # Actions
//
// [Fleet.Apply] acts as an executor's phase would. Whether an action cures a fault
// depends on the kind, for faults of units on the unit, and on the level: late is harder (see [Fault.CureProbability]).
// The draw belongs to the fault, the action and the attempt, not to the moment, so that two
// policies can be compared on the same luck; a second attempt of the same
// action has a quarter of the chance. A restart without cure still releases
// what the unit leaked, and the leak begins again.
//
//   - recycle restarts units; VMs notice nothing. With 0.05 % probability it harms the host.
//   - reset freezes each VM for 15 s plus 0.2 s a GiB, and restarts kernel and units.
//     With 1 % probability it crashes the host.
//   - migrate moves the VMs to the hosts with most room, each frozen for 0.2 s plus 0.02 s a
//     GiB. With 0.5 % probability one VM is lost on the way. The fault stays on the empty host,
//     which is repaired and gets its VMs back.
//
// The figures are chosen by plausibility, not measured on a fleet; a result
// on simulated hosts is a statement about policies and code, not about hardware.
package simulator
