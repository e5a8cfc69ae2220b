// Package registry keeps the versions of models and which of them is in use.
//
// A version is a model file (see [Encode]). It begins as a candidate, may score live as the
// shadow beside what is in use, becomes the champion, and is retired. All versions of a kind
// are in one [Ledger], which is stored as a whole by compare-and-set, so that there is no
// instant with two champions, or with none between two; a file is stored before the ledger
// names it, and deleted after the ledger has forgotten it. So a crash at any point leaves at
// most a file that nobody names, which [Registry.Sweep] takes away.
//
// What follows what is [Next], a pure function.
package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// State is where a version stands.
type State string

// The states.
const (
	Candidate State = "candidate" // trained or imported, not used
	Shadow    State = "shadow"    // scores live beside the champion, and acts on nothing
	Champion  State = "champion"  // in use
	Retired   State = "retired"   // not used any more; can come back
)

// Event is what happens to a version.
type Event string

// The events. The last three come from what happens to another version.
const (
	Promote   Event = "promote"   // one step further
	Enthrone  Event = "enthrone"  // to champion at once
	Retire    Event = "retire"    // out of use
	Replaced  Event = "replaced"  // another has its place now
	Withdrawn Event = "withdrawn" // rolled back
	Restored  Event = "restored"  // the version after it was rolled back
)

var transitions = map[State]map[Event]State{
	Candidate: {Promote: Shadow, Enthrone: Champion, Retire: Retired},
	Shadow:    {Promote: Champion, Enthrone: Champion, Retire: Retired, Replaced: Candidate},
	Champion:  {Retire: Retired, Replaced: Retired, Withdrawn: Retired},
	Retired:   {Promote: Shadow, Enthrone: Champion, Restored: Champion},
}

// ErrState is wrapped by the errors about what a version's state does not allow.
var ErrState = errors.New("not possible in this state")

// Next is the state after an event.
func Next(s State, e Event) (State, error) {
	to, ok := transitions[s][e]
	if !ok {
		return s, fmt.Errorf("%w: a %s cannot be %sd", ErrState, s, e)
	}
	return to, nil
}

// Version is a model and where it stands.
type Version struct {
	ID string `json:"id"`
	// Header is without its reference, which the file has.
	Header
	State State `json:"state"`
	// Since, By and Note are of the last change of state.
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
	Note   string    `json:"note,omitempty"`
	Bytes  int       `json:"bytes"`
	SHA256 string    `json:"sha256"`
}

// Ledger is all versions of a kind, oldest first.
type Ledger struct {
	Versions []Version `json:"versions"`
	// Reigns lists the champions in the order in which they came, the one in use last;
	// rolling back goes to the one before.
	Reigns []string `json:"reigns"`
}

// ErrNotFound is wrapped where there is no such version.
var ErrNotFound = errors.New("there is no model")

// Find returns a version, or nil.
func (l *Ledger) Find(id string) *Version {
	for i := range l.Versions {
		if l.Versions[i].ID == id {
			return &l.Versions[i]
		}
	}
	return nil
}

// In returns the version in a state that only one has, or nil.
func (l *Ledger) In(s State) *Version {
	for i := range l.Versions {
		if l.Versions[i].State == s {
			return &l.Versions[i]
		}
	}
	return nil
}

// Change is who does something, when and why.
type Change struct {
	By   string
	Note string
	At   time.Time
	// From is the state that the version must be in, as whoever asks has seen it; "" is any.
	From State
}

// apply lets an event happen to a version, and what follows from it to the others.
func (l *Ledger) apply(id string, e Event, c Change) error {
	v := l.Find(id)
	if v == nil {
		return fmt.Errorf("%w %q", ErrNotFound, id)
	}
	if c.From != "" && c.From != v.State {
		return fmt.Errorf("%w: model %s is %s by now, not %s, since %s by %s", ErrState, id, v.State, c.From, v.Since.Format(time.RFC3339), v.By)
	}
	to, err := Next(v.State, e)
	if err != nil {
		return fmt.Errorf("model %s: %w", id, err)
	}
	if to == Shadow || to == Champion {
		if other := l.In(to); other != nil {
			if other.State, err = Next(other.State, Replaced); err != nil {
				return err
			}
			other.Since, other.By, other.Note = c.At, c.By, "replaced by "+id
		}
	}
	was := v.State
	v.State, v.Since, v.By, v.Note = to, c.At, c.By, c.Note
	switch {
	case to == Champion && e != Restored:
		l.Reigns = append(l.Reigns, id)
	case was == Champion && e == Retire:
		l.Reigns = nil // nothing to roll back to: it was wanted that none is in use
	}
	return nil
}

