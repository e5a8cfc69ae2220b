package bus

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func constantTimeEqual(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

// AgentOptions says how a host agent reaches the bus.
type AgentOptions struct {
	Host  fleet.HostID
	URL   string
	Token string
	TLS   *tls.Config
	// InProcess connects to the embedded server of this process instead of URL.
	InProcess *Bus
	Log       *slog.Logger
}

// Agent is the bus as one host agent sees it: it can speak for its own host
// alone. It is safe for concurrent use, and reconnects for ever.
type Agent struct {
	host fleet.HostID
	conn *nats.Conn
	js   jetstream.JetStream
	log  *slog.Logger
	// again is signalled when the bus is back.
	again chan struct{}
}

// DialAgent connects a host agent. It returns at once even where the bus cannot
// be reached yet; only a configuration that can never work is an error.
func DialAgent(o AgentOptions) (*Agent, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	again := make(chan struct{}, 1)
	away := &outage{log: o.Log, url: named(o.URL), end: make(chan struct{})}
	opts := []nats.Option{
		nats.Name("tardigrade agent " + string(o.Host)), nats.UserInfo(string(o.Host), o.Token),
		nats.CustomInboxPrefix(inboxPrefix(o.Host)), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond),
		nats.RetryOnFailedConnect(true), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1), // the agent keeps what it could not send; a hidden buffer would lose it
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.Log.Warn("lost the bus, reconnecting", "err", err)
				away.lost(err)
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { away.failed(err) }),
		nats.ClosedHandler(func(*nats.Conn) { close(away.end) }),
		nats.ReconnectHandler(func(c *nats.Conn) {
			o.Log.Info("connected to the bus", "url", c.ConnectedUrlRedacted())
			select {
			case again <- struct{}{}:
			default:
			}
		}),
		nats.ErrorHandler(func(c *nats.Conn, _ *nats.Subscription, err error) {
			if !c.IsConnected() {
				away.failed(err)
				return
			}
			o.Log.Warn("bus", "err", err)
		}),
	}
	if o.InProcess != nil {
		if o.InProcess.server == nil {
			return nil, errors.New("an in-process agent needs the embedded bus; with an external one, give the agent its URL")
		}
		opts = append(opts, nats.InProcessServer(o.InProcess.server))
	}
	if o.TLS != nil {
		opts = append(opts, nats.Secure(o.TLS))
	}
	conn, err := nats.Connect(o.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect agent %s to the bus at %s: %w", o.Host, named(o.URL), err)
	}
	go away.watch(conn)
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return &Agent{host: o.Host, conn: conn, js: js, log: o.Log, again: again}, nil
}

// outage says that the bus cannot be reached, and why: soon, and then once a minute.
type outage struct {
	log *slog.Logger
	url string
	end chan struct{} // closed with the connection

	mu        sync.Mutex
	why       error // of the last attempt, where the client told
	connected bool  // it was, once
}

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.why = err
}

func (o *outage) lost(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.why, o.connected = err, true
}

// watch returns when the connection is closed.
func (o *outage) watch(conn *nats.Conn) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	var said time.Time
	for {
		select {
		case <-o.end:
			return
		case <-tick.C:
		}
		if conn.IsConnected() {
			said = time.Time{}
			continue
		}
		if time.Since(said) < time.Minute {
			continue
		}
		said = time.Now()
		o.mu.Lock()
		why, before := o.why, o.connected
		o.mu.Unlock()
		// Until the first connection the client tells of a refusal by this alone; after it, this may
		// be of an earlier outage.
		if err := conn.LastError(); err != nil && !before {
			why = err
		}
		if errors.Is(why, nats.ErrAuthorization) {
			why = fmt.Errorf("%w: the host's credentials are not those of its last 'tardigrade agent enroll'", why)
		}
		o.log.Warn("the bus cannot be reached, trying again; samples are kept on disk", "url", o.url, "err", why)
	}
}

// Connected tells whether the bus can be reached now.
func (a *Agent) Connected() bool { return a.conn.IsConnected() }

// Close ends the connection.
func (a *Agent) Close() { a.conn.Close() }

// PublishSamples stores samples of this host, in order. It returns how many of the
// first the stream has on disk, all where the error is nil; sending a sample again is
// harmless.
func (a *Agent) PublishSamples(ctx context.Context, samples []*fleet.Sample) (stored int, err error) {
	return publishSamples(ctx, a.js, samples)
}

