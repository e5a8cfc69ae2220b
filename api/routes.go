package api

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

//go:embed web/*.html web/*.js web/*.css web/*.svg openapi.json
var files embed.FS

// New returns a server.
func New(cfg Config) (*Server, error) {
	if cfg.Fleet == nil || cfg.Log == nil {
		return nil, errors.New("the API needs a fleet and a log")
	}
	e := echo.New()
	s := &Server{cfg: cfg, tokens: make(map[string]Identity, len(cfg.Tokens)), echo: e}
	for sum, id := range cfg.Tokens {
		if raw, err := hex.DecodeString(sum); err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("the token of %q is not given as 64 hex digits of its SHA-256 (printf %%s TOKEN | sha256sum)", id.Name)
		}
		if rank[id.Role] == 0 || id.Name == "" {
			return nil, fmt.Errorf("the token of %q needs a name and a role (viewer, operator, approver, admin), not %q", id.Name, id.Role)
		}
		s.tokens[strings.ToLower(sum)] = id
	}
	s.closing, s.close = context.WithCancel(context.Background())
	e.HTTPErrorHandler = s.fail
	e.HideBanner, e.HidePort = true, true
	e.Use(s.contain, s.guardHost)

	e.GET("/healthz", func(c echo.Context) error {
		return c.JSON(http.StatusOK, map[string]string{"status": "alive", "version": cfg.Version})
	})
	e.GET("/readyz", s.ready)
	// Each route names the least role for itself; a group's middleware would turn
	// a wrong method into a 404.
	view, operate, approve := s.allow(RoleViewer), s.allow(RoleOperator), s.allow(RoleApprover)
	g := e.Group("/api/v1")
	g.GET("/openapi.json", func(c echo.Context) error {
		data, err := files.ReadFile("openapi.json")
		if err != nil {
			return err
		}
		return c.JSONBlob(http.StatusOK, data)
	}, view)
	g.GET("/hosts", s.hosts, view)
	g.GET("/hosts/:id", s.host, view)
	g.DELETE("/hosts/:id", s.removeHost, s.allow(RoleAdmin))
	g.GET("/hosts/:id/prediction", s.prediction, view)
	g.GET("/hosts/:id/telemetry", s.telemetry, view)
	g.POST("/hosts/:id/cordon", s.cordon, operate)
	g.DELETE("/hosts/:id/cordon", s.uncordon, operate)
	g.GET("/recommendations", s.recommendations, view)
	g.GET("/recommendations/:id", s.recommendation, view)
	g.POST("/recommendations/:id/approve", s.decide(cfg.Fleet.Approve), approve)
	g.POST("/recommendations/:id/reject", s.decide(cfg.Fleet.Reject), operate)
	g.GET("/executions", s.executions, view)
	g.POST("/executions", s.execute, operate)
	g.GET("/executions/:id", s.execution, view)
	g.POST("/executions/:id/cancel", s.cancel, operate)
	g.GET("/executions/:id/bundle", s.bundle, view)
	g.GET("/executions/:id/root-cause", s.rootCause, view)
	g.GET("/policy", s.policy, view)
	g.GET("/policy/explain", s.explain, view)
	g.GET("/freezes", s.freezes, view)
	g.POST("/freezes", s.freeze, operate)
	g.DELETE("/freezes/:id", s.lift, approve)
	g.GET("/deadletters", s.deadLetters, view)
	g.GET("/deadletters/:id", s.deadLetter, view)
	g.POST("/deadletters/:id/retry", s.retryDeadLetter, operate)
	s.routeModels(g, view, operate, approve, s.allow(RoleAdmin))
	g.GET(strings.TrimPrefix(eventsPath, "/api/v1"), s.follow, view)

	web, err := fs.Sub(files, "web")
	if err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(web, ".")
	if err != nil {
		return nil, err
	}
	for _, f := range entries {
		path := "/" + strings.TrimSuffix(f.Name(), "index.html")
		e.GET(path, echo.WrapHandler(http.FileServerFS(web)))
	}

	// A page of another site must not be able to approve anything by a visitor's
	// browser.
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(echo.NewHTTPError(http.StatusForbidden, "a page of another origin may not do this"), e.NewContext(r, w))
	}))
	s.handler = s.frame(cross.Handler(e))
	return s, nil
}

// patience is how long a client may take to read what it asked for; where an
// answer is long, each piece of it.
const patience = 30 * time.Second

