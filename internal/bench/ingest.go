// Package bench measures what the parts cost: the road of the telemetry with real
// processes (agents, the control plane and InfluxDB, which it starts, and kills if asked to),
// and the scoring of samples.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
	"github.com/tardigrade-recovery/tardigrade/internal/spool"
)

// Ingest says what to send and what to kill.
type Ingest struct {
	// Points is the number of samples, and Fields the number of values in each.
	Points, Fields int
	// Hosts is how many agents send, all in one process.
	Hosts int
	// Backlog is how many samples each agent has on disk already, as after a time in
	// which it could not reach the bus.
	Backlog int
	// Kill lists what is killed with SIGKILL: influx, bus (the control plane, which
	// carries the embedded bus and the ingester), agent.
	Kill []string
	// Kills is how often each is killed.
	Kills int
	// Influxd is the program of InfluxDB 1.8, and Program this one.
	Influxd, Program string
	// Dir is an empty directory for everything.
	Dir string
	// Say is told of the progress.
	Say func(format string, args ...any)
}

// IngestResult is what came of it.
type IngestResult struct {
	Sent       int64   `json:"sent"`
	Stored     int64   `json:"stored"`
	Lost       int64   `json:"lost"`
	Duplicates int64   `json:"duplicates"`
	PointsPerS float64 `json:"points_per_s"`
	Kills      int     `json:"kills"`
	Seconds    float64 `json:"seconds"`
}

// Names of what can be killed.
const (
	Influx = "influx"
	Bus    = "bus"
	Agent  = "agent"
)

func (o *Ingest) check() error {
	if o.Backlog < 0 || o.Backlog > 1_000_000 {
		return fmt.Errorf("bench: a backlog of %d samples: 0 to 1000000 are possible", o.Backlog)
	}
	if o.Points < 1 || o.Fields < 1 || o.Fields > 100 || o.Hosts < 1 || o.Hosts > o.Points || o.Hosts > 1000 {
		return fmt.Errorf("bench: %d points of %d fields from %d hosts: points must be at least 1, fields 1 to 100, hosts 1 to 1000 and at most as many as points", o.Points, o.Fields, o.Hosts)
	}
	for _, k := range o.Kill {
		if k != Influx && k != Bus && k != Agent {
			return fmt.Errorf("bench: %q cannot be killed: influx, bus and agent can", k)
		}
	}
	return nil
}

// Run starts the processes, lets the agents send everything, and counts in InfluxDB.
func (o Ingest) Run(ctx context.Context) (IngestResult, error) {
	var out IngestResult
	if err := o.check(); err != nil {
		return out, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &rig{Ingest: o, processes: make(map[string]*process)}
	defer r.close()
	if err := r.prepare(ctx); err != nil {
		return out, err
	}
	began := time.Now()
	for _, name := range []string{Bus, Agent} {
		if err := r.start(name); err != nil {
			return out, err
		}
	}
	if err := r.killing(ctx); err != nil {
		return out, err
	}
	out.Kills = len(o.Kill) * o.Kills
	if err := r.await(ctx, "the agents have sent everything", func() (bool, error) { return r.finished(Agent) }); err != nil {
		return out, err
	}
	out.Sent = int64(o.Points) + int64(o.Hosts)*int64(o.Backlog)
	// Stored is final once it is all there, or has stopped to grow.
	last, since := int64(-1), time.Now()
	var asked time.Time
	err := r.await(ctx, "InfluxDB has everything", func() (bool, error) {
		if time.Since(asked) < time.Second { // counting costs the server something
			return false, nil
		}
		asked = time.Now()
		n, err := r.stored(ctx)
		if err != nil {
			return false, nil // it may be starting
		}
		if n != last {
			last, since = n, time.Now()
			o.Say("%d of %d points stored", n, out.Sent)
		}
		return n >= out.Sent || time.Since(since) > time.Minute, nil
	})
	if err != nil {
		return out, err
	}
	out.Seconds = time.Since(began).Seconds()
	out.Stored = last
	out.Lost, out.Duplicates = max(0, out.Sent-out.Stored), max(0, out.Stored-out.Sent)
	out.PointsPerS = float64(out.Stored) / out.Seconds
	return out, nil
}

// killing kills everything that is to be killed, spread evenly: the agents over what is
// sent, InfluxDB and the bus over what is stored, which comes later.
func (r *rig) killing(ctx context.Context) error {
	var agents, others []string
	for range r.Kills {
		for _, name := range r.Kill {
			if name == Agent {
				agents = append(agents, name)
			} else {
				others = append(others, name)
			}
		}
	}
	all := func(names []string, done func() int64) error {
		for i, name := range names {
			at := int64(r.Points) * int64(i+1) / int64(len(names)+1)
			if err := r.await(ctx, fmt.Sprintf("%d points are through", at), func() (bool, error) { return done() >= at, nil }); err != nil {
				return err
			}
			r.Say("kill -9 %s after %d points", name, at)
			if err := r.restart(ctx, name); err != nil {
				return err
			}
		}
		return nil
	}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = all(agents, r.sent) })
	wg.Go(func() {
		var asked time.Time
		var n int64
		errs[1] = all(others, func() int64 {
			if time.Since(asked) > time.Second {
				asked = time.Now()
				if now, err := r.stored(ctx); err == nil {
					n = now
				}
			}
			return n
		})
	})
	wg.Wait()
	return errors.Join(errs...)
}

