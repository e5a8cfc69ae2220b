package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/datasets/simulator"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (a *app) dataset() *cobra.Command {
	cmd := &cobra.Command{Use: "dataset", Short: "Make data to train and to judge models on"}
	cmd.AddCommand(a.datasetSimulate(), a.datasetRecord(), a.datasetService(), a.datasetSampler())
	return cmd
}

// fleetFlags are the size of a simulated fleet.
type fleetFlags struct {
	hosts int
	days  float64
	seed  uint64
}

func (o *fleetFlags) add(cmd *cobra.Command, hosts int) {
	f := cmd.Flags()
	f.IntVar(&o.hosts, "hosts", hosts, "number of hosts")
	f.Float64Var(&o.days, "days", 30, "length in days of virtual time")
	f.Uint64Var(&o.seed, "seed", 1, "seed: the same one gives the same fleet")
}

func (o *fleetFlags) check() error {
	if o.hosts < 1 || o.hosts > 100_000 {
		return usageError{fmt.Errorf("--hosts %d is out of range: 1 to 100000", o.hosts)}
	}
	if !(o.days > 0 && o.days <= 3660) {
		return usageError{fmt.Errorf("--days %v is out of range: more than 0, at most 3660", o.days)}
	}
	return nil
}

// steps is how many samples each host gives.
func (o *fleetFlags) steps(interval time.Duration) int {
	return max(1, int(o.days*float64(24*time.Hour)/float64(interval)))
}

func (a *app) datasetSimulate() *cobra.Command {
	var size fleetFlags
	var out string
	var interval time.Duration
	var faults, benign float64
	var asJSON bool
	cmd := &cobra.Command{
		Use: "simulate", Short: "Write the telemetry of a simulated fleet, with the truth beside it",
		Long: `Write the telemetry of a simulated fleet, with the truth beside it: hosts with VMs in fault
domains, on which memory and descriptors leak, services hang, kernels lock up, disks wear out,
memory errs, links flap, hosts overheat and neighbours make noise, among backups, deploys and
batch jobs that only look like it. Nobody acts on the faults: they go on to their end.

DIR gets three files: manifest.json, telemetry.bin (the samples, rounded to 0.05 %,
compressed) and faults.jsonl: every fault with its kind, begin, first effect and end, and what
each action would have achieved when it was first seen and at several stages after that.
How the files are made up: 'go doc ./datasets/telemetry'; how the fleet works: 'go doc ./datasets/simulator'.

The same seed gives the same files, on however many processors.`,
		Example: `  tardigrade dataset simulate --hosts 1000 --days 30 --seed 7 --out fleet7`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := size.check(); err != nil {
				return err
			}
			if out == "" {
				return usageError{errors.New("--out must name a new directory")}
			}
			if !(faults >= 0) || !(benign >= 0) || interval <= 0 {
				return usageError{fmt.Errorf("--faults %v, --benign %v, --interval %v: the rates may not be negative, and the interval must be more", faults, benign, interval)}
			}
			stdout := cmd.OutOrStdout()
			return simulateDataset(cmd, size, simulator.Config{
				Hosts: size.hosts, Seed: size.seed, Interval: interval, FaultRate: rateOrNone(faults), BenignRate: rateOrNone(benign), Moments: true,
			}, out, asJSON || !isTerminalWriter(stdout))
		},
	}
	size.add(cmd, 100)
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "new `directory`")
	f.DurationVar(&interval, "interval", time.Minute, "time between two samples of a host")
	f.Float64Var(&faults, "faults", 1, "faults per host in 30 days")
	f.Float64Var(&benign, "benign", 1, "batch jobs per host and day; under 1 also the share of hosts with backups and deploys")
	f.BoolVar(&asJSON, "json", false, "print JSON (the default where stdout is not a terminal)")
	return cmd
}

// rateOrNone is a rate as the simulator wants it, whose 0 is a default.
func rateOrNone(rate float64) float64 {
	if rate == 0 {
		return -1
	}
	return rate
}

