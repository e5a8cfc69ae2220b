package rigtest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestGuestTicksAndVerifiesItsMemory(t *testing.T) {
	dir, err := os.MkdirTemp("", "guest") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sector, err := BootSector(16)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "boot.img")
	if err := os.WriteFile(image, sector, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "serial"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	qemu := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults", "-monitor", "none",
		"-drive", "file="+image+",format=raw,if=floppy,readonly=on", "-serial", "unix:"+l.Addr().String())
	var said strings.Builder
	qemu.Stderr = &said
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { qemu.Process.Kill(); qemu.Wait() })
	serial, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w := NewWatch(serial)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	if err := w.Await(ctx, 300); err != nil { // more than once around its memory
		t.Fatal(err, said.String())
	}
	a := w.Account()
	t.Logf("%+v in %v", a, time.Since(begin))
	if a.Boots != 1 || a.Corrupt != 0 || a.Jumps != 0 || a.Garbled != 0 {
		t.Errorf("%+v", a)
	}
}

func TestWatchSeesWhatGoesWrong(t *testing.T) {
	w := &Watch{moved: make(chan struct{}, 1)}
	at := time.Now()
	for i, line := range []string{"boot", "00000001 00000000", "00000002 00000000", "00000005 00000000", "x", "00000006 00000003"} {
		w.line(line, at.Add(time.Duration(i)*10*time.Millisecond))
	}
	if a := w.told; a.Boots != 1 || a.Ticks != 6 || a.Jumps != 1 || a.Garbled != 1 || a.Corrupt != 3 || a.MaxGap != 20*time.Millisecond {
		t.Errorf("%+v", a)
	}
	w.line("boot", at)
	w.line("00000001 00000000", at.Add(time.Second))
	if a := w.told; a.Boots != 2 || a.Ticks != 1 {
		t.Errorf("%+v", a)
	}
}
