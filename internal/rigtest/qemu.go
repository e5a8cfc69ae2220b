package rigtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// QEMU is a guest of this package in a QEMU of its own, which the test started.
type QEMU struct {
	ID string
	// Args is the command line.
	Args  []string
	Watch *Watch
	// Memory is the file that holds its RAM.
	Memory string

	t *testing.T
}

// memoryDir is a file system in memory.
const memoryDir = "/dev/shm"

// StartQEMU starts a guest with so much RAM in a shared file, its QMP socket at
// dir/ID.qmp. dir must be short enough for sockets. Processes that take over its
// socket later are ended with the test too. edit may change each argument.
func StartQEMU(t *testing.T, dir, id string, mib int, edit ...func(arg string) string) *QEMU {
	t.Helper()
	return startBootSector(t, dir, id, mib, 0, edit)
}

// StartQEMUAs is StartQEMU as another user, who must be able to write into dir.
func StartQEMUAs(t *testing.T, dir, id string, mib int, user uint32) *QEMU {
	t.Helper()
	return startBootSector(t, dir, id, mib, user, nil)
}

func startBootSector(t *testing.T, dir, id string, mib int, user uint32, edit []func(string) string) *QEMU {
	t.Helper()
	sector, err := BootSector(mib)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, id+".img")
	if err := os.WriteFile(image, sector, 0o644); err != nil {
		t.Fatal(err)
	}
	out, in := io.Pipe()
	q := start(t, dir, id, mib, in, user, []string{"-drive", "file=" + image + ",format=raw,if=floppy,readonly=on"}, edit)
	q.Watch = NewWatch(out)
	return q
}

// StartMachine is StartQEMU for any guest, which the arguments describe. What it says
// on its first serial port goes to console.
func StartMachine(t *testing.T, dir, id string, mib int, console io.Writer, args []string) *QEMU {
	t.Helper()
	return start(t, dir, id, mib, console, 0, args, nil)
}

func start(t *testing.T, dir, id string, mib int, console io.Writer, user uint32, args []string, edit []func(string) string) *QEMU {
	t.Helper()
	memory, err := os.CreateTemp(memoryDir, "guest-"+id+"-*")
	if err != nil {
		t.Fatal(err)
	}
	memory.Close()
	serial, err := net.Listen("unix", filepath.Join(dir, id+".serial"))
	if err != nil {
		t.Fatal(err)
	}
	if user != 0 {
		for _, path := range []string{memory.Name(), filepath.Join(dir, id+".serial")} {
			if err := os.Chown(path, int(user), int(user)); err != nil {
				t.Fatal(err)
			}
		}
	}
	q := &QEMU{ID: id, Memory: memory.Name(), t: t, Args: append([]string{
		"qemu-system-x86_64", "-name", id, "-accel", "tcg", "-machine", "pc-i440fx-7.2,memory-backend=ram", "-m", strconv.Itoa(mib),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=on", mib, memory.Name()),
		"-display", "none", "-nodefaults", "-monitor", "none",
		"-serial", "unix:" + serial.Addr().String(), "-qmp", "unix:" + filepath.Join(dir, id+".qmp") + ",server=on,wait=off",
	}, args...)}
	for i := range q.Args {
		for _, e := range edit {
			q.Args[i] = e(q.Args[i])
		}
	}
	go func() {
		// Each QEMU that carries the guest connects anew.
		for {
			c, err := serial.Accept()
			if err != nil {
				if p, ok := console.(io.Closer); ok {
					p.Close()
				}
				return
			}
			io.Copy(console, c)
			c.Close()
		}
	}()
	cmd := exec.Command(q.Args[0], q.Args[1:]...)
	cmd.Stderr = os.Stderr
	if user != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	t.Cleanup(func() {
		for _, pid := range q.PIDs() {
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
		}
		serial.Close()
		os.Remove(memory.Name())
	})
	return q
}

// PIDs lists the QEMU processes that have the guest's RAM: more than one means that
// it runs twice.
func (q *QEMU) PIDs() []int {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		q.t.Fatal(err)
	}
	var out []int
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if s := string(b); len(s) > 0 && strings.Contains(s, q.Memory) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// Corrupt counts the words of the guest's RAM that are not as a [BootSector] guest
// filled it, looking at all of it from outside. mib is its size.
func (q *QEMU) Corrupt(mib int) int {
	q.t.Helper()
	f, err := os.Open(q.Memory)
	if err != nil {
		q.t.Fatal(err)
	}
	defer f.Close()
	wrong, chunk := 0, make([]byte, 1<<20)
	for at := 1 << 20; at < mib<<20; at += len(chunk) {
		if _, err := f.ReadAt(chunk, int64(at)); err != nil {
			q.t.Fatal(err)
		}
		for i := 0; i < len(chunk); i += 4 {
			if binary.LittleEndian.Uint32(chunk[i:]) != uint32(at+i)^patternKey {
				wrong++
			}
		}
	}
	return wrong
}

// AwaitTicks waits until the guest ticked n times more, at most for limit.
func (q *QEMU) AwaitTicks(n uint32, limit time.Duration) {
	q.t.Helper()
	ctx, cancel := context.WithTimeout(q.t.Context(), limit)
	defer cancel()
	if err := q.Watch.Await(ctx, n); err != nil {
		q.t.Fatalf("guest %s: %v", q.ID, err)
	}
}

// Unharmed fails the test unless the guest was booted once, missed no tick and found
// its RAM right.
func (q *QEMU) Unharmed() {
	q.t.Helper()
	if a := q.Watch.Account(); a.Boots != 1 || a.Jumps != 0 || a.Corrupt != 0 {
		q.t.Errorf("guest %s: %+v", q.ID, a)
	}
	if pids := q.PIDs(); len(pids) != 1 {
		q.t.Errorf("guest %s runs in %d processes: %v", q.ID, len(pids), pids)
	}
}
