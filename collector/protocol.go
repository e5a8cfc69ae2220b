package collector

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"path/filepath"
)

// Documentation/networking/snmp_counter.rst explains the counters.
var protocolMetrics = []Metric{
	rate("tcp_segments_received_per_second", "1/s", "TCP segments received", "/proc/net/snmp Tcp InSegs"),
	rate("tcp_segments_sent_per_second", "1/s", "TCP segments sent", "/proc/net/snmp Tcp OutSegs"),
	rate("tcp_retransmits_per_second", "1/s", "TCP segments sent again", "/proc/net/snmp Tcp RetransSegs"),
	ratio("tcp_retransmit_ratio", "share of the TCP segments sent that were sent again", "/proc/net/snmp Tcp"),
	rate("tcp_receive_errors_per_second", "1/s", "damaged TCP segments", "/proc/net/snmp Tcp InErrs"),
	rate("tcp_resets_sent_per_second", "1/s", "TCP resets sent", "/proc/net/snmp Tcp OutRsts"),
	rate("tcp_connects_per_second", "1/s", "TCP connections opened from here", "/proc/net/snmp Tcp ActiveOpens"),
	rate("tcp_accepts_per_second", "1/s", "TCP connections opened from elsewhere", "/proc/net/snmp Tcp PassiveOpens"),
	rate("tcp_failed_connects_per_second", "1/s", "TCP connections that did not come about", "/proc/net/snmp Tcp AttemptFails"),
	rate("tcp_connection_resets_per_second", "1/s", "TCP connections that were reset", "/proc/net/snmp Tcp EstabResets"),
	gauge("tcp_connections", "1", "TCP connections established", "/proc/net/snmp Tcp CurrEstab"),
	rate("tcp_listen_overflows_per_second", "1/s", "connections lost to a full accept queue", "/proc/net/netstat TcpExt ListenOverflows"),
	rate("tcp_listen_drops_per_second", "1/s", "connections dropped by a listening socket", "/proc/net/netstat TcpExt ListenDrops"),
	rate("tcp_timeouts_per_second", "1/s", "TCP retransmission timers that ran out", "/proc/net/netstat TcpExt TCPTimeouts"),
	rate("tcp_aborts_on_memory_per_second", "1/s", "TCP connections ended for want of memory", "/proc/net/netstat TcpExt TCPAbortOnMemory"),
	rate("udp_datagrams_received_per_second", "1/s", "UDP datagrams received", "/proc/net/snmp Udp InDatagrams"),
	rate("udp_receive_errors_per_second", "1/s", "UDP datagrams that could not be delivered", "/proc/net/snmp Udp InErrors"),
	rate("udp_receive_buffer_errors_per_second", "1/s", "UDP datagrams lost to a full buffer", "/proc/net/snmp Udp RcvbufErrors"),
	rate("ip_receive_discards_per_second", "1/s", "IP packets discarded though there was nothing wrong with them", "/proc/net/snmp Ip InDiscards"),
	rate("ip_no_routes_per_second", "1/s", "IP packets without a route", "/proc/net/snmp Ip OutNoRoutes"),
	gauge("sockets_used", "1", "sockets of all kinds", "/proc/net/sockstat"),
	gauge("tcp_time_wait_sockets", "1", "TCP sockets in TIME_WAIT", "/proc/net/sockstat"),
	gauge("tcp_orphan_sockets", "1", "TCP sockets that no program holds", "/proc/net/sockstat"),
	gauge("tcp_memory_bytes", "bytes", "memory of TCP buffers", "/proc/net/sockstat"),
	rate("softnet_packets_per_second", "1/s", "packets taken from the network cards", "/proc/net/softnet_stat"),
	rate("softnet_drops_per_second", "1/s", "packets lost to a full backlog of a CPU", "/proc/net/softnet_stat"),
	rate("softnet_squeezes_per_second", "1/s", "times that a CPU stopped taking packets with more waiting", "/proc/net/softnet_stat"),
	gauge("conntrack_entries", "1", "connections that the firewall tracks", "/proc/sys/net/netfilter/nf_conntrack_count"),
	ratio("conntrack_used_ratio", "conntrack_entries of the most that there may be", "/proc/sys/net/netfilter/nf_conntrack_max"),
}

// protocolSource reads the counters of the network stack.
type protocolSource struct {
	snmp, netstat, sockstat, softnet, tracked, trackable *file
}

func newProtocolSource(h *host) source {
	at := func(p string) *file { return h.kept(filepath.Join(h.proc, p)) }
	return &protocolSource{
		at("net/snmp"), at("net/netstat"), at("net/sockstat"), at("net/softnet_stat"),
		at("sys/net/netfilter/nf_conntrack_count"), at("sys/net/netfilter/nf_conntrack_max"),
	}
}

func (s *protocolSource) close() error {
	for _, k := range []*file{s.snmp, s.netstat, s.sockstat, s.softnet, s.tracked, s.trackable} {
		k.close()
	}
	return nil
}

