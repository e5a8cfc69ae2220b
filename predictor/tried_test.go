package predictor

import (
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func TestTried(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	minute := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Minute) }
	hang, noise := fleet.SignatureServiceHang, fleet.SignatureNoisyNeighbour
	recycle := Attempt{Action: fleet.ActionRecycle, Signature: hang, Culprit: "a", At: begin}
	x := NewTried(time.Hour)
	if first := x.Add(recycle); first.Again {
		t.Errorf("%+v", first)
	}
	recycle.At = minute(5)
	recycle.Signature = noise
	if second := x.Add(recycle); !second.Again {
		t.Error("a recycle after one that did not help is taken for a first one")
	}
	if at, times := x.Against(fleet.SignatureDisk, "", minute(6)); !at[fleet.ActionRecycle].Equal(minute(5)) || times[fleet.ActionRecycle] != 2 {
		t.Errorf("%v, %v", at, times)
	}
	if at, _ := x.Against(noise, "b", minute(6)); at != nil {
		t.Errorf("what is wrong with another one is another fault, and this was tried: %v", at)
	}
	for n := 6; n <= 36; n++ { // sound, and one sample at the end is not enough to make it a fault again
		x.Observe(minute(n), true)
	}
	x.Observe(minute(37), false)
	if at, _ := x.Against(fleet.SignatureDisk, "", minute(38)); at != nil {
		t.Errorf("half an hour later there is another fault, against which this was tried: %v", at)
	}
	if at, _ := x.Against(hang, "b", minute(38)); at != nil {
		t.Errorf("half an hour later another service hangs, against which this was tried: %v", at)
	}
	if _, times := x.Against(hang, "a", minute(38)); times[fleet.ActionRecycle] != 1 {
		t.Errorf("the first one is back, and %v was tried", times)
	}
	if got := x.Back(hang, "a", minute(38)); len(got) != 1 || got[0].Signature != hang {
		t.Errorf("it is back, and this failed: %+v", got)
	}
	if got := x.Back(hang, "a", minute(39)); len(got) != 0 {
		t.Errorf("and failed again: %+v", got)
	}
	if got := x.Settle(minute(66)); len(got) != 1 || got[0].Signature != noise {
		t.Errorf("after the hour these have cured: %+v", got)
	}
	if at, _ := x.Against(hang, "a", minute(66)); at != nil {
		t.Errorf("after the hour this was tried: %v", at)
	}
}
