// Package host is the host agent's side of an execution: it takes commands, carries
// out their phases step by step, and reports. The intent of every effect is in the
// agent's journal before the effect, and its outcome after; after a crash a [Runner]
// looks at what happened before it does anything again.
//
// A command is accepted at most once, by its ID. A command whose fencing token is
// older than the newest one that the host has seen is refused; the newest is kept
// in the journal, across crashes and reboots.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/journal"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Services restarts the services of a host.
type Services interface {
	// Observe returns the unit as it is now.
	Observe(ctx context.Context, unit string) (driver.UnitState, error)
	// Restart restarts the unit, or starts it if it does not run, and returns once
	// that is over. It refuses a unit whose state has a Refusal. What follows an error
	// depends on its [driver.Class].
	Restart(ctx context.Context, unit string) error
	// Verify waits until the unit is active and healthy. It returns an error as soon
	// as that is hopeless.
	Verify(ctx context.Context, unit string) error
}

// Guests counts and probes the VMs of a host.
type Guests interface {
	Guests(ctx context.Context) ([]fleet.GuestReport, error)
}

// Diagnostics collects what is needed to find out what went wrong. bundle names
// the archive, and summary is for a person.
type Diagnostics interface {
	Diagnose(ctx context.Context, c fleet.Command) (bundle, summary string, err error)
}

// VMs takes the VMs of a host out of the way of a reset, and brings them back. What
// it has begun is written down where a crash and the reset leave it, so that Resume
// can finish it from anywhere. mark names the reset that it is for.
type VMs interface {
	// Check says which VMs cannot be preserved, and why. It changes nothing.
	Check(ctx context.Context) error
	// Move gives every VM a new hypervisor process, and says for how long each one that
	// has one was frozen, by its ID. With an error, some have none; all that can run do.
	Move(ctx context.Context, mark string) (frozen map[string]time.Duration, err error)
	// Save freezes all VMs and returns once they are safe from a reset. With an error,
	// they run on.
	Save(ctx context.Context, mark string) error
	// Saved tells whether VMs are out, or on their way.
	Saved() (bool, error)
	// Resume brings every VM back. With an error, it did not bring some back, whose
	// state it keeps. What is back already is left alone.
	Resume(ctx context.Context) error
	// Forget ends what was written down.
	Forget() error
}

// Kernel resets the operating system of the host, while the memory with the VMs stays.
type Kernel interface {
	// Load makes everything ready. The new kernel's command line has the mark.
	Load(ctx context.Context, mark string) error
	// Reset begins the reset. This process ends in its course.
	Reset(ctx context.Context) error
	// Underway tells whether a reset has begun from which there is no way back.
	Underway(ctx context.Context) (bool, error)
	// Unload takes back what Load did.
	Unload(ctx context.Context) error
}

// Reports takes reports on their way to the control plane. nil means that the report
// is safe there; otherwise it is sent again, with the same Seq.
type Reports interface {
	PublishReport(ctx context.Context, r fleet.Report) error
}

// Config is what a Runner works with.
type Config struct {
	Host fleet.HostID
	// Dir holds the journal; it is made if it does not exist.
	Dir      string
	Services Services
	// Guests may be nil where the host has no VMs that could be counted.
	Guests Guests
	// Diagnostics may be nil; a diagnosis is refused then.
	Diagnostics Diagnostics
	// VMs may be nil; a preserving reset is refused then.
	VMs VMs
	// Kernel is what a preserving reset resets. nil means that only the hypervisor's
	// processes are replaced.
	Kernel Kernel
	// Mover may be nil; a live migration is refused then. ParallelMoves is how many VMs
	// are moved at a time; 0 means one.
	Mover         Mover
	ParallelMoves int
	Reports       Reports
	// Units lists the services to restart, in order, as they are when a command comes; nil
	// means that there are none.
	Units func() []string
	// DryRun refuses every phase that would change the host.
	DryRun bool
	// Stable is for how long all services must stay healthy after the last restart;
	// 0 means 250 ms.
	Stable time.Duration
	// Boot identifies this boot of the host; "" reads the kernel's boot_id.
	Boot string
	// Clock defaults to time.Now, Log to slog.Default().
	Clock func() time.Time
	Log   *slog.Logger
	// Journal is for tests.
	Journal journal.Options
}

