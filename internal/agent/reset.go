package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/kexec"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/systemd"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// preserved is the VMs of this host as a preserving reset takes them out of its way.
type preserved struct {
	// guests keeps everyone else from the QMP sockets meanwhile.
	guests    *serial
	preserver *qmp.Preserver
}

func newPreserved(c config.Agent, dir string, guests *serial) preserved {
	if guests == nil {
		guests = &serial{guests: qmp.New("")}
	}
	return preserved{guests, &qmp.Preserver{Sockets: c.Guests.QMPDir, Dir: resetDir(c, dir), Reset: c.Reset.Mode == config.ResetKexec, FullSave: c.Reset.FullSave, Timeout: c.Reset.VMTimeout.D()}}
}

// VMs is what a preserver takes out of the way of a reset, and the same VMs to be counted,
// for an executor without an agent around it.
func VMs(p *qmp.Preserver) (host.VMs, host.Guests) {
	guests := &serial{guests: qmp.New(p.Sockets)}
	return preserved{guests, p}, guests
}

// resetDir is where it is written down what becomes of the VMs.
func resetDir(c config.Agent, dir string) string {
	if c.Reset.Dir != "" {
		return c.Reset.Dir
	}
	return filepath.Join(dir, "reset")
}

// plan checks the VMs. A VM that cannot be preserved is an error.
func (p preserved) plan(ctx context.Context) (qmp.Plan, error) {
	p.guests.mu.Lock()
	defer p.guests.mu.Unlock()
	return p.preserver.Check(ctx)
}

func (p preserved) Check(ctx context.Context) error {
	_, err := p.plan(ctx)
	return err
}

func (p preserved) Move(ctx context.Context, mark string) (map[string]time.Duration, error) {
	p.guests.mu.Lock()
	defer p.guests.mu.Unlock()
	plan, err := p.preserver.Check(ctx)
	if err != nil {
		return nil, err
	}
	plan.ID = mark
	return p.preserver.Move(ctx, plan)
}

func (p preserved) Save(ctx context.Context, mark string) error {
	p.guests.mu.Lock()
	defer p.guests.mu.Unlock()
	plan, err := p.preserver.Check(ctx)
	if err != nil {
		return err
	}
	plan.ID = mark
	return p.preserver.Save(ctx, plan)
}

func (p preserved) Saved() (bool, error) {
	_, err := p.preserver.ReadPlan()
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return true, err
}

func (p preserved) Resume(ctx context.Context) error {
	p.guests.mu.Lock()
	defer p.guests.mu.Unlock()
	return p.preserver.Resume(ctx)
}

func (p preserved) Forget() error { return p.preserver.Forget() }

// newKernel is what the host is reset into.
func newKernel(c config.Agent) *kexec.Kernel {
	return &kexec.Kernel{Image: c.Reset.Kernel, Initrd: c.Reset.Initrd, Append: c.Reset.Append, MarkPrefix: qmp.MarkPrefix}
}

// missingForReset says why a preserving reset is not offered, nothing if it is.
func missingForReset(c config.Agent, dir string) []string {
	var out []string
	if !c.Reset.Enabled {
		out = append(out, "it is not enabled: set agent.reset.enabled to true")
	}
	if c.Guests.Libvirt != "" {
		out = append(out, "the VMs are libvirt's, which gives their QEMU open files that a new process would not have")
	} else if c.Guests.QMPDir == "" {
		out = append(out, "the VMs are not known: set agent.guests.qmp_dir")
	}
	if c.Reset.Mode == config.ResetKexec {
		out = append(out, newKernel(c).Missing()...)
		for key, path := range map[string]string{"agent.data": dir, "agent.reset.dir": resetDir(c, dir)} {
			if volatile(path) {
				out = append(out, fmt.Sprintf("%s (%s) lies in memory that a reset of the kernel takes away: choose a directory on a disk or on persistent memory", key, path))
			}
		}
		slices.Sort(out)
	}
	return out
}

// volatile tells whether a path, or what there is of it, lies on a file system that
// the kernel keeps in its memory.
func volatile(path string) bool {
	var fs unix.Statfs_t
	for {
		err := unix.Statfs(path, &fs)
		if err == nil {
			return fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
		}
		up := filepath.Dir(path)
		if up == path {
			return false
		}
		path = up
	}
}

