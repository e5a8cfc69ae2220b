package control

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// A shadow is compared on where it was before a restart, also with what becomes known later.
func TestAShadowIsComparedOverRestarts(t *testing.T) {
	w := newWorld(t)
	w.label.DryRun = true
	busy, _ := w.pressed()
	w.up()
	w.learned()
	w.promoted(w.imports(foreseeing(t, false)).ID, true)
	w.promoted(w.imports(foreseeing(t, false)).ID, false)
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
	busy.Store(0.9)
	before := compared("an alarm of each", func(c api.Comparison) bool { return c.AlarmsChampion == 1 && c.AlarmsShadow == 1 })
	alarmed := time.Now()
	busy.Store(0.3)
	w.down()
	w.up()
	after := compared("the shadow after the restart", func(api.Comparison) bool { return true })
	if !after.Since.Equal(before.Since) || after.Samples < before.Samples || after.AlarmsShadow < 1 || after.AlarmsChampion < 1 || after.Hosts != 1 || after.MeanShadow == 0 {
		t.Errorf("before %+v, and after a restart %+v", before, after)
	}
	i := fleet.Incident{Host: w.label.ID, From: alarmed, To: alarmed, Failed: true, Signature: fleet.SignatureMemoryLeak, Source: fleet.IncidentPerson}
	if _, err := w.plane.AddIncident(t.Context(), i, "ann"); err != nil {
		t.Fatal(err)
	}
	if c := compared("the incident", func(c api.Comparison) bool { return c.Incidents == 1 }); c.ForeseenShadow != 1 || c.ForeseenChampion != 1 {
		t.Errorf("%+v", c)
	}
	// Another shadow begins anew, and so does the same one at another time.
	for _, id := range []string{w.imports(foreseeing(t, true)).ID, before.Shadow} {
		w.plane.saveCounts(t.Context())
		w.promoted(id, false)
		if c := compared("the next shadow", func(c api.Comparison) bool { return c.Shadow == id }); !c.Since.After(alarmed) || c.Incidents != 0 {
			t.Errorf("%+v", c)
		}
	}
}

// beside is a roster with a shadow that was compared on a host with an alarm of each.
func beside() *roster {
	r := newRoster(config.Default().Model, time.Second)
	r.seat(registry.KindAnomaly, registry.Champion, &seated{version: registry.Version{ID: "a"}})
	r.seat(registry.KindAnomaly, registry.Shadow, &seated{version: registry.Version{ID: "b"}})
	for i := range 10 {
		r.compare(registry.KindAnomaly, "h1", time.Now().UTC().Add(time.Duration(i-20)*time.Second), 1, 2, [2]bool{i == 3, i == 5})
	}
	return r
}

// What a large fleet was compared on fits into a record.
func TestTheComparisonIsBounded(t *testing.T) {
	r := beside()
	for i := range 20_000 {
		r.compare(registry.KindAnomaly, fleet.HostID(fmt.Sprintf("%060d", i)), time.Now().UTC(), 1, 2, [2]bool{i%2 == 0, i%3 == 0})
	}
	c, _ := r.comparing(registry.KindAnomaly)
	data, err := json.Marshal(c)
	if err != nil || len(data) > 900_000 || len(c.ByHost) < mostCompared/2 || c.check() != nil {
		t.Errorf("%d bytes for %d hosts, %v, %v", len(data), len(c.ByHost), err, c.check())
	}
}

// FuzzComparing goes on with what is no comparison.
func FuzzComparing(f *testing.F) {
	whole, _ := beside().comparing(registry.KindAnomaly)
	data, err := json.Marshal(whole)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, damaged := range []string{
		strings.Replace(string(data), `"samples":10`, `"samples":0`, 1), strings.Replace(string(data), `"alarms_shadow":1`, `"alarms_shadow":-1`, 1),
		strings.Replace(string(data), `"since":"2`, `"since":"9`, 1), strings.Replace(string(data), `"to":"2`, `"to":"1`, 1), `{"since":"2026-01-01T00:00:00Z","samples":1,"by_host":{"h":null}}`,
	} {
		var c comparing
		if damaged == string(data) || json.Unmarshal([]byte(damaged), &c) != nil || c.check() == nil {
			f.Fatalf("this was taken: %s", damaged)
		}
		f.Add([]byte(damaged))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c comparing
		if json.Unmarshal(data, &c) != nil || c.check() != nil {
			return
		}
		if again := c.copied(); !reflect.DeepEqual(again.Comparison, c.Comparison) || len(c.ByHost) <= mostCompared/(2*mostAlarms+1) && len(again.ByHost) != len(c.ByHost) {
			t.Fatalf("%+v has become %+v", c, again)
		}
		r := beside()
		r.compared[registry.KindAnomaly] = &c
		r.compare(registry.KindAnomaly, "h1", time.Now(), 1, 2, [2]bool{true, true})
		got := r.comparisons([]fleet.Incident{{Host: "h1", From: time.Now(), To: time.Now(), Failed: true}})[registry.KindAnomaly]
		if got.Samples != c.Samples || got.ForeseenShadow > got.Incidents {
			t.Fatalf("%+v", got)
		}
	})
}
