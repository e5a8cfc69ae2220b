package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/executor/diagnose"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/qmp"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/systemd"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/spool"
)

// HostName is the configured name of this host, or the machine's own, made to fit.
func HostName(c config.Agent) (fleet.HostID, error) {
	if c.Host != "" {
		return fleet.HostID(c.Host), nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find out this host's name: %w; set agent.host", err)
	}
	id := fleet.HostID(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, name))
	if err := id.Validate(); err != nil {
		return "", fmt.Errorf("this machine's host name cannot be used: %w; set agent.host", err)
	}
	return id, nil
}

// RunHost runs the agent of this very machine until ctx ends. Everything durable
// lies under dir.
func RunHost(ctx context.Context, c config.Agent, id fleet.HostID, b *bus.Agent, dir, version string, log *slog.Logger) error {
	services := newServices(c, log)
	defer services.Close()
	if c.Discover {
		if err := discover(ctx, services, c, log); err != nil {
			log.Warn("the services of this host are not known yet, looking again", "err", err)
		}
	}
	names := services.Names()
	var guests Guests
	var hypervisor *serial
	if c.Guests.QMPDir != "" {
		if _, err := os.Stat(c.Guests.QMPDir); err != nil {
			log.Warn("no VM is counted on this host until agent.guests.qmp_dir is there", "err", err)
		}
		hypervisor = &serial{guests: qmp.New(c.Guests.QMPDir)}
		guests = hypervisor
	}
	virt, err := newLibvirt(c)
	if err != nil {
		return err
	}
	if virt != nil {
		guests = virt
	}
	health := &healthWatch{services: services}
	cfg := collector.Config{Host: id, Interval: c.Interval.D(), Units: names, UnitHealth: health.latest}
	if len(names) > 0 {
		cfg.UnitStats = unitStats{services}
	}
	if hypervisor != nil {
		cfg.VMs = vms{hypervisor}
	}
	if virt != nil {
		cfg.VMs = libvirtVMs{virt}
	}
	sampler, err := collector.New(cfg)
	if err != nil {
		return err
	}
	defer sampler.Close()
	samples := &recent{}
	diagnostics, err := diagnose.New(diagnose.Config{Host: id, Units: names, Uploads: b, Healthy: services.Healthy, Telemetry: samples.all, Dir: filepath.Join(dir, "bundles"), Log: log})
	if err != nil {
		return err
	}
	carry := host.Config{
		Host: id, Dir: filepath.Join(dir, "journal"), Services: services, Guests: guests, Diagnostics: diagnostics, Reports: b,
		Units: services.Names, DryRun: !c.Act, Log: log,
	}
	OfferReset(&carry, c, dir, log)
	offerMigration(&carry, c, virt)
	runner, err := host.New(carry)
	if err != nil {
		return err
	}
	defer runner.Close()
	kept, err := spool.Open(filepath.Join(dir, "spool"), c.SpoolMiB<<20)
	if err != nil {
		// A disk that fails must not keep its host from being watched.
		log.Error("samples cannot be kept on disk; they wait in memory while the bus is away", "err", err)
	} else {
		defer kept.Close()
		if n := kept.CutOff(); n > 0 {
			log.Warn("samples on disk were torn, as by a crash, or damaged: from there on, what was in their file is lost", "bytes", n)
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if len(names) > 0 || c.Discover {
		wg.Go(func() { health.run(ctx, c.Interval.D()) })
	}
	if c.Discover {
		wg.Go(func() { rediscover(ctx, services, c, log) })
	}
	defer wg.Wait()
	defer stop()
	hung := make(map[string]bool)
	self := fleet.Host{ID: id, FaultDomain: c.FaultDomain, Version: version, DryRun: !c.Act, Actions: runner.Actions(), Units: names}
	describe(&self, c)
	var changed <-chan struct{}
	if virt != nil {
		changed = changes(ctx, virt, log)
	}
	return Run(ctx, Options{
		Host: self, Units: services.Names, Changed: changed,
		Interval: c.Interval.D(), Bus: b, Guests: guests, Runner: runner, Spool: kept, Log: log,
		Sample: func(ctx context.Context) (fleet.Sample, error) {
			s, reports := sampler.Sample(ctx)
			logSources(log, hung, reports)
			samples.add(s)
			return s, nil
		},
	})
}

// logSources says once when a source begins to fail or hang, and when it is back.
func logSources(log *slog.Logger, bad map[string]bool, reports []collector.SourceReport) {
	for _, r := range reports {
		now := r.State == collector.SourceFailed || r.State == collector.SourceHung
		if now == bad[r.Source] {
			continue
		}
		if bad[r.Source] = now; now {
			log.Warn("a source of metrics does not work, its metrics are missing", "source", r.Source, "state", r.State, "err", r.Err)
		} else {
			log.Info("a source of metrics works again", "source", r.Source)
		}
	}
}

// healthWatch runs the health checks beside the sampling, so that a hanging
// check delays no sample.
type healthWatch struct {
	services *systemd.Services

	mu     sync.Mutex
	result map[string]collector.UnitHealth
}

func (h *healthWatch) run(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(max(interval, time.Second))
	defer tick.Stop()
	for {
		found := h.services.Check(ctx)
		result := make(map[string]collector.UnitHealth, len(found))
		for unit, c := range found {
			result[unit] = collector.UnitHealth(c)
		}
		h.mu.Lock()
		h.result = result
		h.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *healthWatch) latest(context.Context) map[string]collector.UnitHealth {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.result
}

// unitStats shows systemd to the collector.
type unitStats struct{ services *systemd.Services }

func (u unitStats) UnitStats(ctx context.Context, names []string) (map[string]collector.UnitStat, int, error) {
	units, failed, err := u.services.Stats(ctx, names)
	if err != nil {
		return nil, 0, err
	}
	out := make(map[string]collector.UnitStat, len(units))
	for name, s := range units {
		out[name] = collector.UnitStat(s)
	}
	return out, failed, nil
}

// serial asks the hypervisor one question at a time, since QEMU serves one client
// of a QMP socket.
type serial struct {
	mu     sync.Mutex
	guests *qmp.Guests
}

func (s *serial) Guests(ctx context.Context) ([]fleet.GuestReport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guests.Guests(ctx)
}

// vms shows the guests to the collector.
type vms struct{ guests *serial }

func (v vms) VMStats(ctx context.Context) ([]collector.VMStat, error) {
	v.guests.mu.Lock()
	defer v.guests.mu.Unlock()
	stats, err := v.guests.guests.Stats(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the guests: %w", err)
	}
	out := make([]collector.VMStat, 0, len(stats))
	for _, s := range stats {
		out = append(out, collector.VMStat{
			Name: s.ID, Running: s.Running, MemoryBytes: s.MemoryBytes, CPUSeconds: s.CPUSeconds, StealSeconds: s.StealSeconds,
			BlockReadBytes: s.BlockReadBytes, BlockWriteBytes: s.BlockWriteBytes, BlockErrors: s.BlockError,
			NetReceiveBytes: math.NaN(), NetTransmitBytes: math.NaN(), NetDropped: math.NaN(), // QMP does not tell
		})
	}
	return out, nil
}
