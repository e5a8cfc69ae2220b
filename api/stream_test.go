package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// pipes is a listener whose connections are [net.Pipe]s, so that a server and its
// clients live in a synctest bubble. A pipe holds nothing: who writes waits until
// the other side reads.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bubble is a served fake in virtual time.
type bubble struct {
	t      *testing.T
	fake   *fake
	net    *pipes
	client *http.Client
	stop   context.CancelFunc
	served chan struct{} // closed once Serve returned err
	err    error
}

func inBubble(t *testing.T, f func(t *testing.T, b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, fake: newFake(), net: newPipes(), served: make(chan struct{})}
		b.client = &http.Client{Transport: &http.Transport{DialContext: b.net.dial, DisableKeepAlives: true}}
		server, err := New(Config{Fleet: b.fake, Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		b.stop = stop
		go func() {
			defer close(b.served)
			b.err = server.Serve(ctx, b.net)
		}()
		f(t, b)
		stop()
		b.client.CloseIdleConnections()
		if <-b.served; b.err != nil {
			t.Error(b.err)
		}
		if n := b.fake.following(); n != 0 {
			t.Errorf("%d followers are left", n)
		}
		// synctest fails if a goroutine is left.
	})
}

// stream is an open event stream.
type stream struct {
	*bufio.Reader
	leave context.CancelFunc
}

func (b *bubble) follow() stream {
	b.t.Helper()
	ctx, leave := context.WithCancel(b.t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", "http://localhost"+eventsPath, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		b.t.Errorf("the stream begins with %d %v", resp.StatusCode, resp.Header)
	}
	s := stream{bufio.NewReader(resp.Body), leave}
	if got := s.frame(b.t); got != "retry: 1000" {
		b.t.Errorf("the stream begins with %q", got)
	}
	return s
}

// frame reads up to the next empty line.
func (s stream) frame(t *testing.T) string {
	t.Helper()
	var lines []string
	for {
		line, err := s.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", lines, err)
		}
		if line == "\n" {
			return strings.Join(lines, "\n")
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
}

// next reads the next event, over signs of life.
func (s stream) next(t *testing.T) (kind string, data map[string]any) {
	t.Helper()
	for {
		frame := s.frame(t)
		if frame == ": alive" {
			continue
		}
		first, second, ok := strings.Cut(frame, "\n")
		if !ok || !strings.HasPrefix(first, "event: ") || !strings.HasPrefix(second, "data: ") || strings.Contains(second, "\n") {
			t.Fatalf("not an event: %q", frame)
		}
		if err := json.Unmarshal([]byte(second[6:]), &data); err != nil {
			t.Fatalf("%q: %v", frame, err)
		}
		return first[7:], data
	}
}

func TestEventsArrive(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s := b.follow()
		defer s.leave()
		f := newFake()
		f.recs[0].Reason = "first line\nevent: forged\ndata: {}\n\nsecond </script><b>&"
		for _, e := range []struct {
			kind, id string
			v        any
		}{{"host", simHost, f.hosts[1]}, {"prediction", simHost, f.hosts[1].Prediction}, {"recommendation", recPending, f.recs[0]}, {"execution", execWithout, f.execs[1]}} {
			b.fake.emit(e.kind, e.id, e.v)
			kind, data := s.next(t)
			if kind != e.kind || data["simulated"] != true {
				t.Errorf("emitted %s, got %s %v", e.kind, kind, data)
			}
			if e.kind == "recommendation" && data["reason"] != f.recs[0].Reason {
				t.Errorf("the reason became %q", data["reason"])
			}
			doc := readDocument(t)
			name := strings.ToUpper(kind[:1]) + kind[1:]
			for _, bad := range doc.check(map[string]any{"$ref": "#/components/schemas/" + name}, data, kind) {
				t.Errorf("not as documented: %s", bad)
			}
		}
	})
}

// The limits of a request (30 s to send it, 30 s to take its answer) do not end a
// stream, which shows every 15 s that it lives.
func TestIdleStreamLives(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s := b.follow()
		defer s.leave()
		start := time.Now()
		for range 240 {
			if got := s.frame(t); got != ": alive" {
				t.Fatalf("after %s: %q", time.Since(start), got)
			}
		}
		if took := time.Since(start); took != time.Hour {
			t.Errorf("240 signs of life took %s", took)
		}
		b.fake.emit("host", simHost, b.fake.hosts[1])
		if kind, _ := s.next(t); kind != "host" {
			t.Errorf("after an hour: %s", kind)
		}
	})
}

func TestStreamEndsWhenTheClientLeaves(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		var all []stream
		for range 50 {
			all = append(all, b.follow())
		}
		if n := b.fake.following(); n != 50 {
			t.Fatalf("%d followers", n)
		}
		for _, s := range all[1:] {
			s.leave()
		}
		synctest.Wait()
		if n := b.fake.following(); n != 1 {
			t.Errorf("after 49 of 50 clients left, %d follow", n)
		}
		b.fake.emit("host", simHost, b.fake.hosts[1])
		if kind, _ := all[0].next(t); kind != "host" {
			t.Errorf("the one that stayed got %s", kind)
		}
		all[0].leave()
	})
}