// PublishHost announces the host: inventory, not durable, repeated by the agent.
func (a *Agent) PublishHost(h fleet.Host) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return a.conn.Publish(subjectHosts+string(a.host), data)
}

// PublishReport stores a report; nil means that it is on disk.
func (a *Agent) PublishReport(ctx context.Context, r fleet.Report) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s/%d", r.Command, r.Seq)
	_, err = a.js.Publish(ctx, subjectReports+string(a.host), data, jetstream.WithMsgID(id))
	return err
}

// Commands calls handle for each command to this host, one at a time, until ctx
// ends. A command is acknowledged once handle returned nil, and comes again
// otherwise.
func (a *Agent) Commands(ctx context.Context, handle func(context.Context, fleet.Command) error) error {
	for ctx.Err() == nil {
		consumer, err := a.js.Consumer(ctx, StreamCommands, consumerName(a.host))
		if err != nil { // the control plane makes it when it first hears of this host
			if !pause(ctx, time.Second) {
				return ctx.Err()
			}
			continue
		}
		for ctx.Err() == nil {
			// A bus that restarted knows nothing of what it was asked before.
			session, stop := context.WithCancel(ctx)
			go func() {
				select {
				case <-a.again:
					stop()
				case <-session.Done():
				}
			}()
			batch, err := fetch(session, consumer.Fetch, 1, 5*time.Second)
			if err != nil {
				stop()
				break
			}
			for m := range batch.Messages() {
				a.command(ctx, m, handle)
			}
			restarted := session.Err() != nil
			stop()
			if restarted {
				continue
			}
			if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded) {
				break
			}
		}
		if !pause(ctx, time.Second) {
			return ctx.Err()
		}
	}
	return ctx.Err()
}

func (a *Agent) command(ctx context.Context, m jetstream.Msg, handle func(context.Context, fleet.Command) error) {
	var c fleet.Command
	if err := json.Unmarshal(m.Data(), &c); err != nil || c.Host != a.host {
		a.log.Error("refused a command that is damaged or for another host", "err", err, "host", c.Host)
		m.Term()
		return
	}
	working := time.NewTicker(time.Second)
	defer working.Stop()
	done := make(chan error, 1)
	go func() { done <- handle(ctx, c) }()
	for {
		select {
		case <-working.C:
			m.InProgress()
		case err := <-done:
			if err != nil {
				a.log.Warn("command not done, it will come again", "command", c.ID, "err", err)
				m.NakWithDelay(2 * time.Second)
				return
			}
			m.Ack()
			return
		}
	}
}

// bundleChunk is the size of one piece of a diagnostics archive, well under the
// payload limit of 1 MiB.
const bundleChunk = 512 << 10

type bundlePiece struct {
	Name   string `json:"name"`
	Offset int64  `json:"offset"`
	Data   []byte `json:"data,omitempty"`
	// SHA256 is set in the last piece, which has no data.
	SHA256 string `json:"sha256,omitempty"`
}

// UploadBundle sends a diagnostics archive to the control plane, which keeps it
// once its length and checksum (hex SHA-256) are right.
func (a *Agent) UploadBundle(ctx context.Context, name string, r io.Reader, sha256 string) error {
	buf := make([]byte, bundleChunk)
	var offset int64
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := a.bundlePiece(ctx, bundlePiece{Name: name, Offset: offset, Data: buf[:n]}); err != nil {
				return err
			}
			offset += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return a.bundlePiece(ctx, bundlePiece{Name: name, Offset: offset, SHA256: sha256})
		}
		if err != nil {
			return fmt.Errorf("read bundle %s: %w", name, err)
		}
	}
}

func (a *Agent) bundlePiece(ctx context.Context, p bundlePiece) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	answer, err := a.conn.RequestWithContext(ctx, subjectBundles+string(a.host), data)
	if err != nil {
		return fmt.Errorf("send bundle %s at byte %d: %w", p.Name, p.Offset, err)
	}
	if text := string(answer.Data); text != "" {
		return fmt.Errorf("the control plane refused bundle %s: %s", p.Name, text)
	}
	return nil
}

// fetch asks for messages, at most so many or about so many bytes of them (ask is Fetch or FetchBytes), and waits
// for the first, at most so long and never longer than ctx.
func fetch(ctx context.Context, ask func(int, ...jetstream.FetchOpt) (jetstream.MessageBatch, error), most int, wait time.Duration) (jetstream.MessageBatch, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	batch, err := ask(most, jetstream.FetchContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	context.AfterFunc(ctx, cancel) // the batch ends with ctx, and after it nothing is left to cancel
	return batch, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