// Runner carries out commands, one at a time. It is safe for concurrent use.
type Runner struct {
	cfg  Config
	root *os.Root

	mu      sync.Mutex
	journal *journal.Journal
	newest  uint64 // fencing token
	jobs    []*job // oldest first
	// work and outbox are signalled when there is something to do or to send.
	work, outbox chan struct{}
}

// job is one command and all that is known of it.
type job struct {
	command fleet.Command
	boot    string
	// volatile is true for a refusal that is not in the journal.
	volatile bool
	reports  []fleet.Report
	// invocations has the unit's start that the intent of a restart saw.
	invocations map[string]string
	// stop, if not nil, ends what is under way, since a person cancelled it.
	stop func()
	// frozen is for how long a reset froze each VM, or a recycle did not see it run, as
	// far as this process knows.
	frozen map[string]time.Duration
	sent   int // the first reports that were acknowledged
	acked  bool
}

func (j *job) final() bool {
	return len(j.reports) > 0 && j.reports[len(j.reports)-1].Result != ""
}

// step returns the last report of a step.
func (j *job) step(name string) (fleet.Step, bool) {
	for i := len(j.reports) - 1; i >= 0; i-- {
		if s := j.reports[i].Step; s != nil && s.Name == name {
			return *s, true
		}
	}
	return fleet.Step{}, false
}

func (j *job) guestsBefore() []fleet.GuestReport {
	for _, r := range j.reports {
		if r.GuestsBefore != nil {
			return r.GuestsBefore
		}
	}
	return nil
}

// entryVersion is the newest version of the journal's records that this code reads.
const entryVersion = 2

// entry is one record of the journal. The kinds are "accepted" (Command, Boot),
// "report" (ID, Report; with a running step it is the intent of an effect),
// "acked" (ID: the control plane has all reports), "token" (Token is the newest) and,
// from version 2 on, "cancelled" (ID, By).
type entry struct {
	Version    int            `json:"v"`
	Kind       string         `json:"kind"`
	ID         string         `json:"id,omitempty"`
	Command    *fleet.Command `json:"command,omitempty"`
	Boot       string         `json:"boot,omitempty"`
	Report     *fleet.Report  `json:"report,omitempty"`
	Invocation string         `json:"invocation,omitempty"`
	Token      uint64         `json:"token,omitempty"`
	By         string         `json:"by,omitempty"`
}

// ErrConfig means that a Runner cannot work with what it was given.
var ErrConfig = errors.New("the host agent's executor is not configured properly")

// New opens the journal and reads what was under way. Nothing is done before
// [Runner.Run]. An error that wraps [journal.ErrCorrupt] or [journal.ErrNewer] means
// that the agent must not act on this host until a person has looked at it.
func New(cfg Config) (*Runner, error) {
	if err := cfg.Host.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if cfg.Services == nil || cfg.Reports == nil || cfg.Dir == "" {
		return nil, fmt.Errorf("%w: services, reports and a directory are needed", ErrConfig)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Stable == 0 {
		cfg.Stable = 250 * time.Millisecond
	}
	if cfg.Boot == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("find out which boot this is: %w", err)
		}
		cfg.Boot = strings.TrimSpace(string(id))
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the executor's directory: %w", err)
	}
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the executor's directory: %w", err)
	}
	r := &Runner{cfg: cfg, root: root, work: make(chan struct{}, 1), outbox: make(chan struct{}, 1)}
	if err := r.load(); err != nil {
		root.Close()
		return nil, err
	}
	return r, nil
}

