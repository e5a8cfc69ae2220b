package qmp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Preserver takes guests out of their QEMU processes and puts them into new ones,
// with their RAM left where it is: RAM must be a shared memory file, which the
// migration stream of QEMU then leaves out (capability x-ignore-shared), so that only
// the state of the devices, less than a MiB, is written. The guests freeze from the
// stop of the old process to the start of the new one and notice a pause only.
//
// Everything is written down in a directory: the plan before the first guest is
// stopped, and each guest's device state once it is complete. [Preserver.Resume]
// brings the guests back from wherever a crash left them, by looking at what there is.
type Preserver struct {
	// Sockets is the directory of the guests' QMP sockets.
	Sockets string
	// Dir holds the plan and the device states while guests are out. It must outlive
	// whatever is done to the host meanwhile.
	Dir string
	// Launch starts a QEMU process that outlives this one. nil starts it in a session
	// of its own.
	Launch func(ctx context.Context, g Preserved) error
	// Timeout bounds each guest's way out, and its way back; 0 means 30 s.
	Timeout time.Duration
	// Reset demands RAM that survives a reset of the host's kernel: files on a DAX file
	// system. Without it any shared file will do.
	Reset bool
	// Proc is the proc file system; "" means /proc.
	Proc string
	// Station, if not nil, is called as the way reaches each of its stations: planned,
	// frozen, written, saved and ended on the way out; launched, loaded and resumed on
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

// Preserved is a guest in the plan.
type Preserved struct {
	fleet.VM
	// Args, Dir and Env are how its QEMU was started.
	Args []string `json:"args"`
	Cwd  string   `json:"cwd"`
	Env  []string `json:"env"`
	// PID is the old process, which must be gone before a new one starts.
	PID int `json:"pid"`
	// Started is the old process's start time in clock ticks since boot, so that
	// another process with its number is not mistaken for it.
	Started string `json:"started"`
	// Boot is the host's boot in which PID means something.
	Boot string `json:"boot"`
	// Running is false for a guest that was paused, and stays so.
	Running bool `json:"running"`
	// MemoryFiles hold its RAM.
	MemoryFiles []string `json:"memory_files"`
}

// Plan is the way back. Version 1 is the only one.
type Plan struct {
	Version int         `json:"version"`
	Created time.Time   `json:"created"`
	Guests  []Preserved `json:"guests"`
}

const planVersion = 1

func (p *Preserver) timeout() time.Duration {
	if p.Timeout > 0 {
		return p.Timeout
	}
	return 30 * time.Second
}

func (p *Preserver) proc() string {
	if p.Proc != "" {
		return p.Proc
	}
	return "/proc"
}

func (p *Preserver) socket(id string) string { return socket(p.Sockets, id) }

func (p *Preserver) statePath(id string) string { return filepath.Join(p.Dir, id+".state") }
func (p *Preserver) planPath() string           { return filepath.Join(p.Dir, "plan.json") }

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
	plan := Plan{Version: planVersion, Created: time.Now().UTC()}
	var errs []error
	for _, g := range guests {
		if g.State == "shut-off" {
			continue
		}
		one, err := p.check(ctx, g, boot)
		if err != nil {
			errs = append(errs, fmt.Errorf("VM %s cannot be preserved: %w", g.ID, err))
		}
		plan.Guests = append(plan.Guests, one)
	}
	return plan, errors.Join(errs...)
}

func (p *Preserver) check(ctx context.Context, g fleet.GuestReport, boot string) (Preserved, error) {
	out := Preserved{VM: g.VM, Running: g.State == "running", Boot: boot}
	if g.State != "running" && g.State != "paused" {
		return out, fmt.Errorf("it is %s", g.State)
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	c, err := Dial(ctx, p.socket(g.ID))
	if err != nil {
		return out, err
	}
	defer c.Close()
	if out.PID, err = c.peer(); err != nil {
		return out, err
	}
	if err := p.process(&out); err != nil {
		return out, err
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
			if strings.HasPrefix(child.Type, "child<vfio") || strings.HasPrefix(child.Type, "child<vhost-vdpa") {
				return out, fmt.Errorf("its device %s is hardware that is passed through (%s)", child.Name, child.Type)
			}
		}
	}
	out.MemoryFiles, err = c.memory(p.Reset)
	return out, err
}

