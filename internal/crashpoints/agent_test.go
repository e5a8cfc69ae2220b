package crashpoints

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/systemd"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/executor/journal"
	"github.com/tardigrade-recovery/tardigrade/internal/agent"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// The agent of these tests is this test's own program, started again in another role
// with what it needs in environment variables: the agent's executor with the drivers
// of a real host, whose command comes from a file and whose reports go to one.
const (
	envRole  = "CRASHPOINTS_ROLE"
	envDir   = "CRASHPOINTS_DIR"   // command.json, journal/ and reports.jsonl
	envUnits = "CRASHPOINTS_UNITS" // services to restart
	envQMP   = "CRASHPOINTS_QMP"   // the guests' sockets
	envKill  = "CRASHPOINTS_KILL"  // "3:torn": how to end at the third write
)

func TestMain(m *testing.M) {
	role := map[string]func() error{"agent": agentMain, "serve": serveMain, "host": hostMain}[os.Getenv(envRole)]
	if role == nil {
		os.Exit(m.Run())
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The ways to end at a write: before any of it is written, when half of it is, when it
// is on disk, and so much later, in the midst of what follows it.
var ways = []string{"before", "torn", "after", "3ms", "15ms", "40ms"}

// station is the way to end at a station of the VMs' way instead of at a write.
const station = "station"

func die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // nothing more happens
}

// killer ends this process at one of its journal's writes.
type killer struct {
	mu     sync.Mutex
	k      int
	way    string
	synced chan struct{} // a write is on disk
}

func newKiller(text string) (*killer, error) {
	c := &killer{k: -1, synced: make(chan struct{}, 1)}
	if text == "" {
		return c, nil
	}
	k, way, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(k)
	c.k, c.way = n, way
	return c, err
}

// at tells whether this is the write to end at, in one of the given ways.
func (c *killer) at(way string) bool { return c.k == 0 && c.way == way }

// station is called as VMs reach one.
func (c *killer) station(string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.way != station {
		return nil
	}
	if c.k--; c.k == 0 {
		die()
	}
	return nil
}

type killedFile struct {
	journal.File
	c *killer
}

func (f killedFile) WriteAt(p []byte, off int64) (int, error) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.c.way != station {
		f.c.k--
	}
	if f.c.at("before") {
		die()
	}
	if f.c.at("torn") {
		f.File.WriteAt(p[:len(p)/2], off)
		die()
	}
	return f.File.WriteAt(p, off)
}

func (f killedFile) Sync() error {
	err := f.File.Sync()
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.c.at("after") {
		die()
	}
	if midst, e := time.ParseDuration(f.c.way); e == nil && f.c.k == 0 {
		time.AfterFunc(midst, die)
	}
	select {
	case f.c.synced <- struct{}{}:
	default:
	}
	return err
}

// toFile is the control plane of the agent: a file. A command that comes again has its
// reports sent again, so the final one may come twice: final has room for one.
type toFile struct {
	path  string
	final chan struct{}
}

func (r toFile) PublishReport(_ context.Context, rep fleet.Report) error {
	data, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(append(data, '\n')); err != nil {
		return err
	}
	if rep.Result != "" {
		select {
		case r.final <- struct{}{}:
		default:
		}
	}
	return nil
}

// agentMain carries out the command, or goes on with it, and ends when its reports are
// where they belong.
func agentMain() error {
	dir := os.Getenv(envDir)
	kill, err := newKiller(os.Getenv(envKill))
	if err != nil {
		return err
	}
	var units []driver.Unit
	names := strings.Fields(os.Getenv(envUnits))
	for _, n := range names {
		units = append(units, driver.Unit{Name: n})
	}
	quiet := slog.New(slog.DiscardHandler)
	services := systemd.New(systemd.Config{Units: units, Log: quiet})
	defer services.Close()
	reports := toFile{filepath.Join(dir, "reports.jsonl"), make(chan struct{}, 1)}
	vms, guests := agent.VMs(&qmp.Preserver{Sockets: os.Getenv(envQMP), Dir: filepath.Join(dir, "reset"), Station: kill.station})
	cfg := host.Config{
		Host: "h", Dir: filepath.Join(dir, "journal"), Services: services, Guests: guests, VMs: vms, Reports: reports, Units: services.Names,
		Stable: 30 * time.Millisecond, Log: quiet,
	}
	cfg.Journal.Wrap = func(f journal.File) journal.File { return killedFile{f, kill} }
	runner, err := host.New(cfg)
	if err != nil {
		return err
	}
	defer runner.Close()
	data, err := os.ReadFile(filepath.Join(dir, "command.json"))
	if err != nil {
		return err
	}
	var c fleet.Command
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	// A command that was not taken comes again.
	if err := runner.Handle(ctx, c); err != nil {
		return err
	}
	select {
	case err := <-done:
		return fmt.Errorf("the runner ended: %v", err)
	case <-reports.final:
	}
	select { // the note that the control plane has all of it, unless there is one already
	case <-kill.synced:
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	return <-done
}

// readReports returns the reports of a command, and fails if one came twice with
// another content, or out of order.
func readReports(path string) ([]fleet.Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []fleet.Report
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r fleet.Report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			continue // the process ended in the midst of it
		}
		switch {
		case r.Seq == len(all)+1:
			all = append(all, r)
		case r.Seq > len(all)+1:
			return all, fmt.Errorf("report %d came after %d", r.Seq, len(all))
		case !reflect.DeepEqual(all[r.Seq-1], r):
			return all, fmt.Errorf("report %d changed from %+v to %+v", r.Seq, all[r.Seq-1], r)
		}
	}
	return all, lines.Err()
}
