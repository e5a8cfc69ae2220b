package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Mover moves VMs to other hosts. A move goes on by itself: what becomes of one that
// nobody waits for any more is seen by looking at both sides.
type Mover interface {
	// Move moves a VM and returns once that is decided, or ctx ends. An error does not
	// tell where the VM is.
	Move(ctx context.Context, vm string, to fleet.Target, progress func(driver.Progress)) (driver.Progress, error)
	// Locate looks for a VM here and on the target.
	Locate(ctx context.Context, vm string, to fleet.Target) (driver.Location, error)
	// Abort ends the move of a VM; the VM stays. That there is none is no error.
	Abort(ctx context.Context, vm string) error
}

const (
	// settleFor bounds the wait for a VM to be found exactly once after its move.
	settleFor = 20 * time.Second
	// locateEvery is how often it is looked for.
	locateEvery = 100 * time.Millisecond
)

func stepMigrate(vm fleet.VM, to fleet.Target) string {
	name := vm.ID
	if vm.Name != "" && vm.Name != vm.ID {
		name = fmt.Sprintf("%s (%s)", vm.Name, vm.ID)
	}
	return fmt.Sprintf("move VM %s to %s", name, to.Host)
}

// migrate moves every VM to the host that the command names for it. Each move is in
// the journal; one that a crash interrupted is looked for on both sides, and begun
// again only where the VM is found here alone.
func (r *Runner) migrate(ctx, limited context.Context, j *job) error {
	if _, counted := j.step(stepCountBefore); !counted {
		guests, err := r.guests(limited)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if why := immovable(guests, err, j.command.Targets, r.cfg.Host); why != "" {
			return r.say(j, fleet.Report{Result: fleet.ResultRefused, Detail: "nothing was moved: " + why}, "")
		}
		if over, err := r.countBefore(ctx, limited, j); over || err != nil {
			return err
		}
	}
	limited, stop := context.WithCancelCause(limited)
	defer stop(nil)
	if j.boot != r.cfg.Boot {
		stop(errRestarted)
	}
	r.mu.Lock()
	j.stop = func() { stop(&cancelError{j.command.CancelledBy}) }
	if j.command.CancelledBy != "" {
		j.stop()
	}
	r.mu.Unlock()
	type work struct {
		g     fleet.GuestReport
		to    fleet.Target
		step  fleet.Step
		begun bool
	}
	var todo []work
	for _, g := range j.guestsBefore() {
		to, leaves := targetOf(j.command.Targets, g)
		if !leaves {
			continue
		}
		name := stepMigrate(g.VM, to)
		s, begun := j.step(name)
		if begun && s.State != fleet.StepRunning {
			continue // where it is now is looked up in the end
		}
		todo = append(todo, work{g, to, r.begin(j, name), begun})
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, max(r.cfg.ParallelMoves, 1))
	failures := make([]error, len(todo))
	for i, w := range todo {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			failures[i] = r.moveOne(ctx, limited, j, w.g, w.to, w.step, w.begun)
		})
	}
	wg.Wait()
	for _, err := range failures {
		var unwritten *writeError
		if errors.As(err, &unwritten) {
			return unwritten.err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return r.located(ctx, j, errors.Join(failures...))
}

// immovable says why nothing may be moved, "" if all can be.
func immovable(guests []fleet.GuestReport, err error, targets []fleet.Target, host fleet.HostID) string {
	if err != nil {
		return "the VMs cannot be counted: " + err.Error()
	}
	var bad []string
	for _, g := range guests {
		if !leaves(g) {
			continue
		}
		to, named := targetOf(targets, g)
		switch {
		case !named:
			bad = append(bad, fmt.Sprintf("no host was chosen for VM %s (%s)", g.ID, g.Name))
		case to.Host == host || to.Host == "":
			bad = append(bad, fmt.Sprintf("VM %s (%s) was to be moved to the host on which it is", g.ID, g.Name))
		case g.Pinned != "":
			bad = append(bad, fmt.Sprintf("VM %s (%s) cannot leave the host: %s", g.ID, g.Name, g.Pinned))
		}
	}
	return strings.Join(bad, "; ")
}

// leaves tells whether a VM is moved: one that is shut off stays.
func leaves(g fleet.GuestReport) bool { return g.State == "running" || g.State == "paused" }

func targetOf(targets []fleet.Target, g fleet.GuestReport) (fleet.Target, bool) {
	i := slices.IndexFunc(targets, func(t fleet.Target) bool { return t.VM == g.ID })
	if i < 0 || !leaves(g) {
		return fleet.Target{}, false
	}
	return targets[i], true
}

var (
	errNewer     = errors.New("a newer execution has begun on this host")
	errRestarted = errors.New("the host restarted in the middle of the migration")
)

// moveOne moves a VM. begun means that it was interrupted in that.
func (r *Runner) moveOne(ctx, limited context.Context, j *job, g fleet.GuestReport, to fleet.Target, step fleet.Step, begun bool) error {
	limited, stop := context.WithCancelCause(limited)
	defer stop(nil)
	if !begun {
		if r.superseded(j) {
			stop(errNewer)
		}
		if limited.Err() != nil {
			return fmt.Errorf("%s: not begun: %w", step.Name, context.Cause(limited))
		}
		if err := r.say(j, fleet.Report{Step: &step}, ""); err != nil {
			return &writeError{err}
		}
	}
	detail, err := r.carry(ctx, limited, stop, j, g, to, begun)
	if ctx.Err() != nil {
		return nil // it goes on, and the next run looks what became of it
	}
	if e := r.say(j, r.end(step, detail, err), ""); e != nil {
		return &writeError{e}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step.Name, err)
	}
	return nil
}