// rig is the running processes.
type rig struct {
	Ingest
	influx    string // address
	bus       string
	ports     []*loopback.Reservation
	config    string
	mu        sync.Mutex
	processes map[string]*process
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	// killed tells that its end is as it should be.
	killed atomic.Bool
}

const database = "bench"

func (r *rig) prepare(ctx context.Context) error {
	for _, address := range []*string{&r.influx, &r.bus} {
		port, err := loopback.Reserve()
		if err != nil {
			return err
		}
		r.ports = append(r.ports, port)
		*address = port.Address()
	}
	influxDir := filepath.Join(r.Dir, "influx")
	if err := os.MkdirAll(influxDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(influxDir, "influxdb.conf"), fmt.Appendf(nil, `reporting-disabled = true
bind-address = "127.0.0.1:0"
[meta]
  dir = %q
[data]
  dir = %q
  wal-dir = %q
  index-version = "tsi1"
[monitor]
  store-enabled = false
[http]
  bind-address = %q
  flux-enabled = true
  log-enabled = false
`, filepath.Join(influxDir, "meta"), filepath.Join(influxDir, "data"), filepath.Join(influxDir, "wal"), r.influx), 0o600); err != nil {
		return err
	}
	if err := r.start(Influx); err != nil {
		return err
	}
	if err := r.await(ctx, "InfluxDB answers", func() (bool, error) { _, err := r.query(ctx, "CREATE DATABASE "+database); return err == nil, nil }); err != nil {
		return err
	}
	data := filepath.Join(r.Dir, "serve")
	r.config = filepath.Join(r.Dir, "serve.yaml")
	if err := os.WriteFile(r.config, fmt.Appendf(nil, `data: %s
api: {listen: "127.0.0.1:0"}
bus: {listen: %q}
influx: {url: "http://%s", bucket: %s/autogen}
agent: {disabled: true}
policy: {mode: dry-run}
`, data, r.bus, r.influx, database), 0o600); err != nil {
		return err
	}
	for i := range r.Hosts {
		c, err := control.Enroll(data, hostID(i))
		if err != nil {
			return err
		}
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		dir := filepath.Join(r.Dir, "agent", string(hostID(i)))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "credentials.json"), text, 0o600); err != nil {
			return err
		}
		if err := r.backlog(filepath.Join(dir, "spool"), hostID(i)); err != nil {
			return err
		}
	}
	return nil
}

// backlog fills the spool of an agent with one sample for each second before origin.
func (r *rig) backlog(dir string, id fleet.HostID) error {
	if r.Backlog == 0 {
		return nil
	}
	kept, err := spool.Open(dir, spoolBytes)
	if err != nil {
		return err
	}
	defer kept.Close()
	schema := fleet.NewSchema(fields(r.Fields))
	records := make([][]byte, r.Backlog)
	for i := range records {
		records[i] = bus.EncodeSample(nil, point(id, schema, origin.Add(time.Duration(i-r.Backlog)*time.Second), int64(i)))
	}
	_, err = kept.Append(records...)
	return err
}

const spoolBytes = 512 << 20

func hostID(i int) fleet.HostID { return fleet.HostID(fmt.Sprintf("bench-%04d", i)) }

