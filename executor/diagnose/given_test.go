package diagnose

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// What the agent and the control plane know is in the archive too, and what kdump left.
func TestWhatIsGivenIsInTheArchive(t *testing.T) {
	cfg, _ := config(t)
	fixture(t, cfg.Root, map[string]string{
		"var/crash/202611231600/dmesg.202611231600": "[  812.100000] BUG: unable to handle page fault for address: 0000000000001234\n[  812.200000] token=hunter2\n",
		"var/crash/202611231600/dump.202611231600":  strings.Repeat("m", 5000),
		"var/crash/127.0.0.1/vmcore-dmesg.txt":      "[  1.0] all is well\n",
	})
	schema := fleet.NewSchema([]string{"load_1m", "unit_active{a.service}"})
	wide := fleet.NewSchema([]string{"unit_active{a.service}", "new"})
	cfg.Telemetry = func() []fleet.Sample {
		return []fleet.Sample{
			{Time: now.Add(-20 * time.Second), Schema: schema, Values: []float64{0.25, math.NaN()}},
			{Time: now.Add(-10 * time.Second), Schema: wide, Values: []float64{1, 1e9}},
		}
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command("nova.service")
	cmd.Prediction = &fleet.Prediction{Host: "kvm01", Signature: fleet.SignatureMemoryLeak, Culprit: "nova.service", Evidence: []string{"it grows; password=hunter2"}}
	archive, _, err := c.Collect(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	_, files, _ := unpack(t, archive)
	at := func(ago time.Duration) string { return now.Add(-ago).UTC().Format(time.RFC3339Nano) }
	want := "time,load_1m,unit_active{a.service},new\n" + at(20*time.Second) + ",0.25,,\n" + at(10*time.Second) + ",,1,1e+09\n"
	if files["telemetry.csv"] != want {
		t.Errorf("telemetry.csv:\n%s\nwant:\n%s", files["telemetry.csv"], want)
	}
	var p fleet.Prediction
	if err := json.Unmarshal([]byte(files["prediction.json"]), &p); err != nil || p.Culprit != "nova.service" || strings.Contains(files["prediction.json"], "hunter2") {
		t.Errorf("prediction.json: %s, %v", files["prediction.json"], err)
	}
	if log := files["vmcore/202611231600_dmesg.202611231600"]; !strings.Contains(log, "unable to handle page fault") || strings.Contains(log, "hunter2") {
		t.Errorf("the kernel's log in the crash dump: %q", log)
	}
	if list := files["vmcore/list.txt"]; !strings.Contains(list, "5000 bytes 202611231600_dump.202611231600") || files["vmcore/202611231600_dump.202611231600"] != "" {
		t.Errorf("the list of dumps: %q", list)
	}
	cause, markdown, err := ReadRootCause(bytes.NewReader(archive))
	if err != nil || cause.Host != "kvm01" || len(cause.Suspects) == 0 || cause.Suspects[0].Class != fleet.SignatureKernelFault || !strings.Contains(markdown, "vmcore/202611231600_dmesg.202611231600:1") {
		t.Errorf("%+v, %v\n%s", cause, err, markdown)
	}
}

// Of telemetry that is too long, the newest part is kept.
func TestTelemetryIsBounded(t *testing.T) {
	cfg, _ := config(t)
	cfg.MaxBytes = 1 << 20
	schema := fleet.NewSchema([]string{"a", "b"})
	var samples []fleet.Sample
	for i := range 5000 {
		samples = append(samples, fleet.Sample{Time: now.Add(time.Duration(i-5000) * time.Second), Schema: schema, Values: []float64{float64(i), 0.5}})
	}
	cfg.Telemetry = func() []fleet.Sample { return samples }
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	archive, _, err := c.Collect(t.Context(), command("nova.service"))
	if err != nil {
		t.Fatal(err)
	}
	m, files, _ := unpack(t, archive)
	text := files["telemetry.csv"]
	if len(text) > 3<<20/100 || !strings.HasPrefix(text, "time,a,b\n") || !strings.HasSuffix(text, ",4999,0.5\n") {
		t.Errorf("%d bytes: %.100s … %s", len(text), text, text[max(0, len(text)-60):])
	}
	for _, f := range m.Files {
		if f.Name == "telemetry.csv" && !strings.Contains(f.Error, "older samples are left out") {
			t.Errorf("%+v", f)
		}
	}
}

func TestReadRootCauseOfOddArchives(t *testing.T) {
	good := func(files ...content) []byte {
		archive, err := pack(Manifest{}, files)
		if err != nil {
			t.Fatal(err)
		}
		return archive
	}
	file := func(name, text string) content { return content{File: File{Name: name}, data: []byte(text)} }
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"nothing":            {nil, ""},
		"not zstd":           {[]byte("hello"), "read the archive"},
		"without a cause":    {good(), ErrNoConclusion.Error()},
		"only half":          {good(file("root-cause.json", `{"version":1}`)), ErrNoConclusion.Error()},
		"a newer one":        {good(file("root-cause.json", `{"version":9}`), file("root-cause.md", "x")), "version 9"},
		"not JSON":           {good(file("root-cause.json", "{"), file("root-cause.md", "x")), "root-cause.json"},
		"far too large":      {good(file("root-cause.md", strings.Repeat("x", maxConclusion+1))), "larger than"},
		"cut off in the end": {good(file("root-cause.json", `{"version":1}`), file("root-cause.md", "x"))[:60], ""},
	} {
		_, _, err := ReadRootCause(bytes.NewReader(c.archive))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadRootCause(f *testing.F) {
	archive, err := pack(Manifest{}, []content{{File: File{Name: "root-cause.json"}, data: []byte(`{"version":1,"suspects":[{"rule":"x"}]}`)}, {File: File{Name: "root-cause.md"}, data: []byte("# x")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(archive)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, data []byte) {
		cause, markdown, err := ReadRootCause(bytes.NewReader(data))
		if err == nil && (cause.Version != rootCauseVersion || markdown == "") {
			t.Error(fmt.Sprint("accepted ", cause, markdown, errors.Is(err, ErrNoConclusion)))
		}
	})
}
