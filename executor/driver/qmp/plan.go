package qmp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Way is how a guest's state is taken out of its QEMU.
type Way string

// The ways, the best one first.
const (
	WayReboot Way = "cpr-reboot"      // QEMU's own mode for it, from 8.2 on
	WayShared Way = "x-ignore-shared" // the same by a capability of older ones
	WayFull   Way = "full"            // the RAM is written, too
)

// MemoryFile holds RAM of a guest.
type MemoryFile struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
	Bytes int64  `json:"bytes"`
}

func memoryFile(path string) (MemoryFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return MemoryFile{}, err
	}
	m := MemoryFile{Path: path, Bytes: info.Size()}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		m.Inode = s.Ino
	}
	return m, nil
}

// Preserved is a guest in the plan.
type Preserved struct {
	fleet.VM
	// Args, Cwd and Env are how its QEMU was started.
	Args []string `json:"args"`
	Cwd  string   `json:"cwd"`
	Env  []string `json:"env"`
	// Cgroup is where the old process is in the unified hierarchy; "" where there is
	// none, and "/" at its root.
	Cgroup string `json:"cgroup,omitempty"`
	// UID, GID and Groups are the rights of the old process, and OOMScore is how readily
	// the kernel ends it (oom_score_adj).
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
	OOMScore int      `json:"oom_score"`
	// PID is the old process, which must be gone before a new one runs the guest.
	PID int `json:"pid"`
	// Started is the old process's start time in clock ticks since boot, so that
	// another process with its number is not mistaken for it.
	Started string `json:"started"`
	// Boot is the host's boot in which PID means something.
	Boot string `json:"boot"`
	// Running is false for a guest that was paused, and stays so.
	Running bool `json:"running"`
	Way     Way  `json:"way"`
	// Memory is where its RAM stays, empty if Way is full.
	Memory []MemoryFile `json:"memory"`
	// Next is the socket of the new QEMU while the old one is still there; "" if the
	// new one is started later.
	Next string `json:"next,omitempty"`
}

// Plan is the way back. Version 1 is the only one.
type Plan struct {
	Version int `json:"version"`
	// ID is on the kernel's command line after the reset that this plan is for.
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Reset is true if the host's kernel was to be reset.
	Reset  bool        `json:"reset"`
	Guests []Preserved `json:"guests"`
}

const (
	planVersion = 1
	// maxPlan bounds the file of a plan, in bytes.
	maxPlan = 64 << 20
)

// PlanName is the file of the plan.
const PlanName = "plan.json"

// MarkPrefix, followed by the ID of a plan, is on the kernel's command line after the
// reset that the plan is for.
const MarkPrefix = "tardigrade.reset="

func (p *Preserver) statePath(id string) string { return filepath.Join(p.Dir, id+".state") }
func (p *Preserver) planPath() string           { return filepath.Join(p.Dir, PlanName) }

// writePlan makes the plan durable.
func (p *Preserver) writePlan(plan Plan) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(p.planPath()); err == nil {
		return fmt.Errorf("an earlier plan is still in %s: bring its VMs back first, with 'tardigrade agent resume'", p.planPath())
	}
	data, err := encodePlan(plan)
	if err == nil {
		err = writeFile(p.planPath(), data)
	}
	if err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return nil
}

// encodePlan is a line of JSON and its checksum.
func encodePlan(plan Plan) ([]byte, error) {
	data, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	return append(append(data, '\n'), hex.EncodeToString(sum[:])...), nil
}

var errDamaged = errors.New("it is damaged")

func decodePlan(data []byte) (Plan, error) {
	body, sum, _ := bytes.Cut(data, []byte("\n"))
	want := sha256.Sum256(body)
	if string(sum) != hex.EncodeToString(want[:]) {
		return Plan{}, errDamaged
	}
	var plan Plan
	if err := json.Unmarshal(body, &plan); err != nil {
		return Plan{}, err
	}
	if plan.Version != planVersion {
		return Plan{}, fmt.Errorf("it has version %d, and this release reads %d", plan.Version, planVersion)
	}
	seen := map[string]bool{}
	for _, g := range plan.Guests {
		if g.ID == "" || filepath.Base(g.ID) != g.ID || len(g.Args) == 0 || seen[g.ID] {
			return Plan{}, fmt.Errorf("the VM %q in it makes no sense", g.ID)
		}
		seen[g.ID] = true
	}
	return plan, nil
}

