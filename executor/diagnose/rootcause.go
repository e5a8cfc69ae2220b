package diagnose

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// RootCause is root-cause.json: what may have happened, the most likely first.
type RootCause struct {
	Version   int          `json:"version"`
	Host      fleet.HostID `json:"host"`
	Execution string       `json:"execution"`
	// From and To are the window in which a fault counts as fresh.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Lines is how many lines were searched, and BaselineLines how many lines from
	// before the window the messages were compared with. Below [minBaseline] of them
	// nothing is compared.
	Lines         int       `json:"lines"`
	BaselineLines int       `json:"baseline_lines"`
	Suspects      []Suspect `json:"suspects"`
}

// Suspect is something that may be the cause.
type Suspect struct {
	// Rule names the rule that found it: a known sign of a fault, or "new-message" or
	// "frequent-message" for one that is not usual on this host.
	Rule  string          `json:"rule"`
	Class fleet.Signature `json:"class"`
	Title string          `json:"title"`
	// Score orders suspects; it is in 0..1 and is no probability. What is only unusual
	// stays below [maxUnusual], and what is known and fresh is above it.
	Score float64 `json:"score"`
	// Count is how many lines in the window say so, and Earlier how many before it.
	Count   int `json:"count"`
	Earlier int `json:"earlier,omitempty"`
	// Culprits are what the lines are about, the most frequent first: devices, units,
	// processes.
	Culprits []string `json:"culprits,omitempty"`
	// First and Last are the times of the lines in the window, zero if they have none.
	First    time.Time  `json:"first,omitzero"`
	Last     time.Time  `json:"last,omitzero"`
	Cleared  bool       `json:"cleared,omitempty"` // it was well again at the end
	Evidence []Evidence `json:"evidence"`
	Advice   string     `json:"advice,omitempty"`
}

// Evidence is a line of a file in the archive, counted from 1.
type Evidence struct {
	File string    `json:"file"`
	Line int       `json:"line"`
	Time time.Time `json:"time,omitzero"`
	Text string    `json:"text"`
}

const (
	rootCauseVersion = 1
	maxSuspects      = 32
	maxCulprits      = 5
	maxEvidence      = 5
	maxEvidenceText  = 400 // bytes
	// maxKept bounds the lines that are kept of each rule until the best are chosen.
	maxKept = 500
	// maxUnusual is the highest score of what is not usual but no known sign of a fault.
	maxUnusual = 0.2
)

// pstoreFresh is for how long what the kernel left when it died is fresh: the host had to
// boot since.
const pstoreFresh = 24 * time.Hour

// Factors of a rule's weight. A sign that is older than the window stays below every
// fresh one, unless the host is damaged until it is reset or repaired.
const (
	oldFactor     = 0.15
	lastingFactor = 0.55
	clearedFactor = 0.2
	chronicFactor = 0.55 // it was as frequent before
	undatedFactor = 0.95
	// It concerns a program that is none of the failing services: that is no reason why they
	// fail, unless they share what it ran out of and nothing else explains it.
	strangeFactor = 0.33
	sharedFactor  = 0.7
)

// match is a line that a rule matches.
type match struct {
	Evidence
	culprit string
	fresh   bool
	related bool
	context []Evidence
}

// signs collects what one rule finds.
type signs struct {
	rule    *rule
	matches []match
	// count and earlier are by place: the journals together, and each other file. The
	// kernel's messages are in the journal and in its own log, and count once.
	count, earlier map[string]int
	culprits       map[string]int
	own            map[string]bool // the culprits that are, or are of, services that fail
	related        bool
	cleared        map[string]bool
	first, last    time.Time
	pending        int // lines of context still to come
	pendingFile    string
}

// evidenceFile is a file that is searched.
type evidenceFile struct {
	name     string
	data     []byte
	modified time.Time // zero if it says nothing
}

// analysis searches files for the cause.
type analysis struct {
	from, to time.Time
	// baseline is how long before the window there are lines of the journal.
	baseline time.Duration
	// bad are the units that fail.
	bad   map[string]bool
	names map[string]bool // programs that bad units run

	seed  maphash.Seed
	seen  map[uint64]bool
	signs []*signs
	lines int
}

func newAnalysis(from, to time.Time, states []unitState) *analysis {
	a := &analysis{from: from, to: to, bad: make(map[string]bool), names: make(map[string]bool), seed: maphash.MakeSeed(), seen: make(map[uint64]bool)}
	for _, s := range states {
		if s.bad() {
			a.bad[s.name] = true
		}
	}
	for i := range rules {
		a.signs = append(a.signs, &signs{rule: &rules[i], count: make(map[string]int), earlier: make(map[string]int), culprits: make(map[string]int), own: make(map[string]bool), cleared: make(map[string]bool)})
	}
	return a
}

