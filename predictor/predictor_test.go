package predictor

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// steady is a detector that learns for a while and then answers a fixed tail.
type steady struct {
	columns, learn, seen int
	tail                 float64
	x                    []float64
}

func (d *steady) Observe(_ time.Time, x []float64) Observation {
	d.seen++
	d.x = append(d.x[:0], x...)
	if d.seen <= d.learn {
		return Observation{Learning: true, Learned: float64(d.seen) / float64(d.learn), Tail: 1}
	}
	return Observation{Learned: 1, Tail: d.tail}
}

func (d *steady) Explain(dst []float64) float64 {
	total := 0.0
	for i := range dst {
		dst[i] = float64(i)
		total += dst[i]
	}
	return total
}

func (d *steady) MarshalBinary() ([]byte, error) { return []byte{byte(d.columns), byte(d.seen)}, nil }

func (d *steady) UnmarshalBinary(b []byte) error {
	if len(b) != 2 || int(b[0]) != d.columns {
		return errors.New("not the state of this detector")
	}
	d.seen = int(b[1])
	return nil
}

func (d *steady) Grow(series []string) error { d.columns = len(series); return nil }

type world struct {
	t        *testing.T
	p        *Predictor
	detector *steady
	schema   *fleet.Schema
	values   map[string]float64
	now      time.Time
}

