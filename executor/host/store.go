package host

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/executor/journal"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	journalName = "executions.journal"
	// compactAt is the size in bytes from which the journal is made small again.
	compactAt = 1 << 20
	// keepJobs is how many finished commands are remembered. A command that comes
	// again after so many others has an old fencing token.
	keepJobs = 64
)

// load reads the journal.
func (r *Runner) load() error {
	j, records, err := journal.Open(r.root, journalName, r.cfg.Journal)
	if err != nil {
		return err
	}
	r.journal = j
	for i, data := range records {
		var e entry
		if err := json.Unmarshal(data, &e); err != nil {
			j.Close()
			return fmt.Errorf("journal in %s: record %d: %w: %w", r.cfg.Dir, i, journal.ErrCorrupt, err)
		}
		if e.Version > entryVersion {
			j.Close()
			return fmt.Errorf("journal in %s: record %d: %w: version %d, this one reads up to %d", r.cfg.Dir, i, journal.ErrNewer, e.Version, entryVersion)
		}
		if err := r.apply(e); err != nil {
			j.Close()
			return fmt.Errorf("journal in %s: record %d: %w: %w", r.cfg.Dir, i, journal.ErrCorrupt, err)
		}
	}
	return nil
}

// write makes an entry durable and then takes it over. r.mu is held.
func (r *Runner) write(e entry) error {
	data, err := e.encode()
	if err != nil {
		return err
	}
	if err := r.journal.Append(data); err != nil {
		return err
	}
	return r.apply(e)
}

// encode gives an entry the oldest version that has its kind, so that an older agent
// reads all that it can understand.
func (e entry) encode() ([]byte, error) {
	e.Version = 1
	if e.Kind == "cancelled" {
		e.Version = 2
	}
	return json.Marshal(e)
}

// apply takes an entry over into memory; it is the only place that does.
func (r *Runner) apply(e entry) error {
	if e.Kind == "accepted" {
		if e.Command == nil {
			return fmt.Errorf("an accepted command is missing")
		}
		r.jobs = append(r.jobs, &job{command: *e.Command, boot: e.Boot, invocations: map[string]string{}})
		r.newest = max(r.newest, e.Command.Token)
		return nil
	}
	if e.Kind == "token" && e.ID == "" {
		r.newest = max(r.newest, e.Token)
		return nil
	}
	i := slices.IndexFunc(r.jobs, func(j *job) bool { return j.command.ID == e.ID && !j.volatile })
	if i < 0 {
		return fmt.Errorf("%s of the command %q, which is not there", e.Kind, e.ID)
	}
	j := r.jobs[i]
	switch e.Kind {
	case "report":
		if e.Report == nil || e.Report.Seq != len(j.reports)+1 || j.final() {
			return fmt.Errorf("a report of the command %q is out of order", e.ID)
		}
		j.reports = append(j.reports, *e.Report)
		if s := e.Report.Step; s != nil && s.State == fleet.StepRunning {
			j.invocations[s.Name] = e.Invocation
		}
	case "acked":
		j.sent, j.acked = len(j.reports), true
	case "token":
		j.command.Token = max(j.command.Token, e.Token)
		r.newest = max(r.newest, e.Token)
	case "cancelled":
		j.command.CancelledBy = e.By
	default:
		return fmt.Errorf("unknown kind %q", e.Kind)
	}
	return nil
}

// compact forgets finished commands beyond the last ones and rewrites the journal,
// where that is worth it. r.mu is held.
func (r *Runner) compact() error {
	if r.journal.Size() < compactAt {
		return nil
	}
	done := 0
	var keep []*job
	for _, j := range slices.Backward(r.jobs) {
		if j.final() && (j.acked || j.volatile) {
			if done++; done > keepJobs || j.volatile {
				continue
			}
		}
		keep = append(keep, j)
	}
	slices.Reverse(keep)
	entries := []entry{{Kind: "token", Token: r.newest}}
	for _, j := range keep {
		if j.volatile {
			continue
		}
		entries = append(entries, entry{Kind: "accepted", ID: j.command.ID, Command: &j.command, Boot: j.boot})
		for i := range j.reports {
			e := entry{Kind: "report", ID: j.command.ID, Report: &j.reports[i]}
			if s := j.reports[i].Step; s != nil && s.State == fleet.StepRunning {
				e.Invocation = j.invocations[s.Name]
			}
			entries = append(entries, e)
		}
		if j.acked {
			entries = append(entries, entry{Kind: "acked", ID: j.command.ID})
		}
	}
	records := make([][]byte, len(entries))
	for i, e := range entries {
		data, err := e.encode()
		if err != nil {
			return err
		}
		records[i] = data
	}
	if err := r.journal.Compact(records); err != nil {
		return err
	}
	r.jobs = keep
	return nil
}

// maxDetail bounds the words of a report, in bytes.
const maxDetail = 4096

// report fills in what all reports of a job have.
func (r *Runner) report(j *job, rep fleet.Report) fleet.Report {
	rep.Command, rep.Execution, rep.Host = j.command.ID, j.command.Execution, r.cfg.Host
	rep.Phase, rep.Token, rep.Time = j.command.Phase, j.command.Token, r.cfg.Clock().UTC()
	rep.Seq = len(j.reports) + 1
	rep.Detail = clip(rep.Detail)
	if rep.Step != nil {
		rep.Step.Detail = clip(rep.Step.Detail)
	}
	return rep
}

func clip(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return s[:maxDetail] + " …"
}

// say journals a report and puts it into the outbox.
func (r *Runner) say(j *job, rep fleet.Report, invocation string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rep = r.report(j, rep)
	if err := r.write(entry{Kind: "report", ID: j.command.ID, Report: &rep, Invocation: invocation}); err != nil {
		return err
	}
	if rep.Result != "" {
		if err := r.compact(); err != nil {
			r.cfg.Log.Warn("the journal stays long", "err", err)
		}
	}
	signal(r.outbox)
	return nil
}
