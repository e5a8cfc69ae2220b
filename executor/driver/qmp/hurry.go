package qmp

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// urgent is the real-time priority of what a frozen guest waits for. It is one that
// nobody else is likely to choose, so that it can be told from what a guest's owner set.
const urgent = 7

// hurry lets the ordinary threads of a QEMU, and those that they start, go before all
// that is not real-time on this host, until calm: a host that fails is often a busy one,
// and each wait for a processor prolongs the freeze of a guest. Nothing is changed where
// that is not allowed, or where the whole RAM is on its way, which takes too long for it.
func (c *Conn) hurry(way Way) (calm func()) {
	pid, err := c.peer()
	if err != nil {
		return func() {}
	}
	if way != WayFull {
		urge(pid, 0)
	}
	return func() { calmDown(pid) }
}

// calmCPUs ends the hurry of a guest's processors, which must not be in one while the guest runs: as many busy
// ones as the host has would keep everybody else, this process too, from calming them.
func (c *Conn) calmCPUs() {
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	if c.Execute("query-cpus-fast", nil, &cpus) != nil {
		c.calm() // no guest stays frozen for want of an answer
	}
	for _, cpu := range cpus {
		ordinary(cpu.Thread)
	}
}

// calm ends the hurry of a QEMU.
func (c *Conn) calm() {
	if pid, err := c.peer(); err == nil {
		calmDown(pid)
	}
}

// hurrySelf is hurry for this process, but not for what it starts.
func hurrySelf() (calm func()) {
	urge(os.Getpid(), unix.SCHED_FLAG_RESET_ON_FORK)
	return func() { calmDown(os.Getpid()) }
}

func urge(pid int, flags uint64) {
	for _, tid := range threads(pid) {
		if a, err := unix.SchedGetAttr(tid, 0); err == nil && a.Policy == unix.SCHED_NORMAL {
			_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: urgent, Flags: flags}, 0)
		}
	}
}

// calmDown makes the threads of a process that are in a hurry ordinary ones.
func calmDown(pid int) {
	for _, tid := range threads(pid) {
		ordinary(tid)
	}
}

// ordinary ends the hurry of a thread.
func ordinary(tid int) {
	if a, err := unix.SchedGetAttr(tid, 0); err == nil && a.Policy == unix.SCHED_RR && a.Priority == urgent {
		_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
	}
}

// threads are those of a process, none if it has ended.
func threads(pid int) []int {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, tid)
		}
	}
	return out
}
