package fleet

import "time"

// Signature is the class of fault that the evidence points to.
type Signature string

// The signatures. SignatureNone means that there is no fault to classify.
const (
	SignatureNone           Signature = "none"
	SignatureServiceHang    Signature = "service-hang"
	SignatureMemoryLeak     Signature = "memory-leak"
	SignatureKernelFault    Signature = "kernel-fault"
	SignatureDisk           Signature = "disk"
	SignatureMemoryHardware Signature = "memory-hardware"
	SignatureNetwork        Signature = "network"
	SignatureThermal        Signature = "thermal"
	SignatureNoisyNeighbour Signature = "noisy-neighbour"
	SignatureUnknown        Signature = "unknown"
)

// Contribution is the part of a score that one series has.
type Contribution struct {
	Series string `json:"series"`
	// Share is in 0..1; the shares of all series of a prediction add up to 1.
	Share float64 `json:"share"`
	// Value is the sampled value, absent where the metric was missing.
	Value *float64 `json:"value,omitempty"`
}

// SubsystemShare is the part of a score that a subsystem's series have together.
type SubsystemShare struct {
	// Subsystem is a group of the metric catalogue: "cpu", "memory", "disk", "unit", ...
	Subsystem string `json:"subsystem"`
	// Share of all subsystems adds up to 1. It is negative where a subsystem makes the rest
	// more ordinary.
	Share float64 `json:"share"`
}

// PredictionState says how far a prediction can be trusted.
type PredictionState string

// The states of a prediction.
const (
	PredictionLearning PredictionState = "learning" // the host's normal is not known yet
	PredictionScoring  PredictionState = "scoring"
	PredictionStale    PredictionState = "stale" // no sample for too long
)

// Prediction is what the model says of a host at one instant.
type Prediction struct {
	Host      HostID          `json:"host"`
	Time      time.Time       `json:"time"`
	Simulated bool            `json:"simulated"`
	State     PredictionState `json:"state"`
	// Learned is the share of the learning period that is done, 0..1.
	Learned float64 `json:"learned"`
	// AnomalyScore is -log10 of the calibrated probability that a healthy
	// host's sample is at least as unusual: 3 is one sample in a thousand.
	AnomalyScore float64 `json:"anomaly_score"`
	// Anomalous is true once the score stayed over the alarm threshold.
	Anomalous bool `json:"anomalous"`
	// FailureProbability is the probability that the host fails within Horizon.
	FailureProbability float64 `json:"failure_probability"`
	HorizonSeconds     float64 `json:"horizon_s"`
	// SoonProbability is the probability that it fails within five minutes, which is before the
	// outcome of one action is known, and FaultProbability that there is a fault at all, whether the
	// host fails of it or not. Each is 0 where no model states it.
	SoonProbability  float64   `json:"soon_probability,omitempty"`
	FaultProbability float64   `json:"fault_probability,omitempty"`
	Signature        Signature `json:"signature"`
	// SignatureProbability is how sure the signature is: 1 where it was seen directly, what the
	// failure model says where that names it, 0 where nobody can tell.
	SignatureProbability float64 `json:"signature_probability,omitempty"`
	// Culprit names the unit, disk or device that the evidence points to.
	Culprit       string         `json:"culprit,omitempty"`
	Contributions []Contribution `json:"contributions"`
	// Subsystems has every subsystem with a share, the largest first.
	Subsystems []SubsystemShare `json:"subsystems"`
	// Evidence is what was seen, in sentences for a person.
	Evidence []string `json:"evidence"`
	// Model identifies the model that made the prediction.
	Model string `json:"model"`
}

// Action is what can be done about a failing host.
type Action string

// The actions, from the cheapest to the last resort.
const (
	ActionNone            Action = "none"
	ActionRecycle         Action = "recycle"
	ActionPreservingReset Action = "preserving-reset"
	ActionLiveMigrate     Action = "live-migrate"
	ActionHandOver        Action = "hand-over"
)

// Actions lists every action, in the order above.
func Actions() []Action {
	return []Action{ActionNone, ActionRecycle, ActionPreservingReset, ActionLiveMigrate, ActionHandOver}
}

// Alternative is an action and what it is expected to cost here.
type Alternative struct {
	Action Action `json:"action"`
	// Available is false where the host cannot do it; Why says so.
	Available bool `json:"available"`
	// CostVMSeconds is the expected interruption summed over the host's VMs.
	CostVMSeconds float64 `json:"cost_vm_s"`
	// CureProbability is the probability that the action ends the fault.
	CureProbability float64 `json:"cure_probability"`
	Why             string  `json:"why"`
}

