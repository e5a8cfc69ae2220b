package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

// cluster is three NATS servers with TLS that ask the control plane about agents, as
// docs/bus.md sets them up.
type cluster struct {
	servers []*server.Server
	urls    string
	roots   *tls.Config
	callout Callout
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	key, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	authority := rigtest.NewAuthority(t)
	cert, private := authority.Certify("127.0.0.1")
	pair, err := tls.X509KeyPair(cert, private)
	if err != nil {
		t.Fatal(err)
	}
	ca, _, _ := authority.Write(t.TempDir(), "127.0.0.1")
	c := &cluster{roots: &tls.Config{RootCAs: pool(t, ca), MinVersion: tls.VersionTLS12}, callout: Callout{Seed: string(seed), Account: "AGENTS"}}
	// What the servers know of accounts is what the document says.
	_, accounts, ok := strings.Cut(string(read(t, "../../docs/bus.md")), "    accounts {")
	accounts, _, ended := strings.Cut(accounts, "\n\n")
	if !ok || !ended {
		t.Fatal("docs/bus.md has no accounts")
	}
	accounts = "accounts {" + strings.NewReplacer("PASSWORD", "secret", "A…", issuer).Replace(accounts)
	var routes []*url.URL
	var ports []*loopback.Reservation
	for range 3 {
		r, err := loopback.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Release)
		ports = append(ports, r)
		routes = append(routes, &url.URL{Scheme: "nats", Host: r.Address()})
	}
	var urls []string
	for i, p := range ports {
		file := filepath.Join(t.TempDir(), "nats-server.conf")
		if err := os.WriteFile(file, []byte(accounts), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := server.ProcessConfigFile(file)
		if err != nil {
			t.Fatal(err)
		}
		o.ServerName, o.Host, o.Port, o.JetStream, o.StoreDir, o.NoSigs, o.NoLog = fmt.Sprintf("n%d", i+1), "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), true, true
		o.TLS, o.TLSTimeout, o.TLSConfig, o.AuthTimeout = true, 30, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, 30
		o.Routes = routes
		o.Cluster.Name, o.Cluster.Host = "tardigrade", "127.0.0.1"
		if _, err := fmt.Sscan(p.Port, &o.Cluster.Port); err != nil {
			t.Fatal(err)
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		c.servers = append(c.servers, s)
		if !s.ReadyForConnections(time.Minute) {
			t.Fatalf("%s is not ready", s.Name())
		}
		urls = append(urls, "tls://control:secret@"+s.Addr().String())
	}
	c.urls = strings.Join(urls, ",")
	return c
}

func pool(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(read(t, file)) {
		t.Fatalf("%s has no certificate", file)
	}
	return p
}

// dial connects an agent to the cluster, by addresses without the control plane's password.
func (c *cluster) dial(t *testing.T, host fleet.HostID, token string) *Agent {
	t.Helper()
	a, err := DialAgent(AgentOptions{Host: host, Token: token, URL: strings.ReplaceAll(c.urls, "control:secret@", ""), TLS: c.roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// A cluster of three loses the server on which everything began, and nothing else.
func TestClusterLosesAServer(t *testing.T) {
	c := startCluster(t)
	b := open(t, Options{URL: c.urls, TLS: c.roots, Callout: c.callout, Replicas: 3,
		Agents: func(h fleet.HostID, token string) bool { return token == "secret-"+string(h) }})
	a := c.dial(t, "h1", "secret-h1")
	first := sampleAt("h1", time.Now(), 0) // one that is sent again, since its answer did not come, is one
	eventually(t, "an enrolled agent is admitted", func() error { return agentPublish(t.Context(), a, first) })
	if err := agentPublish(t.Context(), a, sampleAt("h2", time.Now(), 0)); err == nil {
		t.Error("the agent of h1 spoke for h2")
	}
	obeys(t, b, a, "e1.recycle.1")
	confined(t, b, a)
	for _, wrong := range []nats.Option{nats.UserInfo("h1", "wrong"), nats.UserInfo("control", "wrong"), nats.UserInfo("", "")} {
		if conn, err := nats.Connect("tls://"+c.servers[0].Addr().String(), nats.Secure(c.roots), wrong); err == nil {
			conn.Close()
			t.Error("somebody unknown was admitted")
		}
	}
	table, err := OpenTable[fleet.Host](t.Context(), b, "THINGS", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Create(t.Context(), "h1", fleet.Host{ID: "h1", Version: "1"}); err != nil {
		t.Fatal(err)
	}
	leases, err := OpenLeases(t.Context(), b, "LEASES", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := leases.Acquire(t.Context(), "h1", "a")
	if err != nil {
		t.Fatal(err)
	}

	info, err := b.JS.Stream(t.Context(), StreamSamples)
	if err != nil {
		t.Fatal(err)
	}
	if r := info.CachedInfo().Config.Replicas; r != 3 {
		t.Fatalf("%d replicas", r)
	}
	for _, s := range c.servers {
		if s.Name() == info.CachedInfo().Cluster.Leader {
			s.Shutdown()
			s.WaitForShutdown()
		}
	}

	at := time.Now()
	for i := range 5 {
		sample := sampleAt("h1", at.Add(time.Duration(i)*time.Millisecond), float64(1+i))
		eventually(t, "a sample is stored", func() error { return agentPublish(t.Context(), a, sample) })
	}
	var got []float64
	eventually(t, "the history is there", func() error {
		got = nil
		return b.History(t.Context(), "h1", at.Add(-time.Hour), at.Add(time.Minute), func(s fleet.Sample) bool {
			v, _ := s.Value("load_1m")
			got = append(got, v)
			return true
		})
	})
	if fmt.Sprint(got) != "[0 1 2 3 4 5]" {
		t.Errorf("history %v", got)
	}
	eventually(t, "the table is written", func() error {
		_, err := table.Change(t.Context(), "h1", func(h *fleet.Host) error { h.Version = "2"; return nil })
		return err
	})
	var token uint64
	eventually(t, "the lease is renewed", func() error { return leases.Renew(t.Context(), lease, "a") })
	eventually(t, "the lease is passed on", func() error {
		if err := leases.Release(t.Context(), lease); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
		next, err := leases.Acquire(t.Context(), "h1", "b")
		if err == nil {
			token = next.Token
		}
		return err
	})
	if token <= lease.Token {
		t.Errorf("token %d after %d: it must grow", token, lease.Token)
	}
	late := c.dial(t, "h3", "secret-h3")
	eventually(t, "an agent that comes later is admitted", func() error { return agentPublish(t.Context(), late, sampleAt("h3", time.Now(), 0)) })

	// One server alone stores nothing, and that is said.
	if why := b.Leaderless(t.Context()); why != "" {
		t.Errorf("two servers of three: %s", why)
	}
	for _, s := range c.servers {
		if s.Running() {
			s.Shutdown()
			s.WaitForShutdown()
			break
		}
	}
	eventually(t, "the loss of most servers is said", func() error {
		if b.Leaderless(t.Context()) == "" {
			return errors.New("all is well")
		}
		return nil
	})
	eventually(t, "a write says what is needed", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := table.Put(ctx, "h1", fleet.Host{ID: "h1"})
		if !errors.Is(err, ErrUnwritable) {
			return fmt.Errorf("%w", err)
		}
		return nil
	})
}

func TestAClusterThatCannotBeUsedSaysWhy(t *testing.T) {
	nobody, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Release()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	right, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	alone, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	alone.Start()
	defer alone.Shutdown()
	if !alone.ReadyForConnections(time.Minute) {
		t.Fatal("the server is not ready")
	}
	there := "nats://" + alone.Addr().String()
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"nobody listens":         {Options{URL: "nats://control:hidden@" + nobody.Address()}, []string{nobody.Address(), "no servers available"}},
		"no address":             {Options{URL: "tls://control:hi%zzdden@n1:4222"}, []string{"bus.url", "n1:4222"}},
		"half an address":        {Options{URL: there + ", "}, []string{"bus.url"}},
		"more replicas than are": {Options{URL: there, Replicas: 3}, []string{StreamSamples, "3 replicas"}},
		"a seed of a user":       {Options{URL: there, Callout: Callout{Seed: string(wrong), Account: "$G"}}, []string{"bus.callout", "account key"}},
		"one account for all":    {Options{URL: there, Callout: Callout{Seed: string(right), Account: "$G"}}, []string{"bus.account", "$G", "docs/bus.md"}},
		"no seed":                {Options{URL: there, Callout: Callout{Seed: "x", Account: "$G"}}, []string{"bus.callout", "account key"}},
	} {
		b, err := Open(t.Context(), c.o)
		if err == nil {
			b.Close()
			t.Errorf("%s: it was opened", name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "hi%zzdden") || strings.Contains(err.Error(), "hidden") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	for urls, want := range map[string]string{
		"": "", "tls://n1:4222": "tls://n1:4222", "control:secret@n1:4222": "xxxxx@n1:4222",
		"tls://control:secret@n1:4222, nats://control:se@cret@n2": "tls://xxxxx@n1:4222,nats://xxxxx@n2",
		"tls://control:se%cret@n1":                                "tls://xxxxx@n1",
	} {
		if got := Redacted(urls); got != want {
			t.Errorf("%q became %q, not %q", urls, got, want)
		}
	}
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within two minutes: %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
