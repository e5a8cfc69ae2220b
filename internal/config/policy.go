package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// PolicyVersion is the version of the policy file's format that this code reads.
const PolicyVersion = 1

// Policy is what may be done, and when. It is the section `policy` of the
// configuration, or a file of its own with the same keys at its top level, which
// policy.file names. The file is read again whenever it changes; the section is not.
type Policy struct {
	// File is the policy's own file. With it, no other key may stand in the section.
	File string `yaml:"file,omitempty"`
	// Version is the version of the format, needed in a file of its own.
	Version int `yaml:"version"`
	// Mode is "approve" (a person decides, the default), "automatic" or "dry-run".
	Mode string `yaml:"mode"`
	// ApprovalExpires is how long a recommendation waits for a decision, and how long
	// the decision holds.
	ApprovalExpires Duration `yaml:"approval_expires"`
	// Actions are rules for one action each, where they differ from the above.
	Actions ActionRules `yaml:"actions"`
	// EvidenceMaxAge is how old the newest sample of a host may be when an
	// action on it begins.
	EvidenceMaxAge Duration `yaml:"evidence_max_age"`
	// UncordonAfter is how long a host must be healthy without a break before its cordon
	// is lifted and VMs may be moved to it again; 0 leaves that to a person.
	UncordonAfter Duration `yaml:"uncordon_after"`
	// Cooldown is the least time between two executions on a host.
	Cooldown Duration `yaml:"cooldown"`
	// Deadlines bounds the phases of executions.
	Deadlines Deadlines `yaml:"deadlines"`
	// MaxConcurrent and MaxConcurrentPerDomain limit the actions under way.
	MaxConcurrent          int `yaml:"max_concurrent"`
	MaxConcurrentPerDomain int `yaml:"max_concurrent_per_domain"`
	// MinHealthyRatio is the share of the fleet that must be healthy, 0..1, not
	// counting the host that is acted on.
	MinHealthyRatio float64 `yaml:"min_healthy_ratio"`
	// StormHosts and StormRatio are the storm brake: when at least so many hosts,
	// and more than this share of the fleet, are predicted to fail at once, the
	// prediction is doubted: the fleet is frozen and a person is called.
	StormHosts int     `yaml:"storm_hosts"`
	StormRatio float64 `yaml:"storm_ratio"`
	// Windows, if there are any, are the only times at which actions begin.
	Windows []Window `yaml:"maintenance_windows"`
	// Freeze stops every action while true.
	Freeze bool `yaml:"freeze"`
	// CrashSeconds is what one VM loses when its host fails.
	CrashSeconds float64 `yaml:"crash_seconds"`
	// HandOverSeconds is what one VM on a failing host is expected to lose until
	// a person has dealt with it.
	HandOverSeconds float64 `yaml:"hand_over_seconds"`
	// ResetFreezeSeconds and MigrateFreezeSeconds are for how long a VM is expected to stand
	// still in a preserving reset, the host's kexec included, and in a live migration.
	ResetFreezeSeconds   float64 `yaml:"reset_freeze_seconds"`
	MigrateFreezeSeconds float64 `yaml:"migrate_freeze_seconds"`
	// NoiseRatio is the share of its time, 0..1, that a VM loses to a noisy neighbour.
	NoiseRatio float64 `yaml:"noise_ratio"`
	// Attempts is how often an action may be tried against the same fault.
	Attempts int `yaml:"attempts"`
	// Explore is the share of decisions, 0..1, that is left to chance in mode automatic, so
	// that something is learned of every action. With 0 the action that is expected to cost least
	// is always chosen.
	Explore float64 `yaml:"explore"`
	// VMs says which VMs differ from others in what an interruption costs and what may be
	// done to them. The first that matches counts.
	VMs []VMRule `yaml:"vms"`
}

// VMRule says how VMs differ from others.
type VMRule struct {
	// Match is a pattern for the name or the id: "db-*".
	Match string `yaml:"match"`
	// Weight is how many others one of these counts as; 0 means 1.
	Weight float64 `yaml:"weight"`
	// MaxFreezeSeconds is how long it may stand still: an action that takes longer is not
	// recommended for its host. 0 means without limit.
	MaxFreezeSeconds float64 `yaml:"max_freeze_seconds"`
	// NoLiveMigration means that it must stay on its host.
	NoLiveMigration bool `yaml:"no_live_migration"`
}

