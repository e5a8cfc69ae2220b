package diagnose

import (
	"regexp"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// rule is a sign of a fault in the lines that are collected.
type rule struct {
	// name identifies the rule in root-cause.json.
	name string
	// title is what the sign means, and advice what to look at next.
	title, advice string
	class         fleet.Signature
	// weight is how likely a single fresh line is about the cause itself, 0..1. Causes
	// weigh more than what follows from them: a disk's error more than the read-only file
	// system, and that more than the service that then failed.
	weight float64
	// from says whose lines count.
	from [origins]bool
	// any has literals of which one is in each line that matches.
	any []string
	// re matches the line; its first group that took part names what is to blame. nil
	// means that a literal is enough.
	re *regexp.Regexp
	// not matches what looks alike and is no fault.
	not *regexp.Regexp
	// cleared matches a later line that says that the same thing is well again, with the
	// same first group.
	cleared *regexp.Regexp
	// reach says whom the fault concerns.
	reach reach
	// symptom is true for what says that a service fails and not why.
	symptom bool
	// lasting is true for what leaves the host damaged.
	lasting bool
	// context is how many lines after the first one are shown with it.
	context int
}

// reach says whom a fault concerns. What does not concern the services that fail weighs
// less.
type reach uint8

const (
	// The zero value is everyone on the host.
	_ reach = iota
	// itself is the program that the line is of or about.
	itself
	// perhapsAll is the program of the line for sure, and others if they share what it
	// ran out of.
	perhapsAll
)

func by(o ...origin) (from [origins]bool) {
	for _, x := range o {
		from[x] = true
	}
	return from
}

var (
	kernel  = by(fromKernel)
	manager = by(fromManager)
	looking = by(fromUs)
	anyone  = by(fromProgram, fromKernel, fromManager)
)

// The texts are those of Linux 5.10 to 6.17, systemd 247 to 258, QEMU and libvirt, as
// in their sources.
var rules = []rule{
	{
		name: "kernel-panic", title: "the kernel panicked", class: fleet.SignatureKernelFault, weight: 0.98, from: kernel, context: 8,
		any: []string{"Kernel panic - not syncing"}, advice: "Compare the trace with known bugs of this kernel; install the next one.",
	},
	{
		name: "memory-uncorrected", title: "memory or a processor reported an error that could not be corrected", class: fleet.SignatureMemoryHardware, weight: 0.97, lasting: true, from: kernel,
		any:    []string{"[Hardware Error]", "Memory failure:", " UE ", "Machine Check Exception"},
		re:     regexp.MustCompile(`\[Hardware Error\]:.*(?:Uncorrected|[Uu]ncorrectable|event severity: (?:fatal|recoverable)|Machine Check Exception)|^Memory failure: 0x|Kernel panic.*[Mm]achine [Cc]heck|^EDAC (\S+): [1-9]\d* UE `),
		advice: "Move the VMs away and replace the module that is named; do not trust what this host computes.",
	},
	{
		name: "kernel-oops", title: "the kernel crashed in one of its tasks (oops)", class: fleet.SignatureKernelFault, weight: 0.95, lasting: true, from: kernel, context: 8,
		any: []string{"BUG:", "Oops", "kernel BUG at", "general protection fault", "Unable to handle kernel", "Bad page state"},
		re:  regexp.MustCompile(`^BUG: (?:unable to handle|kernel NULL|Bad (?:page|rss)|KASAN|scheduling while atomic|workqueue lockup)|\bOops(?:: | - )|kernel BUG at|^general protection fault|^Unable to handle kernel|^BUG: Bad page state`),
		not: regexp.MustCompile(`^traps: `), advice: "Compare the trace with known bugs of this kernel; the host has to be reset, since locks may be held for ever.",
	},
	{
		name: "disk-io", title: "a disk reports I/O errors", class: fleet.SignatureDisk, weight: 0.93, lasting: true, from: kernel,
		any: []string{" error, dev ", "I/O error on dev", "Unrecovered read error", ": failed command: ", "controller is down", "lost async page write", "rejecting I/O to offline device", "multipath: ", "timeout, aborting", "timeout, reset controller"},
		re: regexp.MustCompile(`(?:I/O|critical (?:medium|target|space allocation|nexus)|protection|timeout|device resource) error, dev (\S+?),|Buffer I/O error on dev(?:ice)? (\S+?),|\[(\w+)\].*Unrecovered read error|^(ata\d+)[.\d]*: failed command: |^nvme (\S+): (?:I/O .*timeout, (?:aborting|reset controller)|controller is down)` +
			`|rejecting I/O to offline device|multipath: \S+ Failing path (\S+?)\.`),
		not:    regexp.MustCompile(`\bdev(?:ice)? (?:fd|sr|zram|nbd)\d`),
		advice: "Check the disk with smartctl and its cabling; move the VMs away before it fails as a whole.",
	},
	{
		name: "filesystem-damaged", title: "a file system is damaged", class: fleet.SignatureDisk, weight: 0.91, lasting: true, from: kernel,
		any:    []string{"EXT4-fs error", "EXT4-fs (", "XFS (", "BTRFS", "JBD2:", "Aborting journal"},
		re:     regexp.MustCompile(`^EXT4-fs error \(device (\S+?)\)|^XFS \((\S+?)\): (?:Corruption|Metadata (?:corruption|I/O [Ee]rror)|metadata I/O error|Internal error|Filesystem has been shut down|[Ll]og I/O [Ee]rror)|^BTRFS:?(?: error| critical) \(device (\S+?)[):]|^JBD2: .*(?:I/O error|aborted)|Aborting journal on device (\S+?)\.`),
		advice: "Check the disk under it first; repair the file system while it is not mounted.",
	},
	{
		name: "oom-kill", title: "the kernel killed a process because memory ran out", class: fleet.SignatureMemoryLeak, weight: 0.9, from: kernel,
		any: []string{"Out of memory"}, re: regexp.MustCompile(`^(?:.*: )?Out of memory(?: \([^)]*\))?: Kill(?:ed)? process \d+ \(([^)]*)\)`),
		advice: "Find out whose memory grew (meminfo, the unit's MemoryCurrent), and limit or restart that.",
	},
	{
		name: "oom-group", title: "the kernel killed a process because its group reached its limit of memory", class: fleet.SignatureMemoryLeak, weight: 0.89, from: kernel, reach: itself,
		any: []string{"Memory cgroup out of memory: Kill"}, re: regexp.MustCompile(`^(?:.*: )?Memory cgroup out of memory: Kill(?:ed)? process \d+ \(([^)]*)\)`),
		advice: "Compare the unit's or the VM's memory with its limit (MemoryMax), and find out why it grew.",
	},
	{
		name: "read-only", title: "a file system became read-only", class: fleet.SignatureDisk, weight: 0.88, lasting: true, from: kernel,
		any:    []string{"emounting filesystem read-only", "forced readonly", "emounting read-only"},
		re:     regexp.MustCompile(`^EXT4-fs \((\S+?)\): Remounting filesystem read-only|device (\S+?)\)?.*forced readonly|[Rr]emounting (?:filesystem )?read-only`),
		advice: "Look for the I/O error before it; check the disk and repair the file system.",
	},
	{
		name: "oom-unit", title: "a service was killed because memory ran out", class: fleet.SignatureMemoryLeak, weight: 0.87, from: manager, reach: itself,
		any: []string{"oom-kill", "killed by the OOM killer", "systemd-oomd"}, re: regexp.MustCompile(`^(\S+): (?:A process of this unit has been killed by the OOM killer|Failed with result 'oom-kill'|systemd-oomd killed)|^Result=oom-kill$`),
		advice: "Compare the unit's memory with its limit (MemoryMax), and find out why it grew.",
	},
	{
		name: "filesystem-full", title: "a file system is full", class: fleet.SignatureDisk, weight: 0.8, from: looking,
		any: []string{" 100% "}, re: regexp.MustCompile(`^\S+ .* 100% (/\S*)`), not: regexp.MustCompile(`^\S+ +(?:squashfs|iso9660|udf|erofs|cramfs|overlay|ramfs|efivarfs|devtmpfs) |^/dev/loop|^\S+ .* 100% /(?:snap|mnt|media|run/media|sys|dev)/`),
		advice: "Free space or inodes on it, then restart the services that failed.",
	},
	{
		name: "no-space", title: "no space is left on a file system", class: fleet.SignatureDisk, weight: 0.85, from: anyone, reach: perhapsAll,
		any: []string{"o space left on device", "ENOSPC", "isk quota exceeded", "No space left"}, re: regexp.MustCompile(`(?:^|[^\w])(?:[Nn]o space left on device|ENOSPC\b|No space left\b|[Dd]isk quota exceeded)`),
		not:    regexp.MustCompile(`(?i)inotify|\bwatch(?:es|er)?\b`),
		advice: "See filesystems.txt and inodes.txt for what is full; free space, then restart the services that failed.",
	},
	{
		name: "out-of-files", title: "a process ran out of file descriptors", class: fleet.SignatureServiceHang, weight: 0.83, from: anyone, reach: itself,
		any: []string{"oo many open files", "EMFILE", "ENFILE", "file-max limit"}, re: regexp.MustCompile(`[Tt]oo many open files|\bE[MN]FILE\b|^VFS: file-max limit \d+ reached`),
		not:    regexp.MustCompile(`(?i)inotify|\bwatch(?:es|er)?\b`),
		advice: "Compare the process's open files with LimitNOFILE; a number that only grows is a leak.",
	},
	{
		name: "out-of-processes", title: "no further process can be started", class: fleet.SignatureServiceHang, weight: 0.82, from: anyone, reach: itself,
		any:    []string{"fork rejected by pids controller", "Resource temporarily unavailable", "nable to create new native thread"},
		re:     regexp.MustCompile(`fork rejected by pids controller in (\S+)|(?i:fork|clone|spawn|pthread_create|create (?:new )?(?:native )?(?:thread|process))\b.*(?:Resource temporarily unavailable|unable to create)|unable to create new native thread`),
		advice: "Compare the unit's tasks with TasksMax, and look for what starts so many.",
	},
	{
		name: "oom-program", title: "a program ran out of memory", class: fleet.SignatureMemoryLeak, weight: 0.8, from: by(fromProgram, fromManager), reach: itself,
		any:    []string{"OutOfMemoryError", "annot allocate memory", "std::bad_alloc", "ut of memory", "MemoryError", "ENOMEM", "memory allocation of "},
		re:     regexp.MustCompile(`OutOfMemoryError|[Cc]annot allocate memory|std::bad_alloc|(?:^|: |\] |fatal error: )(?:\w+: )*[Oo]ut of memory(?:$|[!.:,(]| \()|\bMemoryError(?:$|:)|\bENOMEM\b|^memory allocation of \d+ bytes failed`),
		advice: "Find out whose memory grew (meminfo, the unit's MemoryCurrent), and limit or restart that.",
	},
	{
		name: "conntrack-full", title: "the table of connections is full, packets are dropped", class: fleet.SignatureNetwork, weight: 0.82, from: kernel,
		any: []string{"table full, dropping packet", "neighbor table overflow", "neighbour table overflow"}, advice: "Raise nf_conntrack_max or gc_thresh3, and look for who opens so many connections.",
	},
	{
		name: "lockup", title: "a processor is stuck in the kernel", class: fleet.SignatureKernelFault, weight: 0.81, from: kernel, context: 6,
		any:    []string{"soft lockup", "hard LOCKUP", "detected stall", "self-detected stall"},
		re:     regexp.MustCompile(`soft lockup - (CPU#\d+) stuck|hard LOCKUP on cpu \d+|self-detected stall on CPU|detected stalls on CPUs|detected expedited stalls`),
		advice: "See in the trace what the processor does; on a host that is a VM itself, look for stolen time.",
	},
	{
		name: "remote-storage", title: "storage on the network does not answer", class: fleet.SignatureNetwork, weight: 0.8, from: kernel,
		any:     []string{"not responding", "detected conn error", "ping timeout of"},
		re:      regexp.MustCompile(`^nfs: server (\S+) not responding|^\s*(connection\d+:\d+): (?:detected conn error|ping timeout of)`),
		cleared: regexp.MustCompile(`^nfs: server (\S+) OK`), advice: "Check the storage server and the network to it; processes that use it are blocked.",
	},
	{
		name: "crash", title: "a program crashed", class: fleet.SignatureServiceHang, weight: 0.78, from: by(fromProgram, fromKernel, fromManager), reach: itself,
		any: []string{"segfault at ", "traps: ", "status=", "dumped core", "core-dump", "egmentation fault", "SIGSEGV", "SIGABRT", "panic: ", "stack smashing", "Assertion ", "egmentation violation", "double free or corruption"},
		re: regexp.MustCompile(`^(.+)\[\d+\]: segfault at [0-9a-f]+ ip |^traps: (.+)\[\d+\] (?:general protection|trap |divide error)|^(\S+): (?:Main|Control) process exited, code=(?:dumped|killed), status=(?:\d+/)?(?:SEGV|ABRT|BUS|ILL|FPE|TRAP|SYS)\b` +
			`|^Process \d+ \((.+?)\) of user \d+ dumped core|^(\S+): Failed with result 'core-dump'|^Result=core-dump$|(?:^|[:\s])Segmentation fault(?:$| \(core dumped\)|[.:!])|segmentation violation|(?:signal|received|caught) (?:11|SIGSEGV|SIGABRT)\b|^panic: (?:runtime error|assignment to|close of)|stack smashing detected|Assertion .+ failed\.?$|double free or corruption`),
		not:    regexp.MustCompile(`(?i)handler|ignor|will be|install`),
		advice: "See coredumps.txt: coredumpctl debug shows where it crashed. Look for a new version of the program.",
	},
	{
		name: "nic-hang", title: "a network card hangs", class: fleet.SignatureNetwork, weight: 0.77, from: kernel,
		any: []string{"NETDEV WATCHDOG", "Unit Hang"}, re: regexp.MustCompile(`NETDEV WATCHDOG:(?: CPU: \d+:)? (\S+) .*transmit queue|(\S+): Detected (?:Hardware|Tx) Unit Hang|Detected Tx Unit Hang`),
		advice: "Look for a new driver or firmware of the card; check its cable and its slot.",
	},
	{
		name: "overheated", title: "a processor is too hot", class: fleet.SignatureThermal, weight: 0.76, from: kernel,
		any:     []string{"temperature above threshold", "ritical temperature reached", "thermal shutdown", "hermal zone"},
		re:      regexp.MustCompile(`(CPU\d+): (?:Core|Package) temperature above threshold|[Cc]ritical temperature reached|thermal shutdown`),
		cleared: regexp.MustCompile(`(CPU\d+): (?:Core|Package) temperature/speed normal`), advice: "Check the fans, the filters and the temperature of the room.",
	},
	{
		name: "guest-crash", title: "QEMU cannot run a guest any more", class: fleet.SignatureKernelFault, weight: 0.75, from: by(fromProgram),
		any:    []string{"kvm run failed", "KVM internal error", "KVM: entry failed", "qemu_mutex_", "block I/O error in device"},
		re:     regexp.MustCompile(`kvm run failed|^KVM internal error|^KVM: entry failed|block I/O error in device '([^']*)'`),
		advice: "See the guest's log under libvirt/qemu.",
	},
	{
		name: "cannot-execute", title: "the service manager cannot set up or execute a service", class: fleet.SignatureServiceHang, weight: 0.74, from: by(fromManager, fromProgram), reach: itself,
		any:    []string{"status=2", "Failed at step ", "Failed to locate executable", "Unable to locate executable"},
		re:     regexp.MustCompile(`^(\S+): (?:Main|Control) process exited, code=exited, status=2[0-4][0-9]/[A-Z_]+|^(\S+): Failed at step [A-Z_]+ spawning|^(\S+): (?:Failed|Unable) to locate executable`),
		advice: "The step that is named says what is missing: EXEC the program, CHDIR the directory, USER the account, NAMESPACE a mount.",
	},
	{
		name: "watchdog", title: "a service did not answer its watchdog", class: fleet.SignatureServiceHang, weight: 0.72, from: manager, reach: itself,
		any: []string{"atchdog"}, re: regexp.MustCompile(`^(\S+): (?:Watchdog timeout \(limit|Failed with result 'watchdog')|^Result=watchdog$`),
		advice: "The service hung: see what blocked it (processes.txt, its last lines).",
	},
	{
		name: "hung-task", title: "a task hangs in the kernel", class: fleet.SignatureKernelFault, weight: 0.71, from: kernel, context: 8,
		any: []string{" blocked for more than ", " blocked in I/O wait for more than "}, re: regexp.MustCompile(`task (.+):\d+ blocked(?: in I/O wait)? for more than \d+ seconds`),
		advice: "See in the trace what it waits for: mostly a disk or network storage that does not answer.",
	},
	{
		name: "address-in-use", title: "a service cannot have its address: another process has it", class: fleet.SignatureServiceHang, weight: 0.7, from: by(fromProgram, fromManager), reach: itself,
		any: []string{"ddress already in use", "EADDRINUSE"}, advice: "See the sockets for who has the address: often the service's own earlier process.",
	},
	{
		name: "allocation-failed", title: "the kernel could not allocate memory", class: fleet.SignatureMemoryLeak, weight: 0.7, from: kernel,
		any: []string{"page allocation failure", "TCP: out of memory", "SLUB: Unable to allocate"}, advice: "Memory is short or in pieces: see meminfo and what grew.",
	},
	{
		name: "link-down", title: "a network link went down", class: fleet.SignatureNetwork, weight: 0.7, from: kernel,
		any:     []string{"ink is Down", "ink is down", "link down", "ink is not ready"},
		re:      regexp.MustCompile(`([\w.@-]+)(?::| NIC:?|: NIC) [Ll]ink (?:is )?[Dd]own`),
		not:     regexp.MustCompile(`\b(?:veth|vnet|tap|tun|docker|virbr|br-|cali|cilium|ata\d|lo\b|usb)\S*|SATA`),
		cleared: regexp.MustCompile(`([\w.@-]+)(?::| NIC:?|: NIC) [Ll]ink (?:is )?[Uu]p`), advice: "Check the cable, the transceiver and the switch's port.",
	},
	{
		name: "carrier-lost", title: "a network link went down", class: fleet.SignatureNetwork, weight: 0.66, from: by(fromProgram),
		any: []string{": Lost carrier"}, re: regexp.MustCompile(`^([\w.@-]+): Lost carrier$`), not: regexp.MustCompile(`^(?:veth|vnet|tap|tun|docker|virbr|br-|cali|lo:)`),
		cleared: regexp.MustCompile(`^([\w.@-]+): Gained carrier$`), advice: "Check the cable, the transceiver and the switch's port.",
	},
	{
		name: "read-only-write", title: "a program cannot write: its file system is read-only", class: fleet.SignatureDisk, weight: 0.65, from: by(fromProgram, fromManager), reach: perhapsAll,
		any: []string{"Read-only file system", "EROFS"}, re: regexp.MustCompile(`(?:^|[:\s])Read-only file system|\bEROFS\b`),
		advice: "Look in the kernel's log for why it became read-only; a unit's ProtectSystem has the same effect on purpose.",
	},
	{
		name: "connections-refused", title: "a service cannot reach what it needs", class: fleet.SignatureNetwork, weight: 0.45, from: by(fromProgram), reach: itself,
		any: []string{"onnection refused", "o route to host", "etwork is unreachable", "ame or service not known", "emporary failure in name resolution", "onnection timed out"}, advice: "Find out whether the other side runs and can be reached from this host.",
	},
	{
		name: "blocked", title: "processes are blocked in the kernel", class: fleet.SignatureKernelFault, weight: 0.55, from: looking, context: 8,
		any: []string{"blocked: process "}, re: regexp.MustCompile(`^blocked: process \d+ thread \d+ \((.+?)\) in state D`),
		advice: "See in the stack what they wait for: mostly a disk or network storage that does not answer.",
	},
	{
		name: "timeout", title: "a service took too long to start or stop", class: fleet.SignatureServiceHang, weight: 0.5, from: manager, reach: itself, symptom: true,
		any: []string{"timed out", "'timeout'", "Result=timeout"}, re: regexp.MustCompile(`^(\S+): (?:(?:start|stop|reload|start-pre|start-post|State)\S*(?: '\S+')? (?:operation )?timed out|Failed with result 'timeout')|^Result=timeout$`),
		advice: "See its last lines for what it waits for.",
	},
	{
		name: "memory-corrected", title: "memory errors were corrected", class: fleet.SignatureMemoryHardware, weight: 0.42, from: kernel,
		any:    []string{"[Hardware Error]", " CE "},
		re:     regexp.MustCompile(`^EDAC (\S+): [1-9]\d* CE |\[Hardware Error\]:.*(?:\bCorrected error|event severity: corrected|Machine check events logged|Machine Check: 0 Bank)`),
		advice: "A module that needs correction often fails later: plan its replacement.",
	},
	{
		name: "start-limit", title: "a service failed so often that it is not started any more", class: fleet.SignatureServiceHang, weight: 0.4, from: manager, reach: itself, symptom: true,
		any: []string{"repeated too quickly", "start-limit-hit"}, re: regexp.MustCompile(`^(\S+): (?:Start request repeated too quickly|Failed with result 'start-limit-hit')|^Result=start-limit-hit$`),
		advice: "Its earlier lines say why it fails; systemctl reset-failed allows further starts.",
	},
	{
		name: "kernel-warning", title: "the kernel warns of a bug in itself", class: fleet.SignatureKernelFault, weight: 0.38, from: kernel, context: 4,
		any: []string{"WARNING: CPU"}, re: regexp.MustCompile(`^WARNING: CPU: \d+ PID: \d+ at (\S+)`), advice: "Compare the trace with known bugs of this kernel.",
	},
	{
		name: "dependency", title: "a service was not started since one that it needs failed", class: fleet.SignatureServiceHang, weight: 0.32, from: manager, reach: itself, symptom: true,
		any: []string{"Dependency failed for", "with result 'dependency'"}, re: regexp.MustCompile(`^Dependency failed for (\S+?)\.?(?: |$)|^(\S+): Job \S+ failed with result 'dependency'`),
		advice: "Look at the service that it needs.",
	},
	{
		name: "unit-failed", title: "a service failed", class: fleet.SignatureServiceHang, weight: 0.3, from: manager, reach: itself, symptom: true,
		any: []string{"Failed with result '", "process exited, code=exited", "Failed to start ", "Result="}, re: regexp.MustCompile(`^(\S+): (?:Failed with result '(?:exit-code|signal|protocol|resources)'|(?:Main|Control) process exited, code=exited, status=[1-9])|^Failed to start (\S+?)\.?(?: |$)|^Result=(?:exit-code|signal|protocol|resources)$`),
		advice: "Its last lines say why.",
	},
}
