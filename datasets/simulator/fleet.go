package simulator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Config describes a fleet. The zero value of a field takes the default that is
// stated with it.
type Config struct {
	// Hosts is the number of hosts, at least 1; the default is 100.
	Hosts int
	// VMsPerHost is how many VMs each host has at first; the default is 8, and a
	// negative number means none.
	VMsPerHost int
	// FaultDomains is how many racks the hosts are spread over; the default is one for
	// each 20 hosts, and at least 3.
	FaultDomains int
	Seed         uint64
	// Start is the time before the first step; the default is 2026-01-05, a Monday, 00:00 UTC.
	Start time.Time
	// Interval is the time between two samples; the default is a minute.
	Interval time.Duration
	// Prefix begins the names of hosts; the default is "sim-".
	Prefix string
	// FaultRate is the number of faults per host in 30 days; the default is 1, and
	// a negative number means none.
	FaultRate float64
	// BenignRate is the number of batch jobs per host and day, and scales backups and
	// deploys too: under 1 only that share of the hosts has them. The default
	// is 1, and a negative number means none.
	BenignRate float64
	// CrashSeconds is what each VM loses in a crash; the default is 300.
	CrashSeconds float64
	// BootSeconds is how long a host is away after a crash; the default is 240.
	BootSeconds float64
	// RepairSeconds is how long it takes to repair a host that was emptied or
	// handed over; the default is 900 for software and 4 hours for hardware.
	RepairSeconds float64
	// HandOverSeconds is what each VM that is still on the host loses when a person
	// repairs it; the default is 120, and a negative number means none.
	HandOverSeconds float64
	// Moments makes the history keep what each action would have achieved when the
	// level of a fault was first at the values of [Levels].
	Moments bool
	// Script lists faults that come at stated times, beside the random ones.
	Script []Planned
	// Rotation brings one fault at a time to a host without one.
	Rotation Rotation
}

// Planned is a fault that comes at a stated time.
type Planned struct {
	// Host is the number of the host, from 0.
	Host int
	Kind Kind
	// After is the time since Config.Start, Lasts the time to its end.
	After, Lasts time.Duration
	// Unit is the service at fault, for kinds that are in one; "" is a random one.
	Unit string
	// Harmless makes it subside at its end rather than crash the host.
	Harmless bool
}

// Rotation is a sequence of faults, each of the next of [Kinds], on random hosts
// without a fault. Every 0 is no rotation.
type Rotation struct {
	First, Every time.Duration
	// Lasts is how long each takes to its end.
	Lasts time.Duration
}

// Demo is a fleet of 12 hosts that samples each second: calm for 40 seconds, so
// that a model can learn, then four faults within the next half minute, and one
// more every 75 seconds. They develop within minutes.
func Demo(seed uint64, start time.Time) Config {
	return Config{
		Hosts: 12, VMsPerHost: 4, FaultDomains: 3, Seed: seed, Start: start, Interval: time.Second, Prefix: "demo-",
		FaultRate: -1, BenignRate: -1, BootSeconds: 30, RepairSeconds: 45,
		Script: []Planned{
			{Host: 2, Kind: MemoryLeak, After: 42 * time.Second, Lasts: 4 * time.Minute, Unit: unitNames[storageUnit]},
			{Host: 4, Kind: ServiceHang, After: 48 * time.Second, Lasts: 3 * time.Minute, Unit: unitNames[libvirtUnit]},
			{Host: 7, Kind: LockUp, After: 58 * time.Second, Lasts: 4 * time.Minute},
			{Host: 9, Kind: DiskWear, After: 70 * time.Second, Lasts: 4 * time.Minute},
		},
		Rotation: Rotation{First: 3 * time.Minute, Every: 75 * time.Second, Lasts: 4 * time.Minute},
	}
}

// Limits of a configuration, so that a slip of the pen does not take all memory.
const (
	mostHosts = 1_000_000
	mostVMs   = 10_000
)

