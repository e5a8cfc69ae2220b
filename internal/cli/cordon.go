package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) cordon() *cobra.Command {
	c := &client{}
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "cordon HOST",
		Short: "Keep VMs from being moved to a host",
		Long: `Keep VMs from being moved to a host. Its own VMs stay, and it can still be acted on. A host
is also cordoned by itself after its VMs were moved away, and when a person is called. A
cordon ends when it is lifted, or when the host has been healthy for policy.uncordon_after.`,
		Example: `  tardigrade cordon rack3-host12 --reason "new memory modules"
  tardigrade cordon list
  tardigrade cordon lift rack3-host12`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("cordon needs the name of one host; 'tardigrade cordon list' shows those that are cordoned")}
			}
			if reason == "" {
				return usageError{errors.New("--reason must say why: it goes into the audit trail")}
			}
			var cordon fleet.Cordon
			if err := c.do(cmd.Context(), http.MethodPost, cordonPath(args[0]), map[string]any{"reason": reason}, &cordon); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(cordon)
			}
			fmt.Fprintf(out, "host %s is cordoned; lift it with 'tardigrade cordon lift %s'\n", cordon.Host, cordon.Host)
			return nil
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit trail")
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the hosts that are cordoned, by name", Args: noArgs,
		Example: `  tardigrade cordon list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all struct {
				Hosts []api.HostView `json:"hosts"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/hosts", nil, &all); err != nil {
				return err
			}
			list := []fleet.Cordon{}
			for _, h := range all.Hosts {
				if h.Cordon != nil {
					list = append(list, *h.Cordon)
				}
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(list)
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "HOST\tBY\tSINCE\tPOWER\tREASON")
			for _, c := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Host, c.By, c.Since.Format(time.RFC3339), c.Power, c.Reason)
			}
			return w.Flush()
		},
	}, &cobra.Command{
		Use: "lift HOST...", Short: "Let VMs be moved to hosts again",
		Example: `  tardigrade cordon lift rack3-host12`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("cordon lift needs at least one host; 'tardigrade cordon list' shows them")}
			}
			for _, host := range args {
				var cordon fleet.Cordon
				if err := c.do(cmd.Context(), http.MethodDelete, cordonPath(host), nil, &cordon); err != nil {
					return err
				}
				if out := cmd.OutOrStdout(); machineReadable(asJSON, out) {
					if err := json.NewEncoder(out).Encode(cordon); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "VMs may be moved to host %s again\n", cordon.Host)
			}
			return nil
		},
	})
	return cmd
}

func cordonPath(host string) string { return "/api/v1/hosts/" + url.PathEscape(host) + "/cordon" }