// Deadlines says how long the phases of an execution may take. A change holds for what
// begins after it.
type Deadlines struct {
	// Begin is the time from the request to the first effect, and from each command to its
	// begin on the host.
	Begin Duration `yaml:"begin"`
	// Recycle, Diagnose, Reset and Migrate are the phases. A reset has the host's way down
	// and up in it, a migration the moves of all VMs.
	Recycle  Duration `yaml:"recycle"`
	Diagnose Duration `yaml:"diagnose"`
	Reset    Duration `yaml:"reset"`
	Migrate  Duration `yaml:"migrate"`
}

// ActionRules are the rules of each action that changes a host.
type ActionRules struct {
	Recycle         ActionRule `yaml:"recycle"`
	PreservingReset ActionRule `yaml:"preserving-reset"`
	LiveMigrate     ActionRule `yaml:"live-migrate"`
}

// ActionRule is what holds for one action.
type ActionRule struct {
	// Approval is "person", "automatic" or "never"; "" follows the policy's mode.
	Approval string `yaml:"approval"`
	// ApprovalExpires replaces the policy's; 0 leaves it.
	ApprovalExpires Duration `yaml:"approval_expires"`
}

// Window is a time of the week, in UTC. One that ends before it begins goes over
// midnight.
type Window struct {
	// Days on which it begins: mon, tue, wed, thu, fri, sat, sun; none means every day.
	Days []string `yaml:"days"`
	// Begin and End are times of the day, "22:00"; the end may be "24:00".
	Begin string `yaml:"begin"`
	End   string `yaml:"end"`
}

// DefaultPolicy is the policy of an empty section.
func DefaultPolicy() Policy {
	return Policy{
		Version: PolicyVersion, Mode: "approve", ApprovalExpires: Duration(15 * time.Minute), EvidenceMaxAge: Duration(time.Minute),
		UncordonAfter: Duration(10 * time.Minute),
		Cooldown:      Duration(10 * time.Minute),
		Deadlines: Deadlines{
			Begin: Duration(15 * time.Second), Recycle: Duration(2 * time.Minute), Diagnose: Duration(2 * time.Minute), Reset: Duration(10 * time.Minute), Migrate: Duration(30 * time.Minute),
		},
		MaxConcurrent: 1, MaxConcurrentPerDomain: 1, MinHealthyRatio: 0.5,
		StormHosts: 5, StormRatio: 0.2,
		CrashSeconds: 300, HandOverSeconds: 120, ResetFreezeSeconds: 20, MigrateFreezeSeconds: 0.5, NoiseRatio: 0.2,
		Attempts: 1, Explore: 0.02,
	}
}

// rule is the rule of an action; that of an action that has none is empty.
func (p *Policy) rule(a fleet.Action) ActionRule {
	switch a {
	case fleet.ActionRecycle:
		return p.Actions.Recycle
	case fleet.ActionPreservingReset:
		return p.Actions.PreservingReset
	case fleet.ActionLiveMigrate:
		return p.Actions.LiveMigrate
	}
	return ActionRule{}
}

// Approval is who approves an action: "person", "automatic" or "never".
func (p *Policy) Approval(a fleet.Action) string {
	if r := p.rule(a); r.Approval != "" {
		return r.Approval
	}
	if p.Mode == "automatic" {
		return "automatic"
	}
	return "person"
}

// Expires is for how long a recommendation of the action waits, and its approval holds.
func (p *Policy) Expires(a fleet.Action) time.Duration {
	if d := p.rule(a).ApprovalExpires.D(); d > 0 {
		return d
	}
	return p.ApprovalExpires.D()
}

// Revision identifies what the policy says: 12 hex digits of a hash of its keys.
func (p Policy) Revision() string {
	p.File = ""
	data, err := yaml.Marshal(p)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6])
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// Times are the days of a window, and its begin and end since midnight. The window
// must be valid.
func (w Window) Times() (days []time.Weekday, begin, end time.Duration) {
	for _, d := range w.Days {
		days = append(days, time.Weekday(slices.Index(weekdays, d)))
	}
	begin, _ = timeOfDay(w.Begin)
	end, _ = timeOfDay(w.End)
	return days, begin, end
}

func timeOfDay(s string) (time.Duration, error) {
	var h, m int
	if n, err := fmt.Sscanf(s+".", "%2d:%2d.", &h, &m); n != 2 || err != nil || len(s) != 5 || h < 0 || m < 0 || m > 59 || h*60+m > 24*60 {
		return 0, fmt.Errorf("%q is not a time of the day from 00:00 to 24:00", s)
	}
	return time.Duration(h)*time.Hour + time.Duration(m)*time.Minute, nil
}

