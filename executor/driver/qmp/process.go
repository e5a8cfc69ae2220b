package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func (p *Preserver) proc() string {
	if p.Proc != "" {
		return p.Proc
	}
	return "/proc"
}

// staged is the name of a socket that [next] made.
var staged = regexp.MustCompile(`^\.[0-9a-f]{6}\.next$`)

// process reads how the QEMU that listens at a socket was started.
func (p *Preserver) process(g *Preserved, socket string) error {
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
	if info, err := os.Stat(g.Args[0]); err != nil || info.Mode()&0o111 == 0 {
		return fmt.Errorf("there is no QEMU to put it into: its program %s is gone (%v)", g.Args[0], err)
	}
	g.Args = onward(g.Args)
	at := filepath.Dir(socket) + "/"
	for i, a := range g.Args {
		before, after, ok := strings.Cut(a, at)
		name, rest, _ := strings.Cut(after, ",")
		if ok && staged.MatchString(name) {
			g.Args[i] = before + socket + strings.TrimSuffix(","+rest, ",")
		}
	}
	if groups, err := os.ReadFile(filepath.Join(dir, "cgroup")); err == nil {
		for line := range strings.Lines(string(groups)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				g.Cgroup = path
			}
		}
	}
	if err := p.rights(g); err != nil {
		return err
	}
	for _, kind := range []string{"net", "pid", "user"} {
		theirs, err := os.Readlink(filepath.Join(dir, "ns", kind))
		if err != nil {
			return err
		}
		if ours, err := os.Readlink(filepath.Join(p.proc(), "self/ns", kind)); err != nil || ours != theirs {
			return fmt.Errorf("its QEMU is in a %s namespace of its own, which a new process would not be in (%v)", kind, err)
		}
	}
	g.Started, err = p.started(g.PID)
	return err
}

// onward are arguments without those that say how the guest came to be there, or that
// its QEMU leaves its parent, which it does anyway.
func onward(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		switch "-" + strings.TrimLeft(args[i], "-") {
		case "-incoming", "-loadvm":
			i++ // and its value
		case "-daemonize":
		default:
			out = append(out, args[i])
		}
	}
	return out
}

// rights reads what a process may do.
func (p *Preserver) rights(g *Preserved) error {
	dir := filepath.Join(p.proc(), strconv.Itoa(g.PID))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return err
	}
	ids := map[string][]uint32{}
	for line := range strings.Lines(string(status)) {
		key, rest, _ := strings.Cut(line, ":")
		if key != "Uid" && key != "Gid" && key != "Groups" {
			continue
		}
		for _, f := range strings.Fields(rest) {
			n, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return fmt.Errorf("/proc/%d/status: %s", g.PID, strings.TrimSpace(line))
			}
			ids[key] = append(ids[key], uint32(n))
		}
	}
	if len(ids["Uid"]) != 4 || len(ids["Gid"]) != 4 {
		return fmt.Errorf("/proc/%d/status does not say as whom it runs", g.PID)
	}
	// QEMU that gives up its rights by itself begins with those of who starts it.
	if !slices.ContainsFunc(g.Args, func(a string) bool { return strings.HasSuffix(a, "-runas") || strings.HasSuffix(a, "-run-with") }) {
		g.UID, g.GID, g.Groups = ids["Uid"][1], ids["Gid"][1], ids["Groups"] // the effective ones
	}
	score, err := os.ReadFile(filepath.Join(dir, "oom_score_adj"))
	if err != nil {
		return err
	}
	g.OOMScore, err = strconv.Atoi(strings.TrimSpace(string(score)))
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

// alive tells whether the old process is there still. One that has ended and waits for
// its parent is not.
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
	return started == g.Started && !p.zombie(g.PID), err
}

// zombie tells whether a process has ended and waits for its parent only.
func (p *Preserver) zombie(pid int) bool {
	b, err := os.ReadFile(filepath.Join(p.proc(), strconv.Itoa(pid), "stat"))
	i := strings.LastIndexByte(string(b), ')')
	return err == nil && i >= 0 && strings.HasPrefix(string(b[i+1:]), " Z")
}

// ended tells whether there is no such process any more.
func (p *Preserver) ended(pid int) bool {
	_, err := os.Stat(filepath.Join(p.proc(), strconv.Itoa(pid)))
	return errors.Is(err, os.ErrNotExist) || p.zombie(pid)
}

