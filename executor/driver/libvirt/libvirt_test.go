package libvirt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const mib = 16

// guest is a guest that the test started.
type guest struct {
	id    string
	watch *rigtest.Watch
}

// start defines and starts a guest.
func start(t *testing.T, v *rigtest.Libvirtd, name string) guest {
	t.Helper()
	dir, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sector, err := rigtest.BootSector(mib)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "boot.img")
	if err := os.WriteFile(image, sector, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "serial"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := guest{watch: rigtest.WatchAll(l)}
	s, err := dial(t.Context(), v.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	d, err := s.DomainDefineXML(rigtest.Domain(name, mib, image, l.Addr().String()))
	if err == nil {
		err = s.DomainCreate(d)
	}
	if err != nil {
		t.Fatal(err)
	}
	g.id = id(d.UUID)
	g.ticks(t, 5)
	return g
}

// ticks waits until the guest ticked n times more.
func (g guest) ticks(t *testing.T, n uint32) {
	t.Helper()
	if err := g.watch.Await(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// unharmed fails the test unless the guest booted once, lost nothing and never ran
// twice.
func (g guest) unharmed(t *testing.T) {
	t.Helper()
	g.ticks(t, 3)
	if a := g.watch.Account(); a.Boots != 1 || a.Jumps != 0 || a.Repeats != 0 || a.Corrupt != 0 || a.Garbled != 0 {
		t.Errorf("the guest was harmed: %+v", a)
	}
}

func host(t *testing.T, v *rigtest.Libvirtd, m Move) *Host {
	t.Helper()
	h, err := New(Config{URI: v.Socket, Move: m})
	if err != nil {
		t.Fatal(err)
	}
	h.timeout = time.Minute // where this machine is busy
	return h
}

func TestGuestsConform(t *testing.T) {
	v := rigtest.StartLibvirtd(t, "one", rigtest.NewAuthority(t))
	h := host(t, v, Move{})
	a, b := start(t, v, "a"), start(t, v, "b")
	events, err := h.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expect := func(kind string) {
		t.Helper()
		for {
			select {
			case e, ok := <-events:
				if !ok {
					t.Fatalf("no more events, and none that %s was %s", a.id, kind)
				}
				if e == (Event{Guest: a.id, Name: "a", Kind: kind}) {
					return
				}
			case <-time.After(time.Minute):
				t.Fatalf("no event that %s was %s", a.id, kind)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("statistics", func(t *testing.T) {
		stats, err := h.Stats(t.Context())
		if err != nil || len(stats) != 2 || stats[0].Name == stats[1].Name {
			t.Fatalf("%+v, %v", stats, err)
		}
		for _, s := range stats {
			if !s.Running || !(s.CPUSeconds > 0) || !(s.MemoryBytes > mib<<20) || math.IsNaN(s.BlockReadBytes) || !math.IsNaN(s.NetReceiveBytes) {
				t.Errorf("%+v", s)
			}
		}
	})
	t.Run("saved and restored", func(t *testing.T) {
		if err := h.Restore(t.Context(), a.id); err == nil {
			t.Error("restored a guest that was not saved")
		}
		must(h.Save(t.Context(), a.id))
		must(h.Restore(t.Context(), a.id))
		expect("resumed")
		a.unharmed(t)
	})
	drivertest.Guests(t, drivertest.GuestBench{
		Guests: h, A: a.id, B: b.id, MemoryBytes: mib << 20,
		Pause: func(t *testing.T, id string) {
			must(h.Suspend(t.Context(), id))
			expect("suspended")
		},
		Unpause: func(t *testing.T, id string) {
			must(h.Resume(t.Context(), id))
			expect("resumed")
			a.unharmed(t)
		},
		End: func(t *testing.T, id string) {
			must(h.on(t.Context(), id, "end", func(s *session, d rpc.Domain) error { return s.DomainDestroy(d) }))
			expect("stopped")
		},
	})
	b.unharmed(t)
	v.Kill()
	for range events {
	}
	if _, err := h.Guests(t.Context()); err == nil || !strings.Contains(err.Error(), v.Socket) {
		t.Errorf("a daemon that is gone: %v", err)
	}
}

// pair is two hosts on this machine, at the same address with ports of their own, and a
// guest on the first.
type pair struct {
	one, two     *rigtest.Libvirtd
	from, target *Host
	guest        guest
	here         fleet.Target
}

// newPair starts it. move says how guests move to a daemon.
func newPair(t *testing.T, move func(to *rigtest.Libvirtd) Move) pair {
	t.Helper()
	authority := rigtest.NewAuthority(t)
	p := pair{one: rigtest.StartLibvirtd(t, "one", authority), two: rigtest.StartLibvirtd(t, "two", authority)}
	p.from, p.target = host(t, p.one, move(p.two)), host(t, p.two, move(p.one))
	p.guest = start(t, p.one, "web")
	p.here = fleet.Target{VM: p.guest.id, Host: "h", Address: "127.0.0.1"}
	return p
}

// speed limits moves from the first host, in MiB a second.
func (p pair) speed(mibps uint64) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		if err := p.from.on(t.Context(), p.guest.id, "slow down", func(s *session, d rpc.Domain) error { return s.DomainMigrateSetMaxSpeed(d, mibps, 0) }); err != nil {
			t.Error(err)
		}
	}
}

// By TLS between the daemons and between their QEMUs, and by post-copy: the guest runs on
// the target before all its memory is there, and can only go on.
func TestMoveByTLSAndPostCopy(t *testing.T) {
	p := newPair(t, func(to *rigtest.Libvirtd) Move {
		return Move{URI: "qemu+tls://{host}:" + to.TLS + "/system?pkipath=" + to.PKI, DataURI: "tcp://{host}", TLS: true, PostCopyAfter: time.Hour}
	})
	p.speed(2)(t)
	do := func(what string, f func(*session, rpc.Domain) error) {
		t.Helper()
		if err := p.from.on(t.Context(), p.guest.id, what, f); err != nil {
			t.Error(err)
		}
	}
	do("slow down the post-copy of", func(s *session, d rpc.Domain) error {
		return s.DomainMigrateSetMaxSpeed(d, 4, uint32(rpc.DomainMigrateMaxSpeedPostcopy))
	})
	// This guest writes too little for the driver to choose post-copy by itself.
	started, committed, ahead := false, false, false
	told, err := p.from.Move(t.Context(), p.guest.id, p.here, func(now driver.Progress) {
		if !started && now.TotalBytes > 0 {
			started = true
			do("start the post-copy of", func(s *session, d rpc.Domain) error { return s.DomainMigrateStartPostCopy(d, 0) })
		}
		at, err := p.from.Locate(t.Context(), p.guest.id, p.here)
		if err != nil || !at.Committed {
			return
		}
		if !committed {
			committed = true
			// It can only go on, so that nothing comes of this.
			if err := p.from.Abort(t.Context(), p.guest.id); err != nil {
				t.Error(err)
			}
		}
		ahead = ahead || at == driver.Location{Here: "paused", There: "running", Moving: true, Committed: true}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !committed || !ahead {
		t.Errorf("it did not go by post-copy: committed %v, ran on the target before its memory was there %v", committed, ahead)
	}
	t.Logf("%+v", told)
	at, err := p.from.Locate(t.Context(), p.guest.id, p.here)
	if err != nil || at != (driver.Location{There: "running"}) {
		t.Errorf("%+v, %v", at, err)
	}
	p.guest.unharmed(t)
	// Who has no certificate of the authority is not let in.
	stranger := filepath.Join(t.TempDir(), "pki")
	if err := os.Mkdir(stranger, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range rigtest.NewAuthority(t).Libvirt("127.0.0.1") {
		if err := os.WriteFile(filepath.Join(stranger, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := host(t, p.two, Move{URI: "qemu+tls://{host}:" + p.one.TLS + "/system?pkipath=" + stranger, DataURI: "tcp://{host}", TLS: true})
	if _, err := h.Move(t.Context(), p.guest.id, p.here, nil); err == nil || !strings.Contains(strings.ToLower(err.Error()), "certificate") {
		t.Errorf("moved with a certificate of nobody: %v", err)
	}
	p.guest.unharmed(t)
}

func TestMovesConform(t *testing.T) {
	p := newPair(t, func(to *rigtest.Libvirtd) Move {
		return Move{URI: "qemu+tcp://{host}:" + to.TCP + "/system", DataURI: "tcp://{host}", AutoConverge: true, Downtime: 50 * time.Millisecond}
	})
	two, from, target, g, here, speed := p.two, p.from, p.target, p.guest, p.here, p.speed
	drivertest.Moves(t, drivertest.MoveBench{
		From: from, To: target, Guest: g.id, FromTarget: here, ToTarget: here,
		Nowhere: fleet.Target{VM: g.id, Host: "nowhere", Address: "127.0.0.3"},
		Slow:    speed(2), Fast: speed(1000),
		Once: g.unharmed,
	})
	t.Run("a guest that its owner paused stays paused", func(t *testing.T) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		speed(1000)(t)
		must(from.Suspend(t.Context(), g.id))
		_, err := from.Move(t.Context(), g.id, here, nil)
		must(err)
		if at, err := from.Locate(t.Context(), g.id, here); err != nil || at != (driver.Location{There: "paused"}) {
			t.Errorf("%+v, %v", at, err)
		}
		// Moved on as it is, it would be lost.
		pinned := func() string {
			all, err := target.Guests(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatalf("%+v, %v", all, err)
			}
			return all[0].Pinned
		}
		if why := pinned(); !strings.Contains(why, "has not run since it came here") {
			t.Errorf("%q", why)
		}
		must(target.Resume(t.Context(), g.id))
		for end := time.Now().Add(time.Minute); ; {
			g.ticks(t, 50)
			must(target.Suspend(t.Context(), g.id))
			why := pinned()
			if why == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatal(why)
			}
			must(target.Resume(t.Context(), g.id))
		}
		_, err = target.Move(t.Context(), g.id, here, nil)
		must(err)
		if at, err := from.Locate(t.Context(), g.id, here); err != nil || at != (driver.Location{Here: "paused"}) {
			t.Errorf("%+v, %v", at, err)
		}
		must(from.Resume(t.Context(), g.id))
		g.unharmed(t)
	})
	t.Run("the target dies in the middle", func(t *testing.T) {
		speed(2)(t)
		result := make(chan error, 1)
		begun := make(chan struct{}, 1000)
		go func() {
			_, err := from.Move(t.Context(), g.id, here, func(p driver.Progress) {
				select {
				case begun <- struct{}{}:
				default:
				}
			})
			result <- err
		}()
		<-begun
		// It is paused there until all of it is, which is no reason to keep it there later.
		if all, err := target.Guests(t.Context()); err != nil || len(all) != 1 || all[0].State != "paused" || all[0].Pinned != "" {
			t.Errorf("%+v, %v", all, err)
		}
		two.Kill()
		if err := <-result; err == nil {
			t.Error("it moved to a host that is dead")
		}
		at, err := from.Locate(t.Context(), g.id, here)
		if err != nil || at.Here != "running" || at.There != driver.Unknown || at.Moving {
			t.Errorf("%+v, %v", at, err)
		}
		g.unharmed(t)
	})
}

func TestDefinitions(t *testing.T) {
	h, err := New(Config{URI: "qemu:///system", Move: Move{Shared: []string{"/srv/vms/", "/dev/mapper/san"}}})
	if err != nil {
		t.Fatal(err)
	}
	domain := func(devices string) string { return "<domain><devices>" + devices + "</devices></domain>" }
	disk := func(attrs, rest string) string {
		return domain("<disk type='file'><source " + attrs + "/>" + rest + "</disk>")
	}
	for name, c := range map[string]struct {
		text    string
		pinned  string
		hostCPU bool
	}{
		"nothing":      {domain(""), "", false},
		"host CPU":     {"<domain><cpu mode='host-passthrough'/></domain>", "", true},
		"named CPU":    {"<domain><cpu mode='custom'><model>qemu64</model></cpu></domain>", "", false},
		"passthrough":  {domain("<hostdev type='pci' mode='subsystem'/>"), "pci device", false},
		"sr-iov":       {domain("<interface type='hostdev'/>"), "network device", false},
		"directory":    {domain("<filesystem type='mount'><source dir='/data'/></filesystem>"), "/data", false},
		"local disk":   {disk("file='/tmp/x.qcow2'", ""), "/tmp/x.qcow2", false},
		"read-only":    {disk("file='/tmp/x.iso'", "<readonly/>"), "", false},
		"empty drive":  {domain("<disk type='file' device='cdrom'/>"), "", false},
		"declared":     {disk("file='/srv/vms/x.qcow2'", ""), "", false},
		"beside it":    {disk("file='/srv/vms2/x.qcow2'", ""), "/srv/vms2", false},
		"climbs out":   {disk("file='/srv/vms/../x'", ""), "/srv/vms/../x", false},
		"device":       {domain("<disk type='block'><source dev='/dev/mapper/san'/></disk>"), "", false},
		"network disk": {domain("<disk type='network'><source protocol='rbd' name='pool/x'/></disk>"), "", false},
		"not XML":      {"<domain>", "cannot be read", false},
	} {
		got := h.read(c.text)
		if got.hostCPU != c.hostCPU || (c.pinned == "") != (got.pinned == "") || !strings.Contains(got.pinned, c.pinned) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestConfig(t *testing.T) {
	for uri, want := range map[string]string{
		"/run/x": "unix /run/x qemu:///system", "qemu:///system": "unix " + DefaultSocket + " qemu:///system", "qemu:///session?socket=/s": "unix /s qemu:///session",
		"qemu+unix:///system?socket=/s": "unix /s qemu:///system", "qemu+tcp://h/system": "tcp h:16509 qemu:///system", "qemu+tcp://h:1/system": "tcp h:1 qemu:///system",
		"qemu+tls://[::1]/system": "tls [::1]:16514 qemu:///system", "qemu://h/system": "tls h:16514 qemu:///system",
		"": "", "x": "", "qemu+ssh://h/system": "", "qemu+tcp:///system": "", ":": "",
	} {
		e, err := parse(uri)
		if got := strings.TrimSpace(e.transport + " " + e.address + " " + string(e.driver)); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%s: %q, %v", uri, got, err)
		}
	}
	for _, m := range []Move{{URI: "qemu+tcp://h/system"}, {URI: "qemu+ssh://{host}/system"}, {URI: "{host}"}} {
		if _, err := New(Config{URI: "/s", Move: m}); err == nil {
			t.Errorf("%+v was accepted", m)
		}
	}
	for address, want := range map[string]string{
		"h1": "qemu+tcp://h1/system", "192.0.2.1": "qemu+tcp://192.0.2.1/system", "2001:db8::1": "qemu+tcp://[2001:db8::1]/system", "[::1]": "qemu+tcp://[::1]/system",
		"": "", "h/../x": "", "u@h": "", "h?socket=/x": "", "h h": "", "h\n": "", "h%2f": "",
	} {
		if got, err := fill("qemu+tcp://{host}/system", address); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", address, got, err)
		}
	}
	if c := CPU("processor\t: 0\nmodel name\t: X 1\nflags\t\t: b a b\n\nprocessor\t: 1\nmodel name\t: Y\nflags: z\n"); c.Model != "X 1" || c.Flags != "a b" || c.Arch == "" {
		t.Errorf("%+v", c)
	}
}

// stream is a connection that says something.
type stream struct {
	net.Conn
	io.Reader
}

func (s stream) Read(p []byte) (int, error) { return s.Reader.Read(p) }
func (s stream) Close() error               { return nil }

func FuzzFramed(f *testing.F) {
	message := binary.BigEndian.AppendUint32(nil, 32)
	message = append(message, make([]byte, 28)...)
	for _, seed := range []string{"", "00", "0000001c", "00000000", "ffffffff", "00000003", hex.EncodeToString(message), hex.EncodeToString(append(message, message...)), hex.EncodeToString(append(message, 0, 0, 0, 27))} {
		b, _ := hex.DecodeString(seed)
		f.Add(b, 7)
	}
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size < 1 || size > 1<<16 {
			return
		}
		c := &framed{Conn: stream{Reader: bytes.NewReader(data)}}
		var got []byte
		p := make([]byte, size)
		for {
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.HasPrefix(data, got) {
			t.Fatalf("%x became %x", data, got)
		}
		for len(got) > 0 { // nothing comes out that is not in a message of a proper length
			n := binary.BigEndian.Uint32(append(got[:min(4, len(got)):4], make([]byte, 4-min(4, len(got)))...))
			if len(got) >= 4 && (n < minMessage || n > maxMessage) {
				t.Fatalf("a message of %d bytes came through", n)
			}
			if len(got) < 4 {
				t.Fatalf("half a length came through: %x", got)
			}
			got = got[min(len(got), int(n)):]
		}
	})
}
