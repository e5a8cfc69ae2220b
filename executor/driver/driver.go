// Package driver holds the words that the drivers share: what a service and its
// health are, and when guests count as lost. The drivers themselves are the
// sub-packages: systemd and qmp for real hosts, sim for simulated ones; drivertest
// is the suite that all of them pass.
package driver

import (
	"fmt"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Unit is a service and how it shows that it works.
type Unit struct {
	Name   string
	Health Health
}

// UnitState is a service as observed at one instant.
type UnitState struct {
	// Active is true while the service manager says that the unit runs, and no
	// change of it is under way.
	Active bool
	// Invocation identifies this start of the unit: it changes with each start and
	// is "" where the unit does not run.
	Invocation string
	// Busy is true while a start or stop of the unit is under way.
	Busy bool
	// Refusal says why the unit must not be restarted, "" if it may be.
	Refusal string
	// Detail is the service manager's own words, for example "active/running".
	Detail string
}

// Location is a guest as seen from both ends of a move.
type Location struct {
	// Here and There are its states on the source and on the target: "running",
	// "paused" or "shut-off", "" where it does not exist, and "unknown" where that
	// host could not be asked, for the reason Trouble.
	Here, There string
	Trouble     string
	// Moving is true while a move from here is under way, and Committed if it can not be
	// stopped any more: the guest runs on the target already, on memory that is here.
	Moving, Committed bool
}

// Unknown is the state of a guest whose host could not be asked.
const Unknown = "unknown"

// Progress is how far a move has come.
type Progress struct {
	// TotalBytes are the guest's memory.
	TotalBytes int64
	// Iteration counts the rounds through its memory.
	Iteration int
	// DowntimeSeconds is for how long the guest stood still, once it is known.
	DowntimeSeconds float64
}

// Lost compares guests before and after an action and says, one sentence each,
// what is wrong with those that were there before: missing, not running any more, paused ones
// ended, with another memory size, or no longer answering. Guests that came in between are no
// loss, and neither is one that went on.
func Lost(before, after []fleet.GuestReport) []string {
	now := make(map[string]fleet.GuestReport, len(after))
	for _, g := range after {
		now[g.ID] = g
	}
	var lost []string
	for _, b := range before {
		a, there := now[b.ID]
		switch {
		case b.State == "shut-off":
		case !there:
			lost = append(lost, fmt.Sprintf("VM %s is missing", b.ID))
		case a.State != b.State && a.State != "running" && (b.State != Unknown || a.State == "shut-off"):
			lost = append(lost, fmt.Sprintf("VM %s was %s and is now %s", b.ID, b.State, a.State))
		case b.MemoryBytes != 0 && a.MemoryBytes != 0 && a.MemoryBytes != b.MemoryBytes:
			lost = append(lost, fmt.Sprintf("VM %s had %d bytes of memory and has %d now", b.ID, b.MemoryBytes, a.MemoryBytes))
		case b.Alive && !a.Alive:
			lost = append(lost, fmt.Sprintf("VM %s does not answer any more", b.ID))
		}
	}
	return lost
}
