package drive

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func at(hours float64, values ...float64) Observation {
	o := Observation{Hours: hours}
	copy(o.Values[:], values)
	return o
}

func TestFeatures(t *testing.T) {
	nan := math.NaN()
	seen := []Observation{
		at(1000, 0, 0, 5, nan),
		at(1000+10*day, 8, 0, 5, nan),
		at(1000+60*day, 8, 0, 6, 1),
		at(1000+65*day, 20, 0, 6, 1),
	}
	now := 1000 + 66*day
	x := make([]float64, len(Features()))
	fill(x, seen, now, 4, 0.1)
	got := make(map[string]float64)
	for i, name := range Features() {
		got[name] = x[i]
	}
	for name, want := range map[string]float64{
		"age_h": now, "size_tb": 4, "model_rate": 0.1, "since_change_h": day, "last_gap_h": 5 * day,
		"changes_1d": 1, "changes_7d": 2, "changes_30d": 2, "changes_90d": 3, "faulty_attributes": 2, "faulty_changes_30d": 1,
		"reallocated": 20, "reallocated_1d": 12, "reallocated_7d": 12, "reallocated_30d": 12, "reallocated_90d": 20,
		"reallocated_since_h": day, "reallocated_below_max": 0, "reallocated_changes_90d": 2, "reallocated_changes_7d": 1, "reallocated_last_change": 12, "reallocated_last_gap_h": 55 * day,
		"power_cycles": 6, "power_cycles_1d": 0, "power_cycles_30d": 1, "power_cycles_since_h": 6 * day,
		"uncorrectable": 1, "uncorrectable_7d": nan, "uncorrectable_since_h": nan,
		"pending": 0, "pending_90d": 0,
		"first_seen_h": 1000, "watched_h": 66 * day, "changes": 3, "missing": 0,
		"changed_attributes_1d": 1, "changed_attributes_7d": 1, "changed_attributes_30d": 1,
		"defects": 21, "defects_7d": 13, "defects_30d": 13, "defects_90d": 21, "defects_accelerated": 13, "defects_changes_7d": 1, "defects_changes_90d": 2,
		"defects_since_h": day, "defects_last_gap_h": 55 * day, "defects_last_change": 12, "defects_first_h": 1000 + 10*day, "defects_for_h": 56 * day,
		"reallocated_watched": 20, "uncorrectable_watched": nan, "pending_watched": 0,
	} {
		if g, ok := got[name]; !ok || g != want && !(g != g && want != want) {
			t.Errorf("%s is %v, not %v", name, g, want)
		}
	}
	// What a counter fell from is remembered.
	seen = append(seen, at(now, 3, 0, 6, 1))
	fill(x, seen, now, nan, 0.1)
	if k := slices.Index(Features(), "reallocated_below_max"); x[k] != 17 {
		t.Errorf("17 below the maximum, not %v", x[k])
	}
	// The future is refused.
	defer func() {
		if recover() == nil {
			t.Error("an observation from the future was taken")
		}
	}()
	fill(x, seen, now-1, nan, 0.1)
}

func TestOutcomesThatNobodyKnows(t *testing.T) {
	works, fails := Drive{End: 1000 + Horizon}, Drive{End: 1000 + Horizon, Failed: true}
	for _, c := range []struct {
		d            Drive
		now          float64
		fails, known bool
	}{
		{works, 1000, false, true}, {works, 1001, false, false}, {fails, 999, false, true}, {fails, 1000, true, true}, {fails, 1500, true, true},
	} {
		if f, k := c.d.label(c.now); f != c.fails || k != c.known {
			t.Errorf("%+v at %v: %v %v", c.d, c.now, f, k)
		}
	}
}

// lives are drives of which a fifth fails, most of those after their sectors went bad, the others
// without a word.
func lives(n int, seed uint64) []Drive {
	r := rand.New(rand.NewPCG(seed, 1))
	var out []Drive
	for i := range n {
		d := Drive{Model: fmt.Sprint("M", i%3), SizeTB: 4, End: (200 + 300*r.Float64()) * day, Failed: i%5 == 0}
		bad := 0.0
		for h := 0.0; h < d.End; h += (3 + 20*r.Float64()) * day {
			switch {
			case d.Failed && d.End-h < 40*day && i%4 == 0:
				continue
			case d.Failed && d.End-h < 40*day:
				bad += 10 * r.Float64()
			case r.IntN(200) == 0:
				bad += 3
			}
			d.Seen = append(d.Seen, at(h, bad, 0, h/100))
		}
		out = append(out, d)
	}
	return out
}

