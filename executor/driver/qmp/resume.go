package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Resume brings back every guest of the plan, all at once, from wherever it is: still
// running, stopped in its old process, saved, or half loaded into a new one. A guest
// whose state is not there or does not load is never started afresh: the error names
// it, and what there is of it is kept. The plan stays; with all back, call
// [Preserver.Forget].
func (p *Preserver) Resume(ctx context.Context) error {
	plan, err := p.ReadPlan()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*p.timeout())
	defer cancel()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	arrived, err := p.arrived(plan)
	if err != nil {
		return err
	}
	return each(plan.Guests, func(_ int, g Preserved) error { return p.resume(ctx, g, arrived) })
}

// arrived tells whether this boot of the host is the one that the plan was for, or
// still the one in which it was made.
func (p *Preserver) arrived(plan Plan) (bool, error) {
	boot, err := p.boot()
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(plan.Guests, func(g Preserved) bool { return g.Boot != boot }) {
		return true, nil
	}
	line, err := os.ReadFile(filepath.Join(p.proc(), "cmdline"))
	if err != nil {
		return false, err
	}
	return plan.Reset && slices.Contains(strings.Fields(string(line)), MarkPrefix+plan.ID), nil
}

func (p *Preserver) resume(ctx context.Context, g Preserved, arrived bool) error {
	alive, err := p.alive(g)
	if err != nil {
		return err
	}
	if g.Next != "" {
		if alive, err = p.settle(ctx, g, alive); err != nil {
			return err
		}
	}
	if !alive {
		// Another one may have been on its way, or have arrived.
		if pids, err := p.find(waiting(g.Args)); err != nil {
			return err
		} else if len(pids) > 0 {
			if err := p.answers(ctx, g, pids[0]); err != nil {
				return err
			}
		}
	}
	c, err := Dial(ctx, p.socket(g.ID))
	switch {
	case err == nil:
		defer c.Close()
		if err := p.same(c, g, alive); err != nil {
			return err
		}
		return p.proceed(ctx, c, g)
	case !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist):
		return err
	case alive:
		// It may be about to end; what does not is broken.
		short, cancel := context.WithTimeout(ctx, p.timeout())
		defer cancel()
		if err := p.gone(short, g); err != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
	}
	if !arrived && g.Way != WayFull {
		return fmt.Errorf("the host came up by another way than the reset that was planned, so that its RAM cannot be trusted; its state is kept in %s", p.statePath(g.ID))
	}
	return p.bring(ctx, g)
}

// same returns an error if what answers at a guest's socket is neither its old QEMU nor one that was started for it
// here: then it is another one, which knows nothing of the guest's state.
func (p *Preserver) same(c *Conn, g Preserved, alive bool) error {
	pid, err := c.peer()
	if err != nil || alive && pid == g.PID {
		return err
	}
	args, err := os.ReadFile(filepath.Join(p.proc(), strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return err
	}
	for _, ours := range [][]string{g.Args, replaceSocket(g.Args, p.socket(g.ID), g.Next)} {
		if string(args) == strings.Join(waiting(ours), "\x00")+"\x00" {
			return nil
		}
	}
	return fmt.Errorf("somebody else started a QEMU (process %d) with its socket, not from its state, which is kept in %s if it was complete", pid, p.statePath(g.ID))
}

// settle decides between two processes that a crash left: the new one has the guest if
// it has its socket. It tells whether the old one is alive then.
func (p *Preserver) settle(ctx context.Context, g Preserved, alive bool) (bool, error) {
	args := replaceSocket(g.Args, p.socket(g.ID), g.Next)
	if args == nil {
		return alive, errors.New("the plan does not fit its arguments")
	}
	pids, err := p.find(waiting(args))
	if err != nil {
		return alive, err
	}
	for _, pid := range pids {
		owner, err := listener(ctx, p.socket(g.ID))
		if err != nil {
			return alive, fmt.Errorf("find out which of its processes has it: %w", err)
		}
		_, err = os.Lstat(g.Next)
		switch {
		case owner == pid:
			// The old one was killed, and may take its time.
			if alive {
				if err := p.end(ctx, g.PID); err != nil {
					return alive, err
				}
			}
			return false, nil
		case !alive && err == nil:
			return false, os.Rename(g.Next, p.socket(g.ID))
		}
		if err := p.end(ctx, pid); err != nil {
			return alive, err
		}
	}
	if err := os.Remove(g.Next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return alive, err
	}
	return alive, nil
}

// listener is the process that listens at a socket, 0 if there is none.
func listener(ctx context.Context, path string) (int, error) {
	c, err := connect(ctx, path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return (&Conn{c: c}).peer()
}

// answers waits until a guest's new QEMU answers, or has ended.
func (p *Preserver) answers(ctx context.Context, g Preserved, pid int) error {
	for !p.ended(pid) {
		c, err := Dial(ctx, p.socket(g.ID))
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil {
			return fmt.Errorf("its new QEMU (process %d) does not answer: %w", pid, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// bring starts a guest's new QEMU from its saved state.
func (p *Preserver) bring(ctx context.Context, g Preserved) error {
	f, err := p.openState(g.ID)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("it is lost: its process is gone and its state was not complete: %w", err)
	}
	if err != nil {
		return fmt.Errorf("its state is kept and cannot be used: %w", err)
	}
	f.Close()
	for _, m := range g.Memory {
		now, err := memoryFile(m.Path)
		if err != nil || now != m {
			return fmt.Errorf("its RAM is not in %s any more (%+v now, %+v before, %v); its state is kept in %s", m.Path, now, m, err, p.statePath(g.ID))
		}
	}
	if err := os.MkdirAll(p.Sockets, 0o700); err != nil { // the reset took it away
		return err
	}
	c, _, err := p.start(ctx, g, p.socket(g.ID))
	if err != nil {
		return fmt.Errorf("%w; its state is kept in %s", err, p.statePath(g.ID))
	}
	defer c.Close()
	if err := p.station("launched"); err != nil {
		return err
	}
	return p.proceed(ctx, c, g)
}

// proceed brings a guest whose QEMU answers to where it was.
func (p *Preserver) proceed(ctx context.Context, c *Conn, g Preserved) error {
	// A crash may have left it in a hurry. One that runs must not be: where as many were as there are
	// processors, all of them busy, nobody would get to calm them.
	c.calm()
	var status struct {
		Status  string `json:"status"`
		Running bool   `json:"running"`
	}
	if err := c.Execute("query-status", nil, &status); err != nil || status.Running {
		return err
	}
	calm := c.hurry(g.Way)
	defer calm()
	if status.Status == "inmigrate" {
		err := c.prepare(g.Way)
		if err == nil {
			err = p.load(c, g)
		}
		if err != nil {
			// A state that does not load must not be half a guest.
			pid, e := c.peer()
			if e == nil {
				e = p.end(ctx, pid)
			}
			return errors.Join(fmt.Errorf("its state does not load and is kept in %s: %w", p.statePath(g.ID), err), e)
		}
		if err := p.station("loaded"); err != nil {
			return err
		}
	}
	if err := p.goOn(c, g); err != nil {
		return err
	}
	calm()
	return p.station("resumed")
}
