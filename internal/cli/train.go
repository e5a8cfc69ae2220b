package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/internal/train"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// trainingCommand are the arguments of the process that trains.
var trainingCommand = []string{"train", "child"}

func (a *app) train() *cobra.Command {
	cmd := &cobra.Command{
		Use: "train", Short: "Train a model into a file, from telemetry or a table",
		Long: `Train a model into a file. It runs in a process of its own with limited memory, and touches no
control plane. 'tardigrade model import FILE' hands the file to one; with --submit the control
plane itself is asked to train, on the telemetry that it has or on a data set (--dataset).

Data come from one of:

  --data DIR   a directory of telemetry ('tardigrade dataset simulate'), with its own truth, or
               a directory of series (series.csv), of which --series names one
  --csv FILE   a table of numbers; --label names its column of 0 and 1
  --influx     the InfluxDB of the configuration, from --from to --to; labels are the incidents
               of --incidents FILE (as 'tardigrade incident list --json' prints them)`,
	}
	cmd.AddCommand(a.trainKind(registry.KindAnomaly, "the normal of hosts that are alike, on at most 40 host-level series, from the newest 60000 samples",
		`  tardigrade train anomaly --data fleet --out anomaly.model
  tardigrade train anomaly --influx --from -72h --to now --out anomaly.model
  tardigrade train anomaly --submit --from -24h`))
	cmd.AddCommand(a.trainKind(registry.KindFailure, "which hosts fail within 5 minutes, an hour and a day, and of what",
		`  tardigrade train failure --data fleet --out failure.model
  tardigrade train failure --influx --from -720h --to now --incidents incidents.jsonl --out failure.model
  tardigrade train failure --csv windows.csv.gz --label failed --out failure.model`))
	cmd.AddCommand(&cobra.Command{
		Use: "child", Short: "The process that trains, as 'train' and the control plane start it", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return jobs.Serve(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	})
	return cmd
}

// past are the flags that name telemetry of the past.
type past struct {
	data, from, to string
	influx         bool
	step           time.Duration
	hosts          []string
}

func (p *past) add(cmd *cobra.Command, what string) {
	f := cmd.Flags()
	f.StringVar(&p.data, "data", "", "`directory` of telemetry to "+what)
	f.BoolVar(&p.influx, "influx", false, "take the InfluxDB of the configuration")
	f.StringVar(&p.from, "from", "", "begin of the range: a `time` (2026-01-02T15:04:05Z) or how long ago (-72h)")
	f.StringVar(&p.to, "to", "", "end of the range: a `time`, how long ago, or now")
	f.DurationVar(&p.step, "step", time.Minute, "InfluxDB: mean over windows of this length; 0s takes every sample")
	f.StringSliceVar(&p.hosts, "hosts", nil, "InfluxDB: these hosts only")
}

// moment reads a time, or one relative to now.
func moment(flag, text string, now time.Time) (time.Time, error) {
	switch {
	case text == "":
		return time.Time{}, nil
	case text == "now":
		return now, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t.UTC(), nil
	}
	if d, err := time.ParseDuration(text); err == nil && strings.HasPrefix(text, "-") {
		return now.Add(d), nil
	}
	return time.Time{}, usageError{fmt.Errorf("%s %q is not a time: write RFC 3339 (2026-01-02T15:04:05Z), how long ago (-72h), or now", flag, text)}
}

// bounds reads --from and --to.
func (p *past) bounds() (from, to time.Time, err error) {
	now := time.Now().UTC()
	if from, err = moment("--from", p.from, now); err != nil {
		return
	}
	if to, err = moment("--to", p.to, now); err != nil {
		return
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		err = usageError{fmt.Errorf("--from (%s) must be before --to (%s)", from.Format(time.RFC3339), to.Format(time.RFC3339))}
	}
	return
}

// ofDirectory reads --from and --to of a past that is not InfluxDB's, and refuses what is for that.
func (p *past) ofDirectory(cmd *cobra.Command) (from, to time.Time, err error) {
	for _, name := range []string{"hosts", "step"} {
		if cmd.Flags().Changed(name) {
			return from, to, usageError{fmt.Errorf("--%s is for --influx: a directory or a file is taken as it is", name)}
		}
	}
	return p.bounds()
}

// database is the configured InfluxDB and the range.
func (p *past) database(c config.Config) (*train.Influx, error) {
	from, to, err := p.bounds()
	if err != nil {
		return nil, err
	}
	if c.Influx.URL == "" {
		return nil, errors.New("no InfluxDB is configured: set influx.url and influx.bucket in the configuration and name it with --config")
	}
	if from.IsZero() {
		return nil, usageError{errors.New("--influx needs --from, for example --from -72h")}
	}
	if to.IsZero() {
		to = time.Now().UTC()
	}
	out := &train.Influx{URL: c.Influx.URL, Org: c.Influx.Org, Bucket: c.Influx.Bucket, Token: c.Influx.Token, CA: c.Influx.CA, From: from, To: to, StepSeconds: p.step.Seconds()}
	for _, h := range p.hosts {
		id := fleet.HostID(h)
		if err := id.Validate(); err != nil {
			return nil, usageError{fmt.Errorf("--hosts: %w", err)}
		}
		out.Hosts = append(out.Hosts, id)
	}
	return out, nil
}

func (a *app) trainKind(kind registry.Kind, what, example string) *cobra.Command {
	var p past
	var csv, out, incidents, dataset string
	var submit, asJSON bool
	var c client
	spec := train.Spec{Kind: kind}
	child := jobs.Child{Args: trainingCommand}
	cmd := &cobra.Command{
		Use: string(kind), Short: "Learn " + what, Example: example, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(a.configFile)
			if err != nil {
				return err
			}
			if submit {
				for _, name := range []string{"data", "csv", "influx", "out", "label", "series", "incidents", "seed", "memory-mib", "timeout"} {
					if cmd.Flags().Changed(name) {
						return usageError{fmt.Errorf("--submit asks the control plane to train on what it has, in its own way: leave --%s out", name)}
					}
				}
				return submitTraining(cmd, &c, kind, p, dataset, asJSON)
			}
			if dataset != "" {
				return usageError{errors.New("--dataset names one of the control plane's and is for --submit; --data takes any directory")}
			}
			spec.Code, spec.CSV, spec.Directory = a.version, csv, p.data
			if p.influx {
				if spec.Influx, err = p.database(cfg); err != nil {
					return err
				}
			} else if spec.From, spec.To, err = p.ofDirectory(cmd); err != nil {
				return err
			}
			if err := spec.Check(); err != nil {
				return usageError{err}
			}
			if out == "" {
				return usageError{errors.New("--out must name the file to write the model to")}
			}
			if child.Timeout <= 0 {
				return usageError{fmt.Errorf("--timeout %v must be more than 0", child.Timeout)}
			}
			if err := canWrite("--out", out); err != nil {
				return err
			}
			if incidents != "" {
				if spec.Incidents, err = readIncidents(incidents); err != nil {
					return err
				}
			}
			if child.Program, err = os.Executable(); err != nil {
				return err
			}
			report := func(string, float64) {}
			if isTerminal(os.Stderr) {
				report = func(stage string, done float64) { fmt.Fprintf(os.Stderr, "\r\033[K%3.0f %% %s", 100*done, stage) }
				defer fmt.Fprint(os.Stderr, "\r\033[K")
			}
			file, err := child.Run(cmd.Context(), spec, report)
			if err != nil {
				return err
			}
			if err := writeFile(out, file); err != nil {
				return err
			}
			return printModelFile(cmd.OutOrStdout(), out, file, asJSON)
		},
	}
	p.add(cmd, "learn from")
	c.localFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&csv, "csv", "", "`file` to learn from, plain or .gz")
	f.StringVar(&spec.Label, "label", "", "`column` of --csv that is 1 where the host fails, or where a sample is not normal")
	f.StringVar(&spec.Series, "series", "", "`name` of the series, where --data is a directory of several")
	f.StringVar(&incidents, "incidents", "", "`file` of incidents, a JSON object a line")
	f.StringVar(&out, "out", "", "`file` to write the model to")
	f.IntVar(&child.MemoryMiB, "memory-mib", 2048, "how much memory the training may have")
	f.DurationVar(&child.Timeout, "timeout", 6*time.Hour, "how long it may take")
	f.Uint64Var(&spec.Seed, "seed", 1, "what is drawn at random")
	f.StringVar(&dataset, "dataset", "", "with --submit: `name` of a directory of telemetry under DATA/datasets of the control plane")
	f.Lookup("hosts").Usage = "InfluxDB and --submit: these hosts only"
	f.Lookup("step").Usage = "InfluxDB and --submit: mean over windows of this length, or from the stream of samples the first of each; 0s takes every sample of InfluxDB, without --submit"
	f.BoolVar(&submit, "submit", false, "ask the control plane (--server) to train")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

