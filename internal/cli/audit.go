package cli

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
)

func (a *app) audit() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read the audit trail of a control plane that is stopped, and check it",
		Long: `Read the audit trail: every decision and every action, who took it and why. The records
are chained by hash, so that one which was changed, taken out or put in is found.

The trail is read from the data directory, which the running control plane holds:
stop it first, or give a copy.`,
	}
	cmd.PersistentFlags().StringVar(&data, "data", ".tardigrade", "the control plane's data `directory`")
	read := func(cmd *cobra.Command, each func(uint64, bus.AuditRecord)) error {
		c, err := config.Load(a.configFile)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("data") {
			c.Data = data
		}
		dir, err := datadir.Existing(c.Data)
		if err != nil {
			return err
		}
		defer dir.Close()
		o, err := control.BusOptions(c.Bus)
		if err != nil {
			return err
		}
		o.Dir, o.Listen, o.Callout, o.Log = filepath.Join(dir.Path, "bus"), "", bus.Callout{}, slog.New(slog.DiscardHandler)
		b, err := bus.Open(cmd.Context(), o)
		if err != nil {
			return err
		}
		defer b.Close()
		return bus.OpenAudit(b).Verify(cmd.Context(), each)
	}
	cmd.AddCommand(&cobra.Command{
		Use: "verify", Short: "Say whether a record was changed, taken out or put in", Args: noArgs,
		Example: `  tardigrade audit verify --data /var/lib/tardigrade`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, last := 0, ""
			if err := read(cmd, func(_ uint64, r bus.AuditRecord) { n, last = n+1, r.Hash }); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d records, none was changed; the last one's hash is %s\n", n, orNone(last))
			return nil
		},
	}, &cobra.Command{
		Use: "list", Short: "Print the records as JSON lines, oldest first", Args: noArgs,
		Example: `  tardigrade audit list --data /var/lib/tardigrade | jq 'select(.event == "approve")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := json.NewEncoder(cmd.OutOrStdout())
			var failed error
			if err := read(cmd, func(_ uint64, r bus.AuditRecord) {
				if failed == nil {
					failed = out.Encode(r)
				}
			}); err != nil {
				return err
			}
			return failed
		},
	})
	return cmd
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}
