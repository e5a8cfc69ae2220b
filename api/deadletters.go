package api

import (
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"
)

const mostDeadLetters = 1000

func (s *Server) deadLetters(c echo.Context) error {
	limit := 100
	if text := c.QueryParam("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > mostDeadLetters {
			return invalid("limit %q is not a number from 1 to %d", text, mostDeadLetters)
		}
		limit = n
	}
	all, err := s.cfg.Fleet.DeadLetters(c.Request().Context(), limit)
	if err != nil {
		return err
	}
	if all == nil {
		all = []DeadLetter{}
	}
	return c.JSON(http.StatusOK, map[string]any{"deadletters": all})
}

func (s *Server) deadLetter(c echo.Context) error {
	d, err := s.cfg.Fleet.DeadLetter(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, d)
}

// retryDeadLetter takes no body but an empty one or {}.
func (s *Server) retryDeadLetter(c echo.Context) error {
	var body struct{}
	if err := decode(c, &body, true); err != nil {
		return err
	}
	id := c.Param("id")
	if err := s.cfg.Fleet.RetryDeadLetter(c.Request().Context(), id, c.Get("identity").(Identity).Name); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]string{"id": id, "status": "on its way to InfluxDB again"})
}
