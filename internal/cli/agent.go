package cli

import (
	"encoding/json"
	"errors"
	"fmt"

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
			roots, err := control.ClientTLS("agent.tls", c.Agent.TLS)
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
			log.Info("agent", "host", credentials.Host, "bus", c.Agent.Bus, "act", c.Agent.Act, "version", a.version)
			return agent.RunHost(cmd.Context(), c.Agent, credentials.Host, b, dir.Path, a.version, log)
		},
	}
	cmd.AddCommand(a.enroll(), a.probe(), a.resume(), a.unit())
	return cmd
}

func (a *app) enroll() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "enroll HOST",
		Short: "Make the credentials of a host's agent, on the control plane's machine",
		Long: `Make the credentials of a host's agent and print them. Keep them in a file that only the
agent can read, and name it in agent.credentials. Earlier credentials of the host stop working.`,
		Example: `  tardigrade agent enroll rack3-host12 > rack3-host12.json`,
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
			credentials, err := control.Enroll(c.Data, fleet.HostID(args[0]))
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(credentials)
		},
	}
	cmd.Flags().StringVar(&data, "data", ".tardigrade", "the control plane's data `directory`")
	return cmd
}
