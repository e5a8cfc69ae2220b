// Package systemd restarts and observes real services through systemd's D-Bus
// interface. It refuses units whose restart would kill a VM, the message bus,
// systemd's own services or this agent: it looks where the hypervisors' processes
// live, at the unit itself and at all units that systemd would restart with it.
package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
)

// conn is what is needed of systemd's D-Bus interface; *dbus.Conn has it.
type conn interface {
	GetUnitPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	GetUnitTypePropertiesContext(ctx context.Context, unit, unitType string) (map[string]any, error)
	RestartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, name string) error
	KillUnitWithTarget(ctx context.Context, name string, target dbus.Who, signal int32) error
	GetManagerProperty(prop string) (string, error)
	ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error)
	Connected() bool
	Close()
}

// Config says which services there are.
type Config struct {
	// Units are the services, with their health checks.
	Units []driver.Unit
	// Exclude has patterns (path.Match) of units that must never be restarted,
	// beyond those that never are.
	Exclude []string
	// Grace is how long a service may take to stop before it is killed; 0 means 10 s.
	Grace time.Duration
	// Verify bounds the wait for a service to become healthy; 0 means 15 s.
	Verify time.Duration
	// Proc is the proc file system; "" means /proc.
	Proc string
	Log  *slog.Logger
}

// Services is the services of this host. It is safe for concurrent use. It connects
// when it is first used, and again after systemd was re-executed.
type Services struct {
	cfg  Config
	dial func(context.Context) (conn, error)

	mu    sync.Mutex
	conn  conn
	units []driver.Unit
}

// New returns the services of this host.
func New(cfg Config) *Services {
	if cfg.Grace <= 0 {
		cfg.Grace = 10 * time.Second
	}
	if cfg.Verify <= 0 {
		cfg.Verify = 15 * time.Second
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Services{cfg: cfg, dial: dial, units: cfg.Units}
}

// Use replaces the units, as after [Services.Discover].
func (s *Services) Use(units []driver.Unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.units = slices.Clone(units)
}

// Units returns the units, in order; the caller must not change them.
func (s *Services) Units() []driver.Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.units
}

func (s *Services) health(unit string) driver.Health {
	for _, u := range s.Units() {
		if u.Name == unit {
			return u.Health
		}
	}
	return driver.Health{}
}

// dial prefers systemd's own socket, which works even while the message bus is
// down; only root may use it.
func dial(ctx context.Context) (conn, error) {
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err == nil {
		return c, nil
	}
	c, err2 := dbus.NewSystemConnectionContext(ctx)
	if err2 == nil {
		return c, nil
	}
	return nil, driver.As(driver.ClassTransient, fmt.Errorf("connect to systemd: is it this host's init, and is the agent root? %w", errors.Join(err, err2)))
}

func (s *Services) bus(ctx context.Context) (conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		if s.conn.Connected() {
			return s.conn, nil
		}
		s.conn.Close()
		s.conn = nil
	}
	// The connection must outlive the call that opens it.
	c, err := s.dial(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	s.conn = c
	return c, nil
}

// Close ends the connection.
func (s *Services) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// Names lists the units, in order.
func (s *Services) Names() []string {
	units := s.Units()
	names := make([]string, len(units))
	for i, u := range units {
		names[i] = u.Name
	}
	return names
}

// Checked is what the last check of a unit found.
type Checked struct {
	Healthy bool
	// Used is the share of its time limit that the unit's own check took, NaN where it has none.
	Used float64
}

// Healthy tells of each configured unit whether it is active and healthy now. A
// unit that cannot be asked about is left out.
func (s *Services) Healthy(ctx context.Context) map[string]bool {
	out := make(map[string]bool)
	for unit, c := range s.Check(ctx) {
		out[unit] = c.Healthy
	}
	return out
}

// Check is Healthy, and how long it took.
func (s *Services) Check(ctx context.Context) map[string]Checked {
	units := s.Units()
	out := make(map[string]Checked, len(units))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, u := range units {
		wg.Go(func() {
			p, err := s.properties(ctx, u.Name)
			if err != nil {
				return
			}
			c := Checked{Healthy: p.active(), Used: math.NaN()}
			if c.Healthy && u.Health.Asks() {
				began := time.Now()
				c.Healthy = u.Health.Check(ctx) == nil
				c.Used = float64(time.Since(began)) / float64(u.Health.Limit())
			}
			if ctx.Err() != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[u.Name] = c
		})
	}
	wg.Wait()
	return out
}