// unitOf returns the unit that a file is about, "" if it is not about one.
func unitOf(file string) string {
	if rest, ok := strings.CutPrefix(file, "units/"); ok {
		unit, _, _ := strings.Cut(rest, "/")
		return unit
	}
	return ""
}

// learnPrograms notes who writes into the journals of the units that fail.
func (a *analysis) learnPrograms(files []evidenceFile) {
	for _, f := range files {
		if !a.bad[unitOf(f.name)] {
			continue
		}
		eachLine(f, func(l *line) {
			if l.origin == fromProgram && l.program != "" && len(a.names) < 1000 {
				a.names[clip(l.program, 64)] = true
			}
		})
	}
}

// ofBadUnit tells whether a line is about a unit that fails. Without a unit that is
// known to fail every line may be.
func (a *analysis) ofBadUnit(l *line, culprit string) bool {
	switch {
	case len(a.bad) == 0:
		return true
	case a.bad[unitOf(l.file)], a.bad[culprit]:
		return true
	case l.origin == fromProgram && l.program != "" && a.bad[l.program+".service"]:
		// The journal does not know the unit of a process that ended just as it wrote.
		return true
	case l.origin == fromKernel:
		// The kernel cuts names to 15 bytes.
		for n := range a.names {
			if culprit != "" && clip(n, 15) == clip(culprit, 15) {
				return true
			}
		}
	}
	return false
}

// search looks for signs in a file. The journals of units come before the host's, which
// has the same lines again. each, if not nil, is called with the lines of journals, and
// told whether they are in the window and whether a rule matches them.
func (a *analysis) search(f evidenceFile, each func(l *line, fresh, matched bool)) {
	journal := strings.HasSuffix(f.name, "journal.log") || f.name == baselineFile
	place := f.name
	if journal {
		place = "journal"
	}
	from := a.from
	if strings.HasPrefix(f.name, "pstore/") || strings.HasPrefix(f.name, "vmcore/") {
		from = a.to.Add(-pstoreFresh)
	}
	eachLine(f, func(l *line) {
		fresh := l.time.IsZero() || !l.time.Before(from)
		for _, s := range a.signs {
			if s.pending > 0 && s.pendingFile == f.name {
				last := &s.matches[len(s.matches)-1]
				last.context = append(last.context, evidence(l))
				s.pending--
			}
		}
		if f.name == baselineFile {
			if fresh {
				return // the moment at which the two journals meet may be in both
			}
		} else if journal {
			h := maphash.Bytes(a.seed, l.raw)
			if a.seen[h] && !l.time.IsZero() {
				return
			}
			a.seen[h] = true
		}
		a.lines++
		matched := false
		for _, s := range a.signs {
			s.clear(l)
			culprit, ok := s.rule.match(l)
			if !ok {
				continue
			}
			matched = true
			if culprit == "" && strings.HasSuffix(l.file, "/properties") {
				culprit = unitOf(l.file)
			}
			s.add(match{Evidence: evidence(l), culprit: culprit, fresh: fresh, related: a.ofBadUnit(l, culprit)}, place)
		}
		if each != nil && journal {
			each(l, fresh, matched)
		}
	})
}

func evidence(l *line) Evidence {
	return Evidence{File: l.file, Line: l.number, Time: l.time.UTC(), Text: strings.ToValidUTF8(clip(string(l.raw), maxEvidenceText), "?")}
}

// match tells whether the line has the sign, and what is to blame.
func (r *rule) match(l *line) (culprit string, ok bool) {
	if !r.from[l.origin] || !r.hinted(l.text) || r.not != nil && r.not.MatchString(l.text) {
		return "", false
	}
	if r.re == nil {
		return "", true
	}
	return capture(r.re, l.text)
}

