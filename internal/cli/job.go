package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/api"
)

func (a *app) job() *cobra.Command {
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "job", Short: "Follow the trainings of the control plane, and end them",
		Long: `Follow the trainings of the control plane, and end them. 'tardigrade train KIND --submit' asks for
one. They run one after the other, each in a process with limited memory; one that the control
plane's end interrupted is lost, and has to be asked for again.`,
	}
	c.flags(cmd)
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON, in lists an object a line (the default where stdout is not a terminal)")
	line := func(out io.Writer, j api.Job) error {
		if asJSON || !isTerminalWriter(out) {
			return json.NewEncoder(out).Encode(j)
		}
		_, err := fmt.Fprintf(out, "%s is %s: %s model on %s; %.0f %% %s %s%s\n", j.ID, j.State, j.Kind, j.Data, 100*j.Done, j.Stage, j.Error, j.Model)
		return err
	}
	one := func(use, short, method, what string) *cobra.Command {
		return &cobra.Command{
			Use: use + " ID", Short: short,
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) != 1 {
					return usageError{fmt.Errorf("%s needs one ID, as 'tardigrade job list' shows them", cmd.CommandPath())}
				}
				var j api.Job
				if err := c.do(cmd.Context(), method, "/api/v1/jobs/"+url.PathEscape(args[0])+what, nil, &j); err != nil {
					return err
				}
				return line(cmd.OutOrStdout(), j)
			},
		}
	}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the trainings, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(cmd, &c, asJSON, "/api/v1/jobs", "jobs", "JOB\tKIND\tSTATE\tDONE\tCREATED\tBY\tMODEL OR ERROR\n", func(out io.Writer, j api.Job) {
				fmt.Fprintf(out, "%s\t%s\t%s\t%.0f %%\t%s\t%s\t%s\n", j.ID, j.Kind, j.State, 100*j.Done, j.Created.Format(time.DateTime), j.By, j.Model+j.Error)
			})
		},
	}, one("show", "Say how a training stands", http.MethodGet, ""), one("cancel", "End a training that waits or runs", http.MethodPost, "/cancel"))
	return cmd
}