// protocolRates are the counters of /proc/net/snmp and /proc/net/netstat, by
// protocol and column.
var protocolRates = map[string]map[string]string{
	"Tcp:": {
		"InSegs": "tcp_segments_received_per_second", "OutSegs": "tcp_segments_sent_per_second",
		"RetransSegs": "tcp_retransmits_per_second", "InErrs": "tcp_receive_errors_per_second",
		"OutRsts": "tcp_resets_sent_per_second", "ActiveOpens": "tcp_connects_per_second",
		"PassiveOpens": "tcp_accepts_per_second", "AttemptFails": "tcp_failed_connects_per_second",
		"EstabResets": "tcp_connection_resets_per_second",
	},
	"TcpExt:": {
		"ListenOverflows": "tcp_listen_overflows_per_second", "ListenDrops": "tcp_listen_drops_per_second",
		"TCPTimeouts": "tcp_timeouts_per_second", "TCPAbortOnMemory": "tcp_aborts_on_memory_per_second",
	},
	"Udp:": {
		"InDatagrams": "udp_datagrams_received_per_second", "InErrors": "udp_receive_errors_per_second",
		"RcvbufErrors": "udp_receive_buffer_errors_per_second",
	},
	"Ip:": {"InDiscards": "ip_receive_discards_per_second", "OutNoRoutes": "ip_no_routes_per_second"},
}

func (s *protocolSource) collect(_ context.Context, f *frame) error {
	var errs error
	for _, k := range [...]*file{s.snmp, s.netstat} {
		b, err := k.read()
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		readColumns(b, f)
	}
	if b, err := s.sockstat.read(); err == nil {
		readSockstat(b, f)
	} else {
		errs = errors.Join(errs, err)
	}
	if b, err := s.softnet.read(); err == nil {
		readSoftnet(b, f)
	} else if !errors.Is(err, fs.ErrNotExist) {
		errs = errors.Join(errs, err)
	}
	if n, err := s.tracked.number(); err == nil {
		f.set("conntrack_entries", float64(n))
		if limit, err := s.trackable.number(); err == nil {
			f.set("conntrack_used_ratio", share(float64(n), float64(limit)))
		}
	}
	return errs
}

// readColumns reads pairs of lines, the first with the names of the columns.
func readColumns(b []byte, f *frame) {
	for len(b) > 0 {
		var names, values []byte
		names, b = cutLine(b)
		values, b = cutLine(b)
		protocol, names := cutField(names)
		again, values := cutField(values)
		rates, ok := protocolRates[string(protocol)]
		if !ok || !bytes.Equal(protocol, again) {
			continue
		}
		sent, retransmitted := math.NaN(), math.NaN()
		for {
			var name, value []byte
			name, names = cutField(names)
			value, values = cutField(values)
			if len(name) == 0 || len(value) == 0 {
				break
			}
			v, ok := parseUint(value)
			if !ok {
				continue
			}
			if metric, ok := rates[string(name)]; ok {
				d, seconds := f.delta(metric, "", v, counter64)
				f.set(metric, d/seconds)
				switch metric {
				case "tcp_segments_sent_per_second":
					sent = d
				case "tcp_retransmits_per_second":
					retransmitted = d
				}
			} else if string(protocol) == "Tcp:" && string(name) == "CurrEstab" {
				f.set("tcp_connections", float64(v))
			}
		}
		if string(protocol) == "Tcp:" {
			// OutSegs leaves out what only retransmits.
			f.set("tcp_retransmit_ratio", share(retransmitted, sent+retransmitted))
		}
	}
}

func readSockstat(b []byte, f *frame) {
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		protocol, rest := cutField(line)
		for {
			var name []byte
			name, rest = cutField(rest)
			v, after, ok := cutUint(rest)
			if len(name) == 0 || !ok {
				break
			}
			rest = after
			switch {
			case string(protocol) == "sockets:" && string(name) == "used":
				f.set("sockets_used", float64(v))
			case string(protocol) != "TCP:":
			case string(name) == "tw":
				f.set("tcp_time_wait_sockets", float64(v))
			case string(name) == "orphan":
				f.set("tcp_orphan_sockets", float64(v))
			case string(name) == "mem":
				f.set("tcp_memory_bytes", float64(v)*pageSize)
			}
		}
	}
}

// readSoftnet adds up the CPUs. Each counter has 32 bits, so each CPU has its own.
func readSoftnet(b []byte, f *frame) {
	metrics := [...]string{"softnet_packets_per_second", "softnet_drops_per_second", "softnet_squeezes_per_second"}
	sums := [...]float64{math.NaN(), math.NaN(), math.NaN()}
	for cpu := 0; len(b) > 0 && cpu < len(cpuNames); cpu++ {
		var line []byte
		line, b = cutLine(b)
		for i, metric := range metrics {
			var field []byte
			field, line = cutField(line)
			v, ok := parseHex(field)
			if !ok {
				break
			}
			d, seconds := f.delta(metric, cpuNames[cpu], v, counter32(5e7))
			sumOf(&sums[i], d/seconds)
		}
	}
	for i, metric := range metrics {
		f.set(metric, sums[i])
	}
}
