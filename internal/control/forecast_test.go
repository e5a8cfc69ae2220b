package control

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/drift"
	"github.com/tardigrade-recovery/tardigrade/model/failure"
	"github.com/tardigrade-recovery/tardigrade/model/feature"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// foreseeing is the file of a failure model that looks at two columns. A busy processor is a memory
// leak, of which half of the hosts fail within a minute and all within the hour; I/O pressure is a
// fault of one of three kinds, whichever. One that is blind has never seen a busy processor.
func foreseeing(t *testing.T, blind bool) []byte {
	t.Helper()
	names := feature.Names()
	busy, pressure := slices.Index(names, "cpu_busy_level"), slices.Index(names, "pressure_io_level")
	r := rand.New(rand.NewPCG(5, 6))
	e := failure.Examples{Features: names}
	for i := range 3000 {
		x := make([]float64, len(names))
		for k := range x {
			x[k] = math.NaN()
		}
		x[busy], x[pressure] = 0.5*r.Float64(), 0.5*r.Float64()
		left, signature := math.Inf(1), failure.Sound
		switch {
		case i%4 == 1 && !blind:
			x[busy] = 0.7 + 0.3*r.Float64()
			left, signature = []float64{60, 2400}[r.IntN(2)], string(fleet.SignatureMemoryLeak)
		case i%4 == 3:
			x[pressure] = 0.7 + 0.3*r.Float64()
			left, signature = 2400, []string{string(fleet.SignatureMemoryLeak), string(fleet.SignatureDisk), string(fleet.SignatureNetwork)}[r.IntN(3)]
		}
		e.X, e.Failure, e.Known = append(e.X, x), append(e.Failure, left), append(e.Known, 1e6)
		e.Signature, e.Host = append(e.Signature, signature), append(e.Host, fmt.Sprint("h", i/20))
	}
	m, err := failure.Train(t.Context(), e, failure.Config{Trees: 20})
	if err != nil {
		t.Fatal(err)
	}
	state, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	file, err := registry.Encode(registry.Header{Kind: registry.KindFailure, Trained: time.Now().UTC(), Source: "test", Series: names, Code: "test", Metrics: map[string]float64{},
		Reference: drift.NewReference(names, len(e.X), func(r, c int) float64 { return e.X[r][c] }, nil)}, state)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// pressed lets the host of a world be as busy, and under as much I/O pressure, as said.
func (w *world) pressed() (busy, pressure *atomic.Value) {
	busy, pressure = &atomic.Value{}, &atomic.Value{}
	busy.Store(0.3)
	pressure.Store(0.1)
	r := rand.New(rand.NewPCG(1, 2))
	w.names = []string{"cpu_busy_ratio", "pressure_io_some_ratio", fleet.SeriesName("unit_active", unit), fleet.SeriesName("unit_healthy", unit)}
	w.moving = func() []float64 {
		return []float64{busy.Load().(float64) + 0.02*r.NormFloat64(), pressure.Load().(float64) + 0.02*r.NormFloat64()}
	}
	return busy, pressure
}

// With a champion failure model the policy decides on what the model says: how probable a failure is
// within the horizon and within five minutes, what is wrong, and how sure that is.
func TestAFailureModelReachesThePolicy(t *testing.T) {
	for name, c := range map[string]struct {
		press  func(busy, pressure *atomic.Value)
		mode   string
		policy string
		sure   func(p float64) bool
		soon   func(p float64) bool
	}{
		"a leak that may kill within minutes": {func(busy, _ *atomic.Value) { busy.Store(0.9) }, "approve", predictor.PolicyName,
			func(p float64) bool { return p > 0.9 }, func(p float64) bool { return p > 0.3 && p < 0.7 }},
		"a fault of whichever kind": {func(_, pressure *atomic.Value) { pressure.Store(0.9) }, "automatic", predictor.RuleName,
			func(p float64) bool { return p > 0.2 && p < 0.5 }, func(p float64) bool { return p < 0.1 }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.Policy.Mode = c.mode
			w.label.DryRun = true // what is recommended stays as it is
			busy, pressure := w.pressed()
			w.up()
			w.learned()
			m := w.imports(foreseeing(t, false))
			w.promoted(m.ID, true)
			await(w, "the model scores the sound host", func() (any, bool) {
				h, err := w.plane.Host(t.Context(), w.label.ID)
				return nil, err == nil && h.Prediction.FaultProbability > 0 && h.Prediction.FaultProbability < 0.3
			})
			c.press(busy, pressure)
			rec := await(w, "a recommendation by the model", func() (fleet.Recommendation, bool) {
				all, err := w.plane.Recommendations(t.Context())
				if err != nil || len(all) == 0 {
					return fleet.Recommendation{}, false
				}
				return all[0], all[0].Prediction.SignatureProbability > 0
			})
			p := rec.Prediction
			if !c.sure(p.SignatureProbability) || !c.soon(p.SoonProbability) || p.FailureProbability < 0.9 || p.FaultProbability < 0.9 || p.HorizonSeconds != 3600 {
				t.Errorf("%+v", p)
			}
			if !strings.Contains(rec.Reason, m.ID+" sees the pattern of "+string(p.Signature)) || !strings.Contains(rec.Reason, "within five minutes") || rec.Policy != c.policy {
				t.Errorf("by %s: %s", rec.Policy, rec.Reason)
			}
			// The alternatives are priced with the five minutes: without them an action that fails costs less.
			h, err := w.plane.Host(t.Context(), w.label.ID)
			if err != nil {
				t.Fatal(err)
			}
			policy := policyOf(w.cfg.Policy, false)
			with := policy.Decide(situation(p, h.Host, nil, nil), nil)
			p.SoonProbability = 0
			without := policy.Decide(situation(p, h.Host, nil, nil), nil)
			for i, a := range rec.Alternatives {
				if a.CostVMSeconds != with.Alternatives[i].CostVMSeconds {
					t.Errorf("%s costs %v, with the model's word it should %v", a.Action, a.CostVMSeconds, with.Alternatives[i].CostVMSeconds)
				}
				if a.Action == fleet.ActionRecycle && !(a.CostVMSeconds > without.Alternatives[i].CostVMSeconds) {
					t.Errorf("%s costs %v, as without the five minutes", a.Action, a.CostVMSeconds)
				}
			}
		})
	}
}

// What was seen directly stays: the model adds how probable a failure is, and does not rename it.
func TestWhatIsSeenDirectlyIsNotRenamed(t *testing.T) {
	w := newWorld(t)
	busy, _ := w.pressed()
	w.up()
	w.learned()
	m := w.imports(foreseeing(t, false))
	w.promoted(m.ID, true)
	w.host.Hang(unit)
	busy.Store(0.9)
	await(w, "a hang with the model's word on five minutes", func() (any, bool) {
		h, err := w.plane.Host(t.Context(), w.label.ID)
		if err != nil {
			return nil, false
		}
		p := h.Prediction
		return nil, p.Signature == fleet.SignatureServiceHang && p.Culprit == unit && p.SignatureProbability == 1 && p.SoonProbability > 0.3
	})
}
