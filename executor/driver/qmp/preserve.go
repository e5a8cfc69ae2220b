package qmp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Preserver takes guests out of their QEMU processes and puts them into new ones,
// with their RAM left where it is: RAM is a shared memory file, which the migration
// stream of QEMU then leaves out (capability x-ignore-shared), so that only the state
// of the devices, less than a MiB, is written. The guests freeze from the stop of the
// old process to the start of the new one and notice a pause only.
//
// [Preserver.Move] does that at once, for a new QEMU under the guests. For a reset of
// the host's kernel, [Preserver.Save] takes all guests out, and [Preserver.Resume]
// brings them back on the other side.
//
// Everything is written down in a directory: the plan before the first guest is
// stopped, and each guest's device state once it is complete. Resume brings the guests
// back from wherever a crash left them, by looking at what there is. The plan stays
// until [Preserver.Forget].
type Preserver struct {
	// Sockets is the directory of the guests' QMP sockets.
	Sockets string
	// Dir holds the plan and the device states while guests are out. It must outlive
	// whatever is done to the host meanwhile.
	Dir string
	// Timeout bounds each guest's way out, and its way back; 0 means 30 s.
	Timeout time.Duration
	// Reset means that the kernel is going to be reset: RAM must be in files that
	// survive it, on a DAX file system. Without it any shared file will do.
	Reset bool
	// FullSave allows to write the whole RAM of a guest to Dir where it cannot stay where
	// it is. That takes seconds for each GiB, in which the guest is frozen.
	FullSave bool
	// Proc is the proc file system; "" means /proc.
	Proc string
	// Station, if not nil, is called as the way reaches each of its stations: planned,
	// frozen, written, saved and ended on the way out; launched, loaded, going and resumed on
	// the way back. With several guests it is called for each, at the same time. An error
	// ends the way right there, as a crash would.
	Station func(name string) error
}

// stranded is an error of [Preserver.Station]: nothing is put right after it.
type stranded struct{ error }

func (s stranded) Unwrap() error { return s.error }

func (p *Preserver) station(name string) error {
	if p.Station == nil {
		return nil
	}
	if err := p.Station(name); err != nil {
		return stranded{err}
	}
	return nil
}

func (p *Preserver) timeout() time.Duration {
	if p.Timeout > 0 {
		return p.Timeout
	}
	return 30 * time.Second
}

func (p *Preserver) socket(id string) string { return socket(p.Sockets, id) }

// Check looks at every running guest and makes the plan, without touching anything.
// An error names the guests that cannot be preserved, and why.
func (p *Preserver) Check(ctx context.Context) (Plan, error) {
	guests, err := New(p.Sockets).Guests(ctx)
	if err != nil {
		return Plan{}, err
	}
	boot, err := p.boot()
	if err != nil {
		return Plan{}, err
	}
	plan := Plan{Version: planVersion, ID: rand.Text(), Created: time.Now().UTC(), Reset: p.Reset}
	var errs []error
	need := int64(0)
	for _, g := range guests {
		if g.State == "shut-off" {
			continue
		}
		one, err := p.check(ctx, g, boot)
		if err != nil {
			errs = append(errs, fmt.Errorf("VM %s cannot be preserved: %w", g.ID, err))
		}
		if one.Way == WayFull {
			need += one.MemoryBytes
		}
		plan.Guests = append(plan.Guests, one)
	}
	if need > 0 {
		errs = append(errs, p.room(need))
	}
	if p.Reset {
		errs = append(errs, p.strangers(plan))
	}
	return plan, errors.Join(errs...)
}