// frame does what holds for every request.
func (s *Server) frame(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		// Where the deadline is not supported, nothing is written to a network.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience))
		if r.Method == http.MethodHead && r.URL.Path != eventsPath {
			// net/http leaves the body away.
			r = r.Clone(r.Context())
			r.Method = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

// contain turns a panic into an error, for the log and for a 500.
func (s *Server) contain(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if v := recover(); v == http.ErrAbortHandler {
				panic(v)
			} else if v != nil {
				err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
		}()
		return next(c)
	}
}

// guardHost refuses requests to a loopback server in another name, which is how
// a page on the Internet would reach it (DNS rebinding).
func (s *Server) guardHost(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if len(s.tokens) == 0 {
			name := c.Request().Host
			if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
				name = name[:i]
			}
			if !loopback(strings.Trim(name, "[]")) {
				return echo.NewHTTPError(http.StatusForbidden, fmt.Sprintf("this server answers as localhost only, not as %q", c.Request().Host))
			}
		}
		return next(c)
	}
}

// authenticate finds out who asks.
func (s *Server) authenticate(r *http.Request) (Identity, bool) {
	if len(s.tokens) == 0 {
		return Identity{"local", RoleAdmin}, true
	}
	scheme, token, _ := strings.Cut(r.Header.Get(echo.HeaderAuthorization), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return Identity{}, false
	}
	// The map is asked for the hash, so the time it takes tells nothing of the token.
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	id, ok := s.tokens[hex.EncodeToString(sum[:])]
	return id, ok
}

// allow lets through who has at least a role, as the context's "identity".
func (s *Server) allow(least Role) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			id, ok := s.authenticate(c.Request())
			if !ok {
				c.Response().Header().Set(echo.HeaderWWWAuthenticate, "Bearer")
				return echo.NewHTTPError(http.StatusUnauthorized, "send a valid token as 'Authorization: Bearer TOKEN'")
			}
			if rank[id.Role] < rank[least] {
				return echo.NewHTTPError(http.StatusForbidden, fmt.Sprintf("%s has the role %s; this needs %s", id.Name, id.Role, least))
			}
			c.Set("identity", id)
			return next(c)
		}
	}
}

func (s *Server) ready(c echo.Context) error {
	essential, degraded := s.cfg.Fleet.NotReady(c.Request().Context())
	if essential == nil {
		essential = map[string]string{}
	}
	if degraded == nil {
		degraded = map[string]string{}
	}
	status, word := http.StatusOK, "ready"
	if len(essential) > 0 {
		status, word = http.StatusServiceUnavailable, "not ready"
	}
	return c.JSON(status, map[string]any{"status": word, "not_ready": essential, "degraded": degraded})
}

// page cuts a list by the query's host, state (one of states), limit and before
// (an ID).
func page[T any, S ~string](c echo.Context, all []T, id func(T) string, host func(T) fleet.HostID, state func(T) S, states []S) ([]T, error) {
	limit := 100
	if text := c.QueryParam("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			return nil, invalid("limit %q is not a number from 1 to 1000", text)
		}
		limit = n
	}
	wantHost, wantState, before := c.QueryParam("host"), S(c.QueryParam("state")), c.QueryParam("before")
	if wantState != "" && !slices.Contains(states, wantState) {
		return nil, invalid("state %q is not one of %v", wantState, states)
	}
	out := []T{}
	for _, v := range all {
		if wantHost != "" && string(host(v)) != wantHost || wantState != "" && state(v) != wantState || before != "" && id(v) >= before {
			continue
		}
		if out = append(out, v); len(out) == limit {
			break
		}
	}
	return out, nil
}

func (s *Server) hosts(c echo.Context) error {
	all, err := s.cfg.Fleet.Hosts(c.Request().Context())
	if err != nil {
		return err
	}
	if all == nil {
		all = []HostView{}
	}
	return c.JSON(http.StatusOK, map[string]any{"hosts": all})
}

func (s *Server) find(c echo.Context) (HostView, error) {
	return s.cfg.Fleet.Host(c.Request().Context(), fleet.HostID(c.Param("id")))
}

func (s *Server) host(c echo.Context) error {
	h, err := s.find(c)
	if err != nil {
		return err
	}
	series, err := s.cfg.Fleet.Series(c.Request().Context(), h.ID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, struct {
		HostView
		Series []string `json:"series"`
	}{h, series})
}

func (s *Server) removeHost(c echo.Context) error {
	h, err := s.cfg.Fleet.RemoveHost(c.Request().Context(), fleet.HostID(c.Param("id")), c.Get("identity").(Identity).Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, h)
}

func (s *Server) prediction(c echo.Context) error {
	h, err := s.find(c)
	if err != nil {
		return err
	}
	if h.Prediction == nil {
		return ErrNotFound.Errorf("host %s has not sent a sample yet, so there is no prediction", h.ID)
	}
	return c.JSON(http.StatusOK, h.Prediction)
}

// One answer has at most maxPoints means over steps, or single values of maxRaw.
const (
	maxPoints = 100_000
	maxRaw    = 24 * time.Hour
)

