// Package fleet holds the words of Tardigrade as types: hosts, samples,
// predictions, recommendations and executions. Every other package speaks in
// these words, and this package imports nothing but the standard library.
//
// Values that are persisted or sent are plain data with JSON tags. Enumerations
// are strings whose zero value is invalid, so that a forgotten field is seen.
// Times are UTC. A metric that a host does not have is missing (NaN in memory,
// absent in JSON), never 0.
package fleet

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
)

// HostID names a host, unique in the fleet: a DNS label sequence such as
// "rack3-host12". See [HostID.Validate].
type HostID string

// Validate returns an error that says what is wrong with the name. A valid name
// is 1 to 128 characters of a-z, A-Z, 0-9, '-' and '_', so that it is safe as a
// NATS subject token, a file name, a tag value and a URL path segment.
func (h HostID) Validate() error {
	if h == "" {
		return fmt.Errorf("host name is empty")
	}
	if len(h) > 128 {
		return fmt.Errorf("host name is %d characters long, at most 128 are allowed", len(h))
	}
	for i, r := range h {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
		default:
			return fmt.Errorf("host name %q has the character %q at position %d: only letters, digits, '-' and '_' are allowed", string(h), r, i)
		}
	}
	return nil
}

// Schema is an ordered list of series names that samples share. A series is a
// metric of the catalogue ("memory_available_bytes"), or one instance of it
// ("unit_memory_bytes{libvirtd.service}"). A Schema is immutable and safe for
// concurrent use; two samples with the same *Schema have the same columns.
type Schema struct {
	names []string
	index func() map[string]int
}

// NewSchema returns a schema over a copy of names.
func NewSchema(names []string) *Schema {
	s := &Schema{names: append([]string(nil), names...)}
	s.index = sync.OnceValue(func() map[string]int {
		m := make(map[string]int, len(s.names))
		for i, n := range s.names {
			m[n] = i
		}
		return m
	})
	return s
}

// Len is the number of series. A nil schema has none.
func (s *Schema) Len() int {
	if s == nil {
		return 0
	}
	return len(s.names)
}

// Name is the name of series i.
func (s *Schema) Name(i int) string { return s.names[i] }

// Names is the list itself; the caller must not change it.
func (s *Schema) Names() []string {
	if s == nil {
		return nil
	}
	return s.names
}

// Index is the position of a series, or -1.
func (s *Schema) Index(name string) int {
	if s == nil {
		return -1
	}
	if i, ok := s.index()[name]; ok {
		return i
	}
	return -1
}

// SeriesName joins a metric and an instance: SeriesName("unit_active", "a.service")
// is "unit_active{a.service}". With an empty instance it is the metric itself.
func SeriesName(metric, instance string) string {
	if instance == "" {
		return metric
	}
	return metric + "{" + instance + "}"
}

// SplitSeries is the inverse of [SeriesName].
func SplitSeries(series string) (metric, instance string) {
	i := strings.IndexByte(series, '{')
	if i < 0 || !strings.HasSuffix(series, "}") {
		return series, ""
	}
	return series[:i], series[i+1 : len(series)-1]
}

// Sample is all metrics of one host at one instant.
type Sample struct {
	Host HostID
	// Time is the agent's clock when sampling began.
	Time time.Time
	// Boot identifies the host's boot (/proc/sys/kernel/random/boot_id). A
	// change means that the host restarted; counters start anew.
	Boot string
	// Simulated is true for a host that does not exist.
	Simulated bool
	Schema    *Schema
	// Values has one value for each series of Schema; NaN is missing.
	Values []float64
}

// Value is the value of a series and whether the sample has it.
func (s *Sample) Value(series string) (float64, bool) {
	i := s.Schema.Index(series)
	if i < 0 || i >= len(s.Values) || math.IsNaN(s.Values[i]) {
		return math.NaN(), false
	}
	return s.Values[i], true
}

// VM is a guest as its host sees it.
type VM struct {
	ID string `json:"id"`
	// Name is for people; it need not be unique.
	Name string `json:"name,omitempty"`
	// State is "running", "paused" or "shut-off", as the hypervisor says.
	State string `json:"state"`
	// MemoryBytes is the guest's RAM; 0 where the driver cannot tell.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// HostCPU is true where the guest was given its host's own CPU model, so that it
	// can only move to a host whose CPU can do at least as much.
	HostCPU bool `json:"host_cpu,omitempty"`
	// Pinned says why the guest cannot leave its host, for example a device that is
	// passed through; "" where nothing is known to hold it.
	Pinned string `json:"pinned,omitempty"`
}

// CPU is what guests may be tied to.
type CPU struct {
	// Arch is the architecture as the kernel names it, for example "x86_64".
	Arch  string `json:"arch"`
	Model string `json:"model,omitempty"`
	// Flags are the features, sorted and separated by spaces.
	Flags string `json:"flags,omitempty"`
}

// Host is what the control plane knows of a host, apart from its metrics.
type Host struct {
	ID          HostID    `json:"id"`
	FaultDomain string    `json:"fault_domain,omitempty"`
	Simulated   bool      `json:"simulated"`
	Version     string    `json:"agent_version,omitempty"`
	FirstSeen   time.Time `json:"first_seen"`
	LastSeen    time.Time `json:"last_seen"`
	VMs         []VM      `json:"vms"` // nil from an agent that cannot count them now
	// DryRun is true where the agent refuses every action that would change
	// the host, whoever asks.
	DryRun bool `json:"dry_run"`
	// Actions lists what the agent says it can do here.
	Actions []Action `json:"actions"`
	// Units lists the services that a recycle would restart, in order.
	Units []string `json:"units"`
	// Address is where other hosts reach this one; "" means by its name.
	Address string `json:"address,omitempty"`
	// CPU and MemoryBytes are what guests that move here would find; the zero value
	// where the agent cannot tell.
	CPU         CPU   `json:"cpu,omitzero"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// AcceptsVMs is true where VMs of other hosts may be moved here.
	AcceptsVMs bool `json:"accepts_vms,omitempty"`
}
