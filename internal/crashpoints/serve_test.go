package crashpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

// The control plane of these tests is this test's own program too: what `serve` runs,
// told by a file when and where to end.
const (
	envAPI = "CRASHPOINTS_API" // the address of the API
	envBus = "CRASHPOINTS_BUS" // the address of the bus
)

// deadline ends a process at one of its durable writes, once the file at path says
// which.
type deadline struct {
	path string

	mu    sync.Mutex
	armed bool
	k     int
	way   string
}

func (d *deadline) write(_ string, done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.armed {
		text, err := os.ReadFile(d.path)
		if err != nil || done {
			return
		}
		k, way, _ := strings.Cut(string(text), ":")
		d.k, _ = strconv.Atoi(k)
		d.way, d.armed = way, true
	}
	if !done {
		d.k--
	}
	if d.k != 0 {
		return
	}
	switch {
	case d.way == "before" && !done, d.way == "after" && done:
		die()
	case d.way == "during" && !done:
		time.AfterFunc(500*time.Microsecond, die)
	}
}

// serveMain is `tardigrade serve` without flags.
func serveMain() error {
	c := config.Default()
	c.Data = filepath.Join(os.Getenv(envDir), "serve")
	c.Bus.Listen = os.Getenv(envBus)
	// The same fault comes back with every point, and a recycle stays the answer to it.
	c.Policy.Cooldown, c.Policy.Attempts, c.Policy.HandOverSeconds = 0, 100, 1e6
	c.Policy.Deadlines.Begin = config.Duration(2 * time.Minute) // where this machine is busy
	c.Model.Learn = config.Duration(2 * time.Second)            // nothing is recommended before
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	dir, err := datadir.Open(c.Data)
	if err != nil {
		return err
	}
	defer dir.Close()
	l, err := net.Listen("tcp", os.Getenv(envAPI))
	if err != nil {
		return err
	}
	ctx := context.Background()
	end := &deadline{path: filepath.Join(os.Getenv(envDir), "armed")}
	plane, err := control.Open(ctx, control.Options{Config: c, Dir: dir, Version: "test", OnWrite: end.write, Log: log})
	if err != nil {
		return err
	}
	server, err := api.New(api.Config{Fleet: plane, Version: "test", Log: log})
	if err != nil {
		return err
	}
	go server.Serve(ctx, l)
	return plane.Run(ctx)
}

// hostMain is `tardigrade agent` without flags.
func hostMain() error {
	dir := os.Getenv(envDir)
	credentials, err := control.ReadCredentials(filepath.Join(dir, "credentials.json"))
	if err != nil {
		return err
	}
	c := config.Default().Agent
	c.Act, c.Guests.QMPDir, c.Interval = true, os.Getenv(envQMP), config.Duration(500*time.Millisecond)
	for _, u := range strings.Fields(os.Getenv(envUnits)) {
		c.Units = append(c.Units, config.Unit{Name: u})
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	b, err := bus.DialAgent(bus.AgentOptions{Host: credentials.Host, URL: "nats://" + os.Getenv(envBus), Token: credentials.Token, Log: log})
	if err != nil {
		return err
	}
	return agent.RunHost(context.Background(), c, credentials.Host, b, filepath.Join(dir, "agent"), "test", log)
}

// lane is a host with its own control plane.
type lane struct {
	t        *testing.T
	host     fleet.HostID
	dir, api string
	env      []string
	units    []string
	guest    *rigtest.QEMU
	serving  *process
	agent    *process
}

// process is a running child.
type process struct {
	cmd *exec.Cmd
	out bytes.Buffer
	end chan struct{}
}

func (l *lane) start(role string) *process {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self), end: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), append(l.env, envRole+"="+role)...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.end)
	}()
	return p
}

func (p *process) kill() string {
	p.cmd.Process.Kill()
	<-p.end
	return p.out.String()
}

