package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

func (a *app) model() *cobra.Command {
	var c client
	var asJSON bool
	var note string
	cmd := &cobra.Command{
		Use:   "model",
		Short: "Look at models, and say which one is in use",
		Long: `Look at models, and say which one is in use.

A model of the registry is trained by 'tardigrade train' or by a job, and has a version ID. It
begins as a candidate; 'promote' makes it the shadow, which scores live beside what is in use and
acts on nothing, and then the champion. 'rollback' goes back to the champion before. Without an
anomaly champion each host is scored by what the control plane has learned of it alone.

What was learned of a host is in DATA/models/HOST.model and is loaded at the start. To give a host a
fresh start, stop the control plane and remove its file; to move what was learned, copy the file.`,
		Example: `  tardigrade model import anomaly.model
  tardigrade model list
  tardigrade model promote anomaly-0123456789ab --note "quieter on rack 3"
  tardigrade model shadow
  tardigrade model rollback anomaly`,
	}
	c.flags(cmd)
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON, in lists an object a line (the default where stdout is not a terminal)")
	print := func(out io.Writer, m api.Model) error {
		if asJSON || !isTerminalWriter(out) {
			return json.NewEncoder(out).Encode(m)
		}
		return printModel(out, m)
	}
	path := func(id, what string) string { return "/api/v1/models/" + url.PathEscape(id) + what }
	oneID := func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("%s needs one version, as 'tardigrade model list' shows them", cmd.CommandPath())}
		}
		return nil
	}

	list := &cobra.Command{
		Use: "list", Short: "List the versions, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(cmd, &c, asJSON, "/api/v1/models", "models", "VERSION\tSTATE\tTRAINED\tROWS\tHOSTS\tON\n", func(out io.Writer, m api.Model) {
				fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%d\t%s\n", m.ID, m.State, m.Trained.Format(time.DateTime), m.Rows, m.Hosts, m.Source)
			})
		},
	}
	show := &cobra.Command{
		Use: "show FILE|VERSION", Short: "Say what a model file or a version is",
		Example: `  tardigrade model show anomaly.model
  tardigrade model show anomaly-0123456789ab
  tardigrade model show .tardigrade/models/rack3-host12.model`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("model show needs one file or version")}
			}
			out := cmd.OutOrStdout()
			if data, err := readModel(args[0]); err == nil {
				return showFile(out, args[0], data, asJSON)
			} else if isFile(args[0]) || !isVersion(args[0]) {
				return err
			}
			var m api.Model
			if err := c.do(cmd.Context(), http.MethodGet, path(args[0], ""), nil, &m); err != nil {
				return err
			}
			return print(out, m)
		},
	}
	import_ := &cobra.Command{
		Use: "import FILE", Short: "Add a model file to the registry, as a candidate",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("model import needs one file")}
			}
			data, err := readModel(args[0])
			if err != nil {
				return err
			}
			if _, _, err := registry.Decode(data); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			var m api.Model
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/models?note="+url.QueryEscape(note), rawFile(data), &m); err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), m)
		},
	}
	export := &cobra.Command{
		Use: "export VERSION FILE", Short: "Write the file of a version",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("model export needs a version and a file")}
			}
			var data rawFile
			if err := c.do(cmd.Context(), http.MethodGet, path(args[0], "/file"), nil, &data); err != nil {
				return err
			}
			if err := writeFile(args[1], data); err != nil {
				return err
			}
			return printModelFile(cmd.OutOrStdout(), args[1], data, asJSON)
		},
	}
	var straight bool
	promote := &cobra.Command{
		Use: "promote VERSION", Short: "Take a version one step further: candidate to shadow, shadow to champion", Args: oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			var m api.Model
			if err := c.do(cmd.Context(), http.MethodGet, path(args[0], ""), nil, &m); err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPost, path(args[0], "/promote"), api.Promotion{Note: note, Straight: straight, From: m.State}, &m); err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), m)
		},
	}
	promote.Flags().BoolVar(&straight, "straight", false, "to champion at once, without a time in shadow")
	retire := &cobra.Command{
		Use: "retire VERSION", Short: "Take a version out of use", Args: oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			var m api.Model
			if err := c.do(cmd.Context(), http.MethodPost, path(args[0], "/retire"), map[string]any{"note": note}, &m); err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), m)
		},
	}
	rollback := &cobra.Command{
		Use: "rollback anomaly|failure", Short: "Go back to the champion before",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || !registry.Kind(args[0]).Valid() {
				return usageError{errors.New("model rollback needs the kind: anomaly or failure")}
			}
			var m api.Model
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/models/rollback", map[string]any{"kind": args[0], "note": note}, &m); err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), m)
		},
	}
	for _, changes := range []*cobra.Command{import_, promote, retire, rollback} {
		changes.Flags().StringVar(&note, "note", "", "why, for the audit trail")
	}
	shadow := &cobra.Command{
		Use: "shadow", Short: "Compare what shadows say with what is in use", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(cmd, &c, asJSON, "/api/v1/models/shadow", "comparisons", "", func(out io.Writer, s api.Comparison) {
				fmt.Fprintf(out, "%s beside %s since %s: %d samples of %d hosts, mean score %.3f and %.3f (difference %+.3f, absolute %.3f), alarms %d and %d, foreseen %d and %d of %d incidents\n  %s\n",
					s.Shadow, orOwn(s.Champion), s.Since.Format(time.DateTime), s.Samples, s.Hosts, s.MeanShadow, s.MeanChampion, s.MeanDifference, s.MeanAbsolute, s.AlarmsShadow, s.AlarmsChampion,
					s.ForeseenShadow, s.ForeseenChampion, s.Incidents, s.Why)
			})
		},
	}
	drift := &cobra.Command{
		Use: "drift", Short: "Say how far live data have moved from what champions were trained on", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(cmd, &c, asJSON, "/api/v1/models/drift", "drift", "", func(out io.Writer, d api.Drift) {
				fmt.Fprintf(out, "%s since %s: %d of %d series have shifted over %d samples, drifted: %v %s\n", d.Model, d.Since.Format(time.DateTime), d.Shifted, d.Series, d.Samples, d.Drifted, d.Why)
				if o := d.Outcomes; o != nil {
					fmt.Fprintf(out, "  %.1f failures expected over %d stretches of hosts, %d came, %d times somebody acted before\n", o.Expected, o.Judged, o.Failed, o.Averted)
				}
				for _, w := range d.Worst {
					fmt.Fprintf(out, "  %-48s PSI %.3f  KS %.3f\n", w.Series, w.PSI, w.KS)
				}
			})
		},
	}
	cmd.AddCommand(list, show, import_, export, promote, retire, rollback, shadow, drift)
	return cmd
}

