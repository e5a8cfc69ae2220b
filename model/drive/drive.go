// Package drive turns what a disk drive has said so far into the features from which its
// failure is predicted.
package drive

import (
	"fmt"
	"math"
)

// Attributes is how many SMART values an observation has: those named in Names, in order.
const Attributes = 9

// Names are the attributes' short names.
var Names = [Attributes]string{"reallocated", "spin_retries", "power_cycles", "uncorrectable", "timeouts", "high_fly_writes", "reallocations", "pending", "offline_uncorrectable"}

// faulty are the attributes that count what goes wrong; powerCycles is the one that does not.
var faulty = [Attributes]bool{0: true, 1: true, 3: true, 4: true, 5: true, 6: true, 7: true, 8: true}

const powerCycles = 2

// defects are the attributes that count sectors which cannot be read or had to be replaced: those that tell most.
var defects = [...]int{0, 3, 7, 8}

// Observation is what a drive said at an instant, in power-on hours. It holds until the next one.
type Observation struct {
	Hours  float64
	Values [Attributes]float64 // raw; NaN is missing
}

const day = 24.0

// horizons over which changes are looked at, in hours.
var horizons = [...]float64{1.5 * day, 7 * day, 30 * day, 90 * day}

var horizonNames = [...]string{"1d", "7d", "30d", "90d"}

// Features are the names of what a failure is predicted from. "defects" are those of all attributes
// that count bad sectors, added up; "..._since_h" is how long ago a value changed last, "..._last_gap_h" how long before that
// it had changed, and "..._below_max" by how much it fell.
func Features() []string {
	out := []string{"age_h", "size_tb", "model_rate", "since_change_h", "last_gap_h", "changes_1d", "changes_7d", "changes_30d", "changes_90d", "faulty_attributes", "faulty_changes_30d", "power_cycles_per_kh"}
	for _, a := range Names {
		out = append(out, a)
		for _, h := range horizonNames {
			out = append(out, a+"_"+h)
		}
		out = append(out, a+"_below_max", a+"_since_h", a+"_changes_7d", a+"_changes_30d", a+"_changes_90d", a+"_last_change", a+"_last_gap_h")
	}
	return append(out, "first_seen_h", "watched_h", "changes", "missing", "changed_attributes_1d", "changed_attributes_7d", "changed_attributes_30d",
		"defects", "defects_7d", "defects_30d", "defects_90d", "defects_accelerated", "defects_changes_7d", "defects_changes_90d",
		"defects_since_h", "defects_last_gap_h", "defects_last_change", "defects_first_h", "defects_for_h",
		"reallocated_watched", "uncorrectable_watched", "pending_watched")
}

// fill computes the features at an instant from the observations until then, in order. What comes after the
// instant must not be among them. size is the drive's in TB, NaN where it isn't known, and rate how many
// drives of its model fail in a year. dst must be as long as Features, and seen not empty.
func fill(dst []float64, seen []Observation, now, size, rate float64) {
	last := seen[len(seen)-1]
	if last.Hours > now {
		panic(fmt.Sprintf("drive: an observation at %v hours is after %v", last.Hours, now))
	}
	nan := math.NaN()
	gap := nan
	if len(seen) > 1 {
		gap = last.Hours - seen[len(seen)-2].Hours
	}
	// before is the observation that held at the begin of each horizon.
	var before [len(horizons)]int
	i := len(seen) - 1
	for h, length := range horizons {
		for i > 0 && seen[i].Hours > now-length {
			i--
		}
		before[h] = i
	}
	dst[0], dst[1], dst[2], dst[3], dst[4] = now, size, rate, now-last.Hours, gap
	for h := range horizons {
		dst[5+h] = float64(len(seen) - 1 - before[h])
	}
	faults, faultyChanges := 0, 0
	at := 12
	var changed [len(horizons)]int // attributes but for power cycles that changed
	for a := range Attributes {
		v := last.Values[a]
		dst[at] = v
		for h := range horizons {
			dst[at+1+h] = v - seen[before[h]].Values[a]
		}
		at += 1 + len(horizons)
		top, since, step, pause := v, nan, nan, nan
		var changes [len(horizons)]int
		for k := len(seen) - 1; k > 0; k-- {
			w, u := seen[k].Values[a], seen[k-1].Values[a]
			if u > top {
				top = u
			}
			if w != u && w == w && u == u {
				switch {
				case since != since:
					since, step = now-seen[k].Hours, w-u
				case pause != pause:
					pause = now - seen[k].Hours - since
				}
				for h := range horizons {
					if k > before[h] {
						changes[h]++
					}
				}
				if k > before[2] && faulty[a] {
					faultyChanges++
				}
			}
		}
		for h := range horizons {
			if changes[h] > 0 && a != powerCycles {
				changed[h]++
			}
		}
		dst[at], dst[at+1] = top-v, since
		dst[at+2], dst[at+3], dst[at+4] = float64(changes[1]), float64(changes[2]), float64(changes[3])
		dst[at+5], dst[at+6] = step, pause
		at += 7
		if faulty[a] && v > 0 {
			faults++
		}
	}
	dst[9], dst[10] = float64(faults), float64(faultyChanges)
	dst[11] = last.Values[powerCycles] / max(now, 1) * 1000
	missing := 0
	for _, v := range last.Values {
		if v != v {
			missing++
		}
	}
	first := seen[0]
	n := copy(dst[at:], []float64{first.Hours, now - first.Hours, float64(len(seen) - 1), float64(missing), float64(changed[0]), float64(changed[1]), float64(changed[2])})
	n += fillDefects(dst[at+n:], seen, before, now)
	for k, a := range defects[:3] {
		dst[at+n+k] = last.Values[a] - first.Values[a]
	}
}

// fillDefects computes the features of all defects together, and returns how many those are.
func fillDefects(dst []float64, seen []Observation, before [len(horizons)]int, now float64) int {
	const week, month, quarter = 1, 2, 3 // of horizons
	nan := math.NaN()
	last := len(seen) - 1
	total := bad(seen[last])
	grown := func(h int) float64 { return total - bad(seen[before[h]]) }
	since, gap, step, began := nan, nan, nan, nan
	var changes [len(horizons)]int
	for k := last; k >= 0; k-- {
		if bad(seen[k]) > 0 {
			began = seen[k].Hours
		}
		if k == 0 || !differ(seen[k-1], seen[k]) {
			continue
		}
		for h := range horizons {
			if k > before[h] {
				changes[h]++
			}
		}
		switch {
		case since != since:
			since, step = now-seen[k].Hours, bad(seen[k])-bad(seen[k-1])
		case gap != gap:
			gap = now - seen[k].Hours - since
		}
	}
	// How much faster it grew in the last week than in the three before.
	accelerated := grown(week) - (grown(month)-grown(week))*7/23
	return copy(dst, []float64{total, grown(week), grown(month), grown(quarter), accelerated, float64(changes[week]), float64(changes[quarter]), since, gap, step, began, now - began})
}

// quiet says whether a drive counts nothing that goes wrong.
func quiet(o Observation) bool {
	for a, v := range o.Values {
		if faulty[a] && v > 0 {
			return false
		}
	}
	return true
}

// bad is how many defects a drive has, of all kinds; what is missing counts as none.
func bad(o Observation) float64 {
	sum := 0.0
	for _, a := range defects {
		if v := o.Values[a]; v == v {
			sum += v
		}
	}
	return sum
}

// differ says whether a count of defects that both have is another one.
func differ(a, b Observation) bool {
	for _, k := range defects {
		v, w := a.Values[k], b.Values[k]
		if v != w && v == v && w == w {
			return true
		}
	}
	return false
}