// gone waits for the end of a guest's old process.
func (p *Preserver) gone(ctx context.Context, g Preserved) error {
	for {
		alive, err := p.alive(g)
		if err != nil || !alive {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its process %d does not end: %w", g.PID, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// lock keeps other processes from the way of the VMs, until unlock. A child that this
// one forks holds the lock, too, until it is the program that it is to be: so after a
// crash in between, who has the lock finds every process that was begun by its arguments.
func (p *Preserver) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(p.Dir) // closed on exec, as all files of Go
	if err != nil {
		return nil, err
	}
	for waited := false; ; waited = true {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && waited {
			// The files are closed a moment before the arguments can be seen.
			time.Sleep(5 * time.Millisecond)
		}
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", p.Dir, err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, fmt.Errorf("another process is at work on the VMs (%s is locked): %w", p.Dir, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// find lists the processes with exactly these arguments, and those that are about to be.
func (p *Preserver) find(args []string) ([]int, error) {
	entries, err := os.ReadDir(p.proc())
	if err != nil {
		return nil, err
	}
	want := strings.Join(args, "\x00") + "\x00"
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(p.proc(), e.Name(), "cmdline")); err == nil && (string(b) == want || strings.HasSuffix(string(b), "\x00--\x00"+want)) {
			out = append(out, pid)
		}
	}
	return out, nil
}

// hypervisor is the name of a program that runs a VM.
var hypervisor = regexp.MustCompile(`^(qemu-system-.+|qemu-kvm|kvm|cloud-hypervisor|firecracker)$`)

// strangers names the VMs of this host that are not in the plan, and would end with
// its kernel.
func (p *Preserver) strangers(plan Plan) error {
	entries, err := os.ReadDir(p.proc())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.ContainsFunc(plan.Guests, func(g Preserved) bool { return g.PID == pid }) {
			continue
		}
		exe, err := os.Readlink(filepath.Join(p.proc(), e.Name(), "exe"))
		if name := filepath.Base(strings.TrimSuffix(exe, " (deleted)")); err == nil && hypervisor.MatchString(name) && !p.zombie(pid) {
			errs = append(errs, fmt.Errorf("the process %d (%s) runs a VM that is none of those in %s, or is not one that runs: it would end with the kernel", pid, name, p.Sockets))
		}
	}
	return errors.Join(errs...)
}

// end ends a new process in which the guest never ran, and waits for that.
func (p *Preserver) end(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for !p.ended(pid) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new process %d does not end: %w", pid, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
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

// launch starts a guest's QEMU with the rights of the old process in a session of its
// own, where it outlives this process: in the cgroup of the old process if that is there still, otherwise, where
// systemd runs, in a scope of its own. What it says goes to the file log.
func launch(g Preserved, log string) (pid int, err error) {
	args := g.Args
	attr := &syscall.SysProcAttr{Setsid: true}
	if g.Cgroup != "" && g.Cgroup != "/" {
		if dir, err := os.Open(filepath.Join("/sys/fs/cgroup", g.Cgroup)); err == nil {
			defer dir.Close()
			attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
		}
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil && !attr.UseCgroupFD {
		args = slices.Concat([]string{"systemd-run", "--scope", "--quiet", "--collect", "--slice=machine.slice", fmt.Sprint("--uid=", g.UID), fmt.Sprint("--gid=", g.GID), "--"}, args)
	} else if os.Geteuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: g.UID, Gid: g.GID, Groups: g.Groups}
	} else if uint32(os.Geteuid()) != g.UID {
		return 0, fmt.Errorf("its QEMU ran as user %d, and this process is neither that nor root", g.UID)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = g.Cwd, g.Env, attr
	// A disk without room for what it says must not keep a guest from coming back.
	said, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		defer said.Close()
		cmd.Stderr = said
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go cmd.Wait()
	if g.OOMScore != 0 {
		// What systemd-run starts has the number of systemd-run.
		score := fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid)
		if err := os.WriteFile(score, []byte(strconv.Itoa(g.OOMScore)), 0); err != nil {
			fmt.Fprintln(said, err)
		}
	}
	return cmd.Process.Pid, nil
}
