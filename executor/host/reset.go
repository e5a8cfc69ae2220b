package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	stepPreservable = "check that every VM can be preserved"
	stepLoad        = "load the kernel"
	stepMove        = "give the VMs a new hypervisor"
	stepSave        = "freeze and save the VMs"
	stepReset       = "reset the kernel"
	stepResume      = "resume the VMs"
)

// mark names a reset, by its command.
func mark(command string) string {
	sum := sha256.Sum256([]byte(command))
	return hex.EncodeToString(sum[:12])
}

// errInterrupted means that a crash came in the way of a step that is not repeated.
var errInterrupted = errors.New("the agent was interrupted")

// reset is Phase 3. The kernel is reset once at most: what a crash interrupts before
// that ends with the VMs resumed, and after that goes on. Whatever happens, the VMs
// are brought back before the end.
func (r *Runner) reset(ctx, limited context.Context, j *job) error {
	if _, counted := j.step(stepCountBefore); !counted {
		if over, err := r.preservable(ctx, limited, j); over || err != nil {
			return err
		}
		if over, err := r.countBefore(ctx, limited, j); over || err != nil {
			return err
		}
	}
	way := r.resetKernel
	if r.cfg.Kernel == nil {
		way = r.moveVMs
	}
	failure := way(ctx, limited, j)
	var unwritten *writeError
	if errors.As(failure, &unwritten) {
		return unwritten.err
	}
	if ctx.Err() != nil {
		r.release(ctx, j)
		return ctx.Err()
	}
	// The time for the phase may be over by now. Bringing the VMs back has its own.
	back := r.resumeVMs(ctx, j)
	if errors.As(back, &unwritten) {
		return unwritten.err
	}
	if ctx.Err() != nil {
		r.release(ctx, j)
		return ctx.Err()
	}
	if s, saved := j.step(stepSave); saved && back == nil {
		if e, resumed := j.step(stepResume); resumed {
			j.frozen = map[string]time.Duration{}
			for _, g := range j.guestsBefore() {
				j.frozen[g.ID] = e.Ended.Sub(s.Started)
			}
		}
	}
	if back != nil {
		return r.conclude(ctx, j, failure, back.Error())
	}
	if err := r.cfg.VMs.Forget(); err != nil {
		r.cfg.Log.Warn("what was written down for the reset stays", "err", err)
	}
	return r.conclude(ctx, j, failure)
}

// release brings VMs back that are out when the agent is told to end, since nobody knows for how long that is, unless
// the host is about to end.
func (r *Runner) release(ctx context.Context, j *job) {
	if _, begun := j.step(stepReset); begun && j.boot == r.cfg.Boot {
		return
	}
	out, err := r.cfg.VMs.Saved()
	if err == nil && out {
		err = r.cfg.VMs.Resume(context.WithoutCancel(ctx))
	}
	if err != nil {
		r.cfg.Log.Error("VMs stay out while the agent is away: 'tardigrade agent resume' brings them back", "err", err)
	}
}

// preservable refuses the command if a VM cannot be preserved, or if VMs of an earlier
// reset are still out.
func (r *Runner) preservable(ctx, limited context.Context, j *job) (over bool, err error) {
	step := r.begin(j, stepPreservable)
	out, err := r.cfg.VMs.Saved()
	if err == nil && out {
		err = errors.New("VMs of an earlier reset are still out: bring them back with 'tardigrade agent resume'")
	}
	if err == nil {
		err = r.cfg.VMs.Check(limited)
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		return true, r.say(j, fleet.Report{Result: fleet.ResultRefused, Detail: "nothing was done: " + err.Error()}, "")
	}
	return false, r.say(j, r.end(step, "", nil), "")
}

// do does a step that may be done once: its intent is journalled before, its outcome
// after. A step that is over has its outcome again, one that was interrupted has
// errInterrupted.
func (r *Runner) do(ctx, limited context.Context, j *job, name string, f func() (detail string, err error)) error {
	if s, begun := j.step(name); begun {
		switch s.State {
		case fleet.StepSucceeded:
			return nil
		case fleet.StepRunning:
			return r.over(j, r.begin(j, name), "", fmt.Errorf("%w, and the step is not done again", errInterrupted))
		}
		return fmt.Errorf("%s: %s", name, s.Detail)
	}
	switch {
	case j.boot != r.cfg.Boot:
		return errors.New("the host restarted by itself in the middle of the reset")
	case r.superseded(j):
		return errors.New("a newer execution has begun on this host")
	case limited.Err() != nil:
		return fmt.Errorf("the time for the reset is over: %w", limited.Err())
	}
	if err := r.cancelled(j); err != nil && !j.bound() {
		return fmt.Errorf("%w before a VM was frozen", err)
	}
	step := r.begin(j, name)
	if step.Binding {
		if err := r.reserve(); err != nil {
			return err
		}
	}
	if err := r.say(j, fleet.Report{Step: &step}, ""); err != nil {
		return &writeError{err}
	}
	detail, err := f()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return r.over(j, step, detail, err)
}

// reserved is what the journal has room for from the begin of a binding step on, in bytes: all that is
// written until the VMs are back. Otherwise a disk that is full by then would keep them out.
const reserved = 64 << 10

func (r *Runner) reserve() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.journal.Reserve(reserved)
}

// bound tells whether a step has begun after which the job is not cancelled any more.
func (j *job) bound() bool {
	return slices.ContainsFunc(j.reports, func(rep fleet.Report) bool { return rep.Step != nil && rep.Step.Binding })
}