// RecommendationState is where a recommendation stands.
type RecommendationState string

// The states of a recommendation. Rejected, Expired, Superseded and Done are final.
const (
	RecommendationPending    RecommendationState = "pending"    // waits for approval
	RecommendationDryRun     RecommendationState = "dry-run"    // shown, never carried out
	RecommendationApproved   RecommendationState = "approved"   // by a person or by configuration
	RecommendationExecuting  RecommendationState = "executing"  // Execution has the run
	RecommendationRejected   RecommendationState = "rejected"   // by a person
	RecommendationExpired    RecommendationState = "expired"    // nobody decided in time
	RecommendationSuperseded RecommendationState = "superseded" // the evidence changed
	RecommendationBlocked    RecommendationState = "blocked"    // the guard refused it; Note says why
	RecommendationDone       RecommendationState = "done"
)

// Final tells whether the state never changes again.
func (s RecommendationState) Final() bool {
	switch s {
	case RecommendationRejected, RecommendationExpired, RecommendationSuperseded, RecommendationBlocked, RecommendationDone:
		return true
	}
	return false
}

// Recommendation is an action proposed for a host, with its reason.
type Recommendation struct {
	ID         string              `json:"id"`
	Host       HostID              `json:"host"`
	Time       time.Time           `json:"time"`
	Expires    time.Time           `json:"expires"`
	Simulated  bool                `json:"simulated"`
	DryRun     bool                `json:"dry_run"`
	State      RecommendationState `json:"state"`
	Action     Action              `json:"action"`
	Prediction Prediction          `json:"prediction"`
	// CostVMSeconds is the chosen action's expected interruption.
	CostVMSeconds float64       `json:"cost_vm_s"`
	Alternatives  []Alternative `json:"alternatives"`
	// Reason is one or two sentences for a person.
	Reason string `json:"reason"`
	// Propensity is the probability with which the policy chose this action.
	Propensity float64 `json:"propensity"`
	Policy     string  `json:"policy"`
	// DecidedBy is who approved or rejected it ("policy:automatic" for the
	// configuration), and Note what they or the guard said.
	DecidedBy string    `json:"decided_by,omitempty"`
	DecidedAt time.Time `json:"decided_at,omitzero"`
	Note      string    `json:"note,omitempty"`
	Execution string    `json:"execution,omitempty"`
	// Outcomes says of each action that was carried out whether it cured the fault, as far as is
	// known: "recycle: failed". The policy has learned from these.
	Outcomes []string `json:"outcomes,omitempty"`
}

// ExecutionState is where an execution stands.
type ExecutionState string

// The states of an execution. The last four are final.
const (
	ExecutionPending    ExecutionState = "pending"    // accepted, the guard has not let it through yet
	ExecutionRecycling  ExecutionState = "recycling"  // Phase 1
	ExecutionDiagnosing ExecutionState = "diagnosing" // Phase 2
	ExecutionResetting  ExecutionState = "resetting"  // Phase 3
	ExecutionMigrating  ExecutionState = "migrating"
	ExecutionSucceeded  ExecutionState = "succeeded"
	ExecutionDegraded   ExecutionState = "degraded"    // a VM was lost or its state is unknown: a person is called
	ExecutionHandedOver ExecutionState = "handed-over" // a person is called, the VMs run
	ExecutionCancelled  ExecutionState = "cancelled"   // refused before any effect, or stopped by a person: Outcome says what was done
)

// Final tells whether the state never changes again.
func (s ExecutionState) Final() bool {
	switch s {
	case ExecutionSucceeded, ExecutionDegraded, ExecutionHandedOver, ExecutionCancelled:
		return true
	}
	return false
}

// Phase is a part of an execution that the host agent carries out as a whole.
type Phase string

// The phases.
const (
	PhaseRecycle  Phase = "recycle"  // Phase 1
	PhaseDiagnose Phase = "diagnose" // Phase 2
	PhaseReset    Phase = "reset"    // Phase 3
	PhaseMigrate  Phase = "migrate"
)

// StepState is where a step stands.
type StepState string

