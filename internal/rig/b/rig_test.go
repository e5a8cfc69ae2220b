package b

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const guestMiB = 64

// services are the services of a host beside libvirtd, each with a port of its own.
var services = []string{"storage", "network", "monitor", "metrics"}

// pki is where a host has its certificate.
const pki = "/etc/tls"

func port(service string) string { return fmt.Sprint(7101 + slices.Index(services, service)) }

// rig is everything.
type rig struct {
	*rigtest.Plane
	t       *testing.T
	net     network
	program string
	client  *http.Client
	common  string // a directory that both hosts have as /common
	hosts   map[fleet.HostID]*drivertest.Booted
	guest   *rigtest.Watch
	vm      string       // the guest's ID
	bmc     *rigtest.BMC // host one's
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// names are the hosts.
var names = []fleet.HostID{"one", "two"}

// begin starts the control plane, both hosts, and a guest on the first.
func begin(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, net: newNetwork(t), program: rigtest.Build(t, "../../.."), hosts: map[fleet.HostID]*drivertest.Booted{}}
	r.client = &http.Client{Transport: &http.Transport{DialContext: dialer(r.net.control), DisableKeepAlives: true}, Timeout: 30 * time.Second}
	var err error
	if r.common, err = os.MkdirTemp("", "common"); err != nil { // short enough for sockets
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(r.common) })
	dir := t.TempDir()
	authority := rigtest.NewAuthority(t)
	ca, cert, key := authority.Write(dir, controlAddress)
	r.bmc = rigtest.StartBMC(t, r.net.control)
	password := filepath.Join(dir, "password")
	write(t, password, rigtest.BMCPassword+"\n")
	config := filepath.Join(dir, "serve.yaml")
	// Nothing is learned, so that what goes on beside the test on this machine is no news.
	write(t, config, fmt.Sprintf(`data: %s
api: {listen: "127.0.0.1:0"}
bus: {listen: "%s:0", tls: {cert: %s, key: %s}}
agent: {disabled: true}
model: {learn: 24h}
policy: {cooldown: 0s, min_healthy_ratio: 0, deadlines: {begin: 2m}}
power: {cycle_emptied: true, hosts: {one: {address: %q, user: %s, password_file: %s}}}
`, filepath.Join(dir, "serve"), controlAddress, cert, key, r.bmc.Address, rigtest.BMCUser, password))
	credentials := map[fleet.HostID]string{}
	for _, name := range names {
		out, err := exec.Command(r.program, "agent", "enroll", string(name), "--config", config).Output()
		if err != nil {
			t.Fatalf("enroll: %v", err)
		}
		credentials[name] = string(out)
	}
	r.Plane = rigtest.Serve(t, r.client, "nsenter", "--net="+path(r.net.control), r.program, "serve", "--config", config)
	for i, name := range names {
		r.hosts[name] = r.boot(name, []string{r.net.one, r.net.two}[i], addresses[i], ca, credentials[name], authority)
	}
	for _, name := range names {
		r.await(fmt.Sprintf("%s is known and can migrate", name), 3*time.Minute, func() bool {
			h, ok := r.host(name)
			return ok && slices.Contains(h.Actions, fleet.ActionLiveMigrate) && h.Prediction != nil
		})
	}
	r.start()
	return r
}