// rollback withdraws the champion and restores the one before it.
func (l *Ledger) rollback(c Change) error {
	n := len(l.Reigns)
	if n == 0 || l.In(Champion) == nil {
		return fmt.Errorf("%w: no model is in use, so there is none to roll back", ErrState)
	}
	if n == 1 {
		return fmt.Errorf("%w: there was no model before %s: retire it to go on without one", ErrState, l.Reigns[0])
	}
	now, before := l.Reigns[n-1], l.Reigns[n-2]
	if err := l.apply(now, Withdrawn, c); err != nil {
		return err
	}
	if v := l.Find(before); v != nil && v.State == Shadow { // it was being tried again
		v.State = Retired
	}
	if err := l.apply(before, Restored, c); err != nil {
		return err
	}
	l.Reigns = l.Reigns[:n-1]
	return nil
}

const (
	mostVersions = 40 // of a kind; the oldest retired ones go first
	mostReigns   = 16
)

// prune forgets the oldest versions that nobody needs, and returns them.
func (l *Ledger) prune() (gone []string) {
	if n := len(l.Reigns); n > mostReigns {
		l.Reigns = slices.Delete(l.Reigns, 0, n-mostReigns)
	}
	for len(l.Versions) > mostVersions {
		i := slices.IndexFunc(l.Versions, func(v Version) bool {
			return (v.State == Retired || v.State == Candidate) && !slices.Contains(l.Reigns, v.ID)
		})
		if i < 0 {
			break
		}
		gone = append(gone, l.Versions[i].ID)
		l.Versions = slices.Delete(l.Versions, i, i+1)
	}
	return gone
}

// ErrConflict is returned by a [Store] where the ledger has another revision.
var ErrConflict = errors.New("somebody else changed it")

// Store keeps ledgers and files. A Save or Put that returned nil is durable.
type Store interface {
	// Load returns a ledger and its revision: an empty one and 0 where there is none.
	Load(ctx context.Context, kind Kind) (Ledger, uint64, error)
	// Save replaces the ledger of that revision; otherwise the error is [ErrConflict].
	Save(ctx context.Context, kind Kind, l Ledger, revision uint64) error
	Put(ctx context.Context, id string, file []byte) error
	// Get returns a file, or [ErrNotFound].
	Get(ctx context.Context, id string) ([]byte, error)
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]string, error)
}

// Registry changes what a store has. It is safe for concurrent use.
type Registry struct {
	store Store
	// usable says whether a model can be used here: whether the estimator can be read, and
	// its schema is of this fleet.
	usable func(h Header, state []byte) error

	mu sync.Mutex // one change at a time in this process, so that a sweep takes no file that is being added
}

// New returns the registry over a store. usable is asked before a version is added, and
// before it becomes shadow or champion; nil means always.
func New(s Store, usable func(Header, []byte) error) *Registry {
	if usable == nil {
		usable = func(Header, []byte) error { return nil }
	}
	return &Registry{store: s, usable: usable}
}

// List returns all versions of all kinds, newest first.
func (r *Registry) List(ctx context.Context) ([]Version, error) {
	out := []Version{}
	for _, k := range Kinds() {
		l, _, err := r.store.Load(ctx, k)
		if err != nil {
			return nil, err
		}
		out = append(out, l.Versions...)
	}
	slices.SortStableFunc(out, func(a, b Version) int { return b.Trained.Compare(a.Trained) })
	return out, nil
}

// Find returns a version.
func (r *Registry) Find(ctx context.Context, id string) (Version, error) {
	_, l, _, err := r.of(ctx, id)
	if err != nil {
		return Version{}, err
	}
	return *l.Find(id), nil
}

func (r *Registry) of(ctx context.Context, id string) (Kind, Ledger, uint64, error) {
	for _, k := range Kinds() {
		l, revision, err := r.store.Load(ctx, k)
		if err != nil {
			return "", Ledger{}, 0, err
		}
		if l.Find(id) != nil {
			return k, l, revision, nil
		}
	}
	return "", Ledger{}, 0, fmt.Errorf("%w %q", ErrNotFound, id)
}

