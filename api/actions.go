package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
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

func (s *Server) executions(c echo.Context) error {
	all, err := s.cfg.Fleet.Executions(c.Request().Context())
	if err != nil {
		return err
	}
	out, err := page(c, all, func(e fleet.Execution) string { return e.ID }, func(e fleet.Execution) fleet.HostID { return e.Host },
		func(e fleet.Execution) string { return string(e.State) })
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
		return fleet.Execution{}, fmt.Errorf("there is no execution %q: %w", c.Param("id"), ErrNotFound)
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
	if body.Reason == "" || len(body.Reason) > 4096 {
		return invalid("reason must say why, in 1 to 4096 bytes: it goes into the audit trail")
	}
	id := c.Get("identity").(Identity)
	if rank[id.Role] < rank[RoleApprover] && body.Action != fleet.ActionHandOver {
		return echo.NewHTTPError(http.StatusForbidden, fmt.Sprintf("%s has the role %s: to act on a host without a recommendation needs %s", id.Name, id.Role, RoleApprover))
	}
	e, err := s.cfg.Fleet.Execute(c.Request().Context(), body.Host, body.Action, body.Reason, id.Name)
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderLocation, "/api/v1/executions/"+e.ID)
	return c.JSON(http.StatusAccepted, e)
}

func (s *Server) bundle(c echo.Context) error {
	e, err := s.findExecution(c)
	if err != nil {
		return err
	}
	if e.Bundle == "" {
		return fmt.Errorf("execution %s has no diagnostics: Phase 2 did not run: %w", e.ID, ErrNotFound)
	}
	r, err := s.cfg.Fleet.Bundle(c.Request().Context(), e)
	if err != nil {
		return err
	}
	defer r.Close()
	c.Response().Header().Set(echo.HeaderContentDisposition, fmt.Sprintf("attachment; filename=%q", e.ID+".tar.zst"))
	return c.Stream(http.StatusOK, "application/zstd", r)
}

// keepAlive is how often an idle event stream shows that it lives.
const keepAlive = 15 * time.Second

// follow streams events (HTML's server-sent events): one for each change.
func (s *Server) follow(c echo.Context) error {
	events, stop := s.cfg.Fleet.Follow()
	defer stop()
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/event-stream")
	w.Header().Set(echo.HeaderCacheControl, "no-store")
	w.WriteHeader(http.StatusOK)
	fmt.Fprint(w, "retry: 1000\n\n")
	w.Flush()
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		select {
		case <-c.Request().Context().Done():
			return nil
		case <-alive.C:
			fmt.Fprint(w, ": alive\n\n")
		case e, open := <-events:
			if !open {
				return nil // too slow: the client connects again and reads the state anew
			}
			fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.Kind, e.Data)
		}
		w.Flush()
	}
}
