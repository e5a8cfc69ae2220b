package placement

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const gib = 1 << 30

func source(vms ...fleet.VM) Host {
	for i := range vms {
		if vms[i].State == "" {
			vms[i].State = "running"
		}
	}
	return Host{Host: fleet.Host{ID: "sick", FaultDomain: "rack1", CPU: fleet.CPU{Arch: "x86_64", Flags: "avx sse"}, VMs: vms}}
}

func target(id fleet.HostID, free float64, change func(*Host)) Host {
	h := Host{Host: fleet.Host{ID: id, FaultDomain: "rack1", CPU: fleet.CPU{Arch: "x86_64", Flags: "avx avx2 sse"}, MemoryBytes: 64 * gib, AcceptsVMs: true},
		Healthy: true, AvailableBytes: free, BusyRatio: 0.2}
	if change != nil {
		change(&h)
	}
	return h
}

func TestChoose(t *testing.T) {
	vm := fleet.VM{ID: "1", Name: "web", MemoryBytes: 4 * gib}
	far := func(h *Host) { h.FaultDomain = "rack2" }
	for name, c := range map[string]struct {
		hosts []Host
		vm    fleet.VM
		want  string // the host, or what the error says
	}{
		"the only one":    {[]Host{target("a", 32*gib, nil)}, vm, "a"},
		"more memory":     {[]Host{target("a", 20*gib, nil), target("b", 32*gib, nil)}, vm, "b"},
		"less load":       {[]Host{target("a", 32*gib, func(h *Host) { h.BusyRatio = 0.9 }), target("b", 32*gib, nil)}, vm, "b"},
		"another domain":  {[]Host{target("a", 32*gib, nil), target("b", 32*gib, far)}, vm, "b"},
		"a tie":           {[]Host{target("b", 32*gib, nil), target("a", 32*gib, nil)}, vm, "a"},
		"not itself":      {[]Host{target("sick", 60*gib, nil), target("b", 20*gib, nil)}, vm, "b"},
		"nobody":          {nil, vm, "there is no other host"},
		"sick too":        {[]Host{target("a", 32*gib, func(h *Host) { h.Healthy = false })}, vm, "a: it is not known to be healthy"},
		"cordoned":        {[]Host{target("a", 32*gib, func(h *Host) { h.Unfit = "it is cordoned" })}, vm, "a: it is cordoned"},
		"does not accept": {[]Host{target("a", 32*gib, func(h *Host) { h.AcceptsVMs = false })}, vm, "agent.migrate.accept"},
		"simulated":       {[]Host{target("a", 32*gib, func(h *Host) { h.Simulated = true })}, vm, "same fleet"},
		"too small":       {[]Host{target("a", 10*gib, nil)}, vm, "only 3.6 GiB of memory are free"}, // 10 less a tenth of 64
		"promised to others": {[]Host{target("a", 60*gib, func(h *Host) {
			h.VMs = []fleet.VM{{State: "running", MemoryBytes: 56 * gib}, {State: "shut-off", MemoryBytes: 5 * gib}}
		})}, vm, "only 1.6 GiB"},
		"memory unknown":          {[]Host{target("a", math.NaN(), func(h *Host) { h.MemoryBytes = 0 })}, vm, "its free memory is not known"},
		"only the total is known": {[]Host{target("a", math.NaN(), nil)}, vm, "a"},
		"load unknown":            {[]Host{target("a", 32*gib, func(h *Host) { h.BusyRatio = math.NaN() }), target("b", 32*gib, func(h *Host) { h.BusyRatio = 0.9 })}, vm, "a"},
		"another architecture":    {[]Host{target("a", 32*gib, func(h *Host) { h.CPU.Arch = "aarch64" })}, vm, `its architecture is "aarch64"`},
		"CPU that can do less":    {[]Host{target("a", 32*gib, func(h *Host) { h.CPU.Flags = "sse" })}, fleet.VM{ID: "1", MemoryBytes: gib, HostCPU: true}, "lacks avx"},
		"CPU that can do more":    {[]Host{target("a", 32*gib, nil)}, fleet.VM{ID: "1", MemoryBytes: gib, HostCPU: true}, "a"},
		"CPU that does not say":   {[]Host{target("a", 32*gib, func(h *Host) { h.CPU.Flags = "" })}, fleet.VM{ID: "1", MemoryBytes: gib, HostCPU: true}, "lacks a list"},
		"any CPU":                 {[]Host{target("a", 32*gib, func(h *Host) { h.CPU.Flags = "" })}, vm, "a"},
		"pinned":                  {[]Host{target("a", 32*gib, nil)}, fleet.VM{ID: "1", Name: "web", MemoryBytes: gib, Pinned: "a device"}, "VM web (1) cannot leave the host: a device"},
		"of unknown size":         {[]Host{target("a", 32*gib, nil)}, fleet.VM{ID: "1"}, "the size of its memory is not known"},
		"shut off":                {[]Host{target("a", 32*gib, nil)}, fleet.VM{ID: "1", State: "shut-off"}, "nothing to move"},
	} {
		got, err := Choose(source(c.vm), c.hosts)
		switch {
		case err != nil && !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v", name, err)
		case err == nil && (len(got) != 1 || string(got[0].Host) != c.want || got[0].Address != c.want || got[0].VM != "1" || !strings.Contains(got[0].Why, "best of")):
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestAddress(t *testing.T) {
	got, err := Choose(source(fleet.VM{ID: "1", MemoryBytes: gib}), []Host{target("a", 32*gib, func(h *Host) { h.Address = "192.0.2.7" })})
	if err != nil || got[0].Address != "192.0.2.7" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Whatever the fleet, no target is given more than it has room for, every VM is
// placed exactly once or none is, and the order of the hosts does not matter.
func TestChooseProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	placed := 0
	for range 2000 {
		var vms []fleet.VM
		for i := range 1 + r.IntN(12) {
			vms = append(vms, fleet.VM{ID: string(rune('a' + i)), MemoryBytes: int64(1+r.IntN(16)) * gib, State: "running"})
		}
		var hosts []Host
		for i := range r.IntN(6) {
			hosts = append(hosts, target(fleet.HostID(rune('A'+i)), float64(r.IntN(64))*gib, func(h *Host) { h.BusyRatio, h.Healthy = r.Float64(), r.IntN(4) > 0 }))
		}
		from := source(vms...)
		got, err := Choose(from, hosts)
		shuffled := slices.Clone(hosts)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again, _ := Choose(from, shuffled); !reflect.DeepEqual(got, again) {
			t.Fatalf("%v became %v", got, again)
		}
		if err != nil {
			if got != nil {
				t.Fatal("some were placed in spite of the error")
			}
			continue
		}
		placed++
		seen := map[string]bool{}
		used := map[fleet.HostID]float64{}
		for _, to := range got {
			i := slices.IndexFunc(vms, func(v fleet.VM) bool { return v.ID == to.VM })
			if seen[to.VM] || i < 0 {
				t.Fatalf("%+v", got)
			}
			seen[to.VM] = true
			used[to.Host] += float64(vms[i].MemoryBytes)
		}
		if len(seen) != len(vms) {
			t.Fatalf("%d of %d VMs were placed", len(seen), len(vms))
		}
		for _, h := range hosts {
			if used[h.ID] > 0 && used[h.ID] > room(h) || used[h.ID] > 0 && !h.Healthy {
				t.Fatalf("%s has room for %v and was given %v", h.ID, room(h), used[h.ID])
			}
		}
	}
	if placed < 100 {
		t.Errorf("only %d of the fleets could take the VMs: the test says little", placed)
	}
}

// VMs that could all go to the host with most memory are spread.
func TestSpread(t *testing.T) {
	var vms []fleet.VM
	for _, id := range []string{"1", "2", "3", "4"} {
		vms = append(vms, fleet.VM{ID: id, MemoryBytes: 8 * gib})
	}
	got, err := Choose(source(vms...), []Host{target("a", 50*gib, nil), target("b", 49*gib, nil)})
	if err != nil {
		t.Fatal(err)
	}
	on := map[fleet.HostID]int{}
	for _, to := range got {
		on[to.Host]++
	}
	if on["a"] != 2 || on["b"] != 2 {
		t.Errorf("%v", on)
	}
}
