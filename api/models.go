package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Model is a version of a model, and where it stands.
type Model struct {
	ID string `json:"id"`
	// Kind is anomaly or failure.
	Kind string `json:"kind"`
	// State is candidate, shadow, champion or retired, since when, by whom and why.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	By    string    `json:"by"`
	Note  string    `json:"note,omitempty"`
	// Trained is when it was trained, on what, and by which version of the program.
	Trained time.Time `json:"trained"`
	Source  string    `json:"source"`
	From    time.Time `json:"from,omitzero"`
	To      time.Time `json:"to,omitzero"`
	Hosts   int       `json:"hosts"`
	Rows    int       `json:"rows"`
	StepS   float64   `json:"step_s"`
	Series  []string  `json:"series"`
	Code    string    `json:"code"`
	Parent  string    `json:"parent,omitempty"`
	// Metrics are of data that it was not trained on.
	Metrics map[string]float64 `json:"metrics"`
	// LeftOut says what the data could not teach it.
	LeftOut []string `json:"left_out,omitempty"`
	// Warnings say why it may not suit this fleet.
	Warnings []string `json:"warnings,omitempty"`
	Bytes    int      `json:"bytes"`
	SHA256   string   `json:"sha256"`
}

// Comparison is what a shadow made of the samples that the champion scored too.
type Comparison struct {
	Shadow string `json:"shadow"`
	// Champion is "" where each host's own detector is in use.
	Champion string    `json:"champion"`
	Since    time.Time `json:"since"`
	Hosts    int       `json:"hosts"`
	Samples  int64     `json:"samples"`
	// The means are of scores: -log10 of the tail, or the probability of failure.
	MeanChampion   float64 `json:"mean_champion"`
	MeanShadow     float64 `json:"mean_shadow"`
	MeanDifference float64 `json:"mean_difference"`
	MeanAbsolute   float64 `json:"mean_absolute_difference"`
	AlarmsChampion int64   `json:"alarms_champion"`
	AlarmsShadow   int64   `json:"alarms_shadow"`
	// Incidents is how many there were of hosts that both scored, and Foreseen before how many of
	// them each had begun an alarm, at most a horizon before.
	Incidents        int `json:"incidents"`
	ForeseenChampion int `json:"foreseen_champion"`
	ForeseenShadow   int `json:"foreseen_shadow"`
	// Promotable says whether the rule of the configuration would promote it now, and Why.
	Promotable bool   `json:"promotable"`
	Why        string `json:"why"`
}

// Drift is how far live data have moved from what a model was trained on.
type Drift struct {
	Model   string    `json:"model"`
	Since   time.Time `json:"since"`
	Samples int       `json:"samples"`
	// Ready is false while there are too few samples to judge.
	Ready   bool   `json:"ready"`
	Drifted bool   `json:"drifted"`
	Why     string `json:"why,omitempty"`
	// Shifted is how many of how many series are over the limit.
	Shifted int `json:"shifted"`
	Series  int `json:"series"`
	// Calibration is by how many powers of ten rare scores come too often, or failures more or less
	// often than the probabilities amount to.
	Calibration float64 `json:"calibration_error"`
	// Outcomes is what came of a failure model's probabilities since it is in use here; absent for an
	// anomaly model.
	Outcomes *Outcomes       `json:"outcomes,omitempty"`
	Worst    []DriftDistance `json:"worst"`
}

// Outcomes holds the probabilities of failures against what happened, over stretches of a horizon of
// each host.
type Outcomes struct {
	// Judged is how many stretches there were, and Expected how many failures the probabilities
	// amount to.
	Judged   int     `json:"judged"`
	Expected float64 `json:"expected"`
	// Failed is in how many the host failed, and Averted in how many somebody acted before.
	Failed  int `json:"failed"`
	Averted int `json:"averted"`
}

// DriftDistance is how far one series has moved.
type DriftDistance struct {
	Series string  `json:"series"`
	PSI    float64 `json:"psi"`
	KS     float64 `json:"ks"`
}

// Training is what is to be trained, on what the control plane has of a range, or on a data set.
type Training struct {
	Kind string `json:"kind"`
	// Dataset names a directory of telemetry under DATA/datasets of the control plane; "" is what
	// it has stored itself.
	Dataset string `json:"dataset,omitempty"`
	// From and To are the range; zero times mean what the configuration says, or all of a data set.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// StepS is the length in seconds of the windows whose means are learned from; 0 means 60, or the agents'
	// interval where that is more.
	StepS float64 `json:"step_s,omitempty"`
	// Hosts limits it to these; none means all.
	Hosts []fleet.HostID `json:"hosts,omitempty"`
	Why   string         `json:"why,omitempty"`
}

// Job is a training that was asked for.
type Job struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// State is queued, running, succeeded, failed, cancelled, or lost in a restart.
	State   string    `json:"state"`
	By      string    `json:"by"`
	Why     string    `json:"why,omitempty"`
	Data    string    `json:"data"`
	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Stage   string    `json:"stage,omitempty"`
	// Done is 0..1.
	Done  float64 `json:"done"`
	Error string  `json:"error,omitempty"`
	Model string  `json:"model,omitempty"`
}

