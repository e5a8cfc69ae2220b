package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// drifts waits until the one champion has counted enough.
func (w *world) drifts(enough func(api.Drift) bool) api.Drift {
	w.t.Helper()
	return await(w, "drift", func() (api.Drift, bool) {
		all, err := w.plane.Drifts(w.t.Context())
		if err != nil || len(all) == 0 {
			return api.Drift{}, false
		}
		return all[0], enough(all[0])
	})
}

// TestDriftIsCountedOverRestarts has a control plane that never runs for long enough to see drift.
func TestDriftIsCountedOverRestarts(t *testing.T) {
	w := newWorld(t)
	w.lively()
	w.cfg.Model.Jobs = "automatic"
	w.cfg.Model.Drift.Samples, w.cfg.Model.Drift.Window = 1000, config.Duration(time.Second)
	w.up()
	m := w.imports(trained(t, modelSeries, 40))
	w.promoted(m.ID, true)
	w.scoredBy(m.ID)
	before := w.drifts(func(d api.Drift) bool { return d.Samples >= 30 })
	w.down()
	w.cfg.Model.Drift.Samples = before.Samples
	w.up()
	// No sample was scored yet, and what was counted is enough.
	after := w.drifts(func(api.Drift) bool { return true })
	if after.Samples < before.Samples || !after.Since.Equal(before.Since) || !after.Drifted || after.Calibration < before.Calibration {
		t.Errorf("before %+v, and after a restart %+v", before, after)
	}
	ended := func() {
		t.Helper()
		w.plane.lookAtModels(t.Context(), time.Now())
		await(w, "the end of one training", func() (any, bool) {
			all, err := w.plane.Jobs(t.Context())
			if len(all) != 1 || all[0].By != "model:"+m.ID {
				t.Fatalf("%+v, %v", all, err)
			}
			return nil, !all[0].Ended.IsZero() && !w.plane.jobs.Busy(registry.KindAnomaly)
		})
	}
	ended()
	w.down()
	w.up()
	ended() // and is not asked for again
}

// TestWhatWasForetoldIsJudgedAfterARestart: a failure within the hour can only be judged two hours later.
func TestWhatWasForetoldIsJudgedAfterARestart(t *testing.T) {
	w := newWorld(t)
	w.pressed()
	w.cfg.Model.Drift.PSI, w.cfg.Model.Drift.KS = 1e6, 2
	w.up()
	w.learned()
	file := w.imports(foreseeing(t, false))
	w.promoted(file.ID, true)
	champion := func() *seated {
		return await(w, "the champion", func() (*seated, bool) {
			m := w.plane.roster.of(registry.KindFailure).champion
			return m, m != nil
		})
	}
	now := time.Now().UTC()
	begin := now.Add(-48 * time.Hour)
	const hosts = 50
	settle := func(at time.Time) drift.Outcomes {
		for i := range hosts {
			h := w.plane.predictions.state(fleet.HostID(fmt.Sprint("q", i)))
			h.mu.Lock()
			h.last = now
			h.mu.Unlock()
		}
		w.plane.lookAtModels(t.Context(), at)
		return champion().said.outcomes()
	}
	for i := range hosts {
		champion().said.say(fleet.HostID(fmt.Sprint("q", i)), promise{begin, time.Hour, 0.5})
		champion().said.say(fleet.HostID(fmt.Sprint("q", i)), promise{begin.Add(time.Hour), time.Hour, 0.25})
	}
	if got := settle(begin.Add(2 * time.Hour)); got.Judged != hosts || got.Expected != hosts/2 {
		t.Fatalf("%+v", got)
	}
	w.down()
	w.up()
	if got := settle(begin.Add(2 * time.Hour)); got.Judged != hosts || got.Expected != hosts/2 {
		t.Errorf("after a restart %+v", got)
	}
	if got := settle(begin.Add(3 * time.Hour)); got.Judged != 2*hosts || got.Expected != 0.75*hosts {
		t.Errorf("what was open before the restart: %+v", got)
	}
	if d := w.drifts(func(d api.Drift) bool { return true }); d.Calibration < 1 {
		t.Errorf("%+v", d)
	}
}

// counting is a model that has counted something.
func counting(t testing.TB) *seated {
	ref := drift.NewReference([]string{"a", "b"}, 100, func(row, column int) float64 { return float64(row * (column + 1)) }, nil)
	m := &seated{version: registry.Version{ID: "m"}, since: time.Now().UTC().Add(-time.Minute), asked: map[string]time.Time{"age": time.Now().UTC()}, window: drift.NewWindow(ref)}
	var episodes drift.Episodes
	for i := range 500 {
		m.saw([]float64{float64(i), math.NaN()}, float64(i%100)/100, &episodes)
	}
	m.said.say("h1", promise{time.Now().UTC().Add(-3 * time.Hour), time.Hour, 0.5})
	m.said.say("h1", promise{time.Now().UTC().Add(-time.Hour), time.Hour, 0.5})
	m.said.settle(time.Now(), nil, func(fleet.HostID) time.Time { return time.Now() })
	return m
}

