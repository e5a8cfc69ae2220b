// Package bus is the durable backbone of Tardigrade: NATS JetStream, embedded in
// the control plane by default, or an external cluster when the fleet outgrows
// one machine. It carries samples, commands, reports and the audit trail as
// streams, state as key-value tables with compare-and-set, and diagnostics as
// objects. Everything that must survive a crash goes through here.
//
// The embedded server syncs every write to disk before it acknowledges it.
package bus

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Streams and their subjects. One token after the prefix is the host.
const (
	StreamSamples  = "SAMPLES"
	StreamCommands = "COMMANDS"
	StreamReports  = "REPORTS"
	StreamAudit    = "AUDIT"
	StreamDead     = "DEADLETTER"

	subjectSamples  = "tg.samples."
	subjectCommands = "tg.commands."
	subjectReports  = "tg.reports."
	subjectHosts    = "tg.hosts."
	subjectBundles  = "tg.bundles."
	subjectAudit    = "tg.audit"
	subjectDead     = "tg.dead."
)

// shutdownLimit bounds the end of the embedded server.
const shutdownLimit = 20 * time.Second

// connectLimit is how long connecting to the embedded server may take: at the start of a busy machine the
// client's own two seconds, and the server's, are short.
const connectLimit = 10 * time.Second

// controlUser is the name under which the control plane itself connects to its
// embedded server.
const controlUser = "control"

// Options says how to reach the bus.
type Options struct {
	// Dir is where the embedded server keeps its files.
	Dir string
	// Listen is the address for host agents, "" for none (in-process only).
	Listen string
	// TLS is used for Listen, which must be a loopback address without it, and towards the
	// servers of URL.
	TLS *tls.Config
	// URL of an external NATS cluster, several servers separated by commas; "" embeds one.
	URL string
	// CredentialsFile authenticates to the cluster (a NATS .creds file).
	CredentialsFile string
	// Callout lets the cluster ask this control plane which agents it admits.
	Callout Callout
	// Replicas of every stream: 1 embedded, 3 on a cluster.
	Replicas int
	// SampleAge and SampleBytes bound the retention of the sample stream.
	SampleAge   time.Duration
	SampleBytes int64
	// Agents tells which host a token belongs to. Nil admits no remote agent.
	Agents func(host fleet.HostID, token string) bool
	// OnWrite, if not nil, is called before and after each durable write of the control
	// plane (records, leases, commands, the audit trail). It is for tests that end the
	// process there.
	OnWrite func(what string, done bool)
	Log     *slog.Logger
}

// Bus is a connection of the control plane, and the embedded server behind it.
// It is safe for concurrent use.
type Bus struct {
	Conn *nats.Conn
	JS   jetstream.JetStream

	server   *server.Server
	log      *slog.Logger
	replicas int
	onWrite  func(what string, done bool)

	dir     string
	samples jetstream.StreamConfig // as it is while there is room on the disk
	full    atomic.Pointer[string] // why no samples are taken, nil if they are

	held       bool                   // the stream of samples is held; of WatchSpace alone
	jetStream  server.JetStreamConfig // of the embedded server
	reopenedAt time.Time              // of WatchSpace alone

	mu         sync.Mutex
	unwritable map[string]unwritable // by stream; "" is all of them
	reopened   chan struct{}         // closed when JetStream was started anew
}

// Open starts or reaches the bus and makes sure that its streams exist.
func Open(ctx context.Context, o Options) (*Bus, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	b := &Bus{log: o.Log, replicas: o.Replicas, onWrite: o.OnWrite, dir: o.Dir, unwritable: make(map[string]unwritable), reopened: make(chan struct{})}
	if b.onWrite == nil {
		b.onWrite = func(string, bool) {}
	}
	opts := []nats.Option{nats.Name("tardigrade control plane"), nats.MaxReconnects(-1)}
	if o.URL == "" {
		password, err := b.embed(o)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.InProcessServer(b.server), nats.UserInfo(controlUser, password), nats.Timeout(connectLimit))
	} else {
		if err := parsable(o.URL); err != nil {
			return nil, err
		}
		if o.CredentialsFile != "" {
			opts = append(opts, nats.UserCredentials(o.CredentialsFile))
		}
		if o.TLS != nil {
			opts = append(opts, nats.Secure(o.TLS))
		}
	}
	conn, err := nats.Connect(o.URL, opts...)
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("connect to the bus at %s: %w", named(o.URL), err)
	}
	b.Conn = conn
	if b.JS, err = jetstream.New(conn); err != nil {
		b.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	if err := b.ensureStreams(ctx, o); err != nil {
		b.Close()
		return nil, err
	}
	if o.URL != "" && o.Callout.Seed != "" {
		if err := b.answer(o.Callout, o.Agents); err != nil {
			b.Close()
			return nil, err
		}
	}
	return b, nil
}

// named says which bus an address means.
func named(urls string) string {
	if urls == "" {
		return "the embedded server"
	}
	return Redacted(urls)
}

