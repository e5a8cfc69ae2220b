package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/datasets/telemetry"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/jobs"
	"github.com/tardigrade-recovery/tardigrade/model/anomaly"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/model/stream"
)

// TestMain is also the process of a training.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "training" {
		if err := jobs.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "endless" {
		fmt.Printf(`{"stage":"process %d","done":0.5}`+"\n", os.Getpid())
		time.Sleep(time.Hour) // longer than any test
	}
	os.Exit(m.Run())
}

var modelSeries = []string{"load_1m", "cpu_busy_ratio"}

// lively lets the host of a world have series that move.
func (w *world) lively() {
	r := rand.New(rand.NewPCG(1, 2))
	w.names = append(slices.Clone(modelSeries), fleet.SeriesName("unit_active", unit), fleet.SeriesName("unit_healthy", unit))
	w.moving = func() []float64 { return []float64{2 + 0.1*r.NormFloat64(), 0.3 + 0.02*r.NormFloat64()} }
}

// trained is a model file of two series around a mean.
func trained(t *testing.T, series []string, load float64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	rows := make([][]float64, 400)
	for i := range rows {
		rows[i] = []float64{load + 0.1*r.NormFloat64(), 0.3 + 0.02*r.NormFloat64()}
	}
	d, err := stream.New(anomaly.Method, 2, stream.Config{Learn: 400})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Fit(rows); err != nil {
		t.Fatal(err)
	}
	state, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	file, err := registry.Encode(registry.Header{Kind: registry.KindAnomaly, Trained: time.Now().UTC(), Source: "test", Series: series, Code: "test", Metrics: map[string]float64{},
		Reference: drift.NewReference(series, len(rows), func(r, c int) float64 { return rows[r][c] }, nil)}, state)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func (w *world) imports(file []byte) api.Model {
	w.t.Helper()
	m, err := w.plane.ImportModel(w.t.Context(), file, "ann", "")
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) promoted(id string, straight bool) {
	w.t.Helper()
	if _, err := w.plane.PromoteModel(w.t.Context(), id, api.Promotion{Straight: straight}, "ann"); err != nil {
		w.t.Fatal(err)
	}
}

// scoredBy waits until a model scores the host.
func (w *world) scoredBy(model string) {
	w.t.Helper()
	await(w, "the host is scored by "+model, func() (any, bool) {
		h, err := w.plane.Host(w.t.Context(), w.label.ID)
		return nil, err == nil && h.Prediction != nil && h.Prediction.Model == model
	})
}

// A model of samples that are a minute apart is imported where hosts send 20 a second.
func TestAModelOfAnotherStepIsAWarning(t *testing.T) {
	w := newWorld(t)
	w.up()
	m := w.imports(trained(t, modelSeries, 2))
	if len(m.Warnings) != 0 {
		t.Errorf("of an unknown step: %q", m.Warnings)
	}
	h, state, err := registry.Decode(trained(t, modelSeries, 3))
	if err != nil {
		t.Fatal(err)
	}
	h.StepSeconds = 60
	file, err := registry.Encode(h, state)
	if err != nil {
		t.Fatal(err)
	}
	m = w.imports(file)
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], "60s apart") || !strings.Contains(m.Warnings[0], "is 0.05s here") {
		t.Errorf("the answer to the import: %q", m.Warnings)
	}
	if again, err := w.plane.Model(t.Context(), m.ID); err != nil || !slices.Equal(again.Warnings, m.Warnings) {
		t.Errorf("later: %q, %v", again.Warnings, err)
	}
	for _, c := range []struct {
		trained float64
		used    time.Duration
		warn    bool
	}{{60, time.Second, true}, {1, time.Minute, true}, {60, time.Minute, false}, {2, time.Second, false}, {1, 2 * time.Second, false}, {0, time.Second, false}} {
		if why := otherStep(c.trained, c.used); (why != "") != c.warn {
			t.Errorf("trained on %v s, used on %v: %q", c.trained, c.used, why)
		}
	}
}