func TestFailuresArePredicted(t *testing.T) {
	m, err := Train(t.Context(), lives(600, 1), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Judge(lives(600, 2))
	if err != nil {
		t.Fatal(err)
	}
	if v.AUCPR < 0.5 || v.Detected1 < 0.5 || v.Detected01 > v.Detected1 || v.Lead < 7 || v.All1 > v.Detected1 || v.Monthly1 < v.Detected1 || v.Timely1 > v.Detected1 || v.Timely1 < 0.5 || v.FailingBad < v.Detected1 || v.WorkingBad > 0.8 {
		t.Errorf("%+v", v)
	}
	if v.Failing != 120 || v.Working != 480 || v.Silent != 30 {
		t.Errorf("%+v", v)
	}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.Judge(lives(600, 2))
	if err != nil || again != v {
		t.Errorf("the saved model: %+v %v", again, err)
	}
	// What comes later changes nothing.
	d := lives(600, 2)[5]
	if p, q := m.Probability(d.Model, 4, d.Seen[:3]), back.Probability(d.Model, 4, slices.Clone(d.Seen[:3])); p != q || !(p > 0 && p < 1) {
		t.Errorf("%v and %v", p, q)
	}
	for i := 0; i < len(b); i += 997 {
		bad := slices.Clone(b)
		bad[i] ^= 1
		if _, err := Unmarshal(bad); err == nil {
			t.Fatalf("byte %d changed, and no error", i)
		}
		if _, err := Unmarshal(b[:i]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
}

func TestPeaksAreWhereADriveIsJudged(t *testing.T) {
	inf := math.Inf(1)
	e := examples{
		left:  []float64{inf, inf, 40 * day, 20 * day, 10 * day, 90 * day, inf},
		drive: []int{0, 0, 1, 1, 1, 2, 3},
	}
	for i := range e.left {
		e.X, e.Y = append(e.X, []float64{float64(i)}), append(e.Y, e.left[i] <= Horizon)
	}
	ln3 := math.Log(3)
	got := e.peaks([]float64{1 + ln3, 1, 9, -5, -5 + ln3, 3, -700})
	// Three times the odds are three times the weight; the drive that fails in 90 days, and the one that does in 40, are no false alarms.
	want := []struct {
		row    float64
		fails  bool
		weight float64
	}{{0, false, 0.75}, {1, false, 0.25}, {3, true, 0.25}, {4, true, 0.75}, {6, false, 1}}
	if len(got.X) != len(want) || len(got.Y) != len(want) || len(got.Weight) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, w := range want {
		if got.X[i][0] != w.row || got.Y[i] != w.fails || math.Abs(got.Weight[i]-w.weight) > 1e-12 {
			t.Errorf("%d: row %v, fails %v, weight %v, not %+v", i, got.X[i][0], got.Y[i], got.Weight[i], w)
		}
	}
}

func TestRatesOfRareModelsAreNearTheMean(t *testing.T) {
	year := 365.25 * day
	drives := []Drive{{Model: "rare", Seen: []Observation{{}}, End: year / 10, Failed: true}}
	for i := range 1000 {
		drives = append(drives, Drive{Model: "common", Seen: []Observation{{}}, End: year, Failed: i < 20})
	}
	r := learn(drives)
	if common, rare := r.of("common"), r.of("rare"); math.Abs(common-0.02) > 0.001 || rare < 0.02 || rare > 0.05 || r.of("new") != r.overall {
		t.Errorf("common %v, rare %v, new %v", common, rare, r.of("new"))
	}
}

func TestNothingToJudge(t *testing.T) {
	m, err := Train(t.Context(), lives(100, 1), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	works, fails := lives(100, 2), lives(100, 2)
	works = slices.DeleteFunc(works, func(d Drive) bool { return d.Failed })
	fails = slices.DeleteFunc(fails, func(d Drive) bool { return !d.Failed })
	for want, drives := range map[string][]Drive{"nothing to detect": works, "no false alarms": fails} {
		if _, err := m.Judge(drives); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
	if _, err := Train(t.Context(), works, 1, nil); err == nil || !strings.Contains(err.Error(), "labels are the same") {
		t.Error(err)
	}
	if _, err := Train(t.Context(), nil, 1, nil); err == nil {
		t.Error("learned from nothing")
	}
}

func FuzzDecode(f *testing.F) {
	m, err := Train(f.Context(), lives(60, 1), 1, nil)
	if err != nil {
		f.Fatal(err)
	}
	b, err := m.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[headBytes : len(b)-32])
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decode(b); err == nil {
			if p := m.Probability("M1", 4, []Observation{{}}); !(p >= 0 && p <= 1) {
				t.Fatalf("a probability of %v", p)
			}
		}
	})
}

func TestWhatCountsAsDetected(t *testing.T) {
	fails := func(last float64, scores ...float64) judged {
		return judged{Drive: &Drive{Failed: true, End: 100 * day}, at: []float64{10 * day, last * day}, score: scores}
	}
	all := []judged{
		fails(90, 0.9, 0.1), // an alarm, but too early to be timely
		fails(90, 0.1, 0.9),
		fails(90, 0.1, 0.1),
		fails(60, 0.1, 0.9), // silent in the last 30 days
	}
	got := detected(all, 0.5, Verdict{Failing: 4, Silent: 1})
	want := detection{heard: 2.0 / 3, timely: 1.0 / 3, ofAll: 0.75, lead: 40}
	if got != want {
		t.Errorf("%+v, not %+v", got, want)
	}
}