// Models is the registry, and the trainings that fill it. Versions and jobs come newest first.
type Models interface {
	Models(ctx context.Context) ([]Model, error)
	Model(ctx context.Context, id string) (Model, error)
	ModelFile(ctx context.Context, id string) ([]byte, error)
	ImportModel(ctx context.Context, file []byte, who, note string) (Model, error)
	PromoteModel(ctx context.Context, id string, p Promotion, who string) (Model, error)
	RetireModel(ctx context.Context, id, who, note string) (Model, error)
	RollbackModel(ctx context.Context, kind, who, note string) (Model, error)
	Comparisons(ctx context.Context) ([]Comparison, error)
	Drifts(ctx context.Context) ([]Drift, error)
	Train(ctx context.Context, t Training, who string) (Job, error)
	Jobs(ctx context.Context) ([]Job, error)
	Job(ctx context.Context, id string) (Job, error)
	CancelJob(ctx context.Context, id, who string) (Job, error)
}

// Incidents are the labels, newest first.
type Incidents interface {
	Incidents(ctx context.Context) ([]fleet.Incident, error)
	// AddIncident fills in the ID and who says so.
	AddIncident(ctx context.Context, i fleet.Incident, who string) (fleet.Incident, error)
}

func (s *Server) routeModels(g *echo.Group, view, operate, approve, admin echo.MiddlewareFunc) {
	f := s.cfg.Fleet
	g.GET("/models", listed("models", f.Models), view)
	g.POST("/models", s.importModel, admin)
	g.POST("/models/train", s.train, approve)
	g.POST("/models/rollback", s.rollback, approve)
	g.GET("/models/shadow", listed("comparisons", f.Comparisons), view)
	g.GET("/models/drift", listed("drift", f.Drifts), view)
	g.GET("/models/:id", one(f.Model), view)
	g.GET("/models/:id/file", s.modelFile, view)
	g.POST("/models/:id/promote", s.promote, approve)
	g.POST("/models/:id/retire", s.retire, approve)
	g.GET("/jobs", listed("jobs", f.Jobs), view)
	g.GET("/jobs/:id", one(f.Job), view)
	g.POST("/jobs/:id/cancel", s.cancelJob, operate)
	g.GET("/incidents", s.incidents, view)
	g.POST("/incidents", s.addIncident, operate)
}

// listed answers with all of something.
func listed[T any](name string, all func(context.Context) ([]T, error)) echo.HandlerFunc {
	return func(c echo.Context) error {
		out, err := all(c.Request().Context())
		if err != nil {
			return err
		}
		if out == nil {
			out = []T{}
		}
		return c.JSON(http.StatusOK, map[string]any{name: out})
	}
}

// one answers with the record of the path's id.
func one[T any](find func(context.Context, string) (T, error)) echo.HandlerFunc {
	return func(c echo.Context) error {
		out, err := find(c.Request().Context(), c.Param("id"))
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, out)
	}
}

func who(c echo.Context) string { return c.Get("identity").(Identity).Name }

// mostModel bounds a model file that is imported.
const mostModel = 64 << 20

func (s *Server) importModel(c echo.Context) error {
	r := c.Request()
	file, err := readBody(c, mostModel)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(file)) == 0 {
		return invalid("the body is empty; send a model file, as 'tardigrade train' writes it")
	}
	note := c.QueryParam("note")
	if len(note) > 4096 {
		return invalid("the note is %d bytes long, at most 4096 are allowed", len(note))
	}
	m, err := s.cfg.Fleet.ImportModel(r.Context(), file, who(c), note)
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderLocation, "/api/v1/models/"+m.ID)
	return c.JSON(http.StatusCreated, m)
}

func (s *Server) modelFile(c echo.Context) error {
	file, err := s.cfg.Fleet.ModelFile(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	w := c.Response()
	w.Header().Set(echo.HeaderContentDisposition, fmt.Sprintf("attachment; filename=%q", c.Param("id")+".model"))
	w.Header().Set(echo.HeaderContentType, echo.MIMEOctetStream)
	if _, err := io.Copy(patient{w, http.NewResponseController(w), patience}, bytes.NewReader(file)); err != nil {
		return fmt.Errorf("send the model %s: %w", c.Param("id"), err)
	}
	return nil
}

// note is the body of a change.
// Promotion takes a version one step further: a candidate becomes shadow, a shadow champion.
type Promotion struct {
	Note string `json:"note"`
	// Straight goes to champion at once.
	Straight bool `json:"straight"`
	// From is the state of the version as it was seen. A version that is in another one by now is
	// left there, so that a request which is sent twice takes one step.
	From string `json:"from"`
}

func (s *Server) promote(c echo.Context) error {
	var p Promotion
	if err := decodeNote(c, &p, &p.Note); err != nil {
		return err
	}
	m, err := s.cfg.Fleet.PromoteModel(c.Request().Context(), c.Param("id"), p, who(c))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, m)
}

