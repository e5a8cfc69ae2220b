package diagnose

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tardigrade-recovery/tardigrade/executor/host"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

var _ host.Diagnostics = (*Collector)(nil)

// now is when the diagnoses of the tests begin.
var now = time.Date(2026, 11, 23, 17, 30, 0, 0, time.UTC)

// uploads keeps what was uploaded, and fails as often as it is told to.
type uploads struct {
	mu    sync.Mutex
	fail  int
	calls int
	name  string
	data  []byte
}

func (u *uploads) UploadBundle(_ context.Context, name string, r io.Reader, sum string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls++
	if u.fail > 0 {
		u.fail--
		return errors.New("the bus is away")
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
		return errors.New("wrong checksum")
	}
	u.name, u.data = name, data
	return nil
}

// unpack opens an archive and checks that its manifest is true. order has the files'
// names as they lie in it.
func unpack(t *testing.T, archive []byte) (m Manifest, files map[string]string, order []string) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	files = make(map[string]string)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !filepath.IsLocal(h.Name) {
			t.Errorf("the archive has a file %q", h.Name)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("the archive has %s twice", h.Name)
		}
		files[h.Name] = string(data)
		order = append(order, h.Name)
	}
	if len(order) == 0 || order[0] != "manifest.json" {
		t.Fatalf("the archive begins with %v, not with its manifest", order)
	}
	if err := json.Unmarshal([]byte(files["manifest.json"]), &m); err != nil {
		t.Fatal(err)
	}
	listed := []string{"manifest.json"}
	for _, f := range m.Files {
		if f.SHA256 == "" {
			if f.Error == "" {
				t.Errorf("the manifest does not say why there is no %s", f.Name)
			}
			continue
		}
		listed = append(listed, f.Name)
		sum := sha256.Sum256([]byte(files[f.Name]))
		if hex.EncodeToString(sum[:]) != f.SHA256 || len(files[f.Name]) != f.Size {
			t.Errorf("%s is not what the manifest says", f.Name)
		}
	}
	if !slices.Equal(listed, order) {
		t.Errorf("the manifest lists %v, the archive has %v", listed, order)
	}
	return m, files, order
}

