// Package api is the HTTP side of the control plane: JSON under /api/v1, a stream
// of events, and the dashboard at /. Errors are problem+json (RFC 9457) whose
// detail says what happened and what to do. It asks other packages for everything
// through the narrow interfaces below, and decides nothing itself but who may.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// HostView is a host with its newest prediction, if there is one.
type HostView struct {
	fleet.Host
	Prediction *fleet.Prediction `json:"prediction,omitempty"`
	// Cordon is set while no VM may be moved to the host.
	Cordon *fleet.Cordon `json:"cordon,omitempty"`
}

// Point is one value of a series, the mean over a step that begins at Time.
type Point struct {
	Time  time.Time `json:"time"`
	Value float64   `json:"value"`
}

// Event is a change: Kind is host, host.removed, prediction, recommendation, execution, freeze,
// cordon, model, drift, job or incident, and Data the record as its own route shows it, on one line.
type Event struct {
	Kind string
	ID   string
	Data json.RawMessage
}

// Hosts is the inventory.
type Hosts interface {
	Hosts(ctx context.Context) ([]HostView, error)
	Host(ctx context.Context, id fleet.HostID) (HostView, error)
	// RemoveHost forgets a host that is silent. who is the caller.
	RemoveHost(ctx context.Context, id fleet.HostID, who string) (HostView, error)
}

// Cordons keep VMs from being moved to hosts. who is the caller.
type Cordons interface {
	Cordon(ctx context.Context, host fleet.HostID, reason, who string) (fleet.Cordon, error)
	Uncordon(ctx context.Context, host fleet.HostID, who string) (fleet.Cordon, error)
}

// Telemetry is the history of series. A step of 0 asks for every value.
type Telemetry interface {
	Series(ctx context.Context, host fleet.HostID) ([]string, error)
	Telemetry(ctx context.Context, host fleet.HostID, series string, from, to time.Time, step time.Duration) ([]Point, error)
}

// Recommendations is what was recommended, newest first.
type Recommendations interface {
	Recommendations(ctx context.Context) ([]fleet.Recommendation, error)
	Approve(ctx context.Context, id, who, note string) (fleet.Recommendation, error)
	Reject(ctx context.Context, id, who, note string) (fleet.Recommendation, error)
}

// Executions is what was done, newest first.
type Executions interface {
	Executions(ctx context.Context) ([]fleet.Execution, error)
	// Execute begins an action, or with dryRun says what would be done.
	Execute(ctx context.Context, host fleet.HostID, action fleet.Action, reason, who string, dryRun bool) (fleet.Execution, error)
	// Cancel stops an execution; one that is not final then ends once its agent has
	// brought what it is at to an end.
	Cancel(ctx context.Context, id, who string) (fleet.Execution, error)
	Bundle(ctx context.Context, execution fleet.Execution) (io.ReadCloser, error)
	// RootCause is what the diagnostics of an execution conclude, and the same in
	// Markdown.
	RootCause(ctx context.Context, execution fleet.Execution) (RootCause, string, error)
}

// RootCause is what may have happened on a host, the most likely first.
type RootCause struct {
	Host      fleet.HostID `json:"host"`
	Simulated bool         `json:"simulated"`
	Execution string       `json:"execution"`
	// From and To are the window in which a fault counts as fresh.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Lines is how many lines were searched, and BaselineLines with how many from
	// before they were compared.
	Lines         int       `json:"lines"`
	BaselineLines int       `json:"baseline_lines"`
	Suspects      []Suspect `json:"suspects"`
}

// Suspect is something that may be the cause.
type Suspect struct {
	Rule  string          `json:"rule"`
	Class fleet.Signature `json:"class"`
	Title string          `json:"title"`
	// Score orders suspects; it is in 0..1 and is no probability.
	Score float64 `json:"score"`
	// Count is how many lines in the window say so.
	Count    int        `json:"count"`
	Culprits []string   `json:"culprits"`
	First    time.Time  `json:"first,omitzero"`
	Last     time.Time  `json:"last,omitzero"`
	Evidence []Evidence `json:"evidence"`
	Advice   string     `json:"advice,omitempty"`
}

// Evidence is a line of a file in the diagnostics, counted from 1.
type Evidence struct {
	File string    `json:"file"`
	Line int       `json:"line"`
	Time time.Time `json:"time,omitzero"`
	Text string    `json:"text"`
}

// PolicyView is the policy in force.
type PolicyView struct {
	// Revision identifies what it says.
	Revision string `json:"revision"`
	// Source is the file that it comes from, or "the configuration".
	Source string    `json:"source"`
	Since  time.Time `json:"since"`
	// Document is the policy with all defaults, as YAML.
	Document string `json:"document"`
	// Refused is the newest version of the file, where that was refused and an older
	// one goes on.
	Refused *RefusedPolicy `json:"refused,omitempty"`
}