// boot boots a host.
func (r *rig) boot(name fleet.HostID, namespace, address, ca, credentials string, authority *rigtest.Authority) *drivertest.Booted {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	units := map[string]string{
		"var-lib-store.mount":      "[Mount]\nWhat=tmpfs\nWhere=" + store + "\nType=tmpfs\nOptions=size=1M\n",
		"libvirtd.service":         "[Unit]\nAfter=dbus.service\n[Service]\nType=notify\nExecStart=/usr/sbin/libvirtd --listen\nKillMode=process\n",
		"tardigrade-agent.service": "[Service]\nExecStart=/share/tardigrade agent --config /etc/agent.yaml --log-json\nStandardError=append:/share/agent.log\nRestart=always\nRestartSec=100ms\n",
	}
	start := []string{"var-lib-store.mount", "libvirtd.service", "tardigrade-agent.service"}
	list := "    - {name: libvirtd.service, health: {tcp: \"unix:/share/libvirt/libvirt-sock\", timeout: 2s}}\n"
	for _, s := range services {
		units[s+".service"] = fmt.Sprintf("[Unit]\nAfter=var-lib-store.mount\n[Service]\nExecStart=/share/bin/%s\nEnvironment=%s=%s %s=127.0.0.1:%s\n", s, serviceVariable, s, listenVariable, port(s))
		start = append(start, s+".service")
		list += fmt.Sprintf("    - {name: %s.service, health: {http: \"http://127.0.0.1:%s/\", timeout: 2s}}\n", s, port(s))
	}
	files := map[string]string{
		"etc/libvirt/libvirtd.conf": rigtest.LibvirtdConf("/share/libvirt", pki, "0.0.0.0", "16514", ""),
		"etc/libvirt/qemu.conf":     rigtest.QEMUConf(pki),
		"var/lib/libvirt/.keep":     "",
		"etc/hosts":                 fmt.Sprintf("127.0.0.1 localhost\n%s one\n%s two\n", addresses[0], addresses[1]),
		"etc/credentials.json":      credentials,
		"etc/ca.pem":                string(authority.Cert),
		"etc/agent.yaml": fmt.Sprintf(`agent:
  host: %s
  address: %s
  fault_domain: rack-%s
  bus: tls://%s
  tls: {ca: /etc/ca.pem}
  credentials: /etc/credentials.json
  data: /var/lib/tardigrade
  act: true
  guests: {libvirt: /share/libvirt/libvirt-sock}
  migrate: {uri: "qemu+tls://{host}/system?pkipath=%s", data_uri: "tcp://{host}", tls: true, post_copy_after: 1h, accept: true}
  units:
%s`, name, address, name, r.Bus, pki, list),
	}
	allow := ""
	if name == "two" { // VMs come to the other one without post-copy
		allow = "@memlock"
	}
	for file, text := range authority.Libvirt(address) {
		files[strings.TrimPrefix(pki, "/")+"/"+file] = text
	}
	return drivertest.Boot(r.t, drivertest.Host{
		Units: units, Start: start, Program: self, Namespace: path(namespace), Name: string(name), Allow: allow, Binds: map[string]string{"/common": r.common},
		Prepare: func(share string) error {
			for _, d := range []string{"libvirt", "bin"} {
				if err := os.Mkdir(filepath.Join(share, d), 0o755); err != nil {
					return err
				}
			}
			for _, s := range services {
				if err := os.Symlink("/test", filepath.Join(share, "bin", s)); err != nil {
					return err
				}
			}
			return exec.Command("cp", r.program, filepath.Join(share, "tardigrade")).Run()
		},
		Files: files,
	})
}

// libvirt connects to a host's daemon.
func (r *rig) libvirt(host fleet.HostID) *libvirt.Libvirt {
	r.t.Helper()
	l := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(filepath.Join(r.hosts[host].Share, "libvirt/libvirt-sock"))))
	if err := l.Connect(); err != nil {
		r.t.Fatalf("connect to libvirt of %s: %v", host, err)
	}
	return l
}

// start starts the guest on host one.
func (r *rig) start() {
	r.t.Helper()
	sector, err := rigtest.BootSector(guestMiB)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.common, "boot.img"), sector, 0o644); err != nil {
		r.t.Fatal(err)
	}
	serial, err := net.Listen("unix", filepath.Join(r.common, "serial"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { serial.Close() })
	r.guest = rigtest.WatchAll(serial)
	l := r.libvirt("one")
	defer l.Disconnect()
	d, err := l.DomainDefineXML(rigtest.Domain("web", guestMiB, "/common/boot.img", "/common/serial"))
	if err == nil {
		err = l.DomainCreate(d)
	}
	if err != nil {
		r.t.Fatalf("start the guest: %v", err)
	}
	u := d.UUID
	r.vm = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	r.ticks(10)
	r.await("the guest is known", 3*time.Minute, func() bool {
		h, ok := r.host("one")
		return ok && len(h.VMs) == 1 && h.VMs[0].ID == r.vm && h.VMs[0].State == "running"
	})
}

