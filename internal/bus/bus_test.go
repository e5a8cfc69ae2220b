package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
)

func open(t *testing.T, o Options) *Bus {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.Log = slog.New(slog.DiscardHandler)
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func agent(t *testing.T, b *Bus, host fleet.HostID, token string) *Agent {
	t.Helper()
	a, err := DialAgent(AgentOptions{Host: host, Token: token, InProcess: b, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func sampleAt(host fleet.HostID, at time.Time, v float64) *fleet.Sample {
	return &fleet.Sample{
		Host: host, Time: at.UTC(), Boot: "boot-1", Schema: fleet.NewSchema([]string{"load_1m", "unit_active{a.service}"}),
		Values: []float64{v, math.NaN()},
	}
}

func TestSamplesSurviveARestartOfTheBus(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Options{Dir: dir})
	at := time.Now().Add(-time.Second)
	for i := range 3 {
		if err := publish(t.Context(), b, sampleAt("h1", at.Add(time.Duration(i)*time.Millisecond), float64(i))); err != nil {
			t.Fatal(err)
		}
	}
	// The same sample sent again is one sample.
	if err := publish(t.Context(), b, sampleAt("h1", at, 0)); err != nil {
		t.Fatal(err)
	}
	b.Close()

	b = open(t, Options{Dir: dir})
	var got []float64
	err := b.History(t.Context(), "h1", at.Add(-time.Minute), at.Add(time.Minute), func(s fleet.Sample) bool {
		v, ok := s.Value("load_1m")
		if !ok {
			t.Errorf("load_1m is missing in %v", s)
		}
		if _, ok := s.Value("unit_active{a.service}"); ok {
			t.Error("a missing value came back as a number")
		}
		got = append(got, v)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []float64{0, 1, 2}) {
		t.Errorf("history is %v, want 0 1 2", got)
	}
}

// publish stores a sample as the control plane could.
func publish(ctx context.Context, b *Bus, s *fleet.Sample) error {
	_, err := publishSamples(ctx, b.JS, []*fleet.Sample{s})
	return err
}

func agentPublish(ctx context.Context, a *Agent, s *fleet.Sample) error {
	_, err := a.PublishSamples(ctx, []*fleet.Sample{s})
	return err
}

func TestSamplesTravelTogether(t *testing.T) {
	b := open(t, Options{})
	at := time.Now().Add(-time.Hour)
	schemas := []*fleet.Schema{fleet.NewSchema([]string{"a", "b"}), fleet.NewSchema([]string{"a", "b", "c"})}
	var samples []*fleet.Sample
	for i := range 40_000 { // more than fit in one message
		schema := schemas[i/20_000]
		values := make([]float64, schema.Len())
		values[0] = float64(i)
		samples = append(samples, &fleet.Sample{Host: "h1", Time: at.Add(time.Duration(i) * time.Millisecond), Boot: "b", Schema: schema, Values: values})
	}
	n, err := publishSamples(t.Context(), b.JS, samples)
	if err != nil || n != len(samples) {
		t.Fatalf("%d, %v", n, err)
	}
	info, err := b.JS.Stream(t.Context(), StreamSamples)
	if err != nil {
		t.Fatal(err)
	}
	if messages := info.CachedInfo().State.Msgs; messages < 3 || messages > 10 {
		t.Errorf("%d messages", messages)
	}
	next := 0
	err = b.History(t.Context(), "h1", at, at.Add(2*time.Hour), func(s fleet.Sample) bool {
		if v, _ := s.Value("a"); v != float64(next) || s.Schema.Len() != 2+next/20_000 || !s.Time.Equal(samples[next].Time) {
			t.Fatalf("sample %d: %+v", next, s)
		}
		next++
		return true
	})
	if err != nil || next != len(samples) {
		t.Errorf("%d samples came back, %v", next, err)
	}
}

func TestIngestAcknowledgesOnlyWhatWasWritten(t *testing.T) {
	b := open(t, Options{})
	for i := range 5 {
		if err := publish(t.Context(), b, sampleAt("h1", time.Now().Add(time.Duration(i)*time.Millisecond), float64(i))); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	failures, written := 2, 0
	err := b.Ingest(ctx, func(_ context.Context, s []fleet.Sample) error {
		mu.Lock()
		defer mu.Unlock()
		if failures > 0 {
			failures--
			return errors.New("down")
		}
		if written += len(s); written == 5 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || written != 5 {
		t.Errorf("ingested %d samples, err %v; want 5", written, err)
	}
}

func TestAnAgentSpeaksForItsOwnHostAlone(t *testing.T) {
	b := open(t, Options{Listen: "127.0.0.1:0", Agents: func(h fleet.HostID, token string) bool { return token == "secret-"+string(h) }})
	a := agent(t, b, "h1", "secret-h1")
	if err := agentPublish(t.Context(), a, sampleAt("h1", time.Now(), 1)); err != nil {
		t.Fatalf("its own sample: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := agentPublish(ctx, a, sampleAt("h2", time.Now(), 1)); err == nil {
		t.Error("a sample in another host's name was accepted")
	}
	if _, err := a.js.Publish(ctx, subjectAudit, []byte("{}")); err == nil {
		t.Error("an agent could write to the audit trail")
	}
	obeys(t, b, a, "e1.recycle.1")
	confined(t, b, a)
	if err := b.reopen(); err != nil {
		t.Fatal(err)
	}
	obeys(t, b, a, "e2.recycle.1")
	if c, err := nats.Connect("nats://"+b.Addr(), nats.UserInfo("h1", "wrong")); err == nil {
		c.Close()
		t.Error("a wrong token was admitted")
	}
	if c, err := nats.Connect("nats://" + b.Addr()); err == nil {
		c.Close()
		t.Error("a connection without credentials was admitted")
	}
}

// obeys fails the test unless the agent of h1 gets its commands.
func obeys(t *testing.T, b *Bus, a *Agent, id string) {
	t.Helper()
	if err := b.AdmitHost(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(t.Context(), fleet.Command{ID: id, Host: "h1", Token: 7}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 20 { // each time it is this account that answers
		if _, err := a.js.Consumer(ctx, StreamCommands, consumerName("h1")); err != nil {
			t.Error(err)
		}
	}
	got := ""
	a.Commands(ctx, func(_ context.Context, c fleet.Command) error {
		got = c.ID
		cancel()
		return nil
	})
	if got != id {
		t.Errorf("the agent got the command %q", got)
	}
}

// confined fails the test if the agent of h1 can have an answer delivered where it may not publish itself.
func confined(t *testing.T, b *Bus, a *Agent) {
	t.Helper()
	audit := OpenAudit(b)
	if err := audit.Append(t.Context(), "ann", "freeze", "f1", nil); err != nil {
		t.Fatal(err)
	}
	table, err := OpenTable[fleet.Host](t.Context(), b, "CONFINED", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Put(t.Context(), "h2", fleet.Host{ID: "h2", Version: "1"}); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{subjectAudit, "$KV.CONFINED.h2", "$JS.API.STREAM.PURGE." + StreamSamples, "$JS.API.STREAM.DELETE." + StreamSamples, "$JS.API.STREAM.DELETE." + StreamAudit, subjectCommands + "h2"} {
		for from, body := range map[string]string{
			subjectSamples + "h1": "no sample", subjectReports + "h1": "no report", subjectBundles + "h1": "no piece",
			"$JS.API.CONSUMER.INFO.COMMANDS.agent-h1": "", "$JS.API.CONSUMER.MSG.NEXT.COMMANDS.agent-h1": `{"batch":1,"no_wait":true}`,
		} {
			if err := a.conn.PublishRequest(from, to, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What the agent sends next comes after all of that.
	if err := agentPublish(t.Context(), a, sampleAt("h1", time.Now().Add(-24*time.Hour), 1)); err != nil {
		t.Errorf("the stream of samples is gone: %v", err)
	}
	n := 0
	if err := audit.Verify(t.Context(), func(uint64, AuditRecord) { n++ }); err != nil || n != 1 {
		t.Errorf("%d records in the audit trail, %v", n, err)
	}
	if h, _, err := table.Load(t.Context(), "h2"); err != nil || h.Version != "1" {
		t.Errorf("%+v, %v", h, err)
	}
	for stream, want := range map[string]bool{StreamSamples: true, StreamCommands: false} {
		s, err := b.JS.Stream(t.Context(), stream)
		if err != nil {
			t.Errorf("%s: %v", stream, err)
		} else if got := s.CachedInfo().State.Msgs > 0; got != want {
			t.Errorf("%s has messages: %v", stream, got)
		}
	}
}

func TestListeningBeyondLoopbackNeedsTLS(t *testing.T) {
	_, err := Open(t.Context(), Options{Dir: t.TempDir(), Listen: "0.0.0.0:0"})
	if err == nil || !strings.Contains(err.Error(), "bus.tls") {
		t.Errorf("error is %v, want one that names bus.tls", err)
	}
}

func TestACommandIsDeliveredUntilItIsDone(t *testing.T) {
	b := open(t, Options{Agents: func(fleet.HostID, string) bool { return true }})
	if err := b.AdmitHost(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	c := fleet.Command{ID: "e1/recycle/1", Execution: "e1", Host: "h1", Phase: fleet.PhaseRecycle, Token: 7}
	for range 2 { // sent twice, delivered as one
		if err := b.Send(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	other := c
	other.ID, other.Host = "e2/recycle/1", "h2"
	if err := b.Send(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	a := agent(t, b, "h1", "x")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tries := 0
	a.Commands(ctx, func(_ context.Context, got fleet.Command) error {
		if got.ID != c.ID || got.Token != 7 {
			t.Errorf("got command %+v", got)
		}
		if tries++; tries == 1 {
			return errors.New("not now")
		}
		cancel()
		return nil
	})
	if tries != 2 {
		t.Errorf("delivered %d times, want 2", tries)
	}
}

func TestTableRefusesAStaleWrite(t *testing.T) {
	b := open(t, Options{})
	seen := make(chan fleet.Host, 10)
	table, err := OpenTable(t.Context(), b, "HOSTS", func(_ string, h fleet.Host) { seen <- h })
	if err != nil {
		t.Fatal(err)
	}
	first, err := table.Create(t.Context(), "h1", fleet.Host{ID: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Create(t.Context(), "h1", fleet.Host{ID: "h1"}); !errors.Is(err, ErrConflict) {
		t.Errorf("creating twice: %v", err)
	}
	if h := <-seen; h.Version != "" {
		t.Errorf("of the record that was made, version %q is told", h.Version)
	}
	if _, err := table.Update(t.Context(), "h1", fleet.Host{ID: "h1", Version: "2"}, first); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Update(t.Context(), "h1", fleet.Host{ID: "h1", Version: "3"}, first); !errors.Is(err, ErrConflict) {
		t.Errorf("a stale update: %v", err)
	}
	for _, key := range []string{"h9", "..", "a b", "*", ">", "é", ""} {
		if _, _, err := table.Load(t.Context(), key); !errors.Is(err, ErrNotFound) {
			t.Errorf("the unknown key %q: %v", key, err)
		}
	}
	if h := <-seen; h.Version != "2" {
		t.Errorf("after its change version %q is told", h.Version)
	}
	// A second reader starts with a complete copy.
	again, err := OpenTable[fleet.Host](t.Context(), b, "HOSTS", nil)
	if err != nil {
		t.Fatal(err)
	}
	if h, _, ok := again.Find("h1"); !ok || h.Version != "2" {
		t.Errorf("the copy has %+v", h)
	}
}

func TestLeaseTokensGrowAndRenewalKeepsTheTTL(t *testing.T) {
	b := open(t, Options{})
	open := func(ttl time.Duration) *Leases {
		t.Helper()
		l, err := OpenLeases(t.Context(), b, "LEASES", ttl)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	leases := open(time.Hour)
	first, err := leases.Acquire(t.Context(), "h1", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leases.Acquire(t.Context(), "h1", "b"); !errors.Is(err, ErrConflict) {
		t.Errorf("a held lease: %v", err)
	}
	if err := open(time.Second).Renew(t.Context(), first, "a"); err != nil {
		t.Fatal(err)
	}
	// Not renewed any more, it must expire by itself.
	var second *Lease
	deadline := time.Now().Add(time.Minute)
	for second == nil && time.Now().Before(deadline) {
		second, err = leases.Acquire(t.Context(), "h1", "b")
		if err != nil && !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
	}
	if second == nil {
		t.Fatal("a renewed lease never expired: the renewal lost its TTL")
	}
	if second.Token <= first.Token {
		t.Errorf("token %d after %d: it must grow", second.Token, first.Token)
	}
	if err := leases.Renew(t.Context(), first, "a"); !errors.Is(err, ErrConflict) {
		t.Errorf("renewing a lost lease: %v", err)
	}
	if err := leases.Release(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	third, err := leases.Acquire(t.Context(), "h1", "c")
	if err != nil {
		t.Fatal(err)
	}
	if third.Token <= second.Token {
		t.Errorf("token %d after %d: it must grow", third.Token, second.Token)
	}
}

func TestAuditChain(t *testing.T) {
	b := open(t, Options{})
	one, two := OpenAudit(b), OpenAudit(b) // two writers
	for i, a := range []*Audit{one, two, one, two} {
		if err := a.Append(t.Context(), "alice", "approve", "r1", map[string]int{"n": i}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := one.Verify(t.Context(), func(uint64, AuditRecord) { n++ }); err != nil || n != 4 {
		t.Fatalf("verified %d records: %v", n, err)
	}
	if _, err := b.JS.Publish(t.Context(), subjectAudit, []byte(`{"actor":"mallory","event":"approve","subject":"r2","previous":"","hash":"00"}`)); err != nil {
		t.Fatal(err)
	}
	if err := one.Verify(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "record 5") {
		t.Errorf("a forged record gave %v", err)
	}
}

func TestBundleArrivesWholeOrNotAtAll(t *testing.T) {
	b := open(t, Options{Agents: func(fleet.HostID, string) bool { return true }})
	store, err := OpenBundles(t.Context(), b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	go store.Serve(t.Context())
	a := agent(t, b, "h1", "x")
	data := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	sum := sha256.Sum256(data)
	upload := func(sum string) error {
		for { // until Serve has subscribed
			err := a.UploadBundle(t.Context(), "e1.tar.zst", bytes.NewReader(data), sum)
			if !errors.Is(err, nats.ErrNoResponders) {
				return err
			}
		}
	}
	if err := upload(strings.Repeat("0", 64)); err == nil {
		t.Error("a wrong checksum was accepted")
	}
	// What a host begins and does not end is bounded, and is in nobody else's way.
	refused := 0
	for i := range 3 * maxUploads {
		if err := store.receive(t.Context(), "h2", bundlePiece{Name: fmt.Sprint(i), Data: data[:10]}); err != nil {
			refused++
		}
	}
	if refused != 2*maxUploads {
		t.Errorf("%d uploads were refused", refused)
	}
	if _, err := store.Open(t.Context(), "h1", "e1.tar.zst"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused bundle can be opened: %v", err)
	}
	if err := upload(hex.EncodeToString(sum[:])); err != nil {
		t.Fatal(err)
	}
	r, err := store.Open(t.Context(), "h1", "e1.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes back, want %d: %v", len(got), len(data), err)
	}
}

func FuzzDecodeSample(f *testing.F) {
	f.Add(EncodeSample(nil, sampleAt("h1", time.Unix(1, 2), 3)))
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Decoder
		samples, err := d.Decode(data)
		if err != nil {
			return
		}
		for i := range samples {
			s := &samples[i]
			again, err := d.Decode(EncodeSample(nil, s))
			if err != nil || len(again) != 1 || again[0].Host != s.Host || len(again[0].Values) != len(s.Values) || again[0].Schema != s.Schema {
				t.Errorf("decoding what was encoded: %v, %v", again, err)
			}
		}
	})
}

func TestDecoderRefusesDamage(t *testing.T) {
	good := EncodeSample(nil, sampleAt("h1", time.Now(), 1))
	var d Decoder
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x40
		if _, err := d.Decode(bad); err == nil {
			t.Errorf("a flipped bit in byte %d was not seen", i)
		}
		if _, err := d.Decode(good[:i]); err == nil {
			t.Errorf("a sample cut after %d bytes was not seen", i)
		}
	}
}

// lines is a log that can be waited on.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

// TestAnAgentThatCannotReachTheBusSaysWhy has nobody listening, and then a bus that does not know the token.
func TestAnAgentThatCannotReachTheBusSaysWhy(t *testing.T) {
	free, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer free.Release()
	address := free.Address()
	log := make(lines, 100)
	await := func(want ...string) {
		t.Helper()
		a, err := DialAgent(AgentOptions{Host: "h1", Token: "wrong", URL: "nats://" + address, Log: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		for {
			select {
			case line := <-log:
				if !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(line, w) }) {
					return
				}
			case <-time.After(time.Minute):
				t.Fatalf("no line with %q within a minute", want)
			}
		}
	}
	await("cannot be reached", address)
	open(t, Options{Listen: address, Agents: func(fleet.HostID, string) bool { return false }})
	await("cannot be reached", "agent enroll")
}

// TestARefusedAgentIsSaidOnceAMinute has agents that try again each second.
func TestARefusedAgentIsSaidOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := make(lines, 100)
		l := &serverLog{log: slog.New(slog.NewTextHandler(log, nil)), said: make(map[string]time.Time)}
		for range 90 {
			for _, host := range []string{"h1", "h2"} {
				l.Errorf("192.0.2.1:4000 - cid:7 - authentication error - User %q", host)
			}
			time.Sleep(time.Second)
		}
		if len(log) != 4 {
			t.Errorf("%d lines of two agents in a minute and a half", len(log))
		}
		if line := <-log; !strings.Contains(line, "h1") || !strings.Contains(line, "agent enroll") || strings.Contains(line, "ERROR") {
			t.Error(line)
		}
	})
}
