package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// Health is a check of a service. At most one of TCP, HTTP, Exec, DBus and File is
// set; with none, a service that is active counts as healthy.
type Health struct {
	// TCP is an address that must accept a connection, or "unix:PATH".
	TCP string
	// HTTP is a URL that must answer with a status below 400.
	HTTP string
	// Exec is a program and its arguments that must exit with 0.
	Exec []string
	// DBus is a name on the system bus whose owner must answer a ping
	// (org.freedesktop.DBus.Peer). It is not started for that.
	DBus string
	// File must have been written to within MaxAge.
	File   string
	MaxAge time.Duration
	// ActiveFor is for how long a service must have been active before it counts as
	// verified after a restart. The services' driver looks after it; Check does not.
	ActiveFor time.Duration
	// Timeout bounds one check; 0 means 2 s.
	Timeout time.Duration
}

// client neither follows redirects to other places nor keeps connections, so that
// each check is a fresh one.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Asks tells whether there is anything to check beyond that the unit is active.
func (h Health) Asks() bool {
	return h.TCP != "" || h.HTTP != "" || len(h.Exec) > 0 || h.DBus != "" || h.File != ""
}

// Limit is how long one check may take.
func (h Health) Limit() time.Duration {
	if h.Timeout <= 0 {
		return 2 * time.Second
	}
	return h.Timeout
}

// Check returns nil if the service works, and otherwise what is wrong with it. It
// takes no longer than the timeout and a little.
func (h Health) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.Limit())
	defer cancel()
	switch {
	case h.TCP != "":
		network, address := "tcp", h.TCP
		if path, ok := strings.CutPrefix(h.TCP, "unix:"); ok {
			network, address = "unix", path
		}
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return fmt.Errorf("health check: connect to %s: %w", h.TCP, err)
		}
		return c.Close()
	case h.HTTP != "":
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.HTTP, nil)
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 400 {
			return fmt.Errorf("health check: %s answered %s", h.HTTP, resp.Status)
		}
		return nil
	case len(h.Exec) > 0:
		return run(ctx, h.Exec)
	case h.DBus != "":
		return ping(ctx, h.DBus)
	case h.File != "":
		fi, err := os.Stat(h.File)
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		if age := time.Since(fi.ModTime()); age > h.MaxAge {
			return fmt.Errorf("health check: %s was last written %v ago, more than %v", h.File, age.Round(time.Millisecond), h.MaxAge)
		}
		return nil
	}
	return nil
}

// silent are the errors of the bus that say that nobody answers; any other one is an
// answer.
var silent = []string{
	"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.NoReply",
	"org.freedesktop.DBus.Error.Timeout", "org.freedesktop.DBus.Error.TimedOut", "org.freedesktop.DBus.Error.Disconnected",
}

// ping asks the owner of a name on the system bus whether it lives.
func ping(ctx context.Context, name string) error {
	c, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("health check: connect to the system bus: %w", err)
	}
	defer c.Close()
	call := c.Object(name, "/").CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", dbus.FlagNoAutoStart)
	answer, answered := errors.AsType[dbus.Error](call.Err)
	if call.Err == nil || answered && !slices.Contains(silent, answer.Name) {
		return nil
	}
	return fmt.Errorf("health check: %s does not answer on the system bus: %w", name, call.Err)
}

// run starts the check in a process group of its own, so that what it started ends
// with it.
func run(ctx context.Context, argv []string) error {
	var out head
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well, and left something behind that might still write
		err = nil
	}
	if cause := ctx.Err(); errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("health check: %s did not end in time: %w", argv[0], cause)
	}
	if err != nil {
		return fmt.Errorf("health check: %s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// head keeps the first bytes of a program's output.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	if room := 256 - len(*h); room > 0 {
		*h = append(*h, p[:min(room, len(p))]...)
	}
	return len(p), nil
}
