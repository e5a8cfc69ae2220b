package b

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// figures are what a run comes to.
type figures struct {
	Rig string `json:"rig"`
	// RecycledUnits were restarted and verified in RecycleMS, of which StartMS is what
	// they need themselves to stop and start: medians of five runs.
	RecycledUnits int     `json:"recycled_units"`
	RecycleMS     float64 `json:"recycle_ms"`
	StartMS       float64 `json:"start_ms"`
	// GuestMaxGapMS is the longest time between two ticks of the guest in a recycle: the
	// median of five runs.
	GuestMaxGapMS float64 `json:"guest_max_gap_ms"`
	// Migrated counts the migrations that succeeded, of which PostCopied went by post-copy; MigrationDowntimeMS is the longest
	// time between two ticks of the guest in one of them, the worst of all.
	Migrated            int     `json:"migrated"`
	PostCopied          int     `json:"post_copied"`
	MigrationDowntimeMS float64 `json:"migration_downtime_ms"`
	// CancelMS is the time from a person's wish to stop a migration until the guest was
	// found in one place.
	CancelMS      float64 `json:"cancel_ms"`
	DoubleRunning int     `json:"double_running"`
	RootCauseTop1 string  `json:"root_cause_top1"`
	PowerCycled   bool    `json:"power_cycled"`
	Seconds       float64 `json:"seconds"`
}

func TestRigB(t *testing.T) {
	began := time.Now()
	r := begin(t)
	t.Logf("both hosts are there after %v", time.Since(began))
	f := figures{Rig: "b"}
	part := func(name string, do func(*rig)) {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			one := *r
			one.t = t
			do(&one)
			t.Logf("it took %v", time.Since(begin))
		})
		if t.Failed() {
			t.FailNow()
		}
	}
	part("recycle", func(r *rig) { r.recycle(&f) })
	part("diagnosis", func(r *rig) { r.diagnose(&f) })
	part("migration there and back", func(r *rig) { r.migrate(&f) })
	part("the agent dies midway", func(r *rig) { r.agentDies(&f) })
	part("migration by post-copy", func(r *rig) { r.postCopy(&f) })
	part("a person cancels it midway", func(r *rig) { r.cancelled(&f) })
	part("the target dies midway", func(r *rig) { r.targetDies(&f) })
	f.DoubleRunning += r.guest.Account().Repeats
	f.Seconds = time.Since(began).Round(100 * time.Millisecond).Seconds()
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(text))
	if f.DoubleRunning != 0 {
		t.Error("the guest ran twice")
	}
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// recycle restarts the services of the first host five times under the guest.
func (r *rig) recycle(f *figures) {
	var took, own, gaps []float64
	for range 5 {
		r.guest.Reset()
		e := r.follow(r.execute("one", fleet.ActionRecycle))
		if e.State != fleet.ExecutionSucceeded || len(e.GuestsAfter) != 1 || !e.GuestsAfter[0].Alive {
			r.t.Fatalf("recycle: %+v", e)
		}
		r.ticks(5)
		gaps = append(gaps, r.guest.Account().MaxGap.Seconds()*1e3)
		var first, last time.Time
		start, units := 0.0, 0
		for _, s := range e.Steps {
			unit, restarted := strings.CutPrefix(s.Name, "restart ")
			switch {
			case restarted:
				if units++; first.IsZero() {
					first = s.Started
				}
				start += r.startTime("one", unit)
			case strings.Contains(s.Name, "stay healthy"):
				last = s.Ended
			}
		}
		f.RecycledUnits = units
		took, own = append(took, last.Sub(first).Seconds()*1e3), append(own, start*1e3)
	}
	r.at("one")
	f.RecycleMS, f.StartMS, f.GuestMaxGapMS = median(took), median(own), median(gaps)
	r.t.Logf("recycled in %.0f ms, the units' own time %.0f ms, gaps %.0f ms", took, own, gaps)
	if f.RecycledUnits != 5 {
		r.t.Errorf("%d units were recycled", f.RecycledUnits)
	}
}

// suspect is what the diagnosis says of a cause.
type suspect struct {
	Rule     string   `json:"rule"`
	Score    float64  `json:"score"`
	Culprits []string `json:"culprits"`
	Evidence []struct {
		Text string `json:"text"`
	} `json:"evidence"`
}

// about tells whether the suspect, or a line that proves it, names a service.
func (s suspect) about(service string) bool {
	for _, c := range s.Culprits {
		if strings.Contains(c, service) {
			return true
		}
	}
	for _, e := range s.Evidence {
		if strings.Contains(e.Text, " "+service+"[") {
			return true
		}
	}
	return false
}

