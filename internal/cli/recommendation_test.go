package cli

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// TestTheClientKnowsItsServer asks a control plane whose certificate no system knows.
func TestTheClientKnowsItsServer(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"hosts":[{"id":"b","prediction":{"failure_probability":0.1}},{"id":"a"},{"id":"c","prediction":{"failure_probability":0.9}},{"id":"d","prediction":{"state":"stale"}}]}`)
	}))
	defer s.Close()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	token := write("token", []byte("s3cret\n"))
	out, err := run(t, "host", "list", "--server", s.URL, "--ca", ca, "--token-file", token)
	var hosts []fleet.Host
	if err != nil || json.Unmarshal([]byte(out), &hosts) != nil || len(hosts) != 4 || hosts[0].ID != "d" || hosts[1].ID != "c" || hosts[2].ID != "b" {
		t.Errorf("%v: %s", err, out)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"the system's certificates": {[]string{"--token-file", token}, "--ca names"},
		"no such file":              {[]string{"--ca", filepath.Join(dir, "none"), "--token-file", token}, "--ca"},
		"not a certificate":         {[]string{"--ca", token, "--token-file", token}, "no PEM certificate"},
		"no token":                  {[]string{"--ca", ca}, "--token-file"},
	} {
		if _, err := run(t, append([]string{"host", "list", "--server", s.URL}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
	}
}

// TestRecommendationsAreDecidedFromTheShell asks a control plane that notes what it is asked for.
func TestRecommendationsAreDecidedFromTheShell(t *testing.T) {
	asked := make(chan string, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- r.Method + " " + r.URL.RequestURI() + " " + string(body)
		if strings.HasSuffix(r.URL.Path, "/reject") {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"detail":"it has expired"}`)
			return
		}
		fmt.Fprint(w, `{"id":"r1","host":"h1","action":"recycle","state":"approved","recommendations":[{"id":"r1"}]}`)
	}))
	defer s.Close()
	for _, c := range []struct {
		args       []string
		want, fail string
	}{
		{[]string{"list", "--state", "pending", "--host", "h1"}, "GET /api/v1/recommendations?host=h1&limit=20&state=pending ", ""},
		{[]string{"show", "r1"}, "GET /api/v1/recommendations/r1 ", ""},
		{[]string{"approve", "r1", "--note", "seen"}, `POST /api/v1/recommendations/r1/approve {"note":"seen"}`, ""},
		{[]string{"reject", "r1"}, `POST /api/v1/recommendations/r1/reject {"note":""}`, "expired"},
	} {
		out, err := run(t, append(append([]string{"recommendation"}, c.args...), "--server", s.URL)...)
		if c.fail == "" && (err != nil || !strings.Contains(out, "r1")) || c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
			t.Errorf("%v: %v: %s", c.args, err, out)
		}
		if got := <-asked; got != c.want {
			t.Errorf("%v asks %q", c.args, got)
		}
	}
	for _, args := range [][]string{{"show"}, {"approve", "a", "b"}, {"list", "x"}} {
		if _, err := run(t, append([]string{"recommendation"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestAnActionIsAskedForFromTheShell starts an execution, with what the audit trail needs.
func TestAnActionIsAskedForFromTheShell(t *testing.T) {
	asked := make(chan string, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- r.Method + " " + r.URL.Path + " " + string(body)
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"id":"x1","host":"h1","action":"recycle","state":"pending"}`)
	}))
	defer s.Close()
	out, err := run(t, "execution", "start", "h1", "--action", "recycle", "--reason", "it hangs", "--dry-run", "--server", s.URL)
	if err != nil || !strings.Contains(out, "x1") {
		t.Errorf("%v: %s", err, out)
	}
	if got := <-asked; got != `POST /api/v1/executions {"action":"recycle","dry_run":true,"host":"h1","reason":"it hangs"}` {
		t.Error(got)
	}
	for _, args := range [][]string{{}, {"h1"}, {"h1", "--action", "recycle"}, {"h1", "--reason", "it hangs"}, {"h1", "h2", "--action", "recycle", "--reason", "both"}} {
		if _, err := run(t, append([]string{"execution", "start"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if len(asked) > 0 {
		t.Errorf("an incomplete order was sent: %s", <-asked)
	}
}

// TestATextThatAPersonReads has what a person decides by in it.
func TestATextThatAPersonReads(t *testing.T) {
	value := 0.97
	r := fleet.Recommendation{
		ID: "r1", Host: "h1", Action: fleet.ActionRecycle, State: fleet.RecommendationPending, Reason: "the storage agent leaks",
		Prediction: fleet.Prediction{
			Signature: fleet.SignatureMemoryLeak, Culprit: "storage-agent.service", FailureProbability: 0.8, HorizonSeconds: 3600, Evidence: []string{"its memory grows"},
			Contributions: []fleet.Contribution{{Series: "memory_used_ratio", Share: 0.6, Value: &value}},
		},
		Alternatives: []fleet.Alternative{{Action: fleet.ActionRecycle, Available: true, CostVMSeconds: 12.5, CureProbability: 0.9}, {Action: fleet.ActionLiveMigrate, Why: "no target"}},
	}
	var b strings.Builder
	if err := printRecommendation(&b, r); err != nil {
		t.Fatal(err)
	}
	if err := printExecution(&b, fleet.Execution{
		ID: "x1", Host: "h1", Action: fleet.ActionRecycle, State: fleet.ExecutionHandedOver, RequestedBy: "ann", Reason: "it hangs", Outcome: "storage-agent.service did not come back", Bundle: "b1",
		Steps:        []fleet.Step{{Phase: fleet.PhaseRecycle, Name: "storage-agent.service", Attempt: 2, State: fleet.StepFailed, Detail: "connection refused"}},
		GuestsBefore: []fleet.GuestReport{{VM: fleet.VM{ID: "vm1"}}, {VM: fleet.VM{ID: "vm2"}}}, GuestsAfter: []fleet.GuestReport{{VM: fleet.VM{ID: "vm1", State: "running"}, Alive: true, MaxGapSeconds: 0.02}},
	}); err != nil {
		t.Fatal(err)
	}
	printHost(&b, api.HostView{Host: fleet.Host{ID: "h3"}, Prediction: &fleet.Prediction{State: fleet.PredictionStale, Time: time.Date(2026, 3, 4, 3, 0, 0, 0, time.UTC)}})
	printHost(&b, api.HostView{Host: fleet.Host{ID: "h2", DryRun: true, Units: []string{"libvirtd.service"}}, Prediction: &fleet.Prediction{State: fleet.PredictionLearning, Learned: 0.15, Signature: fleet.SignatureNone}, Cordon: &fleet.Cordon{}})
	for _, want := range []string{"recycle on h1: pending", "the storage agent leaks", "memory-leak of storage-agent.service", "within 1h0m0s with probability 0.80", "its memory grows", "60 % memory_used_ratio (now 0.97)", "12.5 VM-s", "90 %", "not possible", "no target",
		"recycle on h1: handed-over", "asked for by ann: it hangs", "did not come back", "connection refused", "vm1  running  true", "0.02 s", "vm2  not counted", "execution diagnosis x1", "h3, 0 VMs", "silent: its last sample is of 2026-03-04T03:00:00Z",
		"h2, 0 VMs", "only watched", "cordoned", "in order: libvirtd.service", "being learned: 15 %"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
}
