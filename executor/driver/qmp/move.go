package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// batch is for how many guests the new processes are started at once.
const batch = 16

// Move gives each guest of a plan a new QEMU process on this host, one guest for two
// CPUs at a time, so that each is frozen only for its own way. Where it can, it starts
// the new process before it stops the guest. A guest that cannot be moved goes on in
// its old process, and the error says why; one that can go on in neither is kept
// as it is, for [Preserver.Resume].
//
// A guest's way, once begun, is finished even if ctx ends. It returns for how long each
// guest that has a new process did not run, by its ID.
func (p *Preserver) Move(ctx context.Context, plan Plan) (map[string]time.Duration, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.writePlan(plan); err != nil {
		return nil, err
	}
	if err := p.station("planned"); err != nil {
		return nil, err
	}
	// The end of an old process with much RAM takes a processor, too.
	slots := make(chan struct{}, max(1, runtime.NumCPU()/2))
	moved := map[string]time.Duration{}
	var errs []error
	for guests := range slices.Chunk(plan.Guests, batch) {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		// The new processes come first, since their start would slow down those that
		// are on their way.
		started, refused := make([]*Conn, len(guests)), make([]error, len(guests))
		err := each(guests, func(i int, g Preserved) error {
			if g.Next == "" {
				return nil
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			started[i], refused[i] = p.stage(context.WithoutCancel(ctx), g)
			return p.station("launched")
		})
		frozen := make([]time.Duration, len(guests))
		if err == nil {
			calm := hurrySelf()
			err = each(guests, func(i int, g Preserved) error {
				slots <- struct{}{}
				defer func() { <-slots }()
				if refused[i] != nil {
					return fmt.Errorf("it goes on in its old QEMU: %w", refused[i])
				}
				var err error
				frozen[i], err = p.move(context.WithoutCancel(ctx), g, started[i])
				return err
			})
			calm()
		}
		for i, c := range started {
			if c != nil {
				c.Close()
			}
			if frozen[i] > 0 {
				moved[guests[i].ID] = frozen[i]
			}
		}
		errs = append(errs, err)
	}
	return moved, errors.Join(errs...)
}

// conflict is what QEMU says when something belongs to another process.
var conflict = regexp.MustCompile(`(?i)lock|busy|in use`)

// stage starts a guest's new process beside the old one. It returns neither a
// connection nor an error if the two are in each other's way: the new one must be
// started after the end of the old one then. With an error, no new one can be started.
func (p *Preserver) stage(ctx context.Context, g Preserved) (*Conn, error) {
	c, pid, err := p.start(ctx, g, g.Next)
	if err == nil {
		if err = c.prepare(g.Way); err == nil {
			return c, nil
		}
		c.Close()
	}
	if pid > 0 {
		err = errors.Join(err, p.end(ctx, pid))
	}
	_ = os.Remove(g.Next)
	if conflict.MatchString(err.Error()) {
		return nil, nil
	}
	return nil, err
}

// start starts a QEMU that waits for the guest, with its QMP socket at a path. The
// process is there where pid is not 0, even with an error. The connection lasts
// longer than the way of the guest may take.
func (p *Preserver) start(ctx context.Context, g Preserved, path string) (c *Conn, pid int, err error) {
	if path != p.socket(g.ID) {
		g.Args = replaceSocket(g.Args, p.socket(g.ID), path)
	}
	g.Args = waiting(g.Args)
	log := filepath.Join(p.Dir, g.ID+".log")
	if pid, err = launch(g, log); err != nil {
		return nil, 0, fmt.Errorf("start its QEMU: %w", err)
	}
	limit := time.Now().Add(p.timeout())
	for {
		long, cancel := context.WithTimeout(ctx, 2*p.timeout())
		if c, err = Dial(long, path); err == nil {
			c.cancel = cancel
			return c, pid, nil
		}
		cancel()
		if p.ended(pid) {
			said, _ := os.ReadFile(log)
			return nil, 0, fmt.Errorf("its new QEMU ended at once: %s", strings.TrimSpace(string(said[:min(len(said), 1000)])))
		}
		if time.Now().After(limit) {
			return nil, pid, fmt.Errorf("its new QEMU does not answer: %w", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// waiting are the arguments of a QEMU that waits for its guest.
func waiting(args []string) []string { return append(slices.Clone(args), "-incoming", "defer") }

// move takes one guest from its old process to a new one, which is started if next is
// nil. It returns how long the guest was frozen, 0 if it is not in a new process.
func (p *Preserver) move(ctx context.Context, g Preserved, next *Conn) (time.Duration, error) {
	long, cancel := context.WithTimeout(ctx, 3*p.timeout())
	defer cancel()
	abandon := func() error {
		if next == nil {
			return nil
		}
		pid, err := next.peer()
		if err == nil {
			err = p.end(long, pid)
		}
		_ = os.Remove(g.Next)
		return err
	}
	old, err := Dial(long, p.socket(g.ID))
	if err == nil {
		defer old.Close()
		err = old.unchanged(g)
	}
	if err == nil {
		err = old.prepare(g.Way)
	}
	if err != nil {
		return 0, errors.Join(err, abandon())
	}
	rest := old.hurry(g.Way)
	defer rest()
	calm := func() {}
	if next != nil {
		calm = next.hurry(g.Way)
		defer calm()
	}
	begin := time.Now()
	err = p.save(old, g, false)
	if err == nil && next != nil {
		if err = p.load(next, g); err == nil {
			err = p.station("loaded")
		}
	}
	if errors.As(err, new(stranded)) {
		return 0, err
	}
	if err != nil {
		// The new process must have let go of the disks before the old one goes on.
		return 0, errors.Join(fmt.Errorf("it goes on in its old QEMU: %w", err), abandon(), p.goOn(old, g))
	}
	if next == nil {
		if err := p.leave(long, old, g); err != nil {
			return 0, err
		}
		if err := p.bring(long, g); err != nil {
			return 0, err
		}
		return time.Since(begin), nil
	}
	// From here on the new process has the guest. The old one has let go of everything
	// and need not end in an orderly way, which takes longer the more RAM it has mapped.
	rest() // there is no hurry with the end of so much mapped RAM
	if err := p.handOver(g); err != nil {
		return 0, err
	}
	if err := p.station("ended"); err != nil {
		return 0, err
	}
	if err := p.goOn(next, g); err != nil {
		return 0, err
	}
	frozen := time.Since(begin)
	calm()
	if err := p.station("resumed"); err != nil {
		return frozen, err
	}
	return frozen, p.gone(long, g)
}

// handOver ends a guest's old process and gives its socket to the new one, which is
// the point from which the new one has the guest.
func (p *Preserver) handOver(g Preserved) error {
	if alive, err := p.alive(g); err != nil {
		return err
	} else if alive {
		if err := syscall.Kill(g.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return os.Rename(g.Next, p.socket(g.ID))
}

// leave ends a guest's old process.
func (p *Preserver) leave(ctx context.Context, old *Conn, g Preserved) error {
	if err := old.Execute("quit", nil, nil); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if err := p.gone(ctx, g); err != nil {
		return err
	}
	return p.station("ended")
}

// goOn lets a stopped guest run. Its saved state is over with that.
func (p *Preserver) goOn(c *Conn, g Preserved) error {
	if err := p.forgetState(g.ID); err != nil {
		return err
	}
	if !g.Running {
		return nil
	}
	c.calmCPUs()
	if err := p.station("going"); err != nil {
		return err
	}
	for limit := time.Now().Add(p.timeout() / 3); ; time.Sleep(10 * time.Millisecond) {
		// A QEMU that is not through with its state yet refuses.
		if err := c.Execute("cont", nil, nil); err == nil || time.Now().After(limit) {
			return err
		}
	}
}

// Save stops all guests of a plan at once, writes their device states and ends their
// processes. It first finds out whether new ones can be started. On an error all guests
// that still have their process run on. Once begun, it is finished even if ctx ends.
func (p *Preserver) Save(ctx context.Context, plan Plan) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.writePlan(plan); err != nil {
		return err
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*p.timeout())
	defer cancel()
	// Nothing stops before all can be stopped, and started again.
	if err := p.rehearse(ctx, plan); errors.As(err, new(stranded)) {
		return err
	} else if err != nil {
		return errors.Join(err, p.Forget())
	}
	err = each(plan.Guests, func(i int, g Preserved) error {
		c, err := Dial(ctx, p.socket(g.ID))
		if err != nil {
			return err
		}
		if err := c.unchanged(g); err != nil {
			c.Close()
			return err
		}
		conns[i] = c
		return c.prepare(g.Way)
	})
	if err == nil {
		err = each(plan.Guests, func(i int, g Preserved) error { return p.save(conns[i], g, plan.Reset) })
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
			if conns[i] == nil {
				return nil
			}
			return p.goOn(conns[i], g)
		})
		if back == nil {
			back = p.Forget()
		}
		return errors.Join(err, back)
	}
	err = each(plan.Guests, func(i int, g Preserved) error { return p.leave(ctx, conns[i], g) })
	if plan.Reset && err == nil {
		err = p.strangers(plan) // that were started meanwhile
	}
	return err
}

// unchanged returns an error if a guest was paused, or let go on, since the plan was made: it would not be
// afterwards as its owner wants it.
func (c *Conn) unchanged(g Preserved) error {
	var status struct{ Running bool }
	if err := c.Execute("query-status", nil, &status); err != nil {
		return err
	}
	if status.Running != g.Running {
		return fmt.Errorf("it ran: %v, and runs: %v, since somebody paused it or let it go on", g.Running, status.Running)
	}
	return nil
}

// rehearse starts the QEMU of each guest that can be started beside the old one, and
// ends it again.
func (p *Preserver) rehearse(ctx context.Context, plan Plan) error {
	slots := make(chan struct{}, max(1, runtime.NumCPU()))
	return each(plan.Guests, func(_ int, g Preserved) error {
		if g.Next == "" {
			return nil
		}
		slots <- struct{}{}
		defer func() { <-slots }()
		c, err := p.stage(ctx, g)
		if err != nil {
			return fmt.Errorf("no new QEMU can be started for it: %w", err)
		}
		if err := p.station("launched"); err != nil || c == nil {
			return err
		}
		defer c.Close()
		pid, err := c.peer()
		if err == nil {
			err = p.end(ctx, pid)
		}
		return errors.Join(err, os.Remove(g.Next))
	})
}

// prepare chooses the way, and lifts QEMU's limit on bandwidth, which applies even to
// a stopped guest.
func (c *Conn) prepare(way Way) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	if way == WayShared || way == WayReboot {
		if err := c.Execute("migrate-set-capabilities", map[string]any{"capabilities": []capability{{"x-ignore-shared", true}}}, nil); err != nil {
			return err
		}
	}
	parameters := map[string]any{"max-bandwidth": int64(64 << 30)}
	if way == WayReboot {
		parameters["mode"] = "cpr-reboot"
	}
	return c.Execute("migrate-set-parameters", parameters, nil)
}

// save freezes a guest and writes its state, complete or not at all. With durable it
// is on disk when save returns.
func (p *Preserver) save(c *Conn, g Preserved, durable bool) error {
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
	if err := c.migrated(time.Now().Add(p.timeout())); err != nil {
		return err
	}
	if err := seal(f); err != nil {
		return err
	}
	if durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := p.station("written"); err != nil {
		return err
	}
	if err := os.Rename(part, p.statePath(g.ID)); err != nil {
		return err
	}
	if durable {
		return syncDir(p.Dir)
	}
	return nil
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
func (c *Conn) migrated(limit time.Time) error {
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
			return fmt.Errorf("QEMU could not write or read its state (%s): %s", info.Status, info.Error)
		}
		if time.Now().After(limit) {
			_ = c.Execute("migrate_cancel", nil, nil)
			return errors.New("QEMU does not come to an end with its state")
		}
		time.Sleep(time.Millisecond)
	}
}

// load lets a QEMU that waits read a guest's state.
func (p *Preserver) load(c *Conn, g Preserved) error {
	f, err := p.openState(g.ID)
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
	limit := time.Now().Add(p.timeout())
	for {
		var status struct{ Status string }
		if err := c.Execute("query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "inmigrate" {
			return c.migrated(limit)
		}
		var info struct {
			Status string `json:"status"`
		}
		if err := c.Execute("query-migrate", nil, &info); err == nil && info.Status == "failed" {
			return errors.New("QEMU refused it")
		}
		if time.Now().After(limit) {
			return errors.New("QEMU does not come to an end with it")
		}
		time.Sleep(time.Millisecond)
	}
}