// A model is imported, tried in shadow, made champion, survives a restart, and is rolled
// back; what is damaged or of another catalogue is refused, and the champion goes on.
func TestTheLifeOfAModel(t *testing.T) {
	w := newWorld(t)
	w.lively()
	w.up()
	w.learned()
	a, b := w.imports(trained(t, modelSeries, 2)), w.imports(trained(t, modelSeries, 2.01))
	w.promoted(a.ID, true)
	w.scoredBy(a.ID)
	w.promoted(b.ID, false)
	c := await(w, "the shadow is compared", func() (api.Comparison, bool) {
		all, _ := w.plane.Comparisons(t.Context())
		if len(all) == 0 {
			return api.Comparison{}, false
		}
		return all[0], all[0].Samples >= 20
	})
	if c.Shadow != b.ID || c.Champion != a.ID || c.Hosts != 1 || c.Promotable || c.Why == "" {
		t.Errorf("%+v", c)
	}
	whole := trained(t, modelSeries, 3)
	for name, file := range map[string][]byte{
		"damaged":           append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1),
		"another catalogue": trained(t, []string{"load_1m", "phlogiston_ratio"}, 2),
		"another schema":    trained(t, []string{"load_1m", "cpu_busy_ratio"}[:1:1], 2),
		"no model":          []byte("hello"),
	} {
		if m, err := w.plane.ImportModel(t.Context(), file, "ann", ""); !errors.Is(err, api.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	w.promoted(b.ID, false)
	w.scoredBy(b.ID)
	w.down()
	w.up()
	w.scoredBy(b.ID)
	if m, err := w.plane.RollbackModel(t.Context(), "anomaly", "ann", "worse"); err != nil || m.ID != a.ID {
		t.Errorf("%+v, %v", m, err)
	}
	w.scoredBy(a.ID)
	if _, err := w.plane.RollbackModel(t.Context(), "anomaly", "ann", ""); !errors.Is(err, api.ErrConflict) {
		t.Errorf("rolled back to nothing: %v", err)
	}
	// The champion's file is damaged on disk: what is in use goes on, and it is said.
	files, err := bus.OpenObjects(t.Context(), w.plane.bus, "MODELFILES")
	if err != nil {
		t.Fatal(err)
	}
	if err := files.Put(t.Context(), b.ID, []byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.plane.PromoteModel(t.Context(), b.ID, api.Promotion{Straight: true}, "ann"); err == nil {
		t.Error("a damaged version was promoted")
	}
	w.scoredBy(a.ID)
	if err := files.Put(t.Context(), a.ID, []byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	w.down()
	w.up()
	if _, degraded := w.plane.NotReady(t.Context()); !strings.Contains(degraded["models"], a.ID) {
		t.Errorf("a damaged champion is not said: %v", degraded)
	}
	w.scoredBy(plainName)
	all, err := w.plane.Models(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("%d models, %v", len(all), err)
	}
	if err := w.plane.audit.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A training reads the stream, in a process of its own, and its model is a candidate.
func TestATrainingFromTheStream(t *testing.T) {
	w := newWorld(t)
	w.lively()
	w.cfg.Agent.Interval = config.Duration(5 * time.Millisecond)
	w.up()
	w.learned()
	await(w, "some hundred samples", func() (any, bool) { return nil, w.taken.Load() > 600 })
	j, err := w.plane.Train(t.Context(), api.Training{Kind: "anomaly", StepS: 0.001}, "ann")
	if err != nil {
		t.Fatal(err)
	}
	end := func() api.Job {
		t.Helper()
		return await(w, "the end of the training", func() (api.Job, bool) {
			j, err := w.plane.Job(t.Context(), j.ID)
			return j, err == nil && !j.Ended.IsZero()
		})
	}
	if j = end(); j.State != "succeeded" || j.Model == "" {
		t.Fatalf("%+v", j)
	}
	m, err := w.plane.Model(t.Context(), j.Model)
	if err != nil || m.State != "candidate" || m.Hosts != 1 || m.Rows < 200 || !slices.Contains(m.Series, "load_1m") {
		t.Errorf("%+v, %v", m, err)
	}
	w.promoted(m.ID, true)
	w.scoredBy(m.ID)
	// One that cannot succeed says why, and the champion goes on.
	if j, err = w.plane.Train(t.Context(), api.Training{Kind: "failure"}, "ann"); err != nil {
		t.Fatal(err)
	}
	if j = end(); j.State != "failed" || !strings.Contains(j.Error, "learned") {
		t.Errorf("%+v", j)
	}
	w.scoredBy(m.ID)
}

// A shadow becomes champion by the rule where that is configured, and by a person elsewhere.
func TestAShadowIsPromotedByTheRule(t *testing.T) {
	for _, mode := range []string{"manual", "rule"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			w.lively()
			w.cfg.Model.Promote, w.cfg.Model.PromoteSamples = mode, 20
			w.up()
			w.learned()
			a, b := w.imports(trained(t, modelSeries, 2)), w.imports(trained(t, modelSeries, 2.01))
			w.promoted(a.ID, true)
			w.scoredBy(a.ID)
			w.promoted(b.ID, false)
			await(w, "the shadow has scored enough", func() (any, bool) {
				all, _ := w.plane.Comparisons(t.Context())
				return nil, len(all) == 1 && all[0].Samples >= 20
			})
			state := func() string {
				t.Helper()
				m, err := w.plane.Model(t.Context(), b.ID)
				if err != nil {
					t.Fatal(err)
				}
				return m.State
			}
			w.plane.lookAtModels(t.Context(), time.Now().Add(23*time.Hour))
			if s := state(); s != "shadow" {
				t.Errorf("before its time it is %s", s)
			}
			w.plane.lookAtModels(t.Context(), time.Now().Add(25*time.Hour))
			if want := map[string]string{"manual": "shadow", "rule": "champion"}[mode]; state() != want {
				t.Errorf("it is %s, not %s", state(), want)
			}
			if m, _ := w.plane.Model(t.Context(), b.ID); mode == "rule" && (m.By != "rule" || !strings.Contains(m.Note, "samples of 1 hosts")) {
				t.Errorf("promoted by %s: %q", m.By, m.Note)
			}
		})
	}
}

// A shadow that foresaw fewer of the incidents than the champion is left to a person, and its alarms
// alone decide where nothing happened.
func TestAShadowMustForeseeWhatTheChampionDoes(t *testing.T) {
	for name, c := range map[string]struct {
		blind    bool
		happened bool
		want     string
		why      string
		foreseen int
	}{
		"foreseen":         {false, true, "champion", "of 1 incidents it foresaw 1, and the champion 1", 1},
		"missed":           {true, true, "shadow", "of 1 incidents it foresaw 0, and the champion 1", 0},
		"nothing happened": {true, false, "champion", "0 alarms, where the champion had 1", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.Model.Promote, w.cfg.Model.PromoteSamples = "rule", 20
			w.label.DryRun = true
			busy, _ := w.pressed()
			w.up()
			w.learned()
			a, b := w.imports(foreseeing(t, false)), w.imports(foreseeing(t, c.blind))
			w.promoted(a.ID, true)
			w.promoted(b.ID, false)
			compared := func(what string, ok func(api.Comparison) bool) api.Comparison {
				t.Helper()
				return await(w, what, func() (api.Comparison, bool) {
					all, _ := w.plane.Comparisons(t.Context())
					if len(all) != 1 {
						return api.Comparison{}, false
					}
					return all[0], ok(all[0])
				})
			}
			compared("the shadow has scored a sound host", func(c api.Comparison) bool { return c.Samples >= 20 })
			happened := func(at time.Time, failed bool, source fleet.IncidentSource) {
				t.Helper()
				i := fleet.Incident{Host: w.label.ID, From: at, To: at, Failed: failed, Signature: fleet.SignatureMemoryLeak, Source: source}
				if _, err := w.plane.AddIncident(t.Context(), i, "ann"); err != nil {
					t.Fatal(err)
				}
			}
			happened(time.Now().Add(-time.Hour), true, fleet.IncidentPerson) // before they were compared
			busy.Store(0.9)
			compared("the alarms have begun", func(now api.Comparison) bool {
				return now.AlarmsChampion == 1 && (c.blind || now.AlarmsShadow == 1)
			})
			if c.happened {
				happened(time.Now(), true, fleet.IncidentCrash)
				happened(time.Now(), true, fleet.IncidentPerson) // the same once more
			} else {
				happened(time.Now(), false, fleet.IncidentExecution) // what the champion's word led to
			}
			p := compared("what happened is counted", func(now api.Comparison) bool { return now.Incidents > 0 == c.happened })
			if p.ForeseenShadow != c.foreseen || p.ForeseenChampion != p.Incidents || p.Incidents > 1 {
				t.Errorf("%+v", p)
			}
			tomorrow := time.Now().Add(25 * time.Hour)
			_, why := w.plane.rule().Allows(w.plane.roster.comparisons(w.plane.labels())[registry.KindFailure], tomorrow)
			w.plane.lookAtModels(t.Context(), tomorrow)
			if m, err := w.plane.Model(t.Context(), b.ID); err != nil || m.State != c.want || !strings.Contains(why, c.why) {
				t.Errorf("it is %s: %s, %v", m.State, why, err)
			}
		})
	}
}

// A shadow's alarm begins where that of the shadow before it is still on.
func TestAShadowInheritsNoAlarm(t *testing.T) {
	w := newWorld(t)
	w.label.DryRun = true
	busy, _ := w.pressed()
	w.up()
	w.learned()
	w.promoted(w.imports(foreseeing(t, false)).ID, true)
	busy.Store(0.9)
	for range 2 {
		id := w.imports(foreseeing(t, false)).ID
		w.promoted(id, false)
		await(w, "an alarm of the shadow "+id, func() (any, bool) {
			all, _ := w.plane.Comparisons(t.Context())
			return nil, len(all) == 1 && all[0].Shadow == id && all[0].AlarmsShadow == 1 && all[0].AlarmsChampion == 1
		})
	}
}

// A data set that lies in the data directory is trained on in place of what is stored.
func TestATrainingFromADataSet(t *testing.T) {
	w := newWorld(t)
	w.cfg.Model.Promote = "rule"
	w.up()
	if _, err := w.plane.Train(t.Context(), api.Training{Kind: "anomaly", Dataset: "lab"}, "ann"); !errors.Is(err, api.ErrInvalid) || !strings.Contains(err.Error(), "datasets/lab") {
		t.Errorf("a data set that there is not: %v", err)
	}
	begin := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	set, err := telemetry.Create(filepath.Join(w.plane.datasets, "lab"), telemetry.Manifest{Source: "test", Start: begin, Interval: 60, Series: modelSeries, Hosts: []telemetry.Host{{ID: "h7"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 600 {
		if err := set.Append(0, begin.Add(time.Duration(i)*time.Minute), "b", []float64{2 + 0.1*r.NormFloat64(), 0.3 + 0.02*r.NormFloat64()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := set.Close(nil); err != nil {
		t.Fatal(err)
	}
	half := begin.Add(5 * time.Hour)
	j, err := w.plane.Train(t.Context(), api.Training{Kind: "anomaly", Dataset: "lab", To: half}, "ann")
	if err != nil {
		t.Fatal(err)
	}
	j = await(w, "the end of the training", func() (api.Job, bool) {
		j, err := w.plane.Job(t.Context(), j.ID)
		return j, err == nil && !j.Ended.IsZero()
	})
	if j.State != "succeeded" || j.By != "ann" {
		t.Fatalf("%+v", j)
	}
	m, err := w.plane.Model(t.Context(), j.Model)
	if err != nil || m.State != "shadow" || m.Rows < 200 || m.Rows > 300 || m.To.After(half) || !strings.HasPrefix(m.Source, "the data set lab to ") {
		t.Errorf("%+v, %v", m, err)
	}
}

// A training that names no range takes that of its kind: failures are rare.
func TestATrainingTakesTheRangeOfItsKind(t *testing.T) {
	w := newWorld(t)
	w.up()
	for kind, want := range map[registry.Kind]time.Duration{registry.KindAnomaly: 24 * time.Hour, registry.KindFailure: 30 * 24 * time.Hour} {
		began, err := w.plane.Train(t.Context(), api.Training{Kind: string(kind)}, "ann")
		if err != nil {
			t.Fatal(err)
		}
		j, err := w.plane.jobs.Find(began.ID)
		if err != nil || j.To.Sub(j.From) != want || time.Since(j.To) > time.Hour {
			t.Errorf("%s: from %v to %v, %v", kind, j.From, j.To, err)
		}
	}
}

// A training that nobody wants any more is ended with its process, and the next one is done.
func TestATrainingIsCancelled(t *testing.T) {
	w := newWorld(t)
	w.trainer = []string{"endless"}
	w.lively()
	w.up()
	w.learned()
	j, err := w.plane.Train(t.Context(), api.Training{Kind: "anomaly", StepS: 0.05}, "ann")
	if err != nil {
		t.Fatal(err)
	}
	stage := await(w, "the progress of the training", func() (string, bool) {
		j, err := w.plane.Job(t.Context(), j.ID)
		return j.Stage, err == nil && j.State == "running" && strings.HasPrefix(j.Stage, "process ") && j.Done == 0.5
	})
	var pid int
	if _, err := fmt.Sscanf(stage, "process %d", &pid); err != nil || pid == os.Getpid() {
		t.Fatalf("it does not run in a process of its own: %q", stage)
	}
	if _, err := w.plane.CancelJob(t.Context(), j.ID, "bob"); err != nil {
		t.Fatal(err)
	}
	await(w, "the end of the training", func() (any, bool) {
		j, err := w.plane.Job(t.Context(), j.ID)
		return nil, err == nil && j.State == "cancelled" && j.Error == "cancelled by bob"
	})
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("its process still runs: %v", err)
	}
}

// A champion that is older than it may be is trained anew, by itself where that is configured.
func TestAnOldChampionIsTrainedAnew(t *testing.T) {
	w := newWorld(t)
	w.lively()
	w.cfg.Model.Jobs = "automatic"
	w.cfg.Model.RetrainEvery = config.Duration(24 * time.Hour)
	w.cfg.Model.Drift.PSI, w.cfg.Model.Drift.KS = 1e6, 2
	w.up()
	w.learned()
	m := w.imports(trained(t, modelSeries, 2))
	w.promoted(m.ID, true)
	w.scoredBy(m.ID)
	w.plane.lookAtModels(t.Context(), time.Now().Add(23*time.Hour))
	if all, _ := w.plane.Jobs(t.Context()); len(all) != 0 {
		t.Errorf("before its time: %+v", all)
	}
	w.plane.lookAtModels(t.Context(), time.Now().Add(25*time.Hour))
	w.plane.lookAtModels(t.Context(), time.Now().Add(26*time.Hour))
	all, err := w.plane.Jobs(t.Context())
	if err != nil || len(all) != 1 || all[0].By != "model:"+m.ID || !strings.HasPrefix(all[0].Why, "age") {
		t.Errorf("%+v, %v", all, err)
	}
}

// A training that cannot be begun is tried again until it can, also after a restart, and is said once
// by each process.
func TestARefusedTrainingIsTriedAgain(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			w := newWorld(t)
			w.trainer = []string{"endless"}
			w.lively()
			w.cfg.Model.Jobs, w.cfg.Model.RetrainEvery = "automatic", config.Duration(24*time.Hour)
			w.cfg.Model.Drift.PSI, w.cfg.Model.Drift.KS = 1e6, 2
			w.up()
			m := w.imports(trained(t, modelSeries, 2))
			w.promoted(m.ID, true)
			w.scoredBy(m.ID)
			var last api.Job
			await(w, "the queue is full", func() (any, bool) {
				j, err := w.plane.Train(t.Context(), api.Training{Kind: "failure"}, "ann")
				if err == nil {
					last = j
				}
				return nil, errors.Is(err, api.ErrConflict)
			})
			later := time.Now().Add(25 * time.Hour)
			look := func() (job bool) {
				t.Helper()
				later = later.Add(time.Minute)
				w.plane.lookAtModels(t.Context(), later)
				all, err := w.plane.Jobs(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return slices.ContainsFunc(all, func(j api.Job) bool { return j.By == "model:"+m.ID && strings.HasPrefix(j.Why, "age") })
			}
			said := func() (n int) {
				t.Helper()
				if err := w.plane.audit.Verify(t.Context(), func(_ uint64, r bus.AuditRecord) {
					if r.Event == "retraining-wanted" {
						n++
					}
				}); err != nil {
					t.Fatal(err)
				}
				return n
			}
			for range 2 {
				if look() {
					t.Fatal("a job was put into a full queue")
				}
			}
			if restart {
				w.down()
				w.up() // what ran is lost, and what is next in the queue makes room
			} else if _, err := w.plane.CancelJob(t.Context(), last.ID, "ann"); err != nil {
				t.Fatal(err)
			}
			await(w, "the training that was refused", func() (any, bool) { return nil, look() })
			if n := said(); n != map[bool]int{false: 1, true: 2}[restart] {
				t.Errorf("that a training is wanted was said %d times", n)
			}
		})
	}
}

func TestLabels(t *testing.T) {
	w := newWorld(t)
	w.cfg.Policy.Mode = "automatic"
	w.up()
	w.learned()
	now := time.Now().UTC()
	if _, err := w.plane.AddIncident(t.Context(), fleet.Incident{Host: "nobody", From: now, To: now, Signature: fleet.SignatureDisk}, "ann"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("%v", err)
	}
	mine, err := w.plane.AddIncident(t.Context(), fleet.Incident{Host: "h1", From: now.Add(-time.Hour), To: now, Failed: true, Signature: fleet.SignatureDisk, Source: fleet.IncidentPerson}, "ann")
	if err != nil || mine.By != "ann" || mine.ID == "" {
		t.Fatalf("%+v, %v", mine, err)
	}
	w.host.Hang(unit)
	w.recommended(fleet.RecommendationDone)
	find := func(s fleet.IncidentSource) fleet.Incident {
		t.Helper()
		return await(w, "an incident from "+string(s), func() (fleet.Incident, bool) {
			all, _ := w.plane.Incidents(t.Context())
			i := slices.IndexFunc(all, func(i fleet.Incident) bool { return i.Source == s })
			if i < 0 {
				return fleet.Incident{}, false
			}
			return all[i], true
		})
	}
	if i := find(fleet.IncidentExecution); i.Host != "h1" || i.Failed || i.Signature != fleet.SignatureServiceHang || i.Execution == "" || !i.To.After(i.From) {
		t.Errorf("%+v", i)
	}
	w.setBoot("another")
	if i := find(fleet.IncidentCrash); i.Host != "h1" || !i.Failed || i.From.After(i.To) {
		t.Errorf("%+v", i)
	}
	// Another machine under the same name is no crash each time that one of the two speaks.
	for i, boot := range []string{"b", "another", "b"} {
		w.setBoot(boot)
		await(w, "a sample of the boot "+boot, func() (any, bool) {
			_, sample, _ := w.plane.predictions.find("h1", 0)
			return nil, sample.Boot == boot
		})
		if h := w.plane.predictions.state("h1"); i == 2 {
			h.mu.Lock()
			if !h.twins {
				t.Error("nobody is told of two machines under one name")
			}
			h.mu.Unlock()
		}
	}
	w.setBoot("another")
	w.down()
	w.up()
	if all, err := w.plane.Incidents(t.Context()); err != nil || len(all) != 3 {
		t.Errorf("after a restart %d incidents: %+v, %v", len(all), all, err)
	}
}

// Live data that are far from what the champion was trained on, by either measure, ask for a training
// and say why.
func TestDriftAsksForATraining(t *testing.T) {
	for measure, limits := range map[string]config.Drift{"PSI": {PSI: 0.25, KS: 2}, "KS": {PSI: 1e6, KS: 0.2}} {
		t.Run(measure, func(t *testing.T) {
			w := newWorld(t)
			w.lively()
			w.cfg.Model.Jobs = "automatic"
			w.cfg.Model.Drift.Samples, w.cfg.Model.Drift.PSI, w.cfg.Model.Drift.KS = 20, limits.PSI, limits.KS
			w.cfg.Model.Drift.Window = config.Duration(time.Second)
			w.up()
			m := w.imports(trained(t, modelSeries, 40))
			w.promoted(m.ID, true)
			w.scoredBy(m.ID)
			d := await(w, "drift", func() (api.Drift, bool) {
				all, _ := w.plane.Drifts(t.Context())
				if len(all) == 0 {
					return api.Drift{}, false
				}
				return all[0], all[0].Drifted
			})
			if d.Model != m.ID || d.Worst[0].Series != "load_1m" || !strings.Contains(d.Why, "load_1m ("+measure) {
				t.Errorf("%+v", d)
			}
			w.plane.lookAtModels(t.Context(), time.Now())
			w.plane.lookAtModels(t.Context(), time.Now())
			all, err := w.plane.Jobs(t.Context())
			if err != nil || len(all) != 1 || all[0].By != "model:"+m.ID || !strings.Contains(all[0].Why, "drift") || !strings.Contains(all[0].Why, "load_1m ("+measure) {
				t.Errorf("%+v, %v", all, err)
			}
		})
	}
}
