package predictor

import (
	"strings"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// seen is a sample that speaks for an action of a culprit with a probability; calm is one in which nothing is wrong.
type seen struct {
	action      fleet.Action
	culprit     string
	probability float64
}

var calm = seen{action: fleet.ActionNone}

// until counts the samples until s stands no more, and says why; at most 200.
func until(s *Standing, samples ...seen) (int, string) {
	for i := range 200 {
		x := samples[i%len(samples)]
		p := fleet.Prediction{Anomalous: x != calm, Signature: fleet.SignatureDisk, Culprit: x.culprit, FailureProbability: x.probability}
		if why := s.Over(p, Decision{Action: x.action}); why != "" {
			return i + 1, why
		}
	}
	return 0, ""
}

func TestARecommendationStands(t *testing.T) {
	recycle := seen{fleet.ActionRecycle, "a.service", 0.5}
	other := seen{fleet.ActionRecycle, "b.service", 0.6}
	migrate := seen{fleet.ActionLiveMigrate, "", 0.6}
	sure := seen{fleet.ActionLiveMigrate, "", 0.95}
	unsure := seen{fleet.ActionRecycle, "b.service", 0.4}
	reset := seen{fleet.ActionPreservingReset, "", 0.6}
	waits := seen{fleet.ActionNone, "", 0.5}
	unusual := seen{fleet.ActionRecycle, "a.service", 0.25}
	for name, x := range map[string]struct {
		from    seen
		samples []seen
		after   int // 0: it stands
		why     string
	}{
		"the same":                            {recycle, []seen{recycle}, 0, ""},
		"every other sample points elsewhere": {recycle, []seen{migrate, recycle}, 0, ""},
		"two others take turns":               {recycle, []seen{migrate, reset}, 0, ""},
		"a failing health check in between":   {migrate, []seen{{fleet.ActionRecycle, "a.service", 0.9}, {fleet.ActionRecycle, "a.service", 0.9}, {fleet.ActionRecycle, "a.service", 0.9}, migrate}, 0, ""},
		"another action, again and again":     {recycle, []seen{migrate}, clearAfter, "live-migrate"},
		"another service, again and again":    {recycle, []seen{other}, clearAfter, "b.service"},
		"perhaps another service":             {recycle, []seen{unsure}, 0, ""},
		"evidence that is clearly stronger":   {unusual, []seen{sure}, 1, "clearly stronger"},
		"evidence as strong as it was before": {unusual, []seen{recycle, sure, recycle}, 0, ""},
		"nothing more can be done":            {recycle, []seen{waits}, 0, ""},
		"a calm sample or two":                {recycle, []seen{calm, calm, recycle}, 0, ""},
		"the fault has gone":                  {recycle, []seen{calm}, confirm, "gone"},
	} {
		s := Stand(x.from.action, fleet.Prediction{Culprit: x.from.culprit, FailureProbability: x.from.probability})
		if n, why := until(s, x.samples...); n != x.after || !strings.Contains(why, x.why) {
			t.Errorf("%s: it stands for %d samples, not %d: %q", name, n, x.after, why)
		}
	}
}
