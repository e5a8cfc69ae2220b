// Package libvirt counts, probes, saves and moves the guests of a libvirt daemon,
// over libvirt's own remote procedure calls. It needs no library of libvirt's.
//
// Each call opens a connection of its own, so that a daemon that was restarted
// meanwhile is no special case, and ends with its context. A guest's ID is its UUID,
// which stays the same wherever it moves.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// DefaultSocket is where libvirtd listens on most hosts.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// Config says which daemon, and how guests are moved from it.
type Config struct {
	// URI is the path of the daemon's socket, or a libvirt URI with the transport
	// unix, tcp or tls, such as "qemu:///system".
	URI string
	// Move is how guests leave; its zero value moves none.
	Move Move
}

// Move is how guests are moved to other hosts.
type Move struct {
	// URI is the libvirt URI of the target's daemon, with {host} for its address, for
	// example "qemu+tls://{host}/system". "" means that no guest can be moved.
	URI string
	// DataURI is where guests' memory is sent, with {host}, for example "tcp://{host}";
	// "" leaves it to the target's daemon, which uses its host name.
	DataURI string
	// MiBPerSecond limits what one guest may send; 0 means no limit.
	MiBPerSecond int
	// AutoConverge slows a guest down that writes its memory faster than it is sent.
	AutoConverge bool
	// PostCopyAfter lets a guest run on the target before all of its memory is there,
	// once the move has taken so long; a failure after that loses the guest. 0 never does.
	PostCopyAfter time.Duration
	// Downtime is how long a guest may stand still when it changes over, as far as
	// libvirt can foresee; 0 leaves it to libvirt.
	Downtime time.Duration
	// TLS encrypts guests' memory on its way; the daemons must have certificates.
	TLS bool
	// Shared lists directories and device paths that all hosts have in common, beside
	// the network file systems that are recognised.
	Shared []string
}

// Host is the guests of one daemon. It is safe for concurrent use.
type Host struct {
	cfg     Config
	timeout time.Duration

	mu sync.Mutex
	// known has what was read from a guest's definition, by its UUID and run.
	known map[string]traits
}

// traits is what the definition of a guest says of its ties to the host.
type traits struct {
	hostCPU bool
	pinned  string
}

// New checks the configuration; it does not connect.
func New(cfg Config) (*Host, error) {
	if _, err := parse(cfg.URI); err != nil {
		return nil, err
	}
	if cfg.Move.URI != "" {
		if !strings.Contains(cfg.Move.URI, placeholder) {
			return nil, fmt.Errorf("%q does not say where the target's address goes: write %s, as in qemu+tls://%s/system", cfg.Move.URI, placeholder, placeholder)
		}
		for _, uri := range []string{cfg.Move.URI, cfg.Move.DataURI} {
			if _, err := fill(uri, "192.0.2.1"); err != nil {
				return nil, err
			}
		}
		if _, err := parse(strings.ReplaceAll(cfg.Move.URI, placeholder, "192.0.2.1")); err != nil {
			return nil, err
		}
	}
	return &Host{cfg: cfg, timeout: 2 * time.Second, known: map[string]traits{}}, nil
}

const placeholder = "{host}"

// fill puts a host's address into a URI. The address comes from the control plane,
// so it must be nothing but an address.
func fill(template, address string) (string, error) {
	bare := strings.Trim(address, "[]")
	for _, r := range bare {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.', r == ':':
		default:
			return "", fmt.Errorf("%q is not the address of a host", address)
		}
	}
	if bare == "" {
		return "", errors.New("the target has no address")
	}
	if strings.Contains(bare, ":") && net.ParseIP(bare) != nil {
		bare = "[" + bare + "]"
	}
	uri := strings.ReplaceAll(template, placeholder, bare)
	if _, err := url.Parse(uri); err != nil {
		return "", fmt.Errorf("%q with the address %q is not a URI: %w", template, address, err)
	}
	return uri, nil
}

