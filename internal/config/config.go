// Package config is the one configuration file of Tardigrade, for `serve` and
// for `agent`. Every key has a safe default; an unknown key is an error.
package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Config is the whole file.
type Config struct {
	// Data is the directory for everything durable.
	Data   string `yaml:"data"`
	API    API    `yaml:"api"`
	Bus    Bus    `yaml:"bus"`
	Influx Influx `yaml:"influx"`
	Agent  Agent  `yaml:"agent"`
	Model  Model  `yaml:"model"`
	Policy Policy `yaml:"policy"`
	Power  Power  `yaml:"power"`
}

// Power is what `serve` may do to the power of hosts, through their management
// controllers (IPMI).
type Power struct {
	// CycleEmptied allows to cycle the power of a host from which all VMs were moved away.
	CycleEmptied bool `yaml:"cycle_emptied"`
	// Hosts has the management controller of each host, by the host's name.
	Hosts map[fleet.HostID]BMC `yaml:"hosts"`
}

// BMC is a management controller.
type BMC struct {
	// Address is ADDRESS or ADDRESS:PORT; the port is 623 otherwise.
	Address string `yaml:"address"`
	User    string `yaml:"user"`
	// PasswordFile has the password on one line.
	PasswordFile string `yaml:"password_file"`
}

// API is the HTTP side of `serve`.
type API struct {
	Listen string `yaml:"listen"`
	TLS    TLS    `yaml:"tls"`
	// Tokens admit people. Without any, callers on the loopback address are
	// trusted as admin, and no other address may be listened on.
	Tokens []Token `yaml:"tokens"`
}

// TLS names PEM files.
type TLS struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// CA verifies the other side; "" means the system's roots.
	CA string `yaml:"ca"`
}

// Token gives a person or a program a role.
type Token struct {
	Name string `yaml:"name"`
	// SHA256 is the hex SHA-256 of the token (`printf %s TOKEN | sha256sum`).
	SHA256 string `yaml:"sha256"`
	// Role is viewer, operator, approver or admin.
	Role string `yaml:"role"`
}

// Bus is NATS JetStream: embedded unless URL is set.
type Bus struct {
	// Listen is the embedded server's address for agents on other hosts; ""
	// admits only the agent inside this process.
	Listen string `yaml:"listen"`
	// TLS is that of Listen (cert, key), or towards the servers of URL (ca, and cert and key
	// where they ask for a certificate).
	TLS TLS `yaml:"tls"`
	// URL is of an external cluster instead, several servers separated by commas;
	// docs/bus.md says how to set one up.
	URL string `yaml:"url"`
	// Credentials authenticate to it (a NATS .creds file), unless the addresses have a user
	// and a password.
	Credentials string `yaml:"credentials"`
	// Callout is a file with the seed of an account key, by which the cluster lets this control
	// plane say which agents are enrolled; Account is the cluster's account for them.
	Callout   string   `yaml:"callout"`
	Account   string   `yaml:"account"`
	Replicas  int      `yaml:"replicas"`
	SampleAge Duration `yaml:"sample_age"`
	SampleMiB int64    `yaml:"sample_mib"`
}

// Influx is the telemetry history. It is off while URL is empty.
type Influx struct {
	URL    string `yaml:"url"`
	Org    string `yaml:"org"`
	Bucket string `yaml:"bucket"`
	Token  string `yaml:"token"`
	// CA verifies an https server; "" means the system's roots.
	CA string `yaml:"ca"`
}