func isFile(path string) bool { return strings.ContainsAny(path, "/.") }

func isVersion(id string) bool {
	kind, _, ok := strings.Cut(id, "-")
	return ok && registry.Kind(kind).Valid()
}

func orOwn(version string) string {
	if version == "" {
		return "each host's own detector"
	}
	return version
}

// listing prints what the control plane has at an address under a key: a JSON object a line, or for a person under a
// head what each prints, whose columns are aligned.
func listing[T any](cmd *cobra.Command, c *client, asJSON bool, address, key, head string, each func(io.Writer, T)) error {
	var got map[string]json.RawMessage
	if err := c.do(cmd.Context(), http.MethodGet, address, nil, &got); err != nil {
		return err
	}
	var all []T
	if err := json.Unmarshal(got[key], &all); err != nil {
		return fmt.Errorf("what the control plane answers: %w", err)
	}
	out := cmd.OutOrStdout()
	if asJSON || !isTerminalWriter(out) {
		return eachLine(out, all)
	}
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, head)
	for _, v := range all {
		each(t, v)
	}
	return t.Flush()
}

// eachLine prints a JSON object a line.
func eachLine[T any](out io.Writer, all []T) error {
	e := json.NewEncoder(out)
	for _, v := range all {
		if err := e.Encode(v); err != nil {
			return err
		}
	}
	return nil
}

func printModel(out io.Writer, m api.Model) error {
	fmt.Fprintf(out, "%s is %s since %s, by %s\n", m.ID, m.State, m.Since.Format(time.DateTime), m.By)
	if m.Note != "" {
		fmt.Fprintf(out, "  %s\n", m.Note)
	}
	fmt.Fprintf(out, "  trained %s by %s on %s: %d rows of %d hosts, %d series\n", m.Trained.Format(time.DateTime), m.Code, m.Source, m.Rows, m.Hosts, len(m.Series))
	for _, w := range m.Warnings {
		fmt.Fprintf(out, "  warning: %s\n", w)
	}
	return printMetrics(out, m.Metrics, m.LeftOut)
}

// showFile says what a file of the registry or of a host is.
func showFile(out io.Writer, path string, data []byte, asJSON bool) error {
	if h, state, err := predictor.ReadFile(data); err == nil {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			predictor.Header
			StateBytes int `json:"state_bytes"`
		}{h, len(state)})
	} else if strings.HasPrefix(string(data), "tardigrade host model ") {
		return fmt.Errorf("%s: %w", path, err)
	}
	return printModelFile(out, path, data, asJSON)
}