// ticks waits until the guest ticked n times more.
func (r *rig) ticks(n uint32) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 3*time.Minute)
	defer cancel()
	if err := r.guest.Await(ctx, n); err != nil {
		r.t.Fatal(err)
	}
}

// await polls for a state of the world outside this process.
func (r *rig) await(what string, limit time.Duration, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			said := ""
			for name, h := range r.hosts {
				agent, _ := os.ReadFile(filepath.Join(h.Share, "agent.log"))
				v, _ := r.host(name)
				view, _ := json.Marshal(v)
				said += fmt.Sprintf("\nhost %s: %s\nits agent: %s", name, view, agent[max(0, len(agent)-2000):])
			}
			r.t.Fatalf("not within %v: %s%s", limit, what, said)
		}
	}
}

type view struct {
	fleet.Host
	Prediction *fleet.Prediction `json:"prediction"`
	Cordon     *fleet.Cordon     `json:"cordon"`
}

func (r *rig) host(name fleet.HostID) (v view, ok bool) {
	code, _ := r.Ask("GET", "/api/v1/hosts/"+string(name), "", &v)
	return v, code == http.StatusOK
}

// execute asks for an action; follow waits for its end.
func (r *rig) execute(host fleet.HostID, action fleet.Action) string {
	r.t.Helper()
	var e fleet.Execution
	code, text := r.Ask("POST", "/api/v1/executions", fmt.Sprintf(`{"host":%q,"action":%q,"reason":"rig B"}`, host, action), &e)
	if code >= 300 || e.ID == "" {
		r.t.Fatalf("%s on %s: %d %s", action, host, code, text)
	}
	return e.ID
}

func (r *rig) follow(id string) (e fleet.Execution) {
	r.t.Helper()
	r.await("execution "+id+" has ended", 3*time.Minute, func() bool {
		code, _ := r.Ask("GET", "/api/v1/executions/"+id, "", &e)
		return code == http.StatusOK && e.State.Final()
	})
	return e
}

// uncordon lets a host be used again, which must be cordoned.
func (r *rig) uncordon(host fleet.HostID) {
	r.t.Helper()
	r.await(string(host)+" is cordoned", 3*time.Minute, func() bool {
		h, ok := r.host(host)
		return ok && h.Cordon != nil
	})
	if code, text := r.Ask("DELETE", "/api/v1/hosts/"+string(host)+"/cordon", "", nil); code != http.StatusOK {
		r.t.Fatalf("uncordon %s: %d %s", host, code, text)
	}
}

// running lists the hosts whose libvirt says that the guest runs there.
func (r *rig) running() (on []fleet.HostID) {
	for _, name := range names {
		l := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(filepath.Join(r.hosts[name].Share, "libvirt/libvirt-sock"))))
		if l.Connect() != nil {
			continue // a host without power runs nothing
		}
		if d, err := l.DomainLookupByName("web"); err == nil {
			if state, _, err := l.DomainGetState(d, 0); err == nil && libvirt.DomainState(state) == libvirt.DomainRunning {
				on = append(on, name)
			}
		}
		l.Disconnect()
	}
	return on
}

// at fails the test unless the guest runs on that host alone and was never harmed.
func (r *rig) at(host fleet.HostID) {
	r.t.Helper()
	r.ticks(5)
	if on := r.running(); len(on) != 1 || on[0] != host {
		r.t.Fatalf("the guest runs on %v, not on %s", on, host)
	}
	if a := r.guest.Account(); a.Boots != 1 || a.Jumps != 0 || a.Repeats != 0 || a.Corrupt != 0 || a.Garbled != 0 {
		r.t.Errorf("the guest was harmed: %+v", a)
	}
}