// ended tells whether the process has ended.
func (p *process) ended() bool {
	select {
	case <-p.end:
		return true
	default:
		return false
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	r, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	return r.Address()
}

func newLane(t *testing.T, host fleet.HostID, units ...string) *lane {
	t.Helper()
	l := &lane{t: t, host: host, dir: short(t), api: freeAddress(t), units: units}
	systemctl(t, append([]string{"start"}, units...)...)
	sockets := filepath.Join(l.dir, "q")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	l.guest = rigtest.StartQEMU(t, sockets, "vm", guestMiB)
	l.env = []string{envDir + "=" + l.dir, envAPI + "=" + l.api, envBus + "=" + freeAddress(t), envUnits + "=" + strings.Join(units, " "), envQMP + "=" + sockets}
	for _, d := range []string{"serve", "agent"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	credentials, err := control.Enroll(filepath.Join(l.dir, "serve"), host)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(credentials)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "credentials.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	l.serving = l.start("serve")
	l.agent = l.start("host")
	t.Cleanup(func() {
		said := l.agent.kill()
		served := l.serving.kill()
		if t.Failed() {
			t.Logf("the agent said:\n%s\nthe control plane said:\n%s", said[max(0, len(said)-3000):], served[max(0, len(served)-6000):])
		}
	})
	l.guest.AwaitTicks(10, time.Minute)
	return l
}

// ask asks the control plane; false where it does not answer as it should.
func (l *lane) ask(method, path string, body any, into any) bool {
	data, err := json.Marshal(body)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(l.t.Context(), method, "http://"+l.api+path, bytes.NewReader(data))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return err == nil && resp.StatusCode < 300 && json.Unmarshal(answer, into) == nil
}

// await waits for the world outside; false if it does not come.
func await(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

func (l *lane) executions() (all []fleet.Execution, ok bool) {
	var answer struct{ Executions []fleet.Execution }
	ok = l.ask("GET", "/api/v1/executions", nil, &answer)
	return answer.Executions, ok
}

// find returns the executions for which ok holds.
func (l *lane) find(of func(fleet.Execution) bool) (found []fleet.Execution, ok bool) {
	all, ok := l.executions()
	for _, e := range all {
		if of(e) {
			found = append(found, e)
		}
	}
	return found, ok
}

// recommendations returns those in one of the states, or all.
func (l *lane) recommendations(states ...fleet.RecommendationState) (found []fleet.Recommendation, ok bool) {
	var answer struct{ Recommendations []fleet.Recommendation }
	ok = l.ask("GET", "/api/v1/recommendations?limit=1000", nil, &answer)
	for _, r := range answer.Recommendations {
		if len(states) == 0 || slices.Contains(states, r.State) {
			found = append(found, r)
		}
	}
	return found, ok
}

// scene is something that a person does with a host.
type scene struct {
	// prepare brings the host to where it can be done.
	prepare func() bool
	// ask does it, and tells whether that was accepted.
	ask func() (accepted bool)
	// again, if not nil, is called once the control plane is there: still, or again.
	again func()
	// over tells whether nothing more follows from it.
	over func() bool
	// judge says what is wrong in the end; started is how often each unit was.
	judge func(accepted bool, started []int, got *tally) (bad []string)
	// after puts things back.
	after func() bool
}

// decision is the approval or rejection of a recommendation, which comes since the first
// service has stopped.
func (l *lane) decision(verb string) scene {
	var id string
	mine := func() (rec fleet.Recommendation, runs []fleet.Execution, ok bool) {
		all, ok1 := l.recommendations()
		runs, ok2 := l.find(func(e fleet.Execution) bool { return e.Recommendation == id })
		i := slices.IndexFunc(all, func(r fleet.Recommendation) bool { return r.ID == id })
		if i >= 0 {
			rec = all[i]
		}
		return rec, runs, ok1 && ok2 && i >= 0
	}
	return scene{
		prepare: func() bool {
			// A service that was never seen to run is not missed.
			seen := await(2*time.Minute, func() bool {
				var answer struct{ Points []api.Point }
				ok := l.ask("GET", fmt.Sprintf("/api/v1/hosts/%s/telemetry?from=-1m&metric=unit_active{%s}", l.host, l.units[0]), nil, &answer)
				n := len(answer.Points)
				return ok && n >= 3 && answer.Points[n-1].Value == 1
			})
			if !seen {
				return false
			}
			systemctl(l.t, "stop", l.units[0])
			return await(2*time.Minute, func() bool {
				open, _ := l.recommendations(fleet.RecommendationPending)
				if len(open) == 1 && open[0].Action == fleet.ActionRecycle {
					id = open[0].ID
				}
				return len(open) == 1 && id == open[0].ID
			})
		},
		ask: func() bool {
			var rec fleet.Recommendation
			return l.ask("POST", "/api/v1/recommendations/"+id+"/"+verb, struct{}{}, &rec)
		},
		over: func() bool {
			rec, runs, ok := mine()
			return ok && rec.State != fleet.RecommendationApproved && rec.State != fleet.RecommendationExecuting &&
				!slices.ContainsFunc(runs, func(e fleet.Execution) bool { return !e.State.Final() })
		},
		judge: func(accepted bool, started []int, got *tally) (bad []string) {
			rec, runs, _ := mine()
			allowed := []fleet.RecommendationState{fleet.RecommendationPending, fleet.RecommendationSuperseded}
			switch {
			case verb == "reject" && accepted:
				allowed = []fleet.RecommendationState{fleet.RecommendationRejected}
			case verb == "reject":
				allowed = append(allowed, fleet.RecommendationRejected)
			case len(runs) > 0:
				allowed = []fleet.RecommendationState{fleet.RecommendationDone}
				if runs[0].State != fleet.ExecutionSucceeded {
					bad = append(bad, fmt.Sprintf("it is %s: %s", runs[0].State, runs[0].Outcome))
				}
			case accepted:
				bad = append(bad, "an approval that was accepted is forgotten")
			}
			if !slices.Contains(allowed, rec.State) {
				bad = append(bad, fmt.Sprintf("the recommendation is %s: %s", rec.State, rec.Note))
			}
			if len(runs) > 1 || verb == "reject" && len(runs) > 0 {
				got.DoubleExecutions++
				bad = append(bad, fmt.Sprintf("%d executions", len(runs)))
			}
			for i, n := range started {
				if n != len(runs) {
					bad = append(bad, fmt.Sprintf("%s was started %d times", l.units[i], n))
				}
			}
			return bad
		},
		after: func() bool {
			systemctl(l.t, "start", l.units[0])
			return await(2*time.Minute, func() bool {
				open, ok := l.recommendations(fleet.RecommendationPending, fleet.RecommendationApproved, fleet.RecommendationExecuting)
				for _, rec := range open { // a machine that is busy with other tests may look unusual for minutes
					if rec.State == fleet.RecommendationPending {
						l.ask("POST", "/api/v1/recommendations/"+rec.ID+"/reject", struct{}{}, &rec)
					}
				}
				return ok && len(open) == 0
			})
		},
	}
}

// cancellation is that of a recycle whose agent has not begun yet, since it is stopped.
func (l *lane) cancellation() scene {
	var id string
	mine := func() (e fleet.Execution, ok bool) {
		found, _ := l.find(func(e fleet.Execution) bool { return e.ID == id })
		if len(found) != 1 {
			return e, false
		}
		return found[0], true
	}
	return scene{
		prepare: func() bool {
			if err := l.agent.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				l.t.Fatal(err)
			}
			var e fleet.Execution
			if !l.ask("POST", "/api/v1/executions", map[string]any{"host": l.host, "action": "recycle", "reason": "to be cancelled"}, &e) {
				return false
			}
			id = e.ID
			return await(time.Minute, func() bool {
				e, ok := mine()
				return ok && e.State == fleet.ExecutionRecycling
			})
		},
		ask: func() bool {
			var e fleet.Execution
			return l.ask("POST", "/api/v1/executions/"+id+"/cancel", struct{}{}, &e)
		},
		again: func() {
			if err := l.agent.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				l.t.Fatal(err)
			}
		},
		over: func() bool {
			e, ok := mine()
			return ok && e.State.Final()
		},
		judge: func(accepted bool, started []int, got *tally) (bad []string) {
			e, _ := mine()
			late := e.State == fleet.ExecutionSucceeded && strings.Contains(e.Outcome, "came too late")
			switch {
			case accepted && e.CancelledBy == "":
				bad = append(bad, "a wish to cancel that was accepted is forgotten")
			case e.CancelledBy != "" && e.State != fleet.ExecutionCancelled && !late, e.CancelledBy == "" && e.State != fleet.ExecutionSucceeded:
				bad = append(bad, fmt.Sprintf("cancelled by %q, it is %s: %s", e.CancelledBy, e.State, e.Outcome))
			}
			for i, n := range started {
				if n > 1 || e.State == fleet.ExecutionSucceeded && n != 1 {
					bad = append(bad, fmt.Sprintf("%s was started %d times", l.units[i], n))
				}
			}
			if started[1] > started[0] {
				bad = append(bad, "the second service was restarted, the first not")
			}
			return bad
		},
	}
}

// point plays a scene, ends the control plane where kill says, starts it again, and looks
// at what became of it.
func (l *lane) point(kill string, s scene) (crashed bool, got tally) {
	begun := time.Now()
	defer func() { l.t.Logf("%s: %+v in %v", kill, got, time.Since(begun).Round(time.Millisecond)) }()
	known := await(2*time.Minute, func() bool {
		var h fleet.Host
		return l.ask("GET", "/api/v1/hosts/"+string(l.host), nil, &h) && len(h.VMs) == 1
	})
	if !known || !s.prepare() {
		l.t.Errorf("%s: the host is not there, or not as it should be", kill)
		return false, got
	}
	before := make([]int, len(l.units))
	for i, u := range l.units {
		before[i] = starts(l.t, u)
	}
	armed := filepath.Join(l.dir, "armed")
	if err := os.WriteFile(armed+".new", []byte(kill), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(armed+".new", armed); err != nil {
		l.t.Fatal(err)
	}
	accepted := s.ask()
	if s.again != nil && !l.serving.ended() {
		s.again()
	}
	// It ends at its write, or there is no such write.
	await(time.Minute, func() bool { return l.serving.ended() || s.over() })
	crashed = await(700*time.Millisecond, l.serving.ended)
	if err := os.Remove(armed); err != nil {
		l.t.Fatal(err)
	}
	if crashed {
		got.CrashPoints = 1
	} else {
		l.serving.kill() // it still counts its writes
	}
	l.serving = l.start("serve")
	if crashed && s.again != nil {
		s.again()
	}
	var bad []string
	if !await(2*time.Minute, s.over) {
		got.Stuck++
		bad = append(bad, "it does not come to an end")
	}
	started := make([]int, len(l.units))
	for i, u := range l.units {
		started[i] = starts(l.t, u) - before[i]
		if started[i] > 1 {
			got.DoubleExecutions++
		}
	}
	bad = append(bad, s.judge(accepted, started, &got)...)
	bad = append(bad, lost(l.t, l.guest, &got)...)
	if s.after != nil && !s.after() {
		bad = append(bad, "the host does not come to rest")
	}
	if len(bad) > 0 {
		l.t.Errorf("%s: %s", kill, strings.Join(bad, "; "))
		return true, got
	}
	got.Recovered = got.CrashPoints
	return crashed, got
}

// trail fails the test unless the audit trail is whole.
func (l *lane) trail() {
	l.serving.kill()
	b, err := bus.Open(l.t.Context(), bus.Options{Dir: filepath.Join(l.dir, "serve", "bus"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		l.t.Error(err)
		return
	}
	defer b.Close()
	counts := map[string]int{}
	err = bus.OpenAudit(b).Verify(l.t.Context(), func(_ uint64, r bus.AuditRecord) {
		counts[r.Event]++
	})
	for _, event := range []string{"recommend", "approve", "reject", "execution.requested", "execution.succeeded", "execution.stopping", "execution.cancelled"} {
		if counts[event] == 0 {
			l.t.Errorf("the audit trail has no record of %q: %v", event, counts)
		}
	}
	if err != nil {
		l.t.Errorf("the audit trail: %v", err)
	}
}

// controlPlane ends the control plane at every one of its writes from a person's approval
// of a recommendation to the end of the recycle on a real host, from a rejection, and from
// a cancellation, and lets it go on. Three such hosts are one beside the other.
func controlPlane(t *testing.T) (total tally) {
	lanes := make([]*lane, len(laneWays))
	for i := range lanes {
		lanes[i] = newLane(t, fleet.HostID(fmt.Sprint("host", i)), laneUnits(i)...)
	}
	got := make([]tally, len(lanes))
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() {
			for _, s := range []scene{l.decision("approve"), l.decision("reject"), l.cancellation()} {
				got[i].add(enumerateWay(t, laneWays[i], func(kill string) (bool, tally) { return l.point(kill, s) }))
			}
			l.trail()
		})
	}
	wg.Wait()
	for _, g := range got {
		total.add(g)
	}
	return total
}

// laneWays are the ways to end the control plane, each on a host of its own.
var laneWays = []string{"before", "after", "during"}

func laneUnits(i int) []string {
	return []string{fmt.Sprintf("first%d.service", i), fmt.Sprintf("second%d.service", i)}
}