func submitTraining(cmd *cobra.Command, c *client, kind registry.Kind, p past, dataset string, asJSON bool) error {
	from, to, err := p.bounds()
	if err != nil {
		return err
	}
	body := map[string]any{"kind": kind}
	if dataset != "" {
		body["dataset"] = dataset
	}
	if cmd.Flags().Changed("step") {
		if p.step <= 0 {
			return usageError{fmt.Errorf("--step %v: with --submit it must be 1s or more", p.step)}
		}
		body["step_s"] = p.step.Seconds()
	}
	if len(p.hosts) > 0 {
		body["hosts"] = p.hosts
	}
	if !from.IsZero() {
		body["from"] = from
	}
	if !to.IsZero() {
		body["to"] = to
	}
	var j jobs.Job
	if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/models/train", body, &j); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if asJSON || !isTerminalWriter(out) {
		return json.NewEncoder(out).Encode(j)
	}
	_, err = fmt.Fprintf(out, "job %s is %s; follow it with 'tardigrade job show %s'\n", j.ID, j.State, j.ID)
	return err
}

// canWrite tells before long work whether writeFile will be able to write the file.
func canWrite(flag, path string) error {
	to, whole, err := destination(path)
	if err == nil && whole {
		var f *os.File
		if f, err = os.CreateTemp(filepath.Dir(to), ".new-*"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s cannot be written: %w", flag, path, err)
	}
	return nil
}

// destination is the file to which a path leads, and whether it can be replaced as a whole: a device or a
// pipe, such as /dev/null, is written into.
func destination(path string) (to string, whole bool, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil: // it will be made, or the attempt says why not
		return path, true, nil
	case info.IsDir():
		return path, false, errors.New("it is a directory")
	case !info.Mode().IsRegular():
		return path, false, nil
	}
	to, err = filepath.EvalSymlinks(path)
	return to, true, err
}

