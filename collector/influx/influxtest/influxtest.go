// Package influxtest starts real InfluxDB 1.8 servers for tests.
package influxtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
)

// Server is a running influxd on loopback.
type Server struct {
	// URL is where it listens.
	URL string
	// Bucket is a database with its default retention policy that was made on it.
	Bucket string
	// Token is "user:password" of an administrator where authentication is on.
	Token string

	t      testing.TB
	client *http.Client
	tls    string // lines of the configuration
	dir    string
	port   *loopback.Reservation
	auth   bool
	cmd    *exec.Cmd
	done   chan struct{}
	log    *bytes.Buffer
}

// Program is the path of influxd: from TARDIGRADE_INFLUXD, the PATH, or .build/bin
// of this repository. The error says how to install it.
func Program() (string, error) {
	if p := os.Getenv("TARDIGRADE_INFLUXD"); p != "" {
		return p, nil
	}
	if p, err := exec.LookPath("influxd"); err == nil {
		return p, nil
	}
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			p := filepath.Join(dir, ".build/bin/influxd")
			if _, e := os.Stat(p); e == nil {
				return p, nil
			}
			break
		}
		dir = filepath.Dir(dir)
	}
	return "", fmt.Errorf("influxd is neither on the PATH nor in .build/bin: run .ci/install-influxd.sh")
}

// Start starts a server without authentication, with a database in it. It ends
// with the test.
func Start(t testing.TB) *Server { return start(t, &Server{}) }

// StartWithAuth starts a server on which only Token may read and write.
func StartWithAuth(t testing.TB) *Server { return start(t, &Server{auth: true}) }

// StartWithTLS starts a server that speaks https, with the certificate and key of these PEM
// files, which the authorities of the file ca certify for 127.0.0.1.
func StartWithTLS(t testing.TB, ca, cert, key string) *Server {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return start(t, &Server{
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}},
		tls:    fmt.Sprintf("  https-enabled = true\n  https-certificate = %q\n  https-private-key = %q\n", cert, key),
	})
}

func start(t testing.TB, s *Server) *Server {
	t.Helper()
	s.t, s.dir, s.Bucket = t, t.TempDir(), "telemetry/autogen"
	var err error
	if s.port, err = loopback.Reserve(); err != nil {
		t.Fatal(err)
	}
	s.URL = "http://" + s.port.Address()
	if s.client == nil {
		s.client = http.DefaultClient
	} else {
		s.URL = "https://" + s.port.Address()
	}
	t.Cleanup(func() {
		s.Kill()
		s.port.Release()
	})
	s.Run()
	if s.auth {
		s.Token = "admin:secret"
		s.Exec(`CREATE USER admin WITH PASSWORD 'secret' WITH ALL PRIVILEGES`)
	}
	s.Exec(`CREATE DATABASE telemetry`)
	return s
}

// Run starts the server, again after Kill with the data that it had, and waits
// until it answers.
func (s *Server) Run() {
	s.t.Helper()
	program, err := Program()
	if err != nil {
		s.t.Fatal(err)
	}
	config := fmt.Sprintf(`reporting-disabled = true
bind-address = "127.0.0.1:0"
[meta]
  dir = %[1]q
[data]
  dir = %[2]q
  wal-dir = %[3]q
  index-version = "tsi1"
[monitor]
  store-enabled = false
[http]
  bind-address = %[4]q
  flux-enabled = true
  auth-enabled = %[5]v
  log-enabled = false
%[6]s`, filepath.Join(s.dir, "meta"), filepath.Join(s.dir, "data"), filepath.Join(s.dir, "wal"), s.port.Address(), s.auth, s.tls)
	path := filepath.Join(s.dir, "influxdb.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.log = &bytes.Buffer{}
	s.done = make(chan struct{})
	cmd := exec.Command(program, "run", "-config", path)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("start %s: %v", program, err)
	}
	s.cmd = cmd
	go func(done chan struct{}) {
		cmd.Wait()
		close(done)
	}(s.done)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		if resp, err := s.client.Get(s.URL + "/health"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-s.done:
			s.t.Fatalf("influxd ended at its start:\n%s", s.log)
		case <-ctx.Done():
			s.Kill()
			s.t.Fatalf("influxd did not answer within a minute:\n%s", s.log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends the server with SIGKILL, as a crash would. Its data stay.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	<-s.done
	s.cmd = nil
}

// Exec runs a statement of InfluxQL, such as CREATE DATABASE, and returns the
// answer's JSON.
func (s *Server) Exec(statement string) string {
	s.t.Helper()
	req, err := http.NewRequest("POST", s.URL+"/query", strings.NewReader(url.Values{"q": {statement}}.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if user, password, ok := strings.Cut(s.Token, ":"); ok && !strings.HasPrefix(statement, "CREATE USER admin") {
		req.SetBasicAuth(user, password)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || bytes.Contains(body, []byte(`"error"`)) {
		s.t.Fatalf("%s: status %d, %s %v", statement, resp.StatusCode, body, err)
	}
	return string(body)
}
