package fleet

import "time"

// Command asks a host agent to carry out one phase of an execution. It is
// delivered at least once; the agent carries it out at most once.
type Command struct {
	// ID is unique per execution, phase and attempt, and the key by which the
	// agent recognises a command that it has already seen.
	ID        string `json:"id"`
	Execution string `json:"execution"`
	Host      HostID `json:"host"`
	Phase     Phase  `json:"phase"`
	Attempt   int    `json:"attempt"`
	// Token is the fencing token. The agent refuses a command whose token is
	// older than the newest that it has seen on this host, across reboots.
	Token  uint64    `json:"token"`
	Issued time.Time `json:"issued"`
	// NotAfter is when the command expires: an agent that receives it later
	// must not begin, since the evidence is stale by then.
	NotAfter time.Time `json:"not_after"`
	// Deadline bounds the phase once begun.
	Deadline time.Time `json:"deadline"`
	// Units are the services to restart, in order (PhaseRecycle), or to look
	// at first (PhaseDiagnose). Empty means the agent's configured list.
	Units []string `json:"units,omitempty"`
	// Targets says for each VM where it goes (PhaseMigrate).
	Targets []Target `json:"targets,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	// Prediction is what led to the execution, for PhaseDiagnose; nil where a person
	// asked for it.
	Prediction *Prediction `json:"prediction,omitempty"`
	// CancelledBy is set where a person wants the phase to stop: the same command comes
	// again with it.
	CancelledBy string `json:"cancelled_by,omitempty"`
}

// Target is the host that a VM is to be moved to.
type Target struct {
	VM   string `json:"vm"`
	Host HostID `json:"host"`
	// Address is where the host is reached: a name or an IP address.
	Address string `json:"address"`
	// Why is the reason for this choice, for a person.
	Why string `json:"why,omitempty"`
}

// Result is how a phase ended.
type Result string

// The results of a phase. Refused means that nothing was done.
const (
	ResultSucceeded Result = "succeeded"
	ResultFailed    Result = "failed"
	ResultDegraded  Result = "degraded"  // a VM is missing or changed
	ResultUnknown   Result = "unknown"   // the agent cannot find out what happened
	ResultCancelled Result = "cancelled" // a person stopped it: what was begun is finished or undone, see Detail
	ResultRefused   Result = "refused"   // stale token, expired, dry run or not capable: see Detail
)

// Report is what a host agent says while it carries out a command: one report
// for each step, and a last one with Result set.
type Report struct {
	Command   string    `json:"command"`
	Execution string    `json:"execution"`
	Host      HostID    `json:"host"`
	Phase     Phase     `json:"phase"`
	Token     uint64    `json:"token"`
	Time      time.Time `json:"time"`
	// Seq grows by one with each report of a command, from 1, and is the same
	// when a report is sent again.
	Seq  int   `json:"seq"`
	Step *Step `json:"step,omitempty"`
	// Result is empty in all reports of a command but the last.
	Result       Result        `json:"result,omitempty"`
	Detail       string        `json:"detail,omitempty"`
	GuestsBefore []GuestReport `json:"guests_before,omitempty"`
	GuestsAfter  []GuestReport `json:"guests_after,omitempty"`
	// Bundle is the name of the diagnostics archive, if the phase made one.
	Bundle string `json:"bundle,omitempty"`
}
