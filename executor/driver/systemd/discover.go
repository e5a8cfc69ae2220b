package systemd

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
)

// Role is what a service does for the VMs of its host.
type Role string

// The roles, in the order in which services are restarted where systemd does not ask
// for another one.
const (
	RoleStorage        Role = "storage"
	RoleNetwork        Role = "network"
	RoleVirtualisation Role = "virtualisation"
	RoleMonitoring     Role = "monitoring"
	RoleConfigured     Role = "configured" // a pattern of the configuration
)

var roles = []Role{RoleStorage, RoleNetwork, RoleVirtualisation, RoleMonitoring, RoleConfigured}

// known are the services that a recycle restarts, by patterns (path.Match) of their
// names: management daemons, whose restart neither running VMs nor their disks and
// network notice. What carries them itself (ovs-vswitchd, ceph-osd, virtlogd, which
// holds the pipes of running QEMUs, and virtlockd, which holds their locks) is not here.
var known = []struct {
	role     Role
	patterns []string
}{
	{RoleStorage, []string{"iscsid.service", "multipathd.service", "smartd.service", "smartmontools.service", "zfs-zed.service", "glusterd.service", "udisks2.service"}},
	{RoleNetwork, []string{
		"NetworkManager.service", "ovn-controller.service", "neutron-*-agent.service", "lldpd.service",
	}},
	{RoleVirtualisation, []string{
		"libvirtd.service", "virtqemud.service", "virtnetworkd.service", "virtstoraged.service", "virtnodedevd.service", "virtsecretd.service",
		"virtinterfaced.service", "virtnwfilterd.service", "virtproxyd.service", "nova-compute.service", "openstack-nova-compute.service",
		"vdsmd.service", "pvedaemon.service", "pveproxy.service", "pvestatd.service", "cloudstack-agent.service", "opennebula-node.service",
	}},
	{RoleMonitoring, []string{
		"node_exporter.service", "prometheus-node-exporter.service", "prometheus-libvirt-exporter.service", "telegraf.service", "collectd.service",
		"zabbix-agent.service", "zabbix-agent2.service", "netdata.service", "snmpd.service", "filebeat.service", "fluent-bit.service", "vector.service",
		"nagios-nrpe-server.service", "check-mk-agent-async.service", "datadog-agent.service",
	}},
}

// Found is a service that discovery looked at.
type Found struct {
	driver.Unit
	Role Role
	// Left says why it is not restarted, "" if it is.
	Left string
}

// Discover lists the services of this host that a recycle restarts, in the order in
// which they are to be restarted, and after them those that are left alone and why.
// Besides the known ones those count that match a pattern of include (path.Match). Only
// what is active, or has failed, is in use. A service that D-Bus knows by a name is
// healthy while it answers there.
//
// The order is that of systemd's After=, Requires= and BindsTo=, and of the roles where
// these say nothing.
func (s *Services) Discover(ctx context.Context, include []string) ([]Found, error) {
	role := make(map[string]Role)
	var patterns []string
	for _, k := range known {
		for _, p := range k.patterns {
			role[p] = k.role
			patterns = append(patterns, p)
		}
	}
	for _, p := range include {
		if role[p] == "" {
			role[p] = RoleConfigured
			patterns = append(patterns, p)
		}
	}
	c, err := s.bus(ctx)
	if err != nil {
		return nil, err
	}
	listed, err := c.ListUnitsByPatternsContext(ctx, nil, patterns)
	if err != nil {
		return nil, fmt.Errorf("list the services of this host: %w", err)
	}
	slices.SortFunc(listed, func(a, b dbus.UnitStatus) int { return cmp.Compare(a.Name, b.Name) })
	var use, leave []Found
	after := make(map[string][]string)
	for _, u := range listed {
		f := Found{Unit: driver.Unit{Name: u.Name}, Role: roleOf(u.Name, patterns, role)}
		if u.LoadState != "loaded" || f.Role == "" || !strings.HasSuffix(u.Name, ".service") {
			continue
		}
		if u.ActiveState == "inactive" {
			f.Left = "it is not in use (inactive)"
			leave = append(leave, f)
			continue
		}
		p, err := s.properties(ctx, u.Name)
		if err != nil {
			return nil, err
		}
		if f.Left, err = s.refusal(ctx, u.Name, p); err != nil {
			return nil, err
		}
		if f.Left != "" {
			leave = append(leave, f)
			continue
		}
		m, err := c.GetUnitTypePropertiesContext(ctx, u.Name, "Service")
		if err != nil {
			return nil, fmt.Errorf("ask systemd about %s: %w", u.Name, err)
		}
		f.Health.DBus = text(m, "BusName")
		after[u.Name] = p.after
		use = append(use, f)
	}
	return append(order(use, after), leave...), nil
}

// roleOf finds the first pattern that a name matches.
func roleOf(name string, patterns []string, role map[string]Role) Role {
	for _, p := range patterns {
		if ok, _ := path.Match(p, name); ok {
			return role[p]
		}
	}
	return ""
}

// order sorts units so that each comes after those that it is to start after. Of those
// that could be next, the first by role and name is. A circle is broken there, too.
func order(units []Found, after map[string][]string) []Found {
	left := slices.Clone(units)
	slices.SortStableFunc(left, func(a, b Found) int {
		return cmp.Or(cmp.Compare(slices.Index(roles, a.Role), slices.Index(roles, b.Role)), cmp.Compare(a.Name, b.Name))
	})
	out := make([]Found, 0, len(units))
	for len(left) > 0 {
		next := slices.IndexFunc(left, func(u Found) bool {
			return !slices.ContainsFunc(left, func(other Found) bool { return other.Name != u.Name && slices.Contains(after[u.Name], other.Name) })
		})
		next = max(next, 0)
		out = append(out, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return out
}