// Agent is the host side.
type Agent struct {
	// Host is this host's name; "" means the machine's host name.
	Host        string `yaml:"host"`
	FaultDomain string `yaml:"fault_domain"`
	// Disabled switches off the agent inside `serve`.
	Disabled bool `yaml:"disabled"`
	// Bus is the control plane's bus, for `agent` on its own.
	Bus string `yaml:"bus"`
	TLS TLS    `yaml:"tls"`
	// Credentials is the file that `tardigrade agent enroll` wrote.
	Credentials string `yaml:"credentials"`
	Data        string `yaml:"data"`
	// SpoolMiB bounds the samples that are kept on disk while the bus is away; the
	// oldest are dropped when it is full.
	SpoolMiB int64    `yaml:"spool_mib"`
	Interval Duration `yaml:"interval"`
	// Act allows the agent to change this host. Without it every action is refused.
	Act   bool   `yaml:"act"`
	Units []Unit `yaml:"units"`
	// Discover finds the services to restart on this host: those of virtualisation,
	// storage, network and monitoring that are in use, in the order of their
	// dependencies. Units that are listed come with their health checks, before what is
	// found.
	Discover bool `yaml:"discover"`
	// Include has further patterns of units to find, and Exclude patterns of units that
	// are never restarted, both as "neutron-*.service".
	Include []string `yaml:"include"`
	Exclude []string `yaml:"exclude"`
	Guests  Guests   `yaml:"guests"`
	Reset   Reset    `yaml:"reset"`
	// Address is where other hosts reach this one, a name or an IP address; "" means by
	// its name.
	Address string  `yaml:"address"`
	Migrate Migrate `yaml:"migrate"`
}

// Migrate is live migration. It is not offered unless URI is set.
type Migrate struct {
	// URI is how the libvirt daemon of another host is reached, with {host} for its
	// address, for example "qemu+tls://{host}/system". The daemons on both sides use it,
	// and so does the agent, which looks on both sides where a VM is.
	URI string `yaml:"uri"`
	// DataURI is where VMs' memory is sent, for example "tcp://{host}"; "" leaves that to
	// libvirt, which uses the target's host name.
	DataURI string `yaml:"data_uri"`
	// BandwidthMiB limits what all moves of this host send, in MiB a second; 0 means no
	// limit. Parallel is how many VMs are moved at a time.
	BandwidthMiB int `yaml:"bandwidth_mib"`
	Parallel     int `yaml:"parallel"`
	// AutoConverge slows down a VM that writes its memory faster than it can be sent.
	AutoConverge bool `yaml:"auto_converge"`
	// Downtime is how long a VM may stand still when it changes over, as far as libvirt can
	// foresee. The shorter it is, the longer the move of a busy VM takes.
	Downtime Duration `yaml:"downtime"`
	// PostCopyAfter lets a VM run on the target before all of its memory is there, when
	// its move has taken so long. A failure after that loses the VM; 0 never does it.
	PostCopyAfter Duration `yaml:"post_copy_after"`
	// TLS encrypts VMs' memory on its way.
	TLS bool `yaml:"tls"`
	// Shared lists directories and devices that all hosts have in common. VMs whose disks
	// lie elsewhere, and not on a network file system, are not moved.
	Shared []string `yaml:"shared"`
	// Accept allows VMs of other hosts to be moved here.
	Accept bool `yaml:"accept"`
}

// The modes of a preserving reset.
const (
	ResetHypervisor = "hypervisor"
	ResetKexec      = "kexec"
)

// Reset is the preserving reset. It is not offered unless Enabled.
type Reset struct {
	Enabled bool `yaml:"enabled"`
	// Mode is "hypervisor" (the default: each VM gets a new QEMU process, of the version
	// that is installed) or "kexec" (the host's kernel is reset, and the VMs come back).
	Mode string `yaml:"mode"`
	// Dir keeps the VMs' states while they are out; "" means reset in agent.data.
	Dir string `yaml:"dir"`
	// Kernel, Initrd and Append are what the host is reset into; "" means what runs now.
	Kernel string `yaml:"kernel"`
	Initrd string `yaml:"initrd"`
	Append string `yaml:"append"`
	// FullSave allows to write the whole RAM of a VM to Dir where it cannot stay in
	// place, which freezes the VM for seconds.
	FullSave bool `yaml:"full_save"`
	// VMTimeout bounds each VM's way out, and its way back.
	VMTimeout Duration `yaml:"vm_timeout"`
}

// Unit is a systemd unit that a recycle restarts, in the order of the list.
type Unit struct {
	Name   string `yaml:"name"`
	Health Health `yaml:"health"`
}

