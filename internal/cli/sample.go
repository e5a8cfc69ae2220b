package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) sample() *cobra.Command {
	var asJSON bool
	var interval time.Duration
	var record, machine string
	cmd := &cobra.Command{
		Use:   "sample",
		Short: "Take one sample of this machine, and say what each source of it cost",
		Long: `Take one sample of this machine as the agent would, and say what each source of metrics cost
or why it has none. Rates need two readings, so it takes two, an interval apart, and shows the
second. Nothing is sent anywhere.

With --record it writes the files that a sample is read from into one text file instead, as a
test fixture: twice, an interval apart. They hold no names of people, addresses or command lines; look them
through before you give them away all the same.`,
		Example: `  tardigrade sample
  tardigrade sample --json | jq .values.memory_available_bytes
  tardigrade sample --record bare-metal-kvm.txtar --machine "two sockets, ECC, NVMe"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			id, err := agent.HostName(c.Agent)
			if err != nil {
				return err
			}
			cfg := collector.Config{Host: id, Interval: interval}
			for _, u := range c.Agent.Units {
				cfg.Units = append(cfg.Units, u.Name)
			}
			out := cmd.OutOrStdout()
			if record != "" {
				if machine == "" {
					return usageError{errors.New("--record needs --machine: say in some words what machine it is, for those who read the fixture")}
				}
				data, err := collector.Record(cmd.Context(), cfg, machine, a.version, interval)
				if err != nil {
					return err
				}
				f, err := os.OpenFile(record, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
				if err != nil {
					return err
				}
				_, err = f.Write(data)
				return errors.Join(err, f.Close())
			}
			s, err := collector.New(cfg)
			if err != nil {
				return err
			}
			defer s.Close()
			s.Sample(cmd.Context())
			select {
			case <-cmd.Context().Done():
				return cmd.Context().Err()
			case <-time.After(interval):
			}
			sample, reports := s.Sample(cmd.Context())
			if asJSON || !isTerminalWriter(out) {
				return json.NewEncoder(out).Encode(sampleJSON(sample, reports))
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "SERIES\tVALUE")
			for i, name := range sample.Schema.Names() {
				if v := sample.Values[i]; !math.IsNaN(v) {
					fmt.Fprintf(w, "%s\t%.6g\n", name, v)
				}
			}
			fmt.Fprintln(w, "\nSOURCE\tSTATE\tTOOK\tVALUES\tERROR")
			for _, r := range reports {
				fmt.Fprintf(w, "%s\t%s\t%v\t%d\t%s\n", r.Source, r.State, r.Duration.Round(time.Microsecond), r.Values, errorText(r.Err))
			}
			return w.Flush()
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	f.DurationVar(&interval, "interval", time.Second, "time between the two readings")
	f.StringVar(&record, "record", "", "write the files that are read into this `file`, which must not exist")
	f.StringVar(&machine, "machine", "", "with --record: what machine it is, in some words")
	return cmd
}

type sourceJSON struct {
	Source  string  `json:"source"`
	State   string  `json:"state"`
	Millis  float64 `json:"ms"`
	Values  int     `json:"values"`
	Dropped int     `json:"dropped,omitempty"`
	Error   string  `json:"error,omitempty"`
}

func sampleJSON(s fleet.Sample, reports []collector.SourceReport) any {
	values := make(map[string]float64)
	for i, name := range s.Schema.Names() {
		if v := s.Values[i]; !math.IsNaN(v) {
			values[name] = v
		}
	}
	sources := make([]sourceJSON, len(reports))
	for i, r := range reports {
		sources[i] = sourceJSON{r.Source, string(r.State), float64(r.Duration.Microseconds()) / 1e3, r.Values, r.Dropped, errorText(r.Err)}
	}
	return struct {
		Host    fleet.HostID       `json:"host"`
		Time    time.Time          `json:"time"`
		Boot    string             `json:"boot"`
		Metrics int                `json:"metrics"`
		Values  map[string]float64 `json:"values"`
		Sources []sourceJSON       `json:"sources"`
	}{s.Host, s.Time, s.Boot, len(values), values, sources}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