// over journals the outcome of a step and returns it.
func (r *Runner) over(j *job, step fleet.Step, detail string, err error) error {
	if e := r.say(j, r.end(step, detail, err), ""); e != nil {
		return &writeError{e}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step.Name, err)
	}
	return nil
}

// moveVMs replaces the hypervisor's processes under the VMs. What was interrupted is
// brought to rest and then done again, which a VM that has a new process already
// notices as a second short pause.
func (r *Runner) moveVMs(ctx, limited context.Context, j *job) error {
	if s, begun := j.step(stepMove); begun && s.State == fleet.StepRunning && j.boot == r.cfg.Boot {
		out, err := r.cfg.VMs.Saved()
		if err == nil && out {
			if err = r.cfg.VMs.Resume(ctx); err == nil {
				err = r.cfg.VMs.Forget()
			}
		}
		if err == nil && !r.superseded(j) {
			err = limited.Err()
		} else if err == nil {
			err = errors.New("a newer execution has begun on this host")
		}
		detail := ""
		if err == nil {
			detail, err = r.moveAll(limited, j)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.over(j, r.begin(j, stepMove), detail, err)
	}
	return r.do(ctx, limited, j, stepMove, func() (string, error) { return r.moveAll(limited, j) })
}

func (r *Runner) moveAll(ctx context.Context, j *job) (detail string, err error) {
	j.frozen, err = r.cfg.VMs.Move(ctx, mark(j.command.ID))
	times := slices.Sorted(maps.Values(j.frozen))
	if n := len(times); n > 0 {
		detail = fmt.Sprintf("%d VMs were frozen for %v at most, %v in the median", n, times[n-1].Round(time.Microsecond), times[n/2].Round(time.Microsecond))
	}
	return detail, err
}

// resetKernel brings the host to its next boot. It returns nil in that boot.
func (r *Runner) resetKernel(ctx, limited context.Context, j *job) error {
	m := mark(j.command.ID)
	step, begun := j.step(stepReset)
	var err error
	if begun && step.State == fleet.StepRunning {
		step = r.begin(j, stepReset)
		if j.boot != r.cfg.Boot {
			return r.over(j, step, fmt.Sprintf("this is boot %s, after %v", r.cfg.Boot, r.cfg.Clock().Sub(step.Started).Round(time.Millisecond)), nil)
		}
		if err = r.await(ctx); ctx.Err() != nil {
			return ctx.Err() // the host may be ending
		}
		err = r.over(j, step, "", err)
	} else {
		err = r.do(ctx, limited, j, stepLoad, func() (string, error) { return "", r.cfg.Kernel.Load(limited, m) })
		if err == nil {
			err = r.do(ctx, limited, j, stepSave, func() (string, error) { return "", r.cfg.VMs.Save(limited, m) })
		}
		if err == nil {
			err = r.do(ctx, limited, j, stepReset, func() (string, error) {
				if err := r.allOut(limited); err != nil {
					return "", err
				}
				if err := r.cfg.Kernel.Reset(limited); err != nil {
					return "", err
				}
				return "", r.await(ctx)
			})
		}
	}
	if err != nil && ctx.Err() == nil && j.boot == r.cfg.Boot {
		if e := r.cfg.Kernel.Unload(ctx); e != nil {
			r.cfg.Log.Warn("the kernel that was loaded for the reset stays loaded", "err", e)
		}
	}
	return err
}

// allOut returns an error if a VM would end with the kernel: one that was brought back since it was saved, by a person or
// by an agent that was told to end, or that was started since.
func (r *Runner) allOut(ctx context.Context) error {
	guests, err := r.guests(ctx)
	for _, g := range guests {
		if g.State != "shut-off" {
			err = errors.Join(err, fmt.Errorf("VM %s is %s, and would end with the kernel", g.ID, g.State))
		}
	}
	return err
}

// maxUnknown is for how many seconds nobody may be able to tell whether the host is
// about to end, before that is taken for a no: systemd ends what does not end within
// 90.
const maxUnknown = 180

// await waits for the end of this boot while a reset is under way, and says so if it
// is not.
func (r *Runner) await(ctx context.Context) error {
	quiet, unknown := 0, 0
	for quiet < 3 && unknown < maxUnknown {
		under, err := r.cfg.Kernel.Underway(ctx)
		switch {
		case err != nil:
			// Going on too soon could mean to start VMs on a host that is about to end.
			unknown++
			r.cfg.Log.Warn("cannot tell whether the host is being reset, looking again", "err", err)
		case under:
			quiet, unknown = 0, 0
		default:
			quiet++
		}
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
	return errors.New("the kernel was not reset")
}

// resumeVMs brings the VMs back if they are out.
func (r *Runner) resumeVMs(ctx context.Context, j *job) error {
	if s, begun := j.step(stepResume); begun && s.State != fleet.StepRunning {
		if s.State == fleet.StepSucceeded {
			return nil
		}
		return errors.New(s.Detail)
	}
	out, err := r.cfg.VMs.Saved()
	step := r.begin(j, stepResume)
	if _, begun := j.step(stepResume); !begun {
		if err == nil && !out {
			return nil
		}
		if e := r.say(j, fleet.Report{Step: &step}, ""); e != nil {
			return &writeError{e}
		}
	}
	if err == nil && out {
		err = r.cfg.VMs.Resume(ctx)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return r.over(j, step, "", err)
}
