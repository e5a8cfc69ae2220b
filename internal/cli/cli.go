// Package cli is the command line of Tardigrade: it reads flags and the
// configuration, and wires the packages together.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

// Main runs the program and returns its exit status: 0 for success, 1 for a
// failure, 2 for a wrong use.
func Main(version string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	root, out := newRoot(version), newOutput(os.Stdout)
	root.SetOut(out)
	used, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = out.err
	}
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(os.Stderr, "tardigrade: %s\nSee '%s --help'.\n", shownError(err), used.CommandPath())
		return 2
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		err = fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	fmt.Fprintf(os.Stderr, "tardigrade: %s\n", shownError(err))
	return 1
}

// usageError is a mistake in the command line.
type usageError struct{ error }

// app is what every command shares.
type app struct {
	version    string
	configFile string
	logLevel   string
	logJSON    bool
}

func newRoot(version string) *cobra.Command {
	a := &app{version: version}
	root := &cobra.Command{
		Use:   "tardigrade",
		Short: "Keep virtual machines alive when their host starts to fail",
		Long: `Tardigrade watches the hosts of a Linux/KVM fleet, predicts which ones are failing,
recommends the cheapest action that saves their VMs, and carries it out once it is
allowed to: recycle the host's services, a preserving reset, or live migration.

Start with:
  tardigrade serve --demo         the whole loop on this machine and a simulated fleet
  tardigrade serve                the control plane, watching this machine
  tardigrade agent --config FILE  the agent on a host, reporting to a control plane

Nothing acts on a host until its agent is configured with 'act: true', and then
each action waits for a person's approval unless policy.mode says otherwise.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config", "c", "", "configuration `file` (YAML); without one, safe defaults")
	f.StringVar(&a.logLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error")
	f.BoolVar(&a.logJSON, "log-json", !isTerminal(os.Stderr), "log as JSON lines (the default where stderr is not a terminal)")
	root.AddCommand(a.serve(), a.agent(), a.configCommand(), a.cordon())
	root.AddCommand(a.audit(), a.model(), a.metrics(), a.bench(), a.sample(), a.deadletter(), a.evaluate())
	root.AddCommand(a.host(), a.recommendation(), a.policy(), a.freeze(), a.execution())
	root.AddCommand(a.train(), a.job(), a.incident(), a.replay())
	root.AddCommand(a.dataset())
	refuseUnknown(root)
	return root
}

// refuseUnknown lets commands that only group others refuse what is none of them: cobra would print
// their help and call it success.
func refuseUnknown(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		refuseUnknown(c)
	}
	if cmd.Runnable() {
		return
	}
	unknown := func(name string) error {
		hint := ""
		if like := cmd.SuggestionsFor(name); len(like) > 0 {
			hint = ": did you mean " + strings.Join(like, " or ") + "?"
		}
		return usageError{fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), name, hint)}
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = cobra.ArbitraryArgs
	// A flag of the command that was meant is unknown here.
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if before := c.Flags().Args(); c == cmd && len(before) > 0 {
			return unknown(before[0])
		}
		return usageError{err}
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknown(args[0])
	}
}

// load reads the configuration and makes the logger.
func (a *app) load() (config.Config, *slog.Logger, error) {
	c, err := config.Load(a.configFile)
	if err != nil {
		return c, nil, err
	}
	log, err := a.logger(os.Stderr)
	return c, log, err
}

func (a *app) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q is not debug, info, warn or error", a.logLevel)}
	}
	o := &slog.HandlerOptions{Level: level}
	if a.logJSON {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

// noArgs refuses arguments as a wrong use.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument, and was given %q", cmd.CommandPath(), args[0])}
	}
	return nil
}