// endpoint is a daemon and how it is reached.
type endpoint struct {
	transport string // unix, tcp or tls
	address   string
	driver    rpc.ConnectURI
	pki       string
}

func parse(uri string) (endpoint, error) {
	if filepath.IsAbs(uri) {
		return endpoint{transport: "unix", address: uri, driver: rpc.QEMUSystem}, nil
	}
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" {
		return endpoint{}, fmt.Errorf("%q is neither the path of libvirt's socket nor a libvirt URI such as qemu:///system", uri)
	}
	_, transport, _ := strings.Cut(u.Scheme, "+")
	e := endpoint{transport: transport, driver: rpc.RemoteURI(u), pki: u.Query().Get("pkipath")}
	port := u.Port()
	switch {
	case transport == "" && u.Host == "", transport == "unix":
		e.transport, e.address = "unix", DefaultSocket
		if s := u.Query().Get("socket"); s != "" {
			e.address = s
		}
		return e, nil
	case transport == "tcp":
		if port == "" {
			port = "16509"
		}
	case transport == "" || transport == "tls":
		e.transport = "tls"
		if port == "" {
			port = "16514"
		}
	default:
		return endpoint{}, fmt.Errorf("libvirt URI %q: the transport %q is not supported: use unix, tcp or tls", uri, transport)
	}
	if u.Hostname() == "" {
		return endpoint{}, fmt.Errorf("libvirt URI %q names no host", uri)
	}
	e.address = net.JoinHostPort(u.Hostname(), port)
	return e, nil
}

// session is a connection to a daemon.
type session struct {
	*rpc.Libvirt
	conn net.Conn
	stop func() bool
}

func (s *session) close() {
	s.stop()
	s.conn.Close()
}

// Dial makes session a dialer of go-libvirt.
func (s *session) Dial() (net.Conn, error) { return s.conn, nil }

// dial connects. The connection's time is over when ctx ends.
func dial(ctx context.Context, uri string) (*session, error) {
	e, err := parse(uri)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	switch e.transport {
	case "tls":
		host, port, err := net.SplitHostPort(e.address)
		if err != nil {
			return nil, err
		}
		options := []dialers.TLSOption{dialers.UseTLSPort(port)}
		if e.pki != "" {
			options = append(options, dialers.UsePKIPath(e.pki))
		}
		c, err = dialers.NewTLS(host, options...).Dial()
		if err != nil {
			return nil, fmt.Errorf("connect to libvirt at %s: %w", e.address, err)
		}
	default:
		c, err = new(net.Dialer).DialContext(ctx, e.transport, e.address)
		if err != nil {
			return nil, fmt.Errorf("connect to libvirt at %s: %w", e.address, err)
		}
	}
	s := &session{conn: &framed{Conn: c}}
	s.stop = context.AfterFunc(ctx, func() { c.Close() })
	s.Libvirt = rpc.NewWithDialer(s)
	if err := s.ConnectToURI(e.driver); err != nil {
		s.close()
		return nil, fmt.Errorf("open %s at %s: %w", e.driver, e.address, because(ctx, err))
	}
	return s, nil
}

// because tells why a call failed: an interrupted one, because its time was over.
func because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// with runs calls on a connection of their own.
func (h *Host) with(ctx context.Context, uri string, do func(*session) error) error {
	s, err := dial(ctx, uri)
	if err != nil {
		return err
	}
	defer s.close()
	return because(ctx, do(s))
}

// maxProbes bounds the guests that are probed at a time: a daemon serves five calls
// of a connection at once by default.
const maxProbes = 4

