package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/tardigrade-recovery/tardigrade/collector/influx/influxtest"
	"github.com/tardigrade-recovery/tardigrade/internal/control"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
)

// run is the command line, in this process; what it prints is returned.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	root := newRoot("test")
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tardigrade.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWrongUse(t *testing.T) {
	for _, args := range [][]string{
		{"serve", "extra"}, {"serve", "--no-such-flag"}, {"serve", "--interval", "soon"}, {"agent", "enroll"}, {"agent", "enroll", "a", "b"},
		{"model", "show"}, {"serve", "--log-level", "loud"}, {"no-such-command"}, {"evaluate", "anomalie", "--data", "x"}, {"model", "frobnicate"},
	} {
		if _, err := run(t, args...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run(t, "evaluate", "polici", "--hosts", "3"); err == nil || !strings.Contains(err.Error(), `evaluate has no command "polici": did you mean policy?`) {
		t.Error(err)
	}
	if out, err := run(t, "evaluate"); err != nil || !strings.Contains(out, "anomaly") {
		t.Errorf("a group alone says what is in it: %v\n%s", err, out)
	}
}

func TestStartsThatCannotWork(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	newer := t.TempDir()
	if err := os.WriteFile(filepath.Join(newer, "format"), []byte("999\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	notADir := filepath.Join(file(t, ""), "data")
	for name, c := range map[string]struct {
		config string
		args   []string
		want   []string
	}{
		"unknown key":        {"dta: x\n", nil, []string{"dta", "tardigrade.yaml"}},
		"unknown nested key": {"api: {lissten: x}\n", nil, []string{"lissten"}},
		"bad duration":       {"agent: {interval: soon}\n", nil, []string{"soon", "500ms"}},
		"port in use":        {"", []string{"--listen", busy.Addr().String()}, []string{"in use", "--listen"}},
		"not an address":     {"", []string{"--listen", "nonsense"}, []string{"listen"}},
		"newer data":         {"", []string{"--data", newer}, []string{"newer"}},
		"data not writable":  {"", []string{"--data", notADir}, []string{"--data"}},
		"beyond loopback":    {"", []string{"--listen", "0.0.0.0:0"}, []string{"tls", "127.0.0.1"}},
		"influx address":     {"influx: {url: \"nonsense\", bucket: b}\n", nil, []string{"influx.url"}},
		"no bucket":          {"influx: {url: \"http://127.0.0.1:1\"}\n", nil, []string{"influx.bucket"}},
		"no such file":       {"-", nil, []string{"configuration"}},
		"acting in a demo":   {"agent: {act: true}\n", []string{"--demo"}, []string{"agent.act"}},
		"key of no TLS":      {"bus: {listen: \"0.0.0.0:0\"}\n", nil, []string{"bus.tls"}},
	} {
		path := file(t, c.config)
		if c.config == "-" {
			path = filepath.Join(t.TempDir(), "missing.yaml")
		}
		args := []string{"serve", "--config", path}
		if !strings.Contains(strings.Join(c.args, " "), "--data") {
			args = append(args, "--data", t.TempDir())
		}
		if !strings.Contains(strings.Join(c.args, " "), "--listen") {
			args = append(args, "--listen", "127.0.0.1:0")
		}
		_, err := run(t, append(args, c.args...)...)
		if err == nil {
			t.Errorf("%s: it started", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
}

func TestAgentSaysWhatItLacks(t *testing.T) {
	_, err := run(t, "agent")
	if err == nil || !strings.Contains(err.Error(), "agent enroll") {
		t.Errorf("%v", err)
	}
}

func TestEnrolledCredentialsAreAsTheAgentWantsThem(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "h1.json")
	if said, err := run(t, "agent", "enroll", "h1", "--data", dir, "--out", out); err != nil || !strings.Contains(said, "no control plane has used "+dir) {
		t.Fatalf("%v: %s", err, said)
	}
	first, err := control.ReadCredentials(out)
	if err != nil || first.Host != "h1" {
		t.Fatalf("%+v, %v", first, err)
	}
	if _, err := run(t, "agent", "enroll", "h1", "--data", dir, "--out", out); err == nil {
		t.Error("the file was overwritten")
	}
	if again, err := control.ReadCredentials(out); err != nil || again != first {
		t.Errorf("a refused enrolment changed %+v to %+v, %v", first, again, err)
	}
	other := filepath.Join(dir, "other.json")
	if _, err := run(t, "agent", "enroll", "no such/host", "--data", dir, "--out", other); err == nil {
		t.Error("an impossible name was enrolled")
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a file of no host: %v", err)
	}
}

func TestConfigShowHidesSecretsAndIsValid(t *testing.T) {
	out, err := run(t, "config", "show", "--config", file(t, "influx: {url: \"http://127.0.0.1:1\", bucket: b, token: s3cret}\nbus: {url: \"tls://control:s3cret@n1:4222,tls://control:s3cret@n2:4222\"}\n"))
	if err != nil || strings.Contains(out, "s3cret") || !strings.Contains(out, "interval: 1s") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run(t, "config", "check", "--config", file(t, out)); err != nil {
		t.Errorf("what it shows is not valid: %v", err)
	}
}

func TestEveryCommandTeaches(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if c.Runnable() && !c.Hidden && c.HasParent() && c.Example == "" && c.Long == "" && len(c.Short) < 20 {
			t.Errorf("%s teaches nothing", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot("test"))
}

// serving starts serve in this process and returns where it listens.
func serving(t *testing.T, config string, args ...string) string {
	t.Helper()
	data := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	old := os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stderr = w // where the log goes
	root := newRoot("test")
	root.SetArgs(append([]string{"serve", "--config", file(t, config), "--data", data, "--listen", "127.0.0.1:0", "--log-json"}, args...))
	ended := make(chan error, 1)
	urls := make(chan string, 1)
	go func() {
		text := make([]byte, 64<<10)
		var log []byte
		for {
			n, err := r.Read(text)
			log = append(log, text[:n]...)
			if m := regexp.MustCompile(`"msg":"serving","url":"([^"]+)"`).FindSubmatch(log); m != nil {
				urls <- string(m[1])
				break
			}
			if err != nil {
				urls <- ""
				return
			}
		}
		io.Copy(io.Discard, r)
	}()
	go func() { ended <- root.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve ended with %v", err)
		}
		w.Close()
	})
	url := ""
	select {
	case url = <-urls:
	case err := <-ended:
		ended <- err
	case <-time.After(limit):
	}
	os.Stderr = old
	if url == "" {
		t.Fatal("serve did not begin")
	}
	return url
}

// limit is how long is waited for what comes by itself, on a machine that is busy, too.
const limit = 4 * time.Minute

func get(t *testing.T, url string, into any) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return resp.StatusCode
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestInfluxDownIsNoReasonNotToStart starts with an InfluxDB that does not answer.
func TestInfluxDownIsNoReasonNotToStart(t *testing.T) {
	nobody, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Release()
	url := serving(t, fmt.Sprintf("influx: {url: \"http://%s\", bucket: b}\nagent: {disabled: true}\n", nobody.Address()))
	until(t, "readyz says that InfluxDB is away", func() bool {
		var body struct {
			Degraded map[string]string `json:"degraded"`
		}
		code := get(t, url+"/readyz", &body)
		return code == http.StatusOK && body.Degraded["influx"] != ""
	})
}

func TestInfluxRefusesTheToken(t *testing.T) {
	server := influxtest.StartWithAuth(t)
	url := serving(t, fmt.Sprintf("influx: {url: %q, bucket: %q, token: \"admin:wrong\"}\nagent: {disabled: true}\n", server.URL, server.Bucket))
	until(t, "readyz says that the token is refused", func() bool {
		var body struct {
			Degraded map[string]string `json:"degraded"`
		}
		get(t, url+"/readyz", &body)
		return strings.Contains(body.Degraded["influx"], "token")
	})
}

// TestThisMachineIsWatched follows the first samples of the agent inside.
func TestThisMachineIsWatched(t *testing.T) {
	began := time.Now()
	url := serving(t, "agent: {host: this-machine}\n", "--interval", "200ms")
	until(t, "a sample is in the API", func() bool {
		var body struct {
			Simulated bool `json:"simulated"`
			Points    []struct{ Value float64 }
		}
		code := get(t, url+"/api/v1/hosts/this-machine/telemetry?metric=memory_available_bytes&from=-1m", &body)
		return code == http.StatusOK && len(body.Points) > 1 && body.Points[0].Value > 1<<20 && !body.Simulated
	})
	t.Logf("the first samples were in the API after %v", time.Since(began))
	var host struct {
		Simulated  bool `json:"simulated"`
		DryRun     bool `json:"dry_run"`
		Prediction struct {
			State   string
			Learned float64
		}
	}
	until(t, "the progress of learning is shown", func() bool {
		return get(t, url+"/api/v1/hosts/this-machine", &host) == http.StatusOK && host.Prediction.State == "learning" && host.Prediction.Learned > 0
	})
	if host.Simulated || !host.DryRun {
		t.Errorf("%+v", host)
	}
}

// TestDemo waits for the first simulated host to be recovered.
func TestDemo(t *testing.T) {
	url := serving(t, "agent: {disabled: true}\n", "--demo")
	until(t, "a simulated host is recovered", func() bool {
		var body struct {
			Executions []struct {
				Simulated bool
				State     string
			}
		}
		get(t, url+"/api/v1/executions", &body)
		recovered := false
		for _, e := range body.Executions {
			if !e.Simulated {
				t.Fatalf("not labelled: %+v", e)
			}
			recovered = recovered || e.State == "succeeded"
		}
		return recovered
	})
	var hosts struct{ Hosts []struct{ Simulated bool } }
	get(t, url+"/api/v1/hosts", &hosts)
	if len(hosts.Hosts) < 5 {
		t.Errorf("%d hosts", len(hosts.Hosts))
	}
	for _, h := range hosts.Hosts {
		if !h.Simulated {
			t.Error("a simulated host is not labelled")
		}
	}
}

func TestDeadLetterCommands(t *testing.T) {
	url := serving(t, "agent: {disabled: true}\n")
	out, err := run(t, "deadletter", "list", "--server", url)
	if err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("%q, %v", out, err)
	}
	for _, args := range [][]string{{"deadletter", "show", "5", "--server", url}, {"deadletter", "retry", "5", "--server", url}} {
		if _, err := run(t, args...); err == nil || !strings.Contains(err.Error(), "dead letter 5: no such record") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run(t, "deadletter", "list", "--server", "http://127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "tardigrade serve") {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := run(t, "deadletter", "list", "--server", "nonsense"); !errors.As(err, new(usageError)) {
		t.Errorf("%v", err)
	}
}

func TestPolicyCheckNamesTheLine(t *testing.T) {
	path := file(t, "version: 1\nmode: automatic\nactions:\n  recycle: {approval: maybe}\nstorm_ratio: 2\n")
	out, err := run(t, "policy", "check", path)
	if err == nil || !strings.Contains(err.Error(), path+":4:") || !strings.Contains(err.Error(), path+":5:") {
		t.Errorf("%v", err)
	}
	var answer struct {
		Valid    bool
		Revision string
		Mistakes []struct {
			Line int
			Key  string
		}
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Valid || len(answer.Mistakes) != 2 || answer.Mistakes[1].Key != "storm_ratio" || answer.Mistakes[1].Line != 5 {
		t.Errorf("%s: %v", out, err)
	}
	out, err = run(t, "policy", "check", file(t, "version: 1\nmode: automatic\n"))
	if err := json.Unmarshal([]byte(out), &answer); err != nil || !answer.Valid || len(answer.Revision) != 12 || len(answer.Mistakes) != 0 {
		t.Errorf("%s: %v", out, err)
	}
	if err != nil {
		t.Error(err)
	}
	if _, err := run(t, "policy", "check", filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestPolicyExplainWithoutAControlPlane(t *testing.T) {
	path := file(t, `version: 1
mode: automatic
actions:
  live-migrate: {approval: never}
  preserving-reset: {approval: person}
maintenance_windows: [{begin: "10:00", end: "14:00"}]
`)
	for _, c := range []struct {
		args    []string
		allowed bool
		want    string // in the only reason
	}{
		{[]string{"--action", "recycle"}, true, ""},
		{[]string{"--action", "preserving-reset"}, false, "needs the approval"},
		{[]string{"--action", "preserving-reset", "--approved"}, true, ""},
		{[]string{"--action", "live-migrate", "--approved"}, false, "rules live-migrate out"},
		{[]string{"--action", "recycle", "--at", "2026-03-04T15:00:00Z"}, false, "maintenance windows"},
		{[]string{"--action", "recycle", "--evidence-age", "90s"}, false, "evidence is 1m30s old"},
		{[]string{"--action", "recycle", "--hosts", "10", "--active", "1"}, false, "1 executions are under way"},
		{[]string{"--action", "recycle", "--hosts", "10", "--healthy", "3"}, false, "3 of the 9 other hosts are healthy"},
		{[]string{"--action", "recycle", "--hosts", "20", "--failing", "6"}, false, "storm"},
		{[]string{"--action", "recycle", "--hosts", "200", "--failing", "6"}, true, ""},
		{[]string{"--action", "hand-over", "--hosts", "20", "--failing", "20"}, true, ""},
	} {
		out, err := run(t, append([]string{"policy", "explain", "--file", path, "--host", "h", "--at", "2026-03-04T12:00:00Z"}, c.args...)...)
		var answer struct {
			Explanations []struct {
				Allowed bool
				Reasons []string
				Rules   []struct{ Rule string }
			}
		}
		if err != nil || json.Unmarshal([]byte(out), &answer) != nil || len(answer.Explanations) != 1 {
			t.Errorf("%v: %s, %v", c.args, out, err)
			continue
		}
		e := answer.Explanations[0]
		if e.Allowed != c.allowed || len(e.Rules) == 0 || c.want != "" && (len(e.Reasons) != 1 || !strings.Contains(e.Reasons[0], c.want)) {
			t.Errorf("%v: %s", c.args, out)
		}
	}
	for _, args := range [][]string{
		{"--file", path, "--host", "h", "--action", "boo"}, {"--host", "h", "--action", "boo"}, {"--file", path, "--host", "h", "--evidence-age", "-5s"},
		{"--file", path}, {"--host", "h", "--failing", "3"}, {"--host", "h", "--file", path, "--hosts", "2", "--failing", "3"}, {"--host", "h", "--file", path, "--at", "noon"},
	} {
		if _, err := run(t, append([]string{"policy", "explain"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
