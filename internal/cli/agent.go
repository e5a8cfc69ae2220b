package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) agent() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent on a host, reporting to a control plane",
		Long: `Run the agent on a host. It samples the host, reports to the control plane at agent.bus,
and carries out its commands if agent.act is true.`,
		Example: `  tardigrade agent --config /etc/tardigrade/agent.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := a.load()
			if err != nil {
				return err
			}
			if c.Agent.Bus == "" || c.Agent.Credentials == "" {
				return errors.New("agent.bus (the control plane's bus, tls://ADDRESS:PORT) and agent.credentials (made by 'tardigrade agent enroll') must be configured")
			}
			credentials, err := control.ReadCredentials(c.Agent.Credentials)
			if err != nil {
				return err
			}
			if c.Agent.Host != "" && fleet.HostID(c.Agent.Host) != credentials.Host {
				return fmt.Errorf("agent.host is %s, and the credentials in %s are for %s: enroll this host, or correct agent.host", c.Agent.Host, c.Agent.Credentials, credentials.Host)
			}
			roots, err := control.ClientTLS("agent.tls.ca", c.Agent.TLS.CA)
			if err != nil {
				return err
			}
			dir, err := datadir.Open(c.Agent.Data)
			if err != nil {
				return err
			}
			defer dir.Close()
			b, err := bus.DialAgent(bus.AgentOptions{Host: credentials.Host, URL: c.Agent.Bus, Token: credentials.Token, TLS: roots, Log: log})
			if err != nil {
				return err
			}
			defer b.Close()
			log.Info("agent", "host", credentials.Host, "bus", bus.Redacted(c.Agent.Bus), "act", c.Agent.Act, "version", a.version)
			return agent.RunHost(cmd.Context(), c.Agent, credentials.Host, b, dir.Path, a.version, log)
		},
	}
	cmd.AddCommand(a.enroll(), a.probe(), a.resume(), a.unit())
	return cmd
}

func (a *app) enroll() *cobra.Command {
	var data, file string
	cmd := &cobra.Command{
		Use:   "enroll HOST",
		Short: "Make the credentials of a host's agent, on the control plane's machine",
		Long: `Make the credentials of a host's agent and print them, or write them to --out, which only its
owner can read. Bring them to the host and name the file in agent.credentials; the agent refuses a
file that others can read. Earlier credentials of the host stop working.`,
		Example: `  tardigrade agent enroll rack3-host12 --out rack3-host12.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("agent enroll needs the name of one host")}
			}
			c, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("data") {
				c.Data = data
			}
			if _, err := os.Stat(filepath.Join(c.Data, "format")); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: no control plane has used %s yet; only one that is started with --data %s will know these credentials\n", c.Data, c.Data)
			}
			if file == "" {
				credentials, err := control.Enroll(c.Data, fleet.HostID(args[0]))
				if err != nil {
					return err
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(credentials)
			}
			// The file comes first: where it cannot be made, the earlier credentials stay good.
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("--out: %w", err)
			}
			credentials, err := control.Enroll(c.Data, fleet.HostID(args[0]))
			if err != nil {
				return errors.Join(err, f.Close(), os.Remove(file))
			}
			return errors.Join(json.NewEncoder(f).Encode(credentials), f.Close())
		},
	}
	cmd.Flags().StringVar(&data, "data", ".tardigrade", "the control plane's data `directory`")
	cmd.Flags().StringVarP(&file, "out", "o", "", "`file` to write them to, with mode 0600, instead of printing them")
	return cmd
}
