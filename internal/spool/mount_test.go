package spool

import (
	"testing"

	"golang.org/x/sys/unix"
)

// mount mounts a file system of 256 KiB in memory. It needs root, like other tests.
func mount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("mount a small file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}
