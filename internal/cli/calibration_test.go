package cli

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestEvaluateCalibration(t *testing.T) {
	out, err := run(t, "evaluate", "calibration", "--hosts", "3", "--days", "6", "--learn", "12h", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Source, Detector string
		Hosts            int
		Months           float64 `json:"host_months"`
		Rates            []struct {
			Asked    float64 `json:"asked_per_host_month"`
			Alarms   int
			PerMonth float64 `json:"alarms_per_host_month"`
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Source != "simulator" || r.Detector != "serve" || r.Hosts != 3 || r.Months < 0.5 || r.Months > 0.6 || len(r.Rates) < 2 {
		t.Fatalf("%s", out)
	}
	// So short a time tells nothing of a rate of one a month, but of frequent ones.
	for _, one := range r.Rates {
		if most := 3 * one.Asked; one.PerMonth > max(most, 8/r.Months) || one.Asked >= 10 && one.PerMonth < 0.3*one.Asked {
			t.Errorf("%v alarms a host and month were asked for, %v came", one.Asked, one.PerMonth)
		}
	}
	if last := r.Rates[len(r.Rates)-1]; last.Alarms < r.Rates[0].Alarms {
		t.Errorf("%d alarms where %v were asked for, %d where %v were", last.Alarms, last.Asked, r.Rates[0].Alarms, r.Rates[0].Asked)
	}

	out, err = run(t, "evaluate", "calibration", "--data", labelled(t), "--detector", "default", "--learn", "6h", "--json")
	if err != nil || !strings.Contains(out, `"hosts":1`) || !strings.Contains(out, `"detector":"default"`) {
		t.Errorf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"--detector", "magic"}, {"--hosts", "0"}, {"--interval", "0s"}, {"--days", "-1"}} {
		if _, err := run(t, append([]string{"evaluate", "calibration"}, args...)...); !errors.As(err, new(usageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run(t, "evaluate", "calibration", "--hosts", "1", "--days", "0.5"); err == nil || !strings.Contains(err.Error(), "still being learned") {
		t.Errorf("too short: %v", err)
	}
}