// carry brings a VM to its target from wherever it is, or leaves it in one place.
func (r *Runner) carry(ctx, limited context.Context, stop context.CancelCauseFunc, j *job, g fleet.GuestReport, to fleet.Target, begun bool) (detail string, err error) {
	if begun {
		at := r.settle(ctx, limited, j, g, to)
		if at.place == moved {
			return "found on the target after an interruption", nil
		}
		if at.place != stayed {
			return "", errors.New(at.String())
		}
		if r.superseded(j) {
			stop(errNewer)
		}
		if limited.Err() != nil {
			return "", fmt.Errorf("interrupted, and not begun again: %w", context.Cause(limited))
		}
	}
	began := r.cfg.Clock()
	told, err := r.cfg.Mover.Move(limited, g.ID, to, func(driver.Progress) {
		if r.superseded(j) {
			stop(errNewer)
		}
	})
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	at := r.settle(ctx, limited, j, g, to)
	if at.place != moved {
		return "", errors.Join(err, errors.New(at.String()))
	}
	detail = fmt.Sprintf("moved in %v", r.cfg.Clock().Sub(began).Round(time.Millisecond))
	if told.DowntimeSeconds > 0 {
		detail += fmt.Sprintf(", stood still for %.0f ms", told.DowntimeSeconds*1000)
	}
	if told.TotalBytes > 0 {
		detail += fmt.Sprintf(", %d MiB of memory", told.TotalBytes>>20)
	}
	return detail, nil
}

// place is where a VM is.
type place string

const (
	moved   place = "moved"   // on the target alone
	stayed  place = "stayed"  // here alone
	lost    place = "lost"    // nowhere
	twice   place = "twice"   // it runs in both places
	unclear place = "unclear" // nobody can tell
)

// sight is a VM as it was found.
type sight struct {
	place place
	at    driver.Location
	err   error
}

func (s sight) String() string {
	if s.err != nil {
		return "where the VM is cannot be found out: " + s.err.Error()
	}
	state := func(at string) string {
		if at == "" {
			return "not there"
		}
		return at
	}
	text := fmt.Sprintf("here it is %s, on the target %s", state(s.at.Here), state(s.at.There))
	if s.at.Trouble != "" {
		text += " (" + s.at.Trouble + ")"
	}
	return text
}

// judge says where a VM is that was in the state before.
func judge(before string, at driver.Location, err error) place {
	is := func(state string) bool { return state == "running" || state == before }
	switch {
	case err != nil || at.Moving:
		return unclear
	case at.Here == "running" && at.There == "running":
		return twice
	case is(at.Here) && (at.There == "" || at.There == "shut-off" || at.There == driver.Unknown):
		// libvirt lets it run on here only once it is sure that it does not run there.
		return stayed
	case is(at.There) && (at.Here == "" || at.Here == "shut-off"):
		return moved
	case (at.Here == "" || at.Here == "shut-off") && (at.There == "" || at.There == "shut-off"):
		return lost
	}
	return unclear
}

