package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/collector"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/libvirt"
	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// newLibvirt is the guests of this host's libvirt daemon, nil where none is configured.
func newLibvirt(c config.Agent) (*libvirt.Host, error) {
	if c.Guests.Libvirt == "" {
		return nil, nil
	}
	m := c.Migrate
	each := m.BandwidthMiB / max(m.Parallel, 1)
	if m.BandwidthMiB > 0 {
		each = max(each, 1)
	}
	h, err := libvirt.New(libvirt.Config{URI: c.Guests.Libvirt, Move: libvirt.Move{
		URI: m.URI, DataURI: m.DataURI, MiBPerSecond: each, AutoConverge: m.AutoConverge, Downtime: m.Downtime.D(), PostCopyAfter: m.PostCopyAfter.D(), TLS: m.TLS, Shared: m.Shared,
	}})
	if err != nil {
		return nil, fmt.Errorf("agent.guests.libvirt or agent.migrate: %w", err)
	}
	return h, nil
}

// offerMigration puts live migration into the runner's configuration, if it can be done.
func offerMigration(cfg *host.Config, c config.Agent, guests *libvirt.Host) {
	if guests == nil || len(missingForMigration(c)) > 0 {
		return
	}
	cfg.Mover, cfg.ParallelMoves = guests, c.Migrate.Parallel
}

// missingForMigration says why live migration is not offered, nothing if it is.
func missingForMigration(c config.Agent) []string {
	var out []string
	if c.Guests.Libvirt == "" {
		out = append(out, "VMs are moved by libvirt: set agent.guests.libvirt")
	}
	if c.Migrate.URI == "" {
		out = append(out, "it is not enabled: set agent.migrate.uri to how other hosts' libvirt daemons are reached, for example qemu+tls://{host}/system")
	}
	return out
}

func probeMigrate(ctx context.Context, c config.Agent, _ string, _ *slog.Logger) Capability {
	out := Capability{Name: "live-migrate", Missing: append(mayAct(c), missingForMigration(c)...)}
	guests, err := newLibvirt(c)
	if err != nil {
		out.Missing = append(out.Missing, err.Error())
	}
	if guests == nil || err != nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	all, err := guests.Guests(ctx)
	if err != nil {
		out.Missing = append(out.Missing, err.Error())
	}
	for _, g := range all {
		switch {
		case g.Pinned != "":
			out.Missing = append(out.Missing, fmt.Sprintf("VM %s (%s) cannot leave the host: %s", g.Name, g.ID, g.Pinned))
		case g.HostCPU:
			out.Notes = append(out.Notes, fmt.Sprintf("VM %s (%s) needs a host whose CPU can do as much as this one's", g.Name, g.ID))
		}
	}
	if !c.Migrate.Accept {
		out.Notes = append(out.Notes, "VMs of other hosts are not taken here: agent.migrate.accept is false")
	}
	if c.Migrate.URI != "" && !c.Migrate.TLS {
		out.Notes = append(out.Notes, "the memory of VMs is sent unencrypted: agent.migrate.tls is false")
	}
	if c.Migrate.PostCopyAfter > 0 {
		if err := postCopy(); err != nil {
			out.Notes = append(out.Notes, fmt.Sprintf("VMs do not come here by post-copy (agent.migrate.post_copy_after), only in the ordinary way: QEMU needs %v: see vm.unprivileged_userfaultfd, and in a container its filter of system calls", err))
		}
	}
	return out
}

// postCopy says what of the kernel QEMU lacks on this host to take guests by post-copy
// (QEMU's migration/postcopy-ram.c, postcopy_ram_supported_by_host), as far as this process
// stands for it; nil if nothing.
func postCopy() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd(2), and the kernel says %q", errno)
	}
	unix.Close(int(fd))
	if err := unix.Munlockall(); err != nil { // this process has locked nothing
		return fmt.Errorf("munlockall(2), and the kernel says %q", err)
	}
	return nil
}

// describe fills in what the placement of VMs has to know of this host.
func describe(h *fleet.Host, c config.Agent) {
	h.Address, h.AcceptsVMs = c.Address, c.Migrate.Accept && c.Guests.Libvirt != ""
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		h.CPU = libvirt.CPU(string(text))
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
}

// changes tells of each change of a guest, as long as ctx lasts.
func changes(ctx context.Context, guests *libvirt.Host, log *slog.Logger) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() {
		for ctx.Err() == nil {
			events, err := guests.Events(ctx)
			if err != nil {
				log.Debug("the guests cannot be followed", "err", err)
			} else {
				for range events {
					select {
					case out <- struct{}{}:
					default:
					}
				}
			}
			select { // the daemon is away
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
		}
	}()
	return out
}

// libvirtVMs shows the guests to the collector.
type libvirtVMs struct{ guests *libvirt.Host }

func (v libvirtVMs) VMStats(ctx context.Context) ([]collector.VMStat, error) {
	stats, err := v.guests.Stats(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]collector.VMStat, 0, len(stats))
	for _, s := range stats {
		out = append(out, collector.VMStat{
			Name: s.Name, Running: s.Running, MemoryBytes: s.MemoryBytes, CPUSeconds: s.CPUSeconds, StealSeconds: s.StealSeconds,
			BlockReadBytes: s.BlockReadBytes, BlockWriteBytes: s.BlockWriteBytes, BlockErrors: math.NaN(), // libvirt does not tell
			NetReceiveBytes: s.NetReceiveBytes, NetTransmitBytes: s.NetTransmitBytes, NetDropped: s.NetDropped,
		})
	}
	return out, nil
}
