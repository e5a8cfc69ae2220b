package cli

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
)

func (a *app) diagnosis() *cobra.Command {
	c := &client{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diagnosis EXECUTION",
		Short: "Print what the diagnostics of an execution conclude",
		Long: `Print what may have happened on a host whose services did not come back: suspects, the most
likely first, with the lines that prove them and what to do. It is Markdown on a terminal
and JSON otherwise. The evidence itself is in the bundle of the execution.`,
		Example: `  tardigrade diagnosis x20260304t120000-0123456789ab`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("diagnosis needs the ID of one execution")}
			}
			path := "/api/v1/executions/" + url.PathEscape(args[0]) + "/root-cause"
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
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}
