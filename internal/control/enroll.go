package control

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Credentials is the file by which an agent shows which host it speaks for.
type Credentials struct {
	Host  fleet.HostID `json:"host"`
	Token string       `json:"token"`
}

// ReadCredentials reads the file that [Enroll] made. It must not be readable by
// others.
func ReadCredentials(path string) (Credentials, error) {
	var c Credentials
	info, err := os.Stat(path)
	if err != nil {
		return c, fmt.Errorf("read the agent's credentials: %w; make them on the control plane with 'tardigrade agent enroll HOST'", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return c, fmt.Errorf("the agent's credentials %s can be read by others: chmod 600 %s", path, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the agent's credentials: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("the agent's credentials %s are damaged: %w", path, err)
	}
	if err := c.Host.Validate(); err != nil || c.Token == "" {
		return c, fmt.Errorf("the agent's credentials %s are incomplete: %w", path, errors.Join(err, errors.New("host and token are needed")))
	}
	return c, nil
}

// Enroll makes credentials for a host and notes their checksum in the control
// plane's data directory, also while it runs. Credentials made earlier for the
// host stop working.
func Enroll(dataDir string, host fleet.HostID) (Credentials, error) {
	c := Credentials{Host: host, Token: newToken()}
	if err := host.Validate(); err != nil {
		return c, err
	}
	dir := filepath.Join(dataDir, "agents")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return c, fmt.Errorf("enroll %s: %w", host, err)
	}
	// Where that fails, the earlier credentials stay good.
	if err := datadir.WriteFile(filepath.Join(dir, string(host)), []byte(checksum(c.Token)+"\n")); err != nil {
		return c, fmt.Errorf("enroll %s: %w", host, err)
	}
	return c, nil
}

func newToken() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func checksum(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// tokens tells which host an agent's token belongs to: enrolled ones, and those
// of agents inside this process.
type tokens struct {
	dir string

	mu     sync.Mutex
	inside map[fleet.HostID]string
}

// grant admits an agent inside this process until it ends.
func (t *tokens) grant(host fleet.HostID) string {
	token := newToken()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inside == nil {
		t.inside = make(map[fleet.HostID]string)
	}
	t.inside[host] = checksum(token)
	return token
}

// revoke ends what a host was enrolled with.
func (t *tokens) revoke(host fleet.HostID) error {
	if err := os.Remove(filepath.Join(t.dir, string(host))); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (t *tokens) check(host fleet.HostID, token string) bool {
	sum := checksum(token)
	t.mu.Lock()
	want, ok := t.inside[host]
	t.mu.Unlock()
	if ok && subtle.ConstantTimeCompare([]byte(sum), []byte(want)) == 1 {
		return true
	}
	data, err := os.ReadFile(filepath.Join(t.dir, string(host)))
	return err == nil && subtle.ConstantTimeCompare([]byte(sum), []byte(strings.TrimSpace(string(data)))) == 1
}
