package collector

import (
	"context"
	"math"
	"os"
	"path/filepath"

	"github.com/shirou/gopsutil/v3/net"
)

var networkMetrics = append([]Metric{
	rate("network_receive_bytes_per_second", "bytes/s", "received by all counted interfaces: the physical ones, or all but loopback where there is none", "gopsutil net.IOCounters"),
	rate("network_transmit_bytes_per_second", "bytes/s", "sent by all counted interfaces", "gopsutil net.IOCounters"),
	rate("network_receive_packets_per_second", "1/s", "packets received by all counted interfaces", "gopsutil net.IOCounters"),
	rate("network_transmit_packets_per_second", "1/s", "packets sent by all counted interfaces", "gopsutil net.IOCounters"),
	rate("network_receive_errors_per_second", "1/s", "packets received with an error", "gopsutil net.IOCounters"),
	rate("network_transmit_errors_per_second", "1/s", "packets that could not be sent", "gopsutil net.IOCounters"),
	rate("network_receive_drops_per_second", "1/s", "packets dropped on arrival", "gopsutil net.IOCounters"),
	rate("network_transmit_drops_per_second", "1/s", "packets dropped before sending", "gopsutil net.IOCounters"),
	rate("network_fifo_overruns_per_second", "1/s", "packets lost because the host was too slow", "gopsutil net.IOCounters"),
	rate("network_link_changes_per_second", "1/s", "times that a link went up or down", "/sys/class/net/*/carrier_changes"),
	gauge("network_links_down", "1", "counted interfaces that are set up and have no link", "/sys/class/net/*/operstate"),
}, each("nic",
	rate("nic_receive_bytes_per_second", "bytes/s", "received", "gopsutil net.IOCounters"),
	rate("nic_transmit_bytes_per_second", "bytes/s", "sent", "gopsutil net.IOCounters"),
	rate("nic_errors_per_second", "1/s", "packets with an error, both ways", "gopsutil net.IOCounters"),
	rate("nic_drops_per_second", "1/s", "packets dropped, both ways", "gopsutil net.IOCounters"),
	rate("nic_link_changes_per_second", "1/s", "times that the link went up or down", "/sys/class/net/*/carrier_changes"),
	state("nic_link_up", "whether the interface has a link", "/sys/class/net/*/operstate"),
)...)

// networkSource reads the interfaces. On a host with physical interfaces those
// alone count, so that bridges and guests' taps do not count a packet twice.
type networkSource struct {
	h    *host
	nics map[string]*nic
}

type nic struct {
	name     string // of the series
	loopback bool
	physical bool
	changes  *file
	oper     *file
	round    uint64
}

func newNetworkSource(h *host) source {
	return &networkSource{h: h, nics: make(map[string]*nic)}
}

func (s *networkSource) close() error {
	for _, n := range s.nics {
		n.changes.close()
		n.oper.close()
	}
	return nil
}

func (s *networkSource) identify(name string) *nic {
	dir := filepath.Join(s.h.sys, "class/net", filepath.Base(name))
	_, err := os.Stat(filepath.Join(dir, "device"))
	return &nic{
		name:     instanceName(name),
		loopback: name == "lo",
		physical: err == nil,
		changes:  s.h.kept(filepath.Join(dir, "carrier_changes")),
		oper:     s.h.kept(filepath.Join(dir, "operstate")),
	}
}

// Counters of some drivers have 32 bits.
var (
	nicBytes   = counter32(2e9)
	nicPackets = counter32(5e7)
)

func (s *networkSource) collect(ctx context.Context, f *frame) error {
	all, err := net.IOCountersWithContext(ctx, true)
	if err != nil {
		return err
	}
	anyPhysical := false
	for i := range all {
		n := s.nics[all[i].Name]
		if n == nil {
			n = s.identify(all[i].Name)
			s.nics[all[i].Name] = n
		}
		n.round = f.round
		anyPhysical = anyPhysical || n.physical
	}
	for name, n := range s.nics {
		if n.round != f.round {
			n.changes.close()
			n.oper.close()
			delete(s.nics, name)
		}
	}
	totals := [...]struct {
		metric string
		sum    float64
	}{
		{metric: "network_receive_bytes_per_second"}, {metric: "network_transmit_bytes_per_second"},
		{metric: "network_receive_packets_per_second"}, {metric: "network_transmit_packets_per_second"},
		{metric: "network_receive_errors_per_second"}, {metric: "network_transmit_errors_per_second"},
		{metric: "network_receive_drops_per_second"}, {metric: "network_transmit_drops_per_second"},
		{metric: "network_fifo_overruns_per_second"}, {metric: "network_link_changes_per_second"},
	}
	for i := range totals {
		totals[i].sum = math.NaN()
	}
	down, counted := 0, 0
	for i := range all {
		n := s.nics[all[i].Name]
		if n.loopback || anyPhysical && !n.physical {
			continue
		}
		counted++
		shown := f.admit(n.name)
		put := func(metric string, v float64) {
			if shown {
				f.setOf(metric, n.name, v)
			}
		}
		per := func(metric string, raw uint64, w width) float64 {
			d, seconds := f.delta(metric, n.name, raw, w)
			return d / seconds
		}
		c := &all[i]
		received := per("nic_receive_bytes_per_second", c.BytesRecv, nicBytes)
		sent := per("nic_transmit_bytes_per_second", c.BytesSent, nicBytes)
		errIn, errOut := per("errin", c.Errin, nicPackets), per("errout", c.Errout, nicPackets)
		dropIn, dropOut := per("dropin", c.Dropin, nicPackets), per("dropout", c.Dropout, nicPackets)
		changes := math.NaN()
		if raw, err := n.changes.number(); err == nil {
			changes = per("nic_link_changes_per_second", raw, nicPackets)
			put("nic_link_changes_per_second", changes)
		}
		put("nic_receive_bytes_per_second", received)
		put("nic_transmit_bytes_per_second", sent)
		put("nic_errors_per_second", errIn+errOut)
		put("nic_drops_per_second", dropIn+dropOut)
		for j, v := range [...]float64{
			received, sent,
			per("packetsin", c.PacketsRecv, nicPackets), per("packetsout", c.PacketsSent, nicPackets),
			errIn, errOut, dropIn, dropOut,
			per("fifo", c.Fifoin+c.Fifoout, nicPackets), changes,
		} {
			sumOf(&totals[j].sum, v)
		}
		if b, err := n.oper.read(); err == nil {
			// "unknown" is what drivers without link state say of a working link.
			switch string(trimSpace(b)) {
			case "up", "unknown":
				put("nic_link_up", 1)
			case "down", "lowerlayerdown", "dormant":
				// An interface that nobody has set up has no error to report.
				put("nic_link_up", 0)
				if s.enabled(n) {
					down++
				}
			}
		}
	}
	if counted == 0 {
		return errNoData
	}
	for _, t := range totals {
		f.set(t.metric, t.sum)
	}
	f.set("network_links_down", float64(down))
	return nil
}

// enabled tells whether an interface is administratively up (IFF_UP).
func (s *networkSource) enabled(n *nic) bool {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(n.oper.path), "flags"))
	if err != nil || len(b) < 3 {
		return false
	}
	flags, ok := parseHex(trimSpace(b[2:]))
	return ok && flags&1 != 0
}