// Health is how a unit shows that it works, beyond being active. At most one of
// TCP, HTTP, Exec and DBus is set.
type Health struct {
	TCP  string   `yaml:"tcp"`
	HTTP string   `yaml:"http"`
	Exec []string `yaml:"exec"`
	// DBus is a name on the system bus whose owner must answer.
	DBus string `yaml:"dbus"`
	// ActiveFor is for how long it must have been active after a restart.
	ActiveFor Duration `yaml:"active_for"`
	Timeout   Duration `yaml:"timeout"`
}

// Guests says where this host's VMs are found.
type Guests struct {
	// QMPDir holds one QMP socket (*.qmp or *.sock) for each QEMU guest.
	QMPDir string `yaml:"qmp_dir"`
	// Libvirt is the socket of the libvirt daemon, for example
	// /run/libvirt/libvirt-sock, or a libvirt URI. Give it or QMPDir, not both.
	Libvirt string `yaml:"libvirt"`
}

// Model is prediction.
type Model struct {
	// Learn is how long a host is watched before it is scored.
	Learn Duration `yaml:"learn"`
	// LearnFully is how long it is watched before the stronger detector takes over, which
	// knows how the host's metrics move together; 0 leaves it at the plain one.
	LearnFully Duration `yaml:"learn_fully"`
	// Detector is the stronger one: "default", which finds most, or "fast", for a control plane
	// that is short of CPU time; docs/anomaly.md compares them.
	Detector string `yaml:"detector"`
	// RetrainEvery is after how long what was learned is learned anew from what is normal
	// by then; 0 is never.
	RetrainEvery Duration `yaml:"retrain_every"`
	// Jobs says whether a champion that has drifted or grown old starts a training
	// ("automatic"), or is only reported ("manual", the default).
	Jobs string `yaml:"jobs"`
	// TrainRange is how much of the past such a training takes, and one that names no range;
	// TrainRangeFailure is that of failure models, since failures are rare.
	TrainRange        Duration `yaml:"train_range"`
	TrainRangeFailure Duration `yaml:"train_range_failure"`
	// TrainMemoryMiB and TrainTimeout limit the process of a training.
	TrainMemoryMiB int      `yaml:"train_memory_mib"`
	TrainTimeout   Duration `yaml:"train_timeout"`
	// Promote says who makes a shadow champion: a person ("manual", the default), or the rule
	// below ("rule"), which also takes what was trained into shadow.
	Promote string `yaml:"promote"`
	// A shadow is promoted by rule after PromoteAfter and PromoteSamples scored samples, where
	// it began at most PromoteAlarmRatio alarms for each of the champion's.
	PromoteAfter      Duration `yaml:"promote_after"`
	PromoteSamples    int64    `yaml:"promote_samples"`
	PromoteAlarmRatio float64  `yaml:"promote_alarm_ratio"`
	// Drift is when live data are too far from a champion's training data.
	Drift Drift `yaml:"drift"`
	// FalseAlarmsPerMonth is how many alarms a healthy host may give in 30 days.
	FalseAlarmsPerMonth float64 `yaml:"false_alarms_per_month"`
	// Horizon is the time ahead for which the failure probability is stated.
	Horizon Duration `yaml:"horizon"`
}

// Drift are limits; see package drift.
type Drift struct {
	// PSI is the population stability index from which a series has shifted, KS the
	// Kolmogorov-Smirnov distance from which it has too, and SeriesRatio the share of the series that
	// must have, 0..1.
	PSI         float64 `yaml:"psi"`
	KS          float64 `yaml:"ks"`
	SeriesRatio float64 `yaml:"series_ratio"`
	// Calibration is by how many powers of ten rare scores may come too often, and failures more or
	// less often than a failure model says.
	Calibration float64 `yaml:"calibration"`
	// Samples is how many are needed to judge, and Window after how long they are counted anew. What of
	// a window was not seen yet counts as in training, so that it should be of whole weeks.
	Samples int      `yaml:"samples"`
	Window  Duration `yaml:"window"`
}

