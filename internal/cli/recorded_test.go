package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// TestRecordedFaultsAreForeseen runs what serve does over the recorded faults.
func TestRecordedFaultsAreForeseen(t *testing.T) {
	out, err := run(t, "replay", "--data", "../../datasets/recorded", "--json")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var sums struct {
		Failures       int     `json:"failures"`
		Foreseen       int     `json:"foreseen"`
		SignatureRight int     `json:"signature_right"`
		FalseAlarms    float64 `json:"false_per_host_day"`
		// Of each fault one: it does not change with each sample.
		Recommendations int                  `json:"recommendations"`
		Actions         map[fleet.Action]int `json:"actions"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &sums); err != nil {
		t.Fatalf("%v: %s", err, lines[len(lines)-1])
	}
	if sums.Failures != 16 || sums.Foreseen < 15 || sums.SignatureRight < 14 || sums.FalseAlarms > 1 || sums.Recommendations > 16 {
		t.Errorf("of the recorded faults: %+v", sums)
	}
	if sums.Actions[fleet.ActionRecycle] == 0 || sums.Actions[fleet.ActionLiveMigrate] == 0 {
		t.Errorf("whatever is wrong, the policy of serve recommends %v", sums.Actions)
	}
}