// Mistake is one thing that is wrong with a policy.
type Mistake struct {
	// Line and Column are where it stands, from 1; 0 where that is not known.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Key is its path, "maintenance_windows[0].begin".
	Key  string `json:"key,omitempty"`
	Text string `json:"text"`
}

func (m Mistake) String() string {
	var b strings.Builder
	if m.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", m.Line)
	}
	if m.Key != "" {
		b.WriteString(m.Key + ": ")
	}
	return b.String() + m.Text
}

// Mistakes is the error of a policy that cannot be used.
type Mistakes []Mistake

func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i, x := range m {
		lines[i] = x.String()
	}
	return strings.Join(lines, "\n")
}

// mistakes returns everything that is wrong with the values.
func (p *Policy) mistakes() (all Mistakes) {
	bad := func(key, format string, args ...any) {
		all = append(all, Mistake{Key: key, Text: clip(fmt.Sprintf(format, args...))})
	}
	if p.Version != PolicyVersion {
		bad("version", "%d is not a version that this release reads: it reads %d", p.Version, PolicyVersion)
	}
	switch p.Mode {
	case "approve", "automatic", "dry-run":
	default:
		bad("mode", "%q is not approve, automatic or dry-run", p.Mode)
	}
	for _, a := range []fleet.Action{fleet.ActionRecycle, fleet.ActionPreservingReset, fleet.ActionLiveMigrate} {
		switch r := p.rule(a); r.Approval {
		case "", "person", "automatic", "never":
		default:
			bad(fmt.Sprintf("actions.%s.approval", a), "%q is not person, automatic or never", r.Approval)
		}
	}
	for _, r := range []struct {
		key   string
		value float64
	}{{"min_healthy_ratio", p.MinHealthyRatio}, {"storm_ratio", p.StormRatio}, {"explore", p.Explore}, {"noise_ratio", p.NoiseRatio}} {
		// Written so that what is not a number is a mistake.
		if !(r.value >= 0 && r.value <= 1) {
			bad(r.key, "%v is not in 0..1", r.value)
		}
	}
	for _, s := range []struct {
		key   string
		value float64
	}{{"crash_seconds", p.CrashSeconds}, {"hand_over_seconds", p.HandOverSeconds}, {"reset_freeze_seconds", p.ResetFreezeSeconds}, {"migrate_freeze_seconds", p.MigrateFreezeSeconds}} {
		if !(s.value >= 0 && s.value <= 1e9) {
			bad(s.key, "%v is not a number of seconds from 0 to 1e9", s.value)
		}
	}
	for _, n := range []struct {
		key   string
		value int
	}{{"max_concurrent", p.MaxConcurrent}, {"max_concurrent_per_domain", p.MaxConcurrentPerDomain}} {
		if n.value < 1 {
			bad(n.key, "%d is too small, at least 1; to stop every action, set policy.freeze", n.value)
		}
	}
	if p.Attempts < 1 || p.Attempts > 100 {
		bad("attempts", "%d is out of range: 1 to 100", p.Attempts)
	}
	for i, v := range p.VMs {
		key := fmt.Sprintf("vms[%d]", i)
		if _, err := path.Match(v.Match, ""); err != nil || v.Match == "" {
			bad(key+".match", "%q is not a pattern for VMs' names such as db-*", v.Match)
		}
		if !(v.Weight >= 0 && v.Weight <= 1e6) {
			bad(key+".weight", "%v is not a number from 0 to 1e6", v.Weight)
		}
		if !(v.MaxFreezeSeconds >= 0 && v.MaxFreezeSeconds <= 1e9) {
			bad(key+".max_freeze_seconds", "%v is not a number of seconds from 0 to 1e9", v.MaxFreezeSeconds)
		}
	}
	if p.StormHosts < 0 {
		bad("storm_hosts", "%d is negative; 0 switches the storm brake off", p.StormHosts)
	}
	if p.EvidenceMaxAge.D() < time.Second {
		bad("evidence_max_age", "%v is shorter than any evidence is old: at least 1s", p.EvidenceMaxAge.D())
	}
	for _, d := range []struct {
		key   string
		value Duration
	}{{"begin", p.Deadlines.Begin}, {"recycle", p.Deadlines.Recycle}, {"diagnose", p.Deadlines.Diagnose}, {"reset", p.Deadlines.Reset}, {"migrate", p.Deadlines.Migrate}} {
		if d.value.D() < 5*time.Second || d.value.D() > 24*time.Hour {
			bad("deadlines."+d.key, "%v is out of range: 5s to 24h", d.value.D())
		}
	}
	for i, w := range p.Windows {
		key := fmt.Sprintf("maintenance_windows[%d]", i)
		for j, d := range w.Days {
			if !slices.Contains(weekdays, d) {
				bad(fmt.Sprintf("%s.days[%d]", key, j), "%q is not mon, tue, wed, thu, fri, sat or sun", d)
			}
		}
		begin, err := timeOfDay(w.Begin)
		if err != nil {
			bad(key+".begin", "%v", err)
		}
		end, err2 := timeOfDay(w.End)
		if err2 != nil {
			bad(key+".end", "%v", err2)
		}
		if err == nil && err2 == nil && begin == end {
			bad(key, "it ends when it begins; for a whole day write 00:00 to 24:00")
		}
	}
	return all
}

