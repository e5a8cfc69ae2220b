package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/collector"
)

func (a *app) metrics() *cobra.Command {
	var asJSON, markdown bool
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "List every metric that the agent can sample: name, unit, kind, meaning and source",
		Long: `List every metric that the agent can sample, with its unit, its kind (gauge, counter turned
into a rate, ratio, state), what it means and where it is read. A metric that a host does not
have is missing from its samples, never 0. A metric that there is one of for each disk, unit or
VM comes with the instance in braces: unit_memory_bytes{libvirtd.service}.`,
		Example: `  tardigrade metrics
  tardigrade metrics --json | jq '.[] | select(.unit == "bytes")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			switch {
			case markdown:
				return collector.WriteTable(out)
			case asJSON || !isTerminalWriter(out):
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(collector.Catalogue())
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "METRIC\tUNIT\tKIND\tMEANING\tFROM")
			for _, m := range collector.Catalogue() {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.Unit, m.Kind, m.Help, m.Source)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	cmd.Flags().BoolVar(&markdown, "markdown", false, "print the table of docs/metrics.md")
	return cmd
}
