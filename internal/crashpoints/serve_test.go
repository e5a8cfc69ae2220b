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
	c.Policy.Cooldown = 0
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
	c.Act, c.Guests.QMPDir = true, os.Getenv(envQMP)
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
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
	agent := l.start("host")
	t.Cleanup(func() {
		said := agent.kill()
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

// find returns the executions that a point asked for.
func (l *lane) find(reason string) (found []fleet.Execution, ok bool) {
	all, ok := l.executions()
	for _, e := range all {
		if e.Reason == reason {
			found = append(found, e)
		}
	}
	return found, ok
}

// point asks for a recycle, ends the control plane where kill says, starts it again,
// and looks at what became of it.
func (l *lane) point(kill string) (crashed bool, got tally) {
	begun := time.Now()
	defer func() { l.t.Logf("%s: %+v in %v", kill, got, time.Since(begun).Round(time.Millisecond)) }()
	known := await(30*time.Second, func() bool {
		var h fleet.Host
		return l.ask("GET", "/api/v1/hosts/"+string(l.host), nil, &h) && len(h.VMs) == 1
	})
	if !known {
		l.t.Errorf("%s: the host is not there", kill)
		return false, got
	}
	before := make(map[string]int)
	for _, u := range l.units {
		before[u] = starts(l.t, u)
	}
	armed := filepath.Join(l.dir, "armed")
	if err := os.WriteFile(armed+".new", []byte(kill), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(armed+".new", armed); err != nil {
		l.t.Fatal(err)
	}
	var e fleet.Execution
	accepted := l.ask("POST", "/api/v1/executions", map[string]any{"host": l.host, "action": "recycle", "reason": kill}, &e)
	// It ends at its write, or there is no such write.
	await(20*time.Second, func() bool {
		found, ok := l.find(kill)
		return l.serving.ended() || ok && len(found) == 1 && found[0].State.Final()
	})
	if !await(700*time.Millisecond, l.serving.ended) {
		os.Remove(armed)
		return false, got
	}
	if err := os.Remove(armed); err != nil {
		l.t.Fatal(err)
	}
	got.CrashPoints = 1
	l.serving = l.start("serve")
	var found []fleet.Execution
	final := await(40*time.Second, func() bool {
		var ok bool
		found, ok = l.find(kill)
		return ok && (len(found) == 0 || found[0].State.Final())
	})
	var bad []string
	if !final {
		got.Stuck++
		bad = append(bad, fmt.Sprintf("it does not come to an end: %+v", found))
	}
	want := 0
	switch {
	case len(found) > 1:
		got.DoubleExecutions++
		bad = append(bad, fmt.Sprintf("%d executions", len(found)))
	case len(found) == 0 && accepted:
		bad = append(bad, "an execution that was accepted is forgotten")
	case len(found) == 1 && final:
		want = 1
		if found[0].State != fleet.ExecutionSucceeded {
			bad = append(bad, fmt.Sprintf("it is %s: %s", found[0].State, found[0].Outcome))
		}
	}
	for _, u := range l.units {
		d := starts(l.t, u) - before[u]
		if d > 1 {
			got.DoubleExecutions++
		}
		if d != want {
			bad = append(bad, fmt.Sprintf("%s was started %d times", u, d))
		}
	}
	bad = append(bad, lost(l.t, l.guest, &got)...)
	if len(bad) > 0 {
		l.t.Errorf("%s: %s", kill, strings.Join(bad, "; "))
		return true, got
	}
	got.Recovered++
	return true, got
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
	begun, ended := 0, 0
	err = bus.OpenAudit(b).Verify(l.t.Context(), func(_ uint64, r bus.AuditRecord) {
		switch r.Event {
		case "execution.requested":
			begun++
		case "execution.succeeded":
			ended++
		}
	})
	if err != nil || begun == 0 || ended == 0 {
		l.t.Errorf("the audit trail: %d begun, %d ended, %v", begun, ended, err)
	}
}

// controlPlane ends the control plane at every one of its writes while it has services
// recycled on a real host, and lets it go on. Three such hosts are one beside the other.
func controlPlane(t *testing.T) (total tally) {
	lanes := make([]*lane, len(laneWays))
	for i := range lanes {
		lanes[i] = newLane(t, fleet.HostID(fmt.Sprint("host", i)), laneUnits(i)...)
	}
	got := make([]tally, len(lanes))
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() {
			got[i] = enumerateWay(t, laneWays[i], l.point)
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