// writeFile writes the file that a person names, whole or not at all.
func writeFile(path string, data []byte) error {
	to, whole, err := destination(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !whole {
		return os.WriteFile(to, data, 0)
	}
	return datadir.WriteFile(to, data)
}

// modelFile is what is printed of a model file.
type modelFile struct {
	File string `json:"file"`
	ID   string `json:"id"`
	registry.Header
	Bytes int `json:"bytes"`
}

func printModelFile(out io.Writer, path string, file []byte, asJSON bool) error {
	h, _, err := registry.Decode(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	h.Reference = nil
	m := modelFile{path, registry.ID(h.Kind, file), h, len(file)}
	if asJSON || !isTerminalWriter(out) {
		return json.NewEncoder(out).Encode(m)
	}
	_, err = fmt.Fprintf(out, "%s: %s, %d rows of %d hosts from %s, %d series, %d bytes\n", path, m.ID, h.Rows, h.Hosts, h.Source, len(h.Series), m.Bytes)
	if err == nil {
		err = printMetrics(out, h.Metrics, h.LeftOut)
	}
	return err
}

// printMetrics prints the metrics of a model, and what the data could not teach it.
func printMetrics(out io.Writer, all map[string]float64, leftOut []string) error {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if _, err := fmt.Fprintf(out, "  %-28s %.4g\n", name, all[name]); err != nil {
			return err
		}
	}
	for _, what := range leftOut {
		if _, err := fmt.Fprintf(out, "  not learned: %s\n", what); err != nil {
			return err
		}
	}
	return nil
}

// readIncidents reads a JSON object a line, as 'incident list --json' prints them.
func readIncidents(path string) ([]fleet.Incident, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []fleet.Incident
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var i fleet.Incident
		if err := json.Unmarshal(lines.Bytes(), &i); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if err := i.Validate(time.Now()); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		out = append(out, i)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("%s: there is a line of more than 1 MiB, which is no incident", path)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// readModel reads a model file, unless it is larger than any.
func readModel(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, registry.MostBytes+1))
	if err == nil && len(data) > registry.MostBytes {
		err = fmt.Errorf("%s is larger than %d MiB: it is no model file", path, registry.MostBytes>>20)
	}
	return data, err
}
