// Package smalldisk gives tests a file system of their own that is small enough to be filled.
package smalldisk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Mount mounts a tmpfs at dir until the test ends, with options such as "size=64m". It needs root.
func Mount(t testing.TB, dir, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount a small file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// Fill writes a file to dir that takes all of the file system but left bytes, until empty is called.
func Fill(t testing.TB, dir string, left int64) (empty func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
			t.Fatal(err)
		}
		more := min(int64(s.Bavail)*s.Bsize-left, 1<<20)
		if more <= 0 {
			break
		}
		// Others may have taken what was free.
		if _, err := f.Write(make([]byte, more)); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}