// Guests counts and probes the guests. A guest whose QEMU does not answer is in the
// list, but not alive. A daemon that does not answer is an error.
func (h *Host) Guests(ctx context.Context) ([]fleet.GuestReport, error) {
	out := []fleet.GuestReport{}
	var domains []rpc.Domain
	listing, cancel := context.WithTimeout(ctx, 2*h.timeout)
	defer cancel()
	err := h.with(listing, h.cfg.URI, func(s *session) error {
		var err error
		if domains, err = list(s); err != nil {
			return err
		}
		for _, d := range domains {
			state, reason, err := s.DomainGetState(d, 0)
			if rpc.IsNotFound(err) {
				continue // it went away meanwhile
			}
			if err != nil {
				return fmt.Errorf("ask for the state of %s: %w", d.Name, err)
			}
			r := fleet.GuestReport{VM: fleet.VM{ID: id(d.UUID), Name: d.Name, State: stateName(state)}}
			if _, maximum, _, _, _, err := s.DomainGetInfo(d); err == nil && maximum < math.MaxInt64/1024 {
				r.MemoryBytes = int64(maximum) * 1024
			}
			t := h.traits(s, d)
			r.HostCPU, r.Pinned = t.hostCPU, t.pinned
			// One that is still on its way here is paused too, for another reason.
			byOwner := r.State == "paused" && rpc.DomainPausedReason(reason) == rpc.DomainPausedUser
			if byOwner && r.Pinned == "" && !ran(s, d) {
				r.Pinned = "it is paused and has not run since it came here: QEMU (7.2 at least) ends when such a guest is moved on"
			}
			out = append(out, r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count the guests: %w", err)
	}
	h.probe(ctx, domains, out)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("probe the guests: %w", err)
	}
	return out, nil
}

// ran tells whether a guest has run for some time since its QEMU started. One that came paused from another host has
// its disks closed until it goes on, and QEMU fails an assertion when it is to close them once more.
func ran(s *session, d rpc.Domain) bool {
	const enough = 50 * time.Millisecond // of CPU time; it comes in units of 10 ms
	cpus, _, err := s.DomainGetVcpus(d, 1024, 0)
	var used uint64
	for _, c := range cpus {
		used += c.CPUTime
	}
	return err == nil && used >= uint64(enough)
}

// probe asks each running guest's QEMU something that it has to answer itself.
func (h *Host) probe(ctx context.Context, domains []rpc.Domain, out []fleet.GuestReport) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	s, err := dial(ctx, h.cfg.URI)
	if err != nil {
		return
	}
	defer s.close()
	slots := make(chan struct{}, maxProbes)
	var wg sync.WaitGroup
	for i := range out {
		r := &out[i]
		j := slices.IndexFunc(domains, func(d rpc.Domain) bool { return id(d.UUID) == r.ID })
		if r.State != "running" || j < 0 {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			control, _, since, err := s.DomainGetControlInfo(domains[j], 0)
			if err != nil || rpc.DomainControlState(control) == rpc.DomainControlError || rpc.DomainControlState(control) == rpc.DomainControlOccupied && since > uint64(h.timeout.Milliseconds()) {
				return
			}
			_, _, _, _, _, err = s.DomainBlockStats(domains[j], "")
			var refused rpc.Error
			r.Alive = err == nil || errors.As(err, &refused) && rpc.ErrorNumber(refused.Code) == rpc.ErrOperationUnsupported
		})
	}
	wg.Wait()
}

// maxGuests bounds the guests of a host.
const maxGuests = 10000

func list(s *session) ([]rpc.Domain, error) {
	domains, _, err := s.ConnectListAllDomains(1, rpc.ConnectListDomainsActive|rpc.ConnectListDomainsInactive)
	if err == nil && len(domains) > maxGuests {
		err = fmt.Errorf("libvirt has %d guests, at most %d are possible", len(domains), maxGuests)
	}
	slices.SortFunc(domains, func(a, b rpc.Domain) int { return strings.Compare(a.Name, b.Name) })
	return domains, err
}