// OfferReset puts a preserving reset into the runner's configuration, if it can be done.
// What an earlier run left out is brought back in any case.
func OfferReset(cfg *host.Config, c config.Agent, dir string, log *slog.Logger) {
	guests, _ := cfg.Guests.(*serial)
	vms := newPreserved(c, dir, guests)
	out, err := vms.Saved()
	missing := missingForReset(c, dir)
	if len(missing) > 0 && !out && err == nil {
		if c.Reset.Enabled {
			log.Warn("a preserving reset is enabled and cannot be done", "missing", missing)
		}
		return
	}
	cfg.VMs = vms
	if c.Reset.Mode == config.ResetKexec {
		cfg.Kernel = newKernel(c)
	}
}

// nobody takes no reports: they wait in the journal for the agent.
type nobody struct{}

func (nobody) PublishReport(context.Context, fleet.Report) error {
	return errors.New("reports are sent by the agent")
}

// Resumed is what came of [ResumeHost].
type Resumed struct {
	// Was is true if VMs were out.
	Was    bool                `json:"was"`
	Guests []fleet.GuestReport `json:"guests"`
	// Lost says which VMs are not back, and why.
	Lost string `json:"lost,omitempty"`
	// Kept is where what there is of VMs that were given up is.
	Kept string `json:"kept,omitempty"`
}

// ResumeHost brings back the VMs that a preserving reset took out, without a control
// plane; the agent reports it later. It is safe to call again. The VMs of giveUp are not
// brought back, and what there is of them is kept.
func ResumeHost(ctx context.Context, c config.Agent, id fleet.HostID, dir string, giveUp []string, log *slog.Logger) (Resumed, error) {
	guests := &serial{guests: qmp.New(c.Guests.QMPDir)}
	vms := newPreserved(c, dir, guests)
	out, err := vms.Saved()
	r := Resumed{Was: out}
	if err != nil {
		return r, err
	}
	if len(giveUp) > 0 {
		if !out {
			return r, fmt.Errorf("no VM is out: there is no plan in %s", vms.preserver.Dir)
		}
		if r.Kept, err = vms.preserver.GiveUp(ctx, giveUp); err != nil {
			return r, err
		}
	}
	services := systemd.New(systemd.Config{Log: log})
	defer services.Close()
	cfg := host.Config{Host: id, Dir: filepath.Join(dir, "journal"), Services: services, Guests: guests, VMs: vms, Reports: nobody{}, Log: log}
	if c.Reset.Mode == config.ResetKexec {
		cfg.Kernel = newKernel(c)
	}
	runner, failure := host.New(cfg)
	if failure == nil {
		failure = errors.Join(runner.Resume(ctx), runner.Close())
	}
	// Without a journal that says so, and after a failure, the VMs count all the same.
	if out, err := vms.Saved(); err == nil && out {
		if err := vms.Resume(ctx); err != nil {
			r.Lost = err.Error()
		} else if err := vms.Forget(); err != nil {
			failure = errors.Join(failure, err)
		}
	}
	r.Guests, err = guests.Guests(ctx)
	return r, errors.Join(failure, err)
}

// ResumeUnit fills in a systemd unit that runs [ResumeHost] early in the boot.
func ResumeUnit(template, program, configFile string, c config.Agent) (string, error) {
	dir, err := filepath.Abs(c.Data)
	if err != nil {
		return "", err
	}
	plan, err := filepath.Abs(filepath.Join(resetDir(c, dir), qmp.PlanName))
	if err != nil {
		return "", err
	}
	for _, path := range []string{dir, plan, program, configFile} {
		if strings.ContainsAny(path, " \t\n\"'\\%$") {
			return "", fmt.Errorf("the path %q cannot be written in a systemd unit: choose one without blanks and quotes", path)
		}
	}
	return strings.NewReplacer("@MOUNTS@", dir+" "+filepath.Dir(plan), "@PLAN@", plan, "@PROGRAM@", program, "@CONFIG@", configFile).Replace(template), nil
}