// Duration is a time.Duration written as "90s", "5m" or "720h" in the file.
type Duration time.Duration

// D is the value.
func (d Duration) D() time.Duration { return time.Duration(d) }

// UnmarshalYAML parses the text form, and says what is wrong with it and where.
func (d *Duration) UnmarshalYAML(node ast.Node) error {
	wrong := func(format string, args ...any) error {
		return &yaml.SyntaxError{Message: fmt.Sprintf(format, args...), Token: node.GetToken()}
	}
	text := strings.Trim(strings.TrimSpace(node.String()), `"'`)
	v, err := time.ParseDuration(text)
	if err != nil {
		return wrong("%q is not a duration: write a number and a unit, for example 500ms, 10s, 5m or 24h", text)
	}
	if v < 0 {
		return wrong("%q is negative: a duration must be 0 or more", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes the text form.
func (d Duration) MarshalYAML() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Data: ".tardigrade",
		API:  API{Listen: "127.0.0.1:8080"},
		Bus:  Bus{Account: "AGENTS", Replicas: 1, SampleAge: Duration(48 * time.Hour), SampleMiB: 4096},
		Agent: Agent{
			Interval: Duration(time.Second), Data: "/var/lib/tardigrade", SpoolMiB: 256,
			Migrate: Migrate{Parallel: 2, AutoConverge: true, Downtime: Duration(100 * time.Millisecond)},
			Reset:   Reset{Mode: ResetHypervisor, VMTimeout: Duration(30 * time.Second)},
		},
		Model: Model{Learn: Duration(5 * time.Minute), LearnFully: Duration(30 * time.Minute), Detector: "default", RetrainEvery: Duration(24 * time.Hour),
			Jobs: "manual", TrainRange: Duration(24 * time.Hour), TrainRangeFailure: Duration(30 * 24 * time.Hour), TrainMemoryMiB: 2048, TrainTimeout: Duration(2 * time.Hour),
			Promote: "manual", PromoteAfter: Duration(24 * time.Hour), PromoteSamples: 10_000, PromoteAlarmRatio: 1,
			Drift:               Drift{PSI: 0.25, KS: 0.2, SeriesRatio: 0.1, Calibration: 1, Samples: 5000, Window: Duration(7 * 24 * time.Hour)},
			FalseAlarmsPerMonth: 1, Horizon: Duration(time.Hour)},
		Policy: DefaultPolicy(),
	}
}

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 2 << 20

// Load reads a file over the defaults, and the policy from its own file if there is
// one. An empty path gives the defaults.
func Load(path string) (Config, error) {
	c := Default()
	if path == "" {
		return c, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("%s is larger than %d MiB", path, maxConfig>>20)
	}
	if err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}
	if err := c.Parse(data); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	if file := c.Policy.File; file != "" {
		if c.Policy, err = LoadPolicy(file); err != nil {
			return c, fmt.Errorf("policy.file: %w", err)
		}
		c.Policy.File = file
	}
	return c, nil
}

