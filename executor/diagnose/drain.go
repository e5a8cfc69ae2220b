package diagnose

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// The miner finds the templates of messages: "connection from <*> closed" for all that
// differ only in the address. It is Drain: He, Zhu, Zheng, Lyu, "Drain: An Online Log
// Parsing Approach with Fixed Depth Tree", ICWS 2017, with the program that wrote a
// message as the first level of the tree, and a bound on the number of templates.

const (
	// wildcard stands for what varies.
	wildcard = "<*>"
	// drainDepth is how many leading words lead through the tree, and drainSimilar the
	// least share of equal words in messages of one template (depth 4 and st 0.5 in the
	// paper, whose depth counts the root and the leaf).
	drainDepth   = 2
	drainSimilar = 0.5
	// drainChildren bounds the branches of a node; further words share one.
	drainChildren = 100
	// maxTemplates bounds the memory; further messages are counted and not kept.
	maxTemplates = 5000
	// maxWords bounds what is looked at of a message.
	maxWords = 64
)

// template is a kind of message.
type template struct {
	program string
	words   []string
	// before counts the messages before the window, within those in it.
	before, within int
	first, last    time.Time
	example        Evidence // the first in the window
	related        bool
}

func (t *template) String() string {
	s := strings.Join(t.words, " ")
	if t.program != "" {
		s = t.program + ": " + s
	}
	return clip(s, 200)
}

// node is a node of the tree: branches by word, or at the last level the templates.
type node struct {
	branches  map[string]*node
	templates []*template
}

type miner struct {
	root    node
	all     []*template
	dropped int
}

// child returns the branch for a word, which is made if there is none.
func (n *node) child(word string) *node {
	if n.branches == nil {
		n.branches = make(map[string]*node)
	}
	c := n.branches[word]
	if c == nil && word != wildcard && len(n.branches) >= drainChildren {
		word = wildcard
		c = n.branches[word]
	}
	if c == nil {
		c = &node{}
		n.branches[word] = c
	}
	return c
}

// learn finds the template of a message; nil if there is no room for a new one.
func (m *miner) learn(program, text string) *template {
	words := tokens(text)
	if len(words) == 0 {
		return nil
	}
	at := m.root.child(program).child(string(rune('0' + len(words))))
	for i := range min(drainDepth, len(words)) {
		at = at.child(words[i])
	}
	var best *template
	most, exact := -1.0, -1
	for _, t := range at.templates {
		if t.program != program { // the branch of a program is shared once there are too many
			continue
		}
		if same, stars := similar(t.words, words); same > most || same == most && stars > exact {
			best, most, exact = t, same, stars
		}
	}
	if best != nil && most >= drainSimilar {
		for i, w := range words {
			if best.words[i] != w {
				best.words[i] = wildcard
			}
		}
		return best
	}
	if len(m.all) == maxTemplates {
		m.dropped++
		return nil
	}
	t := &template{program: program, words: words}
	at.templates = append(at.templates, t)
	m.all = append(m.all, t)
	return t
}

// similar returns the share of words that are the same, which wildcards are not, and
// the number of wildcards.
func similar(template, words []string) (share float64, wildcards int) {
	same := 0
	for i, w := range template {
		switch {
		case w == wildcard:
			wildcards++
			if words[i] == wildcard {
				same++
			}
		case w == words[i]:
			same++
		}
	}
	return float64(same) / float64(len(template)), wildcards
}

// tokens splits a message into words; those that are sure to vary are wildcards.
func tokens(text string) []string {
	var out []string
	for w := range strings.FieldsSeq(text) {
		if len(out) == maxWords {
			break
		}
		if varies(w) {
			w = wildcard
		}
		out = append(out, clip(strings.ToValidUTF8(w, "?"), 64))
	}
	return out
}

// varies tells whether a word is a number, an address, a path, or an identifier: in it
// is a digit, or a slash between other things.
func varies(w string) bool {
	for i := range len(w) {
		if w[i] >= '0' && w[i] <= '9' {
			return true
		}
	}
	return len(w) > 1 && w[0] == '/'
}

// minBaseline is how many lines from before the window are needed to say what is usual
// on a host.
const minBaseline = 50

// maxUnusualSuspects bounds how many unusual messages become suspects.
const maxUnusualSuspects = 8

// telling are words of messages about faults.
var telling = []string{"error", "fail", "fatal", "panic", "critical", "abort", "timeout", "timed out", "refused", "denied", "unable", "cannot", "can't", "corrupt", "lost", "crash", "exception", "unreachable", "exhausted", "deadlock", "stuck", "killed", "dead", "invalid", "broken"}

// unusual returns templates that are new in the window or much more frequent in it than
// before, as suspects. baseline is the number of lines from before it, of the time
// given.
func (m *miner) unusual(baselineLines int, window, baseline time.Duration) []Suspect {
	if baselineLines < minBaseline || window <= 0 || baseline <= 0 {
		return nil
	}
	var out []Suspect
	for _, t := range m.all {
		if t.within == 0 {
			continue
		}
		s := Suspect{
			Rule: "new-message", Title: "a message that was not seen before: " + t.String(), Class: fleet.SignatureUnknown,
			Count: t.within, Earlier: t.before, First: t.first, Last: t.last, Evidence: []Evidence{t.example},
		}
		expected := float64(t.before) * window.Seconds() / baseline.Seconds()
		surprise := surprise(t.within, expected)
		if t.before > 0 {
			if t.within < 5 || float64(t.within) < 5*expected || surprise < 10 {
				continue
			}
			s.Rule, s.Title = "frequent-message", "a message that is much more frequent than before: "+t.String()
		}
		score := 0.25
		lower := strings.ToLower(t.example.Text)
		for _, w := range telling {
			if strings.Contains(lower, w) {
				score += 0.4
				break
			}
		}
		if t.related {
			score += 0.2
		}
		score += 0.15 * min(1, surprise/50)
		s.Score = math.Round(maxUnusual*score*1000) / 1000
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(x, y Suspect) int {
		switch {
		case x.Score > y.Score:
			return -1
		case x.Score < y.Score:
			return 1
		}
		return x.First.Compare(y.First)
	})
	return out[:min(len(out), maxUnusualSuspects)]
}

// surprise is the deviance of a Poisson count from what is expected, in nats, with
// half a message added to both, since what was not seen before is not impossible.
func surprise(count int, expected float64) float64 {
	k, e := float64(count)+0.5, expected+0.5
	if k <= e {
		return 0
	}
	return k*math.Log(k/e) - (k - e)
}
