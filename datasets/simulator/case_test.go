package simulator

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// TestCasesKeepTheirWord: what attempts come to is what was said of them.
func TestCasesKeepTheirWord(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[Kind]int{}
	draw, err := Cases(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		c := draw(r)
		seen[c.Kind]++
		if c.VMs != 8 || c.Level < 0 || c.Level > 0.6 || !(c.Alone() >= 0) || c.Person() > c.Alone() || c.Signature() != c.Kind.Signature() {
			t.Fatalf("%+v: alone %v, with a person %v", c, c.Alone(), c.Person())
		}
	}
	for _, k := range Kinds() {
		if seen[k] == 0 {
			t.Errorf("no case of %s among 3000", k)
		}
	}
	c := draw(r)
	for _, p := range []fleet.Phase{fleet.PhaseRecycle, fleet.PhaseReset, fleet.PhaseMigrate} {
		for _, again := range []bool{false, true} {
			want, cure := c.Try(p, again)
			const n = 100_000
			cost, cured := 0.0, 0.0
			for range n {
				v, ok := c.Attempt(r, p, again)
				cost += v / n
				if ok {
					cured += 1.0 / n
				}
			}
			if math.Abs(cured-cure) > 0.01 || math.Abs(cost-want) > 5+0.1*want {
				t.Errorf("%s: %.1f VM-seconds and cured %.3f, foretold %.1f and %.3f", p, cost, cured, want, cure)
			}
		}
	}
	if _, err := Cases(Config{CrashSeconds: math.NaN()}); err == nil {
		t.Error("costs that are no number were taken")
	}
}

func TestARepairUnderVMsCostsThem(t *testing.T) {
	for _, cost := range []float64{0, 50, -1} {
		c := calm(Planned{Host: 0, Kind: DiskWear, After: 1e9, Lasts: 3600e9})
		c.HandOverSeconds = cost
		f := build(t, c)
		steps(f, 10)
		if _, err := f.HandOver(id(f, 0)); err != nil {
			t.Fatal(err)
		}
		f.hosts[0].faults[0].repairAt = f.now + 5
		steps(f, 10)
		want := map[float64]float64{0: 240, 50: 100, -1: 0}[cost]
		if got := f.Tally().HandOverVMSeconds; got != want || f.Tally().VMSeconds() != want || len(f.Truth(id(f, 0))) != 0 {
			t.Errorf("at %v s a VM: %v VM-seconds, not %v", cost, got, want)
		}
	}
}