// TestDamagedCountsBeginAnew keeps counts that cannot be in the table, each of another kind.
func TestDamagedCountsBeginAnew(t *testing.T) {
	w := newWorld(t)
	w.lively()
	w.up()
	file := w.imports(trained(t, modelSeries, 2))
	w.promoted(file.ID, true)
	w.scoredBy(file.ID)
	w.drifts(func(d api.Drift) bool { return d.Samples >= 20 })
	w.down()
	dir, err := datadir.Open(filepath.Join(w.data, "serve"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// opened reads what is stored, and says what it counts and what it logs.
	opened := func(then func(*Plane)) (samples int, said string) {
		t.Helper()
		var log bytes.Buffer
		plane, err := Open(t.Context(), Options{Config: w.cfg, Dir: dir, Version: "test", Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer plane.Close()
		all, err := plane.Drifts(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		then(plane)
		return all[0].Samples, log.String()
	}
	const key = string(registry.KindAnomaly)
	var whole []byte
	samples, said := opened(func(p *Plane) {
		c, _, _ := p.drifts.Find(key)
		if whole, err = json.Marshal(c); err != nil {
			t.Fatal(err)
		}
	})
	if samples < 20 || strings.Contains(said, "DRIFT") {
		t.Fatalf("of what is whole %d samples are counted, and it is said: %s", samples, said)
	}
	for name, damage := range map[string]func(*driftCount){
		"a series is lost":        func(c *driftCount) { c.Window.Values = c.Window.Values[1:] },
		"a bin is lost":           func(c *driftCount) { c.Window.Values[1] = c.Window.Values[1][1:] },
		"a count is negative":     func(c *driftCount) { c.Window.Missing[0] = -1; c.Window.Values[0][0]++ },
		"counts do not add up":    func(c *driftCount) { c.Window.Values[0][0]++ },
		"tails do not add up":     func(c *driftCount) { c.Tails.Below[3] = c.Tails.Samples + 1 },
		"outcomes do not add up":  func(c *driftCount) { c.Outcomes.Failed = 1 },
		"from the future":         func(c *driftCount) { c.Since = c.Since.Add(1000 * time.Hour) },
		"seen for longer":         func(c *driftCount) { c.Seen = 1000 * time.Hour },
		"asked for in the future": func(c *driftCount) { c.Asked = map[string]time.Time{"age": time.Now().Add(1000 * time.Hour)} },
		"surer than sure":         func(c *driftCount) { c.Promises = map[fleet.HostID][]promise{"h": {{time.Now(), time.Hour, 1.5}}} },
		"more than can be":        func(c *driftCount) { c.Promises = map[fleet.HostID][]promise{"h": make([]promise, mostPromises+1)} },
		"one horizon over another": func(c *driftCount) {
			p := promise{time.Now(), time.Hour, 0}
			c.Promises = map[fleet.HostID][]promise{"h": {p, p}}
		},
	} {
		opened(func(p *Plane) {
			var c driftCount
			if err := json.Unmarshal(whole, &c); err != nil {
				t.Fatal(err)
			}
			damage(&c)
			if _, err := p.drifts.Put(t.Context(), key, c); err != nil {
				t.Fatal(err)
			}
		})
		if samples, said := opened(func(*Plane) {}); samples != 0 || strings.Count(said, "counted anew") != 1 || !strings.Contains(said, file.ID) {
			t.Errorf("%s: %d samples are counted, and it is said: %s", name, samples, said)
		}
	}
	opened(func(p *Plane) { // what is no count at all
		other, err := bus.OpenTable[string](t.Context(), p.bus, "DRIFT", nil)
		if err == nil {
			_, err = other.Put(t.Context(), key, "nonsense")
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if samples, said := opened(func(*Plane) {}); samples != 0 || !strings.Contains(said, "cannot be read") || !strings.Contains(said, "DRIFT") {
		t.Errorf("%d samples are counted, and it is said: %s", samples, said)
	}
}

// TestTheCountIsBounded: what a large fleet was told fits into a record.
func TestTheCountIsBounded(t *testing.T) {
	m := counting(t)
	for i := range 20_000 {
		m.said.say(fleet.HostID(fmt.Sprintf("%060d", i)), promise{time.Now().UTC(), time.Hour, 1 / 3.0})
	}
	c, _ := m.count()
	data, err := json.Marshal(c)
	if err != nil || len(data) > 900_000 || len(c.Promises) < mostPromises/2 {
		t.Errorf("%d bytes for %d hosts, %v", len(data), len(c.Promises), err)
	}
	if err := counting(t).restore(c); err != nil {
		t.Error(err)
	}
}

// FuzzDriftCount restores what is no count, and counts on.
func FuzzDriftCount(f *testing.F) {
	whole, _ := counting(f).count()
	data, err := json.Marshal(whole)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c driftCount
		if json.Unmarshal(data, &c) != nil {
			return
		}
		m := counting(t)
		m.window.Reset()
		if m.restore(c) != nil {
			if m.window.Samples() != 0 {
				t.Fatal("what is refused has left something behind")
			}
			return
		}
		again, _ := m.count()
		if again.Model = c.Model; again.Seen != c.Seen || !reflect.DeepEqual(again.Window, c.Window) || again.Tails != c.Tails || again.Outcomes != c.Outcomes {
			t.Fatalf("%+v has become %+v", c, again)
		}
		m.saw([]float64{1, 2}, 0.5, new(drift.Episodes))
		m.said.settle(time.Now(), nil, func(fleet.HostID) time.Time { return time.Now() })
		if v, _, ok := m.judged(drift.Limits{PSI: 0.1, KS: 0.1, Ratio: 0.1, Samples: 1, Calibration: 0.1}, time.Hour, false); !ok || v.Samples != int(c.Window.Samples)+1 || math.IsNaN(v.Calibration) {
			t.Fatalf("%+v of %+v", v, c)
		}
	})
}