// Parse reads YAML over what c has, and checks the result.
func (c *Config) Parse(data []byte) error {
	if _, err := decode(data, c); err != nil {
		// Without the lines around it, in which there may be a password.
		return errors.New(strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	if err := c.Policy.alone(); err != nil {
		return err
	}
	return c.Validate()
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Validate returns every mistake that can be seen without trying.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c.API.validate(bad)
	c.Bus.validate(bad)
	c.Influx.validate(bad)
	c.Agent.validate(bad)
	c.Power.validate(bad)
	c.Model.validate(bad)
	for _, m := range c.Policy.mistakes() {
		bad("policy.%s: %s", m.Key, m.Text)
	}
	return errors.Join(errs...)
}

// complaint takes a mistake.
type complaint func(format string, args ...any)

func (a *API) validate(bad complaint) {
	if _, _, err := net.SplitHostPort(a.Listen); err != nil {
		bad("api.listen: %q is not ADDRESS:PORT: %w", a.Listen, err)
	}
	for i, t := range a.Tokens {
		switch {
		case t.Name == "":
			bad("api.tokens[%d]: name is empty", i)
		case !sha256Hex.MatchString(t.SHA256):
			bad("api.tokens[%d] (%s): sha256 must be 64 hex digits: printf %%s TOKEN | sha256sum", i, t.Name)
		}
		switch t.Role {
		case "viewer", "operator", "approver", "admin":
		default:
			bad("api.tokens[%d] (%s): role %q is not viewer, operator, approver or admin", i, t.Name, t.Role)
		}
	}
}

func (b *Bus) validate(bad complaint) {
	if b.URL != "" && b.Listen != "" {
		bad("bus.listen is of the embedded bus, and bus.url names another one: give one of them")
	}
	if b.URL == "" && (b.Callout != "" || b.Credentials != "") {
		bad("bus.callout and bus.credentials are for an external cluster: name it in bus.url")
	}
	if n := b.Replicas; n < 1 || n > 5 || n > 1 && b.URL == "" {
		bad("bus.replicas: %d: 1 on the embedded bus, 1 to 5 on a cluster", n)
	}
	if m := b.SampleMiB; m < 1 || m > 1<<30 {
		bad("bus.sample_mib: %d is out of range: 1 to %d", m, 1<<30)
	}
	if d := b.SampleAge.D(); d < time.Minute {
		bad("bus.sample_age: %v is too short: at least 1m", d)
	}
}

func (i *Influx) validate(bad complaint) {
	if i.URL == "" {
		return
	}
	u, err := url.Parse(i.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		bad("influx.url is not an http or https address, such as http://127.0.0.1:8086") // it may have a password
	}
	if i.Bucket == "" {
		bad("influx.bucket is missing: name the bucket (2.x), or DATABASE/RETENTION (1.8, for example telemetry/autogen)")
	}
}

func (a *Agent) validate(bad complaint) {
	if a.Host != "" {
		if err := fleet.HostID(a.Host).Validate(); err != nil {
			bad("agent.host: %w", err)
		}
	}
	if d := a.Interval.D(); d < 100*time.Millisecond || d > 10*time.Minute {
		bad("agent.interval: %v is out of range: 100ms to 10m", d)
	}
	if m := a.SpoolMiB; m < 1 || m > 1<<20 {
		bad("agent.spool_mib: %d is out of range: 1 to %d", m, 1<<20)
	}
	if m := a.Reset.Mode; m != ResetHypervisor && m != ResetKexec {
		bad("agent.reset.mode: %q is not %s or %s", m, ResetHypervisor, ResetKexec)
	}
	if d := a.Reset.VMTimeout.D(); d < time.Second || d > 5*time.Minute {
		bad("agent.reset.vm_timeout: %v is out of range: 1s to 5m", d)
	}
	if g := a.Guests; g.QMPDir != "" && g.Libvirt != "" {
		bad("agent.guests: give qmp_dir or libvirt, not both: each VM would be counted twice")
	}
	a.Migrate.validate(bad)
	for i, u := range a.Units {
		if !strings.Contains(u.Name, ".") || strings.ContainsAny(u.Name, "/ \t\n{}") {
			bad("agent.units[%d]: %q is not a unit name such as libvirtd.service", i, u.Name)
		}
		n := 0
		for _, set := range []bool{u.Health.TCP != "", u.Health.HTTP != "", len(u.Health.Exec) > 0, u.Health.DBus != ""} {
			if set {
				n++
			}
		}
		if n > 1 {
			bad("agent.units[%d] (%s): give one of health.tcp, health.http, health.exec and health.dbus", i, u.Name)
		}
	}
	for key, patterns := range map[string][]string{"include": a.Include, "exclude": a.Exclude} {
		for i, p := range patterns {
			if _, err := path.Match(p, ""); err != nil || p == "" || strings.ContainsAny(p, "/ \t\n{}") {
				bad("agent.%s[%d]: %q is not a pattern of unit names such as neutron-*.service", key, i, p)
			}
		}
	}
	if len(a.Include) > 0 && !a.Discover {
		bad("agent.include is for agent.discover: true, which is not set; list the services in agent.units, or set it")
	}
}

func (m *Migrate) validate(bad complaint) {
	switch {
	case m.URI != "" && !strings.Contains(m.URI, "{host}"):
		bad("agent.migrate.uri: %q does not say where the target's address goes: write {host}, as in qemu+tls://{host}/system", m.URI)
	case m.DataURI != "" && !strings.Contains(m.DataURI, "{host}"):
		bad("agent.migrate.data_uri: %q does not say where the target's address goes: write {host}, as in tcp://{host}", m.DataURI)
	case m.Parallel < 1 || m.Parallel > 64:
		bad("agent.migrate.parallel: %d is out of range: 1 to 64", m.Parallel)
	case m.Downtime.D() < time.Millisecond || m.Downtime.D() > time.Minute:
		bad("agent.migrate.downtime: %v is out of range: 1ms to 1m", m.Downtime.D())
	case m.BandwidthMiB < 0 || m.BandwidthMiB > 1<<20:
		bad("agent.migrate.bandwidth_mib: %d is out of range: 0 to %d", m.BandwidthMiB, 1<<20)
	}
	for i, s := range m.Shared {
		if !strings.HasPrefix(s, "/") {
			bad("agent.migrate.shared[%d]: %q is not an absolute path", i, s)
		}
	}
}

func (p *Power) validate(bad complaint) {
	for id, bmc := range p.Hosts {
		if err := id.Validate(); err != nil {
			bad("power.hosts: %w", err)
		}
		if bmc.Address == "" || bmc.PasswordFile == "" {
			bad("power.hosts.%s: address and password_file are needed", id)
		}
	}
	if p.CycleEmptied && len(p.Hosts) == 0 {
		bad("power.cycle_emptied: power.hosts has no management controller")
	}
}

func (m *Model) validate(bad complaint) {
	if d := m.Learn.D(); d < 10*time.Second {
		bad("model.learn: %v is too short to learn from: at least 10s", d)
	}
	if d := m.RetrainEvery.D(); d != 0 && d < time.Hour {
		bad("model.retrain_every: %v is too often: at least 1h, or 0 for never", d)
	}
	if m.Detector != "default" && m.Detector != "fast" {
		bad("model.detector: %q is not default or fast", m.Detector)
	}
	if m.Jobs != "manual" && m.Jobs != "automatic" {
		bad("model.jobs: %q is not manual or automatic", m.Jobs)
	}
	if m.Promote != "manual" && m.Promote != "rule" {
		bad("model.promote: %q is not manual or rule", m.Promote)
	}
	if min(m.TrainRange, m.TrainRangeFailure).D() < 10*time.Minute || m.TrainTimeout.D() < time.Second || m.TrainMemoryMiB < 64 || m.TrainMemoryMiB > 1<<20 {
		bad("model.train_range and train_range_failure must be at least 10m, train_timeout 1s and train_memory_mib 64")
	}
	if m.PromoteSamples < 1 || !(m.PromoteAlarmRatio >= 0) {
		bad("model.promote_samples and promote_alarm_ratio must be at least 1 and 0")
	}
	if d := m.Drift; !(d.PSI > 0) || !(d.KS > 0) || !(d.SeriesRatio > 0 && d.SeriesRatio <= 1) || !(d.Calibration > 0) || d.Samples < 1 || d.Window.D() < time.Minute {
		bad("model.drift: psi, ks and calibration must be over 0, series_ratio in 0..1, samples at least 1 and window at least 1m")
	}
	if n := m.FalseAlarmsPerMonth; !(n > 0 && n <= 1e6) {
		bad("model.false_alarms_per_month: %v must be more than 0, and at most 1e6", n)
	}
	if d := m.Horizon.D(); d < time.Minute || d > 365*24*time.Hour {
		bad("model.horizon: %v is out of range: 1m to 8760h", d)
	}
}
