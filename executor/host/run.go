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
	"github.com/tardigrade-recovery/tardigrade/executor/journal"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Run finishes what a crash interrupted, then carries out each command that
// [Runner.Handle] took, and sends the reports, until ctx ends. What is under way
// then is finished by the next Run, which looks first at what was done. Any other
// error means that the journal broke: end the process, and start it anew.
func (r *Runner) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	wg.Go(func() { r.deliver(ctx, stop) })
	defer wg.Wait()
	for {
		if err := r.finish(ctx); err != nil {
			if ctx.Err() != nil {
				return cause(ctx)
			}
			if errors.Is(err, journal.ErrBroken) {
				stop(err)
				return err
			}
			r.cfg.Log.Error("cannot go on with a command, trying again", "err", err)
			if !sleep(ctx, time.Second) {
				return cause(ctx)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return cause(ctx)
		case <-r.work:
		}
	}
}

// cause is nil where ctx was cancelled from outside.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); errors.Is(err, journal.ErrBroken) {
		return err
	}
	return nil
}

// Resume finishes the reset that this boot of the host came from, or that a crash
// interrupted, and returns; the reports are sent by the next [Runner.Run]. It needs
// nothing but the VMs, so that it can run early in the boot.
func (r *Runner) Resume(ctx context.Context) error { return r.finish(ctx, fleet.PhaseReset) }

// finish carries out all commands that are not final, of these phases only if any
// are given.
func (r *Runner) finish(ctx context.Context, phases ...fleet.Phase) error {
	for {
		r.mu.Lock()
		var next *job
		for _, j := range r.jobs {
			if !j.final() && (len(phases) == 0 || slices.Contains(phases, j.command.Phase)) {
				next = j
				break
			}
		}
		r.mu.Unlock()
		if next == nil {
			return nil
		}
		if err := r.perform(ctx, next); err != nil {
			return fmt.Errorf("host %s: execution %s: %s: %w", r.cfg.Host, next.command.Execution, next.command.Phase, err)
		}
	}
}

// deliver sends the reports in order, each until it is acknowledged.
func (r *Runner) deliver(ctx context.Context, stop context.CancelCauseFunc) {
	const first, last = 100 * time.Millisecond, 5 * time.Second
	wait := first
	for {
		rep, j := r.unsent()
		if j == nil {
			select {
			case <-ctx.Done():
				return
			case <-r.outbox:
			}
			continue
		}
		send, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := r.cfg.Reports.PublishReport(send, rep)
		cancel()
		if err != nil {
			if wait == first {
				r.cfg.Log.Warn("a report could not be sent, trying again", "command", rep.Command, "seq", rep.Seq, "err", err)
			}
			if !sleep(ctx, wait) {
				return
			}
			wait = min(2*wait, last)
			continue
		}
		wait = first
		if err := r.acknowledge(j, rep.Seq); errors.Is(err, journal.ErrBroken) {
			stop(err)
			return
		}
	}
}

func (r *Runner) unsent() (fleet.Report, *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, j := range r.jobs {
		if j.sent < len(j.reports) {
			return j.reports[j.sent], j
		}
	}
	return fleet.Report{}, nil
}

func (r *Runner) acknowledge(j *job, seq int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if j.sent != seq-1 {
		return nil // all are being sent again
	}
	j.sent = seq
	if j.sent < len(j.reports) || !j.final() {
		return nil
	}
	if j.volatile {
		for i := range r.jobs {
			if r.jobs[i] == j {
				r.jobs = append(r.jobs[:i:i], r.jobs[i+1:]...)
				break
			}
		}
		return nil
	}
	if j.acked {
		return nil
	}
	return r.write(entry{Kind: "acked", ID: j.command.ID})
}

// perform carries out a command, or goes on with it. nil means that its result is
// in the journal; an error, that it could not be brought there.
func (r *Runner) perform(ctx context.Context, j *job) error {
	r.mu.Lock()
	c := j.command
	r.mu.Unlock()
	if len(j.reports) == 0 {
		why := r.refusal(c)
		if why == "" && j.boot != r.cfg.Boot {
			why = "the host has restarted since the command came"
		}
		if why != "" {
			return r.say(j, fleet.Report{Result: fleet.ResultRefused, Detail: why}, "")
		}
		if err := r.cancelled(j); err != nil {
			return r.say(j, fleet.Report{Result: fleet.ResultCancelled, Detail: err.Error() + " before its first step"}, "")
		}
	}
	r.cfg.Log.Info("begin", "phase", c.Phase, "command", c.ID, "again", len(j.reports) > 0)
	limited, cancel := context.WithTimeout(ctx, c.Deadline.Sub(r.cfg.Clock()))
	defer cancel()
	if c.Phase == fleet.PhaseDiagnose {
		return r.diagnose(ctx, limited, j, c)
	}
	if c.Phase == fleet.PhaseReset {
		return r.reset(ctx, limited, j)
	}
	if c.Phase == fleet.PhaseMigrate {
		return r.migrate(ctx, limited, j)
	}
	return r.recycle(ctx, limited, j)
}

