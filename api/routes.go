package api

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

//go:embed web/index.html web/app.js web/style.css openapi.json
var files embed.FS

// New returns a server.
func New(cfg Config) (*Server, error) {
	if cfg.Fleet == nil || cfg.Log == nil {
		return nil, errors.New("the API needs a fleet and a log")
	}
	e := echo.New()
	s := &Server{cfg: cfg, echo: e}
	e.HTTPErrorHandler = s.fail
	e.HideBanner, e.HidePort = true, true
	e.Use(s.guardHost, s.headers)

	e.GET("/healthz", func(c echo.Context) error {
		return c.JSON(http.StatusOK, map[string]string{"status": "alive", "version": cfg.Version})
	})
	e.GET("/readyz", s.ready)
	g := e.Group("/api/v1", s.authenticate)
	g.GET("/openapi.json", func(c echo.Context) error {
		data, err := files.ReadFile("openapi.json")
		if err != nil {
			return err
		}
		return c.JSONBlob(http.StatusOK, data)
	})
	view, operate, approve := s.allow(RoleViewer), s.allow(RoleOperator), s.allow(RoleApprover)
	g.GET("/hosts", s.hosts, view)
	g.GET("/hosts/:id", s.host, view)
	g.GET("/hosts/:id/prediction", s.prediction, view)
	g.GET("/hosts/:id/telemetry", s.telemetry, view)
	g.GET("/recommendations", s.recommendations, view)
	g.GET("/recommendations/:id", s.recommendation, view)
	g.POST("/recommendations/:id/approve", s.decide(cfg.Fleet.Approve), approve)
	g.POST("/recommendations/:id/reject", s.decide(cfg.Fleet.Reject), operate)
	g.GET("/executions", s.executions, view)
	g.POST("/executions", s.execute, operate)
	g.GET("/executions/:id", s.execution, view)
	g.GET("/executions/:id/bundle", s.bundle, view)
	g.GET("/events", s.follow, view)

	web, err := fs.Sub(files, "web")
	if err != nil {
		return nil, err
	}
	e.GET("/", echo.WrapHandler(http.FileServerFS(web)))
	e.GET("/app.js", echo.WrapHandler(http.FileServerFS(web)))
	e.GET("/style.css", echo.WrapHandler(http.FileServerFS(web)))

	// A page of another site must not be able to approve anything by a visitor's
	// browser.
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(echo.NewHTTPError(http.StatusForbidden, "a page of another origin may not do this"), e.NewContext(r, w))
	}))
	s.handler = cross.Handler(e)
	return s, nil
}

// guardHost refuses requests to a loopback server in another name, which is how
// a page on the Internet would reach it (DNS rebinding).
func (s *Server) guardHost(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if len(s.cfg.Tokens) == 0 {
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

func (s *Server) headers(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		if strings.HasPrefix(c.Path(), "/api/") {
			h.Set("Cache-Control", "no-store")
		}
		return next(c)
	}
}

// authenticate finds out who asks.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if len(s.cfg.Tokens) == 0 {
			c.Set("identity", Identity{"local", RoleAdmin})
			return next(c)
		}
		token, ok := strings.CutPrefix(c.Request().Header.Get(echo.HeaderAuthorization), "Bearer ")
		if ok {
			// The map is asked for the hash, so the time it takes tells nothing of the token.
			sum := sha256.Sum256([]byte(token))
			if id, known := s.cfg.Tokens[hex.EncodeToString(sum[:])]; known {
				c.Set("identity", id)
				return next(c)
			}
		}
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, "Bearer")
		return echo.NewHTTPError(http.StatusUnauthorized, "send a valid token as 'Authorization: Bearer TOKEN'")
	}
}

func (s *Server) allow(least Role) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			id := c.Get("identity").(Identity)
			if rank[id.Role] < rank[least] {
				return echo.NewHTTPError(http.StatusForbidden, fmt.Sprintf("%s has the role %s; this needs %s", id.Name, id.Role, least))
			}
			return next(c)
		}
	}
}

func (s *Server) ready(c echo.Context) error {
	essential, degraded := s.cfg.Fleet.NotReady(c.Request().Context())
	status, word := http.StatusOK, "ready"
	if len(essential) > 0 {
		status, word = http.StatusServiceUnavailable, "not ready"
	}
	return c.JSON(status, map[string]any{"status": word, "not_ready": essential, "degraded": degraded})
}

// page cuts a list by the query's host, state, limit and before (an ID).
func page[T any](c echo.Context, all []T, id func(T) string, host func(T) fleet.HostID, state func(T) string) ([]T, error) {
	limit := 100
	if text := c.QueryParam("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			return nil, invalid("limit %q is not a number from 1 to 1000", text)
		}
		limit = n
	}
	wantHost, wantState, before := c.QueryParam("host"), c.QueryParam("state"), c.QueryParam("before")
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

func (s *Server) prediction(c echo.Context) error {
	h, err := s.find(c)
	if err != nil {
		return err
	}
	if h.Prediction == nil {
		return fmt.Errorf("host %s has not sent a sample yet, so there is no prediction: %w", h.ID, ErrNotFound)
	}
	return c.JSON(http.StatusOK, h.Prediction)
}

// maxPoints bounds the values of one answer.
const maxPoints = 100_000

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
	if least := to.Sub(from) / maxPoints; step < least && to.Sub(from) > 24*time.Hour {
		return invalid("%s of single values is too much: ask for a step of at least %s", to.Sub(from), least.Round(time.Second)+time.Second)
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
		return fmt.Errorf("host %s has no series %q; /api/v1/hosts/%s lists those it has: %w", h.ID, metric, h.ID, ErrNotFound)
	}
	points, err := s.cfg.Fleet.Telemetry(ctx, h.ID, metric, from, to, step)
	if err != nil {
		return err
	}
	if points == nil {
		points = []Point{}
	}
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
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
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

func (s *Server) recommendations(c echo.Context) error {
	all, err := s.cfg.Fleet.Recommendations(c.Request().Context())
	if err != nil {
		return err
	}
	out, err := page(c, all, func(r fleet.Recommendation) string { return r.ID }, func(r fleet.Recommendation) fleet.HostID { return r.Host },
		func(r fleet.Recommendation) string { return string(r.State) })
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
		return fmt.Errorf("there is no recommendation %q: %w", c.Param("id"), ErrNotFound)
	}
	return c.JSON(http.StatusOK, all[i])
}