// The fleet closes the channel of a follower that is too slow: the client must
// see the end, so that it reads the state anew.
func TestStreamEndsWhenCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s := b.follow()
		defer s.leave()
		b.fake.mu.Lock()
		for ch := range b.fake.followers {
			delete(b.fake.followers, ch)
			close(ch)
		}
		b.fake.mu.Unlock()
		if rest, err := io.ReadAll(s); err != nil || len(rest) != 0 {
			t.Errorf("the stream ended with %q, %v", rest, err)
		}
	})
}

func TestSlowReaderHarmsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		// It asks, and never reads.
		slow, err := b.net.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		fmt.Fprintf(slow, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", eventsPath)
		synctest.Wait()
		if b.fake.following() != 1 {
			t.Fatal("the slow reader does not follow")
		}
		s := b.follow()
		defer s.leave()
		start := time.Now()
		for i := range 5 * followerBuffer {
			h := b.fake.hosts[1]
			h.Version = fmt.Sprint(i)
			b.fake.emit("host", simHost, h)
			if _, data := s.next(t); data["agent_version"] != h.Version {
				t.Fatalf("event %d: %v", i, data["agent_version"])
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("the other reader waited %s", took)
		}
		b.fake.mu.Lock()
		cut := b.fake.cutOff
		b.fake.mu.Unlock()
		if cut != 1 {
			t.Errorf("%d followers were cut off, want the slow one", cut)
		}
		// Its handler does not wait for ever either.
		time.Sleep(readerPatience)
		synctest.Wait()
		slow.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := io.Copy(io.Discard, slow); err != nil {
			t.Errorf("the slow reader's connection is still open: %v", err)
		}
		if n := b.fake.following(); n != 1 {
			t.Errorf("%d followers", n)
		}
	})
}

// Who does not read a plain answer holds its connection for patience, no longer.
func TestSlowReaderOfAnAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.fake.bundle = io.NopCloser(bytes.NewReader(make([]byte, 4<<20)))
		for _, path := range []string{"/api/v1/hosts", "/app.js", "/api/v1/executions/" + execWithBundle + "/bundle"} {
			c, err := b.net.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
			time.Sleep(patience + time.Second)
			synctest.Wait()
			c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := io.Copy(io.Discard, c); err != nil {
				t.Errorf("%s: still open after %d bytes: %v", path, n, err)
			}
			c.Close()
		}
	})
}

// A bundle may take long, as long as it moves.
func TestSteadyReaderGetsTheWholeBundle(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		const size = 4 << 20
		b.fake.bundle = io.NopCloser(io.LimitReader(zeros{}, size))
		resp, err := b.client.Get("http://localhost/api/v1/executions/" + execWithBundle + "/bundle")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		start, got := time.Now(), 0
		for buf := make([]byte, 32<<10); ; time.Sleep(5 * time.Second) {
			n, err := io.ReadFull(resp.Body, buf)
			got += n
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("after %s and %d bytes: %v", time.Since(start), got, err)
			}
		}
		if took := time.Since(start); got != size || took < 10*time.Minute {
			t.Errorf("%d bytes in %s", got, took)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestServeEndsInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s := b.follow()
		defer s.leave()
		// A request that takes 3 s may finish.
		b.fake.wait = 3 * time.Second
		answered := make(chan error, 1)
		go func() {
			resp, err := b.client.Post("http://localhost/api/v1/recommendations/"+recPending+"/approve", "", nil)
			if err == nil {
				defer resp.Body.Close()
				if resp.StatusCode != 200 {
					err = errors.New(resp.Status)
				}
			}
			answered <- err
		}()
		synctest.Wait()
		start := time.Now()
		b.stop()
		if rest, err := io.ReadAll(s); err != nil || len(rest) != 0 || time.Since(start) != 0 {
			t.Errorf("the stream ended after %s with %q, %v", time.Since(start), rest, err)
		}
		if err := <-answered; err != nil {
			t.Errorf("the request under way: %v", err)
		}
		<-b.served
		if took := time.Since(start); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("the server ended after %s", took)
		}
		if r := b.fake.rec(recPending); r.State != fleet.RecommendationExecuting {
			t.Errorf("the request under way left it %s", r.State)
		}
	})
}

// A request that hangs is told so after 5 s, and does not keep the server.
func TestServeDoesNotWaitForEver(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.fake.wait = time.Hour
		go func() {
			if resp, err := b.client.Post("http://localhost/api/v1/recommendations/"+recPending+"/approve", "", nil); err == nil {
				resp.Body.Close()
			}
		}()
		synctest.Wait()
		start := time.Now()
		b.stop()
		if <-b.served; time.Since(start) != 5*time.Second {
			t.Errorf("the server ended after %s", time.Since(start))
		}
		synctest.Wait()
		if r := b.fake.rec(recPending); r.State != fleet.RecommendationPending {
			t.Errorf("after its context ended, the request made it %s", r.State)
		}
	})
}

func TestServeSaysWhatIsWrong(t *testing.T) {
	server, err := New(Config{Fleet: newFake(), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	l := newPipes()
	l.Close()
	if err := server.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "serve the API") {
		t.Errorf("on a closed listener: %v", err)
	}
}
