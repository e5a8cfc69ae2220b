package c

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const (
	root    = "../../.."
	rootMiB = 384
	// The host has so much memory, and keeps this part of it through a reset.
	hostMiB = 2048
	kept    = "memmap=256M!1536M"
)

// What the host's initial RAM disk does: it lays a file system into the memory that
// stays, if there is none, and hands over to systemd.
const hostInit = `#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /root
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for m in /modules/*.ko; do $b insmod $m; done
$b ip addr add 10.0.2.15/24 dev eth0
$b ip link set eth0 up
$b mount -t ext4 /dev/vda /root
$b mount --move /dev /root/dev
if ! $b mount -t ext4 -o dax=always /root/dev/pmem0 /root/pmem; then
	$b chroot /root /usr/sbin/mke2fs -q -t ext4 -b 4096 -E nodiscard /dev/pmem0
	$b mount -t ext4 -o dax=always /root/dev/pmem0 /root/pmem
fi
$b mount --move /proc /root/proc
$b mount --move /sys /root/sys
exec $b switch_root /root /usr/lib/systemd/systemd
`

// programs are taken from this machine, with the libraries that they need.
var programs = []string{
	"/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-shutdown", "/usr/bin/systemctl", "/usr/bin/systemd-run", "/usr/bin/mount", "/usr/bin/umount",
	"/usr/sbin/kexec", "/usr/sbin/mke2fs", "/usr/bin/qemu-system-x86_64", "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
}

// data are taken from this machine, too.
var data = []string{
	"/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot_dma.bin", "/etc/passwd", "/etc/group", "/etc/os-release",
}

// systemd's own units, as far as this host has them.
var units = []string{
	"basic.target", "sysinit.target", "local-fs.target", "local-fs-pre.target", "swap.target", "sockets.target", "paths.target", "timers.target", "slices.target",
	"machine.slice", "shutdown.target", "umount.target", "final.target", "kexec.target", "systemd-kexec.service", "reboot.target", "systemd-reboot.service",
}

// place copies a file of this machine to the same path under a directory, whose /bin,
// /sbin, /lib and /lib64 are in /usr.
func place(dir, path string) error {
	if strings.HasPrefix(path, "/lib") || strings.HasPrefix(path, "/bin") || strings.HasPrefix(path, "/sbin") {
		path = "/usr" + path
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	to := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// libraries are what a program is linked with.
func libraries(program string) ([]string, error) {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	var paths []string
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				paths = append(paths, word)
			}
		}
	}
	return paths, nil
}

// hostImage makes the disk of the host, with further files in it.
func hostImage(t *testing.T, image, program string, files map[string]string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc/systemd/system", "proc", "sys", "dev", "run", "tmp", "pmem", "boot", "root", "var/lib"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		must(os.Symlink("usr/"+l, filepath.Join(dir, l)))
	}
	must(os.Symlink("../run", filepath.Join(dir, "var/run")))
	wanted := map[string]bool{}
	for _, p := range programs {
		wanted[p] = true
		more, err := libraries(p)
		must(err)
		for _, l := range more {
			wanted[l] = true
		}
	}
	for _, p := range data {
		wanted[p] = true
	}
	for _, u := range units {
		wanted["/usr/lib/systemd/system/"+u] = true
	}
	for p := range wanted {
		must(place(dir, p))
	}
	kernel, initial, err := rigtest.Kernel(root)
	must(err)
	busybox := initial["bin/busybox"].Data
	must(os.WriteFile(filepath.Join(dir, "usr/bin/busybox"), busybox, 0o755))
	must(os.Symlink("busybox", filepath.Join(dir, "usr/bin/sh")))
	release, err := os.ReadFile(filepath.Join(root, ".build/rig/complete"))
	must(err)
	name := strings.TrimSpace(string(release))
	image1, err := os.ReadFile(kernel)
	must(err)
	must(os.WriteFile(filepath.Join(dir, "boot/vmlinuz-"+name), image1, 0o644))
	must(os.WriteFile(filepath.Join(dir, "boot/initrd.img-"+name), initrd(initial), 0o644))
	binary, err := os.ReadFile(program)
	must(err)
	must(os.WriteFile(filepath.Join(dir, "usr/bin/tardigrade"), binary, 0o755))
	for name, text := range files {
		path := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, []byte(text), 0o600))
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", dir, image, fmt.Sprint(rootMiB, "M")).CombinedOutput(); err != nil {
		t.Fatalf("make the host's disk: %v: %s", err, out)
	}
}

func initrd(files map[string]rigtest.File) []byte {
	files["init"] = rigtest.File{Mode: 0o755, Data: []byte(hostInit)}
	return rigtest.Initramfs(files)
}

// console is what the host says.
type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// bootHost boots the host. ended is closed when it is over.
func bootHost(t *testing.T, dir, image string) (said *console, ended <-chan struct{}) {
	t.Helper()
	kernel, initial, err := rigtest.Kernel(root)
	if err != nil {
		t.Fatal(err)
	}
	ramDisk := filepath.Join(dir, "initrd")
	if err := os.WriteFile(ramDisk, initrd(initial), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2", "-m", fmt.Sprint(hostMiB), "-display", "none", "-nodefaults",
		"-monitor", "none", "-no-reboot", "-kernel", kernel, "-initrd", ramDisk, "-append", rigtest.KernelArgs+" loglevel=4 "+kept,
		"-drive", "file="+image+",format=raw,if=virtio", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=", "-serial", "stdio")
	said = &console{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
	})
	return said, done
}