// Redacted is the addresses of servers without the users and passwords in them, also where they
// are no addresses.
func Redacted(urls string) string {
	var out []string
	for one := range strings.SplitSeq(urls, ",") {
		one = strings.TrimSpace(one)
		if at := strings.LastIndexByte(one, '@'); at >= 0 {
			scheme, _, _ := strings.Cut(one[:at], "://")
			if len(scheme) == at {
				scheme = ""
			} else {
				scheme += "://"
			}
			one = scheme + "xxxxx" + one[at:]
		}
		out = append(out, one)
	}
	return strings.Join(out, ",")
}

// parsable says which address is none: the client's own error would have the password in it.
func parsable(urls string) error {
	for one := range strings.SplitSeq(urls, ",") {
		one = strings.TrimSpace(one)
		if !strings.Contains(one, "://") {
			one = "nats://" + one
		}
		if u, err := url.Parse(one); err != nil || u.Hostname() == "" {
			return fmt.Errorf("bus.url: %q is not the address of a server, such as tls://n1.example:4222; what is special in a password is written as %%XX", Redacted(one))
		}
	}
	return nil
}

// embed starts the server and returns the control plane's password.
func (b *Bus) embed(o Options) (string, error) {
	secret := make([]byte, 32)
	rand.Read(secret)
	password := hex.EncodeToString(secret)
	check := &authenticator{password: password, agents: o.Agents}
	so := &server.Options{
		ServerName: "tardigrade", JetStream: true, StoreDir: o.Dir, SyncAlways: true,
		DontListen: o.Listen == "", NoSigs: true, NoLog: true,
		MaxPayload: 1 << 20, AuthTimeout: connectLimit.Seconds(),
		// Limits are those of the streams; the disk itself is looked after by WatchSpace.
		JetStreamMaxStore:          1 << 60,
		CustomClientAuthentication: check,
	}
	if o.Listen != "" {
		host, portText, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return "", fmt.Errorf("bus.listen %q: %w; write it as ADDRESS:PORT, for example 127.0.0.1:4222", o.Listen, err)
		}
		port, err := strconv.Atoi(portText)
		if err != nil || port < 0 || port > 65535 {
			return "", fmt.Errorf("bus.listen %q: the port must be a number from 0 to 65535", o.Listen)
		}
		if o.TLS == nil && !isLoopback(host) {
			return "", fmt.Errorf("bus.listen %q is reachable from other machines: configure bus.tls (cert, key) or listen on 127.0.0.1", o.Listen)
		}
		// The server does not say which error it met when it cannot listen, so ask first.
		probe, err := net.Listen("tcp", o.Listen)
		if err != nil {
			return "", fmt.Errorf("bus.listen: %w; stop what uses the port or choose another", err)
		}
		probe.Close()
		if so.Host, so.Port = host, port; port == 0 {
			so.Port = server.RANDOM_PORT // the server's zero is 4222
		}
		so.TLSConfig, so.TLS, so.TLSTimeout = o.TLS, o.TLS != nil, 5
	}
	s, err := server.NewServer(so)
	if err != nil {
		return "", fmt.Errorf("configure the embedded NATS server: %w", err)
	}
	s.SetLoggerV2(&serverLog{log: o.Log, said: make(map[string]time.Time)}, false, false, false)
	s.Start()
	b.server = s
	if !s.ReadyForConnections(30 * time.Second) {
		b.Close()
		return "", fmt.Errorf("the embedded NATS server with its files in %s did not become ready within 30 s; the log says more", o.Dir)
	}
	agents, err := b.isolate()
	if err != nil {
		b.Close()
		return "", err
	}
	check.account.Store(agents)
	b.jetStream = *s.JetStreamConfig()
	b.jetStream.StoreDir = o.Dir // the server adds a directory of its own to it
	return password, nil
}

// Addr is the address on which the embedded server listens for agents, or "".
func (b *Bus) Addr() string {
	if b.server == nil || b.server.Addr() == nil {
		return ""
	}
	return b.server.Addr().String()
}

// Close stops the connection and then the embedded server.
func (b *Bus) Close() {
	if b.Conn != nil {
		b.Conn.Close()
	}
	if b.server != nil {
		// A server whose disk fails may not come to an end; what it has on disk is as
		// after a crash then.
		ended := make(chan struct{})
		go func() {
			b.server.Shutdown()
			b.server.WaitForShutdown()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(shutdownLimit):
			b.log.Error("the bus did not shut down in time", "limit", shutdownLimit)
		}
	}
}