// The states of a step. Unknown means that its effect may or may not have
// happened and that nobody could find out.
const (
	StepRunning   StepState = "running"
	StepSucceeded StepState = "succeeded"
	StepFailed    StepState = "failed"
	StepUnknown   StepState = "unknown"
)

// Step is one idempotent piece of work within a phase, for example the restart
// of one unit.
type Step struct {
	Phase   Phase     `json:"phase"`
	Name    string    `json:"name"`
	Attempt int       `json:"attempt"`
	State   StepState `json:"state"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	// Detail is what a person should know: a measured value, or the error.
	Detail string `json:"detail,omitempty"`
	// Binding is true for a step from whose begin on its phase is not cancelled any more.
	Binding bool `json:"binding,omitempty"`
}

// GuestReport is one VM as counted and probed around an execution.
type GuestReport struct {
	VM
	// Alive is true where the guest answered its probe.
	Alive bool `json:"alive"`
	// MaxGapSeconds is the longest time for which the guest did not run, or, where
	// that is not known, was not seen to run, which is never less; 0 where the probe
	// cannot tell.
	MaxGapSeconds float64 `json:"max_gap_s,omitempty"`
	// Host is where the guest was found, if not on the execution's host: it moved.
	Host HostID `json:"host,omitempty"`
}

// Execution is one run of an action on one host.
type Execution struct {
	ID             string         `json:"id"`
	Host           HostID         `json:"host"`
	Action         Action         `json:"action"`
	State          ExecutionState `json:"state"`
	Simulated      bool           `json:"simulated"`
	DryRun         bool           `json:"dry_run"`
	Reason         string         `json:"reason"`
	Recommendation string         `json:"recommendation,omitempty"`
	RequestedBy    string         `json:"requested_by"`
	// CancelledBy is the person who wants it to stop, or stopped it.
	CancelledBy string    `json:"cancelled_by,omitempty"`
	Created     time.Time `json:"created"`
	Updated     time.Time `json:"updated"`
	Ended       time.Time `json:"ended,omitzero"`
	// Deadline bounds the current phase.
	Deadline time.Time `json:"deadline,omitzero"`
	// Token is the fencing token: the agent refuses one that is older than the
	// newest it has seen.
	Token        uint64        `json:"token"`
	Steps        []Step        `json:"steps"`
	GuestsBefore []GuestReport `json:"guests_before"`
	GuestsAfter  []GuestReport `json:"guests_after"`
	// Bundle names the diagnostics in the object store, if Phase 2 ran.
	Bundle string `json:"bundle,omitempty"`
	// Outcome is a sentence for a person, set with the final state.
	Outcome string `json:"outcome,omitempty"`
}

// Freeze stops every action on a host, in a fault domain, or in the whole fleet where
// both are "". What is under way goes on to the end of its phase.
type Freeze struct {
	ID          string `json:"id"`
	Host        HostID `json:"host,omitempty"`
	FaultDomain string `json:"fault_domain,omitempty"`
	// Simulated is true for the freeze of a host that does not exist.
	Simulated bool   `json:"simulated"`
	By        string `json:"by"`
	Reason    string `json:"reason"`
	// Since and Until bound it; without an Until it holds until it is lifted.
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"`
}

// Cordon keeps VMs from being moved to a host until it has proved to be healthy.
type Cordon struct {
	Host      HostID    `json:"host"`
	Simulated bool      `json:"simulated"`
	Since     time.Time `json:"since"`
	// By is a person, or "policy:automatic".
	By     string `json:"by"`
	Reason string `json:"reason"`
	// Execution is the one after which it was cordoned, "" if a person did it.
	Execution string `json:"execution,omitempty"`
	// Emptied is true where the execution moved the host's VMs away.
	Emptied bool `json:"emptied,omitempty"`
	// Lifted is when it ended; a host whose cordon has ended takes VMs again.
	Lifted   time.Time `json:"lifted,omitzero"`
	LiftedBy string    `json:"lifted_by,omitempty"`
	// Power is what was done to the host's power meanwhile.
	Power PowerState `json:"power,omitempty"`
	// PowerDetail is a sentence for a person.
	PowerDetail string `json:"power_detail,omitempty"`
}

// PowerState is where the power cycle of an emptied host stands.
type PowerState string

// The states of a power cycle. Intended means that nobody knows whether it happened.
const (
	PowerIntended PowerState = "intended"
	PowerCycled   PowerState = "cycled"
	PowerFailed   PowerState = "failed"
)
