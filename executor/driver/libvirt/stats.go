package libvirt

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"
)

// Stat is what a guest used. All but MemoryBytes are counters since its QEMU started;
// what libvirt does not tell is NaN.
type Stat struct {
	ID, Name string
	Running  bool
	// MemoryBytes is the host's memory that its process holds.
	MemoryBytes float64
	// CPUSeconds is the CPU time of the guest, and StealSeconds the time for which its
	// virtual CPUs were ready to run and waited for a CPU of the host.
	CPUSeconds, StealSeconds float64
	BlockReadBytes           float64
	BlockWriteBytes          float64
	NetReceiveBytes          float64
	NetTransmitBytes         float64
	// NetDropped counts packets in both directions, errors included.
	NetDropped float64
}

// nanosecond is the unit of libvirt's times.
const nanosecond = 1e-9

// Stats reads what the guests used, of all in one call. It does not wait for a guest
// with which libvirt is busy: that one lacks values.
func (h *Host) Stats(ctx context.Context) ([]Stat, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	out := []Stat{}
	err := h.with(ctx, h.cfg.URI, func(s *session) error {
		const what = rpc.DomainStatsState | rpc.DomainStatsCPUTotal | rpc.DomainStatsBalloon | rpc.DomainStatsVCPU | rpc.DomainStatsInterface | rpc.DomainStatsBlock
		records, err := s.ConnectGetAllDomainStats(nil, uint32(what), uint32(rpc.ConnectGetAllDomainsStatsNowait))
		if err != nil {
			return err
		}
		for _, r := range records {
			out = append(out, stat(r))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what the guests use: %w", err)
	}
	return out, nil
}

// stat adds up what a guest's virtual CPUs, disks and interfaces have. The names are
// those of virConnectGetAllDomainStats.
func stat(r rpc.DomainStatsRecord) Stat {
	unknown := math.NaN()
	out := Stat{ID: id(r.Dom.UUID), Name: r.Dom.Name, MemoryBytes: unknown, CPUSeconds: unknown, StealSeconds: unknown,
		BlockReadBytes: unknown, BlockWriteBytes: unknown, NetReceiveBytes: unknown, NetTransmitBytes: unknown, NetDropped: unknown}
	add := func(to *float64, v float64) {
		if math.IsNaN(*to) {
			*to = 0
		}
		*to += v
	}
	for _, p := range r.Params {
		v, ok := number(p.Value)
		if !ok {
			continue
		}
		switch p.Field {
		case "state.state":
			out.Running = stateName(int32(v)) == "running"
			continue
		case "cpu.time":
			out.CPUSeconds = v * nanosecond
			continue
		case "balloon.rss":
			out.MemoryBytes = v * 1024
			continue
		}
		group, rest, _ := strings.Cut(p.Field, ".")
		index, field, _ := strings.Cut(rest, ".")
		if _, err := strconv.ParseUint(index, 10, 31); err != nil {
			continue
		}
		switch group + "." + field {
		case "vcpu.delay":
			add(&out.StealSeconds, v*nanosecond)
		case "block.rd.bytes":
			add(&out.BlockReadBytes, v)
		case "block.wr.bytes":
			add(&out.BlockWriteBytes, v)
		case "net.rx.bytes":
			add(&out.NetReceiveBytes, v)
		case "net.tx.bytes":
			add(&out.NetTransmitBytes, v)
		case "net.rx.drop", "net.tx.drop", "net.rx.errs", "net.tx.errs":
			add(&out.NetDropped, v)
		}
	}
	return out
}

// number reads a typed parameter of any numeric type.
func number(v rpc.TypedParamValue) (float64, bool) {
	switch n := v.I.(type) {
	case int32:
		return float64(n), true
	case uint32:
		return float64(n), true
	case int64:
		return float64(n), true
	case uint64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}