// settle waits until a VM is in one place. The move of one that is still on its way
// when its time is over, or a person has cancelled it, is stopped where that is possible.
func (r *Runner) settle(ctx, limited context.Context, j *job, g fleet.GuestReport, to fleet.Target) sight {
	var s sight
	until := r.cfg.Clock().Add(settleFor)
	for {
		look, cancel := context.WithTimeout(ctx, settleFor)
		at, err := r.cfg.Mover.Locate(look, g.ID, to)
		s = sight{judge(g.State, at, err), at, err}
		if at.Moving && limited.Err() != nil {
			if e := r.cfg.Mover.Abort(look, g.ID); e != nil {
				r.cfg.Log.Warn("a move could not be stopped", "vm", g.ID, "err", e)
			}
		}
		cancel()
		late := limited.Err() != nil
		if at.Committed && r.cfg.Clock().Before(j.command.Deadline) {
			late = false // it can only go on
		}
		if at.Moving && !late {
			until = r.cfg.Clock().Add(settleFor) // it has its time
		}
		if s.place == moved || s.place == stayed || r.cfg.Clock().After(until) || !sleep(ctx, locateEvery) {
			return s
		}
	}
}

// located looks on both sides where the VMs are and gives the result.
func (r *Runner) located(ctx context.Context, j *job, failure error) error {
	before := j.guestsBefore()
	step := r.begin(j, stepCountAfter)
	over, cancel := context.WithCancel(ctx) // no move has any more time
	cancel()
	sights := make([]sight, len(before))
	var wg sync.WaitGroup
	slots := make(chan struct{}, max(r.cfg.ParallelMoves, 1))
	for i, g := range before {
		to, leaves := targetOf(j.command.Targets, g)
		if !leaves {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			sights[i] = r.settle(ctx, over, j, g, to)
		})
	}
	wg.Wait()
	probe, cancel := context.WithTimeout(ctx, 5*time.Second)
	after, err := r.guests(probe)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	counts := map[place]int{}
	bad := map[place][]string{}
	for i, g := range before {
		to, leaves := targetOf(j.command.Targets, g)
		if !leaves {
			continue
		}
		s := sights[i]
		if s.place == stayed && j.boot != r.cfg.Boot {
			s.place, s.at.Trouble = lost, "the host restarted, and the VM with it"
		}
		counts[s.place]++
		if s.place == moved {
			there := fleet.GuestReport{VM: g.VM, Alive: s.at.There == "running", Host: to.Host}
			there.State = s.at.There
			after = append(slices.DeleteFunc(after, func(a fleet.GuestReport) bool { return a.ID == g.ID }), there)
		} else if s.place != stayed {
			bad[s.place] = append(bad[s.place], fmt.Sprintf("VM %s (%s), which was to be moved to %s: %s", g.ID, g.Name, to.Host, s))
		}
	}
	if after == nil {
		after = []fleet.GuestReport{}
	}
	if _, counted := j.step(stepCountAfter); !counted {
		rep := r.end(step, fmt.Sprintf("%d VMs moved, %d stayed, %d lost, %d twice, %d unclear", counts[moved], counts[stayed], counts[lost], counts[twice], counts[unclear]), err)
		rep.GuestsAfter = after
		if e := r.say(j, rep, ""); e != nil {
			return e
		}
	}
	result := fleet.Report{Result: fleet.ResultSucceeded, GuestsBefore: before, GuestsAfter: after}
	switch {
	case counts[twice] > 0:
		result.Result, result.Detail = fleet.ResultDegraded, "a VM runs twice: "+strings.Join(bad[twice], "; ")
	case counts[lost] > 0:
		result.Result, result.Detail = fleet.ResultDegraded, "a VM is missing: "+strings.Join(bad[lost], "; ")
	case counts[unclear] > 0:
		result.Result, result.Detail = fleet.ResultUnknown, strings.Join(bad[unclear], "; ")
	case counts[stayed] > 0 && r.cancelled(j) != nil:
		result.Result, result.Detail = fleet.ResultCancelled, fmt.Sprintf("%d VMs moved, %d stayed", counts[moved], counts[stayed])
	case counts[stayed] > 0:
		result.Result, result.Detail = fleet.ResultFailed, fmt.Sprintf("%d of %d VMs stayed, each runs exactly once", counts[stayed], counts[stayed]+counts[moved])
	default:
		result.Detail = fmt.Sprintf("%d VMs moved", counts[moved])
	}
	if failure != nil {
		result.Detail = strings.TrimPrefix(result.Detail+"; "+failure.Error(), "; ")
	}
	return r.say(j, result, "")
}