// diagnose breaks a service of a host in three ways, of which none is cured by a
// restart, and counts how often the first suspect is the right one.
func (r *rig) diagnose(f *figures) {
	in := func(host fleet.HostID, path string) string {
		pid, err := r.hosts[host].PID()
		if err != nil {
			r.t.Fatal(err)
		}
		return fmt.Sprintf("/proc/%d/root%s", pid, path)
	}
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	hits := 0
	for _, c := range []struct {
		fault, unit, rule string
		host              fleet.HostID
		inject            func() (mend func())
	}{
		{"the file system of its state is full", "storage.service", "no-space", "two", func() func() {
			filler := in("two", store+"/filler")
			file, err := os.Create(filler)
			must(err)
			for err == nil {
				_, err = file.Write(make([]byte, 4096))
			}
			file.Close()
			return func() { must(os.Remove(filler)) }
		}},
		{"its program is gone", "monitor.service", "cannot-execute", "one", func() func() {
			program := filepath.Join(r.hosts["one"].Share, "bin/monitor")
			must(os.Rename(program, program+".away"))
			return func() { must(os.Rename(program+".away", program)) }
		}},
		{"another process has its address", "network.service", "address-in-use", "two", func() func() {
			must(r.systemctl("two", "stop", "network.service"))
			stop, err := r.occupy(r.net.two, "127.0.0.1:"+port("network"))
			must(err)
			return stop
		}},
	} {
		mend := c.inject()
		e := r.follow(r.execute(c.host, fleet.ActionRecycle))
		if e.State != fleet.ExecutionHandedOver || e.Bundle == "" {
			r.t.Fatalf("%s: %s: %s", c.fault, e.State, e.Outcome)
		}
		suspects := r.rootCause(e.ID)
		top := suspects[0]
		hit := top.Rule == c.rule && top.about(strings.TrimSuffix(c.unit, ".service"))
		r.t.Logf("%s: %+v", c.fault, suspects[:min(3, len(suspects))])
		if hit {
			hits++
		}
		mend()
		r.uncordon(c.host)
		if e := r.follow(r.execute(c.host, fleet.ActionRecycle)); e.State != fleet.ExecutionSucceeded {
			r.t.Fatalf("%s: it does not come right again: %+v", c.fault, e)
		}
	}
	f.RootCauseTop1 = fmt.Sprintf("%d/3", hits)
	if hits != 3 {
		r.t.Errorf("the first suspect was right %d times of 3", hits)
	}
	r.at("one")
}

// rootCause reads the suspects from the bundle of an execution.
func (r *rig) rootCause(id string) []suspect {
	r.t.Helper()
	resp, err := r.client.Get(r.URL + "/api/v1/executions/" + id + "/bundle")
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("the bundle: %s", resp.Status)
	}
	z, err := zstd.NewReader(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	defer z.Close()
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			r.t.Fatal("there is no root-cause.json in the bundle")
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if h.Name != "root-cause.json" {
			continue
		}
		var cause struct{ Suspects []suspect }
		if err := json.NewDecoder(archive).Decode(&cause); err != nil || len(cause.Suspects) == 0 {
			r.t.Fatalf("root-cause.json: %+v, %v", cause, err)
		}
		return cause.Suspects
	}
}

// well waits until nothing is predicted of a host.
func (r *rig) well(host fleet.HostID) {
	r.t.Helper()
	r.await(string(host)+" is well", 3*time.Minute, func() bool {
		h, ok := r.host(host)
		return ok && h.Prediction != nil && !h.Prediction.Anomalous && h.Prediction.Signature == fleet.SignatureNone
	})
}

// move migrates the guest away from a host, which is cordoned then.
func (r *rig) move(f *figures, from, to fleet.HostID) {
	r.t.Helper()
	r.well(to)
	r.guest.Reset()
	id := r.execute(from, fleet.ActionLiveMigrate)
	stop := make(chan struct{})
	twice := make(chan int)
	go func() { // watch both hosts meanwhile
		n := 0
		for {
			select {
			case <-stop:
				twice <- n
				return
			case <-time.After(20 * time.Millisecond):
				if len(r.running()) > 1 {
					n++
				}
			}
		}
	}()
	e := r.follow(id)
	close(stop)
	f.DoubleRunning += <-twice
	if e.State != fleet.ExecutionSucceeded || len(e.GuestsAfter) != 1 || e.GuestsAfter[0].Host != to {
		r.t.Fatalf("migration from %s: %+v", from, e)
	}
	r.at(to)
	for _, s := range e.Steps {
		if s.Phase == fleet.PhaseMigrate && strings.HasPrefix(s.Name, "move VM ") {
			r.t.Logf("%s: %s", s.Name, s.Detail)
		}
	}
	f.Migrated++
	f.MigrationDowntimeMS = max(f.MigrationDowntimeMS, r.guest.Account().MaxGap.Seconds()*1e3)
	r.await("the control plane knows it", 3*time.Minute, func() bool {
		a, ok := r.host(from)
		b, ok2 := r.host(to)
		return ok && ok2 && len(a.VMs) == 0 && len(b.VMs) == 1 && a.Cordon != nil && b.Cordon == nil
	})
}