// Add makes a model file a candidate. The same file is added once; again it changes nothing.
func (r *Registry) Add(ctx context.Context, file []byte, c Change) (Version, error) {
	h, state, err := Decode(file)
	if err != nil {
		return Version{}, err
	}
	if err := r.usable(h, state); err != nil {
		return Version{}, err
	}
	kind, id := h.Kind, ID(h.Kind, file)
	h.Reference = nil
	v := Version{ID: id, Header: h, State: Candidate, Since: c.At, By: c.By, Note: c.Note, Bytes: len(file), SHA256: Sum(file)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.store.Put(ctx, id, file); err != nil {
		return Version{}, err
	}
	err = r.change(ctx, kind, func(l *Ledger) error {
		if known := l.Find(id); known != nil {
			v = *known
			return nil
		}
		l.Versions = append(l.Versions, v)
		return nil
	})
	return v, err
}

// change lets f change a ledger, again and again until nobody interferes, and deletes the
// files that the ledger has forgotten.
func (r *Registry) change(ctx context.Context, kind Kind, f func(*Ledger) error) error {
	for {
		l, revision, err := r.store.Load(ctx, kind)
		if err != nil {
			return err
		}
		if err := f(&l); err != nil {
			return err
		}
		gone := l.prune()
		err = r.store.Save(ctx, kind, l, revision)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		for _, id := range gone {
			_ = r.store.Delete(ctx, id) // or the next sweep does
		}
		return nil
	}
}

// Apply lets an event happen to a version: [Promote], [Enthrone] or [Retire].
func (r *Registry) Apply(ctx context.Context, id string, e Event, c Change) (Version, error) {
	if e != Promote && e != Enthrone && e != Retire {
		return Version{}, fmt.Errorf("%w: %q is not promote, enthrone or retire", ErrState, e)
	}
	kind, l, _, err := r.of(ctx, id)
	if err != nil {
		return Version{}, err
	}
	if _, err := Next(l.Find(id).State, e); err != nil {
		return Version{}, fmt.Errorf("model %s: %w", id, err)
	}
	if e != Retire {
		if _, _, err := r.Open(ctx, id); err != nil {
			return Version{}, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out Version
	err = r.change(ctx, kind, func(l *Ledger) error {
		if err := l.apply(id, e, c); err != nil {
			return err
		}
		out = *l.Find(id)
		return nil
	})
	return out, err
}

// Rollback withdraws the champion of a kind and restores the one before it, which it returns.
func (r *Registry) Rollback(ctx context.Context, kind Kind, c Change) (Version, error) {
	if !kind.Valid() {
		return Version{}, fmt.Errorf("%w of the kind %q, only of anomaly and failure", ErrNotFound, kind)
	}
	l, _, err := r.store.Load(ctx, kind)
	if err != nil {
		return Version{}, err
	}
	if n := len(l.Reigns); n > 1 {
		if _, _, err := r.Open(ctx, l.Reigns[n-2]); err != nil {
			return Version{}, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out Version
	err = r.change(ctx, kind, func(l *Ledger) error {
		if err := l.rollback(c); err != nil {
			return err
		}
		out = *l.In(Champion)
		return nil
	})
	return out, err
}

// Open returns a version's header and its estimator's bytes, checked against what was added.
func (r *Registry) Open(ctx context.Context, id string) (Header, []byte, error) {
	_, l, _, err := r.of(ctx, id)
	if err != nil {
		return Header{}, nil, err
	}
	file, err := r.File(ctx, id)
	if err != nil {
		return Header{}, nil, err
	}
	if got := Sum(file); got != l.Find(id).SHA256 {
		return Header{}, nil, fmt.Errorf("model %s: %w: its checksum is wrong: it is damaged; import it again from a copy, or train it anew", id, ErrFile)
	}
	h, state, err := Decode(file)
	if err != nil {
		return Header{}, nil, fmt.Errorf("model %s: %w", id, err)
	}
	if err := r.usable(h, state); err != nil {
		return Header{}, nil, fmt.Errorf("model %s: %w", id, err)
	}
	return h, state, nil
}

// File returns a version's file, unchecked.
func (r *Registry) File(ctx context.Context, id string) ([]byte, error) {
	file, err := r.store.Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", id, err)
	}
	return file, nil
}

// Current is the version of a kind in a state, with the bytes of its estimator; ok is false
// where there is none.
func (r *Registry) Current(ctx context.Context, kind Kind, s State) (v Version, h Header, state []byte, ok bool, err error) {
	l, _, err := r.store.Load(ctx, kind)
	if err != nil {
		return v, h, nil, false, err
	}
	found := l.In(s)
	if found == nil {
		return v, h, nil, false, nil
	}
	v = *found
	h, state, err = r.Open(ctx, v.ID)
	return v, h, state, err == nil, err
}

// Before lists the champions before the one in use, the latest first.
func (r *Registry) Before(ctx context.Context, kind Kind) ([]string, error) {
	l, _, err := r.store.Load(ctx, kind)
	if err != nil || len(l.Reigns) < 2 {
		return nil, err
	}
	out := slices.Clone(l.Reigns[:len(l.Reigns)-1])
	slices.Reverse(out)
	return out, nil
}

// Sweep deletes files that no ledger names, as a crash leaves them.
func (r *Registry) Sweep(ctx context.Context) (deleted int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	files, err := r.store.List(ctx)
	if err != nil {
		return 0, err
	}
	named := make(map[string]bool)
	for _, k := range Kinds() {
		l, _, err := r.store.Load(ctx, k)
		if err != nil {
			return 0, err
		}
		for _, v := range l.Versions {
			named[v.ID] = true
		}
	}
	for _, id := range files {
		if named[id] {
			continue
		}
		if err := r.store.Delete(ctx, id); err != nil {
			return deleted, err
		}
		deleted++
	}
	return deleted, nil
}

// Comparison is what a shadow made of the samples that the champion scored too.
type Comparison struct {
	// Shadow and Champion are versions; Champion is "" where each host's own detector is in use.
	Shadow   string    `json:"shadow"`
	Champion string    `json:"champion"`
	Since    time.Time `json:"since"`
	Hosts    int       `json:"hosts"`
	Samples  int64     `json:"samples"`
	// The means are of the scores: -log10 of the tail for anomaly models, the probability of
	// failure for failure models.
	MeanChampion   float64 `json:"mean_champion"`
	MeanShadow     float64 `json:"mean_shadow"`
	MeanDifference float64 `json:"mean_difference"`
	MeanAbsolute   float64 `json:"mean_absolute_difference"`
	// Alarms are how many began, of each.
	AlarmsChampion int64 `json:"alarms_champion"`
	AlarmsShadow   int64 `json:"alarms_shadow"`
	// Incidents is how many there were of hosts that both scored, and Foreseen before how many of
	// them each had begun an alarm, at most a horizon before.
	Incidents        int `json:"incidents"`
	ForeseenChampion int `json:"foreseen_champion"`
	ForeseenShadow   int `json:"foreseen_shadow"`
}

// Rule is when a shadow becomes champion by itself: it must have foreseen as many of the incidents as
// the champion, beside what is stated here.
type Rule struct {
	// After is how long it must have been shadow, and Samples how many samples it must have
	// scored since.
	After   time.Duration
	Samples int64
	// AlarmRatio is how many alarms it may have begun for each of the champion's, one more
	// than none being allowed. One that began none where the champion began [blind] or more is left to
	// a person: it may see nothing at all.
	AlarmRatio float64
}

// blind is how many alarms of the champion make a shadow without any suspicious.
const blind = 3

// Allows says whether the rule promotes a shadow, and why or why not yet.
func (r Rule) Allows(c Comparison, now time.Time) (bool, string) {
	switch age := now.Sub(c.Since); {
	case age < r.After:
		return false, fmt.Sprintf("in shadow for %v of %v", age.Round(time.Second), r.After)
	case c.Samples < r.Samples:
		return false, fmt.Sprintf("%d of %d samples scored in shadow", c.Samples, r.Samples)
	case float64(c.AlarmsShadow) > r.AlarmRatio*max(float64(c.AlarmsChampion), 1):
		return false, fmt.Sprintf("%d alarms in shadow, and the champion had %d: at most %.3g for each are allowed", c.AlarmsShadow, c.AlarmsChampion, r.AlarmRatio)
	case c.AlarmsShadow == 0 && c.AlarmsChampion >= blind:
		return false, fmt.Sprintf("no alarm in shadow, and the champion had %d: it may see nothing; if these were false, promote it by hand", c.AlarmsChampion)
	case c.ForeseenShadow < c.ForeseenChampion:
		return false, fmt.Sprintf("of %d incidents it foresaw %d, and the champion %d: as many are needed", c.Incidents, c.ForeseenShadow, c.ForeseenChampion)
	}
	why := fmt.Sprintf("%d samples of %d hosts in shadow with %d alarms, where the champion had %d", c.Samples, c.Hosts, c.AlarmsShadow, c.AlarmsChampion)
	if c.Incidents > 0 {
		why += fmt.Sprintf("; of %d incidents it foresaw %d, and the champion %d", c.Incidents, c.ForeseenShadow, c.ForeseenChampion)
	}
	return true, why
}
