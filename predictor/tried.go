package predictor

import (
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Attempt is an action that was carried out on a host.
type Attempt struct {
	Action fleet.Action
	// Signature and Culprit are what it was carried out against, At is when it ended.
	Signature fleet.Signature
	Culprit   string
	At        time.Time
	// Recommendation is the one that it was carried out for; "" where there was none.
	Recommendation string
	Simulated      bool
	// Known is true where nothing is left to be learned of it: what came of it is known, or
	// it cannot cure. Again is true where the action had been tried against this fault before.
	Known, Again bool

	held bool // the host was sound for long enough after it
}

// heldFor is how long a host must be sound after an action for another fault to be a new one. Within an hour of an
// action a fault that has changed its looks is far more frequent than one that is new.
const heldFor = 30 * time.Minute

// crashIsFor is how long before a crash an action may have ended to have been in vain.
const crashIsFor = time.Hour

// Tried is what was carried out on a host lately, and against what it counts.
//
// What a fault shows changes while it lasts: a service looks hung in one minute, and its neighbours noisy in
// the next. So an attempt counts against whatever is wrong with the host after it, for a period, but for
// what names another culprit: that another service hangs is another fault.
// Once the host has been sound for half an hour after it, with a sample in each quarter, it counts only
// against what it was carried out against: the same signature of the same culprit.
//
// It is not safe for concurrent use. What it saw of a host that was sound is lost with it, so that
// one that is filled anew counts more attempts for the next half hour, not fewer.
type Tried struct {
	period      time.Duration
	attempts    []Attempt
	sound, last time.Time // begin of the time in which the host has been sound, zero if it is not; newest sample
}

// NewTried returns one in which attempts count for a period, after which those that did not fail have cured.
func NewTried(period time.Duration) *Tried { return &Tried{period: period} }

// counts tells whether an attempt is one against such a fault.
func (t *Tried) counts(a *Attempt, s fleet.Signature, culprit string, now time.Time) bool {
	switch {
	case now.Sub(a.At) > t.period:
		return false
	case a.held:
		return a.Signature == s && a.Culprit == culprit
	}
	return a.Culprit == culprit || a.Culprit == "" || culprit == ""
}

// Add takes an attempt that has just ended, and returns it with Again set.
func (t *Tried) Add(a Attempt) Attempt {
	for i := range t.attempts {
		before := &t.attempts[i]
		a.Again = a.Again || before.Action == a.Action && t.counts(before, a.Signature, a.Culprit, a.At)
	}
	t.attempts = append(t.attempts, a)
	t.sound = time.Time{}
	return a
}

// Observe takes the time of each sample of the host, and whether nothing is wrong in it.
func (t *Tried) Observe(at time.Time, sound bool) {
	switch {
	case !sound:
		t.sound = time.Time{}
	case t.sound.IsZero() || at.Sub(t.last) > heldFor/2:
		t.sound = at
	case at.Sub(t.sound) >= heldFor:
		for i := range t.attempts {
			t.attempts[i].held = true
		}
	}
	t.last = at
}

// Against lists what was tried already against a fault that there is now, when last, and how often;
// nil where nothing was.
func (t *Tried) Against(s fleet.Signature, culprit string, now time.Time) (at map[fleet.Action]time.Time, times map[fleet.Action]int) {
	for i := range t.attempts {
		if a := &t.attempts[i]; t.counts(a, s, culprit, now) {
			if at == nil {
				at, times = make(map[fleet.Action]time.Time), make(map[fleet.Action]int)
			}
			at[a.Action] = a.At
			times[a.Action]++
		}
	}
	return at, times
}

// Back notes that there is a fault, as a sample of some time shows. It returns the attempts against it of which
// nothing was known: they failed.
func (t *Tried) Back(s fleet.Signature, culprit string, at time.Time) []Attempt {
	return t.failed(func(a *Attempt) bool { return at.After(a.At) && t.counts(a, s, culprit, at) })
}

// Crashed notes that the host crashed, and returns what failed with that: all that was done to it shortly before, whatever it
// was done against. VMs that had left it were saved.
func (t *Tried) Crashed(at time.Time) []Attempt {
	return t.failed(func(a *Attempt) bool {
		return at.After(a.At) && at.Sub(a.At) <= crashIsFor && a.Action != fleet.ActionLiveMigrate
	})
}

func (t *Tried) failed(these func(*Attempt) bool) (out []Attempt) {
	for i := range t.attempts {
		if a := &t.attempts[i]; !a.Known && these(a) {
			a.Known = true
			out = append(out, *a)
		}
	}
	return out
}

// Settle forgets what is older than the period, and returns those of these that have cured.
func (t *Tried) Settle(now time.Time) (cured []Attempt) {
	kept := t.attempts[:0]
	for _, a := range t.attempts {
		switch {
		case now.Sub(a.At) <= t.period:
			kept = append(kept, a)
		case !a.Known:
			cured = append(cured, a)
		}
	}
	t.attempts = kept
	return cured
}

// Newest is when the newest attempt ended; zero where there is none.
func (t *Tried) Newest() time.Time {
	if n := len(t.attempts); n > 0 {
		return t.attempts[n-1].At
	}
	return time.Time{}
}
