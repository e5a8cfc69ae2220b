package metrics

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"testing"
)

func bits(s string) []bool {
	out := make([]bool, len(s))
	for i := range s {
		out[i] = s[i] == '1'
	}
	return out
}

// TestAgainstTheReference compares with what TSB-AD's own code gave, where the benchmark
// data lie beside the repository.
func TestAgainstTheReference(t *testing.T) {
	path := os.Getenv("TARDIGRADE_DATA")
	if path == "" {
		path = "../../../shared/data"
	}
	data, err := os.ReadFile(path + "/metrics_golden.json")
	if errors.Is(err, fs.ErrNotExist) {
		t.Log("the benchmark data are not here; the other tests have cases worked out by hand")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []struct {
		Kind      string
		VUSWindow int `json:"vus_window"`
		Labels    string
		Scores    []float64
		Metrics   map[string]float64
	}
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	for i, c := range all {
		labels := bits(c.Labels)
		pr, roc, err := VUS(c.Scores, labels, c.VUSWindow)
		if err != nil {
			t.Fatal(err)
		}
		aucPR, _ := AUCPR(c.Scores, labels)
		aucROC, _ := AUCROC(c.Scores, labels)
		f1, _, _ := BestF1(c.Scores, labels)
		event, _, _ := EventF1(c.Scores, labels)
		near, _, _ := AffiliationF1(c.Scores, labels)
		for name, got := range map[string]float64{"VUS-PR": pr, "VUS-ROC": roc, "AUC-PR": aucPR, "AUC-ROC": aucROC, "Standard-F1": f1, "Event-based-F1": event, "Affiliation-F": near} {
			if want := c.Metrics[name]; math.Abs(got-want) > 1e-4 {
				t.Errorf("case %d (%s): %s is %.6f, the reference has %.6f", i, c.Kind, name, got, want)
			}
		}
	}
}

func TestByHand(t *testing.T) {
	// Two of three anomalies first, then one normal sample, then the last anomaly.
	scores, labels := []float64{0.9, 0.8, 0.7, 0.6, 0.5}, bits("11010")
	if got, _ := AUCPR(scores, labels); math.Abs(got-(1+1+0.75)/3) > 1e-12 {
		t.Errorf("AUC-PR %v", got)
	}
	if got, _ := AUCROC(scores, labels); math.Abs(got-5.0/6) > 1e-12 {
		t.Errorf("AUC-ROC %v", got)
	}
	if got, at, _ := BestF1(scores, labels); math.Abs(got-6.0/7) > 1e-12 || at != 0.6 {
		t.Errorf("best F1 %v at %v", got, at)
	}
	if got, _ := F1At(scores, labels, 0.75); math.Abs(got-0.8) > 1e-12 {
		t.Errorf("F1 at 0.75: %v", got)
	}
	if got, _, _ := EventF1(scores, labels); math.Abs(got-2*0.75/1.75) > 1e-12 { // both events found, three of four right
		t.Errorf("event F1 %v", got)
	}
	delays, err := Delays([]float64{0, 0, 5, 0, 0, 1}, bits("011011"), 4)
	if err != nil || len(delays) != 2 || delays[0] != 1 || delays[1] != -1 {
		t.Errorf("delays %v, %v", delays, err)
	}
}

func TestVUSKnowsGoodFromBad(t *testing.T) {
	labels := make([]bool, 2000)
	for i := 500; i < 600; i++ {
		labels[i] = true
	}
	perfect, late, random := make([]float64, 2000), make([]float64, 2000), make([]float64, 2000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range labels {
		noise := r.Float64()
		random[i], perfect[i], late[i] = noise, noise, noise
		if labels[i] {
			perfect[i] += 2
		}
		if i >= 510 && i < 610 {
			late[i] += 2
		}
	}
	p, _, _ := VUS(perfect, labels, 40)
	l, _, _ := VUS(late, labels, 40)
	x, _, _ := VUS(random, labels, 40)
	if !(p > 0.9 && p > l && l > 0.6 && x < 0.15) {
		t.Errorf("perfect %v, late %v, random %v", p, l, x)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		scores []float64
		labels []bool
	}{
		"lengths": {[]float64{1}, bits("01")}, "no anomaly": {[]float64{1, 2}, bits("00")}, "all anomalies": {[]float64{1, 2}, bits("11")},
		"not a number": {[]float64{1, math.NaN()}, bits("01")}, "empty": {nil, nil},
	} {
		if _, _, err := VUS(c.scores, c.labels, 1); err == nil {
			t.Errorf("%s: VUS", name)
		}
		if _, err := AUCPR(c.scores, c.labels); err == nil {
			t.Errorf("%s: AUC-PR", name)
		}
	}
	for _, window := range []int{-1, 3, 1 << 40} {
		if _, _, err := VUS([]float64{1, 2}, bits("01"), window); err == nil {
			t.Errorf("a buffer of %d samples around two is possible", window)
		}
	}
}

func BenchmarkVUS(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	scores, labels := make([]float64, 28_000), make([]bool, 28_000)
	for i := range scores {
		scores[i], labels[i] = r.Float64(), i/700%10 == 3
	}
	for b.Loop() {
		if _, _, err := VUS(scores, labels, 100); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAffiliationByHand has one event, of samples 4 and 5 of ten, so the time from 4 to 6.
func TestAffiliationByHand(t *testing.T) {
	labels := bits("0000110000")
	for name, c := range map[string]struct {
		found             string
		precision, recall float64
	}{
		"exact":   {"0000110000", 1, 1},
		"nothing": {"0000000000", 0, 0},
		// All: within the event 1. From 0 to 4 at distance d: 1-(2+2d)/10, from 0 to 0.8 on
		// average 0.4, and likewise after it.
		"all": {"1111111111", (2 + 4*0.4 + 4*0.4) / 10, 1},
		// The time from 6 to 7: 0.8 at its begin, 0.6 at its end. From the event's end at 6 it is 0
		// to 2 away; y is at 4 to 6, nearer to either edge than that never: 1-2d/10, on average 0.8.
		"next": {"0000001000", 0.7, 0.8},
		// The time from 9 to 10 is 3 to 4 away: 0.2 to 0. From y it is d=9-y away, 5 to 3, and
		// y is y away from the begin: 1-(d+y)/10 up to y=4.5, 1-2d/10 from there on, 0.4 at y=6.
		"late": {"0000000001", 0.1, (0.5*0.1 + 1.5*(0.1+0.4)/2) / 2},
	} {
		scores := make([]float64, len(labels))
		for i, p := range bits(c.found) {
			if p {
				scores[i] = 1
			}
		}
		precision, recall, err := Affiliation(scores, labels, 0.5)
		if err != nil || math.Abs(precision-c.precision) > 1e-12 || math.Abs(recall-c.recall) > 1e-12 {
			t.Errorf("%s: precision %v, recall %v, by hand %v and %v; %v", name, precision, recall, c.precision, c.recall, err)
		}
	}
	// Two events with a prediction near the first alone: the second has no precision, and no recall.
	labels = bits("0100000010")
	precision, recall, _ := Affiliation([]float64{0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, labels, 0.5)
	if precision != 1 || recall != 0.5 {
		t.Errorf("one of two events: %v, %v", precision, recall)
	}
}

// A weight counts as that many samples.
func TestWeights(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var scores, weights, repeated []float64
	var labels, again []bool
	for i := range 200 {
		score, label, n := math.Floor(10*r.Float64()), i%4 == 0, 1+r.IntN(5)
		scores, labels, weights = append(scores, score), append(labels, label), append(weights, float64(n))
		for range n {
			repeated, again = append(repeated, score), append(again, label)
		}
	}
	pr, roc, err := WeightedAUC(scores, labels, weights)
	if err != nil {
		t.Fatal(err)
	}
	wantPR, _ := AUCPR(repeated, again)
	wantROC, _ := AUCROC(repeated, again)
	if math.Abs(pr-wantPR) > 1e-12 || math.Abs(roc-wantROC) > 1e-12 {
		t.Errorf("by weights %v and %v, repeated %v and %v", pr, roc, wantPR, wantROC)
	}
	if _, _, err := WeightedAUC(scores, labels, weights[1:]); err == nil {
		t.Error("a weight too few is accepted")
	}
}