func (c *Config) fill() error {
	def := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
		*v = max(*v, 0)
	}
	if c.Hosts == 0 {
		c.Hosts = 100
	}
	switch {
	case c.VMsPerHost == 0:
		c.VMsPerHost = 8
	case c.VMsPerHost < 0:
		c.VMsPerHost = 0
	}
	if c.FaultDomains == 0 {
		c.FaultDomains = max(3, c.Hosts/20)
	}
	if c.Start.IsZero() {
		c.Start = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	}
	c.Start = c.Start.UTC()
	if c.Interval == 0 {
		c.Interval = time.Minute
	}
	if c.Prefix == "" {
		c.Prefix = "sim-"
	}
	for _, v := range []float64{c.FaultRate, c.BenignRate, c.CrashSeconds, c.BootSeconds, c.RepairSeconds, c.HandOverSeconds} {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("simulated fleet: a rate or a duration is %v; it must be a number", v)
		}
	}
	def(&c.FaultRate, 1)
	def(&c.BenignRate, 1)
	def(&c.CrashSeconds, 300)
	def(&c.BootSeconds, 240)
	def(&c.HandOverSeconds, 120)
	switch {
	case c.Hosts < 1 || c.Hosts > mostHosts || c.VMsPerHost > mostVMs || c.Hosts*max(c.VMsPerHost, 1) > 10*mostHosts:
		return fmt.Errorf("simulated fleet: %d hosts with %d VMs each: 1 to %d hosts and at most %d VMs in all are possible", c.Hosts, c.VMsPerHost, mostHosts, 10*mostHosts)
	case c.FaultDomains < 1:
		return fmt.Errorf("simulated fleet: %d fault domains: there must be at least 1", c.FaultDomains)
	case c.Interval < 100*time.Millisecond || c.Interval > time.Hour:
		return fmt.Errorf("simulated fleet: interval %v is out of range: 100ms to 1h", c.Interval)
	case c.FaultRate > 10_000 || c.BenignRate > 1_000:
		return fmt.Errorf("simulated fleet: %g faults per host and month, %g batch jobs per host and day: at most 10000 and 1000 are possible", c.FaultRate, c.BenignRate)
	case c.Rotation.Every < 0 || c.Rotation.Every > 0 && (c.Rotation.Lasts <= 0 || c.Rotation.First < 0):
		return fmt.Errorf("simulated fleet: rotation of %v every %v from %v: all must be positive", c.Rotation.Lasts, c.Rotation.Every, c.Rotation.First)
	}
	if err := fleet.HostID(c.Prefix + "0000").Validate(); err != nil {
		return fmt.Errorf("simulated fleet: prefix: %w", err)
	}
	for i, p := range c.Script {
		_, known := traits[p.Kind]
		switch {
		case p.Host < 0 || p.Host >= c.Hosts:
			return fmt.Errorf("simulated fleet: script line %d: host %d does not exist, there are %d", i, p.Host, c.Hosts)
		case !known:
			return fmt.Errorf("simulated fleet: script line %d: kind %q is unknown, the kinds are %v", i, p.Kind, Kinds())
		case p.Lasts <= 0 || p.After < 0:
			return fmt.Errorf("simulated fleet: script line %d: after %v, lasts %v: both must be positive", i, p.After, p.Lasts)
		case p.Unit != "" && unitIndex(p.Unit) < 0:
			return fmt.Errorf("simulated fleet: script line %d: unit %q is unknown, the units are %v", i, p.Unit, unitNames)
		}
	}
	return nil
}

// Tally is what a fleet has lost so far, in seconds of interruption summed over VMs.
type Tally struct {
	Crashes         int     `json:"crashes"`
	CrashVMSeconds  float64 `json:"crash_vm_s"`
	FreezeVMSeconds float64 `json:"freeze_vm_s"`
	// HandOverVMSeconds is what repairs by a person took from VMs that were still there.
	HandOverVMSeconds float64 `json:"hand_over_vm_s"`
	// SlowVMSeconds is what noisy neighbours took.
	SlowVMSeconds float64 `json:"slow_vm_s"`
}