// leastStep is the least step in whole seconds for a span.
func leastStep(span time.Duration) time.Duration {
	return (span / maxPoints).Truncate(time.Second) + time.Second
}

// The range of times in which nanoseconds since 1970 fit 64 bits.
var earliest, latest = time.Unix(0, 0).UTC(), time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)

func (s *Server) telemetry(c echo.Context) error {
	h, err := s.find(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	now := time.Now().UTC()
	from, err := instant(c.QueryParam("from"), now.Add(-15*time.Minute), now)
	if err != nil {
		return err
	}
	to, err := instant(c.QueryParam("to"), now, now)
	if err != nil {
		return err
	}
	if !from.Before(to) {
		return invalid("from (%s) must be before to (%s)", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	var step time.Duration
	if text := c.QueryParam("step"); text != "" {
		if step, err = time.ParseDuration(text); err != nil || step < 0 {
			return invalid("step %q is not a duration such as 10s or 5m", text)
		}
	}
	if from.Before(earliest) || to.After(latest) {
		return invalid("from and to must be within %s and %s", earliest.Format(time.RFC3339), latest.Format(time.RFC3339))
	}
	if span := to.Sub(from); step == 0 && span > maxRaw {
		return invalid("%s of single values is too much: ask for at most %s of them, or for a step of %s or more", span, maxRaw, leastStep(span))
	} else if step > 0 && span/step > maxPoints {
		return invalid("a step of %s over %s is more than %d points: ask for a step of %s or more", step, span, maxPoints, leastStep(span))
	}
	series, err := s.cfg.Fleet.Series(ctx, h.ID)
	if err != nil {
		return err
	}
	metric := c.QueryParam("metric")
	if metric == "" {
		return invalid("metric is missing: name one of the %d series that /api/v1/hosts/%s lists", len(series), h.ID)
	}
	if !slices.Contains(series, metric) {
		return ErrNotFound.Errorf("host %s has no series %q; /api/v1/hosts/%s lists those it has", h.ID, metric, h.ID)
	}
	points, err := s.cfg.Fleet.Telemetry(ctx, h.ID, metric, from, to, step)
	if err != nil {
		return err
	}
	// What JSON cannot carry is missing.
	points = slices.DeleteFunc(append([]Point{}, points...), func(p Point) bool { return math.IsNaN(p.Value) || math.IsInf(p.Value, 0) })
	return c.JSON(http.StatusOK, map[string]any{"host": h.ID, "simulated": h.Simulated, "metric": metric, "from": from, "to": to, "step_s": step.Seconds(), "points": points})
}

// instant reads RFC 3339, Unix seconds, or a time relative to now such as -15m.
func instant(text string, otherwise, now time.Time) (time.Time, error) {
	if text == "" {
		return otherwise, nil
	}
	if text == "now" {
		return now, nil
	}
	// A + that was not escaped in the query arrives as a space.
	if t, err := time.Parse(time.RFC3339Nano, strings.ReplaceAll(text, " ", "+")); err == nil {
		return t.UTC(), nil
	}
	if d, err := time.ParseDuration(text); err == nil && strings.HasPrefix(text, "-") {
		return now.Add(d), nil
	}
	if n, err := strconv.ParseFloat(text, 64); err == nil && n >= 0 && n < 1e11 {
		whole, part := math.Modf(n)
		return time.Unix(int64(whole), int64(part*1e9)).UTC(), nil
	}
	return time.Time{}, invalid("%q is not a time: write RFC 3339 (2026-01-02T15:04:05Z), Unix seconds, or a time ago (-15m)", text)
}

var recommendationStates = []fleet.RecommendationState{
	fleet.RecommendationPending, fleet.RecommendationDryRun, fleet.RecommendationApproved, fleet.RecommendationExecuting, fleet.RecommendationRejected,
	fleet.RecommendationExpired, fleet.RecommendationSuperseded, fleet.RecommendationBlocked, fleet.RecommendationDone,
}

func (s *Server) recommendations(c echo.Context) error {
	all, err := s.cfg.Fleet.Recommendations(c.Request().Context())
	if err != nil {
		return err
	}
	out, err := page(c, all, func(r fleet.Recommendation) string { return r.ID }, func(r fleet.Recommendation) fleet.HostID { return r.Host },
		func(r fleet.Recommendation) fleet.RecommendationState { return r.State }, recommendationStates)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"recommendations": out})
}

func (s *Server) recommendation(c echo.Context) error {
	all, err := s.cfg.Fleet.Recommendations(c.Request().Context())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(r fleet.Recommendation) bool { return r.ID == c.Param("id") })
	if i < 0 {
		return ErrNotFound.Errorf("there is no recommendation %q", c.Param("id"))
	}
	return c.JSON(http.StatusOK, all[i])
}
