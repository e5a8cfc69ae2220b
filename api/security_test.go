package api

import (
	"errors"
	"io"
	"net/http"
	pathpkg "path"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func TestExposure(t *testing.T) {
	const loop, beyond = "127.0.0.1:8080 127.8.9.1:1 [::1]:8080 localhost:8080 LOCALHOST:0 [::ffff:127.0.0.1]:80",
		":8080 0.0.0.0:8080 [::]:8080 10.0.0.1:80 192.0.2.1:443 example.org:80 localhost.example.org:80 127.1:80 127.0.0.1.example.org:80 [fe80::1%lo]:80 *:80"
	for addr := range strings.FieldsSeq(loop) {
		for _, tls := range []bool{false, true} {
			for _, tokens := range []int{0, 1} {
				if err := CheckExposure(addr, tls, tokens); err != nil {
					t.Errorf("%s, TLS %t, %d tokens: %v", addr, tls, tokens, err)
				}
			}
		}
	}
	for addr := range strings.FieldsSeq(beyond) {
		if err := CheckExposure(addr, true, 1); err != nil {
			t.Errorf("%s with TLS and a token: %v", addr, err)
		}
		for _, c := range []struct {
			tls    bool
			tokens int
			advice string
		}{{false, 0, "api.tls"}, {false, 1, "api.tls"}, {true, 0, "api.tokens"}} {
			if err := CheckExposure(addr, c.tls, c.tokens); err == nil || !strings.Contains(err.Error(), c.advice) || !strings.Contains(err.Error(), addr) {
				t.Errorf("%s, TLS %t, %d tokens: %v", addr, c.tls, c.tokens, err)
			}
		}
	}
	for _, addr := range []string{"", "127.0.0.1", "8080", "::1:80", "a:b:c"} {
		if err := CheckExposure(addr, true, 1); err == nil {
			t.Errorf("%q is no address, yet accepted", addr)
		}
	}
}

// A page on the Internet whose name points to 127.0.0.1 reaches the server under
// that name.
func TestLoopbackServerAnswersInItsOwnNameOnly(t *testing.T) {
	s := newSite(t)
	for _, host := range []string{"evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example:8080", "192.0.2.1", "0.0.0.0:8080", "[::]:80", "[::1].evil.example", "evil.example:127.0.0.1"} {
		for _, path := range []string{"/", "/healthz", "/api/v1/hosts", "/nothing"} {
			s.want(s.ask("GET", path, "", "Host", host), 403, "answers as localhost only")
		}
		s.want(s.ask("POST", "/api/v1/recommendations/"+recPending+"/approve", "", "Host", host, "Origin", "http://"+host), 403, "")
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.1:8080", "localhost", "localhost:9", "LocalHost", "[::1]", "[::1]:8080"} {
		s.want(s.ask("GET", "/api/v1/hosts", "", "Host", host), 200, simHost)
	}
	if r := s.fake.rec(recPending); r.State != fleet.RecommendationPending {
		t.Errorf("another name made it %s", r.State)
	}
	// With tokens a page of another name has nothing to show, and the server has names of its own.
	s = newSite(t, withTokens)
	s.want(s.ask("GET", "/api/v1/hosts", "", "Host", "tardigrade.example", "Authorization", "Bearer viewer"), 200, simHost)
	s.want(s.ask("GET", "/api/v1/hosts", "", "Host", "tardigrade.example"), 401, "")
}

func TestPagesOfOtherOriginsCannotAct(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{"/api/v1/recommendations/" + recPending + "/approve", "/api/v1/recommendations/" + recPending + "/reject", "/api/v1/executions", "/nothing"} {
		for _, header := range [][]string{
			{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"},
			{"Origin", "http://localhost:1"}, {"Sec-Fetch-Site", "cross-site", "Origin", s.URL},
		} {
			for _, kind := range []string{"application/json", "text/plain"} {
				s.want(s.ask("POST", path, `{"host":"sim-host1","action":"recycle","reason":"x"}`, append(header, "Content-Type", kind)...), 403, "another origin")
			}
		}
	}
	if r := s.fake.rec(recPending); r.State != fleet.RecommendationPending || len(s.fake.execs) != 2 {
		t.Errorf("another origin made it %s, with %d executions", r.State, len(s.fake.execs))
	}
	// The dashboard itself, and programs, which send neither header.
	s.want(s.ask("POST", "/api/v1/recommendations/"+recPending+"/approve", "", "Sec-Fetch-Site", "same-origin", "Origin", s.URL), 200, "executing")
	s.want(s.ask("POST", "/api/v1/executions", `{"host":"sim-host1","action":"hand-over","reason":"x"}`), 202, "")
}

func TestHead(t *testing.T) {
	s := newSite(t)
	for path, status := range map[string]int{"/": 200, "/healthz": 200, "/readyz": 200, "/api/v1/hosts": 200, "/api/v1/hosts/nowhere": 404, eventsPath: 405} {
		if a := s.ask("HEAD", path, ""); a.StatusCode != status || len(a.body) != 0 {
			t.Errorf("HEAD %s: %d with %d bytes", path, a.StatusCode, len(a.body))
		}
	}
}

func TestPage(t *testing.T) {
	s := newSite(t)
	kinds := map[string]string{"": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
	for _, path := range pages {
		a, kind := s.ask("GET", path, ""), kinds[pathpkg.Ext(path)]
		if got := a.Header.Get("Content-Type"); a.StatusCode != 200 || !strings.HasPrefix(got, kind) {
			t.Errorf("%s: %d %s", path, a.StatusCode, got)
		}
		// What the policy forbids would not run, and what is from outside is text.
		for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick=", "http://", "https://"} {
			text := strings.ReplaceAll(string(a.body), "http://www.w3.org/2000/svg", "")
			if strings.Contains(text, bad) {
				t.Errorf("%s has %s", path, bad)
			}
		}
	}
}

// A bundle that breaks off must not look whole.
func TestBundleBreaksOff(t *testing.T) {
	s := newSite(t)
	path := "/api/v1/executions/" + execWithBundle + "/bundle"
	torn := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), iotest.ErrReader(errors.New("the store went away")))
	s.fake.bundle = io.NopCloser(torn)
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes of a torn bundle look whole", n)
	}
	// Nothing sent yet: the error is said.
	s.fake.bundle = io.NopCloser(iotest.ErrReader(errors.New("the store went away")))
	a := s.ask("GET", path, "")
	s.want(a, 500, "the log says what")
	if got := a.Header.Get("Content-Disposition"); got != "" {
		t.Errorf("an error is offered as a file: %s", got)
	}
}