func (s *Server) retire(c echo.Context) error {
	var n struct {
		Note string `json:"note"`
	}
	if err := decodeNote(c, &n, &n.Note); err != nil {
		return err
	}
	m, err := s.cfg.Fleet.RetireModel(c.Request().Context(), c.Param("id"), who(c), n.Note)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, m)
}

func (s *Server) rollback(c echo.Context) error {
	var n struct {
		Kind string `json:"kind"`
		Note string `json:"note"`
	}
	if err := decode(c, &n, false); err != nil {
		return err
	}
	if err := kind(n.Kind); err != nil {
		return err
	}
	if len(n.Note) > 4096 {
		return invalid("the note is %d bytes long, at most 4096 are allowed", len(n.Note))
	}
	m, err := s.cfg.Fleet.RollbackModel(c.Request().Context(), n.Kind, who(c), n.Note)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, m)
}

func decodeNote(c echo.Context, into any, text *string) error {
	if err := decode(c, into, true); err != nil {
		return err
	}
	if len(*text) > 4096 {
		return invalid("the note is %d bytes long, at most 4096 are allowed", len(*text))
	}
	return nil
}

func kind(k string) error {
	if k != "anomaly" && k != "failure" {
		return invalid("kind %q is not anomaly or failure", k)
	}
	return nil
}

// datasetName has nothing that a path could be made of.
var datasetName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (s *Server) train(c echo.Context) error {
	var t Training
	if err := decode(c, &t, false); err != nil {
		return err
	}
	if err := kind(t.Kind); err != nil {
		return err
	}
	switch {
	case !t.From.IsZero() && t.From.Before(earliest), t.To.After(latest), !t.To.IsZero() && !t.To.After(t.From):
		return invalid("the range from %s to %s is empty or beyond what can be stored", t.From.Format(time.RFC3339), t.To.Format(time.RFC3339))
	case t.StepS != 0 && !(t.StepS >= 1 && t.StepS <= 3600):
		return invalid("step_s %v is out of range: 1 to 3600 seconds", t.StepS)
	case t.Dataset != "" && !datasetName.MatchString(t.Dataset):
		return invalid("dataset %q is not a name of 1 to 64 letters, digits, '-' and '_'", t.Dataset)
	case t.Dataset != "" && (t.StepS != 0 || len(t.Hosts) > 0):
		return invalid("a data set is taken as it is: leave step_s and hosts out")
	case len(t.Why) > 4096:
		return invalid("why is %d bytes long, at most 4096 are allowed", len(t.Why))
	case len(t.Hosts) > 10_000:
		return invalid("%d hosts, at most 10000 can be named; leave hosts out for all", len(t.Hosts))
	}
	for _, h := range t.Hosts {
		if err := h.Validate(); err != nil {
			return invalid("hosts: %v", err)
		}
	}
	j, err := s.cfg.Fleet.Train(c.Request().Context(), t, who(c))
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderLocation, "/api/v1/jobs/"+j.ID)
	return c.JSON(http.StatusAccepted, j)
}

func (s *Server) cancelJob(c echo.Context) error {
	var none struct{}
	if err := decode(c, &none, true); err != nil {
		return err
	}
	j, err := s.cfg.Fleet.CancelJob(c.Request().Context(), c.Param("id"), who(c))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, j)
}

func (s *Server) incidents(c echo.Context) error {
	all, err := s.cfg.Fleet.Incidents(c.Request().Context())
	if err != nil {
		return err
	}
	out, err := page(c, all, func(i fleet.Incident) string { return i.ID }, func(i fleet.Incident) fleet.HostID { return i.Host },
		func(i fleet.Incident) string { return string(i.Source) }, incidentSources)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"incidents": out})
}

var incidentSources = []string{string(fleet.IncidentPerson), string(fleet.IncidentExecution), string(fleet.IncidentCrash)}

// addIncident takes the word of a person. Without to, the incident is over now; without a
// signature it is unknown.
func (s *Server) addIncident(c echo.Context) error {
	var body struct {
		Host      fleet.HostID    `json:"host"`
		From      time.Time       `json:"from"`
		To        time.Time       `json:"to"`
		Seen      time.Time       `json:"seen"`
		Failed    *bool           `json:"failed"`
		Signature fleet.Signature `json:"signature"`
		Note      string          `json:"note"`
	}
	if err := decode(c, &body, false); err != nil {
		return err
	}
	now := time.Now().UTC()
	i := fleet.Incident{Host: body.Host, From: body.From.UTC(), To: body.To.UTC(), Seen: body.Seen.UTC(), Failed: body.Failed == nil || *body.Failed,
		Signature: body.Signature, Note: body.Note, Source: fleet.IncidentPerson}
	if body.To.IsZero() {
		i.To = now
	}
	if i.Signature == "" {
		i.Signature = fleet.SignatureUnknown
	}
	if err := i.Validate(now); err != nil {
		return invalid("%v", err)
	}
	if i.From.Before(earliest) || !i.Seen.IsZero() && (i.Seen.After(i.From) || i.Seen.Before(earliest)) {
		return invalid("from must be after %s, and seen not after from", earliest.Format(time.RFC3339))
	}
	got, err := s.cfg.Fleet.AddIncident(c.Request().Context(), i, who(c))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, got)
}