// properties is what systemd says of a unit; see org.freedesktop.systemd1(5).
type properties struct {
	load, state, sub string
	invocation       string
	job              bool
	refuseStop       bool
	// dependants are restarted when the unit is.
	dependants []string
	names      []string
	// after are the units that this one starts after, or needs.
	after []string
	// entered is when it became active, on the monotonic clock; 0 if it never did.
	entered time.Duration
}

func (p properties) active() bool { return p.state == "active" && !p.job }

func (s *Services) properties(ctx context.Context, unit string) (properties, error) {
	c, err := s.bus(ctx)
	if err != nil {
		return properties{}, err
	}
	m, err := c.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return properties{}, fmt.Errorf("ask systemd about %s: %w", unit, err)
	}
	p := properties{
		load: text(m, "LoadState"), state: text(m, "ActiveState"), sub: text(m, "SubState"),
		names: texts(m, "Names"),
	}
	if id, _ := m["InvocationID"].([]byte); len(id) > 0 && strings.Trim(string(id), "\x00") != "" {
		p.invocation = hex.EncodeToString(id)
	}
	if job, _ := m["Job"].([]any); len(job) == 2 {
		id, _ := job[0].(uint32)
		p.job = id != 0
	}
	p.refuseStop, _ = m["RefuseManualStop"].(bool)
	for _, k := range []string{"RequiredBy", "BoundBy", "ConsistsOf"} {
		p.dependants = append(p.dependants, texts(m, k)...)
	}
	for _, k := range []string{"After", "Requires", "BindsTo"} {
		p.after = append(p.after, texts(m, k)...)
	}
	entered, _ := m["ActiveEnterTimestampMonotonic"].(uint64)
	p.entered = time.Duration(min(entered, 1<<50)) * time.Microsecond
	return p, nil
}

func text(m map[string]any, key string) string {
	v, _ := m[key].(string)
	return v
}

func texts(m map[string]any, key string) []string {
	v, _ := m[key].([]string)
	return v
}

// Observe returns the unit as it is now.
func (s *Services) Observe(ctx context.Context, unit string) (driver.UnitState, error) {
	p, err := s.properties(ctx, unit)
	if err != nil {
		return driver.UnitState{}, err
	}
	st := driver.UnitState{
		Active: p.active(), Busy: p.job, Detail: p.state + "/" + p.sub,
		Invocation: p.invocation,
	}
	if p.state == "inactive" || p.state == "failed" {
		st.Invocation = ""
	}
	if st.Refusal, err = s.refusal(ctx, unit, p); err != nil {
		return driver.UnitState{}, err
	}
	return st, nil
}

// protected are the units that carry what a recycle itself stands on, and those whose stop suspends or
// shuts down every VM of the host.
var protected = []string{
	"libvirt-guests.service", "pve-guests.service", "xendomains.service",
	"dbus.service", "dbus.socket", "dbus-broker.service", "dbus-*.service", "systemd-*", "user@*.service", "user-runtime-dir@*.service",
	"init.scope", "tardigrade*.service",
}

func (s *Services) isProtected(unit string) bool {
	return slices.ContainsFunc(slices.Concat(protected, s.cfg.Exclude), func(pattern string) bool {
		ok, _ := path.Match(pattern, unit)
		return ok
	})
}

// maxDependants bounds the walk along the dependencies.
const maxDependants = 256