// id writes a UUID.
func id(u rpc.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// find looks a guest up by its ID.
func find(s *session, guest string) (rpc.Domain, error) {
	var u rpc.UUID
	hex := strings.ReplaceAll(guest, "-", "")
	if len(hex) != 2*len(u) {
		return rpc.Domain{}, fmt.Errorf("%q is not the UUID of a guest", guest)
	}
	for i := range u {
		b, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		if err != nil {
			return rpc.Domain{}, fmt.Errorf("%q is not the UUID of a guest", guest)
		}
		u[i] = byte(b)
	}
	return s.DomainLookupByUUID(u)
}

// stateName maps libvirt's states (virDomainState).
func stateName(state int32) string {
	switch rpc.DomainState(state) {
	case rpc.DomainRunning, rpc.DomainBlocked, rpc.DomainShutdown: // the last is still on its way down
		return "running"
	case rpc.DomainPaused, rpc.DomainPmsuspended:
		return "paused"
	case rpc.DomainShutoff, rpc.DomainCrashed:
		return "shut-off"
	}
	return "unknown"
}

// on runs calls about one guest.
func (h *Host) on(ctx context.Context, guest, what string, do func(*session, rpc.Domain) error) error {
	err := h.with(ctx, h.cfg.URI, func(s *session) error {
		d, err := find(s, guest)
		if err != nil {
			return err
		}
		return do(s, d)
	})
	if err != nil {
		return fmt.Errorf("%s guest %s: %w", what, guest, err)
	}
	return nil
}

// Suspend stops a guest's CPUs; its memory stays.
func (h *Host) Suspend(ctx context.Context, guest string) error {
	return h.on(ctx, guest, "suspend", func(s *session, d rpc.Domain) error { return s.DomainSuspend(d) })
}

// Resume lets a suspended guest run on.
func (h *Host) Resume(ctx context.Context, guest string) error {
	return h.on(ctx, guest, "resume", func(s *session, d rpc.Domain) error { return s.DomainResume(d) })
}

// Save writes a guest's memory to a file of libvirt's and ends its QEMU; the guest's
// definition must be persistent. [Host.Restore] brings it back where it was.
func (h *Host) Save(ctx context.Context, guest string) error {
	return h.on(ctx, guest, "save", func(s *session, d rpc.Domain) error { return s.DomainManagedSave(d, 0) })
}

// Restore starts a guest from what [Host.Save] wrote. It refuses a guest that was not
// saved, since that would boot it anew.
func (h *Host) Restore(ctx context.Context, guest string) error {
	return h.on(ctx, guest, "restore", func(s *session, d rpc.Domain) error {
		saved, err := s.DomainHasManagedSaveImage(d, 0)
		if err != nil {
			return err
		}
		if saved == 0 {
			return errors.New("it was not saved; starting it would boot it anew")
		}
		return s.DomainCreate(d)
	})
}

// Event is a change of a guest.
type Event struct {
	Guest, Name string
	// Kind is "defined", "undefined", "started", "suspended", "resumed", "stopped",
	// "shutdown", "pm-suspended" or "crashed".
	Kind string
}

var kinds = []string{"defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "pm-suspended", "crashed"}

// Events follows the guests until ctx ends or the daemon goes away; then the channel
// is closed.
func (h *Host) Events(ctx context.Context) (<-chan Event, error) {
	s, err := dial(ctx, h.cfg.URI)
	if err != nil {
		return nil, fmt.Errorf("follow the guests: %w", err)
	}
	raw, err := s.LifecycleEvents(context.WithoutCancel(ctx))
	if err != nil {
		s.close()
		return nil, fmt.Errorf("follow the guests: %w", because(ctx, err))
	}
	out := make(chan Event)
	go func() {
		defer close(out)
		defer s.close()
		for e := range raw { // it ends with the connection, which ends with ctx
			if e.Event < 0 || int(e.Event) >= len(kinds) {
				continue
			}
			select {
			case out <- Event{Guest: id(e.Dom.UUID), Name: e.Dom.Name, Kind: kinds[e.Event]}:
			case <-ctx.Done():
			}
		}
	}()
	return out, nil
}
