package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	influxdb2 "github.com/influxdata/influxdb-client-go/v2"

	"github.com/tardigrade-recovery/tardigrade/collector/influx/influxtest"
	"github.com/tardigrade-recovery/tardigrade/executor/driver/drivertest"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const (
	hostName = "e2e-host"
	guestMiB = 64
)

var services = []string{"storage", "network", "monitor"}

// story is what the tests below share.
type story struct {
	*rigtest.Plane
	t      *testing.T
	influx *influxtest.Server
	host   *drivertest.Booted
	guest  *rigtest.Watch
}

// line is what a run comes to.
type line struct {
	Story         string  `json:"story"`
	Fault         string  `json:"fault"`
	Recovered     bool    `json:"recovered"`
	DetectSeconds float64 `json:"detect_s"`
	RecoverS      float64 `json:"recover_s"`
	GuestMaxGapMS float64 `json:"guest_max_gap_ms"`
	GuestCorrupt  uint32  `json:"guest_corrupt"`
	InfluxSamples int64   `json:"influx_samples"`
	AgentMiB      float64 `json:"agent_rss_mib"`
}

// TestStory boots a host with three services and a guest, an agent on it and a
// control plane beside it, and lets the services fail in three ways.
func TestStory(t *testing.T) {
	s := begin(t)
	s.await("the host is known, with its guest", 3*time.Minute, func() bool {
		h, ok := s.view()
		return ok && len(h.VMs) == 1 && h.VMs[0].State == "running"
	})
	seen := 0.0
	s.await("its normal is learned", 3*time.Minute, func() bool {
		h, ok := s.view()
		if !ok || h.Prediction == nil {
			return false
		}
		if p := h.Prediction; p.State == fleet.PredictionLearning && p.Learned > 0 && p.Learned < 1 {
			seen = p.Learned
		}
		return h.Prediction.State == fleet.PredictionScoring
	})
	if seen == 0 {
		t.Error("no progress of learning was shown")
	}
	var total line
	for _, c := range []struct {
		fault, service string
		signature      fleet.Signature
	}{
		{"leak", "storage", fleet.SignatureMemoryLeak},
		{"hang", "monitor", fleet.SignatureServiceHang},
	} {
		t.Run(c.fault, func(t *testing.T) {
			s := *s
			s.t = t
			l := s.recycled(c.fault, c.service, c.signature)
			text, _ := json.Marshal(l)
			t.Logf("%s", text)
			if total.Story == "" {
				total = l
				return
			}
			total.Fault += "+" + l.Fault
			total.Recovered = total.Recovered && l.Recovered
			total.DetectSeconds, total.RecoverS = max(total.DetectSeconds, l.DetectSeconds), max(total.RecoverS, l.RecoverS)
			total.GuestMaxGapMS, total.GuestCorrupt = max(total.GuestMaxGapMS, l.GuestMaxGapMS), l.GuestCorrupt
			total.InfluxSamples, total.AgentMiB = l.InfluxSamples, l.AgentMiB
		})
	}
	t.Run("a service that stays down is diagnosed and handed over", func(t *testing.T) {
		s := *s
		s.t = t
		s.handedOver("network")
	})
	if a := s.guest.Account(); a.Boots != 1 || a.Jumps != 0 || a.Corrupt != 0 || a.Garbled != 0 {
		t.Errorf("the guest noticed: %+v", a)
	}
	if !t.Failed() {
		text, _ := json.Marshal(total)
		fmt.Println(string(text))
	}
}

