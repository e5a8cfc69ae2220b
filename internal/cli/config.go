package cli

import (
	"errors"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check or print the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use: "check", Short: "Say whether the configuration file is right, without starting anything", Args: noArgs,
		Example: `  tardigrade config check --config /etc/tardigrade/tardigrade.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := config.Load(a.configFile); err != nil {
				return err
			}
			if a.configFile == "" {
				return usageError{errors.New("config check needs the configuration file, with --config")}
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the configuration is right")
			return nil
		},
	}, &cobra.Command{
		Use: "show", Short: "Print every key with the value that is in force", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			if c.Influx.Token != "" {
				c.Influx.Token = "(hidden)"
			}
			for _, address := range []*string{&c.Bus.URL, &c.Agent.Bus, &c.Influx.URL} {
				*address = bus.Redacted(*address)
			}
			data, err := yaml.Marshal(c)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	})
	return cmd
}