// Close closes the journal. Call it after Run has returned.
func (r *Runner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.journal.Close(), r.root.Close())
}

// Token is the newest fencing token that the host has seen.
func (r *Runner) Token() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest
}

// Actions lists what the runner can do on this host.
func (r *Runner) Actions() []fleet.Action {
	can := []fleet.Action{fleet.ActionNone, fleet.ActionRecycle}
	if r.cfg.VMs != nil {
		can = append(can, fleet.ActionPreservingReset)
	}
	if r.cfg.Mover != nil {
		can = append(can, fleet.ActionLiveMigrate)
	}
	return append(can, fleet.ActionHandOver)
}

// Handle takes a command. It returns nil once the command needs no second delivery:
// it is safe in the journal, or refused, or was taken before (then all its reports
// are sent again). [Runner.Run] carries it out.
func (r *Runner) Handle(_ context.Context, c fleet.Command) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, j := range r.jobs {
		if j.command.ID == c.ID {
			return r.again(j, c)
		}
	}
	if why := malformed(c, r.cfg.Host); why != "" {
		r.cfg.Log.Warn("refused a malformed command", "command", c.ID, "why", why)
		r.refuse(c, why)
		return nil
	}
	if c.Token < r.newest {
		r.cfg.Log.Warn("refused a command with an old fencing token", "command", c.ID, "token", c.Token, "newest", r.newest)
		r.refuse(c, fmt.Sprintf("the fencing token %d is older than %d, the newest that this host has seen", c.Token, r.newest))
		return nil
	}
	if len(c.Units) == 0 && r.cfg.Units != nil {
		c.Units = r.cfg.Units()
	}
	if err := r.write(entry{Kind: "accepted", ID: c.ID, Command: &c, Boot: r.cfg.Boot}); err != nil {
		return fmt.Errorf("take command %s: %w", c.ID, err)
	}
	signal(r.work)
	return nil
}

// again answers a command that was taken before.
func (r *Runner) again(j *job, c fleet.Command) error {
	if c.Token > j.command.Token && c.Token >= r.newest && !j.volatile {
		if err := r.write(entry{Kind: "token", ID: j.command.ID, Token: c.Token}); err != nil {
			return fmt.Errorf("take the new token of command %s: %w", c.ID, err)
		}
	}
	if c.CancelledBy != "" && j.command.CancelledBy == "" && !j.final() && c.Token >= j.command.Token {
		if err := r.write(entry{Kind: "cancelled", ID: j.command.ID, By: c.CancelledBy}); err != nil {
			return fmt.Errorf("stop command %s: %w", c.ID, err)
		}
		if j.stop != nil {
			j.stop()
		}
	}
	j.sent = 0
	signal(r.outbox)
	signal(r.work)
	return nil
}

func malformed(c fleet.Command, host fleet.HostID) string {
	switch {
	case c.ID == "" || c.Execution == "":
		return "the command has no ID or no execution"
	case c.Host != host:
		return fmt.Sprintf("the command is for host %s, this is %s", c.Host, host)
	case c.Token == 0:
		return "the command has no fencing token"
	case c.NotAfter.IsZero() || c.Deadline.IsZero():
		return "the command does not say until when it may begin and end"
	case len(c.ID) > 512 || len(c.Units) > 256 || len(c.Targets) > 10000:
		return "the command is too large"
	}
	return ""
}

// maxVolatile bounds the refusals that wait to be sent.
const maxVolatile = 64

// refuse answers a command without a trace in the journal.
func (r *Runner) refuse(c fleet.Command, why string) {
	n := 0
	for _, j := range r.jobs {
		if j.volatile {
			n++
		}
	}
	if n >= maxVolatile {
		return
	}
	j := &job{command: c, volatile: true}
	j.reports = append(j.reports, r.report(j, fleet.Report{Result: fleet.ResultRefused, Detail: why}))
	r.jobs = append(r.jobs, j)
	signal(r.outbox)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