// recycled injects a fault, follows it to the end, and returns what came of it.
func (s *story) recycled(fault, service string, signature fleet.Signature) line {
	s.t.Helper()
	s.inject(service, fault)
	injected := time.Now()
	unit := service + ".service"
	rec := s.pending(signature, unit)
	l := line{Story: "recycle", Fault: fault, DetectSeconds: rec.Time.Sub(injected).Seconds()}
	if rec.Action != fleet.ActionRecycle || rec.Reason == "" || len(rec.Alternatives) != 5 {
		s.t.Fatalf("recommended: %+v", rec)
	}
	s.guest.Reset()
	began := time.Now()
	if code, text := s.post("/api/v1/recommendations/"+rec.ID+"/approve", `{"note":"as the story goes"}`); code != http.StatusOK {
		s.t.Fatalf("approve: %d %s", code, text)
	}
	if code, text := s.post("/api/v1/recommendations/"+rec.ID+"/approve", `{}`); code != http.StatusConflict {
		s.t.Errorf("approved twice: %d %s", code, text)
	}
	e := s.ended(rec.ID)
	l.RecoverS = e.Ended.Sub(e.Created).Seconds()
	if e.State != fleet.ExecutionSucceeded || len(e.GuestsBefore) != 1 || len(e.GuestsAfter) != 1 || !e.GuestsAfter[0].Alive {
		s.t.Fatalf("executed: %+v", e)
	}
	s.t.Logf("from the approval to the end of the execution %v", time.Since(began))
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := s.guest.Await(ctx, 5); err != nil {
		s.t.Error(err)
	}
	a := s.guest.Account()
	l.GuestMaxGapMS, l.GuestCorrupt = a.MaxGap.Seconds()*1e3, a.Corrupt
	s.await(unit+" is healthy in the telemetry", 3*time.Minute, func() bool {
		h, ok := s.view()
		return ok && h.Prediction != nil && h.Prediction.Signature == fleet.SignatureNone
	})
	s.await("the outcome is recorded", 3*time.Minute, func() bool {
		r, ok := s.recommendation(rec.ID)
		return ok && r.State == fleet.RecommendationDone && r.Execution == e.ID
	})
	s.await("the samples are in InfluxDB", 3*time.Minute, func() bool {
		l.InfluxSamples = s.stored("memory_available_bytes")
		return l.InfluxSamples >= int64(time.Since(injected).Seconds())-5
	})
	l.AgentMiB = s.agentMiB()
	l.Recovered = true
	return l
}

// handedOver breaks a service for good.
func (s *story) handedOver(service string) {
	s.t.Helper()
	s.inject(service, "broken")
	s.inject(service, "hang")
	rec := s.pending(fleet.SignatureServiceHang, service+".service")
	if code, text := s.post("/api/v1/recommendations/"+rec.ID+"/approve", `{}`); code != http.StatusOK {
		s.t.Fatalf("approve: %d %s", code, text)
	}
	e := s.ended(rec.ID)
	if e.State != fleet.ExecutionHandedOver || e.Bundle == "" || !strings.Contains(e.Outcome, service+".service") {
		s.t.Fatalf("executed: %+v", e)
	}
	resp, err := http.Get(s.URL + "/api/v1/executions/" + e.ID + "/bundle")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	archive, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %v", resp.Status, err)
	}
	for _, name := range []string{"telemetry.csv", "prediction.json"} {
		one := exec.Command("tar", "--zstd", "-xO", name)
		one.Stdin = bytes.NewReader(archive)
		if text, err := one.Output(); err != nil || !bytes.Contains(text, []byte(service+".service")) {
			s.t.Errorf("%s in the bundle: %v, %.500s", name, err, text)
		}
	}
	var cause struct {
		Suspects []struct {
			Evidence []struct{ Text string }
		}
	}
	if !s.Read("/api/v1/executions/"+e.ID+"/root-cause", &cause) || len(cause.Suspects) == 0 || len(cause.Suspects[0].Evidence) == 0 {
		s.t.Errorf("the root cause: %+v", cause)
	}
	list := exec.Command("tar", "--zstd", "-xO", "--wildcards", "*"+service+".service*")
	list.Stdin = bytes.NewReader(archive)
	text, err := list.Output()
	if err != nil || !bytes.Contains(text, []byte("no space left on device")) || !bytes.Contains(text, []byte("ActiveState=")) {
		s.t.Errorf("the bundle of %d bytes does not tell why: %v, %.2000s", len(archive), err, text)
	}
}