// refusal says why a unit must not be restarted.
func (s *Services) refusal(ctx context.Context, unit string, p properties) (string, error) {
	switch {
	case p.load != "loaded":
		return fmt.Sprintf("systemd says that the unit is %s", p.load), nil
	case !strings.HasSuffix(unit, ".service") && !strings.HasSuffix(unit, ".socket"):
		return "only services and sockets are restarted", nil
	case p.refuseStop:
		return "the unit does not allow to be stopped (RefuseManualStop)", nil
	}
	guarded, err := s.guarded()
	if err != nil {
		return "", err
	}
	c, err := s.bus(ctx)
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	queue := []string{unit}
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		if seen[u] {
			continue
		}
		seen[u] = true
		if len(seen) > maxDependants {
			return fmt.Sprintf("more than %d units would restart with it", maxDependants), nil
		}
		with := ""
		if u != unit {
			with = fmt.Sprintf("%s would restart with it: ", u)
			if p, err = s.properties(ctx, u); err != nil {
				return "", err
			}
			if p.state == "inactive" || p.state == "failed" {
				continue
			}
		}
		// A unit may go by several names.
		for _, name := range append(p.names, u) {
			if s.isProtected(name) {
				return with + "the unit is one of those that are never restarted", nil
			}
		}
		queue = append(queue, p.dependants...)
		kind := map[string]string{".service": "Service", ".scope": "Scope", ".slice": "Slice"}[path.Ext(u)]
		if kind == "" {
			continue
		}
		m, err := c.GetUnitTypePropertiesContext(ctx, u, kind)
		if err != nil {
			return "", fmt.Errorf("ask systemd about %s: %w", u, err)
		}
		if u == unit && text(m, "Type") == "oneshot" && m["RemainAfterExit"] != true {
			return "it runs once and ends (Type=oneshot), so nothing would show that it works", nil
		}
		mode, main := "control-group", uint32(0)
		if kind == "Service" {
			mode = text(m, "KillMode")
			main, _ = m["MainPID"].(uint32)
		}
		if why := kills(guarded, text(m, "ControlGroup"), mode, int(main)); why != "" {
			return with + why, nil
		}
	}
	return "", nil
}

// Restart restarts the unit, or starts it if it does not run, and returns once
// systemd's job is over. A service that does not stop within the grace time is killed.
// Its errors have a class: transient where systemd was not asked, permanent where it
// said no or the unit does not start, and unknown where its answer did not come.
func (s *Services) Restart(ctx context.Context, unit string) error {
	st, err := s.Observe(ctx, unit)
	if err != nil {
		return driver.As(driver.ClassTransient, err)
	}
	if st.Refusal != "" {
		return driver.As(driver.ClassPermanent, fmt.Errorf("%s must not be restarted: %s", unit, st.Refusal))
	}
	c, err := s.bus(ctx)
	if err != nil {
		return err
	}
	// Forget earlier failures, or the limit on starts would refuse this one. A unit
	// that never failed may answer with an error, which does not matter.
	_ = c.ResetFailedUnitContext(ctx, unit)
	done := make(chan string, 1)
	if _, err := c.RestartUnitContext(ctx, unit, "replace", done); err != nil {
		class := driver.ClassUnknown
		if _, answered := errors.AsType[godbus.Error](err); answered {
			class = driver.ClassPermanent
		}
		return driver.As(class, fmt.Errorf("restart %s: %w", unit, err))
	}
	grace := time.NewTimer(s.cfg.Grace)
	defer grace.Stop()
	poll := time.NewTicker(500 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case result := <-done:
			return over(unit, result)
		case <-grace.C:
			if err := s.killStuck(ctx, c, unit); err != nil {
				return err
			}
			// It may have begun to stop only now, or have left more processes.
			grace.Reset(s.cfg.Grace)
		case <-poll.C:
			// The signal of the job's end can get lost with a connection.
			p, err := s.properties(ctx, unit)
			if err != nil {
				return err
			}
			if p.job {
				continue
			}
			select { // or it is on its way, where the machine is busy
			case result := <-done:
				return over(unit, result)
			case <-time.After(signalLate):
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("restart %s: systemd's job is not over: %w", unit, ctx.Err())
		}
	}
}

// signalLate is how much later than the end of a job the signal of it may come.
const signalLate = time.Second

// over is what the result of a job comes to.
func over(unit, result string) error {
	switch result {
	case "done":
		return nil
	case "canceled": // somebody asked for something else meanwhile
		return driver.As(driver.ClassUnknown, fmt.Errorf("restart %s: systemd's job was canceled", unit))
	}
	return driver.As(driver.ClassPermanent, fmt.Errorf("restart %s: systemd's job ended with %q", unit, result))
}

