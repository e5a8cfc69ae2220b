package diagnose

import (
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// stamp begins the lines of the tests' journals: half a minute before the diagnosis.
const stamp = "2026-11-23T17:29:30.000000+0000 kvm01 "

// found returns the rules that match a line of a file.
func rulesFor(file, text string) []string {
	a := newAnalysis(now.Add(-30*time.Minute), now, nil)
	a.search(evidenceFile{name: file, data: []byte(text)}, nil)
	var names []string
	for _, s := range a.signs {
		if len(s.matches) > 0 {
			names = append(names, s.rule.name)
		}
	}
	return names
}

// TestEachRuleKnowsItsSignFromWhatLooksAlike has, for each rule, lines that show the
// fault and lines that resemble them and do not.
func TestEachRuleKnowsItsSignFromWhatLooksAlike(t *testing.T) {
	k, s := stamp+"kernel: ", stamp+"systemd[1]: "
	p := func(program string) string { return stamp + program + "[4711]: " }
	tests := map[string]struct{ yes, no []string }{
		"kernel-panic": {
			yes: []string{k + "Kernel panic - not syncing: Fatal exception in interrupt"},
			no:  []string{k + "Kernel command line: panic=30", p("app") + "Kernel panic - not syncing: said a program", k + "sysctl: kernel.panic = 10"},
		},
		"memory-uncorrected": {
			yes: []string{k + "mce: [Hardware Error]: Machine Check Exception: 5 Bank 4: be00000000800400", k + "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0", k + "Memory failure: 0x1a2b3c: recovery action for dirty LRU page: Recovered", k + "{1}[Hardware Error]: event severity: fatal", k + "[Hardware Error]: Uncorrected, software restartable error."},
			no:  []string{k + "EDAC MC: Ver: 3.0.0", k + "EDAC MC0: Giving out device to module skx_edac", k + "mce: CPU0: Thermal monitoring enabled (TM1)", k + "[Hardware Error]: Corrected error, no action required.", k + "EDAC MC0: 0 UE errors so far are none"},
		},
		"memory-corrected": {
			yes: []string{k + "EDAC MC1: 1 CE memory read error on CPU_SrcID#1_MC#0", k + "mce: [Hardware Error]: Machine check events logged", k + "[Hardware Error]: Corrected error, no action required."},
			no:  []string{k + "EDAC MC: Ver: 3.0.0", k + "MCE: In-kernel MCE decoding enabled.", k + "mce: Using 8 MCE banks", p("mcelog") + "EDAC MC1: 1 CE said a program"},
		},
		"kernel-oops": {
			yes: []string{k + "BUG: unable to handle page fault for address: ffffffffc0a81000", k + "BUG: kernel NULL pointer dereference, address: 0000000000000010", k + "Oops: 0002 [#1] PREEMPT SMP NOPTI", k + "Oops: Oops: 0000 [#1] SMP", k + "kernel BUG at mm/slub.c:4120!", k + "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1]", k + "Internal error: Oops: 96000004 [#1]", k + "BUG: Bad page state in process qemu  pfn:12345", k + "Unable to handle kernel paging request at virtual address 0000"},
			no:  []string{k + "traps: nginx[123] general protection fault ip:7f0000 sp:7ffc error:0 in libc.so.6", p("app") + "BUG: unable to handle this request", k + "DEBUG: Oopsie", k + "sysctl: kernel.panic_on_oops = 1"},
		},
		"disk-io": {
			yes: []string{k + "blk_update_request: I/O error, dev sda, sector 12345 op 0x0:(READ) flags 0x0", k + "I/O error, dev nvme0n1, sector 88 op 0x1:(WRITE)", k + "critical medium error, dev sdb, sector 9 op 0x0:(READ)", k + "Buffer I/O error on dev dm-0, logical block 1, async page read", k + "Buffer I/O error on device sdc1, logical block 5", k + "sd 0:0:0:0: [sda] tag#3 Sense: Unrecovered read error", k + "ata1.00: failed command: READ FPDMA QUEUED", k + "nvme nvme0: I/O 12 QID 3 timeout, aborting", k + "nvme nvme0: I/O tag 12 (100c) opcode 0x2 (Read) QID 3 timeout, reset controller", k + "nvme nvme1: controller is down; will reset: CSTS=0xffffffff", k + "sd 2:0:0:0: rejecting I/O to offline device", k + "device-mapper: multipath: 253:0: Failing path 8:16."},
			no:  []string{k + "blk_update_request: I/O error, dev fd0, sector 0 op 0x0:(READ)", k + "Buffer I/O error on dev sr0, logical block 0, async page read", p("nginx") + "I/O error, dev sda, says a program", k + "I/O scheduler mq-deadline registered", k + "sd 0:0:0:0: [sda] Write Protect is off", k + "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)"},
		},
		"filesystem-damaged": {
			yes: []string{k + "EXT4-fs error (device sda1): ext4_lookup:1785: inode #2: comm ls: deleted inode referenced: 13", k + "XFS (dm-2): Corruption of in-memory data detected.  Shutting down filesystem", k + "XFS (sdb1): metadata I/O error in \"xfs_da_read_buf\" at daddr 0x40", k + "BTRFS error (device sdc): parent transid verify failed", k + "BTRFS: error (device sdc) in btrfs_commit", k + "JBD2: I/O error when updating journal superblock for sda1-8.", k + "Aborting journal on device sda1-8."},
			no:  []string{k + "EXT4-fs (sda1): mounted filesystem with ordered data mode. Opts: errors=remount-ro", k + "XFS (dm-2): Mounting V5 Filesystem", k + "XFS (dm-2): Ending clean mount", k + "BTRFS info (device sdc): disk space caching is enabled", p("app") + "EXT4-fs error (device sda1): said a program"},
		},
		"oom-kill": {
			yes: []string{k + "Out of memory: Killed process 4711 (qemu-system-x86) total-vm:9999kB, anon-rss:1kB", k + "qemu: Out of memory: Killed process 12 (java)", k + "Out of memory (oom_kill_allocating_task): Killed process 12 (java)", k + "Out of memory: Kill process 4711 (mysqld) score 900 or sacrifice child"},
			no:  []string{p("app") + "Out of memory: Killed process 4711 (fake)", k + "oom_score_adj of 12 is 0", s + "systemd-oomd.service: Succeeded.", k + "oom_reaper: reaped process 12 (java), now anon-rss:0kB", k + "Memory cgroup out of memory: Killed process 12 (java)"},
		},
		"oom-group": {
			yes: []string{k + "Memory cgroup out of memory: Killed process 12 (java) total-vm:1kB", k + "Memory cgroup out of memory: Kill process 12 (java) score 1"},
			no:  []string{k + "Out of memory: Killed process 12 (java)", p("app") + "Memory cgroup out of memory: Killed process 12 (java)", k + "java invoked oom-killer: gfp_mask=0xcc0, order=0"},
		},
		"oom-unit": {
			yes: []string{s + "nova.service: A process of this unit has been killed by the OOM killer.", s + "nova.service: Failed with result 'oom-kill'."},
			no:  []string{s + "Started Userspace Out-Of-Memory (OOM) Killer.", p("app") + "nova.service: Failed with result 'oom-kill'.", s + "nova.service: Failed with result 'exit-code'."},
		},
		"oom-program": {
			yes: []string{p("java") + "java.lang.OutOfMemoryError: Java heap space", p("app") + "fork: Cannot allocate memory", p("app") + "terminate called after throwing an instance of 'std::bad_alloc'", p("app") + "fatal error: runtime: out of memory", p("app") + "Out of memory: Killed process 12 (worker)", p("app") + "MemoryError", p("app") + "memory allocation of 4096 bytes failed", p("postgres") + "ERROR: out of memory"},
			no:  []string{p("app") + "out of memory handling is enabled", p("app") + "the limit for running out of memory was raised", k + "Out of memory: Killed process 1 (x)", p("app") + "MemoryErrorHandler registered"},
		},
		"read-only": {
			yes: []string{k + "EXT4-fs (sda1): Remounting filesystem read-only", k + "BTRFS info (device sdc): forced readonly", k + "BTRFS info (device sdc: state E): forced readonly"},
			no:  []string{k + "EXT4-fs (sda1): re-mounted. Opts: errors=remount-ro. Quota mode: none.", s + "Starting Remount Root and Kernel File Systems...", k + "VFS: Mounted root (ext4 filesystem) readonly on device 8:1."},
		},
		"read-only-write": {
			yes: []string{p("app") + "open /var/lib/x: Read-only file system", p("app") + "write failed (EROFS)"},
			no:  []string{p("app") + "mounted a read-only file system", k + "squashfs: Read-only file system"},
		},
		"no-space": {
			yes: []string{p("app") + "write /var/lib/x: no space left on device", p("app") + "OSError: [Errno 28] No space left on device", p("app") + "ENOSPC: cannot extend", p("rsync") + "write failed: Disk quota exceeded (122)", s + "nova.service: Failed to set up mount namespacing: No space left on device"},
			no:  []string{p("tail") + "inotify cannot be used, reverting to polling: No space left on device", p("node") + "Error: ENOSPC: System limit for number of file watchers reached, watch '/srv'", p("app") + "there is enough space left on device sda", s + "Failed to add a watch for /run: No space left on device"},
		},
		"out-of-files": {
			yes: []string{p("nginx") + "accept4() failed (24: Too many open files)", p("app") + "socket: too many open files", k + "VFS: file-max limit 1024 reached", p("node") + "Error: EMFILE, open 'x'"},
			no:  []string{p("app") + "Failed to create inotify object: Too many open files", p("app") + "raised the limit of open files to 65536", p("app") + "many open files are closed"},
		},
		"out-of-processes": {
			yes: []string{k + "cgroup: fork rejected by pids controller in /system.slice/nova.service", p("sh") + "fork: retry: Resource temporarily unavailable", p("java") + "java.lang.OutOfMemoryError: unable to create new native thread"},
			no:  []string{p("app") + "recv: Resource temporarily unavailable", p("app") + "fork of the project created"},
		},
		"conntrack-full": {
			yes: []string{k + "nf_conntrack: nf_conntrack: table full, dropping packet", k + "neighbour: arp_cache: neighbor table overflow!"},
			no:  []string{k + "nf_conntrack version 0.5.0 (65536 buckets, 262144 max)", p("app") + "table full, dropping packet"},
		},
		"lockup": {
			yes: []string{k + "watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [kworker/3:1:77]", k + "NMI watchdog: Watchdog detected hard LOCKUP on cpu 2", k + "rcu: INFO: rcu_sched self-detected stall on CPU", k + "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"},
			no:  []string{k + "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.", k + "rcu: Hierarchical RCU implementation.", p("app") + "soft lockup - CPU#3 stuck"},
		},
		"hung-task": {
			yes: []string{k + "INFO: task jbd2/sda1-8:245 blocked for more than 120 seconds.", k + "INFO: task CPU 0/KVM:99 blocked in I/O wait for more than 120 seconds."},
			no:  []string{p("app") + "task import:12 blocked for more than 120 seconds.", k + "khungtaskd started"},
		},
		"remote-storage": {
			yes: []string{k + "nfs: server storage1 not responding, still trying", k + " connection1:0: detected conn error (1020)"},
			no:  []string{k + "nfs: server storage1 OK", p("app") + "nfs: server storage1 not responding", k + "usb 1-1: device not responding to setup address."},
		},
		"crash": {
			yes: []string{k + "nova[4711]: segfault at 10 ip 000055d sp 00007ffc error 4 in nova[55d+1000]", k + "traps: nginx[123] general protection fault ip:7f0 sp:7ff error:0 in libc.so.6", s + "nova.service: Main process exited, code=dumped, status=11/SEGV", s + "nova.service: Main process exited, code=killed, status=6/ABRT", s + "nova.service: Failed with result 'core-dump'.", p("systemd-coredump") + "Process 4711 (nova) of user 0 dumped core.", p("sh") + "Segmentation fault (core dumped)", p("app") + "panic: runtime error: invalid memory address or nil pointer dereference", p("app") + "app: main.c:7: main: Assertion `x > 0' failed.", p("app") + "*** stack smashing detected ***: terminated", p("app") + "caught SIGSEGV, exiting", p("app") + "double free or corruption (!prev)"},
			no:  []string{p("app") + "SIGSEGV handler installed", p("app") + "received 110 requests", p("app") + "segfault at 3 pm, said the user", s + "nova.service: Main process exited, code=killed, status=15/TERM", s + "nova.service: Main process exited, code=exited, status=1/FAILURE", p("app") + "panic: no, all is well"},
		},
		"nic-hang": {
			yes: []string{k + "NETDEV WATCHDOG: eth0 (igb): transmit queue 0 timed out", k + "NETDEV WATCHDOG: CPU: 3: eth0 (igb): transmit queue 0 timed out 5000 ms", k + "e1000e 0000:00:19.0 eth0: Detected Hardware Unit Hang:", k + "igb 0000:01:00.0: Detected Tx Unit Hang"},
			no:  []string{k + "igb 0000:01:00.0: Using MSI-X interrupts. 4 rx queue(s), 4 tx queue(s)", p("app") + "NETDEV WATCHDOG: eth0 (igb): transmit queue 0 timed out"},
		},
		"link-down": {
			yes: []string{k + "ixgbe 0000:01:00.0 eth0: NIC Link is Down", k + "igb 0000:01:00.0 eno1: igb: eno1 NIC Link is Down", k + "tg3 0000:02:00.0 eth1: Link is down", k + "e1000: eth0 NIC Link is Down", k + "r8169 0000:03:00.0 enp3s0: Link is Down", k + "bond0: link down"},
			no:  []string{k + "vnet3: Link is Down", k + "veth12ab: link down", k + "ata2: SATA link down (SStatus 0 SControl 300)", k + "ixgbe 0000:01:00.0 eth0: NIC Link is Up 10 Gbps, Flow Control: RX/TX", p("app") + "eth0: Link is Down", k + "docker0: link down"},
		},
		"carrier-lost": {
			yes: []string{p("systemd-networkd") + "eth0: Lost carrier"},
			no:  []string{p("systemd-networkd") + "eth0: Gained carrier", p("systemd-networkd") + "vnet0: Lost carrier", p("app") + "Lost carrier pigeon"},
		},
		"overheated": {
			yes: []string{k + "mce: CPU3: Core temperature above threshold, cpu clock throttled (total events = 12)", k + "mce: CPU0: Package temperature above threshold, cpu clock throttled", k + "thermal thermal_zone0: acpitz: critical temperature reached, shutting down"},
			no:  []string{k + "mce: CPU3: Core temperature/speed normal", k + "thermal_sys: Registered thermal governor 'step_wise'", p("app") + "CPU3: Core temperature above threshold"},
		},
		"guest-crash": {
			yes: []string{p("libvirtd") + "error: kvm run failed Bad address", p("qemu") + "KVM internal error. Suberror: 1", p("qemu") + "block I/O error in device 'drive-virtio-disk0': Input/output error (5)"},
			no:  []string{p("qemu") + "kvm run finished", p("qemu") + "char device redirected to /dev/pts/1", k + "kvm: Nested Virtualization enabled"},
		},
		"cannot-execute": {
			yes: []string{s + "nova.service: Main process exited, code=exited, status=203/EXEC", s + "nova.service: Control process exited, code=exited, status=226/NAMESPACE", p("(nova)") + "nova.service: Failed at step CHDIR spawning /usr/bin/nova: No such file or directory", p("(nova)") + "nova.service: Failed to locate executable /usr/bin/nova: No such file or directory"},
			no:  []string{s + "nova.service: Main process exited, code=exited, status=1/FAILURE", s + "nova.service: Main process exited, code=exited, status=2/INVALIDARGUMENT", p("nginx") + "GET / status=200"},
		},
		"watchdog": {
			yes: []string{s + "nova.service: Watchdog timeout (limit 30s)!", s + "nova.service: Failed with result 'watchdog'."},
			no:  []string{s + "Using hardware watchdog 'iTCO_wdt', version 0, device /dev/watchdog0", k + "watchdog: watchdog0: watchdog did not stop!", p("app") + "nova.service: Watchdog timeout (limit 30s)!"},
		},
		"address-in-use": {
			yes: []string{p("nginx") + "bind() to 0.0.0.0:80 failed (98: Address already in use)", p("app") + "listen tcp :80: bind: address already in use"},
			no:  []string{p("app") + "the address is used already by nobody", k + "bind: Address already in use"},
		},
		"allocation-failed": {
			yes: []string{k + "kswapd0: page allocation failure: order:0, mode:0x40d00(GFP_NOIO)", k + "TCP: out of memory -- consider tuning tcp_mem"},
			no:  []string{p("app") + "page allocation failure: order:0", k + "TCP: Hash tables configured (established 131072 bind 65536)"},
		},
		"connections-refused": {
			yes: []string{p("nova") + "AMQP server on 10.0.0.5:5672 is unreachable: [Errno 111] Connection refused", p("nova") + "dial tcp 10.0.0.1:443: connect: no route to host"},
			no:  []string{p("nova") + "connection from 10.0.0.5 accepted", k + "Connection refused"},
		},
		"timeout": {
			yes: []string{s + "nova.service: start operation timed out. Terminating.", s + "nova.service: State 'stop-sigterm' timed out. Killing.", s + "nova.service: Failed with result 'timeout'.", s + "nova.service: stop-sigterm timed out. Killing."},
			no:  []string{p("app") + "nova.service: start operation timed out.", s + "Timed out waiting for reply from NTP", s + "nova.service: Succeeded."},
		},
		"start-limit": {
			yes: []string{s + "nova.service: Start request repeated too quickly.", s + "nova.service: Failed with result 'start-limit-hit'."},
			no:  []string{s + "nova.service: Scheduled restart job, restart counter is at 3.", p("app") + "nova.service: Start request repeated too quickly."},
		},
		"kernel-warning": {
			yes: []string{k + "WARNING: CPU: 2 PID: 99 at net/core/dev.c:1234 skb_warn_bad_offload+0xc0/0xd0"},
			no:  []string{k + "WARNING: CPU frequency scaling is off", p("app") + "WARNING: CPU: 2 PID: 99 at x.c:1"},
		},
		"dependency": {
			yes: []string{s + "Dependency failed for nova.service - OpenStack Nova.", s + "nova.service: Job nova.service/start failed with result 'dependency'."},
			no:  []string{s + "Reached target nova-dependency.target.", p("npm") + "Dependency failed for left-pad"},
		},
		"unit-failed": {
			yes: []string{s + "nova.service: Failed with result 'exit-code'.", s + "nova.service: Main process exited, code=exited, status=1/FAILURE", s + "Failed to start nova.service - OpenStack Nova."},
			no:  []string{s + "nova.service: Main process exited, code=exited, status=0/SUCCESS", s + "Started nova.service - OpenStack Nova.", p("app") + "Failed to start nova.service - x"},
		},
		"filesystem-full": {
			yes: []string{"df /dev/sda1      ext4    41152736  41152736         0     100% /", "df /dev/mapper/a  xfs     41152736  41152736         0     100% /var/lib/nova"},
			no:  []string{"df /dev/sda1      ext4    41152736  40152736   1000000      98% /", "df /dev/loop3     squashfs   56960     56960         0     100% /snap/core/1", "df /dev/sr0       iso9660   698368    698368         0     100% /media/cdrom"},
		},
		"blocked": {
			yes: []string{"ps blocked: process 12 thread 12 (qemu-system-x86) in state D for at least 1s, in io_schedule"},
			no:  []string{"ps 3 threads were blocked; there was no time to look at them again", "ps       2       0 S kthreadd"},
		},
	}
	for _, r := range rules {
		c, ok := tests[r.name]
		if !ok || len(c.yes) == 0 || len(c.no) < 2 {
			t.Errorf("the rule %s has no lines that show it and that resemble it", r.name)
		}
		if r.title == "" || r.advice == "" || r.class == "" || r.weight <= maxUnusual || r.weight > 1 {
			t.Errorf("the rule %s is not whole: %+v", r.name, r)
		}
		for i, want := range map[bool]bool{true: true, false: false} {
			lines := c.no
			if i {
				lines = c.yes
			}
			for _, text := range lines {
				file := "journal.log"
				if strings.HasPrefix(text, "df ") {
					file, text = "filesystems.txt", text[3:]
				} else if strings.HasPrefix(text, "ps ") {
					file, text = "processes.txt", text[3:]
				}
				got := false
				for _, name := range rulesFor(file, text+"\n") {
					got = got || name == r.name
				}
				if got != want {
					t.Errorf("%s: %q: %v, want %v", r.name, text, got, want)
				}
			}
		}
	}
}

func TestTheKernelsMessagesAreKnownInEachFile(t *testing.T) {
	for file, text := range map[string]string{
		"journal.log":                    stamp + "kernel: Kernel panic - not syncing: x",
		"units/nova.service/journal.log": stamp + "kernel: Kernel panic - not syncing: x",
		"kernel.log":                     stamp + "kernel: <0> Kernel panic - not syncing: x",
		"pstore/dmesg-efi-1":             "Panic#1 Part1\n<0>[  123.456789] Kernel panic - not syncing: x",
		"pstore/dmesg-ramoops-0":         "<0>[  123.456789][  T77] Kernel panic - not syncing: x",
	} {
		if got := rulesFor(file, text+"\n"); len(got) != 1 || got[0] != "kernel-panic" {
			t.Errorf("%s: %q: %v", file, text, got)
		}
	}
	if got := rulesFor("kernel.log", "2026-11-23T17:29:00,123456+00:00 Kernel panic - not syncing: x\n"); len(got) != 1 {
		t.Errorf("dmesg: %v", got)
	}
	if got := rulesFor("kernel.log", "kernel: <0> Kernel panic - not syncing: x\n"); len(got) != 1 {
		t.Errorf("without a time: %v", got)
	}
	for file, text := range map[string]string{
		"journal.log":                   stamp + "kernel[12]: Kernel panic - not syncing: x", // a program that calls itself so
		"kernel.log":                    stamp + "systemd[1]: Kernel panic - not syncing: x",
		"libvirt/qemu/vm1.log":          "Kernel panic - not syncing: x", // the guest's
		"units/nova.service/properties": "Description=Kernel panic - not syncing: x\nExecStart={ argv[]=/bin/echo No space left on device }",
		"coredumps.txt":                 "Kernel panic - not syncing: x",
	} {
		if got := rulesFor(file, text+"\n"); len(got) != 0 {
			t.Errorf("%s: %q: %v", file, text, got)
		}
	}
}

// cause searches files and returns the suspects, the most likely first.
func cause(t *testing.T, states []unitState, baseline string, files ...evidenceFile) RootCause {
	t.Helper()
	cfg, _ := config(t)
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c.rootCause(now, states, files, []byte(baseline))
}

func journal(lines ...string) evidenceFile {
	return evidenceFile{name: "journal.log", data: []byte(strings.Join(lines, "\n") + "\n")}
}

func at(offset time.Duration) string { return now.Add(offset).Format(isoPrecise) + " kvm01 " }

func failing(name string) []unitState {
	return []unitState{{name: name, load: "loaded", active: "failed", sub: "failed", result: "exit-code", known: true}}
}

func TestTheCauseComesBeforeWhatFollowsFromIt(t *testing.T) {
	failed := at(-time.Minute) + "systemd[1]: nova.service: Failed with result 'exit-code'."
	limit := at(-time.Minute) + "systemd[1]: nova.service: Start request repeated too quickly."
	for name, c := range map[string]struct {
		lines []string
		rule  string
		class fleet.Signature
	}{
		"disk": {rule: "disk-io", class: fleet.SignatureDisk, lines: []string{
			at(-5*time.Minute) + "kernel: I/O error, dev sda, sector 5 op 0x1:(WRITE)",
			at(-4*time.Minute) + "kernel: EXT4-fs (sda1): Remounting filesystem read-only",
			at(-3*time.Minute) + "nova[7]: open /var/lib/nova: Read-only file system",
			at(-2*time.Minute) + "kernel: INFO: task jbd2/sda1-8:245 blocked for more than 120 seconds.", failed, limit,
		}},
		"memory": {rule: "oom-group", class: fleet.SignatureMemoryLeak, lines: []string{
			at(-5*time.Minute) + "kernel: Memory cgroup out of memory: Killed process 7 (nova) total-vm:1kB",
			at(-5*time.Minute) + "systemd[1]: nova.service: A process of this unit has been killed by the OOM killer.",
			at(-5*time.Minute) + "systemd[1]: nova.service: Main process exited, code=killed, status=9/KILL", failed, limit,
		}},
		"hardware": {rule: "memory-uncorrected", class: fleet.SignatureMemoryHardware, lines: []string{
			at(-6*time.Minute) + "kernel: EDAC MC0: 1 UE memory read error", at(-5*time.Minute) + "kernel: BUG: unable to handle page fault for address: 0", failed,
		}},
		"the service itself": {rule: "crash", class: fleet.SignatureServiceHang, lines: []string{
			at(-5*time.Minute) + "systemd[1]: nova.service: Main process exited, code=dumped, status=11/SEGV", failed, limit,
		}},
		"nothing but the failure": {rule: "start-limit", class: fleet.SignatureServiceHang, lines: []string{failed, limit}},
		"a link that came back is no cause": {rule: "unit-failed", class: fleet.SignatureServiceHang, lines: []string{
			at(-5*time.Minute) + "kernel: ixgbe 0000:01:00.0 eth0: NIC Link is Down", at(-4*time.Minute) + "kernel: ixgbe 0000:01:00.0 eth0: NIC Link is Up 10 Gbps", failed,
		}},
		"a link that did not come back": {rule: "link-down", class: fleet.SignatureNetwork, lines: []string{
			at(-5*time.Minute) + "kernel: ixgbe 0000:01:00.0 eth0: NIC Link is Down", at(-4*time.Minute) + "kernel: ixgbe 0000:01:00.1 eth1: NIC Link is Up 10 Gbps", failed,
		}},
		"what is long ago is no cause": {rule: "unit-failed", class: fleet.SignatureServiceHang, lines: []string{
			at(-30*time.Hour) + "kernel: Out of memory: Killed process 7 (java) total-vm:1kB", failed,
		}},
		"damage lasts": {rule: "kernel-oops", class: fleet.SignatureKernelFault, lines: []string{
			at(-3*time.Hour) + "kernel: BUG: kernel NULL pointer dereference, address: 0000000000000010", failed,
		}},
		"a full disk that another program notices": {rule: "no-space", class: fleet.SignatureDisk, lines: []string{
			at(-5*time.Minute) + "backup[9]: write: No space left on device", failed, limit,
		}},
		"a VM that reached its own limit": {rule: "start-limit", class: fleet.SignatureServiceHang, lines: []string{
			at(-5*time.Minute) + "kernel: Memory cgroup out of memory: Killed process 9 (qemu-system-x86) total-vm:1kB", failed, limit,
		}},
		"another program's trouble": {rule: "address-in-use", class: fleet.SignatureServiceHang, lines: []string{
			at(-5*time.Minute) + "backup[9]: write: No space left on device", at(-2*time.Minute) + "systemd[1]: backup.service: Main process exited, code=dumped, status=11/SEGV", failed,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			unit := evidenceFile{name: "units/nova.service/journal.log", data: []byte(failed + "\n")}
			if c.rule == "address-in-use" {
				unit.data = []byte(at(-time.Minute) + "nova[7]: listen tcp :80: bind: address already in use\n" + failed + "\n")
			}
			if c.rule == "oom-group" {
				unit.data = []byte(at(-10*time.Minute) + "nova[7]: ready\n" + failed + "\n")
			}
			if c.rule == "crash" {
				unit.data = []byte(strings.Join(c.lines, "\n"))
			}
			r := cause(t, failing("nova.service"), "", unit, journal(c.lines...))
			if len(r.Suspects) == 0 || r.Suspects[0].Rule != c.rule || r.Suspects[0].Class != c.class {
				for _, s := range r.Suspects {
					t.Logf("%.3f %s %s", s.Score, s.Rule, s.Class)
				}
				t.Fatalf("want %s", c.rule)
			}
			for i, s := range r.Suspects {
				if s.Score <= 0 || s.Score > 1 || i > 0 && s.Score > r.Suspects[i-1].Score || len(s.Evidence) == 0 {
					t.Errorf("suspect %d: %+v", i, s)
				}
			}
		})
	}
}

func TestWhatHappensAllTheTimeIsNoCause(t *testing.T) {
	var before strings.Builder
	for i := range 200 {
		before.WriteString(at(-24*time.Hour+time.Duration(i)*7*time.Minute) + "kernel: cron[9]: segfault at 10 ip 000055d sp 00007ffc error 4 in cron[55d+1000]\n")
	}
	lines := journal(
		at(-20*time.Minute)+"kernel: cron[9]: segfault at 10 ip 000055d sp 00007ffc error 4 in cron[55d+1000]",
		at(-10*time.Minute)+"nova[7]: listen tcp :80: bind: address already in use",
	)
	if r := cause(t, nil, before.String(), lines); r.Suspects[0].Rule != "address-in-use" || r.Suspects[1].Rule != "crash" || r.Suspects[1].Earlier != 200 {
		t.Errorf("%+v", r.Suspects)
	}
	if r := cause(t, nil, "", lines); r.Suspects[0].Rule != "crash" {
		t.Errorf("without knowing what is usual: %+v", r.Suspects)
	}
}

func TestALineThatIsInSeveralFilesCountsOnce(t *testing.T) {
	text := "Out of memory: Killed process 7 (java) total-vm:1kB"
	two := at(-2*time.Minute) + "kernel: " + text + "\n" + at(-time.Minute) + "kernel: " + text + "\n"
	r := cause(t, nil, "", evidenceFile{name: "units/a.service/journal.log", data: []byte(two)}, evidenceFile{name: "journal.log", data: []byte(two)},
		evidenceFile{name: "kernel.log", data: []byte(strings.ReplaceAll(two, "kernel: ", "kernel: <3> "))})
	s := r.Suspects[0]
	if s.Count != 2 || len(s.Evidence) != 1 || s.Evidence[0].File != "units/a.service/journal.log" || s.Evidence[0].Line != 1 ||
		!s.First.Equal(now.Add(-2*time.Minute)) || !s.Last.Equal(now.Add(-time.Minute)) || len(s.Culprits) != 1 || s.Culprits[0] != "java" {
		t.Errorf("%+v", s)
	}
}

func TestTheLinesAfterACrashAreShownWithIt(t *testing.T) {
	r := cause(t, nil, "", journal(
		at(-2*time.Minute)+"kernel: BUG: unable to handle page fault for address: ffffffffc0a81000",
		at(-2*time.Minute)+"kernel: RIP: 0010:broken_driver_poll+0x12/0x40 [broken]",
		at(-time.Minute)+"kernel: usb 1-1: new device",
	))
	s := r.Suspects[0]
	if s.Rule != "kernel-oops" || len(s.Evidence) < 2 || !strings.Contains(s.Evidence[1].Text, "broken_driver_poll") {
		t.Errorf("%+v", s)
	}
}

func TestRootCauseIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range 20_000 {
		b.WriteString(at(-time.Minute+time.Duration(i)*time.Millisecond) + "kernel: I/O error, dev sd" + string(rune('a'+i%26)) + ", sector " + strings.Repeat("9", i%3000) + "\n")
	}
	r := cause(t, nil, "", evidenceFile{name: "journal.log", data: []byte(b.String())})
	out, err := r.json()
	if err != nil {
		t.Fatal(err)
	}
	if s := r.Suspects[0]; s.Count != 20_000 || len(s.Culprits) > maxCulprits || len(s.Evidence) > maxEvidence {
		t.Errorf("%d lines, %d culprits, %d lines shown", s.Count, len(s.Culprits), len(s.Evidence))
	}
	if len(out) > 10_000 {
		t.Errorf("root-cause.json has %d bytes", len(out))
	}
	if s := summarize(nil, r); len(s) > maxSummary {
		t.Errorf("the summary has %d bytes", len(s))
	}
}

// The last words of a process may come to the journal when it is gone, so that they are
// in the host's journal only, and not in that of its unit.
func TestLastWordsBelongToTheServiceOfTheirName(t *testing.T) {
	score := func(program string) float64 {
		const failed = "systemd[1]: nova.service: Main process exited, code=exited, status=1/FAILURE"
		unit := evidenceFile{name: "units/nova.service/journal.log", data: []byte(at(-time.Minute) + failed + "\n")}
		r := cause(t, failing("nova.service"), "", unit, journal(at(-time.Minute)+program+"[7]: write /var/lib/nova: no space left on device", at(-time.Minute)+failed))
		for _, s := range r.Suspects {
			if s.Rule == "no-space" {
				return s.Score
			}
		}
		t.Fatalf("not found: %+v", r.Suspects)
		return 0
	}
	if own, other := score("nova"), score("backup"); own < 0.8 || own <= other {
		t.Errorf("%v where it is the service's own, %v otherwise", own, other)
	}
}