// room tells whether so many bytes of RAM can be written to the directory.
func (p *Preserver) room(need int64) error {
	var fs unix.Statfs_t
	dir := p.Dir
	err := unix.Statfs(dir, &fs)
	for errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir) { // it is made later
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &fs)
	}
	if err != nil {
		return fmt.Errorf("look for room in %s: %w", p.Dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need+need/10 {
		return fmt.Errorf("the RAM of the VMs that must be saved whole is %d MiB, and %s has room for %d MiB", need>>20, p.Dir, free>>20)
	}
	return nil
}

// handed finds an argument by which QEMU was given an open file.
var handed = regexp.MustCompile(`^-?-add-fd$|(^|,)(fd|fds|vhostfd|vhostfds|sock-fd)=[0-9]|/dev/fdset/`)

// passed are the types of devices whose state QEMU cannot take along.
var passed = []string{"child<vfio", "child<vhost-vdpa", "child<usb-host", "child<ivshmem-doorbell"}

func (p *Preserver) check(ctx context.Context, g fleet.GuestReport, boot string) (Preserved, error) {
	out := Preserved{VM: g.VM, Running: g.State == "running", Boot: boot}
	if g.State != "running" && g.State != "paused" {
		return out, fmt.Errorf("it is %s", g.State)
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	path := p.socket(g.ID)
	c, err := Dial(ctx, path)
	if err != nil {
		return out, err
	}
	defer c.Close()
	var status struct{ Status string }
	if err := c.Execute("query-status", nil, &status); err != nil {
		return out, err
	}
	if !slices.Contains([]string{"running", "paused", "prelaunch", "io-error", "watchdog"}, status.Status) {
		return out, fmt.Errorf("it is %s", status.Status)
	}
	if out.PID, err = c.peer(); err != nil {
		return out, err
	}
	if err := p.process(&out, path); err != nil {
		return out, err
	}
	for _, a := range out.Args {
		if handed.MatchString(a) {
			return out, fmt.Errorf("its QEMU was given open files (%s), as libvirt does, which a new process would not have", a)
		}
		if strings.Contains(a, "discard-data=on") {
			return out, errors.New("its RAM is discarded when its QEMU ends: remove discard-data=on")
		}
	}
	machine, err := c.machine(out.Args)
	if err != nil {
		return out, err
	}
	if machine != "" {
		return out, errors.New(machine)
	}
	for _, where := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		var children []struct{ Name, Type string }
		if err := c.Execute("qom-list", map[string]any{"path": where}, &children); err != nil {
			return out, err
		}
		for _, child := range children {
			if slices.ContainsFunc(passed, func(t string) bool { return strings.HasPrefix(child.Type, t) }) {
				return out, fmt.Errorf("its device %s is hardware that is passed through (%s)", child.Name, child.Type)
			}
		}
	}
	var migration struct {
		Blocked []string `json:"blocked-reasons"`
	}
	if err := c.Execute("query-migrate", nil, &migration); err != nil {
		return out, err
	}
	if len(migration.Blocked) > 0 {
		return out, fmt.Errorf("QEMU says that its state cannot be taken out: %s", strings.Join(migration.Blocked, "; "))
	}
	if out.Way, err = c.way(); err != nil {
		return out, err
	}
	if out.Way == WayFull && !p.FullSave {
		return out, errors.New("this QEMU can only write its whole RAM: install a newer one, or allow agent.reset.full_save")
	}
	if out.Way != WayFull {
		if out.Memory, err = c.memory(p.Reset); err != nil && p.FullSave {
			out.Way, out.Memory, err = WayFull, nil, nil
		}
	}
	for _, m := range out.Memory {
		// It may see other files by the same names.
		theirs, e := memoryFile(filepath.Join(p.proc(), fmt.Sprint(out.PID), "root", m.Path))
		if e != nil || theirs.Inode != m.Inode {
			return out, fmt.Errorf("its RAM %s is another file for its QEMU than for the agent (%v)", m.Path, e)
		}
	}
	out.Next = next(out.Args, path)
	return out, err
}

// way is the best one that this QEMU has.
func (c *Conn) way() (Way, error) {
	var version struct {
		QEMU struct{ Major, Minor int } `json:"qemu"`
	}
	if err := c.Execute("query-version", nil, &version); err != nil {
		return "", err
	}
	var capabilities []struct{ Capability string }
	if err := c.Execute("query-migrate-capabilities", nil, &capabilities); err != nil {
		return "", err
	}
	ignores := slices.ContainsFunc(capabilities, func(c struct{ Capability string }) bool { return c.Capability == "x-ignore-shared" })
	switch v := version.QEMU; {
	case !ignores:
		return WayFull, nil
	case v.Major > 8 || v.Major == 8 && v.Minor >= 2:
		return WayReboot, nil
	}
	return WayShared, nil
}

var versioned = regexp.MustCompile(`[0-9]+\.[0-9]+`)

// machine says why the machine type is not one that a newer QEMU understands the
// same way, "" if it is.
func (c *Conn) machine(args []string) (string, error) {
	asked := ""
	for i, a := range args {
		if (a == "-machine" || a == "-M" || a == "--machine") && i+1 < len(args) {
			for n, part := range strings.Split(args[i+1], ",") {
				if name, ok := strings.CutPrefix(part, "type="); ok {
					asked = name
				} else if n == 0 && !strings.Contains(part, "=") {
					asked = part
				}
			}
		}
	}
	var all []struct{ Name, Alias string }
	if err := c.Execute("query-machines", nil, &all); err != nil {
		return "", err
	}
	for _, m := range all {
		if m.Name == asked && versioned.MatchString(asked) {
			return "", nil
		}
	}
	if asked == "" {
		asked = "the default"
	}
	return fmt.Sprintf("its machine type is %s, without a version: name one, such as pc-q35-7.2", asked), nil
}

// memory lists the files that hold the RAM.
func (c *Conn) memory(reset bool) ([]MemoryFile, error) {
	var backends []struct {
		ID    string `json:"id"`
		Size  int64  `json:"size"`
		Share bool   `json:"share"`
	}
	if err := c.Execute("query-memdev", nil, &backends); err != nil {
		return nil, err
	}
	if len(backends) == 0 {
		return nil, errors.New("its RAM is private to its process: use -object memory-backend-file,share=on")
	}
	var files []MemoryFile
	for _, b := range backends {
		var path string
		if err := c.Execute("qom-get", map[string]any{"path": "/objects/" + b.ID, "property": "mem-path"}, &path); err != nil || !b.Share {
			return nil, fmt.Errorf("its RAM %s is not a shared file: use -object memory-backend-file,share=on", b.ID)
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			return nil, fmt.Errorf("its RAM %s is a file without a name in %s: give mem-path a file", b.ID, path)
		}
		if reset {
			var x unix.Statx_t
			if err := unix.Statx(unix.AT_FDCWD, path, 0, 0, &x); err != nil {
				return nil, err
			}
			if x.Attributes&unix.STATX_ATTR_DAX == 0 {
				return nil, fmt.Errorf("its RAM lies in %s, which does not survive a reset of the kernel: use a file system on persistent memory, mounted with dax=always, or allow agent.reset.full_save", path)
			}
		}
		file, err := memoryFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// next names the socket where a guest's new QEMU listens while the old one is still
// there. It is "" where two processes with these arguments would be in each other's
// way, or might be: the new one is started after the end of the old one then.
func next(args []string, socket string) string {
	var b [3]byte
	rand.Read(b[:])
	path := filepath.Join(filepath.Dir(socket), "."+hex.EncodeToString(b[:])+".next")
	if len(path) > 100 || len(replaceSocket(args, socket, path)) == 0 {
		return ""
	}
	for i := 1; i < len(args); i++ {
		option, value := "-"+strings.TrimLeft(args[i], "-"), ""
		takes, known := alone[option]
		if !known {
			return ""
		}
		if takes && i+1 < len(args) {
			i++
			value = args[i]
		}
		first, _, _ := strings.Cut(value, ",")
		bad := false
		switch option {
		case "-display", "-monitor":
			bad = value != "none"
		case "-serial":
			bad = value != "none" && value != "null" && (!strings.HasPrefix(value, "unix:") || strings.Contains(value, "server"))
		case "-object":
			bad = first != "memory-backend-file" && first != "iothread"
		case "-device":
			bad = strings.Contains(first, "vhost") || strings.Contains(first, "ivshmem")
		case "-qmp":
			bad = !strings.Contains(value, socket)
		case "-chardev":
			bad = first != "null" && !strings.Contains(value, socket) && !(first == "file" && strings.Contains(value, "append=on"))
		case "-netdev":
			bad = first != "user" || strings.Contains(value, "fwd=")
		}
		if bad {
			return ""
		}
	}
	return path
}

// alone are the options of QEMU of which two processes may have the same, and whether
// they take a value. Disks are among them: a QEMU that waits for a guest does not open
// them before the other one has let go.
var alone = map[string]bool{
	"-name": true, "-uuid": true, "-accel": true, "-cpu": true, "-smp": true, "-m": true, "-machine": true, "-M": true, "-boot": true,
	"-display": true, "-vga": true, "-rtc": true, "-global": true, "-object": true, "-drive": true, "-blockdev": true, "-device": true,
	"-kernel": true, "-initrd": true, "-append": true, "-monitor": true, "-serial": true, "-qmp": true, "-chardev": true, "-mon": true,
	"-netdev": true, "-smbios": true, "-numa": true, "-overcommit": true, "-sandbox": true, "-bios": true, "-L": true, "-msg": true, "-runas": true,
	"-nodefaults": false, "-no-user-config": false, "-enable-kvm": false, "-S": false, "-no-reboot": false, "-no-shutdown": false,
}

// replaceSocket returns the arguments with another QMP socket, nil if the old one is
// not named in exactly one of them.
func replaceSocket(args []string, old, new string) []string {
	found := 0
	out := slices.Clone(args)
	for i, a := range args {
		before, after, ok := strings.Cut(a, old)
		if ok && (after == "" || after[0] == ',') {
			out[i] = before + new + after
			found++
		}
	}
	if found != 1 {
		return nil
	}
	return out
}

// each does something for all guests at once and names the guest in each error.
func each(guests []Preserved, f func(i int, g Preserved) error) error {
	errs := make([]error, len(guests))
	var wg sync.WaitGroup
	for i, g := range guests {
		wg.Go(func() {
			if err := f(i, g); err != nil {
				errs[i] = fmt.Errorf("VM %s: %w", g.ID, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