func (s *story) inject(service, fault string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.host.Share, "faults", service+"."+fault), nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// begin starts everything.
func begin(t *testing.T) *story {
	program := rigtest.Build(t, "../..")
	s := &story{t: t, influx: influxtest.StartWithAuth(t)}
	data := t.TempDir()
	config := filepath.Join(data, "serve.yaml")
	write(t, config, fmt.Sprintf(`data: %s
api: {listen: "127.0.0.1:0"}
bus: {listen: "127.0.0.1:0"}
influx: {url: %q, bucket: %q, token: %q}
agent: {disabled: true}
model: {learn: 20s}
policy: {cooldown: 1s}
`, filepath.Join(data, "serve"), s.influx.URL, s.influx.Bucket, s.influx.Token))
	credentials, err := exec.Command(program, "agent", "enroll", hostName, "--config", config).Output()
	if err != nil {
		t.Fatalf("enroll: %v", err)
	}
	s.serve(program, config)

	units := map[string]string{
		"tardigrade-agent.service": "[Service]\nExecStart=/share/tardigrade agent --config /etc/agent.yaml --log-json\nStandardError=file:/share/agent.log\n",
		"guest.service":            "[Service]\nExecStart=/usr/bin/qemu-system-x86_64 -accel tcg -name web -m 64 -display none -nodefaults -monitor none -drive file=/share/boot.img,format=raw,if=floppy,readonly=on -serial unix:/share/serial -qmp unix:/run/guests/web.qmp,server=on,wait=off\nRuntimeDirectory=guests\n",
	}
	var list strings.Builder
	start := []string{"tardigrade-agent.service", "guest.service"}
	for _, name := range services {
		port, err := loopback.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(port.Release)
		listen := port.Address()
		units[name+".service"] = "[Service]\nExecStart=/test\nEnvironment=" + roleVariable + "=" + name + " LISTEN=" + listen + "\n"
		fmt.Fprintf(&list, "    - {name: %s.service, health: {http: \"http://%s/\", timeout: 500ms}}\n", name, listen)
		start = append(start, name+".service")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.host = drivertest.Boot(t, drivertest.Host{Units: units, Start: start, Program: self, Prepare: func(share string) error {
		if err := os.Mkdir(filepath.Join(share, "faults"), 0o777); err != nil {
			return err
		}
		sector, err := rigtest.BootSector(guestMiB)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(share, "boot.img"), sector, 0o644); err != nil {
			return err
		}
		serial, err := net.Listen("unix", filepath.Join(share, "serial"))
		if err != nil {
			return err
		}
		t.Cleanup(func() { serial.Close() })
		pipe, in := io.Pipe()
		s.guest = rigtest.NewWatch(pipe)
		go func() {
			for { // a second connection would be a second start, which the watch counts
				c, err := serial.Accept()
				if err != nil {
					return
				}
				io.Copy(in, c)
			}
		}()
		return exec.Command("cp", program, filepath.Join(share, "tardigrade")).Run()
	}, Files: map[string]string{
		"etc/credentials.json": string(credentials),
		"etc/agent.yaml": `agent:
  host: ` + hostName + `
  bus: nats://` + s.Bus + `
  credentials: /etc/credentials.json
  data: /var/lib/tardigrade
  act: true
  guests: {qmp_dir: /run/guests}
  units:
` + list.String(),
	}})
	return s
}

// build builds the program.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve starts the control plane.
func (s *story) serve(program, config string) {
	s.t.Helper()
	started := time.Now()
	s.Plane = rigtest.Serve(s.t, nil, program, "serve", "--config", config)
	s.await("serve is ready", 3*time.Minute, func() bool { return s.Read("/readyz", nil) })
	s.t.Logf("serve was ready %v after its start", time.Since(started))
}

