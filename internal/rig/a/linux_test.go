package a

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const (
	root     = "../../.."
	netns    = "TARDIGRADE_RIG_NETNS"
	linuxMiB = 128
)

// What the Linux guest does: it answers each number that comes over one TCP
// connection, once it has appended it to a file on its disk.
const guestInit = `#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /dev /mnt
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for m in /modules/*.ko; do $b insmod $m; done
$b mount -t ext4 /dev/vda /mnt
echo boot >> /mnt/boots
$b sync
$b ip addr add 10.99.0.2/24 dev eth0
$b ip link set eth0 up
$b nc 10.99.0.1 7000 -e /serve
$b umount /mnt
$b dmesg > /dev/ttyS0
$b poweroff -f
`

const guestServe = `#!/bin/busybox sh
while read n; do
	echo $n >> /mnt/log
	[ $((n % 25)) = 0 ] && /bin/busybox sync
	read up idle < /proc/uptime
	echo "$n $up"
done
`

// TestLinuxGuest moves a Linux guest three times, under a TCP session and writes to its
// disk. It does so in a network namespace of its own.
func TestLinuxGuest(t *testing.T) {
	if os.Getenv(netns) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestLinuxGuest$", "-test.v")
		cmd.Env = append(os.Environ(), netns+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatalf("in a network namespace (this needs root): %v", err)
		}
		return
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"tuntap", "add", "tap0", "mode", "tap"},
		{"addr", "add", "10.99.0.1/24", "dev", "tap0"}, {"link", "set", "tap0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	dir := shortDir(t)
	kernel, files, err := rigtest.Kernel(root)
	if err != nil {
		t.Fatal(err)
	}
	files["init"] = rigtest.File{Mode: 0o755, Data: []byte(guestInit)}
	files["serve"] = rigtest.File{Mode: 0o755, Data: []byte(guestServe)}
	initrd, disk := filepath.Join(dir, "initrd"), filepath.Join(dir, "disk.img")
	if err := os.WriteFile(initrd, rigtest.Initramfs(files), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", disk, "32M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", "10.99.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	console := &lockedBuffer{}
	defer func() {
		if t.Failed() {
			t.Logf("console:\n%s", console)
		}
	}()
	guest := rigtest.StartMachine(t, dir, "linux", linuxMiB, console, []string{
		"-kernel", kernel, "-initrd", initrd, "-append", rigtest.KernelArgs + " quiet", "-no-reboot",
		"-drive", "file=" + disk + ",format=raw,if=virtio",
		"-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net0,romfile=",
	})
	l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Minute))
	booted := time.Now()
	session, err := l.Accept()
	if err != nil {
		t.Fatalf("the guest does not come up: %v", err)
	}
	defer session.Close()
	t.Logf("booted in %v", time.Since(booted).Round(time.Millisecond))
	lines := bufio.NewScanner(session)
	sent, slowest := 0, time.Duration(0)
	ask := func() {
		t.Helper()
		sent++
		session.SetDeadline(time.Now().Add(2 * time.Minute))
		begin := time.Now()
		fmt.Fprintf(session, "%d\n", sent)
		if !lines.Scan() {
			t.Fatalf("the TCP session ended at number %d: %v", sent, lines.Err())
		}
		if n, _, _ := strings.Cut(lines.Text(), " "); n != strconv.Itoa(sent) {
			t.Fatalf("asked %d, answered %q", sent, lines.Text())
		}
		slowest = max(slowest, time.Since(begin))
	}
	r := newRunner(t, dir)
	for range 3 {
		for range 25 {
			ask()
		}
		before := guest.PIDs()
		done := make(chan []float64, 1)
		slowest = 0
		go func() { done <- r.reset() }()
		for moved := false; !moved; {
			select {
			case frozen := <-done:
				t.Logf("frozen for %v ms; the slowest answer took %v", frozen, slowest.Round(time.Millisecond))
				moved = true
			default:
				ask()
			}
		}
		for range 25 {
			ask()
		}
		if after := guest.PIDs(); len(after) != 1 || after[0] == before[0] {
			t.Fatalf("processes %v before, %v after", before, after)
		}
	}
	session.Close()
	for deadline := time.Now().Add(time.Minute); len(guest.PIDs()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the guest does not end")
		}
	}
	for _, bad := range []string{"I/O error", "EXT4-fs error", "BUG", "Oops", "Call Trace"} {
		if strings.Contains(console.String(), bad) {
			t.Errorf("the guest's kernel says %q", bad)
		}
	}
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("the disk is damaged: %v\n%s", err, out)
	}
	cat := func(name string) string {
		out, err := exec.Command("debugfs", "-R", "cat "+name, disk).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if boots := cat("/boots"); boots != "boot\n" {
		t.Errorf("the guest booted more than once: %q", boots)
	}
	var want bytes.Buffer
	for i := range sent {
		fmt.Fprintln(&want, i+1)
	}
	if cat("/log") != want.String() {
		t.Error("what the guest wrote to its disk is not what it acknowledged")
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