// process reads how a QEMU was started.
func (p *Preserver) process(g *Preserved) error {
	dir := filepath.Join(p.proc(), strconv.Itoa(g.PID))
	list := func(name string) ([]string, error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), err
	}
	var err error
	if g.Args, err = list("cmdline"); err != nil {
		return err
	}
	if g.Env, err = list("environ"); err != nil {
		return err
	}
	if g.Cwd, err = os.Readlink(filepath.Join(dir, "cwd")); err != nil {
		return err
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return err
	}
	// The new process is the program that is installed now, which may be newer.
	g.Args[0] = strings.TrimSuffix(exe, " (deleted)")
	if slices.Contains(g.Args, "-incoming") { // it came by this way itself
		i := slices.Index(g.Args, "-incoming")
		g.Args = slices.Delete(g.Args, i, min(i+2, len(g.Args)))
	}
	g.Started, err = p.started(g.PID)
	return err
}

// started is field 22 of /proc/PID/stat.
func (p *Preserver) started(pid int) (string, error) {
	b, err := os.ReadFile(filepath.Join(p.proc(), strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return fields[19], nil
}

func (p *Preserver) boot() (string, error) {
	b, err := os.ReadFile(filepath.Join(p.proc(), "sys/kernel/random/boot_id"))
	return strings.TrimSpace(string(b)), err
}

// alive tells whether the old process is there still.
func (p *Preserver) alive(g Preserved) (bool, error) {
	boot, err := p.boot()
	if err != nil {
		return false, err
	}
	if boot != g.Boot {
		return false, nil
	}
	started, err := p.started(g.PID)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return false, nil
	}
	return started == g.Started, err
}

// peer is the process at the other end.
func (c *Conn) peer() (int, error) {
	u, ok := c.c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, failed
	}
	return int(cred.Pid), nil
}

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
		if m.Name == asked {
			return "", nil
		}
	}
	if asked == "" {
		asked = "the default"
	}
	return fmt.Sprintf("its machine type is %s, without a version: name one, such as pc-q35-7.2", asked), nil
}

// memory lists the files that hold the RAM.
func (c *Conn) memory(reset bool) ([]string, error) {
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
	var files []string
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
				return nil, fmt.Errorf("its RAM lies in %s, which does not survive a reset of the kernel: use a file system on persistent memory, mounted with dax=always", path)
			}
		}
		files = append(files, path)
	}
	return files, nil
}

// Save stops all guests of a plan at once, writes their device states and ends their
// processes. On an error all guests that still have their process run on.
func (p *Preserver) Save(ctx context.Context, plan Plan) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if err := writeFile(p.planPath(), append(append(data, '\n'), hex.EncodeToString(sum[:])...)); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	if err := p.station("planned"); err != nil {
		return err
	}
	conns := make([]*Conn, len(plan.Guests))
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	// Nothing stops before all can be stopped.
	err = each(plan.Guests, func(i int, g Preserved) error {
		c, err := Dial(ctx, p.socket(g.ID))
		if err != nil {
			return err
		}
		conns[i] = c
		return c.prepare()
	})
	if err == nil {
		err = each(plan.Guests, func(i int, g Preserved) error { return p.save(conns[i], g) })
	}
	if err == nil {
		err = p.station("saved")
	}
	if errors.As(err, new(stranded)) {
		return err
	}
	if err != nil {
		// None has ended: each goes on in its old process.
		back := each(plan.Guests, func(i int, g Preserved) error {
			if conns[i] == nil || !g.Running {
				return nil
			}
			return conns[i].Execute("cont", nil, nil)
		})
		return errors.Join(err, back, p.clear(plan))
	}
	return each(plan.Guests, func(i int, g Preserved) error {
		if err := conns[i].Execute("quit", nil, nil); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			return err
		}
		if err := p.gone(ctx, g); err != nil {
			return err
		}
		return p.station("ended")
	})
}

