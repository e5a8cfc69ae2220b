package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/predictor"
)

func (a *app) model() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model",
		Short: "Look at the models of hosts",
		Long: `Look at the models of hosts. The control plane keeps what it learned of each host in
DATA/models/HOST.model and loads it when it starts. To give a host a fresh start, stop
the control plane and remove its file; to move what was learned, copy the file.`,
	}
	cmd.AddCommand(&cobra.Command{
		Use: "show FILE", Short: "Check a model file and say what it is of",
		Example: `  tardigrade model show .tardigrade/models/rack3-host12.model`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("model show needs one file")}
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			h, state, err := predictor.ReadFile(data)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			out := json.NewEncoder(cmd.OutOrStdout())
			out.SetIndent("", "  ")
			return out.Encode(struct {
				predictor.Header
				StateBytes int `json:"state_bytes"`
			}{h, len(state)})
		},
	})
	return cmd
}
