package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/drift"
)

// memory is a store that can fail at a chosen write, before or after it took effect.
type memory struct {
	ledgers  map[Kind][]byte
	revision map[Kind]uint64
	files    map[string][]byte

	writes, failAt int
	after          bool // the failing write took effect
}

func newMemory() *memory {
	return &memory{ledgers: map[Kind][]byte{}, revision: map[Kind]uint64{}, files: map[string][]byte{}}
}

var errCrash = errors.New("crashed here")

func (m *memory) write(f func()) error {
	m.writes++
	if m.failAt > 0 && m.writes > m.failAt || m.writes == m.failAt && !m.after {
		return errCrash
	}
	f()
	if m.writes == m.failAt {
		return errCrash
	}
	return nil
}

func (m *memory) Load(_ context.Context, k Kind) (l Ledger, revision uint64, err error) {
	if m.ledgers[k] != nil {
		err = json.Unmarshal(m.ledgers[k], &l)
	}
	return l, m.revision[k], err
}

func (m *memory) Save(_ context.Context, k Kind, l Ledger, revision uint64) error {
	if revision != m.revision[k] {
		return ErrConflict
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return m.write(func() { m.ledgers[k], m.revision[k] = data, revision+1 })
}

func (m *memory) Put(_ context.Context, id string, file []byte) error {
	return m.write(func() { m.files[id] = bytes.Clone(file) })
}

func (m *memory) Get(_ context.Context, id string) ([]byte, error) {
	if f, ok := m.files[id]; ok {
		return f, nil
	}
	return nil, ErrNotFound
}

func (m *memory) Delete(_ context.Context, id string) error {
	return m.write(func() { delete(m.files, id) })
}

func (m *memory) List(context.Context) (out []string, err error) {
	for id := range m.files {
		out = append(out, id)
	}
	return out, nil
}

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func model(t testing.TB, n int) []byte {
	t.Helper()
	file, err := Encode(Header{
		Kind: KindAnomaly, Trained: day.Add(time.Duration(n) * time.Hour), Source: "test", Series: []string{"a", "b"}, Code: "test", Metrics: map[string]float64{"auc": 0.9},
		Reference: drift.NewReference([]string{"a", "b"}, 20, func(r, c int) float64 { return float64(r * c) }, nil),
	}, fmt.Appendf(nil, "state %d", n))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func who(n int) Change { return Change{By: "ann", At: day.Add(time.Duration(n) * time.Minute)} }

func add(t testing.TB, r *Registry, n int) string {
	t.Helper()
	v, err := r.Add(context.Background(), model(t, n), who(n))
	if err != nil {
		t.Fatal(err)
	}
	return v.ID
}

func state(t testing.TB, r *Registry, id string) State {
	t.Helper()
	v, err := r.Find(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v.State
}

func TestEveryStateAndEvent(t *testing.T) {
	want := map[State]map[Event]State{
		Candidate: {Promote: Shadow, Enthrone: Champion, Retire: Retired},
		Shadow:    {Promote: Champion, Enthrone: Champion, Retire: Retired, Replaced: Candidate},
		Champion:  {Retire: Retired, Replaced: Retired, Withdrawn: Retired},
		Retired:   {Promote: Shadow, Enthrone: Champion, Restored: Champion},
	}
	for _, s := range []State{Candidate, Shadow, Champion, Retired, ""} {
		for _, e := range []Event{Promote, Enthrone, Retire, Replaced, Withdrawn, Restored, ""} {
			got, err := Next(s, e)
			if to, ok := want[s][e]; ok && (err != nil || got != to) {
				t.Errorf("%s %s: %s, %v", s, e, got, err)
			} else if !ok && (!errors.Is(err, ErrState) || got != s) {
				t.Errorf("%s %s: %s, %v", s, e, got, err)
			}
		}
	}
}

func TestALife(t *testing.T) {
	ctx := t.Context()
	r := New(newMemory(), nil)
	a, b := add(t, r, 1), add(t, r, 2)
	if again := add(t, r, 1); again != a {
		t.Errorf("the same file became %s and %s", a, again)
	}
	if _, err := r.Rollback(ctx, KindAnomaly, who(3)); !errors.Is(err, ErrState) {
		t.Errorf("rolled back from nothing: %v", err)
	}
	for _, to := range []State{Shadow, Champion} {
		if v, err := r.Apply(ctx, a, Promote, who(4)); err != nil || v.State != to {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if _, err := r.Apply(ctx, a, Promote, who(5)); !errors.Is(err, ErrState) {
		t.Errorf("a champion was promoted: %v", err)
	}
	if _, err := r.Apply(ctx, b, Enthrone, Change{By: "bob", Note: "better", At: day}); err != nil {
		t.Fatal(err)
	}
	if state(t, r, a) != Retired || state(t, r, b) != Champion {
		t.Errorf("a is %s, b is %s", state(t, r, a), state(t, r, b))
	}
	if v, err := r.Rollback(ctx, KindAnomaly, who(6)); err != nil || v.ID != a || state(t, r, b) != Retired {
		t.Errorf("rolled back to %+v, %v; b is %s", v, err, state(t, r, b))
	}
	if _, err := r.Rollback(ctx, KindAnomaly, who(7)); !errors.Is(err, ErrState) {
		t.Errorf("rolled back twice: %v", err)
	}
	if _, err := r.Apply(ctx, a, Retire, who(8)); err != nil || state(t, r, a) != Retired {
		t.Errorf("%v", err)
	}
	if _, _, _, ok, err := r.Current(ctx, KindAnomaly, Champion); ok || err != nil {
		t.Errorf("a champion is left: %v", err)
	}
	if _, err := r.Apply(ctx, "anomaly-nonsense", Promote, who(9)); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := r.Apply(ctx, a, Restored, who(9)); !errors.Is(err, ErrState) {
		t.Errorf("an event of the registry itself was taken from outside: %v", err)
	}
}

// One shadow at a time; the one before is a candidate again.
func TestOneShadow(t *testing.T) {
	r := New(newMemory(), nil)
	a, b := add(t, r, 1), add(t, r, 2)
	for _, id := range []string{a, b} {
		if _, err := r.Apply(t.Context(), id, Promote, who(1)); err != nil {
			t.Fatal(err)
		}
	}
	if state(t, r, a) != Candidate || state(t, r, b) != Shadow {
		t.Errorf("a is %s, b is %s", state(t, r, a), state(t, r, b))
	}
}

// A request that is sent twice takes one step, where it says from which state.
func TestOneStepAtATime(t *testing.T) {
	r := New(newMemory(), nil)
	a, c := add(t, r, 1), who(1)
	c.From = Candidate
	if _, err := r.Apply(t.Context(), a, Promote, c); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Apply(t.Context(), a, Promote, c); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "is shadow by now") {
		t.Errorf("again: %v", err)
	}
	if state(t, r, a) != Shadow {
		t.Errorf("it is %s", state(t, r, a))
	}
}

func TestWhatIsDamagedIsRefusedAndTheChampionGoesOn(t *testing.T) {
	ctx, m := t.Context(), newMemory()
	r := New(m, nil)
	a, b := add(t, r, 1), add(t, r, 2)
	if _, err := r.Apply(ctx, a, Enthrone, who(1)); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(m.files[b])
	for i := range whole {
		m.files[b] = bytes.Clone(whole)
		m.files[b][i] ^= 0x10
		if _, err := r.Apply(ctx, b, Enthrone, who(2)); !errors.Is(err, ErrFile) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := r.Add(ctx, m.files[b], who(2)); !errors.Is(err, ErrFile) {
			t.Fatalf("byte %d flipped: added, %v", i, err)
		}
	}
	for _, cut := range []int{0, 10, len(whole) / 2, len(whole) - 1} {
		m.files[b] = whole[:cut]
		if _, err := r.Apply(ctx, b, Promote, who(2)); !errors.Is(err, ErrFile) {
			t.Errorf("cut off after %d bytes: %v", cut, err)
		}
	}
	// A whole file, but another one.
	m.files[b] = model(t, 7)
	if _, err := r.Apply(ctx, b, Promote, who(2)); !errors.Is(err, ErrFile) {
		t.Errorf("another file: %v", err)
	}
	delete(m.files, b)
	if _, err := r.Apply(ctx, b, Promote, who(2)); !errors.Is(err, ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	v, _, state, ok, err := r.Current(ctx, KindAnomaly, Champion)
	if err != nil || !ok || v.ID != a || string(state) != "state 1" {
		t.Errorf("the champion: %+v %q %v", v, state, err)
	}
	// One that cannot be used here.
	refuse := New(m, func(h Header, _ []byte) error { return errors.New("another schema") })
	if _, err := refuse.Add(ctx, model(t, 9), who(3)); err == nil {
		t.Error("a model of another schema was added")
	}
}

func TestOtherVersionsOfTheFormatAreRefused(t *testing.T) {
	file := model(t, 1)
	newer := bytes.Replace(file, []byte("tardigrade model 1\n"), []byte("tardigrade model 2\n"), 1)
	if _, _, err := Decode(newer); !errors.Is(err, ErrFile) || !bytes.Contains([]byte(err.Error()), []byte("version")) {
		t.Errorf("%v", err)
	}
}

// A crash at any write, before or after it took effect, leaves a registry that is whole:
// one champion, every version with its file, and nothing but nameless files too many.
func TestCrashAtEveryWrite(t *testing.T) {
	ctx := context.Background()
	story := func(r *Registry, files [][]byte) error {
		for i, f := range files {
			v, err := r.Add(ctx, f, who(i))
			if err != nil {
				return err
			}
			for range 2 {
				if _, err := r.Apply(ctx, v.ID, Promote, who(i)); err != nil {
					return err
				}
			}
		}
		_, err := r.Rollback(ctx, KindAnomaly, who(9))
		return err
	}
	files := [][]byte{model(t, 1), model(t, 2), model(t, 3)}
	whole := newMemory()
	if err := story(New(whole, nil), files); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= whole.writes; at++ {
		for _, after := range []bool{false, true} {
			m := newMemory()
			m.failAt, m.after = at, after
			if err := story(New(m, nil), files); !errors.Is(err, errCrash) {
				t.Fatalf("write %d did not crash: %v", at, err)
			}
			m.failAt = 0
			r := New(m, nil)
			if _, err := r.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			all, err := r.List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			champions := 0
			for _, v := range all {
				if v.State == Champion {
					champions++
				}
				if _, _, err := r.Open(ctx, v.ID); err != nil {
					t.Errorf("crash at write %d (after %v): %v", at, after, err)
				}
			}
			// The first version reigns from the fourth write on, or after it.
			if want := 1; at > 4 && champions != want || champions > 1 || len(m.files) != len(all) {
				t.Errorf("crash at write %d (after %v): %d champions, %d files of %d versions", at, after, champions, len(m.files), len(all))
			}
			if err := story(r, files[2:]); err != nil && !errors.Is(err, ErrState) {
				t.Errorf("crash at write %d (after %v): afterwards %v", at, after, err)
			}
		}
	}
}

func TestOldOnesAreForgottenButNotThoseInUse(t *testing.T) {
	ctx, m := t.Context(), newMemory()
	r := New(m, nil)
	first := add(t, r, 0)
	if _, err := r.Apply(ctx, first, Enthrone, who(0)); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < mostVersions+10; i++ {
		add(t, r, i)
	}
	all, err := r.List(ctx)
	if err != nil || len(all) != mostVersions || len(m.files) != mostVersions {
		t.Errorf("%d versions, %d files, %v", len(all), len(m.files), err)
	}
	if !slices.ContainsFunc(all, func(v Version) bool { return v.ID == first }) {
		t.Error("the champion was forgotten")
	}
	if !slices.IsSortedFunc(all, func(a, b Version) int { return b.Trained.Compare(a.Trained) }) {
		t.Error("not the newest first")
	}
}

func TestRule(t *testing.T) {
	rule := Rule{After: time.Hour, Samples: 100, AlarmRatio: 1.5}
	for name, c := range map[string]struct {
		Comparison
		want bool
	}{
		"too young":  {Comparison{Since: day.Add(30 * time.Minute), Samples: 1000}, false},
		"too little": {Comparison{Since: day, Samples: 99}, false},
		"too loud":   {Comparison{Since: day, Samples: 1000, AlarmsChampion: 2, AlarmsShadow: 4}, false},
		"quiet":      {Comparison{Since: day, Samples: 1000, AlarmsChampion: 2, AlarmsShadow: 3}, true},
		"blind":      {Comparison{Since: day, Samples: 1000, AlarmsChampion: 3}, false},
		"quiet days": {Comparison{Since: day, Samples: 1000, AlarmsChampion: 2}, true},
		"the first":  {Comparison{Since: day, Samples: 1000, AlarmsShadow: 1}, true},
		"missed one": {Comparison{Since: day, Samples: 1000, AlarmsChampion: 2, AlarmsShadow: 2, Incidents: 5, ForeseenChampion: 2, ForeseenShadow: 1}, false},
		"as many":    {Comparison{Since: day, Samples: 1000, AlarmsChampion: 2, AlarmsShadow: 2, Incidents: 5, ForeseenChampion: 2, ForeseenShadow: 2}, true},
		"more":       {Comparison{Since: day, Samples: 1000, AlarmsChampion: 2, AlarmsShadow: 2, Incidents: 5, ForeseenShadow: 1}, true},
		"none did":   {Comparison{Since: day, Samples: 1000, Incidents: 5}, true},
	} {
		got, why := rule.Allows(c.Comparison, day.Add(time.Hour))
		if got != c.want || why == "" {
			t.Errorf("%s: %v, %s", name, got, why)
		}
	}
}

func FuzzDecode(f *testing.F) {
	file := model(f, 1)
	f.Add(file)
	f.Add(file[:40])
	f.Add([]byte("tardigrade model 1\n{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, state, err := Decode(data)
		if err != nil {
			return
		}
		if _, err := Encode(h, state); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
