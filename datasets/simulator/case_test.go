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

// TestStrataAreTheMeansOfCases: drawn cases have on average what is said of their stratum, and none costs more than the most.
func TestStrataAreTheMeansOfCases(t *testing.T) {
	for _, cfg := range []Config{{}, {CrashSeconds: 90, HandOverSeconds: 1000, VMsPerHost: 3}, {CrashSeconds: 600, HandOverSeconds: 50, RepairSeconds: 7200}} {
		draw, err := Cases(cfg)
		if err != nil {
			t.Fatal(err)
		}
		strata, err := Strata(cfg)
		if err != nil {
			t.Fatal(err)
		}
		most, err := MostVMSeconds(cfg)
		if err != nil {
			t.Fatal(err)
		}
		phases := []fleet.Phase{fleet.PhaseRecycle, fleet.PhaseReset, fleet.PhaseMigrate}
		costs := func(c *Case) []float64 {
			out := []float64{c.Alone(), c.Person(), c.LeftSeconds}
			for _, p := range phases {
				own, _ := c.Try(p, false)
				out = append(out, own)
			}
			return out
		}
		type sums struct{ n, sum, squares []float64 }
		drawn := map[[2]string]*sums{}
		r := rand.New(rand.NewPCG(8, 8))
		const n = 200_000
		dearest := 0.0
		for range n {
			c := draw(r)
			k := [2]string{string(c.Kind), c.Unit}
			if drawn[k] == nil {
				drawn[k] = &sums{make([]float64, 6), make([]float64, 6), make([]float64, 6)}
			}
			all := c.resetFreeze + c.migrateFreeze + c.crashSeconds*float64(2*c.VMs+1)
			if c.Kind == NoisyNeighbour {
				all += c.Alone()
			} else {
				all += c.crashSeconds * float64(c.VMs)
			}
			dearest = max(dearest, all)
			for i, v := range costs(&c) {
				drawn[k].n[i]++
				drawn[k].sum[i] += v
				drawn[k].squares[i] += v * v
			}
		}
		if dearest > most || dearest < 0.9*most {
			t.Errorf("the dearest of %d costs %v, and %v is said to be the most", n, dearest, most)
		}
		share := 0.0
		for _, s := range strata {
			share += s.Share
			d := drawn[[2]string{string(s.Case.Kind), s.Case.Unit}]
			if d == nil {
				t.Errorf("no case of %s in %q", s.Case.Kind, s.Case.Unit)
				continue
			}
			if seen := d.n[0] / n; math.Abs(seen-s.Share) > 0.004 {
				t.Errorf("%s in %q: %v of all, and %v were drawn", s.Case.Kind, s.Case.Unit, s.Share, seen)
			}
			for i, want := range costs(&s.Case) {
				mean := d.sum[i] / d.n[i]
				e := math.Sqrt(max(d.squares[i]/d.n[i]-mean*mean, 0) / d.n[i])
				if math.Abs(mean-want) > 4.5*e+1e-6*want {
					t.Errorf("%s in %q: cost %d is %v on average, and %v in %v drawn", s.Case.Kind, s.Case.Unit, i, want, mean, d.n[i])
				}
			}
		}
		if math.Abs(share-1) > 1e-12 || len(strata) != len(drawn) {
			t.Errorf("%d strata of %d are %v of all", len(strata), len(drawn), share)
		}
	}
	bad := Config{CrashSeconds: math.NaN()}
	if _, err := Strata(bad); err == nil {
		t.Error("strata: costs that are no number were taken")
	}
	if _, err := MostVMSeconds(bad); err == nil {
		t.Error("the most: costs that are no number were taken")
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