// killStuck ends a service that does not stop.
func (s *Services) killStuck(ctx context.Context, c conn, unit string) error {
	p, err := s.properties(ctx, unit)
	if err != nil {
		return err
	}
	if p.state != "deactivating" {
		return nil
	}
	if why, err := s.refusal(ctx, unit, p); err != nil || why != "" {
		return errors.Join(err, fmt.Errorf("%s does not stop and must not be killed: %s", unit, why))
	}
	m, err := c.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return fmt.Errorf("ask systemd about %s: %w", unit, err)
	}
	target := dbus.Main
	if k := text(m, "KillMode"); k == "control-group" || k == "mixed" {
		target = dbus.All
	}
	s.cfg.Log.Warn("a service does not stop and is killed", "unit", unit, "after", s.cfg.Grace)
	if err := c.KillUnitWithTarget(ctx, unit, target, int32(syscall.SIGKILL)); err != nil {
		return fmt.Errorf("%s does not stop and could not be killed: %w", unit, err)
	}
	return nil
}

// Verify waits until the unit is active and its health check passes. It gives up
// when systemd has, and at the latest after the configured time.
func (s *Services) Verify(ctx context.Context, unit string) error {
	health := s.health(unit)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Verify+health.ActiveFor)
	defer cancel()
	var last error
	for {
		p, err := s.properties(ctx, unit)
		switch {
		case err != nil:
			last = earlier(last, err)
		case p.active():
			if last = health.Check(ctx); last == nil {
				if last = lasting(p, health.ActiveFor); last == nil {
					return nil
				}
				break
			}
			last = fmt.Errorf("%s is active, but not healthy: %w", unit, last)
		case !p.job && (p.state == "failed" || p.state == "inactive"):
			return fmt.Errorf("%s is %s/%s%s", unit, p.state, p.sub, s.ending(ctx, unit))
		default:
			last = fmt.Errorf("%s is %s/%s", unit, p.state, p.sub)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", last, ctx.Err())
		case <-time.After(15 * time.Millisecond):
		}
	}
}

// lasting returns an error unless the unit has been active for so long.
func lasting(p properties, want time.Duration) error {
	if want <= 0 {
		return nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	if d := time.Duration(now.Nano()) - p.entered; d < want {
		return fmt.Errorf("active for %v only, %v are asked for", d.Round(time.Millisecond), want)
	}
	return nil
}

// earlier keeps what was learned before the time ran out.
func earlier(last, err error) error {
	if last != nil && errors.Is(err, context.DeadlineExceeded) {
		return last
	}
	return err
}

// ending says how a service ended.
func (s *Services) ending(ctx context.Context, unit string) string {
	c, err := s.bus(ctx)
	if err != nil || !strings.HasSuffix(unit, ".service") {
		return ""
	}
	m, err := c.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return ""
	}
	status, _ := m["ExecMainStatus"].(int32)
	return fmt.Sprintf(" (result %s, exit status %d)", text(m, "Result"), status)
}

// Stat is a unit as its watchers want it.
type Stat struct {
	Active, Failed bool
	// Restarts is how often systemd started it anew by itself.
	Restarts uint64
	// ControlGroup is its cgroup from the root of the hierarchy, "" where it has none.
	ControlGroup string
}

// Stats tells of the named units, leaving out those that do not exist, and how many units
// of the host have failed.
func (s *Services) Stats(ctx context.Context, names []string) (units map[string]Stat, failed int, err error) {
	c, err := s.bus(ctx)
	if err != nil {
		return nil, 0, err
	}
	count, err := c.GetManagerProperty("NFailedUnits")
	if err != nil {
		return nil, 0, fmt.Errorf("ask systemd for the failed units: %w", err)
	}
	if _, err := fmt.Sscanf(strings.TrimPrefix(count, "@u "), "%d", &failed); err != nil {
		return nil, 0, fmt.Errorf("systemd says that %q units have failed: %w", count, err)
	}
	units = make(map[string]Stat, len(names))
	for _, name := range names {
		m, err := c.GetUnitPropertiesContext(ctx, name)
		if err != nil {
			return nil, 0, fmt.Errorf("ask systemd about %s: %w", name, err)
		}
		if text(m, "LoadState") == "not-found" {
			continue
		}
		state := text(m, "ActiveState")
		u := Stat{Active: state == "active" || state == "reloading" || state == "activating", Failed: state == "failed"}
		if strings.HasSuffix(name, ".service") {
			m, err := c.GetUnitTypePropertiesContext(ctx, name, "Service")
			if err != nil {
				return nil, 0, fmt.Errorf("ask systemd about %s: %w", name, err)
			}
			n, _ := m["NRestarts"].(uint32)
			u.Restarts, u.ControlGroup = uint64(n), text(m, "ControlGroup")
		}
		units[name] = u
	}
	return units, failed, nil
}