// alone refuses other keys beside the name of a file.
func (p *Policy) alone() error {
	rest := *p
	rest.File = ""
	if p.File != "" && !reflect.DeepEqual(rest, DefaultPolicy()) {
		return fmt.Errorf("policy.file names %s, and other keys of the policy stand beside it: move them into that file", p.File)
	}
	return nil
}

// maxPolicy bounds a policy file, in bytes.
const maxPolicy = 1 << 20

// ReadPolicy returns a policy file's text.
func ReadPolicy(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	return data, nil
}

// LoadPolicy reads a policy file. The error of a file that is wrong is a [Mistakes].
func LoadPolicy(path string) (Policy, error) {
	data, err := ReadPolicy(path)
	if err != nil {
		return Policy{}, err
	}
	p, err := ParsePolicy(data)
	if err != nil {
		return Policy{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// ParsePolicy reads a policy file's text. Keys that are not in it have their default,
// but for the version, which must be there. The error is a [Mistakes], in the order of
// the lines.
func ParsePolicy(data []byte) (Policy, error) {
	p := DefaultPolicy()
	p.Version = 0
	if len(data) > maxPolicy {
		return Policy{}, Mistakes{{Text: fmt.Sprintf("the file is larger than %d bytes", maxPolicy)}}
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return Policy{}, Mistakes{{Text: fmt.Sprintf("the file is empty; it needs at least 'version: %d'", PolicyVersion)}}
	}
	file, err := decode(data, &p)
	if err != nil {
		return Policy{}, Mistakes{asMistake(err)}
	}
	all := p.mistakes()
	if p.File != "" {
		all = append(all, Mistake{Key: "file", Text: "a policy file cannot name another one"})
	}
	for i := range all {
		if all[i].Key == "version" && p.Version == 0 {
			all[i].Text = fmt.Sprintf("it is missing; write 'version: %d'", PolicyVersion)
		}
		all[i].Line, all[i].Column = position(file, all[i].Key)
	}
	if len(all) > 0 {
		slices.SortStableFunc(all, func(a, b Mistake) int { return cmp.Compare(a.Line, b.Line) })
		return Policy{}, all
	}
	return p, nil
}

// asMistake takes apart what the YAML package says.
func asMistake(err error) Mistake {
	var e yaml.Error
	if !errors.As(err, &e) {
		return Mistake{Text: strings.TrimSpace(err.Error())}
	}
	m := Mistake{Text: e.GetMessage()}
	if t := e.GetToken(); t != nil && t.Position != nil {
		m.Line, m.Column = t.Position.Line, t.Position.Column
		if unknown, ok := errors.AsType[*yaml.UnknownFieldError](err); ok {
			m.Key, m.Text = unknown.Token.Value, "there is no such key here"
		}
	}
	return m
}

// position finds where a key stands; 0 if it does not.
func position(file *ast.File, key string) (line, column int) {
	if key == "" || file == nil {
		return 0, 0
	}
	path, err := yaml.PathString("$." + key)
	if err != nil {
		return 0, 0
	}
	node, err := path.FilterFile(file)
	if err != nil || node == nil {
		return 0, 0
	}
	var t *token.Token = node.GetToken()
	if t == nil || t.Position == nil {
		return 0, 0
	}
	return t.Position.Line, t.Position.Column
}
