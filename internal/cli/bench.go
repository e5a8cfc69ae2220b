package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/bench"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/model/detector"
)

func (a *app) bench() *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure on this machine what the parts cost and what they bear"}
	cmd.AddCommand(a.benchCollect(), a.benchIngest(), a.benchScore(), a.benchFeed())
	return cmd
}

func (a *app) benchCollect() *cobra.Command {
	var samples int
	var pause time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use: "collect", Short: "Measure what sampling this machine costs",
		Long: `Take samples of this machine and say what one costs: CPU time, allocations, and what each
source took. Between two samples is a pause in which caches cool down, as between real ones.`,
		Example: `  tardigrade bench collect --json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			var units []string
			for _, u := range c.Agent.Units {
				units = append(units, u.Name)
			}
			r, err := collector.Bench(cmd.Context(), collector.Config{Host: "bench", Units: units}, samples, pause)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(r)
			}
			fmt.Fprintf(out, "%d metrics, %.2f ms CPU and %.0f allocations a sample, %.1f MiB resident, over %d samples\n", r.Metrics, r.CPUMillis, r.Allocs, r.RSSMiB, r.Samples)
			for name, ms := range r.Sources {
				fmt.Fprintf(out, "  %-12s %.3f ms\n", name, ms)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&samples, "samples", 200, "`number` of samples")
	cmd.Flags().DurationVar(&pause, "pause", 50*time.Millisecond, "pause between two samples")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

func (a *app) benchIngest() *cobra.Command {
	o := bench.Ingest{Kills: 4}
	var asJSON, keep bool
	cmd := &cobra.Command{
		Use: "ingest", Short: "Send points through agents, bus and InfluxDB, kill them meanwhile, and count what arrived",
		Long: `Start an InfluxDB server 1.8, a control plane and agents as processes of their own, on
loopback and in a directory of their own, send points through all of them, kill some of them
with SIGKILL during the run, and count in InfluxDB what arrived.`,
		Example: `  tardigrade bench ingest --points 1000000 --fields 30 --kill influx,bus,agent --json
  tardigrade bench ingest --hosts 100 --backlog 600 --points 100     ten minutes without the bus
  tardigrade bench ingest --points 500000 --influxd /usr/local/bin/influxd`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Program, err = os.Executable(); err != nil {
				return err
			}
			if o.Influxd == "" {
				if o.Influxd, err = findInfluxd(); err != nil {
					return err
				}
			}
			if o.Dir, err = os.MkdirTemp("", "tardigrade-bench-*"); err != nil {
				return err
			}
			stderr := cmd.ErrOrStderr()
			o.Say = func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
			r, err := o.Run(cmd.Context())
			if err != nil || keep {
				o.Say("the directory %s is kept", o.Dir)
			} else if err := os.RemoveAll(o.Dir); err != nil {
				return err
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				err = json.NewEncoder(out).Encode(r)
			} else {
				_, err = fmt.Fprintf(out, "%d sent, %d stored, %d lost, %d twice, %.0f points/s, %d kills, %.1f s\n", r.Sent, r.Stored, r.Lost, r.Duplicates, r.PointsPerS, r.Kills, r.Seconds)
			}
			if err == nil && (r.Lost > 0 || r.Duplicates > 0) {
				err = fmt.Errorf("%d points were lost and %d are there twice", r.Lost, r.Duplicates)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Points, "points", 1_000_000, "`number` of points")
	f.IntVar(&o.Fields, "fields", 30, "`number` of values in a point")
	f.IntVar(&o.Hosts, "hosts", 10, "`number` of agents that send, in one process")
	f.IntVar(&o.Backlog, "backlog", 0, "`number` of samples that each agent has on disk already, as after a partition")
	f.StringSliceVar(&o.Kill, "kill", nil, "`list` of what to kill: influx, bus, agent")
	f.IntVar(&o.Kills, "kills", o.Kills, "how often to kill each")
	f.StringVar(&o.Influxd, "influxd", "", "`program` of InfluxDB 1.8; the default is influxd on the PATH or in .build/bin")
	f.BoolVar(&keep, "keep", false, "keep the directory with data and logs")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

func (a *app) benchScore() *cobra.Command {
	o := bench.Score{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "score", Short: "Measure what scoring the samples of a fleet costs",
		Long: `Generate telemetry of a fleet (hidden causes that columns share, daily cycles, bursts,
constants), let a detector learn, and score the samples of all hosts in turn on one core, so that
a host's state has left the caches when its next sample comes. The rate is by CPU time; the one by
the wall clock is beside it. Detectors: ` + strings.Join(detector.Names(), ", ") + `.

Hosts that are alike share a model; --models says how many models there are.`,
		Example: `  tardigrade bench score --dims 38 --hosts 1000 --json
  tardigrade bench score --hosts 100 --models 100 --detector knn`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := detector.Find(o.Detector); err != nil {
				return usageError{err}
			}
			r, err := o.Run(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(r)
			}
			_, err = fmt.Fprintf(out, "%s: %.0f samples of %d metrics a second on one core (%.2f µs each), %.0f allocations a sample, %.1f KiB a host, %.1f KiB a model\n",
				r.Detector, r.PerS, r.Dims, r.Micros, r.Allocs, r.HostBytes/1024, float64(r.ModelBytes)/1024)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Detector, "detector", "default", "`name` of the detector")
	f.IntVar(&o.Dims, "dims", 38, "`number` of metrics in a sample")
	f.IntVar(&o.Hosts, "hosts", 1000, "`number` of hosts")
	f.IntVar(&o.Models, "models", 1, "`number` of models that the hosts share")
	f.IntVar(&o.Learn, "learn", 2000, "`number` of samples that a model learns from")
	f.IntVar(&o.Samples, "samples", 200_000, "`number` of samples to score")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

// findInfluxd looks on the PATH, and where .ci/install-influxd.sh puts it.
func findInfluxd() (string, error) {
	if path, err := exec.LookPath("influxd"); err == nil {
		return path, nil
	}
	if path, err := exec.LookPath("./.build/bin/influxd"); err == nil {
		return path, nil
	}
	return "", errors.New("influxd 1.8 is neither on the PATH nor in .build/bin: build it with .ci/install-influxd.sh, or name it with --influxd")
}

// benchFeed is the agents' side of bench ingest.
func (a *app) benchFeed() *cobra.Command {
	var f bench.Feed
	cmd := &cobra.Command{
		Use: "feed", Short: "The agents' side of bench ingest, which starts it", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return f.Run(cmd.Context())
		},
	}
	cmd.Flags().IntVar(&f.Points, "points", 0, "points")
	cmd.Flags().IntVar(&f.Fields, "fields", 0, "fields")
	cmd.Flags().IntVar(&f.Hosts, "hosts", 0, "hosts")
	cmd.Flags().StringVar(&f.Dir, "dir", "", "directory of the hosts")
	cmd.Flags().StringVar(&f.Bus, "bus", "", "address of the bus")
	return cmd
}
