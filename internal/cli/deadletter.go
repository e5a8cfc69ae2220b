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
)

func (a *app) deadletter() *cobra.Command {
	c := &client{}
	cmd := &cobra.Command{
		Use:   "deadletter",
		Short: "List, show and retry telemetry that InfluxDB refuses for good",
		Long: `Telemetry that InfluxDB refuses for good, because of a field of another type for example, is
put aside with the reason instead of holding up what comes after it. Once what was wrong is
right, send it again.`,
	}
	c.flags(cmd)
	var asJSON bool
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List what is put aside, oldest first", Args: noArgs,
		Example: `  tardigrade deadletter list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all struct {
				DeadLetters []api.DeadLetter `json:"deadletters"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, fmt.Sprintf("/api/v1/deadletters?limit=%d", limit), nil, &all); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(all.DeadLetters)
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tTIME\tHOST\tSAMPLES\tREASON")
			for _, d := range all.DeadLetters {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", d.ID, d.Time.Format(time.RFC3339), d.Host, len(d.Samples), d.Reason)
			}
			return w.Flush()
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	list.Flags().IntVar(&limit, "limit", 100, "how many at most, up to 1000")
	cmd.AddCommand(list, &cobra.Command{
		Use: "show ID", Short: "Show one with its values, as JSON",
		Example: `  tardigrade deadletter show 17`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("deadletter show needs one ID")}
			}
			var d api.DeadLetter
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/deadletters/"+url.PathEscape(args[0]), nil, &d); err != nil {
				return err
			}
			out := json.NewEncoder(cmd.OutOrStdout())
			out.SetIndent("", "  ")
			return out.Encode(d)
		},
	}, &cobra.Command{
		Use: "retry ID...", Short: "Send them to InfluxDB again",
		Example: `  tardigrade deadletter retry 17 18`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("deadletter retry needs at least one ID")}
			}
			for _, id := range args {
				if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/deadletters/"+url.PathEscape(id)+"/retry", struct{}{}, nil); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is on its way again\n", id)
			}
			return nil
		},
	})
	return cmd
}