func (r *rig) migrate(f *figures) {
	r.bmc.Await("on", time.Minute)
	boot := r.bootID("one")
	r.move(f, "one", "two")
	// The host does what its management controller was told.
	r.bmc.Await("on off on", time.Minute)
	r.hosts["one"].PowerOff()
	r.hosts["one"].PowerOn()
	r.await("the power of the emptied host was cycled", 3*time.Minute, func() bool {
		h, ok := r.host("one")
		return ok && h.Cordon != nil && h.Cordon.Power == fleet.PowerCycled
	})
	r.await("the emptied host is back", 3*time.Minute, func() bool {
		return r.bootID("one") != boot && r.isUp("one")
	})
	f.PowerCycled = true
	r.at("two")
	// The only other host is cordoned now, so there is no way back yet.
	e := r.follow(r.execute("two", fleet.ActionLiveMigrate))
	if e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, "one: it is cordoned") {
		r.t.Fatalf("moved to a cordoned host: %+v", e)
	}
	r.uncordon("one")
	r.move(f, "two", "one")
}

// slowly begins a migration of the guest away from host one, so slow that something can
// happen in the middle, and returns once memory is being sent.
func (r *rig) slowly() (execution string) {
	r.t.Helper()
	r.well("two")
	r.speed(2)
	r.guest.Reset()
	execution = r.execute("one", fleet.ActionLiveMigrate)
	l := r.libvirt("one")
	defer l.Disconnect()
	d, err := l.DomainLookupByName("web")
	if err != nil {
		r.t.Fatal(err)
	}
	r.await("memory is being sent", 3*time.Minute, func() bool {
		_, _, _, _, processed, _, _, _, _, _, _, _, err := l.DomainGetJobInfo(d)
		return err == nil && processed > 1<<20
	})
	return execution
}

// speed limits the migration of the guest on host one, in MiB a second.
func (r *rig) speed(mib uint64) {
	r.t.Helper()
	l := r.libvirt("one")
	defer l.Disconnect()
	d, err := l.DomainLookupByName("web")
	if err == nil {
		err = l.DomainMigrateSetMaxSpeed(d, mib, 0)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// agentDies kills the agent in the middle of a migration. The migration goes on, and
// the agent finds out what became of it.
func (r *rig) agentDies(f *figures) {
	r.uncordon("two")
	id := r.slowly()
	if err := r.systemctl("one", "kill", "--signal=KILL", "tardigrade-agent.service"); err != nil {
		r.t.Fatal(err)
	}
	r.speed(1000)
	e := r.follow(id)
	if e.State != fleet.ExecutionSucceeded || len(e.GuestsAfter) != 1 || e.GuestsAfter[0].Host != "two" {
		r.t.Fatalf("the migration of which the agent died: %+v", e)
	}
	r.at("two")
	f.Migrated++
	for _, s := range e.Steps {
		if strings.HasPrefix(s.Name, "move VM ") {
			r.t.Logf("%s: %s", s.Name, s.Detail)
		}
	}
	r.uncordon("one")
	r.move(f, "two", "one")
}

// postCopy has the guest run on the target before its memory is there.
func (r *rig) postCopy(f *figures) {
	r.uncordon("two")
	id := r.slowly()
	l := r.libvirt("one")
	d, err := l.DomainLookupByName("web")
	if err == nil {
		// It writes too little for the agent to choose this by itself.
		err = l.DomainMigrateStartPostCopy(d, 0)
	}
	l.Disconnect()
	if err != nil {
		r.t.Fatalf("post-copy: %v", err)
	}
	e := r.follow(id)
	if e.State != fleet.ExecutionSucceeded || len(e.GuestsAfter) != 1 || e.GuestsAfter[0].Host != "two" {
		r.t.Fatalf("the migration by post-copy: %+v", e)
	}
	r.at("two")
	f.Migrated++
	f.PostCopied++
	r.uncordon("one")
	r.move(f, "two", "one")
}

// cancelled has a person stop a migration in the middle.
func (r *rig) cancelled(f *figures) {
	r.uncordon("two")
	id := r.slowly()
	begin := time.Now()
	cmd := exec.Command("nsenter", "--net="+path(r.net.control), r.program, "execution", "cancel", id, "--server", r.URL)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), `"cancelled_by"`) {
		r.t.Fatalf("cancel: %v: %s", err, out)
	}
	e := r.follow(id)
	if e.State != fleet.ExecutionCancelled || !strings.Contains(e.Outcome, "0 VMs moved, 1 stayed") || len(e.GuestsAfter) != 1 || e.GuestsAfter[0].Host != "" {
		r.t.Fatalf("the migration that was cancelled: %+v", e)
	}
	f.CancelMS = time.Since(begin).Seconds() * 1e3
	r.at("one")
	if h, ok := r.host("two"); !ok || len(h.VMs) != 0 || h.Cordon != nil {
		r.t.Errorf("the target: %+v", h)
	}
}

// targetDies takes the power from the target in the middle of a migration.
func (r *rig) targetDies(f *figures) {
	id := r.slowly()
	r.hosts["two"].PowerOff()
	e := r.follow(id)
	if e.State != fleet.ExecutionHandedOver || !strings.Contains(e.Outcome, "exactly once") {
		r.t.Fatalf("the migration to a host that died: %+v", e)
	}
	r.at("one")
	r.t.Logf("%s; the guest's largest gap was %v", e.Outcome, r.guest.Account().MaxGap)
}
