package rigtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Build builds the program of this repository, whose top is root.
func Build(t *testing.T, root string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "tardigrade")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=rig", "-o", program, root)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return program
}

// Plane is a control plane that runs.
type Plane struct {
	// URL is where its API answers, and Bus where its bus listens.
	URL, Bus string

	client *http.Client
}

// Serve starts a control plane, by the command for `tardigrade serve`, which is to say
// what it does as JSON. It ends with the test. client reaches it; nil means the default.
func Serve(t *testing.T, client *http.Client, command ...string) *Plane {
	t.Helper()
	p := &Plane{client: client}
	if client == nil {
		p.client = http.DefaultClient
	}
	cmd := exec.Command(command[0], append(command[1:], "--log-json")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var log bytes.Buffer
	ready, drained := make(chan [2]string, 1), make(chan struct{})
	go func() {
		defer close(drained)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			mu.Lock()
			log.Write(append(lines.Bytes(), '\n'))
			mu.Unlock()
			var said struct{ Msg, URL, Bus string }
			if json.Unmarshal(lines.Bytes(), &said) == nil && said.Msg == "serving" {
				ready <- [2]string{said.URL, said.Bus}
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-drained
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve did not end well: %v", err)
		}
		if t.Failed() {
			mu.Lock()
			defer mu.Unlock()
			t.Logf("the control plane said:\n%s", log.Bytes()[max(0, log.Len()-8000):])
		}
	})
	select {
	case at := <-ready:
		p.URL, p.Bus = at[0], at[1]
	case <-drained:
		t.Fatalf("serve ended: %s", log.String())
	case <-time.After(3 * time.Minute):
		t.Fatal("serve did not begin within three minutes")
	}
	return p
}

// Ask calls the API, with a body of JSON or "". A good answer is decoded into into, if
// that is not nil. The code is 0 where there was no answer, or none that can be read; text
// says why then.
func (p *Plane) Ask(method, path, body string, into any) (code int, text string) {
	req, err := http.NewRequest(method, p.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && into != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(answer, into)
	}
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(answer)
}

// Read reads from the API, and tells whether that went well.
func (p *Plane) Read(path string, into any) bool {
	code, _ := p.Ask(http.MethodGet, path, "", into)
	return code == http.StatusOK
}
