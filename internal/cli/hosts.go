package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) host() *cobra.Command {
	c := &client{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "host", Short: "List the hosts, say what is known of one, or remove one",
	}
	c.flags(cmd)
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the hosts, silent ones first, then the most probable to fail", Args: noArgs,
		Example: `  tardigrade host list
  tardigrade host list --json | jq '.[] | select(.prediction.anomalous) | .id'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all struct {
				Hosts []api.HostView `json:"hosts"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/hosts", nil, &all); err != nil {
				return err
			}
			slices.SortStableFunc(all.Hosts, byConcern)
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(all.Hosts)
			}
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "HOST\tFAULT DOMAIN\tVMS\tLAST SEEN\tSCORE\tFAILS\tSIGNATURE\tREMARKS")
			for _, h := range all.Hosts {
				score, fails, signature := "", "", ""
				if p := h.Prediction; p != nil && p.State != fleet.PredictionStale {
					score, fails, signature = fmt.Sprintf("%.1f", p.AnomalyScore), fmt.Sprintf("%.0f %%", 100*p.FailureProbability), string(p.Signature)
					if p.State == fleet.PredictionLearning {
						score, fails, signature = "", "", fmt.Sprintf("learning, %.0f %%", 100*p.Learned)
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", h.ID, h.FaultDomain, len(h.VMs), h.LastSeen.Format(time.RFC3339), score, fails, signature, strings.Join(remarks(h), ", "))
			}
			return w.Flush()
		},
	}, &cobra.Command{
		Use: "show HOST", Short: "Say what is known of a host: its prediction, and what it can do",
		Example: `  tardigrade host show rack3-host12`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("%s needs the name of one host; 'tardigrade host list' shows them", cmd.CommandPath())}
			}
			var h api.HostView
			if err := c.do(cmd.Context(), http.MethodGet, "/api/v1/hosts/"+url.PathEscape(args[0]), nil, &h); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(h)
			}
			printHost(out, h)
			return nil
		},
	}, &cobra.Command{
		Use: "remove HOST", Short: "Take a host out of the fleet that is there no more",
		Long: `Take a host out of the fleet that is there no more: its credentials, what was learned of it and
its cordon go with it, and it no longer counts among the hosts that must be healthy. Stop its
agent first; the control plane refuses while the host is heard of. To bring it back, enroll it
anew ('tardigrade agent enroll'). What was done to it stays in the lists and the audit trail.`,
		Example: `  tardigrade host remove rack3-host12`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("%s needs the name of one host; 'tardigrade host list' shows them", cmd.CommandPath())}
			}
			var h api.HostView
			if err := c.do(cmd.Context(), http.MethodDelete, "/api/v1/hosts/"+url.PathEscape(args[0]), nil, &h); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if machineReadable(asJSON, out) {
				return json.NewEncoder(out).Encode(h)
			}
			fmt.Fprintf(out, "host %s is removed\n", h.ID)
			return nil
		},
	})
	return cmd
}

func byConcern(a, b api.HostView) int {
	fails := func(h api.HostView) float64 {
		switch {
		case h.Prediction == nil:
			return 0
		case h.Prediction.State == fleet.PredictionStale:
			return 2 // more than any probability
		}
		return h.Prediction.FailureProbability
	}
	switch {
	case fails(a) > fails(b):
		return -1
	case fails(a) < fails(b):
		return 1
	}
	return strings.Compare(string(a.ID), string(b.ID))
}

func remarks(h api.HostView) []string {
	var out []string
	if p := h.Prediction; p == nil {
		out = append(out, "no sample since the control plane's start")
	} else if p.State == fleet.PredictionStale {
		out = append(out, "silent: its last sample is of "+p.Time.Format(time.RFC3339))
	}
	if h.Simulated {
		out = append(out, "simulated")
	}
	if h.DryRun {
		out = append(out, "only watched")
	}
	if h.Cordon != nil {
		out = append(out, "cordoned: "+h.Cordon.Reason)
	}
	return out
}

func printHost(out io.Writer, h api.HostView) {
	fmt.Fprintf(out, "%s, %d VMs, last seen %s\n", h.ID, len(h.VMs), h.LastSeen.Format(time.RFC3339))
	for _, r := range remarks(h) {
		fmt.Fprintf(out, "  %s\n", r)
	}
	fmt.Fprintf(out, "  can do: %v\n", h.Actions)
	if len(h.Units) > 0 {
		fmt.Fprintf(out, "  a recycle restarts, in order: %s\n", strings.Join(h.Units, ", "))
	}
	if h.Prediction != nil {
		printPrediction(out, *h.Prediction)
	}
}

func printPrediction(out io.Writer, p fleet.Prediction) {
	switch p.State {
	case fleet.PredictionLearning:
		fmt.Fprintf(out, "its normal is being learned: %.0f %%\n", 100*p.Learned)
	case fleet.PredictionStale:
		fmt.Fprintf(out, "what was seen last, at %s:\n", p.Time.Format(time.RFC3339))
		fallthrough
	default:
		fmt.Fprintf(out, "anomaly score %.1f by %s\n", p.AnomalyScore, p.Model)
	}
	if p.Signature != fleet.SignatureNone {
		culprit := ""
		if p.Culprit != "" {
			culprit = " of " + p.Culprit
		}
		fmt.Fprintf(out, "%s%s; fails within %s with probability %.2f\n", p.Signature, culprit, time.Duration(p.HorizonSeconds*float64(time.Second)), p.FailureProbability)
	}
	for _, e := range p.Evidence {
		fmt.Fprintf(out, "  %s\n", e)
	}
	for _, c := range p.Contributions {
		value := ""
		if c.Value != nil {
			value = fmt.Sprintf(" (now %.4g)", *c.Value)
		}
		fmt.Fprintf(out, "  %3.0f %% %s%s\n", 100*c.Share, c.Series, value)
	}
}