// refusal says why a command must not begin, "" if it may.
func (r *Runner) refusal(c fleet.Command) string {
	now := r.cfg.Clock()
	switch {
	case now.After(c.NotAfter):
		return fmt.Sprintf("the command was to begin by %s and it is %s now: its evidence is stale", c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case c.Token < r.Token():
		return "a newer execution has begun on this host"
	case c.Phase == fleet.PhaseDiagnose && r.cfg.Diagnostics == nil:
		return "this host collects no diagnostics"
	case c.Phase == fleet.PhaseDiagnose:
		return ""
	case r.cfg.DryRun:
		return "this host's agent is in dry-run mode: it changes nothing"
	case c.Phase == fleet.PhaseReset && r.cfg.VMs == nil:
		return "a preserving reset is not enabled on this host, or not possible: 'tardigrade agent probe' says why"
	case c.Phase == fleet.PhaseReset:
		return ""
	case c.Phase == fleet.PhaseMigrate && r.cfg.Mover == nil:
		return "live migration is not enabled on this host, or not possible: 'tardigrade agent probe' says why"
	case c.Phase == fleet.PhaseMigrate:
		return ""
	case c.Phase != fleet.PhaseRecycle:
		return fmt.Sprintf("this host's agent cannot carry out the phase %q", c.Phase)
	case len(c.Units) == 0:
		return "no services to restart are configured on this host"
	}
	return ""
}

func (r *Runner) diagnose(ctx, limited context.Context, j *job, c fleet.Command) error {
	const name = "collect diagnostics"
	step := r.begin(j, name)
	if _, begun := j.step(name); !begun {
		if err := r.say(j, fleet.Report{Step: &step}, ""); err != nil {
			return err
		}
	}
	var bundle, summary string
	err := limited.Err()
	if err == nil {
		bundle, summary, err = r.cfg.Diagnostics.Diagnose(limited, c)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s, _ := j.step(name); s.State == fleet.StepRunning {
		if err := r.say(j, r.end(step, summary, err), ""); err != nil {
			return err
		}
	}
	if err != nil {
		return r.say(j, fleet.Report{Result: fleet.ResultFailed, Detail: err.Error()}, "")
	}
	return r.say(j, fleet.Report{Result: fleet.ResultSucceeded, Detail: summary, Bundle: bundle}, "")
}

func (r *Runner) begin(j *job, name string) fleet.Step {
	s := fleet.Step{Phase: j.command.Phase, Name: name, Attempt: j.command.Attempt, State: fleet.StepRunning, Started: r.cfg.Clock().UTC()}
	if old, ok := j.step(name); ok {
		s.Started = old.Started
	}
	s.Binding = name == stepMove || name == stepSave
	return s
}

func (r *Runner) end(s fleet.Step, detail string, err error) fleet.Report {
	s.State, s.Ended, s.Detail = fleet.StepSucceeded, r.cfg.Clock().UTC(), detail
	if err != nil {
		s.State, s.Detail = fleet.StepFailed, err.Error()
	}
	return fleet.Report{Step: &s}
}

// recycle is Phase 1. Each step is in the journal; those that are done already are
// left out, so that it can begin anywhere.
func (r *Runner) recycle(ctx, limited context.Context, j *job) error {
	if _, counted := j.step(stepCountBefore); !counted {
		if why := r.preflight(limited, j.command.Units); why != "" {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return r.say(j, fleet.Report{Result: fleet.ResultRefused, Detail: why}, "")
		}
		if over, err := r.countBefore(ctx, limited, j); over || err != nil {
			return err
		}
	}
	watched := r.watch(ctx)
	failure := r.restartAll(ctx, limited, j)
	j.frozen = watched()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var unwritten *writeError
	if errors.As(failure, &unwritten) {
		return unwritten.err
	}
	return r.conclude(ctx, j, failure)
}

const (
	stepCountBefore = "count VMs before"
	stepCountAfter  = "count VMs after"
	stepStable      = "all services stay healthy"
)

func stepRestart(unit string) string { return "restart " + unit }

func count(guests []fleet.GuestReport) string {
	running, alive := 0, 0
	for _, g := range guests {
		if g.State == "running" {
			running++
		}
		if g.Alive {
			alive++
		}
	}
	return fmt.Sprintf("%d VMs: %d running, %d answer", len(guests), running, alive)
}

// countBefore counts the VMs. over means that the command is refused, since they
// cannot be counted.
func (r *Runner) countBefore(ctx, limited context.Context, j *job) (over bool, err error) {
	step := r.begin(j, stepCountBefore)
	guests, err := r.guests(limited)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		return true, r.say(j, fleet.Report{Result: fleet.ResultRefused, Detail: "the VMs cannot be counted, so nothing was done: " + err.Error()}, "")
	}
	rep := r.end(step, count(guests), nil)
	rep.GuestsBefore = guests
	return false, r.say(j, rep, "")
}

// guests counts the VMs; the slice is never nil.
func (r *Runner) guests(ctx context.Context) ([]fleet.GuestReport, error) {
	if r.cfg.Guests == nil {
		return []fleet.GuestReport{}, nil
	}
	g, err := r.cfg.Guests.Guests(ctx)
	if err != nil {
		return nil, err
	}
	return append([]fleet.GuestReport{}, g...), nil
}

// preflight says why the units must not be restarted, "" if they may.
func (r *Runner) preflight(ctx context.Context, units []string) string {
	var bad []string
	for _, u := range units {
		s, err := r.cfg.Services.Observe(ctx, u)
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s cannot be observed: %v", u, err))
		} else if s.Refusal != "" {
			bad = append(bad, fmt.Sprintf("%s must not be restarted: %s", u, s.Refusal))
		}
	}
	if len(bad) == 0 {
		return ""
	}
	return "nothing was restarted: " + strings.Join(bad, "; ")
}

