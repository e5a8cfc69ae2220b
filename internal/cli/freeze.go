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

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) freeze() *cobra.Command {
	c := &client{}
	var host, domain, reason string
	var all, asJSON bool
	var lasts time.Duration
	cmd := &cobra.Command{
		Use:   "freeze",
		Short: "Stop every action on a host, in a fault domain or in the whole fleet",
		Long: `Stop every action on a host, in a fault domain or in the whole fleet, until the freeze is
lifted or its time is over. It holds across restarts of the control plane. What is under
way goes on to the end of its phase; no further phase begins. A person may always be called.`,
		Example: `  tardigrade freeze --fleet --reason "power maintenance" --for 2h
  tardigrade freeze --host rack3-host12 --reason "under investigation"
  tardigrade freeze list
  tardigrade freeze lift 01J9ZZZZZZZZZZZZZZZZZZZZZZ`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n := 0
			for _, set := range []bool{host != "", domain != "", all} {
				if set {
					n++
				}
			}
			if n != 1 {
				return usageError{errors.New("say what is to be frozen: one of --host, --fault-domain and --fleet")}
			}
			if reason == "" {
				return usageError{errors.New("--reason must say why: it goes into the audit trail")}
			}
			var f fleet.Freeze
			body := map[string]any{"host": host, "fault_domain": domain, "fleet": all, "reason": reason, "seconds": lasts.Seconds()}
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/freezes", body, &f); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(f)
			}
			fmt.Fprintf(out, "%s is frozen; lift it with 'tardigrade freeze lift %s'\n", frozen(f), f.ID)
			return nil
		},
	}
	c.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&host, "host", "", "freeze this `host`")
	f.StringVar(&domain, "fault-domain", "", "freeze this fault `domain`")
	f.BoolVar(&all, "fleet", false, "freeze everything")
	f.StringVar(&reason, "reason", "", "why, for the audit trail")
	f.DurationVar(&lasts, "for", 0, "after how `long` it ends by itself; without it, when it is lifted")
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List what is frozen, oldest first", Args: noArgs,
		Example: `  tardigrade freeze list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list struct {
				Freezes []fleet.Freeze `json:"freezes"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/freezes", nil, &list); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(list.Freezes)
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tWHAT\tBY\tSINCE\tUNTIL\tREASON")
			for _, f := range list.Freezes {
				until := "lifted"
				if !f.Until.IsZero() {
					until = f.Until.Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", f.ID, frozen(f), f.By, f.Since.Format(time.RFC3339), until, f.Reason)
			}
			return w.Flush()
		},
	}, &cobra.Command{
		Use: "lift ID...", Short: "End freezes, so that actions may begin again",
		Example: `  tardigrade freeze lift 01J9ZZZZZZZZZZZZZZZZZZZZZZ`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("freeze lift needs at least one ID; 'tardigrade freeze list' shows them")}
			}
			for _, id := range args {
				var f fleet.Freeze
				if err := c.do(cmd.Context(), http.MethodDelete, "/api/v1/freezes/"+url.PathEscape(id), nil, &f); err != nil {
					return err
				}
				if out := cmd.OutOrStdout(); machineReadable(asJSON, out) {
					if err := json.NewEncoder(out).Encode(f); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "the freeze of %s is lifted\n", frozen(f))
			}
			return nil
		},
	})
	return cmd
}

func frozen(f fleet.Freeze) string {
	switch {
	case f.Host != "":
		return "host " + string(f.Host)
	case f.FaultDomain != "":
		return "fault domain " + f.FaultDomain
	}
	return "the whole fleet"
}
