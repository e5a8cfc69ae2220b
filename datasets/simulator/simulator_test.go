package simulator

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func build(t *testing.T, c Config) *Fleet {
	t.Helper()
	f, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// calm is a fleet of a few hosts on which nothing happens but what is scripted.
func calm(script ...Planned) Config {
	return Config{Hosts: 12, VMsPerHost: 2, Seed: 7, Interval: time.Second, FaultRate: -1, BenignRate: -1, BootSeconds: 30, Script: script}
}

func id(f *Fleet, i int) fleet.HostID { return f.Hosts()[i].ID }

func steps(f *Fleet, n int) (last []fleet.Sample) {
	for range n {
		last = f.Step(last)
	}
	return last
}

func TestOneSeedIsOneFleet(t *testing.T) {
	c := Config{Hosts: 20, Seed: 3, FaultRate: 60}
	a, b := build(t, c), build(t, c)
	c.Seed = 4
	other := build(t, c)
	var x, y, z []fleet.Sample
	differs := false
	for range 500 {
		x, y, z = a.Step(x), b.Step(y), other.Step(z)
		if len(x) != len(y) {
			t.Fatalf("%d and %d samples", len(x), len(y))
		}
		for i := range x {
			if x[i].Host != y[i].Host || !x[i].Simulated || !slices.EqualFunc(x[i].Values, y[i].Values, func(v, w float64) bool { return math.Float64bits(v) == math.Float64bits(w) }) {
				t.Fatalf("sample %d at %s differs", i, x[i].Time)
			}
		}
		differs = differs || len(x) != len(z) || !slices.Equal(x[0].Values, z[0].Values)
	}
	if !differs {
		t.Error("another seed is the same fleet")
	}
	if len(a.History()) == 0 || len(a.History()) != len(b.History()) {
		t.Errorf("%d and %d faults", len(a.History()), len(b.History()))
	}
}

func TestEveryKindShowsAndEnds(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			f := build(t, calm(Planned{Host: 1, Kind: kind, After: 60 * time.Second, Lasts: 5 * time.Minute, Unit: "storage-agent.service"}))
			steps(f, 59)
			if len(f.Truth(id(f, 1))) != 0 {
				t.Fatalf("too early: %+v", f.Truth(id(f, 1)))
			}
			before := f.Tally()
			steps(f, 201)
			truth := f.Truth(id(f, 1))
			if len(truth) != 1 || truth[0].Kind != kind || truth[0].Effect.IsZero() || len(truth[0].Would) != 5 {
				t.Fatalf("%+v", truth)
			}
			steps(f, 1200)
			past := f.History()[0]
			crashed := kind != NoisyNeighbour
			if past.Ending == "" || (past.Ending == Crashed) != crashed || (f.Tally().Crashes > before.Crashes) != crashed {
				t.Errorf("it ended as %q, %+v", past.Ending, f.Tally())
			}
			if crashed && f.Tally().CrashVMSeconds != 2*300 {
				t.Errorf("%+v", f.Tally())
			}
		})
	}
}

// TestActionsDoWhatTheTruthSays compares each action with what was foretold.
func TestActionsDoWhatTheTruthSays(t *testing.T) {
	phases := map[fleet.Action]fleet.Phase{fleet.ActionRecycle: fleet.PhaseRecycle, fleet.ActionPreservingReset: fleet.PhaseReset, fleet.ActionLiveMigrate: fleet.PhaseMigrate}
	cured, tried := map[fleet.Action]int{}, map[fleet.Action]int{}
	for seed := range uint64(40) {
		for action, phase := range phases {
			c := calm(Planned{Host: 0, Kind: MemoryLeak, After: time.Second, Lasts: 10 * time.Minute, Unit: "network-agent.service"})
			c.Seed = seed
			f := build(t, c)
			steps(f, 120)
			var foretold bool
			for _, w := range f.Truth(id(f, 0))[0].Would {
				if w.Action == action {
					foretold = w.Cures
				}
			}
			out, err := f.Apply(id(f, 0), phase, nil)
			if err != nil || !out.Done {
				t.Fatalf("%+v, %v", out, err)
			}
			if out.Harmed || strings.Contains(out.Detail, "no host has room") {
				continue
			}
			tried[action]++
			if len(out.Cured) == 1 {
				cured[action]++
			}
			if (len(out.Cured) == 1) != foretold {
				t.Errorf("seed %d, %s: foretold %v, %+v", seed, action, foretold, out)
			}
			if (action == fleet.ActionRecycle) != (out.VMSeconds == 0) {
				t.Errorf("%s cost %v VM-seconds", action, out.VMSeconds)
			}
			if action == fleet.ActionLiveMigrate && foretold && len(out.Moved) != 2 {
				t.Errorf("moved %v", out.Moved)
			}
		}
	}
	for action := range phases {
		if n := float64(cured[action]) / float64(tried[action]); n < 0.7 {
			t.Errorf("%s cured %.2f of the leaks", action, n)
		}
	}
}

