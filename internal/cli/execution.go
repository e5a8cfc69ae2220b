package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) execution() *cobra.Command {
	c := &client{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "execution",
		Short: "List executions, show one, start or stop one, or read what its diagnostics conclude",
		Long: `An execution is one run of an action on a host, through phases: recycle, diagnosis,
preserving reset, live migration. 'tardigrade policy explain' says what may be executed now.`,
	}
	c.flags(cmd)
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	one := func(what string, args []string) (string, error) {
		if len(args) != 1 {
			return "", usageError{fmt.Errorf("execution %s needs the ID of one execution; 'tardigrade execution list' shows them", what)}
		}
		return "/api/v1/executions/" + url.PathEscape(args[0]), nil
	}
	var host, state string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List executions, newest first", Args: noArgs,
		Example: `  tardigrade execution list --host rack3-host12 --state handed-over`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all struct {
				Executions []fleet.Execution `json:"executions"`
			}
			q := url.Values{"limit": {fmt.Sprint(limit)}, "host": {host}, "state": {state}}
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/executions?"+q.Encode(), nil, &all); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(all.Executions)
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tHOST\tACTION\tSTATE\tBEGUN\tOUTCOME")
			for _, e := range all.Executions {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.Host, e.Action, e.State, e.Created.Format(time.RFC3339), e.Outcome)
			}
			return w.Flush()
		},
	}
	list.Flags().StringVar(&host, "host", "", "only those on this `host`")
	list.Flags().StringVar(&state, "state", "", "only those in this `state`, such as handed-over")
	list.Flags().IntVar(&limit, "limit", 20, "how many at most, up to 1000")
	var action, reason string
	var dryRun bool
	start := &cobra.Command{
		Use: "start HOST", Short: "Act on a host without a recommendation",
		Long: `Act on a host without a recommendation. The guard has the last word all the same: 'tardigrade
policy explain --host HOST' says what it would say now. With --dry-run it is asked, and
nothing is done.`,
		Example: `  tardigrade execution start rack3-host12 --action recycle --reason "its storage agent hangs"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("execution start needs the name of one host; 'tardigrade host list' shows them")}
			}
			if action == "" || reason == "" {
				return usageError{fmt.Errorf("--action must say what is to be done (one of %v), and --reason why: it goes into the audit trail", fleet.Actions()[1:])}
			}
			var e fleet.Execution
			body := map[string]any{"host": args[0], "action": action, "reason": reason, "dry_run": dryRun}
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/executions", body, &e); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(e)
			}
			fmt.Fprintf(out, "%s of %s is %s: %s %s\n", e.Action, e.Host, e.State, e.ID, e.Outcome)
			return nil
		},
	}
	start.Flags().StringVar(&action, "action", "", "recycle, preserving-reset, live-migrate or hand-over")
	start.Flags().StringVar(&reason, "reason", "", "why, for the audit trail")
	start.Flags().BoolVar(&dryRun, "dry-run", false, "ask the guard, and do nothing")
	cmd.AddCommand(list, start, &cobra.Command{
		Use: "show ID", Short: "Say what an execution did, step by step, and what became of the VMs",
		Example: `  tardigrade execution show x20260304t120000-0123456789ab`,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := one("show", args)
			if err != nil {
				return err
			}
			var e fleet.Execution
			if err := c.do(cmd.Context(), http.MethodGet, path, nil, &e); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(e)
			}
			return printExecution(out, e)
		},
	}, &cobra.Command{
		Use: "cancel ID", Short: "Stop an execution",
		Long: `Stop an execution. What that means depends on where it is:

  pending           it ends; nothing was changed on the host
  recycling         the service that it is at is finished and verified, the rest is left alone
  diagnosing        it ends, and a person takes over: a service did not come back
  resetting         it ends if no VM is being frozen yet; from then on it is refused
  migrating         the moves are stopped; each VM runs on in the one place where it is
                    (a move by post-copy can only go on to its end)

What follows a phase that is stopped does not begin. The command returns once the host's
agent has been told; 'tardigrade execution list' says when it has ended, and how. To keep
anything further from beginning, freeze the host.`,
		Example: `  tardigrade execution cancel x20260304t120000-0123456789ab`,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := one("cancel", args)
			if err != nil {
				return err
			}
			var e fleet.Execution
			if err := c.do(cmd.Context(), http.MethodPost, path+"/cancel", struct{}{}, &e); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(e)
			}
			if !e.State.Final() {
				fmt.Fprintf(out, "%s is %s; the agent of %s was told to stop\n", e.ID, e.State, e.Host)
				return nil
			}
			fmt.Fprintf(out, "%s is %s: %s\n", e.ID, e.State, e.Outcome)
			return nil
		},
	}, &cobra.Command{
		Use: "diagnosis ID", Short: "Print what the diagnostics of an execution conclude",
		Long: `Print what may have happened on a host whose services did not come back: suspects, the most
likely first, with the lines that prove them and what to do. It is Markdown on a terminal
and JSON otherwise. The evidence itself is in the bundle of the execution.`,
		Example: `  tardigrade execution diagnosis x20260304t120000-0123456789ab`,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := one("diagnosis", args)
			if err != nil {
				return err
			}
			path += "/root-cause"
			if !asJSON && isTerminalWriter(cmd.OutOrStdout()) {
				path += "?format=markdown"
			}
			text, err := c.send(cmd.Context(), http.MethodGet, path, nil)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	})
	return cmd
}

func printExecution(out io.Writer, e fleet.Execution) error {
	fmt.Fprintf(out, "%s on %s: %s, begun %s", e.Action, e.Host, e.State, e.Created.Format(time.RFC3339))
	if !e.Ended.IsZero() {
		fmt.Fprintf(out, ", ended %s", e.Ended.Format(time.RFC3339))
	}
	fmt.Fprintf(out, "\nasked for by %s: %s\n", e.RequestedBy, e.Reason)
	for _, l := range []struct{ what, text string }{{"outcome", e.Outcome}, {"cancelled by", e.CancelledBy}, {"recommendation", e.Recommendation}} {
		if l.text != "" {
			fmt.Fprintf(out, "%s: %s\n", l.what, l.text)
		}
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "PHASE\tSTEP\tATTEMPT\tSTATE\tTOOK\tDETAIL")
	for _, s := range e.Steps {
		took := ""
		if !s.Ended.IsZero() {
			took = s.Ended.Sub(s.Started).Round(time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", s.Phase, s.Name, s.Attempt, s.State, took, s.Detail)
	}
	if len(e.GuestsBefore) > 0 {
		fmt.Fprintln(w, "\nVM\tAFTER\tALIVE\tLARGEST GAP\tON HOST")
	}
	for _, g := range e.GuestsBefore {
		i := slices.IndexFunc(e.GuestsAfter, func(after fleet.GuestReport) bool { return after.ID == g.ID })
		if i < 0 {
			fmt.Fprintf(w, "%s\tnot counted\n", g.ID)
			continue
		}
		after := e.GuestsAfter[i]
		fmt.Fprintf(w, "%s\t%s\t%v\t%.3g s\t%s\n", g.ID, after.State, after.Alive, after.MaxGapSeconds, cmp.Or(after.Host, e.Host))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if e.Bundle != "" {
		fmt.Fprintf(out, "'tardigrade execution diagnosis %s' says what may have been the cause\n", e.ID)
	}
	return nil
}