// RefusedPolicy is a version that is not in force.
type RefusedPolicy struct {
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
}

// Explanation is what the guard would say to an action on a host now.
type Explanation struct {
	Host      fleet.HostID `json:"host"`
	Simulated bool         `json:"simulated"`
	Action    fleet.Action `json:"action"`
	Allowed   bool         `json:"allowed"`
	// Possible is false where the host's agent cannot do it; then a person is called.
	Possible bool `json:"possible"`
	// Reasons says what is in the way, one sentence each.
	Reasons []string `json:"reasons"`
	// Policy is the revision of the policy that decided.
	Policy string        `json:"policy"`
	Rules  []RuleFinding `json:"rules"`
}

// RuleFinding says whether one of the guard's rules lets an action through.
type RuleFinding struct {
	Rule   string `json:"rule"`
	Passed bool   `json:"passed"`
}

// Guard is what may be done now.
type Guard interface {
	Policy(ctx context.Context) (PolicyView, error)
	// Explain asks for one action, or for each where action is "". approved asks as
	// if a person had approved it at this instant.
	Explain(ctx context.Context, host fleet.HostID, action fleet.Action, approved bool) ([]Explanation, error)
	// Freezes lists what is frozen, oldest first. Freeze takes where, why, by whom and
	// until when.
	Freezes(ctx context.Context) ([]fleet.Freeze, error)
	Freeze(ctx context.Context, f fleet.Freeze) (fleet.Freeze, error)
	Lift(ctx context.Context, id, who string) (fleet.Freeze, error)
}

// DeadLetter is telemetry that InfluxDB refuses for good, with the reason.
type DeadLetter struct {
	ID   string       `json:"id"`
	Time time.Time    `json:"time"`
	Host fleet.HostID `json:"host"`
	// Simulated is true for telemetry of a host that does not exist.
	Simulated bool   `json:"simulated"`
	Reason    string `json:"reason"`
	Bytes     int    `json:"bytes"`
	// Samples are the samples in it, empty where it is damaged.
	Samples []DeadSample `json:"samples"`
}

// DeadSample is one of its samples.
type DeadSample struct {
	Time   time.Time          `json:"time"`
	Values map[string]float64 `json:"values"`
}

// DeadLetters is what could not be stored, oldest first.
type DeadLetters interface {
	DeadLetters(ctx context.Context, limit int) ([]DeadLetter, error)
	DeadLetter(ctx context.Context, id string) (DeadLetter, error)
	// RetryDeadLetter puts it back on its way to InfluxDB.
	RetryDeadLetter(ctx context.Context, id, who string) error
}

// Status says which components do not work, by name, with the reason, and lets a
// client follow what changes.
type Status interface {
	// NotReady tells apart what the service cannot do without and what it can.
	NotReady(ctx context.Context) (essential, degraded map[string]string)
	// Follow returns events until stop is called. The channel is closed where the
	// follower was too slow.
	Follow() (events <-chan Event, stop func())
}

// Fleet is all that the server shows.
type Fleet interface {
	Hosts
	Cordons
	Telemetry
	Recommendations
	Executions
	Guard
	DeadLetters
	Models
	Incidents
	Status
}

// Kind is a kind of the errors that a Fleet answers with: the HTTP status for the caller.
type Kind int

// The kinds.
const (
	ErrInvalid  Kind = http.StatusBadRequest
	ErrNotFound Kind = http.StatusNotFound
	ErrConflict Kind = http.StatusConflict
	ErrExpired  Kind = http.StatusGone
	ErrNotReady Kind = http.StatusServiceUnavailable
)

func (k Kind) Error() string { return http.StatusText(int(k)) }

// Errorf returns an error of the kind whose text is for the caller as it is.
func (k Kind) Errorf(format string, args ...any) error {
	return ofKind{fmt.Errorf(format, args...), k}
}

type ofKind struct {
	error
	kind Kind
}

func (e ofKind) Unwrap() []error { return []error{e.error, e.kind} }

// Role is what a caller may do. Each role may do what the ones before it may.
type Role string

// The roles.
const (
	RoleViewer   Role = "viewer"   // read
	RoleOperator Role = "operator" // reject, freeze, and hand a host over to a person
	RoleApprover Role = "approver" // approve, lift a freeze, and ask for any execution
	RoleAdmin    Role = "admin"
)

var rank = map[Role]int{RoleViewer: 1, RoleOperator: 2, RoleApprover: 3, RoleAdmin: 4}

// Identity is who a token stands for.
type Identity struct {
	Name string
	Role Role
}

// Config sets up a [Server].
type Config struct {
	Fleet   Fleet
	Version string
	// Tokens maps the hex SHA-256 of a token to whom it stands for. Without any,
	// every caller is "local" with the role admin, and must ask in the name of
	// the loopback address.
	Tokens map[string]Identity
	Log    *slog.Logger
}