func simulateDataset(cmd *cobra.Command, size fleetFlags, cfg simulator.Config, dir string, asJSON bool) error {
	began := time.Now()
	f, err := simulator.New(cfg)
	if err != nil {
		return usageError{err}
	}
	hosts := f.Hosts()
	m := telemetry.Manifest{
		Source: fmt.Sprintf("tardigrade dataset simulate --hosts %d --days %g --seed %d --interval %v --faults %g --benign %g", size.hosts, size.days, size.seed, f.Interval(), max(cfg.FaultRate, 0), max(cfg.BenignRate, 0)),
		Start:  f.Now(), Interval: f.Interval().Seconds(), Series: simulator.Series(),
	}
	number := make(map[fleet.HostID]int, len(hosts))
	for i, h := range hosts {
		number[h.ID] = i
		m.Hosts = append(m.Hosts, telemetry.Host{ID: h.ID, FaultDomain: h.FaultDomain, VMs: len(h.VMs)})
	}
	w, err := telemetry.Create(dir, m)
	if err != nil {
		return err
	}
	defer w.Discard()
	var samples []fleet.Sample
	bar := newProgress(cmd.ErrOrStderr(), "simulating", size.steps(f.Interval()))
	for range size.steps(f.Interval()) {
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		samples = f.Step(samples)
		for i := range samples {
			s := &samples[i]
			if err := w.Append(number[s.Host], s.Time, s.Boot, s.Values); err != nil {
				return err
			}
		}
		bar.step()
	}
	bar.end()
	truth, faults, crashes := []any{}, 0, 0
	for _, x := range f.History() {
		truth = append(truth, x)
		if !x.Benign {
			faults++
		}
		if x.Ending == simulator.Crashed {
			crashes++
		}
	}
	done, err := w.Close(truth)
	if err != nil {
		return err
	}
	last := struct {
		Out     string  `json:"out"`
		Hosts   int     `json:"hosts"`
		Samples int64   `json:"samples"`
		Series  int     `json:"series"`
		Faults  int     `json:"faults"`
		Crashes int     `json:"crashes"`
		Benign  int     `json:"look_alikes"`
		Bytes   int64   `json:"bytes"`
		Seconds float64 `json:"seconds"`
	}{dir, len(hosts), done.Samples, len(m.Series), faults, crashes, len(truth) - faults, done.Bytes, time.Since(began).Seconds()}
	stdout := cmd.OutOrStdout()
	if asJSON {
		return json.NewEncoder(stdout).Encode(last)
	}
	_, err = fmt.Fprintf(stdout, "%s: %d hosts, %d samples of %d series, %d faults (%d crashes), %d look-alikes; %.1f MB in %.1f s\n",
		dir, last.Hosts, last.Samples, last.Series, last.Faults, last.Crashes, last.Benign, float64(last.Bytes)/1e6, last.Seconds)
	return err
}

// progress tells on a terminal how far long work is, and on anything else once in ten seconds. Steps may
// come from several goroutines.
type progress struct {
	mu       sync.Mutex
	out      io.Writer
	what     string
	of, done int
	terminal bool
	began    time.Time
	said     time.Time
}

func newProgress(out io.Writer, what string, of int) *progress {
	f, isFile := out.(*os.File)
	now := time.Now()
	return &progress{out: out, what: what, of: of, terminal: isFile && isTerminal(f), began: now, said: now}
}

func (p *progress) step() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	if p.done&0x3f != 0 {
		return
	}
	every := 10 * time.Second
	if p.terminal {
		every = 500 * time.Millisecond
	}
	if time.Since(p.said) < every {
		return
	}
	p.said = time.Now()
	text := fmt.Sprintf("%s: %d %%", p.what, 100*p.done/p.of)
	if p.done >= p.of/50 { // before that nobody can tell
		left := time.Duration(float64(time.Since(p.began)) * float64(p.of-p.done) / float64(p.done))
		text += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	if p.terminal {
		fmt.Fprintf(p.out, "\r%s  ", text)
		return
	}
	fmt.Fprintln(p.out, text)
}

func (p *progress) end() {
	if p.terminal {
		fmt.Fprintf(p.out, "\r%s: done in %v        \n", p.what, time.Since(p.began).Round(100*time.Millisecond))
	}
}
