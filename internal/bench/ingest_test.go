package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/collector/influx/influxtest"
)

// TestNothingIsLost kills each part once while points are on their way.
func TestNothingIsLost(t *testing.T) {
	influxd, err := influxtest.Program()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "tardigrade")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "../..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	r, err := Ingest{
		Points: 60_000, Fields: 30, Hosts: 4, Kill: []string{Influx, Bus, Agent}, Kills: 1,
		Influxd: influxd, Program: program, Dir: t.TempDir(), Say: t.Logf,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 60_000 || r.Stored != r.Sent || r.Lost != 0 || r.Duplicates != 0 || r.Kills != 3 {
		t.Errorf("%+v", r)
	}
}

func TestRefuses(t *testing.T) {
	for _, o := range []Ingest{{}, {Points: 10, Fields: 101, Hosts: 1}, {Points: 1, Fields: 1, Hosts: 2}, {Points: 1, Fields: 1, Hosts: 1, Kill: []string{"init"}}} {
		if _, err := o.Run(t.Context()); err == nil {
			t.Errorf("%+v ran", o)
		}
	}
}