// Server answers HTTP requests. It is safe for concurrent use.
type Server struct {
	cfg     Config
	tokens  map[string]Identity
	echo    *echo.Echo
	handler http.Handler
	// closing ends when the server does, and with it the streams of events.
	closing context.Context
	close   context.CancelFunc
}

// CheckExposure refuses to serve beyond the loopback address without TLS and
// tokens.
func CheckExposure(addr string, tls bool, tokens int) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("api.listen %q is not ADDRESS:PORT: %w", addr, err)
	}
	if loopback(host) {
		return nil
	}
	if !tls {
		return fmt.Errorf("api.listen %q is reachable from other machines: configure api.tls (cert, key), or listen on 127.0.0.1", addr)
	}
	if tokens == 0 {
		return fmt.Errorf("api.listen %q is reachable from other machines: configure api.tokens, or listen on 127.0.0.1", addr)
	}
	return nil
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Handler is the whole server as a handler.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on l until ctx ends. Then it ends the streams of events, lets
// other requests finish for 5 s, and returns when none is left. A server serves
// once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	requests, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return requests },
	}
	finished := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(finished)
		s.close()
		limited, cancel := context.WithTimeout(requests, 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(limited); err != nil {
			abort()
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-finished
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return nil
}

// problem is the body of an error (RFC 9457).
type problem struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail"`
	Instance string `json:"instance"`
}

// fail writes an error. What went wrong inside is logged, not shown. An answer
// that had begun is cut off, so that nobody takes the part for the whole.
func (s *Server) fail(err error, c echo.Context) {
	if c.Response().Committed {
		s.cfg.Log.Warn("answer cut off", "method", c.Request().Method, "path", c.Request().URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	status, detail := http.StatusInternalServerError, "something went wrong inside; the log says what"
	var h *echo.HTTPError
	var large *http.MaxBytesError
	var kind Kind
	switch {
	case errors.As(err, &large):
		status, detail = http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", large.Limit)
	case errors.As(err, &h):
		status, detail = h.Code, fmt.Sprint(h.Message)
		switch {
		case detail != http.StatusText(status):
		case status == http.StatusNotFound:
			detail = "there is nothing at this address; /api/v1/openapi.json lists what there is"
		case status == http.StatusMethodNotAllowed:
			detail = fmt.Sprintf("%s is not possible here; what is: %s", c.Request().Method, c.Response().Header().Get(echo.HeaderAllow))
		}
	case errors.As(err, &kind):
		status, detail = int(kind), err.Error()
	default:
		s.cfg.Log.Error("request failed", "method", c.Request().Method, "path", c.Request().URL.Path, "err", err)
	}
	body, _ := json.Marshal(problem{"about:blank", http.StatusText(status), status, detail, c.Request().URL.Path})
	c.Response().Header().Del(echo.HeaderContentDisposition)
	c.Response().Header().Set(echo.HeaderContentType, "application/problem+json")
	c.Response().WriteHeader(status)
	c.Response().Write(append(body, '\n'))
}

func invalid(format string, args ...any) error { return ErrInvalid.Errorf(format, args...) }

// maxBody bounds a request.
const maxBody = 1 << 20

// readBody reads a body of at most so many bytes.
func readBody(c echo.Context, most int64) ([]byte, error) {
	// The bare writer lets net/http close the connection instead of reading on.
	data, err := io.ReadAll(http.MaxBytesReader(c.Response().Writer, c.Request().Body, most))
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, large
	}
	if err != nil {
		return nil, invalid("the body could not be read to its end: %v", err)
	}
	return data, nil
}

// decode reads a JSON body into v. An empty body leaves v as it is where that is
// allowed.
func decode(c echo.Context, v any, mayBeEmpty bool) error {
	r := c.Request()
	data, err := readBody(c, maxBody)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		if mayBeEmpty {
			return nil
		}
		return invalid("the body is empty; send a JSON object")
	}
	if given := r.Header.Get(echo.HeaderContentType); given != "" {
		if kind, _, err := mime.ParseMediaType(given); err != nil || kind != echo.MIMEApplicationJSON {
			return echo.NewHTTPError(http.StatusUnsupportedMediaType, fmt.Sprintf("the body is said to be %q; send application/json", given))
		}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
			return invalid("%s is a %s in the body, at byte %d; it must be a %s", wrong.Field, wrong.Value, wrong.Offset, wrong.Type.Kind())
		} else if ok {
			return invalid("the body is a JSON %s; send an object", wrong.Value)
		}
		at := d.InputOffset()
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = syntax.Offset
		} else if errors.Is(err, io.ErrUnexpectedEOF) {
			at = int64(len(data))
		}
		return invalid("the body is not the JSON that is expected here, at byte %d: %s", at, strings.TrimPrefix(err.Error(), "json: "))
	}
	end := d.InputOffset()
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("the body goes on after its JSON value, at byte %d", end)
	}
	return nil
}