// superseded tells whether the host has seen a newer fencing token than the job's.
func (r *Runner) superseded(j *job) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return j.command.Token < r.newest
}

// cancelError says that a person has cancelled the command.
type cancelError struct{ by string }

func (e *cancelError) Error() string { return "cancelled by " + e.by }

// cancelled is a [*cancelError] if a person has cancelled the job, and nil otherwise.
func (r *Runner) cancelled(j *job) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if by := j.command.CancelledBy; by != "" {
		return &cancelError{by}
	}
	return nil
}

// writeError is the failure of the journal, not of the phase.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// restartAll restarts the units in order. An error says what did not come back, or that
// a person cancelled the recycle, which leaves those alone that had not begun.
func (r *Runner) restartAll(ctx, limited context.Context, j *job) error {
	if j.boot != r.cfg.Boot {
		return errors.New("the host restarted in the middle of the recycle")
	}
	units := j.command.Units
	var stopped error
	for i, unit := range units {
		if s, begun := j.step(stepRestart(unit)); begun && s.State != fleet.StepRunning {
			if s.State == fleet.StepSucceeded {
				continue
			}
			return fmt.Errorf("%s: %s", unit, s.Detail)
		}
		if r.superseded(j) {
			return errors.New("a newer execution has begun on this host")
		}
		if _, begun := j.step(stepRestart(unit)); !begun {
			if stopped = r.cancelled(j); stopped != nil {
				stopped = fmt.Errorf("%w after %d of %d services", stopped, i, len(units))
				units = units[:i]
				break
			}
		}
		if err := r.restart(ctx, limited, j, unit); err != nil {
			return err
		}
	}
	if s, done := j.step(stepStable); done {
		if s.State == fleet.StepSucceeded {
			return stopped
		}
		return errors.New(s.Detail)
	}
	step := r.begin(j, stepStable)
	err := r.stable(limited, units)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e := r.say(j, r.end(step, fmt.Sprintf("for %v", r.cfg.Stable), err), ""); e != nil {
		return &writeError{e}
	}
	if err == nil {
		err = stopped
	}
	return err
}

