package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/record"
)

func (a *app) datasetRecord() *cobra.Command {
	var out string
	var kinds []string
	cfg := record.Config{}
	var asJSON bool
	var all []string
	for _, k := range record.Kinds() {
		all = append(all, string(k))
	}
	cmd := &cobra.Command{
		Use: "record", Short: "Record real faults on real systemd hosts, with the truth beside the telemetry",
		Long: `Record real faults. For each, a systemd host is booted in a container, with three services
and the agent's sampler; it is watched in calm, then a fault is brought upon it, until the health
check of its service has failed three times in a row.

Faults: ` + strings.Join(all, ", ") + `.

DIR gets the same three files as that of 'dataset simulate'; faults.jsonl says when each fault
began and when the health check failed. The hosts' processes, files and networks are their own
and end with the run; CPUs, memory and disks are this machine's, which the faults cpu-hog,
fork-storm and io-stall load while they last. A host with cpu-hog has one CPU, and the service's
disk under io-stall takes 8 MiB/s.

It needs root, and the packages systemd-container, dbus, e2fsprogs, stress-ng and nftables.`,
		Example: `  tardigrade dataset record --out recorded --runs 3 --parallel 4`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, k := range kinds {
				if !slices.Contains(all, k) {
					return usageError{fmt.Errorf("--faults: %q is unknown, there are %s", k, strings.Join(all, ", "))}
				}
				if slices.Contains(cfg.Kinds, record.Kind(k)) {
					return usageError{fmt.Errorf("--faults: %q is there twice; --runs says how often each is recorded", k)}
				}
				cfg.Kinds = append(cfg.Kinds, record.Kind(k))
			}
			switch {
			case len(cfg.Kinds) == 0:
				return usageError{errors.New("--faults names none")}
			case out == "":
				return usageError{errors.New("--out must name a new directory")}
			case cfg.Runs < 1 || cfg.Runs > 1000 || cfg.Parallel < 1 || cfg.Parallel > 64:
				return usageError{errors.New("--runs is 1 to 1000 and --parallel 1 to 64")}
			case cfg.Interval < 100*time.Millisecond || min(cfg.Calm, cfg.Most)/10 < cfg.Interval || max(cfg.Calm, cfg.Most) > 24*time.Hour:
				return usageError{errors.New("--interval is at least 100ms, and --calm and --most are ten of it at least, and 24h at most")}
			}
			var err error
			if cfg.Program, err = os.Executable(); err != nil {
				return err
			}
			if cfg.Program, err = filepath.EvalSymlinks(cfg.Program); err != nil {
				return err
			}
			cfg.Source = fmt.Sprintf("tardigrade %s dataset record --faults %s --runs %d --parallel %d --calm %v --most %v --interval %v; %s, %d CPUs",
				a.version, strings.Join(kinds, ","), cfg.Runs, cfg.Parallel, cfg.Calm, cfg.Most, cfg.Interval, kernel(), runtime.NumCPU())
			cfg.Progress = func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), text) }
			// Its hosts, mounts and control groups are taken away in the end, which takes seconds: a second
			// signal must not end the program before.
			again := make(chan os.Signal, 1)
			signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
			defer signal.Stop(again)
			m, faults, err := record.Run(cmd.Context(), cfg, out)
			if err != nil {
				return err
			}
			failed := 0
			for _, f := range faults {
				if f.Ending == record.Failed {
					failed++
				}
			}
			stdout := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(stdout) {
				return json.NewEncoder(stdout).Encode(struct {
					Out     string `json:"out"`
					Hosts   int    `json:"hosts"`
					Samples int64  `json:"samples"`
					Series  int    `json:"series"`
					Faults  int    `json:"faults"`
					Failed  int    `json:"failed"`
				}{out, len(m.Hosts), m.Samples, len(m.Series), len(faults), failed})
			}
			_, err = fmt.Fprintf(stdout, "%s: %d samples of %d series on %d hosts; %d of %d faults made the health check fail\n", out, m.Samples, len(m.Series), len(m.Hosts), failed, len(faults))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "new `directory`")
	f.StringSliceVar(&kinds, "faults", all, "faults to record")
	f.IntVar(&cfg.Runs, "runs", 1, "times that each fault is recorded")
	f.IntVar(&cfg.Parallel, "parallel", 2, "hosts at a time")
	f.DurationVar(&cfg.Calm, "calm", 2*time.Minute, "time before the fault")
	f.DurationVar(&cfg.Most, "most", 3*time.Minute, "longest time that a fault may last")
	f.DurationVar(&cfg.Interval, "interval", time.Second, "time between two samples")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

func kernel() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown kernel"
	}
	return "Linux " + strings.TrimSpace(string(b))
}

// datasetService is what runs on a recorded host as one of its services.
func (a *app) datasetService() *cobra.Command {
	var listen, store, log, share string
	cmd := &cobra.Command{
		Use: "service", Short: "Be a service of a recorded host", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return record.Service(cmd.Context(), listen, share, store, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "", "`address`")
	f.StringVar(&store, "store", "", "`directory` of its own")
	f.StringVar(&log, "log", "", "`directory` of its log")
	f.StringVar(&share, "share", "", "`directory` in which the file fault says what befalls it")
	return cmd
}

// datasetSampler is what runs on a recorded host as its sampler.
func (a *app) datasetSampler() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "sampler", Short: "Sample a recorded host", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := a.load()
			if err != nil {
				return err
			}
			f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			var last *fleet.Schema
			return agent.Record(cmd.Context(), c.Agent, fleet.HostID(c.Agent.Host), func(s fleet.Sample) error {
				line, err := record.Line(s, s.Schema != last)
				if err != nil {
					return err
				}
				last = s.Schema
				_, err = f.Write(line)
				return err
			}, log)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "new `file`")
	return cmd
}
