package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// decide is approve or reject; the body may have a note.
func (s *Server) decide(do func(ctx context.Context, id, who, note string) (fleet.Recommendation, error)) echo.HandlerFunc {
	return func(c echo.Context) error {
		var body struct {
			Note string `json:"note"`
		}
		if err := decode(c, &body, true); err != nil {
			return err
		}
		if len(body.Note) > 4096 {
			return invalid("the note is %d bytes long, at most 4096 are allowed", len(body.Note))
		}
		rec, err := do(c.Request().Context(), c.Param("id"), c.Get("identity").(Identity).Name, body.Note)
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, rec)
	}
}

var executionStates = []fleet.ExecutionState{
	fleet.ExecutionPending, fleet.ExecutionRecycling, fleet.ExecutionDiagnosing, fleet.ExecutionResetting, fleet.ExecutionMigrating,
	fleet.ExecutionSucceeded, fleet.ExecutionDegraded, fleet.ExecutionHandedOver, fleet.ExecutionCancelled,
}

func (s *Server) executions(c echo.Context) error {
	all, err := s.cfg.Fleet.Executions(c.Request().Context())
	if err != nil {
		return err
	}
	out, err := page(c, all, func(e fleet.Execution) string { return e.ID }, func(e fleet.Execution) fleet.HostID { return e.Host },
		func(e fleet.Execution) fleet.ExecutionState { return e.State }, executionStates)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"executions": out})
}

func (s *Server) findExecution(c echo.Context) (fleet.Execution, error) {
	all, err := s.cfg.Fleet.Executions(c.Request().Context())
	if err != nil {
		return fleet.Execution{}, err
	}
	i := slices.IndexFunc(all, func(e fleet.Execution) bool { return e.ID == c.Param("id") })
	if i < 0 {
		return fleet.Execution{}, ErrNotFound.Errorf("there is no execution %q", c.Param("id"))
	}
	return all[i], nil
}

func (s *Server) execution(c echo.Context) error {
	e, err := s.findExecution(c)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, e)
}

// execute asks for an action on a host. The guard decides.
func (s *Server) execute(c echo.Context) error {
	var body struct {
		Host   fleet.HostID `json:"host"`
		Action fleet.Action `json:"action"`
		Reason string       `json:"reason"`
		DryRun bool         `json:"dry_run"`
	}
	if err := decode(c, &body, false); err != nil {
		return err
	}
	if err := body.Host.Validate(); err != nil {
		return invalid("host: %v", err)
	}
	if !slices.Contains(fleet.Actions(), body.Action) || body.Action == fleet.ActionNone {
		return invalid("action %q is not one of %v", body.Action, fleet.Actions()[1:])
	}
	if strings.TrimSpace(body.Reason) == "" || len(body.Reason) > 4096 {
		return invalid("reason must say why, in 1 to 4096 bytes: it goes into the audit trail")
	}
	id := c.Get("identity").(Identity)
	if rank[id.Role] < rank[RoleApprover] && body.Action != fleet.ActionHandOver {
		return echo.NewHTTPError(http.StatusForbidden, fmt.Sprintf("%s has the role %s: to act on a host without a recommendation needs %s", id.Name, id.Role, RoleApprover))
	}
	e, err := s.cfg.Fleet.Execute(c.Request().Context(), body.Host, body.Action, body.Reason, id.Name, body.DryRun)
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderLocation, "/api/v1/executions/"+e.ID)
	return c.JSON(http.StatusAccepted, e)
}

// cancel takes no body but an empty one or {}.
func (s *Server) cancel(c echo.Context) error {
	var body struct{}
	if err := decode(c, &body, true); err != nil {
		return err
	}
	e, err := s.cfg.Fleet.Cancel(c.Request().Context(), c.Param("id"), c.Get("identity").(Identity).Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, e)
}

func (s *Server) bundle(c echo.Context) error {
	e, err := s.findExecution(c)
	if err != nil {
		return err
	}
	if e.Bundle == "" {
		return ErrNotFound.Errorf("execution %s has no diagnostics, which are made where a service does not come back", e.ID)
	}
	r, err := s.cfg.Fleet.Bundle(c.Request().Context(), e)
	if err != nil {
		return err
	}
	defer r.Close()
	c.Response().Header().Set(echo.HeaderContentDisposition, fmt.Sprintf("attachment; filename=%q", e.ID+".tar.zst"))
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "application/zstd")
	if _, err := io.Copy(patient{w, http.NewResponseController(w), patience}, r); err != nil {
		return fmt.Errorf("send the diagnostics of %s: %w", e.ID, err)
	}
	return nil
}

// rootCause answers in JSON, or in Markdown where format=markdown asks for it.
func (s *Server) rootCause(c echo.Context) error {
	format := c.QueryParam("format")
	if format != "" && format != "json" && format != "markdown" {
		return invalid("format %q is not json or markdown", format)
	}
	e, err := s.findExecution(c)
	if err != nil {
		return err
	}
	if e.Bundle == "" {
		return ErrNotFound.Errorf("execution %s has no diagnostics, which are made where a service does not come back", e.ID)
	}
	cause, text, err := s.cfg.Fleet.RootCause(c.Request().Context(), e)
	if err != nil {
		return err
	}
	if format == "markdown" {
		return c.Blob(http.StatusOK, "text/markdown; charset=utf-8", []byte(text))
	}
	return c.JSON(http.StatusOK, cause)
}

// patient is a writer that gives each write its own time.
type patient struct {
	w     io.Writer
	net   *http.ResponseController
	limit time.Duration
}

func (p patient) Write(b []byte) (int, error) {
	// Where the deadline is not supported, nothing is written to a network.
	_ = p.net.SetWriteDeadline(time.Now().Add(p.limit))
	return p.w.Write(b)
}

// eventsPath is where the stream is: the one answer without an end.
const eventsPath = "/api/v1/events"

const (
	// keepAlive is how often an idle event stream shows that it lives.
	keepAlive = 15 * time.Second
	// readerPatience is how long one event may take to be sent.
	readerPatience = 10 * time.Second
)

// follow streams events (HTML's server-sent events): one for each change. It ends
// when the client leaves or is too slow, or the server ends; the client connects
// again and reads the state anew.
func (s *Server) follow(c echo.Context) error {
	events, stop := s.cfg.Fleet.Follow()
	defer stop()
	w := c.Response()
	control := http.NewResponseController(w.Writer)
	out := patient{w, control, readerPatience}
	w.Header().Set(echo.HeaderContentType, "text/event-stream")
	w.WriteHeader(http.StatusOK)
	text := "retry: 1000\n\n"
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		if _, err := io.WriteString(out, text); err != nil {
			return nil // gone, or too slow
		}
		if err := control.Flush(); err != nil {
			return nil
		}
		select {
		case <-c.Request().Context().Done():
			return nil
		case <-s.closing.Done():
			return nil
		case <-alive.C:
			text = ": alive\n\n"
		case e, open := <-events:
			if !open {
				return nil // too slow for the fleet
			}
			text = fmt.Sprintf("event: %s\ndata: %s\n\n", e.Kind, e.Data)
		}
	}
}