// restart brings one unit from wherever it is to restarted and healthy.
func (r *Runner) restart(ctx, limited context.Context, j *job, unit string) error {
	name := stepRestart(unit)
	step := r.begin(j, name)
	_, interrupted := j.step(name)
	state, err := r.settled(limited, unit)
	if err == nil && !interrupted {
		if err := limited.Err(); err != nil {
			return overdue(err)
		}
		if e := r.say(j, fleet.Report{Step: &step}, state.Invocation); e != nil {
			return &writeError{e}
		}
	}
	if err == nil {
		err = r.tryRestart(limited, j, unit, state, interrupted)
		// A start that failed may still come right, where the service manager tries
		// again by itself: Verify has the last word.
		if verr := r.cfg.Services.Verify(limited, unit); verr != nil {
			err = errors.Join(err, verr)
		} else if limited.Err() == nil {
			err = nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if limited.Err() != nil {
		err = errors.Join(overdue(limited.Err()), err)
	}
	took := r.cfg.Clock().Sub(step.Started).Round(time.Millisecond)
	if e := r.say(j, r.end(step, fmt.Sprintf("active and healthy after %v", took), err), ""); e != nil {
		return &writeError{e}
	}
	if err != nil {
		return fmt.Errorf("%s did not come back: %w", unit, err)
	}
	return nil
}

// attempts is how often a restart is begun where it did not come to pass, and between
// the first two of them so much time goes by.
const (
	attempts = 4
	patience = 200 * time.Millisecond
)

// tryRestart restarts a unit unless that is done: after a crash, and after an error of
// which nobody knows what came of it, the unit is looked at first.
func (r *Runner) tryRestart(ctx context.Context, j *job, unit string, state driver.UnitState, look bool) (err error) {
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.mu.Lock()
		before := j.invocations[stepRestart(unit)]
		r.mu.Unlock()
		if look && state.Active && state.Invocation != before {
			return nil
		}
		err = r.cfg.Services.Restart(ctx, unit)
		if err == nil || driver.ClassOf(err) == driver.ClassPermanent || try == attempts {
			return err
		}
		r.cfg.Log.Warn("a restart did not come to pass, looking at the unit", "unit", unit, "class", driver.ClassOf(err), "err", err)
		if !sleep(ctx, patience<<(try-1)) {
			return err
		}
		look = true
		var unseen error
		if state, unseen = r.settled(ctx, unit); unseen != nil {
			return errors.Join(err, unseen)
		}
	}
}

func overdue(err error) error { return fmt.Errorf("the time for the recycle is over: %w", err) }

// settled observes a unit once no job of the service manager works on it.
func (r *Runner) settled(ctx context.Context, unit string) (driver.UnitState, error) {
	for {
		s, err := r.cfg.Services.Observe(ctx, unit)
		if err != nil || !s.Busy {
			return s, err
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return s, fmt.Errorf("%s is still %s: %w", unit, s.Detail, ctx.Err())
		}
	}
}

// stable verifies that no unit falls over again shortly after its start.
func (r *Runner) stable(ctx context.Context, units []string) error {
	before := make([]string, len(units))
	for i, u := range units {
		s, err := r.cfg.Services.Observe(ctx, u)
		if err != nil {
			return err
		}
		before[i] = s.Invocation
	}
	if !sleep(ctx, r.cfg.Stable) {
		return overdue(ctx.Err())
	}
	errs := make([]error, len(units))
	var wg sync.WaitGroup
	for i, u := range units {
		wg.Go(func() {
			s, err := r.cfg.Services.Observe(ctx, u)
			switch {
			case err != nil:
				errs[i] = err
			case !s.Active:
				errs[i] = fmt.Errorf("%s came up and fell over again: %s", u, s.Detail)
			case s.Invocation != before[i]:
				errs[i] = fmt.Errorf("%s came up, fell over and was started again", u)
			default:
				errs[i] = r.cfg.Services.Verify(ctx, u)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ended says which VMs ended with the host, which restarted by itself.
func ended(before []fleet.GuestReport) (lost []string) {
	for _, g := range before {
		if g.State != "shut-off" {
			lost = append(lost, fmt.Sprintf("VM %s was on the host when that restarted", g.ID))
		}
	}
	return lost
}

// conclude counts the VMs again and gives the result. more says what else is wrong with VMs.
func (r *Runner) conclude(ctx context.Context, j *job, failure error, more ...string) error {
	before := j.guestsBefore()
	step := r.begin(j, stepCountAfter)
	var after []fleet.GuestReport
	var lost []string
	var err error
	// A guest that is busy may miss one probe; only what stays wrong counts.
	for range 20 {
		probe, cancel := context.WithTimeout(ctx, 5*time.Second)
		after, err = r.guests(probe)
		cancel()
		if lost = driver.Lost(before, after); err == nil && len(lost) == 0 || !sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, reset := j.step(stepReset); j.boot != r.cfg.Boot && !reset {
		lost = ended(before)
	}
	lost = append(lost, more...)
	for i := range after {
		after[i].MaxGapSeconds = max(after[i].MaxGapSeconds, j.frozen[after[i].ID].Seconds())
	}
	if _, counted := j.step(stepCountAfter); !counted {
		rep := r.end(step, count(after), err)
		rep.GuestsAfter = after
		if e := r.say(j, rep, ""); e != nil {
			return e
		}
	}
	result := fleet.Report{Result: fleet.ResultSucceeded, GuestsBefore: before, GuestsAfter: after}
	switch {
	case err != nil:
		result.Result, result.Detail = fleet.ResultUnknown, "the VMs cannot be counted after the restart: "+err.Error()
	case len(lost) > 0:
		result.Result, result.Detail = fleet.ResultDegraded, strings.Join(lost, "; ")
	case errors.As(failure, new(*cancelError)):
		result.Result = fleet.ResultCancelled
	case failure != nil:
		result.Result = fleet.ResultFailed
	}
	if failure != nil {
		result.Detail = strings.TrimPrefix(result.Detail+"; "+failure.Error(), "; ")
	}
	return r.say(j, result, "")
}

// sleep waits for d and returns false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
