package fleet

import (
	"fmt"
	"time"
)

// IncidentSource is who says that there was an incident.
type IncidentSource string

// The sources.
const (
	IncidentPerson    IncidentSource = "person"    // somebody added it
	IncidentExecution IncidentSource = "execution" // the outcome of an execution
	IncidentCrash     IncidentSource = "crash"     // a new boot that nobody had asked for
	IncidentTruth     IncidentSource = "truth"     // a data set that knows
)

// Incident is a fault that was: the label from which models learn.
type Incident struct {
	ID   string `json:"id"`
	Host HostID `json:"host"`
	// Simulated is true for a host that does not exist.
	Simulated bool `json:"simulated"`
	// From is when the host began to fail its VMs, where Failed; otherwise when the fault
	// was seen. To is when it was over.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Seen is when the fault could first be seen, before From; zero where nobody knows.
	Seen time.Time `json:"seen,omitzero"`
	// Failed is true where the host failed its VMs, and not where it was saved before.
	Failed    bool           `json:"failed"`
	Signature Signature      `json:"signature"`
	Note      string         `json:"note,omitempty"`
	Source    IncidentSource `json:"source"`
	By        string         `json:"by"`
	Execution string         `json:"execution,omitempty"`
	Created   time.Time      `json:"created"`
}

// Signatures lists every signature but [SignatureNone].
func Signatures() []Signature {
	return []Signature{
		SignatureServiceHang, SignatureMemoryLeak, SignatureKernelFault, SignatureDisk, SignatureMemoryHardware,
		SignatureNetwork, SignatureThermal, SignatureNoisyNeighbour, SignatureUnknown,
	}
}

// longestIncident is beyond what a person can have meant.
const longestIncident = 90 * 24 * time.Hour

// Validate says what is wrong with an incident that somebody adds, as of now.
func (i Incident) Validate(now time.Time) error {
	if err := i.Host.Validate(); err != nil {
		return err
	}
	known := false
	for _, s := range Signatures() {
		known = known || s == i.Signature
	}
	switch {
	case !known:
		return fmt.Errorf("signature %q is not one of %v", i.Signature, Signatures())
	case i.From.IsZero() || i.To.IsZero():
		return fmt.Errorf("from and to must say when the incident began and ended")
	case i.To.Before(i.From):
		return fmt.Errorf("it ends at %s, before it begins at %s", i.To.Format(time.RFC3339), i.From.Format(time.RFC3339))
	case i.To.Sub(i.From) > longestIncident:
		return fmt.Errorf("it lasts %v, at most %v is possible", i.To.Sub(i.From), longestIncident)
	case i.From.After(now.Add(time.Minute)):
		return fmt.Errorf("it begins at %s, which is in the future", i.From.Format(time.RFC3339))
	case len(i.Note) > 4096:
		return fmt.Errorf("the note is %d bytes long, at most 4096 are allowed", len(i.Note))
	}
	return nil
}
