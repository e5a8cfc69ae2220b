package cli

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// machineReadable tells whether to print JSON: where it was asked for, or where the
// output is no terminal.
func machineReadable(asked bool, out io.Writer) bool { return asked || !isTerminalWriter(out) }

func (a *app) probe() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Say what this host can do, and what is missing for the rest",
		Long: `Say what the agent could do on this host with its configuration, and what is missing for
the rest, VM by VM where it depends on them. Nothing is changed, and no control plane is
needed. Run it as the user that runs the agent.`,
		Example: `  tardigrade agent probe --config /etc/tardigrade/agent.yaml
  tardigrade agent probe --config /etc/tardigrade/agent.yaml --json | jq '.[] | select(.ready | not)'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := a.load()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			found := agent.Probe(cmd.Context(), c.Agent, c.Agent.Data, log)
			if machineReadable(asJSON, out) {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(found)
			}
			for _, one := range found {
				word := "ready"
				if !one.Ready {
					word = "not ready"
				}
				fmt.Fprintf(out, "%-18s %s\n", one.Name, word)
				for _, m := range one.Missing {
					fmt.Fprintf(out, "    missing: %s\n", m)
				}
				for _, n := range one.Notes {
					fmt.Fprintf(out, "    %s\n", n)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where the output is not a terminal)")
	return cmd
}

// hostID is the name under which the agent's journal was written.
func hostID(c config.Agent) (fleet.HostID, error) {
	if c.Credentials != "" {
		if credentials, err := control.ReadCredentials(c.Credentials); err == nil {
			return credentials.Host, nil
		}
	}
	return agent.HostName(c)
}

func (a *app) resume() *cobra.Command {
	var giveUp []string
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Bring back the VMs that a preserving reset took out",
		Long: `Bring back the VMs that a preserving reset took out, and finish the reset: what the boot
after it needs, without a control plane. The agent reports the outcome when it runs.
'tardigrade agent unit' prints a systemd unit that runs this early in the boot.

It does nothing where no VM is out, and it may be run again. A VM that cannot be brought
back is named, and what there is of it is kept; it is never started afresh. Nothing else
is touched. The agent must not run meanwhile.

While a VM is out, the host refuses another preserving reset. --give-up ends that for VMs
that are beyond help: what there is of them goes to the directory given-up.`,
		Example: `  tardigrade agent resume --config /etc/tardigrade/agent.yaml
  tardigrade agent resume --config /etc/tardigrade/agent.yaml --give-up web,db`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := a.load()
			if err != nil {
				return err
			}
			id, err := hostID(c.Agent)
			if err != nil {
				return err
			}
			dir, err := datadir.Open(c.Agent.Data)
			if err != nil {
				return err
			}
			defer dir.Close()
			r, err := agent.ResumeHost(cmd.Context(), c.Agent, id, dir.Path, giveUp, log)
			if e := json.NewEncoder(cmd.OutOrStdout()).Encode(r); e != nil {
				return e
			}
			if r.Lost != "" {
				err = errors.Join(fmt.Errorf("not every VM is back: %s", r.Lost), err)
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&giveUp, "give-up", nil, "`VMs` that are not to be brought back, separated by commas")
	return cmd
}

//go:embed tardigrade-resume.service
var resumeUnit string

func (a *app) unit() *cobra.Command {
	return &cobra.Command{
		Use:   "unit",
		Short: "Print the systemd unit that resumes VMs early in the boot",
		Long: `Print the systemd unit that runs 'tardigrade agent resume' early in the boot, with this
program and this configuration file. A host that is reset by kexec needs it.`,
		Example: `  tardigrade agent unit --config /etc/tardigrade/agent.yaml > /etc/systemd/system/tardigrade-resume.service
  systemctl enable tardigrade-resume.service`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.configFile == "" {
				return usageError{errors.New("agent unit needs the agent's configuration file, with --config")}
			}
			c, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			file, err := filepath.Abs(a.configFile)
			if err != nil {
				return err
			}
			text, err := agent.ResumeUnit(resumeUnit, program, file, c.Agent)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), strings.TrimSpace(text)+"\n")
			return err
		},
	}
}