// ReadPlan returns the plan that was left behind, with os.ErrNotExist if there is
// none.
func (p *Preserver) ReadPlan() (Plan, error) {
	f, err := os.Open(p.planPath())
	if err != nil {
		return Plan{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPlan))
	if err != nil {
		return Plan{}, err
	}
	plan, err := decodePlan(data)
	if err != nil {
		return Plan{}, fmt.Errorf("the plan %s cannot be followed, and the states of the VMs are kept beside it: %w", p.planPath(), err)
	}
	return plan, nil
}

// GiveUp takes guests out of the plan that cannot be brought back, and puts what there
// is of them into the directory given-up, which it returns. They must not run.
func (p *Preserver) GiveUp(ctx context.Context, ids []string) (kept string, err error) {
	plan, err := p.ReadPlan()
	if err != nil {
		return "", err
	}
	kept = filepath.Join(p.Dir, "given-up", time.Now().UTC().Format("20060102T150405Z"))
	for _, id := range ids {
		i := slices.IndexFunc(plan.Guests, func(g Preserved) bool { return g.ID == id })
		if i < 0 {
			return "", fmt.Errorf("VM %q is not out: the VMs of the plan are %v", id, plan.IDs())
		}
		g := plan.Guests[i]
		alive, err := p.alive(g)
		owner, silent := listener(ctx, p.socket(id))
		if err = errors.Join(err, silent); err != nil || alive || owner != 0 {
			return "", fmt.Errorf("VM %s has a QEMU process, and is not given up: end it first (%v)", id, err)
		}
		if err := os.MkdirAll(kept, 0o700); err != nil {
			return "", err
		}
		for _, ext := range []string{".state", ".state.part", ".log"} {
			if err := os.Rename(filepath.Join(p.Dir, id+ext), filepath.Join(kept, id+ext)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return "", err
			}
		}
		how, err := json.MarshalIndent(g, "", "  ")
		if err == nil {
			err = writeFile(filepath.Join(kept, id+".json"), how)
		}
		if err != nil {
			return "", err
		}
		plan.Guests = slices.Delete(plan.Guests, i, i+1)
		data, err := encodePlan(plan)
		if err == nil {
			err = writeFile(p.planPath(), data)
		}
		if err != nil {
			return "", err
		}
	}
	return kept, nil
}

// IDs are the guests of the plan.
func (p Plan) IDs() []string {
	out := []string{}
	for _, g := range p.Guests {
		out = append(out, g.ID)
	}
	return out
}

// Forget removes the plan, and what is left of the states. Call it once every guest
// of the plan is back.
func (p *Preserver) Forget() error {
	plan, err := p.ReadPlan()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// The plan goes first, so that no half of it is left.
	err = os.Remove(p.planPath())
	for _, g := range plan.Guests {
		err = errors.Join(err, p.forgetState(g.ID))
		for _, ext := range []string{".state.part", ".log"} {
			if e := os.Remove(filepath.Join(p.Dir, g.ID+ext)); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// forgetState removes a guest's state before the guest runs: from then on, its RAM
// and its disks do not fit it any more.
func (p *Preserver) forgetState(id string) error {
	if err := os.Remove(p.statePath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// footer ends a complete state: it is followed by the SHA-256 of what is before.
const footer = "TGSTATE1"

// seal puts the footer under a state.
func seal(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(h.Sum([]byte(footer)), n)
	return err
}

// openState opens a guest's state and verifies it.
func (p *Preserver) openState(id string) (*os.File, error) {
	f, err := os.Open(p.statePath(id))
	if err != nil {
		return nil, err
	}
	if err := verify(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", p.statePath(id), err)
	}
	return f, nil
}

func verify(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const tail = len(footer) + sha256.Size
	n := info.Size() - int64(tail)
	if n < 0 {
		return errDamaged
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, n)); err != nil {
		return err
	}
	got := make([]byte, tail)
	if _, err := f.ReadAt(got, n); err != nil {
		return err
	}
	if !bytes.Equal(got, h.Sum([]byte(footer))) {
		return errDamaged
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
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
