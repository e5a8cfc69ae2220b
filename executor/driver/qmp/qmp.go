// Package qmp counts and probes QEMU guests through their QMP sockets, one in a
// directory for each guest. It speaks the QEMU Machine Protocol (QEMU's
// docs/interop/qmp-spec) itself, and trusts nothing that comes from a socket: what
// is too long, too slow or not the protocol makes the guest not alive.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	// maxLine bounds one message of QEMU, in bytes.
	maxLine = 1 << 20
	// maxMessages bounds the events between a command and its answer.
	maxMessages = 1000
	// maxParallel bounds the guests that are probed at a time.
	maxParallel = 16
)

// Guests is the guests of a directory of sockets. It is safe for concurrent use, but
// QEMU serves one client of a socket at a time.
type Guests struct {
	dir     string
	timeout time.Duration
}

// New returns the guests whose sockets (*.qmp or *.sock) lie in dir. The name of a
// socket without its ending is the guest's ID.
func New(dir string) *Guests { return &Guests{dir: dir, timeout: 2 * time.Second} }

// Guests counts and probes the guests. A guest whose QEMU is gone, or does not
// answer, is in the list, but not alive. A directory that does not exist has no
// guests; one that cannot be read is an error.
func (g *Guests) Guests(ctx context.Context) ([]fleet.GuestReport, error) {
	entries, err := os.ReadDir(g.dir)
	if errors.Is(err, os.ErrNotExist) {
		return []fleet.GuestReport{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for guests: %w", err)
	}
	out := []fleet.GuestReport{}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		id := strings.TrimSuffix(e.Name(), ext)
		if ext != ".qmp" && ext != ".sock" || id == "" || e.Type()&os.ModeSocket == 0 {
			continue
		}
		if slices.ContainsFunc(out, func(r fleet.GuestReport) bool { return r.ID == id }) {
			return nil, fmt.Errorf("two sockets in %s are called %s: give each guest a name of its own", g.dir, id)
		}
		out = append(out, fleet.GuestReport{VM: fleet.VM{ID: id, Name: e.Name()}})
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for i := range out {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			path := filepath.Join(g.dir, out[i].Name)
			out[i].Name = out[i].ID
			g.probe(ctx, path, &out[i])
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("probe the guests: %w", err)
	}
	return out, nil
}

func (g *Guests) socket(id string) string { return socket(g.dir, id) }

// socket is where a guest's QEMU listens.
func socket(dir, id string) string {
	for _, ext := range []string{".qmp", ".sock"} {
		if _, err := os.Stat(filepath.Join(dir, id+ext)); err == nil {
			return filepath.Join(dir, id+ext)
		}
	}
	return filepath.Join(dir, id+".qmp")
}

// probe fills in what the guest's QEMU says.
func (g *Guests) probe(ctx context.Context, path string, r *fleet.GuestReport) {
	r.State = "unknown"
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	c, err := Dial(ctx, path)
	if err != nil {
		// Nobody listens: QEMU ended and left its socket behind.
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			r.State = "shut-off"
		}
		return
	}
	defer c.Close()
	var status struct {
		Status  string `json:"status"`
		Running bool   `json:"running"`
	}
	if err := c.Execute("query-status", nil, &status); err != nil {
		return
	}
	switch {
	case status.Running:
		r.State, r.Alive = "running", true
	case status.Status == "shutdown" || status.Status == "guest-panicked" || status.Status == "internal-error":
		r.State = "shut-off"
	default:
		r.State = "paused"
	}
	var memory struct {
		Base    int64 `json:"base-memory"`
		Plugged int64 `json:"plugged-memory"`
	}
	if c.Execute("query-memory-size-summary", nil, &memory) == nil && memory.Base > 0 && memory.Plugged >= 0 {
		r.MemoryBytes = memory.Base + memory.Plugged
	}
	var name struct {
		Name string `json:"name"`
	}
	if c.Execute("query-name", nil, &name) == nil && name.Name != "" && len(name.Name) <= 256 {
		r.Name = name.Name
	}
}

// Conn is a QMP session. It is not safe for concurrent use.
type Conn struct {
	c    net.Conn
	r    *bufio.Reader
	id   int
	stop func() bool
	// cancel, if not nil, ends the connection's own context.
	cancel context.CancelFunc
}

// connect connects to a socket. QEMU lets one client wait while it serves another, those of
// an agent that died included: as long as there is no room for one more, it is tried again.
func connect(ctx context.Context, path string) (net.Conn, error) {
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Dial connects and negotiates. The connection's time is over when ctx ends.
func Dial(ctx context.Context, path string) (*Conn, error) {
	nc, err := connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU at %s: %w", path, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		nc.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	c := &Conn{c: nc, r: bufio.NewReaderSize(nc, 4096), stop: stop}
	greeting, err := c.read()
	if err == nil && greeting.QMP == nil {
		err = errors.New("what listens there is not QEMU's machine protocol")
	}
	if err == nil {
		err = c.Execute("qmp_capabilities", nil, nil)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("talk to QEMU at %s: %w", path, err)
	}
	return c, nil
}

// Close ends the session.
func (c *Conn) Close() error {
	c.stop()
	if c.cancel != nil {
		c.cancel()
	}
	return c.c.Close()
}

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Event  string          `json:"event"`
	ID     json.RawMessage `json:"id"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// Execute runs a command and decodes what it returns into result, if that is not nil.
func (c *Conn) Execute(command string, arguments, result any) error {
	return c.execute(command, arguments, result, func(data []byte) error {
		_, err := c.c.Write(data)
		return err
	})
}

// execute is Execute with a way of its own to send.
func (c *Conn) execute(command string, arguments, result any, send func([]byte) error) error {
	c.id++
	req := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, arguments, c.id}
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := send(append(data, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for range maxMessages {
		m, err := c.read()
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		if string(m.ID) != fmt.Sprint(c.id) {
			continue // an event, or the answer to something else
		}
		if m.Error != nil {
			return fmt.Errorf("%s: QEMU says %q (%s)", command, m.Error.Desc, m.Error.Class)
		}
		if m.Return == nil {
			return fmt.Errorf("%s: the answer has no result", command)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		return nil
	}
	return fmt.Errorf("%s: no answer within %d messages", command, maxMessages)
}

// read reads one line of JSON.
func (c *Conn) read() (message, error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return message{}, fmt.Errorf("a message is longer than %d bytes", maxLine)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return message{}, err
		}
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("a message is not JSON: %w", err)
	}
	return m, nil
}
