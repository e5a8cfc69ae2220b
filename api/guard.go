package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func (s *Server) policy(c echo.Context) error {
	p, err := s.cfg.Fleet.Policy(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, p)
}

func (s *Server) explain(c echo.Context) error {
	host, action := fleet.HostID(c.QueryParam("host")), fleet.Action(c.QueryParam("action"))
	if err := host.Validate(); err != nil {
		return invalid("host: %v", err)
	}
	if action != "" && (action == fleet.ActionNone || !slices.Contains(fleet.Actions(), action)) {
		return invalid("action %q is not one of %v", action, fleet.Actions()[1:])
	}
	approved := false
	switch text := c.QueryParam("approved"); text {
	case "", "false":
	case "true":
		approved = true
	default:
		return invalid("approved %q is not true or false", text)
	}
	all, err := s.cfg.Fleet.Explain(c.Request().Context(), host, action, approved)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"explanations": all})
}

func (s *Server) freezes(c echo.Context) error {
	all, err := s.cfg.Fleet.Freezes(c.Request().Context())
	if err != nil {
		return err
	}
	if all == nil {
		all = []fleet.Freeze{}
	}
	return c.JSON(http.StatusOK, map[string]any{"freezes": all})
}

// longestFreeze bounds a freeze that ends by itself; one without an end has none.
const longestFreeze = 366 * 24 * time.Hour

func (s *Server) freeze(c echo.Context) error {
	var body struct {
		Host        fleet.HostID `json:"host"`
		FaultDomain string       `json:"fault_domain"`
		Fleet       bool         `json:"fleet"`
		Reason      string       `json:"reason"`
		Seconds     float64      `json:"seconds"`
	}
	if err := decode(c, &body, false); err != nil {
		return err
	}
	n := 0
	for _, set := range []bool{body.Host != "", body.FaultDomain != "", body.Fleet} {
		if set {
			n++
		}
	}
	if n != 1 {
		return invalid("say what is frozen: one of host, fault_domain and fleet (true)")
	}
	if body.Host != "" {
		if err := body.Host.Validate(); err != nil {
			return invalid("host: %v", err)
		}
	}
	if len(body.FaultDomain) > 256 {
		return invalid("fault_domain is %d bytes long, at most 256 are allowed", len(body.FaultDomain))
	}
	if strings.TrimSpace(body.Reason) == "" || len(body.Reason) > 4096 {
		return invalid("reason must say why, in 1 to 4096 bytes: it goes into the audit trail")
	}
	f := fleet.Freeze{Host: body.Host, FaultDomain: body.FaultDomain, Reason: body.Reason, By: c.Get("identity").(Identity).Name}
	// Written so that what is not a number is refused.
	if !(body.Seconds >= 0 && body.Seconds <= longestFreeze.Seconds()) {
		return invalid("seconds %v is not between 0 (until it is lifted) and %v", body.Seconds, longestFreeze.Seconds())
	}
	if body.Seconds > 0 {
		f.Until = time.Now().UTC().Add(time.Duration(body.Seconds * float64(time.Second)))
	}
	f, err := s.cfg.Fleet.Freeze(c.Request().Context(), f)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, f)
}

func (s *Server) lift(c echo.Context) error {
	f, err := s.cfg.Fleet.Lift(c.Request().Context(), c.Param("id"), c.Get("identity").(Identity).Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, f)
}

func (s *Server) cordon(c echo.Context) error {
	id := fleet.HostID(c.Param("id"))
	if err := id.Validate(); err != nil {
		return invalid("%v", err)
	}
	var body struct {
		Reason string `json:"reason"`
	}
	if err := decode(c, &body, false); err != nil {
		return err
	}
	if strings.TrimSpace(body.Reason) == "" || len(body.Reason) > 4096 {
		return invalid("reason must say why, in 1 to 4096 bytes: it goes into the audit trail")
	}
	cordon, err := s.cfg.Fleet.Cordon(c.Request().Context(), id, body.Reason, c.Get("identity").(Identity).Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, cordon)
}

func (s *Server) uncordon(c echo.Context) error {
	id := fleet.HostID(c.Param("id"))
	if err := id.Validate(); err != nil {
		return invalid("%v", err)
	}
	cordon, err := s.cfg.Fleet.Uncordon(c.Request().Context(), id, c.Get("identity").(Identity).Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, cordon)
}