// VMSeconds is the sum of all losses.
func (t Tally) VMSeconds() float64 {
	return t.CrashVMSeconds + t.FreezeVMSeconds + t.HandOverVMSeconds + t.SlowVMSeconds
}

// Fleet is a simulated fleet. It is safe for concurrent use, but the samples
// of a step are overwritten by the next one.
type Fleet struct {
	cfg    Config
	schema *fleet.Schema

	mu      sync.Mutex
	steps   int64
	now     float64 // seconds since cfg.Start
	dt      float64
	hosts   []*host
	byID    map[fleet.HostID]*host
	vms     []vm
	values  []float64
	history []Fault
	tally   Tally
	script  []Planned // by After, those still to come
	rotated int
	pick    *rand.Rand
	rates   rates
}

type vm struct {
	home, at int // host numbers
	id, name string
	bytes    float64
}

// rates are the constants of a step.
type rates struct {
	slow, slowKick, fast, fastKick, noise, noiseKick float64
	load1, load5, heat, warm, cache                  float64
}

// New returns a fleet before its first step.
func New(cfg Config) (*Fleet, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	f := &Fleet{cfg: cfg, schema: fleet.NewSchema(Series()), byID: make(map[fleet.HostID]*host, cfg.Hosts),
		dt: cfg.Interval.Seconds(), values: make([]float64, cfg.Hosts*columns), pick: stream(cfg.Seed, 0, 3)}
	f.script = sortedScript(cfg.Script)
	ou := func(tau float64) (keep, kick float64) {
		keep = math.Exp(-f.dt / tau)
		return keep, math.Sqrt(1 - keep*keep)
	}
	towards := func(tau float64) float64 { return 1 - math.Exp(-f.dt/tau) }
	r := &f.rates
	r.slow, r.slowKick = ou(1200)
	r.fast, r.fastKick = ou(45)
	r.noise, r.noiseKick = ou(15)
	r.load1, r.load5, r.heat, r.warm, r.cache = towards(60), towards(300), towards(120), towards(600), towards(900)
	for i := range cfg.Hosts {
		h := newHost(f, i)
		f.hosts = append(f.hosts, h)
		f.byID[h.id] = h
		for range cfg.VMsPerHost {
			n := len(f.vms)
			name := fmt.Sprintf("vm-%05d", n+1)
			f.vms = append(f.vms, vm{home: i, at: i, id: cfg.Prefix + name, name: name, bytes: h.vmBytes})
			h.vms = append(h.vms, n)
		}
	}
	return f, nil
}

// stream is an independent source of random numbers for one use on one host.
func stream(seed uint64, host int, use uint64) *rand.Rand {
	return rand.New(rand.NewPCG(mix(seed^use<<56), mix(uint64(host)*0x9e3779b97f4a7c15+use)))
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Schema is the schema of all samples.
func (f *Fleet) Schema() *fleet.Schema { return f.schema }

// Now is the virtual time.
func (f *Fleet) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.time(f.now)
}

// Interval is the time that one step takes.
func (f *Fleet) Interval() time.Duration { return f.cfg.Interval }

func (f *Fleet) time(seconds float64) time.Time {
	return f.cfg.Start.Add(time.Duration(math.Round(seconds*1e3)) * time.Millisecond)
}

// Step advances the virtual clock by one interval and returns the samples of all
// hosts that are up, in dst if its capacity suffices. Their values belong to
// the fleet and change with the next step.
func (f *Fleet) Step(dst []fleet.Sample) []fleet.Sample {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.steps++
	f.now = float64(f.steps) * f.dt
	at := f.cfg.Start.Add(time.Duration(f.steps) * f.cfg.Interval)
	f.plan()
	day := f.calendar(at)
	dst = dst[:0]
	for i, h := range f.hosts {
		x := f.values[i*columns : (i+1)*columns : (i+1)*columns]
		if !h.step(f, &day, x) {
			continue
		}
		dst = append(dst, fleet.Sample{Host: h.id, Time: at, Boot: h.bootID, Simulated: true, Schema: f.schema, Values: x})
	}
	return dst
}

