package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

// Capability is something that a host can do, or cannot do yet.
type Capability struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	// Missing says what has to be done before it is ready.
	Missing []string `json:"missing"`
	// Notes say how it would be done.
	Notes []string `json:"notes,omitempty"`
}

// probes are asked by [Probe], in this order.
var probes = []func(ctx context.Context, c config.Agent, dir string, log *slog.Logger) Capability{probeRecycle, probeDiagnose, probeReset, probeMigrate}

// Probe says what this host can do, and what is missing for the rest. It changes
// nothing. dir is the agent's data directory, which need not be there.
func Probe(ctx context.Context, c config.Agent, dir string, log *slog.Logger) []Capability {
	var out []Capability
	for _, probe := range probes {
		one := probe(ctx, c, dir, log)
		if one.Ready = len(one.Missing) == 0; one.Ready {
			one.Missing = []string{}
		}
		out = append(out, one)
	}
	return out
}

// mayAct is what every action needs.
func mayAct(c config.Agent) []string {
	if c.Act {
		return nil
	}
	return []string{"the agent may not change this host: set agent.act to true"}
}

func probeRecycle(ctx context.Context, c config.Agent, _ string, log *slog.Logger) Capability {
	out := Capability{Name: "recycle", Missing: mayAct(c)}
	services := newServices(c, log)
	defer services.Close()
	if _, err := services.Observe(ctx, "dbus.service"); err != nil {
		out.Missing = append(out.Missing, err.Error())
		return out
	}
	for _, u := range c.Units {
		switch s, err := services.Observe(ctx, u.Name); {
		case err != nil:
			out.Missing = append(out.Missing, err.Error())
		case s.Refusal != "":
			out.Missing = append(out.Missing, fmt.Sprintf("%s must not be restarted: %s", u.Name, s.Refusal))
		default:
			out.Notes = append(out.Notes, u.Name+" is "+s.Detail)
		}
	}
	found, err := services.Discover(ctx, c.Include)
	if err != nil {
		out.Missing = append(out.Missing, err.Error())
		return out
	}
	usable := len(c.Units)
	for _, f := range found {
		switch {
		case f.Left != "":
			out.Notes = append(out.Notes, fmt.Sprintf("found %s (%s), which is left alone: %s", f.Name, f.Role, f.Left))
		case c.Discover:
			usable++
			out.Notes = append(out.Notes, fmt.Sprintf("found %s (%s)", f.Name, f.Role))
		default:
			out.Notes = append(out.Notes, fmt.Sprintf("found %s (%s), which agent.discover: true would restart", f.Name, f.Role))
		}
	}
	if usable == 0 {
		out.Missing = append(out.Missing, "no services to restart are known: set agent.discover to true, or list them in agent.units")
	}
	return out
}

func probeDiagnose(context.Context, config.Agent, string, *slog.Logger) Capability {
	out := Capability{Name: "diagnose"}
	for _, program := range []string{"journalctl", "systemctl"} {
		if _, err := exec.LookPath(program); err != nil {
			out.Missing = append(out.Missing, fmt.Sprintf("the program %s is not installed", program))
		}
	}
	if entries, err := os.ReadDir("/sys/fs/pstore"); err != nil || len(entries) == 0 {
		out.Notes = append(out.Notes, "nothing of an earlier crash is in /sys/fs/pstore")
	}
	return out
}

func probeReset(ctx context.Context, c config.Agent, dir string, _ *slog.Logger) Capability {
	out := Capability{Name: "preserving-reset", Missing: append(mayAct(c), missingForReset(c, dir)...)}
	out.Notes = append(out.Notes, installedQEMU(ctx), keptMemory("/proc/self/mounts"))
	if c.Guests.QMPDir == "" {
		return out
	}
	plan, err := newPreserved(c, dir, nil).plan(ctx)
	if err != nil {
		for _, e := range split(err) {
			out.Missing = append(out.Missing, e.Error())
		}
	}
	if c.Reset.Mode == config.ResetKexec {
		if err := exec.CommandContext(ctx, "systemctl", "--quiet", "is-enabled", "tardigrade-resume.service").Run(); err != nil {
			out.Notes = append(out.Notes, "tardigrade-resume.service is not enabled: the VMs would come back only when the agent starts; 'tardigrade agent unit' prints it")
		}
	}
	for _, g := range plan.Guests {
		if g.Way != "" {
			out.Notes = append(out.Notes, fmt.Sprintf("VM %s: its state is taken out by %s", g.ID, g.Way))
		}
	}
	return out
}

// split takes joined errors apart.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// installedQEMU says which QEMU VMs would get.
func installedQEMU(ctx context.Context) string {
	const program = "qemu-system-x86_64"
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return fmt.Sprintf("%s: %v", program, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first) + " is installed"
}

// keptMemory says which file systems are in memory that a reset of the kernel keeps.
func keptMemory(mounts string) string {
	data, err := os.ReadFile(mounts)
	if err != nil {
		return err.Error()
	}
	var kept []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		for _, option := range strings.Split(fields[3], ",") {
			if option == "dax" || option == "dax=always" {
				kept = append(kept, fields[1])
				break
			}
		}
	}
	if len(kept) == 0 {
		return "no file system is mounted with dax=always: no RAM would survive a reset of the kernel in place"
	}
	return "RAM in these file systems survives a reset of the kernel: " + strings.Join(kept, ", ")
}