func TestAHangFailsItsHealthCheckUntilItIsRestarted(t *testing.T) {
	f := build(t, calm(Planned{Host: 2, Kind: ServiceHang, After: time.Second, Lasts: 10 * time.Minute, Unit: "libvirtd.service"}))
	for range 600 {
		steps(f, 1)
		if u, _ := f.Unit(id(f, 2), "libvirtd.service"); !u.Healthy {
			break
		}
	}
	if u, err := f.Unit(id(f, 2), "libvirtd.service"); err != nil || u.Healthy || !u.Active {
		t.Fatalf("%+v, %v", u, err)
	}
	if u, _ := f.Unit(id(f, 2), "storage-agent.service"); !u.Healthy {
		t.Errorf("another unit: %+v", u)
	}
	for range 20 { // a restart may fail to cure
		if _, err := f.Apply(id(f, 2), fleet.PhaseRecycle, []string{"libvirtd.service"}); err != nil {
			t.Fatal(err)
		}
	}
	steps(f, 5)
	if u, _ := f.Unit(id(f, 2), "libvirtd.service"); !u.Healthy || u.Restarts < 20 {
		t.Errorf("after restarts: %+v", u)
	}
}

func TestLookAlikesNeverCrashAHost(t *testing.T) {
	f := build(t, Config{Hosts: 30, Seed: 5, FaultRate: -1, BenignRate: 10})
	steps(f, 3*24*60)
	if f.Tally().Crashes != 0 {
		t.Errorf("%+v", f.Tally())
	}
	seen := map[Kind]bool{}
	for _, x := range f.History() {
		seen[x.Kind] = true
		if !x.Benign || x.Signature != fleet.SignatureNone {
			t.Errorf("%+v", x)
		}
	}
	for _, k := range []Kind{Backup, Deploy, BatchJob} {
		if !seen[k] {
			t.Errorf("no %s in three days", k)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"too many":        {Hosts: 1 << 30},
		"too fast":        {Interval: time.Microsecond},
		"not a number":    {FaultRate: math.NaN()},
		"a bad prefix":    {Prefix: "a b"},
		"an unknown kind": {Hosts: 1, Script: []Planned{{Kind: "gremlin", Lasts: time.Second}}},
		"an unknown unit": {Hosts: 1, Script: []Planned{{Kind: MemoryLeak, Lasts: time.Second, Unit: "x.service"}}},
		"no such host":    {Hosts: 1, Script: []Planned{{Host: 1, Kind: MemoryLeak, Lasts: time.Second}}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), "simulated fleet") {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := build(t, calm())
	if _, err := f.Apply("nobody", fleet.PhaseRecycle, nil); err == nil {
		t.Error("a host that does not exist was acted on")
	}
	if _, err := f.Apply(id(f, 0), fleet.PhaseRecycle, []string{"x.service"}); err == nil {
		t.Error("a unit that does not exist was restarted")
	}
	if _, err := f.Apply(id(f, 0), "dance", nil); err == nil {
		t.Error("an unknown phase was carried out")
	}
}

func BenchmarkStep(b *testing.B) {
	f, err := New(Config{Hosts: 1000, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	var samples []fleet.Sample
	for b.Loop() {
		samples = f.Step(samples)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/sample")
}
