package rigtest

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// File is a file of an initial RAM disk.
type File struct {
	Mode fs.FileMode
	Data []byte
}

// Initramfs is an initial RAM disk with these files, by their path without a leading
// slash, in the format "newc" that Linux reads (Documentation/driver-api/
// early-userspace/buffer-format.rst). Directories are made as they are needed.
func Initramfs(files map[string]File) []byte {
	all := maps.Clone(files)
	for name := range files {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			all[d] = File{Mode: fs.ModeDir | 0o755}
		}
	}
	var out bytes.Buffer
	entry := func(name string, inode int, f File) {
		mode := uint32(f.Mode.Perm()) | 0o100000
		if f.Mode.IsDir() {
			mode = uint32(f.Mode.Perm()) | 0o040000
		}
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(f.Data), 0, 0, 0, 0, len(name)+1, 0, name)
		out.Write(make([]byte, -out.Len()&3))
		out.Write(f.Data)
		out.Write(make([]byte, -out.Len()&3))
	}
	for i, name := range slices.Sorted(maps.Keys(all)) { // a directory sorts before what is in it
		entry(name, i+1, all[name])
	}
	entry("TRAILER!!!", 0, File{})
	return out.Bytes()
}

// KernelArgs are arguments of the kernel in any VM. Whether its timer works is not a question there: a VM that is not
// given a processor for a moment as it boots would answer with a panic.
const KernelArgs = "console=ttyS0 panic=-1 no_timer_check"

// Kernel is what .ci/install-rig-kernel.sh put into .build/rig: the path of a kernel,
// and the files of an initial RAM disk, in which /init has busybox at /bin/busybox and
// kernel modules in /modules, in the order in which they go in.
func Kernel(root string) (kernel string, files map[string]File, err error) {
	dir := filepath.Join(root, ".build", "rig")
	if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
		return "", nil, fmt.Errorf("the kernel of the rigs is not there: run .ci/install-rig-kernel.sh: %w", err)
	}
	files = map[string]File{}
	busybox, err := os.ReadFile(filepath.Join(dir, "busybox"))
	if err != nil {
		return "", nil, err
	}
	files["bin/busybox"] = File{0o755, busybox}
	modules, err := filepath.Glob(filepath.Join(dir, "modules", "*.ko"))
	if err != nil {
		return "", nil, err
	}
	for _, m := range modules {
		data, err := os.ReadFile(m)
		if err != nil {
			return "", nil, err
		}
		files["modules/"+strings.TrimPrefix(m, filepath.Join(dir, "modules")+"/")] = File{0o644, data}
	}
	return filepath.Join(dir, "vmlinuz"), files, nil
}