func (r *rule) hinted(text string) bool {
	for _, s := range r.any {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// add counts a match and keeps it if there is room.
func (s *signs) add(m match, place string) {
	if m.fresh {
		s.count[place]++
		s.related = s.related || m.related
		if !m.Time.IsZero() {
			if s.first.IsZero() || m.Time.Before(s.first) {
				s.first = m.Time
			}
			if m.Time.After(s.last) {
				s.last = m.Time
			}
		}
	} else {
		s.earlier[place]++
	}
	if m.culprit != "" {
		if s.culprits[m.culprit] > 0 || len(s.culprits) < 1000 {
			s.culprits[m.culprit]++
			s.own[m.culprit] = s.own[m.culprit] || m.related
		}
		delete(s.cleared, m.culprit)
	}
	if m.File == baselineFile {
		return // it only counts: the file is not in the archive
	}
	// The newest take the place of the last one that was kept.
	if len(s.matches) == maxKept {
		s.matches = s.matches[:maxKept-1]
	}
	s.matches = append(s.matches, m)
	if s.pending == 0 && s.rule.context > 0 && s.contexts() < 2 {
		s.pending, s.pendingFile = s.rule.context, m.File
	} else {
		s.pending = 0
	}
}

func (s *signs) contexts() int {
	n := 0
	for _, m := range s.matches {
		if len(m.context) > 0 {
			n++
		}
	}
	return n
}

// clear notes that what was to blame is well again.
func (s *signs) clear(l *line) {
	if s.rule.cleared == nil || !s.rule.from[l.origin] || len(s.culprits) == 0 {
		return
	}
	if what, ok := capture(s.rule.cleared, l.text); ok && s.culprits[what] > 0 {
		s.cleared[what] = true
	}
}

// capture matches and returns the first group that took part.
func capture(re *regexp.Regexp, text string) (string, bool) {
	at := re.FindStringSubmatchIndex(text)
	if at == nil {
		return "", false
	}
	for i := 2; i < len(at); i += 2 {
		if at[i] >= 0 {
			return strings.ToValidUTF8(clip(text[at[i]:at[i+1]], 128), "?"), true
		}
	}
	return "", true
}

// suspect is what a rule's signs come to; false if there are none. explained tells
// whether something else says why the services fail.
func (s *signs) suspect(window, baseline time.Duration, explained bool) (Suspect, bool) {
	if len(s.matches) == 0 {
		return Suspect{}, false
	}
	r := s.rule
	out := Suspect{Rule: r.name, Class: r.class, Title: r.title, Advice: r.advice, First: s.first, Last: s.last, Count: total(s.count), Earlier: total(s.earlier)}
	score := r.weight
	switch {
	case out.Count == 0 && r.lasting:
		score *= lastingFactor
	case out.Count == 0:
		score *= oldFactor
	case baseline > 0 && s.earlier["journal"] >= 3 && float64(out.Count) <= 2*float64(s.earlier["journal"])*window.Seconds()/baseline.Seconds():
		score *= chronicFactor
	case s.first.IsZero():
		score *= undatedFactor
	}
	if out.Count > 0 && !s.related {
		switch {
		case r.reach == itself, r.reach == perhapsAll && explained:
			score *= strangeFactor
		case r.reach == perhapsAll:
			score *= sharedFactor
		}
	}
	if len(s.culprits) > 0 && len(s.cleared) == len(s.culprits) {
		out.Cleared = true
		score *= clearedFactor
	}
	if out.Count > 1 && !out.Cleared {
		score += min(0.01, 0.002*math.Log2(float64(out.Count)))
	}
	out.Score = math.Round(min(score, 0.99)*1000) / 1000

	for c := range s.culprits {
		out.Culprits = append(out.Culprits, c)
	}
	slices.SortFunc(out.Culprits, func(x, y string) int {
		return cmp.Or(truth(s.own[y])-truth(s.own[x]), s.culprits[y]-s.culprits[x], strings.Compare(x, y))
	})
	out.Culprits = out.Culprits[:min(len(out.Culprits), maxCulprits)]
	out.Evidence = choose(s.matches)
	return out, true
}

// total is the number of matches: the kernel's log and the journal have the same ones.
func total(places map[string]int) int {
	n := max(places["journal"], places["kernel.log"])
	for p, c := range places {
		if p != "journal" && p != "kernel.log" {
			n += c
		}
	}
	return n
}

// choose picks the lines that prove the most: fresh before old, of failing services
// before others, early before late, each text once.
func choose(matches []match) []Evidence {
	best := slices.Clone(matches)
	slices.SortStableFunc(best, func(x, y match) int {
		return cmp.Or(truth(y.fresh)-truth(x.fresh), truth(y.related)-truth(x.related), truth(x.Time.IsZero())-truth(y.Time.IsZero()), x.Time.Compare(y.Time))
	})
	var out []Evidence
	texts := make(map[string]bool)
	for _, m := range best {
		if len(out) >= maxEvidence {
			break
		}
		l := line{file: m.File, raw: []byte(m.Text)}
		if parse := parserOf(m.File); parse != nil {
			parse(&l)
		}
		if texts[l.text] {
			continue
		}
		texts[l.text] = true
		out = append(out, m.Evidence)
		out = append(out, m.context...)
	}
	return out
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// suspects ranks all that was found.
func (a *analysis) suspects(unusual []Suspect) []Suspect {
	out := []Suspect{}
	explained := slices.ContainsFunc(a.signs, func(s *signs) bool { return s.related && !s.rule.symptom })
	for _, s := range a.signs {
		if x, ok := s.suspect(a.to.Sub(a.from), a.baseline, explained); ok {
			out = append(out, x)
		}
	}
	out = append(out, unusual...)
	slices.SortStableFunc(out, func(x, y Suspect) int {
		return cmp.Or(cmp.Compare(y.Score, x.Score), x.First.Compare(y.First))
	})
	return out[:min(len(out), maxSuspects)]
}

// json renders root-cause.json.
func (r RootCause) json() ([]byte, error) {
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the root cause: %w", err)
	}
	return append(out, '\n'), nil
}

// markdown renders root-cause.md.
func (r RootCause) markdown(states []unitState) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Host %s: what may have happened\n\n", r.Host)
	fmt.Fprintf(&b, "Execution %s. Looked at: %s to %s, %d lines; compared with %d lines from before.\n\n",
		plain(r.Execution), r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339), r.Lines, r.BaselineLines)
	b.WriteString("## Services\n\n")
	for _, s := range states {
		text := s.String()
		if !s.bad() && s.known {
			text = s.name + " is active"
		}
		fmt.Fprintf(&b, "- %s\n", plain(text))
	}
	if len(states) == 0 {
		b.WriteString("None were named.\n")
	}
	b.WriteString("\n## Suspects, the most likely first\n\n")
	if len(r.Suspects) == 0 {
		b.WriteString("No known sign of a fault was found.\n")
	}
	for i, s := range r.Suspects {
		fmt.Fprintf(&b, "%d. **%s** (%s, score %.2f): %d lines", i+1, plain(s.Title), s.Class, s.Score, s.Count)
		if s.Earlier > 0 {
			fmt.Fprintf(&b, ", %d earlier", s.Earlier)
		}
		if len(s.Culprits) > 0 {
			fmt.Fprintf(&b, ", about %s", plain(strings.Join(s.Culprits, ", ")))
		}
		if s.Cleared {
			b.WriteString(", well again")
		}
		fmt.Fprintf(&b, ". %s\n\n", s.Advice)
		for _, e := range s.Evidence {
			fmt.Fprintf(&b, "        %s:%d: %s\n", e.File, e.Line, oneLine([]byte(e.Text)))
		}
		b.WriteString("\n")
	}
	fresh := slices.DeleteFunc(slices.Clone(r.Suspects), func(s Suspect) bool { return s.First.IsZero() })
	if len(fresh) > 1 {
		b.WriteString("## In the order of time\n\n")
		slices.SortStableFunc(fresh, func(x, y Suspect) int { return x.First.Compare(y.First) })
		for _, s := range fresh {
			fmt.Fprintf(&b, "- %s %s\n", s.First.UTC().Format("15:04:05.000"), plain(s.Title))
		}
	}
	return b.Bytes()
}