// calendar is what all hosts share at one instant.
type calendar struct {
	cos, sin float64 // of the day's phase
	week     float64 // factor of the weekday
	hour     float64 // 0..24
	weekday  time.Weekday
	date     int // days since the start
}

func (f *Fleet) calendar(at time.Time) calendar {
	h, m, s := at.Clock()
	c := calendar{hour: float64(h) + float64(m)/60 + float64(s)/3600, weekday: at.Weekday(), week: 1}
	c.sin, c.cos = math.Sincos(2 * math.Pi * (c.hour - 14) / 24)
	c.date = int(at.Sub(f.cfg.Start.Truncate(24*time.Hour)) / (24 * time.Hour))
	if c.weekday == time.Saturday || c.weekday == time.Sunday {
		c.week = 0.6
	}
	return c
}

// plan begins the faults of the script and of the rotation that are due.
func (f *Fleet) plan() {
	for len(f.script) > 0 && f.script[0].After.Seconds() <= f.now {
		p := f.script[0]
		f.script = f.script[1:]
		h := f.hosts[p.Host]
		f.begin(h, p.Kind, p.Lasts.Seconds(), unitIndex(p.Unit), !p.Harmless && p.Kind != NoisyNeighbour)
	}
	r := f.cfg.Rotation
	for r.Every > 0 && f.now >= r.First.Seconds()+float64(f.rotated)*r.Every.Seconds() {
		kind := Kinds()[f.rotated%len(Kinds())]
		f.rotated++
		// A few tries suffice on a fleet that is mostly sound; otherwise this turn is left out.
		for range 20 {
			h := f.hosts[f.pick.IntN(len(f.hosts))]
			if len(h.faults) == 0 && !h.down(f.now) && len(h.vms) > 0 {
				f.begin(h, kind, r.Lasts.Seconds(), -1, kind != NoisyNeighbour)
				break
			}
		}
	}
}

// Hosts lists the hosts with their VMs, in order. The caller owns the result.
func (f *Fleet) Hosts() []fleet.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]fleet.Host, 0, len(f.hosts))
	for _, h := range f.hosts {
		out = append(out, f.host(h))
	}
	return out
}

// Host is a host by its number, from 0, in the order of [Fleet.Hosts]. The caller owns the result.
func (f *Fleet) Host(n int) fleet.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.host(f.hosts[n])
}

func (f *Fleet) host(h *host) fleet.Host {
	x := fleet.Host{
		ID: h.id, FaultDomain: h.domain, Simulated: true, Version: "simulated", FirstSeen: f.cfg.Start, LastSeen: f.time(f.now), VMs: []fleet.VM{},
		Actions: []fleet.Action{fleet.ActionNone, fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate, fleet.ActionHandOver},
		Units:   Units(),
	}
	if h.down(f.now) {
		x.LastSeen = f.time(h.wentDown)
	}
	for _, n := range h.vms {
		v := f.vms[n]
		state := "running"
		if h.down(f.now) {
			state = "shut-off"
		}
		x.VMs = append(x.VMs, fleet.VM{ID: v.id, Name: v.name, State: state, MemoryBytes: int64(v.bytes)})
	}
	return x
}

// Stage says of the host with a number, from 0, how many faults it has, for how long the
// eldest has been there, and how long it is until the first of them ends by itself.
func (f *Fleet) Stage(n int) (faults int, age, left time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[n]
	soonest := math.Inf(1)
	for _, x := range h.faults {
		age = max(age, f.time(f.now).Sub(f.history[x.index].Start))
		soonest = min(soonest, (1-x.level)/x.rate)
	}
	if len(h.faults) > 0 {
		left = time.Duration(max(soonest, 0) * float64(time.Second))
	}
	return len(h.faults), age, left
}

// Tally is what was lost so far.
func (f *Fleet) Tally() Tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tally
}