// start starts a part; it ends with this process at the latest.
func (r *rig) start(name string) error {
	var cmd *exec.Cmd
	switch name {
	case Influx:
		cmd = exec.Command(r.Influxd, "run", "-config", filepath.Join(r.Dir, "influx", "influxdb.conf"))
	case Bus:
		cmd = exec.Command(r.Program, "serve", "--config", r.config, "--log-json")
	case Agent:
		cmd = exec.Command(r.Program, "bench", "feed", "--dir", filepath.Join(r.Dir, "agent"), "--bus", "nats://"+r.bus,
			"--points", strconv.Itoa(r.Points), "--fields", strconv.Itoa(r.Fields), "--hosts", strconv.Itoa(r.Hosts))
	}
	log, err := os.OpenFile(filepath.Join(r.Dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes[name] = p
	return nil
}

func (r *rig) process(name string) *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.processes[name]
}

// restart kills a part and starts it again at once.
func (r *rig) restart(ctx context.Context, name string) error {
	p := r.process(name)
	p.killed.Store(true)
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.start(name)
}

// finished tells whether a part ended well.
func (r *rig) finished(name string) (bool, error) {
	p := r.process(name)
	select {
	case <-p.done:
		if p.err != nil {
			return false, fmt.Errorf("%s ended with %w: see %s", name, p.err, filepath.Join(r.Dir, name+".log"))
		}
		return true, nil
	default:
		return false, nil
	}
}

func (r *rig) close() {
	for _, p := range r.processes {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	for _, port := range r.ports {
		port.Release()
	}
}

// await polls the other processes.
func (r *rig) await(ctx context.Context, what string, ok func() (bool, error)) error {
	end := time.Now().Add(20 * time.Minute)
	for {
		done, err := ok()
		if err != nil || done {
			return err
		}
		for _, name := range []string{Influx, Bus} {
			if p := r.process(name); p != nil && !p.killed.Load() {
				select {
				case <-p.done:
					if p.killed.Load() {
						continue
					}
					return fmt.Errorf("%s ended by itself: %w: see %s", name, p.err, filepath.Join(r.Dir, name+".log"))
				default:
				}
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within 20 minutes: %s", what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sent is how many points the agents know to be safe.
func (r *rig) sent() int64 {
	var n int64
	for i := range r.Hosts {
		n += readProgress(filepath.Join(r.Dir, "agent", string(hostID(i)), "progress"))
	}
	return n
}

// query asks InfluxDB in its own language.
func (r *rig) query(ctx context.Context, q string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.influx+"/query?"+url.Values{"db": {database}, "q": {q}}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("InfluxDB answers %s: %s", resp.Status, body)
	}
	return body, err
}

// stored counts the points.
func (r *rig) stored(ctx context.Context) (int64, error) {
	body, err := r.query(ctx, "SELECT count("+fields(r.Fields)[0]+") FROM host")
	if err != nil {
		return 0, err
	}
	var answer struct {
		Results []struct {
			Series []struct{ Values [][]any }
			Error  string
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, err
	}
	if len(answer.Results) != 1 || answer.Results[0].Error != "" {
		return 0, fmt.Errorf("InfluxDB answers %s", body)
	}
	if len(answer.Results[0].Series) == 0 {
		return 0, nil
	}
	n, ok := answer.Results[0].Series[0].Values[0][1].(float64)
	if !ok {
		return 0, fmt.Errorf("InfluxDB answers %s", body)
	}
	return int64(n), nil
}

// fields are metrics of the catalogue.
func fields(n int) []string {
	var out []string
	for _, m := range collector.Catalogue() {
		if m.Instance == "" && len(out) < n {
			out = append(out, m.Name)
		}
	}
	return out
}

// Feed is the agents' side: it sends the points of all hosts, beginning where an
// earlier run of it was killed.
type Feed struct {
	Points, Fields, Hosts int
	Dir, Bus              string
	Log                   *slog.Logger
}

// Run returns once the bus has everything.
func (f Feed) Run(ctx context.Context) error {
	schema := fleet.NewSchema(fields(f.Fields))
	errs := make([]error, f.Hosts)
	var wg sync.WaitGroup
	for i := range f.Hosts {
		share := f.Points / f.Hosts
		if i < f.Points%f.Hosts {
			share++
		}
		wg.Go(func() { errs[i] = f.host(ctx, hostID(i), schema, int64(share)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// origin is the time of the first point.
var origin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (f Feed) host(ctx context.Context, id fleet.HostID, schema *fleet.Schema, points int64) error {
	dir := filepath.Join(f.Dir, string(id))
	credentials, err := control.ReadCredentials(filepath.Join(dir, "credentials.json"))
	if err != nil {
		return err
	}
	b, err := bus.DialAgent(bus.AgentOptions{Host: id, URL: f.Bus, Token: credentials.Token, Log: f.Log})
	if err != nil {
		return err
	}
	defer b.Close()
	kept, err := spool.Open(filepath.Join(dir, "spool"), spoolBytes)
	if err != nil {
		return err
	}
	defer kept.Close()
	progress := filepath.Join(dir, "progress")
	first := readProgress(progress)
	next := first
	var failed error
	err = agent.Feed(ctx, id, b, kept, f.Log, func() *fleet.Sample {
		if next == points {
			return nil
		}
		s := point(id, schema, origin.Add(time.Duration(next)*time.Millisecond), next)
		next++
		return s
	}, func(accepted int64) {
		if err := os.WriteFile(progress+".new", strconv.AppendInt(nil, first+accepted, 10), 0o600); err != nil {
			failed = err
			return
		}
		failed = os.Rename(progress+".new", progress)
	})
	return errors.Join(err, failed)
}

// point is sample n of a host.
func point(id fleet.HostID, schema *fleet.Schema, at time.Time, n int64) *fleet.Sample {
	s := &fleet.Sample{Host: id, Time: at, Boot: "00000000", Schema: schema, Values: make([]float64, schema.Len())}
	for j := range s.Values {
		s.Values[j] = math.Round(1000*(float64(j)+math.Sin(float64(n)/100+float64(j)))) / 1000
	}
	return s
}

func readProgress(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