// plain keeps text from being read as markup.
func plain(s string) string {
	return strings.NewReplacer("*", `\*`, "_", `\_`, "`", "\\`", "<", "&lt;", "[", `\[`, "|", `\|`).Replace(oneLine([]byte(s)))
}

// maxSummary bounds the summary, in bytes.
const maxSummary = 1200

// summarize says in a few sentences what was found.
func summarize(states []unitState, r RootCause) string {
	var bad []string
	for _, s := range states {
		if s.bad() {
			bad = append(bad, s.String())
		}
	}
	var b strings.Builder
	switch {
	case len(bad) > 5:
		fmt.Fprintf(&b, "%s and %d further services fail.", strings.Join(bad[:5], "; "), len(bad)-5)
	case len(bad) > 0:
		b.WriteString(strings.Join(bad, "; ") + ".")
	case len(states) > 0:
		fmt.Fprintf(&b, "All %d services are active.", len(states))
	default:
		b.WriteString("No services were named.")
	}
	if len(r.Suspects) == 0 || r.Suspects[0].Score <= maxUnusual/2 {
		b.WriteString(" No known sign of a cause was found.")
		return b.String()
	}
	top := r.Suspects[0]
	likely := "Most likely cause"
	if top.Score < 0.5 {
		likely = "Suspected cause"
	}
	fmt.Fprintf(&b, " %s: %s", likely, top.Title)
	if len(top.Culprits) > 0 {
		fmt.Fprintf(&b, ": %s", strings.Join(top.Culprits[:min(2, len(top.Culprits))], ", "))
	}
	fmt.Fprintf(&b, " (%s, %d lines", top.Class, max(top.Count, top.Earlier))
	if !top.First.IsZero() {
		fmt.Fprintf(&b, ", first at %s", top.First.UTC().Format("15:04:05Z"))
	}
	b.WriteString(").")
	if len(top.Evidence) > 0 {
		fmt.Fprintf(&b, " %q.", clip(top.Evidence[0].Text, 240))
	}
	if len(r.Suspects) > 1 && r.Suspects[1].Score > maxUnusual {
		fmt.Fprintf(&b, " Also: %s.", r.Suspects[1].Title)
	}
	return clip(oneLine([]byte(b.String())), maxSummary)
}
