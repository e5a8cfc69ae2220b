package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/demo"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) serve() *cobra.Command {
	var data, listen string
	var interval time.Duration
	var simulated bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the control plane, watching this machine too",
		Long: `Run the control plane: the bus, prediction, recommendations, the API and the dashboard.
An agent for this machine runs inside (agent.disabled: true switches it off); it acts on
nothing unless agent.act is true.

With --demo a small fleet of simulated hosts runs beside it, labelled as such
everywhere. They begin to fail within a minute and are recovered; what is
recommended for them is approved by itself after some seconds. This machine is only
watched then: what is recommended for it is a dry run.`,
		Example: `  tardigrade serve --demo
  tardigrade serve
  tardigrade serve --config tardigrade.yaml --data /var/lib/tardigrade`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := a.load()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("data") {
				c.Data = data
			}
			if cmd.Flags().Changed("listen") {
				c.API.Listen = listen
			}
			if cmd.Flags().Changed("interval") {
				c.Agent.Interval = config.Duration(interval)
			}
			if err := c.Validate(); err != nil {
				return err
			}
			if simulated {
				if c.Agent.Act {
					return errors.New("--demo acts on nothing real: take agent.act out of the configuration, or leave --demo out")
				}
				c.Policy = demoPolicy(c.Policy)
			}
			if r := c.Agent.Reset; !c.Agent.Disabled && r.Enabled && r.Mode == config.ResetKexec {
				return errors.New("agent.reset.mode kexec would end this control plane together with the host: run the agent on its own, with 'tardigrade agent', and set agent.disabled")
			}
			return a.runServe(cmd.Context(), c, simulated, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", ".tardigrade", "`directory` for everything durable")
	f.StringVar(&listen, "listen", "127.0.0.1:8080", "`address` of the API and the dashboard")
	f.DurationVar(&interval, "interval", time.Second, "time between samples of this machine")
	f.BoolVar(&simulated, "demo", false, "add simulated hosts that fail and are recovered")
	return cmd
}

// demoSeed makes the demonstration the same each time.
const demoSeed = 1

// demoPolicy makes room for the demonstration, in which a third of the fleet fails
// within a minute. Nothing real is acted on under it.
func demoPolicy(p config.Policy) config.Policy {
	p.File = "" // what changes in it would not make that room
	p.MaxConcurrent, p.MaxConcurrentPerDomain = max(p.MaxConcurrent, 6), max(p.MaxConcurrentPerDomain, 3)
	p.Cooldown = min(p.Cooldown, config.Duration(30*time.Second))
	p.MinHealthyRatio = min(p.MinHealthyRatio, 0.3)
	p.StormRatio = max(p.StormRatio, 0.6)
	return p
}

func (a *app) runServe(ctx context.Context, c config.Config, simulated bool, log *slog.Logger) error {
	serverTLS, err := control.ServerTLS("api.tls", c.API.TLS)
	if err != nil {
		return err
	}
	if err := api.CheckExposure(c.API.Listen, serverTLS != nil, len(c.API.Tokens)); err != nil {
		return err
	}
	dir, err := datadir.Open(c.Data)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Listen first: a port in use is the commonest mistake, and the cheapest to find.
	l, err := net.Listen("tcp", c.API.Listen)
	if err != nil {
		return fmt.Errorf("api.listen: %w; stop what uses the port, or choose another with --listen", err)
	}
	defer l.Close()
	if serverTLS != nil {
		l = tls.NewListener(l, serverTLS)
	}
	options := control.Options{Config: c, Dir: dir, Version: a.version, Demo: simulated, Trainer: trainingCommand, Log: log}
	handedOver := make(chan fleet.HostID, 64)
	if simulated {
		options.Ended = func(e fleet.Execution) {
			if e.Simulated && e.State != fleet.ExecutionSucceeded {
				select {
				case handedOver <- e.Host:
				default:
				}
			}
		}
	}
	plane, err := control.Open(ctx, options)
	if err != nil {
		return err
	}
	defer plane.Close()
	tokens := make(map[string]api.Identity)
	for _, t := range c.API.Tokens {
		tokens[t.SHA256] = api.Identity{Name: t.Name, Role: api.Role(t.Role)}
	}
	server, err := api.New(api.Config{Fleet: plane, Version: a.version, Tokens: tokens, Log: log})
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	part(plane.Run)
	part(func(ctx context.Context) error { return server.Serve(ctx, l) })
	if !c.Agent.Disabled {
		part(func(ctx context.Context) error { return a.agentInside(ctx, c, plane, log) })
	}
	if simulated {
		part(func(ctx context.Context) error {
			dir, err := dir.Sub("demo")
			if err != nil {
				return err
			}
			return demo.Run(ctx, demo.Options{Dial: plane.AgentInside, HandedOver: handedOver, Dir: dir, Seed: demoSeed, Log: log})
		})
	}
	scheme := "http://"
	if serverTLS != nil {
		scheme = "https://"
	}
	log.Info("serving", "url", scheme+l.Addr().String(), "bus", plane.BusAddr(), "data", dir.Path, "version", a.version)
	<-ctx.Done()
	log.Info("stopping", "because", context.Cause(ctx))
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// agentInside runs the agent of this machine over the embedded bus.
func (a *app) agentInside(ctx context.Context, c config.Config, plane *control.Plane, log *slog.Logger) error {
	id, err := agent.HostName(c.Agent)
	if err != nil {
		return err
	}
	b, err := plane.AgentInside(id)
	if err != nil {
		return err
	}
	defer b.Close()
	dir := filepath.Join(c.Data, "agent")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return agent.RunHost(ctx, c.Agent, id, b, dir, a.version, log)
}