// prepare makes the migration of RAM a no-op and lifts QEMU's limit on bandwidth, which
// applies even to a stopped guest.
func (c *Conn) prepare() error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	if err := c.Execute("migrate-set-capabilities", map[string]any{"capabilities": []capability{{"x-ignore-shared", true}}}, nil); err != nil {
		return err
	}
	return c.Execute("migrate-set-parameters", map[string]any{"max-bandwidth": int64(64 << 30)}, nil)
}

// save freezes a guest and writes its device state, complete or not at all.
func (p *Preserver) save(c *Conn, g Preserved) error {
	part := p.statePath(g.ID) + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.Execute("stop", nil, nil); err != nil {
		return err
	}
	if err := p.station("frozen"); err != nil {
		return err
	}
	if err := c.sendFile("tardigrade", f); err != nil {
		return err
	}
	if err := c.Execute("migrate", map[string]any{"uri": "fd:tardigrade"}, nil); err != nil {
		return err
	}
	if err := c.migrated(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := p.station("written"); err != nil {
		return err
	}
	if err := os.Rename(part, p.statePath(g.ID)); err != nil {
		return err
	}
	return syncDir(p.Dir)
}

// sendFile gives QEMU an open file under a name.
func (c *Conn) sendFile(name string, f *os.File) error {
	u, ok := c.c.(*net.UnixConn)
	if !ok {
		return errors.New("not a Unix socket")
	}
	return c.execute("getfd", map[string]any{"fdname": name}, nil, func(data []byte) error {
		_, _, err := u.WriteMsgUnix(data, syscall.UnixRights(int(f.Fd())), nil)
		return err
	})
}

// migrated waits for the end of a migration.
func (c *Conn) migrated() error {
	for {
		var info struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := c.Execute("query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("the migration %s: %s", info.Status, info.Error)
		}
		time.Sleep(time.Millisecond)
	}
}

// gone waits for the end of a guest's old process.
func (p *Preserver) gone(ctx context.Context, g Preserved) error {
	for {
		alive, err := p.alive(g)
		if err != nil || !alive {
			return err
		}
		if p.zombie(g.PID) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its process %d does not end: %w", g.PID, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// zombie tells whether a process has ended and waits for its parent only.
func (p *Preserver) zombie(pid int) bool {
	b, err := os.ReadFile(filepath.Join(p.proc(), strconv.Itoa(pid), "stat"))
	i := strings.LastIndexByte(string(b), ')')
	return err == nil && i >= 0 && strings.HasPrefix(string(b[i+1:]), " Z")
}

// ReadPlan returns the plan that was left behind, with os.ErrNotExist if there is
// none.
func (p *Preserver) ReadPlan() (Plan, error) {
	data, err := os.ReadFile(p.planPath())
	if err != nil {
		return Plan{}, err
	}
	body, sum, _ := strings.Cut(string(data), "\n")
	want := sha256.Sum256([]byte(body))
	if sum != hex.EncodeToString(want[:]) {
		return Plan{}, fmt.Errorf("the plan %s is damaged: the states of the guests are kept beside it", p.planPath())
	}
	var plan Plan
	if err := json.Unmarshal([]byte(body), &plan); err != nil {
		return Plan{}, fmt.Errorf("the plan %s: %w", p.planPath(), err)
	}
	if plan.Version != planVersion {
		return Plan{}, fmt.Errorf("the plan %s has version %d, and this release reads %d", p.planPath(), plan.Version, planVersion)
	}
	return plan, nil
}

// Resume brings back every guest of the plan, all at once, from wherever it is: still
// running, stopped in its old process, saved, or half loaded into a new one. A guest
// whose state is not there or does not load is never started afresh: it has an Err,
// and what there is of it is kept. With all back, the plan is removed.
func (p *Preserver) Resume(ctx context.Context) ([]fleet.GuestReport, error) {
	plan, err := p.ReadPlan()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	if err := each(plan.Guests, func(_ int, g Preserved) error { return p.resume(ctx, g) }); err != nil {
		return nil, err
	}
	reports, err := New(p.Sockets).Guests(ctx)
	if err != nil {
		return nil, err
	}
	return reports, p.clear(plan)
}

// clear removes the plan first, so that no half of it is left.
func (p *Preserver) clear(plan Plan) error {
	err := os.Remove(p.planPath())
	for _, g := range plan.Guests {
		for _, path := range []string{p.statePath(g.ID), p.statePath(g.ID) + ".part"} {
			if e := os.Remove(path); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

func (p *Preserver) resume(ctx context.Context, g Preserved) error {
	c, err := Dial(ctx, p.socket(g.ID))
	switch {
	case err == nil:
		defer c.Close()
		return p.proceed(ctx, c, g)
	case !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist):
		return err
	}
	alive, err := p.alive(g)
	if err != nil {
		return err
	}
	if alive && !p.zombie(g.PID) {
		if err := p.gone(ctx, g); err != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
	}
	if _, err := os.Stat(p.statePath(g.ID)); err != nil {
		return fmt.Errorf("it is lost: its process is gone and its device state was not complete: %w", err)
	}
	g.Args = append(slices.Clone(g.Args), "-incoming", "defer")
	launch := p.Launch
	if launch == nil {
		launch = Detached
	}
	if err := launch(ctx, g); err != nil {
		return fmt.Errorf("start its QEMU: %w", err)
	}
	for {
		if c, err = Dial(ctx, p.socket(g.ID)); err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("its new QEMU does not answer: %w", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	defer c.Close()
	if err := p.station("launched"); err != nil {
		return err
	}
	return p.proceed(ctx, c, g)
}

// proceed brings a guest whose QEMU answers to where it was.
func (p *Preserver) proceed(ctx context.Context, c *Conn, g Preserved) error {
	var status struct {
		Status  string `json:"status"`
		Running bool   `json:"running"`
	}
	if err := c.Execute("query-status", nil, &status); err != nil {
		return err
	}
	if status.Status == "inmigrate" {
		if err := p.load(c, g); err != nil {
			// A state that does not load must not be half a guest.
			_ = c.Execute("quit", nil, nil)
			return fmt.Errorf("its state does not load and is kept in %s: %w", p.statePath(g.ID), err)
		}
		if err := p.station("loaded"); err != nil {
			return err
		}
	}
	if status.Running || !g.Running {
		return nil
	}
	if err := c.Execute("cont", nil, nil); err != nil {
		return err
	}
	return p.station("resumed")
}

func (p *Preserver) load(c *Conn, g Preserved) error {
	if err := c.prepare(); err != nil {
		return err
	}
	f, err := os.Open(p.statePath(g.ID))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.sendFile("tardigrade", f); err != nil {
		return err
	}
	if err := c.Execute("migrate-incoming", map[string]any{"uri": "fd:tardigrade"}, nil); err != nil {
		return err
	}
	for {
		var status struct{ Status string }
		if err := c.Execute("query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "inmigrate" {
			return c.migrated()
		}
		var info struct {
			Status string `json:"status"`
		}
		if err := c.Execute("query-migrate", nil, &info); err == nil && info.Status == "failed" {
			return errors.New("QEMU refused it")
		}
		time.Sleep(time.Millisecond)
	}
}

// Detached starts a guest's QEMU in a session of its own, where it outlives this
// process.
func Detached(_ context.Context, g Preserved) error {
	cmd := exec.Command(g.Args[0], g.Args[1:]...)
	cmd.Dir, cmd.Env = g.Cwd, g.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait()
	return nil
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

// writeFile writes a file whole or not at all, and has it on disk when it returns.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