func (b *Bus) ensureStreams(ctx context.Context, o Options) error {
	streams := []jetstream.StreamConfig{
		{
			Name: StreamSamples, Subjects: []string{subjectSamples + "*"}, MaxAge: o.SampleAge, MaxBytes: o.SampleBytes,
			Compression: jetstream.S2Compression, Description: "samples of every host, history until InfluxDB has them",
		},
		{
			Name: StreamCommands, Subjects: []string{subjectCommands + "*"}, Retention: jetstream.WorkQueuePolicy,
			MaxAge: 24 * time.Hour, Description: "commands to host agents",
		},
		{
			Name: StreamReports, Subjects: []string{subjectReports + "*"}, MaxAge: 30 * 24 * time.Hour,
			Description: "what host agents report of their commands",
		},
		{
			Name: StreamAudit, Subjects: []string{subjectAudit}, DenyDelete: true, DenyPurge: true,
			Description: "every decision and action, chained by hash",
		},
		{
			Name: StreamDead, Subjects: []string{subjectDead + ">"}, MaxAge: 30 * 24 * time.Hour, MaxBytes: 1 << 30,
			Description: "samples that InfluxDB refused for good, with the reason",
		},
	}
	for _, s := range streams {
		s.Storage, s.Replicas, s.MaxMsgSize = jetstream.FileStorage, b.replicas, 1<<20
		if s.Name == StreamSamples {
			b.samples = s
		}
		if err := b.ensure(ctx, s); err != nil {
			return fmt.Errorf("create stream %s with %d replicas: %w", s.Name, s.Replicas, err)
		}
	}
	return nil
}

// clusterPatience is for how long a cluster may be without a leader when the control plane
// starts, as when both were started at once.
const clusterPatience = time.Minute

func (b *Bus) ensure(ctx context.Context, s jetstream.StreamConfig) error {
	end := time.Now().Add(clusterPatience)
	for {
		_, err := b.JS.CreateOrUpdateStream(ctx, s)
		var api *jetstream.APIError
		leaderless := errors.Is(err, nats.ErrNoResponders) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &api) && api.Code == 503
		if b.server != nil || !leaderless || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		b.log.Warn("the cluster is not ready", "stream", s.Name, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// authenticator admits the control plane by its password and each agent by its
// token, and confines an agent to the subjects of its own host.
type authenticator struct {
	password string
	agents   func(fleet.HostID, string) bool
	account  atomic.Pointer[server.Account] // of the agents; none is admitted before it is there
}

func (a *authenticator) Check(c server.ClientAuthentication) bool {
	o := c.GetOpts()
	if o.Username == controlUser {
		return constantTimeEqual(o.Password, a.password)
	}
	host, account := fleet.HostID(o.Username), a.account.Load()
	if a.agents == nil || account == nil || host.Validate() != nil || !a.agents(host, o.Password) {
		return false
	}
	c.RegisterUser(&server.User{Username: o.Username, Account: account, Permissions: agentPermissions(host)})
	return true
}

// agentPermissions lets an agent publish its own samples, reports and
// diagnostics, and fetch its own commands; nothing else.
func agentPermissions(host fleet.HostID) *server.Permissions {
	h := string(host)
	return &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{
			subjectSamples + h, subjectReports + h, subjectHosts + h, subjectBundles + h,
			"$JS.API.CONSUMER.INFO." + StreamCommands + "." + consumerName(host),
			"$JS.API.CONSUMER.MSG.NEXT." + StreamCommands + "." + consumerName(host),
			"$JS.ACK." + StreamCommands + "." + consumerName(host) + ".>",
		}},
		Subscribe: &server.SubjectPermission{Allow: []string{inboxPrefix(host) + ".>"}},
	}
}

func consumerName(host fleet.HostID) string { return "agent-" + string(host) }
func inboxPrefix(host fleet.HostID) string  { return "_INBOX_" + string(host) }

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// serverLog forwards the embedded server's notices to slog.
type serverLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]time.Time // whom it refused, and when that was said
}

func (l *serverLog) Noticef(f string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(f, v...)) }
func (l *serverLog) Warnf(f string, v ...any)   { l.log.Warn("nats: " + fmt.Sprintf(f, v...)) }
func (l *serverLog) Fatalf(f string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l *serverLog) Debugf(string, ...any)      {}
func (l *serverLog) Tracef(string, ...any)      {}

// Errorf says that an agent was refused once a minute: it tries again each second, for ever.
func (l *serverLog) Errorf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	for refused, hint := range map[string]string{
		"authentication error": "its credentials are not those of its last 'tardigrade agent enroll', or it was removed",
		"TLS handshake error":  "compare bus.tls, its end, and agent.tls.ca of who asks",
	} {
		_, who, found := strings.Cut(text, refused)
		if !found {
			continue
		}
		l.mu.Lock()
		again := time.Since(l.said[refused+who]) < time.Minute
		if !again && len(l.said) > 1000 {
			clear(l.said) // whoever asks may call itself anything
		}
		if !again {
			l.said[refused+who] = time.Now()
		}
		l.mu.Unlock()
		if !again {
			l.log.Warn("nats: "+text, "hint", hint)
		}
		return
	}
	l.log.Error("nats: " + text)
}

// ErrConflict means that somebody else changed the record first: read it again.
var ErrConflict = errors.New("the record was changed by somebody else")

// ErrNotFound means that there is no such record.
var ErrNotFound = errors.New("no such record")
