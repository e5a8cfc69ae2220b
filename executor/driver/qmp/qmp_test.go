package qmp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}` + "\n"

// serve listens on a socket and lets talk speak with each client.
func serve(t *testing.T, path string, talk func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				talk(c)
			}()
		}
	}()
}

// qemu answers like QEMU, with the given answers by command.
func qemu(answers map[string]string) func(net.Conn) {
	return func(c net.Conn) {
		io.WriteString(c, greeting)
		s := bufio.NewScanner(c)
		for id := 1; s.Scan(); id++ {
			for command, answer := range answers {
				if strings.Contains(s.Text(), `"`+command+`"`) {
					fmt.Fprintf(c, "{\"event\": \"RESUME\", \"data\": {}}\n{%s, \"id\": %d}\r\n", answer, id)
				}
			}
		}
	}
}

// probeOne probes a guest that answers like talk. One that answers has all the time that it needs, also where this
// machine is busy.
func probeOne(t *testing.T, talk func(net.Conn), answers bool) fleet.GuestReport {
	t.Helper()
	dir := t.TempDir()
	serve(t, filepath.Join(dir, "g.qmp"), talk)
	g := New(dir)
	g.timeout = 300 * time.Millisecond
	if answers {
		g.timeout = time.Minute
	}
	begin := time.Now()
	guests, err := g.Guests(t.Context())
	if err != nil || len(guests) != 1 || guests[0].ID != "g" {
		t.Fatalf("%+v, %v", guests, err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the probe took %v", took)
	}
	return guests[0]
}

func TestProbe(t *testing.T) {
	normal := func(status string) map[string]string {
		return map[string]string{
			"qmp_capabilities": `"return": {}`, "query-status": `"return": ` + status,
			"query-memory-size-summary": `"return": {"base-memory": 67108864, "plugged-memory": 1048576}`, "query-name": `"return": {"name": "web"}`,
		}
	}
	with := func(command, answer string) map[string]string {
		m := normal(`{"status": "running", "running": true}`)
		m[command] = answer
		return m
	}
	endless := func(c net.Conn) {
		for {
			if _, err := c.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		talk   func(net.Conn)
		state  string
		alive  bool
		memory int64
	}{
		"running":            {qemu(normal(`{"status": "running", "running": true, "singlestep": false}`)), "running", true, 68157440},
		"paused":             {qemu(normal(`{"status": "paused", "running": false}`)), "paused", false, 68157440},
		"panicked":           {qemu(normal(`{"status": "guest-panicked", "running": false}`)), "shut-off", false, 68157440},
		"no memory size":     {qemu(with("query-memory-size-summary", `"error": {"class": "CommandNotFound", "desc": "no"}`)), "running", true, 0},
		"negative memory":    {qemu(with("query-memory-size-summary", `"return": {"base-memory": 5, "plugged-memory": -9}`)), "running", true, 0},
		"status is an error": {qemu(with("query-status", `"error": {"class": "GenericError", "desc": "busy"}`)), "unknown", false, 0},
		"status of a type":   {qemu(with("query-status", `"return": [1]`)), "unknown", false, 0},
		"no result":          {qemu(with("query-status", `"x": 1`)), "unknown", false, 0},
		"refuses":            {qemu(with("qmp_capabilities", `"error": {"class": "GenericError", "desc": "no"}`)), "unknown", false, 0},
		"silent":             {func(c net.Conn) { io.Copy(io.Discard, c) }, "unknown", false, 0},
		"hangs up":           {func(net.Conn) {}, "unknown", false, 0},
		"greets and hangs":   {func(c net.Conn) { io.WriteString(c, greeting); io.Copy(io.Discard, c) }, "unknown", false, 0},
		"not QMP":            {func(c net.Conn) { io.WriteString(c, "SSH-2.0\n"); io.Copy(io.Discard, c) }, "unknown", false, 0},
		"JSON, not QMP":      {func(c net.Conn) { io.WriteString(c, "{}\n"); io.Copy(io.Discard, c) }, "unknown", false, 0},
		"endless line":       {endless, "unknown", false, 0},
		"endless events": {func(c net.Conn) {
			io.WriteString(c, greeting)
			for {
				if _, err := io.WriteString(c, "{\"event\":\"RTC_CHANGE\"}\n"); err != nil {
					return
				}
			}
		}, "unknown", false, 0},
		"slow drip": {func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "{"); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}, "unknown", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := probeOne(t, c.talk, c.state != "unknown")
			if r.State != c.state || r.Alive != c.alive || r.MemoryBytes != c.memory {
				t.Errorf("%+v", r)
			}
			if c.alive && r.Name != "web" {
				t.Errorf("name %q", r.Name)
			}
		})
	}
}

func TestDirectory(t *testing.T) {
	if g, err := New("/nope/nope").Guests(t.Context()); err != nil || g == nil || len(g) != 0 {
		t.Errorf("%v, %v", g, err)
	}
	dir := t.TempDir()
	for _, name := range []string{"notes.txt", "file.qmp", ".qmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(filepath.Join(dir, "notes.txt")).Guests(t.Context()); err == nil {
		t.Error("a file is not a directory")
	}
	// QEMU is gone, its socket is not.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead.qmp"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	g, err := New(dir).Guests(t.Context())
	if err != nil || len(g) != 1 || g[0].ID != "dead" || g[0].State != "shut-off" || g[0].Alive {
		t.Errorf("%+v, %v", g, err)
	}
	serve(t, filepath.Join(dir, "dead.sock"), func(net.Conn) {})
	if _, err := New(dir).Guests(t.Context()); err == nil || !strings.Contains(err.Error(), "name of its own") {
		t.Errorf("two guests of one name: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(t.TempDir()).Guests(ctx); err == nil {
		t.Error("outlives its context")
	}
}

// A QEMU that is busy has no room for another client. That it has not says nothing of who has the guest.
func TestABusyQEMUIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.qmp")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	for err == nil { // clients that come and go, and that it has not served yet
		var c net.Conn
		if c, err = net.Dial("unix", path); err == nil {
			c.Close()
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if pid, err := listener(short, path); err == nil {
		t.Errorf("%d listens there", pid)
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	time.AfterFunc(50*time.Millisecond, func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go func() {
				defer c.Close()
				qemu(map[string]string{"qmp_capabilities": `"return": {}`})(c)
			}()
		}
	})
	if pid, err := listener(t.Context(), path); err != nil || pid != os.Getpid() {
		t.Errorf("%d listens there, not this process: %v", pid, err)
	}
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// A real QEMU, with a guest that does nothing.
func TestRealQEMU(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "vm1.qmp")
	cmd := exec.Command("qemu-system-x86_64", "-name", "first", "-machine", "pc,accel=tcg", "-m", "32", "-display", "none", "-nodefaults", "-qmp", "unix:"+socket+",server=on,wait=off")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU (package qemu-system-x86): %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	g := New(dir)
	one := func(want string) fleet.GuestReport {
		t.Helper()
		var last []fleet.GuestReport
		for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(20 * time.Millisecond) {
			var err error
			if last, err = g.Guests(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(last) == 1 && last[0].State == want {
				return last[0]
			}
		}
		t.Fatalf("the guest never was %s: %+v", want, last)
		panic("unreachable")
	}
	if r := one("running"); !r.Alive || r.ID != "vm1" || r.Name != "first" || r.MemoryBytes != 32<<20 {
		t.Errorf("%+v", r)
	}
	run := func(command string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := Dial(ctx, socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Execute(command, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	run("stop")
	if r := one("paused"); r.Alive {
		t.Errorf("%+v", r)
	}
	run("cont")
	one("running")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	one("shut-off")
}

func FuzzConversation(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"return": {"status": "running", "running": true}, "id": 2}` + "\n"))
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"QMP":1}` + "\n" + `{"id":1,"error":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			defer theirs.Close()
			go io.Copy(io.Discard, theirs)
			theirs.Write(data)
		}()
		c := &Conn{c: ours, r: bufio.NewReader(ours), stop: func() bool { return true }}
		m, err := c.read()
		if err != nil || m.QMP == nil {
			return
		}
		for range 4 {
			var status struct {
				Running bool `json:"running"`
			}
			if c.Execute("query-status", nil, &status) != nil {
				return
			}
		}
	})
}

func TestGuestsConform(t *testing.T) {
	dir, err := os.MkdirTemp("", "qmp") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const mib = 16
	running := map[string]*rigtest.QEMU{"a": rigtest.StartQEMU(t, dir, "a", mib), "b": rigtest.StartQEMU(t, dir, "b", mib)}
	tell := func(command string) func(*testing.T, string) {
		return func(t *testing.T, id string) {
			c, err := Dial(t.Context(), filepath.Join(dir, id+".qmp"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Execute(command, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, g := range running {
		g.AwaitTicks(3, time.Minute)
	}
	guests := New(dir)
	guests.timeout = time.Minute // where this machine is busy
	drivertest.Guests(t, drivertest.GuestBench{
		Guests: guests, A: "a", B: "b", MemoryBytes: mib << 20,
		Pause: tell("stop"), Unpause: tell("cont"), End: tell("quit"),
	})
	running["b"].AwaitTicks(3, time.Minute)
	running["b"].Unharmed()
}
