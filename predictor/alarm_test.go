package predictor

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const monthOfMinutes = 30 * 24 * 60

// begins counts the alarms that begin over so many samples.
func begins(a *Alarm, samples int, score func(i int) float64) int {
	n, on := 0, false
	for i := range samples {
		was := on
		if on = a.Observe(score(i)); on && !was {
			n++
		}
	}
	return n
}

// TestAsManyAlarmsAsAskedFor has scores that are calibrated one by one, but come in clusters.
func TestAsManyAlarmsAsAskedFor(t *testing.T) {
	for _, keep := range []float64{0.8, 0.9, 0.97} {
		for _, asked := range []float64{1, 10} {
			alarms := 0
			const hosts, months = 10, 3
			for h := range hosts {
				r := rand.New(rand.NewPCG(uint64(h), 7))
				x := r.NormFloat64()
				alarms += begins(NewAlarm(asked, time.Minute), months*monthOfMinutes, func(int) float64 {
					x = keep*x + math.Sqrt(1-keep*keep)*r.NormFloat64()
					return -math.Log10(0.5 * math.Erfc(x/math.Sqrt2))
				})
			}
			if got := float64(alarms) / (hosts * months); got < 0.3*asked || got > 3*asked {
				t.Errorf("clusters of %.0f samples, asked for %v a month: %v", 1/(1-keep), asked, got)
			}
		}
	}
}

// TestWhatAHostDoesEachWeekWakesNobodyForLong has a deploy that the detector never learns, three times a week.
func TestWhatAHostDoesEachWeekWakesNobodyForLong(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	a := NewAlarm(1, time.Minute)
	score := func(i int) float64 {
		if i%(56*60) >= 56*60-20 {
			return a.nominal + 0.6 + 0.2*r.Float64()
		}
		return r.ExpFloat64() / math.Ln10
	}
	first := begins(a, monthOfMinutes, score)
	if later := begins(a, monthOfMinutes, score); first == 0 || first > 6 || later > 2 {
		t.Errorf("%d alarms in the first month, %d in the second", first, later)
	}
	if begins(a, 3, func(int) float64 { return 20 }) != 1 {
		t.Error("what is far more unusual is no alarm any more")
	}
}

func TestAnIncidentTeachesLittle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x := 0.0
	calm := func(int) float64 {
		x = 0.8*x + 0.6*r.NormFloat64()
		return -math.Log10(0.5 * math.Erfc(x/math.Sqrt2))
	}
	for _, recovered := range []bool{false, true} {
		a := NewAlarm(1, time.Minute)
		begins(a, monthOfMinutes, calm)
		before := a.threshold
		if n := begins(a, 300, func(int) float64 { return 200 }); n != 1 {
			t.Errorf("%d alarms in one incident", n)
		}
		if a.threshold > before {
			t.Error("the incident raises the threshold while it lasts")
		}
		if recovered {
			a.reset()
		}
		begins(a, 60, func(int) float64 { return 0.1 })
		if rise := a.threshold - before; rise > 1 || recovered && rise > 0 {
			t.Errorf("recovered by an action: %v; the threshold rose by %v", recovered, rise)
		}
	}
}

func TestTheThresholdStaysNearWhatWasAskedFor(t *testing.T) {
	for name, score := range map[string]float64{"silent": 0, "always loud": 50} {
		a := NewAlarm(1, time.Second)
		for i := range 400_000 {
			v := score
			if i%40 > 20 {
				v = 0
			}
			a.Observe(v)
		}
		if d := math.Abs(a.Threshold() - math.Log10(2_592_000)); d > mostBend+1e-9 {
			t.Errorf("%s: the threshold is %v decades away", name, d)
		}
	}
}

func TestWhatTheAlarmLearnedIsKept(t *testing.T) {
	w := newWorld(t, nil, "load_1m")
	w.steps(10)
	w.p.alarm.known = AlarmState{Level: w.p.alarm.level, Months: 0.5, Episodes: 400, Excess: 600}
	w.p.alarm.bend()
	data, err := w.p.Save()
	if err != nil {
		t.Fatal(err)
	}
	again := newWorld(t, nil, "load_1m")
	if err := again.p.Restore(data); err != nil {
		t.Fatal(err)
	}
	if a, b := again.p.Threshold(), w.p.Threshold(); a != b || a == w.p.alarm.nominal {
		t.Errorf("the threshold is %v after a restart, %v before", a, b)
	}
	w.p.alarm.known = AlarmState{Months: 1, Episodes: 1, Excess: 1e6}
	if data, err = w.p.Save(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadFile(data); err == nil || !strings.Contains(err.Error(), "alarms") {
		t.Errorf("an impossible state: %v", err)
	}
}
