package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// site is a server over a fake, and a client that holds every answer against
// openapi.json.
type site struct {
	*httptest.Server
	t    *testing.T
	fake *fake
	doc  document
}

func newSite(t *testing.T, configure ...func(*Config)) *site {
	t.Helper()
	s := &site{t: t, fake: newFake(), doc: readDocument(t)}
	c := Config{Fleet: s.fake, Version: "v-test", Log: quiet()}
	for _, f := range configure {
		f(&c)
	}
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(server.Handler())
	t.Cleanup(s.Close)
	return s
}

// withTokens gives each role a token of the same name.
func withTokens(c *Config) {
	c.Tokens = make(map[string]Identity)
	for role := range rank {
		sum := sha256.Sum256([]byte(role))
		c.Tokens[hex.EncodeToString(sum[:])] = Identity{"the-" + string(role), role}
	}
}

type answer struct {
	*http.Response
	body []byte
	json any
}

// field digs in the answer: field("hosts", 0, "id").
func (a answer) field(path ...any) any {
	v := a.json
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// ask sends a request. The header pairs override what is sent by default.
func (s *site) ask(method, path, body string, header ...string) answer {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	return s.do(r)
}

func (s *site) do(r *http.Request) answer {
	s.t.Helper()
	resp, err := s.Client().Do(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer resp.Body.Close()
	a := answer{Response: resp}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		s.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	s.hold(r, &a)
	return a
}

// hold checks what is true of every answer.
func (s *site) hold(r *http.Request, a *answer) {
	s.t.Helper()
	what := fmt.Sprintf("%s %s: %d %s", r.Method, r.URL.Path, a.StatusCode, a.body)
	if len(what) > 600 {
		what = what[:600]
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		"Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
	} {
		if got := a.Header.Get(name); got != want {
			s.t.Errorf("%s\n%s is %q", what, name, got)
		}
	}
	if got := a.Header.Get("Access-Control-Allow-Origin"); got != "" {
		s.t.Errorf("%s\nother origins may read it: %q", what, got)
	}
	kind, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil {
		s.t.Errorf("%s\nContent-Type: %v", what, err)
	}
	if strings.HasSuffix(kind, "json") && r.Method != http.MethodHead {
		if err := json.Unmarshal(a.body, &a.json); err != nil {
			s.t.Errorf("%s\nis not JSON: %v", what, err)
		}
	}
	if a.StatusCode >= 400 && a.Request.URL.Path != "/readyz" && r.Method != http.MethodHead {
		var p problem
		if err := json.Unmarshal(a.body, &p); err != nil || kind != "application/problem+json" {
			s.t.Errorf("%s\nis not a problem but %s: %v", what, kind, err)
		}
		if p.Status != a.StatusCode || p.Title != http.StatusText(a.StatusCode) || p.Instance != r.URL.Path || p.Type != "about:blank" {
			s.t.Errorf("%s\ndoes not describe itself", what)
		}
		if len(p.Detail) < 15 || p.Detail == p.Title {
			s.t.Errorf("%s\nhas a detail that helps nobody", what)
		}
		for _, inside := range []string{"goroutine", "struct {", ".go:", "fleet.", "json:"} {
			if strings.Contains(p.Detail, inside) {
				s.t.Errorf("%s\nshows the inside (%q)", what, inside)
			}
		}
	}
	for _, bad := range unlabelled(a.json, "") {
		s.t.Errorf("%s\n%s", what, bad)
	}
	op := s.doc.operation(r.Method, r.URL.Path)
	if op == nil {
		return
	}
	documented, err := s.doc.resolve(op["responses"].(map[string]any)[fmt.Sprint(a.StatusCode)])
	if err != nil {
		s.t.Errorf("%s\nis not documented", what)
		return
	}
	content, ok := documented["content"].(map[string]any)[kind].(map[string]any)
	if !ok {
		s.t.Errorf("%s\nhas the undocumented type %s", what, kind)
		return
	}
	if a.json != nil {
		for _, bad := range s.doc.check(content["schema"], a.json, "body") {
			s.t.Errorf("%s\nis not as documented: %s", what, bad)
		}
	}
}

// unlabelled finds records of simulated hosts that do not say so, and real ones
// that do.
func unlabelled(v any, at string) (bad []string) {
	switch v := v.(type) {
	case []any:
		for i, x := range v {
			bad = append(bad, unlabelled(x, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case map[string]any:
		name, ok := v["host"].(string)
		if !ok {
			name, _ = v["id"].(string)
		}
		if want := strings.HasPrefix(name, "sim-"); (want || name == realHost) && v["simulated"] != want {
			bad = append(bad, fmt.Sprintf("%s of %s has simulated: %v", at, name, v["simulated"]))
		}
		for k, x := range v {
			bad = append(bad, unlabelled(x, at+"."+k)...)
		}
	}
	return bad
}

func (s *site) want(a answer, status int, detail string) {
	s.t.Helper()
	if a.StatusCode != status || !strings.Contains(string(a.body), detail) {
		s.t.Errorf("%s %s: want %d with %q, got %d %s", a.Request.Method, a.Request.URL, status, detail, a.StatusCode, a.body)
	}
}

func TestEveryRouteAnswers(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		at                 []any
		want               any
	}{
		{"GET", "/healthz", "", 200, []any{"version"}, "v-test"},
		{"GET", "/readyz", "", 200, []any{"status"}, "ready"},
		{"GET", "/api/v1/openapi.json", "", 200, []any{"openapi"}, "3.1.0"},
		{"GET", "/api/v1/hosts", "", 200, []any{"hosts", 1, "prediction", "signature"}, "memory-leak"},
		{"GET", "/api/v1/hosts/" + simHost, "", 200, []any{"series", 0}, "memory_used_ratio"},
		{"GET", "/api/v1/hosts/" + simHost + "/prediction", "", 200, []any{"anomaly_score"}, 5.5},
		{"GET", "/api/v1/hosts/" + simHost + "/telemetry?metric=memory_used_ratio", "", 200, []any{"points", 1, "value"}, 0.75},
		{"GET", "/api/v1/recommendations", "", 200, []any{"recommendations", 0, "id"}, recPending},
		{"GET", "/api/v1/recommendations/" + recDone, "", 200, []any{"state"}, "done"},
		{"POST", "/api/v1/recommendations/" + recPending + "/approve", `{"note":"go"}`, 200, []any{"note"}, "go"},
		{"POST", "/api/v1/recommendations/" + recGuard + "/reject", "", 200, []any{"decided_by"}, "local"},
		{"GET", "/api/v1/executions", "", 200, []any{"executions", 0, "steps", 0, "state"}, "succeeded"},
		{"GET", "/api/v1/executions/" + execWithout, "", 200, []any{"outcome"}, "healthy again"},
		{"GET", "/api/v1/executions/" + execWithBundle + "/bundle", "", 200, nil, nil},
		{"GET", "/api/v1/executions/" + execWithBundle + "/root-cause", "", 200, []any{"suspects", 0, "evidence", 0, "text"}, "Out of memory"},
		{"GET", "/api/v1/deadletters", "", 200, []any{"deadletters", 0, "samples", 0, "values", "load_1m"}, 1.0},
		{"GET", "/api/v1/deadletters/7", "", 200, []any{"reason"}, "field type conflict"},
		{"POST", "/api/v1/deadletters/7/retry", "", 200, []any{"id"}, "7"},
		{"GET", "/api/v1/policy", "", 200, []any{"refused", "reason"}, "line 3: mode"},
		{"GET", "/api/v1/policy/explain?host=sim-host1&action=recycle", "", 200, []any{"explanations", 0, "reasons", 0}, "it needs the approval of a person"},
		{"GET", "/api/v1/policy/explain?host=sim-host1&approved=true", "", 200, []any{"explanations", 0, "allowed"}, true},
		{"POST", "/api/v1/hosts/sim-host1/cordon", `{"reason":"new memory"}`, 201, []any{"reason"}, "new memory"},
		{"GET", "/api/v1/hosts/sim-host1", "", 200, []any{"cordon", "by"}, "local"},
		{"DELETE", "/api/v1/hosts/sim-host1/cordon", "", 200, []any{"lifted_by"}, "local"},
		{"DELETE", "/api/v1/hosts/sim-host2", "", 200, []any{"id"}, "sim-host2"},
		{"POST", "/api/v1/freezes", `{"host":"sim-host1","reason":"look at it","seconds":60}`, 201, []any{"by"}, "local"},
		{"GET", "/api/v1/freezes", "", 200, []any{"freezes", 0, "reason"}, "look at it"},
		{"DELETE", "/api/v1/freezes/01J3FREEZE0", "", 200, []any{"host"}, "sim-host1"},
		{"POST", "/api/v1/executions", `{"host":"sim-host1","action":"recycle","reason":"maintenance","dry_run":true}`, 202, []any{"dry_run"}, true},
		{"POST", "/api/v1/executions", `{"host":"sim-host1","action":"recycle","reason":"maintenance"}`, 202, []any{"requested_by"}, "local"},
	} {
		a := s.ask(c.method, c.path, c.body)
		if a.StatusCode != c.status || a.field(c.at...) != c.want {
			t.Errorf("%s %s: %d, %v is %v, want %v", c.method, c.path, a.StatusCode, c.at, a.field(c.at...), c.want)
		}
	}
}

func TestAnswersInDetail(t *testing.T) {
	s := newSite(t)
	a := s.ask("GET", "/api/v1/executions/"+execWithBundle+"/bundle", "")
	if got := a.Header.Get("Content-Disposition"); string(a.body) != "not really zstd" || got != `attachment; filename="01J1BUNDLE.tar.zst"` {
		t.Errorf("bundle: %q as %s", a.body, got)
	}
	if a := s.ask("GET", "/api/v1/executions/"+execWithBundle+"/root-cause?format=markdown", ""); string(a.body) != "# Host: out of memory\n" {
		t.Errorf("the root cause in Markdown: %s", a.body)
	}
	if a := s.ask("POST", "/api/v1/executions/"+execWithout+"/cancel", "{}"); a.StatusCode != 409 || !strings.Contains(string(a.body), "succeeded already") {
		t.Errorf("cancelled what had ended: %d %s", a.StatusCode, a.body)
	}
	s.fake.execs[1].State = fleet.ExecutionPending
	if a := s.ask("POST", "/api/v1/executions/"+execWithout+"/cancel", ""); a.StatusCode != 200 || a.field("outcome") != "cancelled by local" {
		t.Errorf("cancelled: %d %s", a.StatusCode, a.body)
	}
	s.fake.execs[1].State = fleet.ExecutionMigrating
	if a := s.ask("POST", "/api/v1/executions/"+execWithout+"/cancel", ""); a.StatusCode != 200 || a.field("cancelled_by") != "local" || a.field("state") != "migrating" {
		t.Errorf("told to stop: %d %s", a.StatusCode, a.body)
	}
	a = s.ask("POST", "/api/v1/executions", `{"host":"sim-host1","action":"hand-over","reason":"look at it"}`)
	if b := s.ask("GET", a.Header.Get("Location"), ""); b.field("id") != a.field("id") || b.field("reason") != "look at it" {
		t.Errorf("Location %q leads to %s", a.Header.Get("Location"), b.body)
	}
	s.fake.hosts, s.fake.recs, s.fake.execs, s.fake.points = nil, nil, nil, nil
	for _, name := range []string{"hosts", "recommendations", "executions"} {
		if a := s.ask("GET", "/api/v1/"+name, ""); strings.TrimSpace(string(a.body)) != `{"`+name+`":[]}` {
			t.Errorf("none of %s: %s", name, a.body)
		}
	}
}

func TestReadiness(t *testing.T) {
	s := newSite(t)
	s.fake.degraded = map[string]string{"influx": "connection refused"}
	if a := s.ask("GET", "/readyz", ""); a.StatusCode != 200 || a.field("degraded", "influx") != "connection refused" {
		t.Errorf("degraded: %d %s", a.StatusCode, a.body)
	}
	s.fake.essential = map[string]string{"bus": "not connected"}
	if a := s.ask("GET", "/readyz", ""); a.StatusCode != 503 || a.field("not_ready", "bus") != "not connected" {
		t.Errorf("not ready: %d %s", a.StatusCode, a.body)
	}
}

func TestListsAreCut(t *testing.T) {
	s := newSite(t)
	ids := func(a answer, what string) (out []string) {
		for _, x := range list(a.field(what)) {
			out = append(out, x.(map[string]any)["id"].(string))
		}
		return out
	}
	for query, want := range map[string][]string{
		"host=" + realHost:            {recGuard},
		"state=done":                  {recDone},
		"limit=2":                     {recPending, recGuard},
		"before=" + recExpired:        {recDone},
		"state=pending&host=nowhere":  nil,
		"state=pending&limit=1":       {recPending},
		"state=&host=&limit=&before=": {recPending, recGuard, recExpired, recDone},
	} {
		if got := ids(s.ask("GET", "/api/v1/recommendations?"+query, ""), "recommendations"); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	if got := ids(s.ask("GET", "/api/v1/executions?state=succeeded&limit=1", ""), "executions"); !slices.Equal(got, []string{execWithBundle}) {
		t.Errorf("executions: %v", got)
	}
	for query, detail := range map[string]string{
		"limit=0": "1 to 1000", "limit=1001": "1 to 1000", "limit=-1": "1 to 1000", "limit=ten": "1 to 1000", "limit=99999999999999999999": "1 to 1000", "state=pendng": "superseded",
	} {
		s.want(s.ask("GET", "/api/v1/recommendations?"+query, ""), 400, detail)
	}
	s.want(s.ask("GET", "/api/v1/executions?state=approved", ""), 400, "handed-over")
}

// access is the least role for each route, "" where nobody needs any.
var access = map[string]Role{
	"GET /healthz": "", "GET /readyz": "", "GET /": "", "GET /app.js": "", "GET /dom.js": "", "GET /format.js": "", "GET /style.css": "", "GET /icon.svg": "",
	"GET /api/v1/openapi.json":                 RoleViewer,
	"GET /api/v1/hosts":                        RoleViewer,
	"GET /api/v1/hosts/:id":                    RoleViewer,
	"DELETE /api/v1/hosts/:id":                 RoleAdmin,
	"GET /api/v1/hosts/:id/prediction":         RoleViewer,
	"GET /api/v1/hosts/:id/telemetry":          RoleViewer,
	"GET /api/v1/recommendations":              RoleViewer,
	"GET /api/v1/recommendations/:id":          RoleViewer,
	"POST /api/v1/recommendations/:id/reject":  RoleOperator,
	"POST /api/v1/recommendations/:id/approve": RoleApprover,
	"GET /api/v1/executions":                   RoleViewer,
	"POST /api/v1/executions":                  RoleOperator,
	"GET /api/v1/executions/:id":               RoleViewer,
	"POST /api/v1/executions/:id/cancel":       RoleOperator,
	"GET /api/v1/executions/:id/bundle":        RoleViewer,
	"GET /api/v1/executions/:id/root-cause":    RoleViewer,
	"GET /api/v1/events":                       RoleViewer,
	"GET /api/v1/policy":                       RoleViewer,
	"GET /api/v1/policy/explain":               RoleViewer,
	"GET /api/v1/freezes":                      RoleViewer,
	"POST /api/v1/hosts/:id/cordon":            RoleOperator,
	"DELETE /api/v1/hosts/:id/cordon":          RoleOperator,
	"POST /api/v1/freezes":                     RoleOperator,
	"DELETE /api/v1/freezes/:id":               RoleApprover,
	"GET /api/v1/deadletters":                  RoleViewer,
	"GET /api/v1/deadletters/:id":              RoleViewer,
	"POST /api/v1/deadletters/:id/retry":       RoleOperator,
	"GET /api/v1/models":                       RoleViewer,
	"POST /api/v1/models":                      RoleAdmin,
	"POST /api/v1/models/train":                RoleApprover,
	"POST /api/v1/models/rollback":             RoleApprover,
	"GET /api/v1/models/shadow":                RoleViewer,
	"GET /api/v1/models/drift":                 RoleViewer,
	"GET /api/v1/models/:id":                   RoleViewer,
	"GET /api/v1/models/:id/file":              RoleViewer,
	"POST /api/v1/models/:id/promote":          RoleApprover,
	"POST /api/v1/models/:id/retire":           RoleApprover,
	"GET /api/v1/jobs":                         RoleViewer,
	"GET /api/v1/jobs/:id":                     RoleViewer,
	"POST /api/v1/jobs/:id/cancel":             RoleOperator,
	"GET /api/v1/incidents":                    RoleViewer,
	"POST /api/v1/incidents":                   RoleOperator,
}

func TestEveryRouteForEveryRole(t *testing.T) {
	s := newSite(t, withTokens)
	server, err := New(Config{Fleet: s.fake, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, r := range server.echo.Routes() {
		if r.Method == echo.RouteNotFound {
			continue
		}
		least, ok := access[r.Method+" "+r.Path]
		if !ok {
			t.Errorf("%s %s is in no table of roles", r.Method, r.Path)
			continue
		}
		seen++
		id, body := simHost, ""
		switch {
		case strings.Contains(r.Path, "recommendations"):
			id = recPending
		case strings.Contains(r.Path, "executions"):
			id = execWithBundle
		}
		if r.Path == "/api/v1/executions" && r.Method == "POST" {
			body = `{"host":"sim-host1","action":"hand-over","reason":"look"}`
		}
		if strings.HasPrefix(r.Path, "/api/v1/deadletters") {
			id = "7"
		}
		switch {
		case strings.HasPrefix(r.Path, "/api/v1/models"):
			id = modelID
		case strings.HasPrefix(r.Path, "/api/v1/jobs"):
			id = jobID
		}
		switch r.Method + " " + r.Path {
		case "POST /api/v1/models":
			body = "a model file"
		case "POST /api/v1/models/train", "POST /api/v1/models/rollback":
			body = `{"kind":"anomaly"}`
		case "POST /api/v1/incidents":
			body = `{"host":"sim-host1","from":"2026-01-01T00:00:00Z","to":"2026-01-01T01:00:00Z"}`
		case "POST /api/v1/freezes":
			body = `{"fleet":true,"reason":"look"}`
		case "POST /api/v1/hosts/:id/cordon":
			body = `{"reason":"look"}`
		case "DELETE /api/v1/freezes/:id":
			id = "01J3FREEZE"
		}
		path := strings.Replace(r.Path, ":id", id, 1)
		if strings.HasSuffix(path, "explain") {
			path += "?host=" + simHost
		}
		if strings.HasSuffix(path, "telemetry") {
			path += "?metric=memory_used_ratio"
		}
		for role, n := range map[Role]int{"": 0, "forged": 0, RoleViewer: 1, RoleOperator: 2, RoleApprover: 3, RoleAdmin: 4} {
			s.fake.mu.Lock()
			*s.fake.rec(recPending) = newFake().recs[0]
			s.fake.bundle = io.NopCloser(strings.NewReader("bundle"))
			s.fake.frozen = []fleet.Freeze{{ID: "01J3FREEZE"}}
			s.fake.hosts[1].Cordon = &fleet.Cordon{Host: simHost, Simulated: true}
			for i := range s.fake.execs {
				if strings.HasSuffix(path, "/cancel") && s.fake.execs[i].ID == execWithBundle {
					s.fake.execs[i].State = fleet.ExecutionPending
				}
			}
			s.fake.mu.Unlock()
			var header []string
			if role != "" {
				header = []string{"Authorization", "Bearer " + string(role)}
			}
			want := []int{200, 201, 202}
			switch {
			case least == "":
			case n == 0:
				want = []int{401}
			case n < rank[least]:
				want = []int{403}
			}
			var a answer
			if path == eventsPath {
				a = s.peek(path, header...)
			} else {
				a = s.ask(r.Method, path, body, header...)
			}
			if !slices.Contains(want, a.StatusCode) {
				t.Errorf("%s %s as %q: %d %s, want %v", r.Method, path, role, a.StatusCode, a.body, want)
			}
			if got := a.Header.Get("WWW-Authenticate"); (a.StatusCode == 401) != (got == "Bearer") {
				t.Errorf("%s %s as %q: %d with WWW-Authenticate %q", r.Method, path, role, a.StatusCode, got)
			}
			if a.StatusCode == 403 && !strings.Contains(string(a.body), string(least)) {
				t.Errorf("%s %s as %q: %s does not name the role that it needs", r.Method, path, role, a.body)
			}
		}
	}
	if seen != len(access) {
		t.Errorf("%d routes are registered, the table of roles has %d", seen, len(access))
	}
}

func (f *fake) rec(id string) *fleet.Recommendation {
	return &f.recs[slices.IndexFunc(f.recs, func(r fleet.Recommendation) bool { return r.ID == id })]
}

// peek reads the head of an answer without end, and all of any other.
func (s *site) peek(path string, header ...string) answer {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), "GET", s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{Response: resp}
	if resp.StatusCode != 200 {
		a.body, _ = io.ReadAll(resp.Body)
	}
	s.hold(r, &a)
	return a
}

func TestWhoActs(t *testing.T) {
	s := newSite(t, withTokens)
	body := `{"host":"sim-host1","action":"%s","reason":"look"}`
	for role, status := range map[Role]int{RoleOperator: 403, RoleApprover: 202, RoleAdmin: 202} {
		for _, action := range fleet.Actions()[1:] {
			want := status
			if action == fleet.ActionHandOver {
				want = 202
			}
			a := s.ask("POST", "/api/v1/executions", fmt.Sprintf(body, action), "Authorization", "Bearer "+string(role))
			s.want(a, want, "the-"+string(role))
		}
	}
	a := s.ask("POST", "/api/v1/recommendations/"+recPending+"/approve", "", "Authorization", "bearer  approver")
	if a.field("decided_by") != "the-approver" {
		t.Errorf("approved by %v: %s", a.field("decided_by"), a.body)
	}
	for _, header := range []string{"", "Bearer", "Bearer ", "Basic dmlld2VyOg==", "viewer", "Bearer viewer admin", "Bearer Viewer"} {
		s.want(s.ask("GET", "/api/v1/hosts", "", "Authorization", header), 401, "Authorization: Bearer TOKEN")
	}
}

func TestTokensMustBeUsable(t *testing.T) {
	sum := strings.Repeat("AB", 32)
	for name, tokens := range map[string]map[string]Identity{
		"plain text": {"secret": {"a", RoleAdmin}}, "short": {"abcd": {"a", RoleAdmin}}, "role": {sum: {"a", "root"}}, "no role": {sum: {"a", ""}}, "no name": {sum: {"", RoleAdmin}},
	} {
		if _, err := New(Config{Fleet: newFake(), Log: quiet(), Tokens: tokens}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Config{Log: quiet()}); err == nil {
		t.Error("a server without a fleet")
	}
	// Capital hex digits are the same hash.
	hash := sha256.Sum256([]byte("viewer"))
	s := newSite(t, func(c *Config) {
		c.Tokens = map[string]Identity{strings.ToUpper(hex.EncodeToString(hash[:])): {"v", RoleViewer}}
	})
	s.want(s.ask("GET", "/api/v1/hosts", "", "Authorization", "Bearer viewer"), 200, realHost)
}

func TestBadRequests(t *testing.T) {
	s := newSite(t)
	const approve, execs = "/api/v1/recommendations/" + recPending + "/approve", "/api/v1/executions"
	good := `{"host":"sim-host1","action":"recycle","reason":"x"}`
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		detail             string
	}{
		"unknown host":             {"GET", "/api/v1/hosts/nowhere", "", 404, "nowhere"},
		"unknown host, prediction": {"GET", "/api/v1/hosts/nowhere/prediction", "", 404, "nowhere"},
		"unknown host, telemetry":  {"GET", "/api/v1/hosts/nowhere/telemetry?metric=x", "", 404, "nowhere"},
		"hostile host":             {"GET", "/api/v1/hosts/..%2F..%2Fetc", "", 404, "no host"},
		"no sample yet":            {"GET", "/api/v1/hosts/" + silentHost + "/prediction", "", 404, "has not sent a sample yet"},
		"unknown recommendation":   {"GET", "/api/v1/recommendations/x", "", 404, "no recommendation"},
		"unknown to approve":       {"POST", "/api/v1/recommendations/x/approve", "", 404, "no recommendation"},
		"unknown to reject":        {"POST", "/api/v1/recommendations/x/reject", "", 404, "no recommendation"},
		"unknown execution":        {"GET", "/api/v1/executions/x", "", 404, "no execution"},
		"unknown dead letter":      {"GET", "/api/v1/deadletters/8", "", 404, "no dead letter"},
		"retry of none":            {"POST", "/api/v1/deadletters/8/retry", "{}", 404, "no dead letter"},
		"cancel none":              {"POST", "/api/v1/executions/x/cancel", "", 404, "no execution"},
		"cancel with force":        {"POST", "/api/v1/executions/x/cancel", `{"force":true}`, 400, "force"},
		"root cause of none":       {"GET", "/api/v1/executions/" + execWithout + "/root-cause", "", 404, "has no diagnostics"},
		"root cause as a poem":     {"GET", "/api/v1/executions/" + execWithBundle + "/root-cause?format=poem", "", 400, "poem"},
		"explain without a host":   {"GET", "/api/v1/policy/explain", "", 400, "host"},
		"explain no host":          {"GET", "/api/v1/policy/explain?host=nowhere", "", 404, "nowhere"},
		"explain no action":        {"GET", "/api/v1/policy/explain?host=sim-host1&action=explode", "", 400, "explode"},
		"explain none":             {"GET", "/api/v1/policy/explain?host=sim-host1&action=none", "", 400, "none"},
		"explain half approved":    {"GET", "/api/v1/policy/explain?host=sim-host1&approved=perhaps", "", 400, "true or false"},
		"cordon nothing":           {"POST", "/api/v1/hosts/nope/cordon", `{"reason":"x"}`, 404, "no host"},
		"cordon without a reason":  {"POST", "/api/v1/hosts/sim-host1/cordon", `{"reason":" "}`, 400, "reason must say why"},
		"lift no cordon":           {"DELETE", "/api/v1/hosts/sim-host1/cordon", "", 404, "not cordoned"},
		"freeze nothing":           {"POST", "/api/v1/freezes", `{"reason":"x"}`, 400, "one of host, fault_domain and fleet"},
		"freeze two":               {"POST", "/api/v1/freezes", `{"fleet":true,"host":"sim-host1","reason":"x"}`, 400, "one of host"},
		"freeze without a reason":  {"POST", "/api/v1/freezes", `{"fleet":true}`, 400, "reason must say why"},
		"freeze until long ago":    {"POST", "/api/v1/freezes", `{"fleet":true,"reason":"x","seconds":-1}`, 400, "not between"},
		"freeze for ever and ever": {"POST", "/api/v1/freezes", `{"fleet":true,"reason":"x","seconds":1e300}`, 400, "not between"},
		"freeze a hostile host":    {"POST", "/api/v1/freezes", `{"host":"../x","reason":"x"}`, 400, "host"},
		"lift none":                {"DELETE", "/api/v1/freezes/x", "", 404, "no freeze"},
		"retry with a body":        {"POST", "/api/v1/deadletters/7/retry", `{"force":true}`, 400, "force"},
		"limit of dead letters":    {"GET", "/api/v1/deadletters?limit=0", "", 400, "limit"},
		"unknown bundle":           {"GET", "/api/v1/executions/x/bundle", "", 404, "no execution"},
		"no bundle":                {"GET", "/api/v1/executions/" + execWithout + "/bundle", "", 404, "has no diagnostics"},
		"expired":                  {"POST", "/api/v1/recommendations/" + recExpired + "/approve", "", 410, "was valid until"},
		"expired to reject":        {"POST", "/api/v1/recommendations/" + recExpired + "/reject", "", 410, "was valid until"},
		"done":                     {"POST", "/api/v1/recommendations/" + recDone + "/approve", "", 409, "is done already"},
		"guard":                    {"POST", "/api/v1/recommendations/" + recGuard + "/approve", "", 409, "freeze switch"},
		"malformed":                {"POST", approve, `{"note":`, 400, "at byte 8"},
		"not JSON":                 {"POST", approve, `note=1`, 400, "at byte"},
		"unknown key":              {"POST", approve, `{"nota":"x"}`, 400, `unknown field \"nota\"`},
		"trailing value":           {"POST", approve, `{"note":"x"} {}`, 400, "goes on after its JSON value, at byte 12"},
		"trailing brace":           {"POST", approve, `{"note":"x"}}`, 400, "goes on after"},
		"trailing text":            {"POST", approve, `{"note":"x"} x`, 400, "goes on after"},
		"array":                    {"POST", approve, `[]`, 400, "send an object"},
		"text":                     {"POST", approve, `"note"`, 400, "send an object"},
		"number for a note":        {"POST", approve, `{"note":1}`, 400, "note is a number"},
		"long note":                {"POST", approve, `{"note":"` + strings.Repeat("x", 4097) + `"}`, 400, "at most 4096"},
		"10 MB":                    {"POST", approve, `{"note":"` + strings.Repeat("x", 10<<20) + `"}`, 413, "larger than 1048576 bytes"},
		"10 MB of nothing":         {"POST", approve, strings.Repeat(" ", 10<<20), 413, "larger than 1048576 bytes"},
		"10 MB to execute":         {"POST", execs, strings.Repeat("[", 10<<20), 413, "larger than 1048576 bytes"},
		"deep":                     {"POST", execs, strings.Repeat("[", 1<<19), 400, "JSON"},
		"no body":                  {"POST", execs, "", 400, "is empty"},
		"null":                     {"POST", execs, "null", 400, "host"},
		"no host":                  {"POST", execs, `{"action":"recycle","reason":"x"}`, 400, "host name is empty"},
		"bad host":                 {"POST", execs, `{"host":"a/b","action":"recycle","reason":"x"}`, 400, "only letters"},
		"host nobody knows":        {"POST", execs, `{"host":"ab","action":"recycle","reason":"x"}`, 404, "no host"},
		"no action":                {"POST", execs, `{"host":"sim-host1","reason":"x"}`, 400, "preserving-reset"},
		"action none":              {"POST", execs, `{"host":"sim-host1","action":"none","reason":"x"}`, 400, "preserving-reset"},
		"unknown action":           {"POST", execs, `{"host":"sim-host1","action":"rm","reason":"x"}`, 400, "preserving-reset"},
		"no reason":                {"POST", execs, `{"host":"sim-host1","action":"recycle"}`, 400, "audit trail"},
		"blank reason":             {"POST", execs, `{"host":"sim-host1","action":"recycle","reason":" \n"}`, 400, "audit trail"},
		"long reason":              {"POST", execs, `{"host":"sim-host1","action":"recycle","reason":"` + strings.Repeat("x", 4097) + `"}`, 400, "audit trail"},
		"busy":                     {"POST", execs, strings.Replace(good, simHost, realHost, 1), 409, "busy"},
		"unknown route":            {"GET", "/nothing", "", 404, "openapi.json"},
		"unknown route of the API": {"GET", "/api/v1/nothing", "", 404, "openapi.json"},
		"file of the page":         {"GET", "/web/app.js", "", 404, "openapi.json"},
		"outside of the page":      {"GET", "/..%2Fopenapi.json", "", 404, "openapi.json"},
		"slash at the end":         {"GET", "/api/v1/hosts/", "", 404, ""},
		"wrong method":             {"DELETE", "/api/v1/hosts", "", 405, "DELETE is not possible here"},
		"wrong method of a page":   {"POST", "/", "", 405, "GET"},
		"approve by GET":           {"GET", approve, "", 405, "POST"},
		"stream by POST":           {"POST", eventsPath, "", 405, "GET"},
	} {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			a := s.ask(c.method, c.path, c.body)
			s.want(a, c.status, c.detail)
			if c.status == 405 && a.Header.Get("Allow") == "" {
				t.Error("a 405 without Allow")
			}
		})
	}
	if r := s.fake.rec(recPending); r.State != fleet.RecommendationPending {
		t.Errorf("a bad request made it %s", r.State)
	}
	// A client that goes away in the middle is not told that something went wrong inside.
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /api/v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 400 ") || !strings.Contains(string(text), "could not be read to its end") {
		t.Errorf("half a model: %.300s, %v", text, err)
	}
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json-patch+json", "nonsense;;"} {
		s.want(s.ask("POST", execs, good, "Content-Type", kind), 415, "send application/json")
	}
	for _, kind := range []string{"application/json", "Application/JSON; charset=utf-8"} {
		s.want(s.ask("POST", execs, good, "Content-Type", kind), 202, "")
	}
	// curl sends this type with an empty body.
	s.want(s.ask("POST", approve, "", "Content-Type", "application/x-www-form-urlencoded"), 200, "executing")
	s.want(s.ask("POST", approve, ""), 409, "is executing already, by local")
	s.want(s.ask("POST", strings.Replace(approve, "approve", "reject", 1), ""), 409, "is executing already, by local")
}

func TestTelemetryQueries(t *testing.T) {
	s := newSite(t)
	base := "/api/v1/hosts/" + simHost + "/telemetry"
	metric := "?metric=" + url.QueryEscape("unit_memory_bytes{a.service}")
	for query, want := range map[string]struct {
		status int
		detail string
	}{
		"":                                 {400, "metric is missing"},
		"?metric=":                         {400, "metric is missing"},
		"?metric=nonsense":                 {404, "has no series"},
		metric + "&from=x":                 {400, "is not a time"},
		metric + "&to=x":                   {400, "is not a time"},
		metric + "&from=5m":                {400, "is not a time"},
		metric + "&from=-99999999h&to=now": {400, "is not a time"},
		metric + "&from=NaN":               {400, "is not a time"},
		metric + "&from=1e300":             {400, "is not a time"},
		metric + "&from=now":               {400, "must be before"},
		metric + "&from=-1m&to=-2m":        {400, "must be before"},
		metric + "&from=0001-01-01T00:00:00Z&step=100000h":        {400, "must be within"},
		metric + "&from=-1m&to=9999-01-01T00:00:00Z&step=100000h": {400, "must be within"},
		metric + "&step=x":            {400, "is not a duration"},
		metric + "&step=-1s":          {400, "is not a duration"},
		metric + "&step=10":           {400, "is not a duration"},
		metric + "&from=-48h":         {400, "ask for at most 24h0m0s of them, or for a step of 2s or more"},
		metric + "&from=-1h&step=1ns": {400, "ask for a step of 1s or more"},
		metric + "&from=0&step=1s":    {400, "ask for a step of"},
		metric + "&from=-48h&step=2s": {200, ""},
		metric + "&from=-24h&to=now":  {200, ""},
		metric + "&from=0&step=24h":   {200, ""},
		metric + "&from=1767323045.5&to=2026-01-02T04:04:05.25%2B01:00&step=250ms": {400, "must be before"},
		metric + "&from=1767323045.5&to=2026-01-02T04:04:15+01:00&step=250ms":      {200, ""},
	} {
		s.want(s.ask("GET", base+query, ""), want.status, want.detail)
	}
	s.fake.asked = nil
	before := time.Now()
	s.ask("GET", base+metric, "")
	a := s.ask("GET", base+metric+"&from=1767323045.5&to=2026-01-02T04:04:15%2B01:00&step=250ms", "")
	if a.field("metric") != "unit_memory_bytes{a.service}" || a.field("step_s") != 0.25 || a.field("from") != "2026-01-02T03:04:05.5Z" || a.field("to") != "2026-01-02T03:04:15Z" {
		t.Errorf("the answer repeats another question: %s", a.body)
	}
	if len(s.fake.asked) != 2 {
		t.Fatalf("the history was asked %d times", len(s.fake.asked))
	}
	if q := s.fake.asked[0]; q.to.Sub(q.from) != 15*time.Minute || q.to.Before(before) || q.to.After(time.Now()) || q.step != 0 || q.host != simHost {
		t.Errorf("by default: %+v", q)
	}
	if q, want := s.fake.asked[1], (query{simHost, "unit_memory_bytes{a.service}", epoch.Add(500 * time.Millisecond), epoch.Add(10 * time.Second), 250 * time.Millisecond}); q != want {
		t.Errorf("asked for %+v, want %+v", q, want)
	}
	// A value that JSON does not have is missing, and the fleet's own slice stays as it is.
	s.fake.points = []Point{{epoch, math.NaN()}, {epoch, 1}, {epoch, math.Inf(1)}}
	if a := s.ask("GET", base+metric, ""); len(list(a.field("points"))) != 1 || a.field("points", 0, "value") != 1.0 || s.fake.points[1].Value != 1 {
		t.Errorf("NaN, 1 and infinity became %s", a.body)
	}
}

func TestWhatGoesWrongInside(t *testing.T) {
	var log bytes.Buffer
	s := newSite(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	s.fake.err = fmt.Errorf("open /secret/path: permission denied")
	a := s.ask("GET", "/api/v1/recommendations", "")
	s.want(a, 500, "the log says what")
	if strings.Contains(string(a.body), "secret") || !strings.Contains(log.String(), "/secret/path") {
		t.Errorf("answered %s, logged %s", a.body, log.String())
	}
	s.fake.err = ErrNotReady.Errorf("InfluxDB does not answer")
	s.want(s.ask("GET", "/api/v1/hosts/"+simHost+"/telemetry?metric=memory_used_ratio", ""), 503, "InfluxDB does not answer")
	s.fake.err = ErrInvalid.Errorf("the name of the host is missing")
	s.want(s.ask("POST", "/api/v1/recommendations/"+recPending+"/approve", ""), 400, "the name of the host is missing")
	log.Reset()
	s.fake.panics = true
	s.want(s.ask("GET", "/api/v1/hosts", ""), 500, "the log says what")
	if !strings.Contains(log.String(), "a secret of the inside") || !strings.Contains(log.String(), "fleet_test.go") {
		t.Errorf("the panic is not in the log: %s", log.String())
	}
}