// await polls for a state of the world outside this process.
func (s *story) await(what string, limit time.Duration, ok func() bool) {
	s.t.Helper()
	end := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(end) {
			agent, _ := os.ReadFile(filepath.Join(s.share(), "agent.log"))
			h, _ := s.view()
			view, _ := json.Marshal(h)
			s.t.Fatalf("not within %v: %s\nhost: %s\nagent: %s", limit, what, view, agent[max(0, len(agent)-3000):])
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *story) share() string {
	if s.host == nil {
		return ""
	}
	return s.host.Share
}

func (s *story) post(path, body string) (int, string) {
	s.t.Helper()
	return s.Ask(http.MethodPost, path, body, nil)
}

type view struct {
	fleet.Host
	Prediction *fleet.Prediction `json:"prediction"`
}

func (s *story) view() (view, bool) {
	var v view
	return v, s.Read("/api/v1/hosts/"+hostName, &v)
}

func (s *story) recommendations() []fleet.Recommendation {
	var all struct{ Recommendations []fleet.Recommendation }
	s.Read("/api/v1/recommendations", &all)
	return all.Recommendations
}

func (s *story) recommendation(id string) (fleet.Recommendation, bool) {
	for _, r := range s.recommendations() {
		if r.ID == id {
			return r, true
		}
	}
	return fleet.Recommendation{}, false
}

// pending waits for a recommendation against a fault that can be approved. What a machine that is busy with other tests
// has recommended besides is rejected, as a person would.
func (s *story) pending(signature fleet.Signature, unit string) (rec fleet.Recommendation) {
	s.t.Helper()
	s.await(fmt.Sprintf("a recommendation against %s of %s", signature, unit), 4*time.Minute, func() bool {
		for _, r := range s.recommendations() {
			switch {
			case r.State != fleet.RecommendationPending:
			case r.Prediction.Signature == signature && r.Prediction.Culprit == unit:
				rec = r
				return true
			default:
				_, text := s.post("/api/v1/recommendations/"+r.ID+"/reject", `{"note":"another test does that"}`)
				s.t.Logf("rejected: %s", text)
			}
		}
		return false
	})
	return rec
}

// ended waits for the end of the execution of a recommendation.
func (s *story) ended(recommendation string) (e fleet.Execution) {
	s.t.Helper()
	s.await("the execution has ended", 3*time.Minute, func() bool {
		var all struct{ Executions []fleet.Execution }
		s.Read("/api/v1/executions", &all)
		for _, x := range all.Executions {
			if x.Recommendation == recommendation && x.State.Final() {
				e = x
				return true
			}
		}
		return false
	})
	return e
}

// stored counts the values of a metric of the host that InfluxDB has.
func (s *story) stored(metric string) int64 {
	client := influxdb2.NewClient(s.influx.URL, s.influx.Token)
	defer client.Close()
	result, err := client.QueryAPI("").Query(s.t.Context(), fmt.Sprintf(
		`from(bucket: %q) |> range(start: -1h) |> filter(fn: (r) => r.host == %q and r._field == %q) |> group() |> count()`, s.influx.Bucket, hostName, metric))
	if err != nil {
		s.t.Logf("query: %v", err)
		return 0
	}
	defer result.Close()
	var n int64
	for result.Next() {
		v, _ := result.Record().Value().(int64)
		n += v
	}
	return n
}

// agentMiB is the resident memory of the agent on the host.
func (s *story) agentMiB() float64 {
	first, err := s.host.PID()
	if err != nil {
		s.t.Error(err)
		return 0
	}
	// Other tests may run agents on hosts of their own.
	out, err := exec.Command("pgrep", "--ns", strconv.Itoa(first), "--nslist", "pid", "-f", "^/share/tardigrade agent").Output()
	if err != nil {
		s.t.Errorf("the agent does not run: %v", err)
		return 0
	}
	own, err := os.Stat(s.host.Share)
	if err != nil {
		s.t.Error(err)
		return 0
	}
	var status []byte
	for pid := range strings.FieldsSeq(string(out)) {
		// There may be others, on hosts of other tests.
		share, err := os.Stat("/proc/" + pid + "/root/share")
		if err != nil || !os.SameFile(own, share) {
			continue
		}
		if status, err = os.ReadFile("/proc/" + pid + "/status"); err != nil {
			s.t.Error(err)
		}
	}
	var kib float64
	for l := range strings.Lines(string(status)) {
		fmt.Sscanf(l, "VmRSS: %f kB", &kib)
	}
	return kib / 1024
}