func newWorld(t *testing.T, values map[string]float64, names ...string) *world {
	w := &world{t: t, detector: &steady{learn: 5, tail: 0.5}, schema: fleet.NewSchema(names), values: values, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	p, err := New("h1", Config{
		NewDetector: func(_ fleet.HostID, series []string) (Detector, error) {
			w.detector.columns = len(series)
			return w.detector, nil
		},
		Model: "steady/1", FalseAlarms: 1, Interval: time.Second, Horizon: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.p = p
	return w
}

func (w *world) step() fleet.Prediction {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	s := fleet.Sample{Host: "h1", Time: w.now, Boot: "b", Schema: w.schema, Values: make([]float64, w.schema.Len())}
	for i, n := range w.schema.Names() {
		v, ok := w.values[n]
		if !ok {
			v = math.NaN()
		}
		s.Values[i] = v
	}
	out, err := w.p.Observe(&s)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) steps(n int) (out fleet.Prediction) {
	for range n {
		out = w.step()
	}
	return out
}

func TestLearningIsVisibleAndSilent(t *testing.T) {
	w := newWorld(t, map[string]float64{"load_1m": 1}, "load_1m")
	w.detector.tail = 1e-12
	for i := 1; i <= 5; i++ {
		p := w.step()
		if p.State != fleet.PredictionLearning || p.Learned != float64(i)/5 || p.Anomalous || p.AnomalyScore != 0 {
			t.Fatalf("while learning: %+v", p)
		}
	}
	if p := w.step(); p.State != fleet.PredictionScoring || p.AnomalyScore < 11 {
		t.Errorf("after learning: %+v", p)
	}
}

func TestOneOddSampleIsNoAlarm(t *testing.T) {
	w := newWorld(t, map[string]float64{"load_1m": 1}, "load_1m")
	w.steps(6)
	w.detector.tail = 1e-9
	if p := w.steps(2); p.Anomalous {
		t.Error("two odd samples raised an alarm")
	}
	if p := w.step(); !p.Anomalous || p.Signature != fleet.SignatureUnknown {
		t.Errorf("three odd samples: %+v", p)
	}
	w.detector.tail = 0.5
	if p := w.steps(clearAfter); p.Anomalous || p.FailureProbability != 0 {
		t.Errorf("the alarm did not end: %+v", p)
	}
}

func TestTheThresholdIsTheAskedFalseAlarmRate(t *testing.T) {
	w := newWorld(t, nil, "load_1m")
	// One alarm in 30 days of one sample a second: 1 in 2,592,000.
	if got, want := w.p.Threshold(), math.Log10(2_592_000); math.Abs(got-want) > 1e-9 {
		t.Errorf("threshold %v, want %v", got, want)
	}
}

func TestAFailingHealthCheckIsAHang(t *testing.T) {
	v := map[string]float64{"unit_healthy{a.service}": 1, "unit_healthy{never.service}": 0}
	w := newWorld(t, v, "unit_healthy{a.service}", "unit_healthy{never.service}")
	if p := w.steps(10); p.Signature != fleet.SignatureNone {
		t.Fatalf("a unit that was never healthy is not failing now: %+v", p)
	}
	v["unit_healthy{a.service}"] = 0
	if p := w.steps(2); p.Signature != fleet.SignatureNone {
		t.Fatalf("two failed checks: %+v", p)
	}
	p := w.step()
	if p.Signature != fleet.SignatureServiceHang || p.Culprit != "a.service" || p.FailureProbability < 0.5 || !p.Anomalous {
		t.Errorf("three failed checks: %+v", p)
	}
	if len(p.Evidence) == 0 || !strings.Contains(p.Evidence[0], "a.service") {
		t.Errorf("evidence %q does not name the unit", p.Evidence)
	}
}

func TestASteadilyGrowingUnitIsALeak(t *testing.T) {
	const mib = 1 << 20
	v := map[string]float64{"unit_memory_bytes{a.service}": 50 * mib, "memory_available_bytes": 8 << 30}
	w := newWorld(t, v, "unit_memory_bytes{a.service}", "memory_available_bytes")
	for i := range 60 { // noise of a MiB around a level
		v["unit_memory_bytes{a.service}"] = float64(50+i%3) * mib
		if p := w.step(); p.Signature != fleet.SignatureNone {
			t.Fatalf("noise taken for a leak: %+v", p)
		}
	}
	detected := 0
	var p fleet.Prediction
	for i := 1; i <= 60 && detected == 0; i++ {
		v["unit_memory_bytes{a.service}"] += 4 * mib
		if p = w.step(); p.Signature == fleet.SignatureMemoryLeak {
			detected = i
		}
	}
	if detected == 0 || detected > 30 {
		t.Fatalf("a leak of 4 MiB/s was seen after %d s, want 1 to 30", detected)
	}
	if p.Culprit != "a.service" || p.FailureProbability < 0.5 {
		t.Errorf("prediction %+v", p)
	}
	v["unit_memory_bytes{a.service}"] = 20 * mib // restarted
	if p := w.step(); p.Signature != fleet.SignatureNone {
		t.Errorf("after the restart: %+v", p)
	}
}

func TestASlowLeakFarFromItsLimitIsNotUrgent(t *testing.T) {
	const mib = 1 << 20
	v := map[string]float64{"unit_memory_bytes{a.service}": 50 * mib, "memory_available_bytes": 1 << 40}
	w := newWorld(t, v, "unit_memory_bytes{a.service}", "memory_available_bytes")
	for range 90 {
		v["unit_memory_bytes{a.service}"] += mib
		if p := w.step(); p.FailureProbability >= 0.5 {
			t.Fatalf("a terabyte is free: %+v", p)
		}
	}
}

func TestAGrowingSchemaKeepsTheDetector(t *testing.T) {
	v := map[string]float64{"a": 1, "b": 2, "c": 3}
	w := newWorld(t, v, "a", "b")
	w.steps(6)
	w.schema = fleet.NewSchema([]string{"c", "b"})
	w.step()
	if w.detector.seen != 7 || w.detector.columns != 3 {
		t.Errorf("seen %d samples over %d columns, want 7 over 3", w.detector.seen, w.detector.columns)
	}
	if x := w.detector.x; !math.IsNaN(x[0]) || x[1] != 2 || x[2] != 3 {
		t.Errorf("columns are %v, want a missing, b 2, c 3", x)
	}
}

func TestContributionsAreTheLargestSharesFirst(t *testing.T) {
	w := newWorld(t, map[string]float64{"f": 7}, "a", "b", "c", "d", "e", "f", "g")
	p := w.steps(6)
	if len(p.Contributions) != topSeries || p.Contributions[0].Series != "g" || p.Contributions[1].Series != "f" {
		t.Fatalf("contributions %+v", p.Contributions)
	}
	if p.Contributions[0].Value != nil || p.Contributions[1].Value == nil || *p.Contributions[1].Value != 7 {
		t.Errorf("a missing value must stay missing: %+v", p.Contributions)
	}
	if got, want := p.Contributions[0].Share, 6.0/21; math.Abs(got-want) > 1e-12 {
		t.Errorf("share %v, want %v", got, want)
	}
	sum := 0.0
	for i, sub := range p.Subsystems {
		if sum += sub.Share; i > 0 && sub.Share > p.Subsystems[i-1].Share {
			t.Errorf("subsystems out of order: %+v", p.Subsystems)
		}
	}
	if math.Abs(sum-1) > 1e-12 || len(p.Subsystems) == 0 {
		t.Errorf("the subsystems' shares %+v add up to %v", p.Subsystems, sum)
	}
}

func TestAnOldSampleIsRefused(t *testing.T) {
	w := newWorld(t, map[string]float64{"a": 1}, "a")
	w.steps(3)
	w.now = w.now.Add(-2 * time.Second)
	s := fleet.Sample{Host: "h1", Time: w.now, Schema: w.schema, Values: []float64{1}}
	if _, err := w.p.Observe(&s); err == nil {
		t.Error("a sample older than the last was scored")
	}
}

var costs = Costs{CrashSeconds: 300, HandOverSeconds: 120}

func host(vms int, actions ...fleet.Action) fleet.Host {
	h := fleet.Host{ID: "h1", Actions: actions}
	for range vms {
		h.VMs = append(h.VMs, fleet.VM{ID: "v", State: "running"})
	}
	return h
}

func TestDecide(t *testing.T) {
	all := fleet.Actions()
	for _, c := range []struct {
		name        string
		signature   fleet.Signature
		probability float64
		host        fleet.Host
		want        fleet.Action
	}{
		{"a healthy host is left alone", fleet.SignatureNone, 0, host(4, all...), fleet.ActionNone},
		{"an unlikely failure is left alone", fleet.SignatureMemoryLeak, 0.1, host(4, all...), fleet.ActionNone},
		{"a hang is recycled", fleet.SignatureServiceHang, 0.9, host(4, all...), fleet.ActionRecycle},
		{"a leak is recycled", fleet.SignatureMemoryLeak, 0.8, host(4, all...), fleet.ActionRecycle},
		{"also on a host without VMs", fleet.SignatureMemoryLeak, 0.8, host(0, all...), fleet.ActionRecycle},
		{"failing memory is left by migration", fleet.SignatureMemoryHardware, 0.6, host(4, all...), fleet.ActionLiveMigrate},
		{"a kernel fault is reset where there is nowhere to go", fleet.SignatureKernelFault, 0.7,
			host(4, fleet.ActionPreservingReset), fleet.ActionPreservingReset},
		{"a host that can do nothing is handed over", fleet.SignatureDisk, 0.6, host(4), fleet.ActionHandOver},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := byRule(fleet.Prediction{Host: "h1", State: fleet.PredictionScoring, Signature: c.signature, FailureProbability: c.probability, HorizonSeconds: 3600}, c.host, costs, nil)
			if d.Action != c.want {
				t.Errorf("chose %s, want %s: %+v", d.Action, c.want, d.Alternatives)
			}
			if len(d.Alternatives) != len(fleet.Actions()) {
				t.Errorf("%d alternatives, want one for each action", len(d.Alternatives))
			}
			for _, a := range d.Alternatives {
				if a.CostVMSeconds < 0 || math.IsNaN(a.CostVMSeconds) || a.Why == "" {
					t.Errorf("alternative %+v", a)
				}
				if a.Available && c.want != fleet.ActionNone && a.CostVMSeconds < d.CostVMSeconds {
					t.Errorf("%s is cheaper than the choice", a.Action)
				}
			}
			if d.Reason == "" || d.Propensity != 1 {
				t.Errorf("reason %q, propensity %v", d.Reason, d.Propensity)
			}
		})
	}
}

func TestAStalePredictionCallsForNothing(t *testing.T) {
	d := byRule(fleet.Prediction{Host: "h1", State: fleet.PredictionStale, Signature: fleet.SignatureServiceHang, FailureProbability: 0.9}, host(3, fleet.Actions()...), costs, nil)
	if d.Action != fleet.ActionNone {
		t.Errorf("chose %s on stale evidence", d.Action)
	}
}

func TestDecideDoesNotRepeatWhatDidNotHelp(t *testing.T) {
	p := fleet.Prediction{Host: "h1", State: fleet.PredictionScoring, Signature: fleet.SignatureDisk, FailureProbability: 0.6, HorizonSeconds: 3600}
	h := host(3, fleet.ActionNone, fleet.ActionRecycle, fleet.ActionHandOver)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if d := byRule(p, h, costs, nil); d.Action != fleet.ActionRecycle {
		t.Fatalf("first: %s", d.Action)
	}
	tried := map[fleet.Action]time.Time{fleet.ActionRecycle: at}
	d := byRule(p, h, costs, tried)
	if d.Action != fleet.ActionHandOver {
		t.Errorf("after a recycle: %s", d.Action)
	}
	for _, a := range d.Alternatives {
		if a.Action == fleet.ActionRecycle && (a.Available || !strings.Contains(a.Why, "03:04:05")) {
			t.Errorf("%+v", a)
		}
	}
	tried[fleet.ActionHandOver] = at
	if d := byRule(p, h, costs, tried); d.Action != fleet.ActionNone || !strings.Contains(d.Reason, "handed over") {
		t.Errorf("with a person called: %s, %q", d.Action, d.Reason)
	}
}

func TestModelFile(t *testing.T) {
	w := newWorld(t, map[string]float64{"a": 1, "b": 2}, "a", "b")
	w.steps(8)
	data, err := w.p.Save()
	if err != nil {
		t.Fatal(err)
	}
	again := newWorld(t, map[string]float64{"a": 1, "b": 2, "c": 3}, "a", "b", "c")
	if err := again.p.Restore(data); err != nil {
		t.Fatal(err)
	}
	known := fleet.Sample{Host: "h1", Time: w.now, Boot: "b", Schema: w.schema, Values: []float64{1, 2}}
	if _, err := again.p.Observe(&known); !errors.Is(err, ErrKnown) {
		t.Errorf("a sample that the model knows: %v", err)
	}
	// It goes on where it was, also with one series more.
	again.now = w.now
	if out := again.step(); out.State != fleet.PredictionScoring || again.detector.columns != 3 {
		t.Errorf("after the restart: %+v", out)
	}
	if err := again.p.Restore(data); err == nil {
		t.Error("a running predictor was overwritten")
	}

	change := func(f func([]byte) []byte) []byte { return f(bytes.Clone(data)) }
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":           {nil, "not a model of tardigrade"},
		"another program": {[]byte("PK\x03\x04\n"), "not a model of tardigrade"},
		"newer":           {change(func(b []byte) []byte { return bytes.Replace(b, []byte("model 1\n"), []byte("model 2\n"), 1) }), "version \"2\""},
		"damaged":         {change(func(b []byte) []byte { b[40] ^= 1; return b }), "checksum"},
		"cut off":         {data[:len(data)-1], "checksum"},
		"very short":      {data[:30], "cut off"},
	} {
		w := newWorld(t, map[string]float64{"a": 1}, "a")
		if err := w.p.Restore(c.data); !errors.Is(err, ErrModelFile) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if p := w.step(); p.State != fleet.PredictionLearning {
			t.Errorf("%s: afterwards it does not learn: %+v", name, p)
		}
	}
	other, err := New("h2", Config{NewDetector: func(fleet.HostID, []string) (Detector, error) { return &steady{}, nil }, Model: "steady/1", FalseAlarms: 1, Interval: time.Second, Horizon: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Restore(data); err == nil || !strings.Contains(err.Error(), "of host") {
		t.Errorf("another host's model: %v", err)
	}
}

func FuzzReadFile(f *testing.F) {
	f.Add([]byte(magic + "1\n{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, _, err := ReadFile(data); err == nil && h.Host.Validate() != nil {
			t.Error("a header without a host was taken")
		}
	})
}

func TestAfterAnActionAHostMaySettle(t *testing.T) {
	w := newWorld(t, map[string]float64{"load_1m": 1, "unit_active{a.service}": 1, "unit_healthy{a.service}": 1}, "load_1m", "unit_active{a.service}", "unit_healthy{a.service}")
	w.steps(5)
	w.detector.tail = 1e-12
	if p := w.steps(5); !p.Anomalous {
		t.Fatalf("no alarm: %+v", p)
	}
	w.p.Recovered()
	if p := w.steps(60); p.Anomalous {
		t.Errorf("an alarm while services warm up: %+v", p)
	}
	w.values["unit_healthy{a.service}"] = 0
	if p := w.steps(5); p.Signature != fleet.SignatureServiceHang {
		t.Errorf("a failed health check was overlooked: %+v", p)
	}
	w.values["unit_healthy{a.service}"] = 1
	if p := w.steps(60); !p.Anomalous {
		t.Errorf("no alarm once the time to settle is over: %+v", p)
	}
}

func TestSuspectNamesACulpritOnlyWhereThereIsOne(t *testing.T) {
	for _, c := range []struct {
		shares  []float64
		culprit string
	}{
		{[]float64{0.19, 0.19, 0.19}, ""},
		{[]float64{0.7, 0.1, 0.1}, "a.service"},
	} {
		signature, culprit := suspect([]fleet.Contribution{
			{Series: "unit_memory_bytes{a.service}", Share: c.shares[0]}, {Series: "unit_memory_bytes{b.service}", Share: c.shares[1]},
			{Series: "unit_memory_bytes{c.service}", Share: c.shares[2]},
		})
		if signature != fleet.SignatureMemoryLeak || culprit != c.culprit {
			t.Errorf("%v: %s in %q", c.shares, signature, culprit)
		}
	}
}

func TestWhatIsUsedUpIsSeenBeforeItIsGone(t *testing.T) {
	for _, c := range []struct {
		series    string
		at        func(second int) float64
		signature fleet.Signature
		culprit   string
	}{
		{"unit_open_files_used_ratio{a.service}", func(s int) float64 { return 0.1 + 0.005*float64(s) }, fleet.SignatureServiceHang, "a.service"},
		{"unit_open_files_used_ratio{a.service}", func(s int) float64 { return 0.5 + 0.1*float64(s%2) }, fleet.SignatureNone, ""},
		{"unit_tasks{a.service}", func(s int) float64 { return 8 + 2*float64(s) }, fleet.SignatureServiceHang, "a.service"},
		{"unit_tasks{a.service}", func(s int) float64 { return 8 + float64(s%7) }, fleet.SignatureNone, ""},
		{"filesystem_available_min_ratio", func(s int) float64 { return 0.4 - 0.002*float64(s) }, fleet.SignatureDisk, ""},
		{"filesystem_available_min_ratio", func(s int) float64 { return 0.4 - 1e-7*float64(s) }, fleet.SignatureNone, ""},
		{"filesystem_available_min_ratio", func(s int) float64 { return 0.2 + 0.002*float64(s) }, fleet.SignatureNone, ""},
		{"tcp_retransmit_ratio", func(s int) float64 { return 0.1 * float64(s%2) }, fleet.SignatureNetwork, ""},
		{"tcp_retransmit_ratio", func(s int) float64 { return 0.1 * float64((s%10)/9) }, fleet.SignatureNone, ""},
	} {
		v := map[string]float64{}
		w := newWorld(t, v, c.series)
		var p fleet.Prediction
		for s := range 60 {
			v[c.series] = c.at(s)
			p = w.step()
		}
		if p.Signature != c.signature || p.Culprit != c.culprit {
			t.Errorf("%s from %v to %v: %s %q %v", c.series, c.at(0), c.at(59), p.Signature, p.Culprit, p.Evidence)
		}
	}
}

// A service whose requests wait for a lock has some 15 seconds.
func TestARushOfTasksIsSeenWithinSeconds(t *testing.T) {
	const tasks = "unit_tasks{a.service}"
	for name, c := range map[string]struct {
		at   func(s int) float64 // from the begin on
		seen bool
	}{
		"two a second":         {func(s int) float64 { return 8 + 2*float64(s) }, true},
		"of very many":         {func(s int) float64 { return 800 + 2*float64(s) }, false},
		"a pool that fills":    {func(s int) float64 { return 8 + float64(min(s, 5)*6) }, false},
		"all at once":          {func(s int) float64 { return 40 }, false},
		"one every second one": {func(s int) float64 { return 8 + float64(s/2) }, false},
	} {
		v := map[string]float64{tasks: c.at(0)}
		w := newWorld(t, v, tasks)
		w.steps(100)
		seen := false
		for s := range 16 {
			v[tasks] = c.at(s)
			seen = seen || w.step().Signature == fleet.SignatureServiceHang
		}
		if seen != c.seen {
			t.Errorf("%s: seen: %v", name, seen)
		}
	}
}

func TestASlowHealthCheckForeshadowsAFailure(t *testing.T) {
	const used = "unit_health_used_ratio{a.service}"
	from := func(calm, slow float64) func(int) float64 {
		return func(s int) float64 {
			if s < 40 {
				return calm
			}
			return slow
		}
	}
	for name, c := range map[string]struct {
		at        func(s int) float64
		waits     string // what tasks wait for from sample 40 on
		signature fleet.Signature
		culprit   string
	}{
		"of itself":                        {from(0.01, 0.5), "", fleet.SignatureServiceHang, "a.service"},
		"for a CPU":                        {from(0.01, 0.5), "pressure_cpu_some_ratio", fleet.SignatureNoisyNeighbour, ""},
		"for the disk":                     {from(0.01, 0.5), "pressure_io_full_ratio", fleet.SignatureDisk, ""},
		"for a disk, while others compute": {from(0.01, 0.5), "pressure_io_some_ratio processes_blocked pressure_cpu_some_ratio", fleet.SignatureDisk, ""},
		"while a disk is used":             {from(0.01, 0.5), "pressure_io_some_ratio pressure_cpu_some_ratio", fleet.SignatureNoisyNeighbour, ""},
		"pressure alone":                   {from(0.01, 0.02), "pressure_cpu_some_ratio", fleet.SignatureNone, ""},
		"always slow":                      {from(0.5, 0.55), "", fleet.SignatureNone, ""},
		"quick, four times so":             {from(0.01, 0.05), "", fleet.SignatureNone, ""},
		"slow now and then":                {func(s int) float64 { return 0.01 + 0.5*float64((s%10)/9) }, "", fleet.SignatureNone, ""},
		"slow before it is known": {func(s int) float64 {
			if s < 10 {
				return 0.6
			}
			return 0.01
		}, "", fleet.SignatureNone, ""},
	} {
		v := map[string]float64{}
		w := newWorld(t, v, used, "pressure_cpu_some_ratio", "pressure_io_full_ratio", "pressure_io_some_ratio", "processes_blocked")
		var p fleet.Prediction
		for s := range 60 {
			v[used] = c.at(s)
			for metric := range strings.FieldsSeq(c.waits) {
				switch {
				case s < 40:
				case metric == "processes_blocked":
					v[metric] = 3
				default:
					v[metric] = 0.9
				}
			}
			p = w.step()
		}
		if p.Signature != c.signature || p.Culprit != c.culprit {
			t.Errorf("%s: %s %q %v", name, p.Signature, p.Culprit, p.Evidence)
		}
		w.p.Recovered()
		if v[used] = c.at(0); w.step().Signature != fleet.SignatureNone {
			t.Errorf("%s: an action does not end it", name)
		}
	}
}
