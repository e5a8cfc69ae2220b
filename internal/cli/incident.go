package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) incident() *cobra.Command {
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "incident", Short: "Tell the control plane of faults that were, from which models learn",
		Long: `Tell the control plane of faults that were, from which models learn. It notes some by itself: the
outcome of each execution, and each new boot of a host that no reset of its own explains.`,
	}
	c.flags(cmd)
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")

	var host, from, to, seen, signature, note string
	var saved bool
	add := &cobra.Command{
		Use: "add", Short: "Say that a host had a fault", Args: noArgs,
		Example: `  tardigrade incident add --host rack3-host12 --from 2026-01-02T15:04:00Z --to 2026-01-02T15:30:00Z \
    --signature disk --note "the second controller died"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if host == "" || from == "" {
				return usageError{errors.New("--host and --from must say which host, and from when on it failed")}
			}
			body := map[string]any{"host": host, "failed": !saved, "note": note}
			if signature != "" {
				body["signature"] = signature
			}
			now := time.Now().UTC()
			for _, t := range []struct{ key, flag, text string }{{"from", "--from", from}, {"to", "--to", to}, {"seen", "--seen", seen}} {
				at, err := moment(t.flag, t.text, now)
				if err != nil {
					return err
				}
				if !at.IsZero() {
					body[t.key] = at
				}
			}
			var i fleet.Incident
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/incidents", body, &i); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(i)
			}
			_, err := fmt.Fprintf(out, "noted as %s: %s on %s from %s to %s\n", i.ID, i.Signature, i.Host, i.From.Format(time.RFC3339), i.To.Format(time.RFC3339))
			return err
		},
	}
	f := add.Flags()
	f.StringVar(&host, "host", "", "the `host`")
	f.StringVar(&from, "from", "", "the `time` from which on it failed its VMs (2026-01-02T15:04:00Z, or -2h)")
	f.StringVar(&to, "to", "", "the `time` at which it was over; now where left out")
	f.StringVar(&seen, "seen", "", "the `time` since which the fault could be seen, where you know")
	f.StringVar(&signature, "signature", "", fmt.Sprintf("one of %v", fleet.Signatures()))
	f.StringVar(&note, "note", "", "what a person should know")
	f.BoolVar(&saved, "saved", false, "there was a fault, but the host did not fail its VMs")

	var only string
	list := &cobra.Command{
		Use: "list", Short: "List the incidents, newest first", Args: noArgs,
		Example: `  tardigrade incident list --json > incidents.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {"1000"}}
			if only != "" {
				q.Set("host", only)
			}
			head := "HOST\tFROM\tTO\tSIGNATURE\tFAILED\tSOURCE\tNOTE\n"
			return listing(cmd, &c, asJSON, "/api/v1/incidents?"+q.Encode(), "incidents", head, func(out io.Writer, i fleet.Incident) {
				fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%v\t%s\t%s\n", i.Host, i.From.Format(time.DateTime), i.To.Format(time.DateTime), i.Signature, i.Failed, i.Source, i.Note)
			})
		},
	}
	list.Flags().StringVar(&only, "host", "", "of this `host` only")
	cmd.AddCommand(add, list)
	return cmd
}