func (m Manifest) file(t *testing.T, name string) File {
	t.Helper()
	for _, f := range m.Files {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("the manifest does not know %s", name)
	return File{}
}

// programs answers for programs by the beginning of their command line.
type programs map[string]string

func (p programs) run(_ context.Context, name string, args ...string) ([]byte, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	best := ""
	for k := range p {
		if strings.HasPrefix(line, k) && len(k) > len(best) {
			best = k
		}
	}
	if best == "" {
		return nil, fmt.Errorf("%s: executable file not found", name)
	}
	return []byte(p[best]), nil
}

const activeUnit = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\nExecMainStatus=0\n"

func failedUnit(result string) string {
	return "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=" + result + "\nNRestarts=5\nExecMainStatus=1\nEnvironment=DB_PASSWORD=hunter2\n"
}

func config(t *testing.T) (Config, *uploads) {
	u := &uploads{}
	return Config{
		Host: "kvm01", Uploads: u, Root: t.TempDir(), Run: programs{}.run, Log: slog.New(slog.DiscardHandler),
		Clock: func() time.Time { return now },
	}, u
}

func command(units ...string) fleet.Command {
	return fleet.Command{ID: "e1/diagnose/1", Execution: "e1", Host: "kvm01", Phase: fleet.PhaseDiagnose, Attempt: 1, Token: 7, Units: units, Reason: "nova.service did not come back"}
}

func collect(t *testing.T, cfg Config, cmd fleet.Command) (m Manifest, files map[string]string, summary string) {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	archive, summary, err := c.Collect(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	m, files, _ = unpack(t, archive)
	return m, files, summary
}

func TestTheUnitsOfACommandAreCollectedAndUploaded(t *testing.T) {
	cfg, u := config(t)
	cfg.Units = []string{"ovs.service", "nova.service"}
	cfg.Run = programs{
		"systemctl show --no-pager -- nova.service": failedUnit("exit-code"),
		"systemctl show --no-pager -- ovs.service":  activeUnit,
		"journalctl --unit=nova.service":            "2026-11-23T17:29:00.000000+00:00 kvm01 nova[7]: login with password=hunter2 refused\n",
		"journalctl --unit=ovs.service":             "",
	}.run
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	bundle, summary, err := c.Diagnose(t.Context(), command("nova.service", "../../etc/shadow", "--all", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if bundle != "e1-1.tar.zst" || u.name != bundle {
		t.Errorf("the bundle is called %q and was uploaded as %q", bundle, u.name)
	}
	if !strings.Contains(summary, "nova.service is failed (exit-code, status 1, restarted 5 times)") || strings.Contains(summary, "ovs") {
		t.Errorf("summary: %s", summary)
	}
	m, files, _ := unpack(t, u.data)
	if m.Version != 1 || m.Host != "kvm01" || m.Execution != "e1" || m.Command != "e1/diagnose/1" || !m.Time.Equal(now) || m.Reason == "" ||
		!slices.Equal(m.Units, []string{"nova.service", "ovs.service"}) {
		t.Errorf("manifest: %+v", m)
	}
	if got := files["units/nova.service/journal.log"]; !strings.HasSuffix(got, "login with password=[redacted] refused\n") {
		t.Errorf("journal: %q", got)
	}
	if got := files["units/nova.service/properties"]; !strings.Contains(got, "DB_PASSWORD=[redacted]") || strings.Contains(got, "hunter2") {
		t.Errorf("properties: %q", got)
	}
	if f := m.file(t, "units/nova.service/journal.log"); f.Redacted != 1 || f.Truncated || f.Error != "" {
		t.Errorf("%+v", f)
	}
	odd := 0
	for _, f := range m.Files {
		if strings.Contains(f.Error, "not the name of a unit") {
			odd++
		}
	}
	if odd != 3 {
		t.Errorf("%d names that are no units' were noted, 3 were given", odd)
	}
}

func TestAnUploadIsTriedAgainAndTheArchiveIsKeptIfItFails(t *testing.T) {
	synctest.Test(t, testUploadFails)
}

func testUploadFails(t *testing.T) {
	cfg, u := config(t)
	cfg.Dir = filepath.Join(t.TempDir(), "bundles")
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	u.fail = uploadAttempts - 1
	if _, _, err := c.Diagnose(t.Context(), command("nova.service")); err != nil || u.calls != uploadAttempts {
		t.Errorf("%v after %d uploads", err, u.calls)
	}
	u.fail, u.calls = 100, 0
	_, _, err = c.Diagnose(t.Context(), command("nova.service"))
	if err == nil || u.calls != uploadAttempts || !strings.Contains(err.Error(), "the bus is away") || !strings.Contains(err.Error(), "host kvm01 (execution e1, attempt 1") {
		t.Fatalf("%v after %d uploads", err, u.calls)
	}
	data, err := os.ReadFile(filepath.Join(cfg.Dir, "e1-1.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	unpack(t, data)
}

func TestTheArchiveIsTheSameForTheSameHost(t *testing.T) {
	cfg, _ := config(t)
	cfg.Run = programs{"systemctl": activeUnit, "journalctl": "2026-11-23T17:29:00.000000+00:00 kvm01 nova[7]: ready\n"}.run
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := c.Collect(t.Context(), command("a.service", "b.service", "c.service"))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		again, _, err := c.Collect(t.Context(), command("a.service", "b.service", "c.service"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, again) {
			t.Fatal("two archives of the same host differ")
		}
	}
}

func TestConfig(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no host":    func(c *Config) { c.Host = "" },
		"no uploads": func(c *Config) { c.Uploads = nil },
		"limit":      func(c *Config) { c.Limit = -1 },
		"size":       func(c *Config) { c.MaxBytes = -1 },
	} {
		cfg, _ := config(t)
		spoil(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
