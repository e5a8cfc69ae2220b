package diagnose

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestDrainFindsTemplates(t *testing.T) {
	for name, c := range map[string]struct {
		lines, want []string
	}{
		"numbers, addresses and paths vary": {
			lines: []string{"connection from 10.0.0.1 port 22 closed", "connection from 10.0.0.2 port 4711 closed", "read /var/lib/a failed", "read /srv/b failed"},
			want:  []string{"connection from <*> port <*> closed", "read <*> failed"},
		},
		"a word that differs becomes a wildcard": {
			lines: []string{"user alice logged in from console", "user alice logged in from desktop", "user alice logged in from console"},
			want:  []string{"user alice logged in from <*>"},
		},
		"messages of other lengths are others": {
			lines: []string{"service started", "service started again"},
			want:  []string{"service started", "service started again"},
		},
		"messages that share less than half are others": {
			lines: []string{"disk check of volume began today", "disk check finished without any error"},
			want:  []string{"disk check of volume began today", "disk check finished without any error"},
		},
		"the first words tell apart": {
			lines: []string{"starting worker now please", "stopping worker now please"},
			want:  []string{"starting worker now please", "stopping worker now please"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var m miner
			for _, l := range c.lines {
				if m.learn("app", l) == nil {
					t.Fatalf("%q was not learned", l)
				}
			}
			var got []string
			for _, x := range m.all {
				got = append(got, strings.Join(x.words, " "))
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	var m miner
	if m.learn("a", "the same text") == m.learn("b", "the same text") {
		t.Error("messages of two programs have one template")
	}
	if m.learn("a", "  ") != nil {
		t.Error("an empty message has a template")
	}
}

func TestDrainIsBounded(t *testing.T) {
	var m miner
	word := func(n int) string {
		var b strings.Builder
		for _, d := range fmt.Sprint(n) {
			b.WriteRune('a' + d - '0')
		}
		return b.String()
	}
	for i := range 2 * maxTemplates {
		m.learn(word(i), word(3*i)+" "+word(5*i)+" "+word(7*i))
	}
	if len(m.all) != maxTemplates || m.dropped == 0 || len(m.root.branches) > drainChildren+1 {
		t.Errorf("%d templates, %d dropped, %d branches", len(m.all), m.dropped, len(m.root.branches))
	}
	if x := m.learn("long", strings.Repeat("w ", 10_000)); x != nil && len(x.words) > maxWords {
		t.Errorf("a template has %d words", len(x.words))
	}
}

// usual is a day of messages of a host that is well.
func usual() string {
	var b strings.Builder
	for i := range 600 {
		at := at(-24*time.Hour + time.Duration(i)*2*time.Minute)
		fmt.Fprintf(&b, "%snova[7]: heartbeat %d sent to controller\n%scron[%d]: session opened for user root\n", at, i, at, i)
		if i%100 == 0 {
			fmt.Fprintf(&b, "%snova[7]: slow answer from scheduler in %d ms\n", at, i)
		}
	}
	return b.String()
}

func TestWhatIsNotUsualBecomesASuspectBelowWhatIsKnown(t *testing.T) {
	var lines []string
	for i := range 15 {
		lines = append(lines, fmt.Sprintf("%snova[7]: heartbeat %d sent to controller", at(time.Duration(i-20)*time.Minute), i))
	}
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("%snova[7]: slow answer from scheduler in %d ms", at(time.Duration(i-1000)*time.Second), i))
	}
	lines = append(lines,
		at(-3*time.Minute)+"nova[7]: quorum of the scheduler was lost, giving up",
		at(-2*time.Minute)+"systemd[1]: nova.service: Failed with result 'exit-code'.",
		at(-time.Minute)+"cron[9]: session opened for user root",
	)
	r := cause(t, failing("nova.service"), usual(), evidenceFile{name: "units/nova.service/journal.log", data: []byte(strings.Join(lines, "\n"))})
	var got []string
	for _, s := range r.Suspects {
		got = append(got, s.Rule+" "+s.Title)
	}
	want := []string{
		"unit-failed a service failed",
		"new-message a message that was not seen before: nova: quorum of the scheduler was lost, giving up",
		"frequent-message a message that is much more frequent than before: nova: slow answer from scheduler in <*> ms",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r.BaselineLines < 1200 || r.Suspects[1].Score > maxUnusual || r.Suspects[1].Evidence[0].Line != 56 {
		t.Errorf("%d lines; %+v", r.BaselineLines, r.Suspects[1])
	}
	if r := cause(t, nil, "", journal(lines...)); len(r.Suspects) != 1 {
		t.Errorf("where it is not known what is usual, %d suspects", len(r.Suspects))
	}
}
