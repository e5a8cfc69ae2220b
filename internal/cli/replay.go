package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/history"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

func (a *app) replay() *cobra.Command {
	var p past
	var models []string
	var incidents string
	var asJSON bool
	var c client
	r := control.Replay{}
	cmd := &cobra.Command{
		Use: "replay", Short: "Run a model and a policy over the past, and list what they would have recommended",
		Long: `Run a model and a policy over the past: what they would have recommended, on whom, when and at what
cost, against what happened. Nothing is done to any host, and the same past gives the same answer.

The past is a directory of telemetry (--data) or the InfluxDB of the configuration (--influx). What
happened is what the directory knows itself, and the incidents of --incidents FILE.

Without --model each host is learned from its own begin, as serve does it, for model.learn of the
configuration, or half of the time for which a recording says that its hosts were calm; --model takes a file, or
a version of the control plane's registry (--server), one of each kind at most. The policy is one of

  expected  that of serve where a person approves: the least expected VM-seconds of interruption
  ours      that of serve in mode automatic: with drawn cure rates, and exploring
  static    always the first phase that the host can do, whatever is wrong
  bandit    drawn cure rates, the same for each signature, of which nothing is believed

with the costs of the configuration and the stated beliefs: nothing is done in a replay, and so nothing
is learned. 'tardigrade evaluate policy' compares them where actions have effects.

One line for each recommendation, by time, and a last one with the sums; on a terminal the incidents
that nothing was recommended about as well, which JSON has in the last line.`,
		Example: `  tardigrade replay --data fleet --model failure.model
  tardigrade replay --influx --from -24h --to now --step 10s --incidents incidents.jsonl
  tardigrade replay --influx --from -72h --model anomaly-0123456789ab --policy static --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.Config, err = config.Load(a.configFile); err != nil {
				return err
			}
			if !slices.Contains(control.ReplayPolicies(), r.Policy) {
				return usageError{fmt.Errorf("--policy %q is not one of %s", r.Policy, strings.Join(control.ReplayPolicies(), ", "))}
			}
			if (p.data == "") == !p.influx {
				return usageError{errors.New("name the past, one of --data DIR and --influx")}
			}
			if r.VMs < 1 || r.VMs > 10_000 {
				return usageError{fmt.Errorf("--vms %d is out of range: 1 to 10000", r.VMs)}
			}
			if r.Source, err = p.source(cmd, r.Config); err != nil {
				return err
			}
			defer r.Source.Close()
			if incidents != "" {
				if r.Incidents, err = readIncidents(incidents); err != nil {
					return err
				}
			}
			if r.Models, err = c.models(cmd.Context(), models); err != nil {
				return err
			}
			r.Actions = []fleet.Action{fleet.ActionNone, fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate, fleet.ActionHandOver}
			if isTerminal(os.Stderr) {
				r.Progress = func(done, of int) { fmt.Fprintf(os.Stderr, "\r\033[K%d of %d hosts", done, of) }
				defer fmt.Fprint(os.Stderr, "\r\033[K")
			}
			all, sum, err := r.Run(cmd.Context())
			if err != nil {
				return err
			}
			if sum.Samples == 0 {
				return errors.New("the past has no sample in that range: see --from and --to")
			}
			out := cmd.OutOrStdout()
			if asJSON || !isTerminalWriter(out) {
				if err := eachLine(out, all); err != nil {
					return err
				}
				return json.NewEncoder(out).Encode(sum)
			}
			return printReplay(out, all, sum)
		},
	}
	p.add(cmd, "go over")
	c.localFlags(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&models, "model", nil, "a model `file` or version; may be given twice, for each kind")
	f.StringVar(&r.Policy, "policy", "expected", strings.Join(control.ReplayPolicies(), ", "))
	f.StringVar(&incidents, "incidents", "", "`file` of incidents, a JSON object a line")
	f.IntVar(&r.VMs, "vms", 1, "how many VMs a host has, where the past does not say")
	f.BoolVar(&asJSON, "json", false, "print JSON lines (the default where stdout is not a terminal)")
	return cmd
}

// source opens the past.
func (p *past) source(cmd *cobra.Command, cfg config.Config) (history.Source, error) {
	if !p.influx {
		from, to, err := p.ofDirectory(cmd)
		if err != nil {
			return nil, err
		}
		return history.Directory(p.data, from, to)
	}
	db, err := p.database(cfg)
	if err != nil {
		return nil, err
	}
	return history.FromInflux(cmd.Context(), history.Influx{
		Config: influx.Config{URL: db.URL, Org: db.Org, Bucket: db.Bucket, Token: db.Token, CA: db.CA, Timeout: 2 * time.Minute},
		From:   db.From, To: db.To, Window: p.step, Only: db.Hosts,
	})
}

// models reads model files, each named by its path or as a version of the registry, and one of each kind at most.
func (c *client) models(ctx context.Context, names []string) ([][]byte, error) {
	var files [][]byte
	kinds := make(map[registry.Kind]string)
	for _, m := range names {
		file, err := readModel(m)
		if errors.Is(err, os.ErrNotExist) && isVersion(m) && !isFile(m) {
			err = c.do(ctx, http.MethodGet, "/api/v1/models/"+url.PathEscape(m)+"/file", nil, (*rawFile)(&file))
		}
		if err != nil {
			return nil, fmt.Errorf("--model: %w", err)
		}
		h, _, err := registry.Decode(file)
		if err != nil {
			return nil, fmt.Errorf("--model %s: %w", m, err)
		}
		if before, ok := kinds[h.Kind]; ok {
			return nil, usageError{fmt.Errorf("--model %s and %s are both of the kind %s: give one of each kind at most", before, m, h.Kind)}
		}
		kinds[h.Kind] = m
		files = append(files, file)
	}
	return files, nil
}

// printReplay prints a replay for a person.
func printReplay(out io.Writer, all []control.Replayed, sum control.ReplaySummary) error {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)).Round(time.Second) }
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "TIME\tHOST\tACTION\tSIGNATURE\tP\tCOST\tNOTHING\tWHAT HAPPENED")
	for _, x := range all {
		what := "nothing"
		if x.Incident != "" {
			what = fmt.Sprintf("%s (%s)", x.Happened, x.Incident)
		}
		if lead := x.LeadSeconds; lead != nil && *lead >= 0 {
			what += fmt.Sprintf(", failed %v later", seconds(*lead))
		} else if lead != nil {
			what += fmt.Sprintf(", had failed %v before", seconds(-*lead))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.2f\t%.1f\t%.1f\t%s\n", x.Time.Format(time.DateTime), x.Host, x.Action, x.Signature, x.FailureProbability, x.CostVMSeconds, x.CostOfNothing, what)
	}
	for _, in := range sum.Missed {
		end := "no failure"
		if in.Failed {
			end = "the host failed"
		}
		fmt.Fprintf(t, "%s\t%s\tnone\t\t\t\t\t%s (%s), %s: missed\n", in.From.Format(time.DateTime), in.Host, in.Signature, in.ID, end)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var actions []string
	for _, a := range fleet.Actions() {
		if n := sum.Actions[a]; n > 0 {
			actions = append(actions, fmt.Sprintf("%d %s", n, a))
		}
	}
	if len(actions) == 0 {
		actions = []string{"none"}
	}
	_, err := fmt.Fprintf(out, "%d hosts, %d samples, %s to %s, each learned for %v\n%d recommendations (%s), %d about an incident, %d false (%.3f per host and day)\n%d incidents, %d seen; %d failures, %d foreseen, median %v ahead, %d of these by the right signature\nexpected cost %.0f VM-seconds; the failures cost %.0f\n",
		sum.Hosts, sum.Samples, sum.From.Format(time.DateTime), sum.To.Format(time.DateTime), seconds(sum.LearnSeconds), sum.Recommendations, strings.Join(actions, ", "), sum.True, sum.False, sum.FalsePerHostDay,
		sum.Incidents, sum.Seen, sum.Failures, sum.Foreseen, seconds(sum.MedianLeadSeconds), sum.SignatureRight, sum.CostVMSeconds, sum.CrashVMSeconds)
	return err
}
