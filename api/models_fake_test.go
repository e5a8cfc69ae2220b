package api

import (
	"context"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const modelID, jobID = "anomaly-0123456789ab", "01J4JOB"

func fakeModel(state string) Model {
	return Model{ID: modelID, Kind: "anomaly", State: state, Since: epoch, By: "ann", Trained: epoch, Source: "test", Hosts: 3, Rows: 1000, StepS: 60,
		Series: []string{"load_1m"}, Code: "v-test", Metrics: map[string]float64{"auc_pr": 0.7}, Bytes: 300, SHA256: "00"}
}

func (f *fake) Models(context.Context) ([]Model, error) { return []Model{fakeModel("shadow")}, f.err }

func (f *fake) Model(_ context.Context, id string) (Model, error) {
	if id != modelID {
		return Model{}, ErrNotFound.Errorf("there is no model %q", id)
	}
	return fakeModel("shadow"), f.err
}

func (f *fake) ModelFile(ctx context.Context, id string) ([]byte, error) {
	_, err := f.Model(ctx, id)
	return []byte("a model"), err
}

func (f *fake) ImportModel(_ context.Context, file []byte, who, note string) (Model, error) {
	m := fakeModel("candidate")
	m.By, m.Note, m.Bytes = who, note, len(file)
	if string(file) == "nonsense" {
		return Model{}, ErrInvalid.Errorf("it is not a model of tardigrade")
	}
	return m, f.err
}

func (f *fake) PromoteModel(ctx context.Context, id string, p Promotion, who string) (Model, error) {
	m, err := f.Model(ctx, id)
	if p.From == "retired" {
		return m, ErrConflict.Errorf("it is %s by now", m.State)
	}
	m.State, m.By, m.Note = "shadow", who, p.Note
	if p.Straight {
		m.State = "champion"
	}
	return m, err
}

func (f *fake) RetireModel(ctx context.Context, id, who, note string) (Model, error) {
	m, err := f.Model(ctx, id)
	m.State, m.By, m.Note = "retired", who, note
	return m, err
}

func (f *fake) RollbackModel(_ context.Context, kind, who, note string) (Model, error) {
	m := fakeModel("champion")
	m.Kind, m.By, m.Note = kind, who, note
	return m, f.err
}

func (f *fake) Comparisons(context.Context) ([]Comparison, error) {
	defer f.lock()()
	return []Comparison{{Shadow: modelID, Promotable: f.promotable, Since: epoch, Hosts: 3, Samples: 1000, MeanChampion: 0.5, MeanShadow: 0.4, MeanDifference: -0.1, MeanAbsolute: 0.2, AlarmsChampion: 3, AlarmsShadow: 1, Incidents: 2, ForeseenChampion: 2, ForeseenShadow: 1, Why: "too early"}}, f.err
}

func (f *fake) Drifts(context.Context) ([]Drift, error) {
	return []Drift{{Model: modelID, Since: epoch, Samples: 10, Series: 1, Worst: []DriftDistance{{Series: "load_1m", PSI: 0.3, KS: 0.2}}}}, f.err
}

func fakeJob(state string) Job {
	return Job{ID: jobID, Kind: "anomaly", State: state, By: "ann", Data: "InfluxDB", Created: epoch, Done: 0.5}
}

func (f *fake) Train(_ context.Context, t Training, who string) (Job, error) {
	j := fakeJob("queued")
	j.Kind, j.By, j.Why = t.Kind, who, t.Why
	if t.Dataset != "" {
		j.Data = "the data set " + t.Dataset
	}
	return j, f.err
}

func (f *fake) Jobs(context.Context) ([]Job, error) { return []Job{fakeJob("running")}, f.err }

func (f *fake) Job(_ context.Context, id string) (Job, error) {
	if id != jobID {
		return Job{}, ErrNotFound.Errorf("there is no job %q", id)
	}
	return fakeJob("running"), f.err
}

func (f *fake) CancelJob(ctx context.Context, id, _ string) (Job, error) {
	j, err := f.Job(ctx, id)
	j.State = "cancelled"
	return j, err
}

func (f *fake) Incidents(context.Context) ([]fleet.Incident, error) {
	return []fleet.Incident{{ID: "01J5", Host: simHost, Simulated: true, From: epoch, To: epoch.Add(time.Minute), Failed: true, Signature: fleet.SignatureDisk, Source: fleet.IncidentPerson, By: "ann", Created: epoch}}, f.err
}

func (f *fake) AddIncident(_ context.Context, i fleet.Incident, who string) (fleet.Incident, error) {
	i.ID, i.By, i.Created, i.Simulated = "01J6", who, epoch, i.Host != realHost
	return i, f.err
}

func TestModelsJobsAndIncidents(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		at                 []any
		want               any
	}{
		{"GET", "/api/v1/models", "", 200, []any{"models", 0, "metrics", "auc_pr"}, 0.7},
		{"GET", "/api/v1/models/" + modelID, "", 200, []any{"state"}, "shadow"},
		{"GET", "/api/v1/models/" + modelID + "/file", "", 200, nil, nil},
		{"POST", "/api/v1/models/" + modelID + "/promote", `{"note":"go"}`, 200, []any{"note"}, "go"},
		{"POST", "/api/v1/models/" + modelID + "/promote", `{"straight":true,"from":"candidate"}`, 200, []any{"state"}, "champion"},
		{"POST", "/api/v1/models/" + modelID + "/retire", "", 200, []any{"by"}, "local"},
		{"POST", "/api/v1/models/rollback", `{"kind":"failure"}`, 200, []any{"kind"}, "failure"},
		{"GET", "/api/v1/models/shadow", "", 200, []any{"comparisons", 0, "alarms_shadow"}, 1.0},
		{"GET", "/api/v1/models/shadow", "", 200, []any{"comparisons", 0, "foreseen_champion"}, 2.0},
		{"GET", "/api/v1/models/drift", "", 200, []any{"drift", 0, "worst", 0, "psi"}, 0.3},
		{"POST", "/api/v1/models/train", `{"kind":"failure","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","hosts":["h1"]}`, 202, []any{"kind"}, "failure"},
		{"POST", "/api/v1/models/train", `{"kind":"anomaly","dataset":"fleet-7"}`, 202, []any{"data"}, "the data set fleet-7"},
		{"GET", "/api/v1/jobs", "", 200, []any{"jobs", 0, "done"}, 0.5},
		{"GET", "/api/v1/jobs/" + jobID, "", 200, []any{"state"}, "running"},
		{"POST", "/api/v1/jobs/" + jobID + "/cancel", "", 200, []any{"state"}, "cancelled"},
		{"GET", "/api/v1/incidents?host=sim-host1", "", 200, []any{"incidents", 0, "signature"}, "disk"},
		{"POST", "/api/v1/incidents", `{"host":"sim-host1","from":"2026-01-01T00:00:00Z","to":"2026-01-01T01:00:00Z","note":"it died"}`, 201, []any{"signature"}, "unknown"},
		{"POST", "/api/v1/models?note=mine", "a model file", 201, []any{"note"}, "mine"},
	} {
		a := s.ask(c.method, c.path, c.body)
		if a.StatusCode != c.status || a.field(c.at...) != c.want {
			t.Errorf("%s %s: %d, %v is %v, want %v: %s", c.method, c.path, a.StatusCode, c.at, a.field(c.at...), c.want, a.body)
		}
	}
	for _, c := range []struct{ path, body, detail string }{
		{"/models/train", `{"kind":"weather"}`, "weather"},
		{"/models/train", `{"kind":"anomaly","step_s":0.01}`, "step_s"},
		{"/models/train", `{"kind":"anomaly","from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}`, "range"},
		{"/models/train", `{"kind":"anomaly","hosts":["../etc"]}`, "hosts"},
		{"/models/train", `{"kind":"anomaly","dataset":"../bus"}`, "not a name"},
		{"/models/train", `{"kind":"anomaly","dataset":"x","hosts":["h1"]}`, "as it is"},
		{"/models/rollback", `{"kind":""}`, "kind"},
		{"/models", "", "empty"},
		{"/models", "nonsense", "not a model"},
		{"/incidents", `{"host":"h1","from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}`, "before it begins"},
		{"/incidents", `{"host":"h1","from":"2126-01-02T00:00:00Z","to":"2126-01-03T00:00:00Z"}`, "future"},
		{"/incidents", `{"host":"h1","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","signature":"gremlins"}`, "gremlins"},
		{"/incidents", `{"host":"no host","from":"2026-01-01T00:00:00Z"}`, "host"},
	} {
		s.want(s.ask("POST", "/api/v1"+c.path, c.body), 400, c.detail)
	}
	s.want(s.ask("POST", "/api/v1/models/nonsense/promote", ""), 404, "nonsense")
	s.want(s.ask("POST", "/api/v1/jobs/nonsense/cancel", ""), 404, "nonsense")
}
