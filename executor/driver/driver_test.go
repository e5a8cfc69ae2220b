package driver

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
)

func TestLost(t *testing.T) {
	vm := func(id, state string, memory int64, alive bool) fleet.GuestReport {
		return fleet.GuestReport{VM: fleet.VM{ID: id, State: state, MemoryBytes: memory}, Alive: alive}
	}
	before := []fleet.GuestReport{vm("a", "running", 100, true), vm("b", "paused", 100, false), vm("c", "shut-off", 0, false), vm("d", "running", 0, false), vm("e", Unknown, 0, false)}
	replaced := func(g fleet.GuestReport) []fleet.GuestReport {
		after := slices.Clone(before)
		after[slices.IndexFunc(after, func(b fleet.GuestReport) bool { return b.ID == g.ID })] = g
		return after
	}
	for name, c := range map[string]struct {
		after []fleet.GuestReport
		want  string
	}{
		"the same":       {before, ""},
		"one more":       {append([]fleet.GuestReport{vm("f", "running", 1, true)}, before...), ""},
		"missing":        {before[1:], "VM a is missing"},
		"nothing":        {nil, "VM a is missing; VM b is missing; VM d is missing; VM e is missing"},
		"paused ended":   {replaced(vm("b", "shut-off", 100, false)), "VM b was paused and is now shut-off"},
		"paused went on": {replaced(vm("b", "running", 100, true)), ""},
		"silent before":  {replaced(vm("e", "paused", 100, false)), ""},
		"silent ended":   {replaced(vm("e", "shut-off", 0, false)), "VM e was unknown and is now shut-off"},
		"paused":         {append([]fleet.GuestReport{vm("a", "paused", 100, false)}, before[1:]...), "VM a was running and is now paused"},
		"another size":   {append([]fleet.GuestReport{vm("a", "running", 50, true)}, before[1:]...), "VM a had 100 bytes"},
		"size unknown":   {append([]fleet.GuestReport{vm("a", "running", 0, true)}, before[1:]...), ""},
		"silent":         {append([]fleet.GuestReport{vm("a", "running", 100, false)}, before[1:]...), "VM a does not answer"},
		"one shut off":   {slices.Delete(slices.Clone(before), 2, 3), ""},
	} {
		if got := strings.Join(Lost(before, c.after), "; "); (c.want == "") != (got == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestHealth(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/bad":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/slow":
			<-r.Context().Done()
		case "/elsewhere":
			http.Redirect(w, r, "/bad", http.StatusFound)
		}
	}))
	defer web.Close()
	dir := t.TempDir()
	unix, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	closed, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Release()
	address := closed.Address()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "old")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(old, time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	const short = 100 * time.Millisecond
	for name, c := range map[string]struct {
		h    Health
		want string
	}{
		"none":                {Health{}, ""},
		"tcp":                 {Health{TCP: web.Listener.Addr().String()}, ""},
		"unix":                {Health{TCP: "unix:" + filepath.Join(dir, "s")}, ""},
		"tcp refused":         {Health{TCP: address}, "refused"},
		"http":                {Health{HTTP: web.URL + "/"}, ""},
		"http bad":            {Health{HTTP: web.URL + "/bad"}, "503"},
		"http redirect":       {Health{HTTP: web.URL + "/elsewhere"}, ""},
		"http slow":           {Health{HTTP: web.URL + "/slow", Timeout: short}, "deadline"},
		"http nonsense":       {Health{HTTP: "::"}, "health check"},
		"exec":                {Health{Exec: []string{"/bin/true"}}, ""},
		"exec fails":          {Health{Exec: []string{"/bin/sh", "-c", "echo no such database; exit 3"}}, "no such database"},
		"exec hangs":          {Health{Exec: []string{"/bin/sh", "-c", "sleep 1000 & sleep 1000"}, Timeout: short}, "did not end in time"},
		"exec does not exist": {Health{Exec: []string{"/nope"}}, "no such file"},
		"exec talks":          {Health{Exec: []string{"/bin/sh", "-c", "yes | head -c 1000000; exit 1"}}, "y"},
		"exec leaves a child": {Health{Exec: []string{"/bin/sh", "-c", "sleep 5 & exit 0"}}, ""},
		"file":                {Health{File: file, MaxAge: time.Minute}, ""},
		"file old":            {Health{File: old, MaxAge: time.Minute}, "1h0m"},
		"file gone":           {Health{File: filepath.Join(dir, "gone"), MaxAge: time.Minute}, "no such file"},
	} {
		if c.h.Timeout == 0 {
			c.h.Timeout = 30 * time.Second // where this machine is busy
		}
		begin := time.Now()
		err := c.h.Check(t.Context())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("%s took %v", name, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Health{Exec: []string{"/bin/sleep", "100"}}).Check(ctx); err == nil {
		t.Error("a check outlives its context")
	}
}
