package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) recommendation() *cobra.Command {
	c := &client{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "recommendation", Short: "List recommendations, approve or reject one",
		Long: `A recommendation is an action on a host, with its price and that of each alternative in
VM-seconds of interruption. It waits for a person, unless policy.mode says otherwise, and
expires. What is approved is still checked by the guard: see 'tardigrade policy explain'.`,
	}
	c.flags(cmd)
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	path := func(cmd *cobra.Command, args []string) (string, error) {
		if len(args) != 1 {
			return "", usageError{fmt.Errorf("%s needs the ID of one recommendation; 'tardigrade recommendation list' shows them", cmd.CommandPath())}
		}
		return "/api/v1/recommendations/" + url.PathEscape(args[0]), nil
	}
	var host, state string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List recommendations, newest first", Args: noArgs,
		Example: `  tardigrade recommendation list --state pending`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all struct {
				Recommendations []fleet.Recommendation `json:"recommendations"`
			}
			q := url.Values{"limit": {fmt.Sprint(limit)}, "host": {host}, "state": {state}}
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/recommendations?"+q.Encode(), nil, &all); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(all.Recommendations)
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tHOST\tACTION\tSTATE\tCOST\tEXPIRES\tSIGNATURE")
			for _, r := range all.Recommendations {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f VM-s\t%s\t%s\n", r.ID, r.Host, r.Action, r.State, r.CostVMSeconds, r.Expires.Format(time.RFC3339), r.Prediction.Signature)
			}
			return w.Flush()
		},
	}
	list.Flags().StringVar(&host, "host", "", "only those of this `host`")
	list.Flags().StringVar(&state, "state", "", "only those in this `state`, such as pending")
	list.Flags().IntVar(&limit, "limit", 20, "how many at most, up to 1000")
	cmd.AddCommand(list, &cobra.Command{
		Use: "show ID", Short: "Say why an action is recommended, and what the alternatives would cost",
		Example: `  tardigrade recommendation show 01M8M35HJQRXH1BG48MGXD766G`,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := path(cmd, args)
			if err != nil {
				return err
			}
			var r fleet.Recommendation
			if err := c.do(cmd.Context(), http.MethodGet, at, nil, &r); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(r)
			}
			return printRecommendation(out, r)
		},
	})
	for _, d := range []struct{ verb, short string }{
		{"approve", "Let a recommendation be carried out, if the guard allows it then"},
		{"reject", "Refuse a recommendation"},
	} {
		var note string
		one := &cobra.Command{
			Use: d.verb + " ID", Short: d.short,
			Example: "  tardigrade recommendation " + d.verb + ` 01M8M35HJQRXH1BG48MGXD766G --note "seen with the owner"`,
			RunE: func(cmd *cobra.Command, args []string) error {
				at, err := path(cmd, args)
				if err != nil {
					return err
				}
				var r fleet.Recommendation
				if err := c.do(cmd.Context(), http.MethodPost, at+"/"+d.verb, map[string]string{"note": note}, &r); err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if machineReadable(asJSON, out) {
					return json.NewEncoder(out).Encode(r)
				}
				fmt.Fprintf(out, "%s of %s is %s\n", r.Action, r.Host, r.State)
				return nil
			},
		}
		one.Flags().StringVar(&note, "note", "", "why, for the audit trail")
		cmd.AddCommand(one)
	}
	return cmd
}

func printRecommendation(out io.Writer, r fleet.Recommendation) error {
	fmt.Fprintf(out, "%s on %s: %s, expires %s\n%s\n\n", r.Action, r.Host, r.State, r.Expires.Format(time.RFC3339), r.Reason)
	if r.DecidedBy != "" {
		fmt.Fprintf(out, "decided by %s at %s %s\n\n", r.DecidedBy, r.DecidedAt.Format(time.RFC3339), r.Note)
	}
	printPrediction(out, r.Prediction)
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ACTION\tCOST\tCURES\tWHY")
	for _, a := range r.Alternatives {
		cost, cures := fmt.Sprintf("%.1f VM-s", a.CostVMSeconds), fmt.Sprintf("%.0f %%", 100*a.CureProbability)
		if !a.Available {
			cost, cures = "not possible", ""
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", a.Action, cost, cures, a.Why)
	}
	return w.Flush()
}
