package diagnose

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxUnits bounds how many units are looked at.
const maxUnits = 256

// unitNames returns the units to look at, each once, in order, and those that cannot
// be the name of a unit.
func unitNames(lists ...[]string) (names, odd []string) {
	for _, list := range lists {
		for _, n := range list {
			switch {
			case slices.Contains(names, n) || slices.Contains(odd, n) || len(names)+len(odd) == maxUnits:
			case validUnit(n):
				names = append(names, n)
			default:
				odd = append(odd, n)
			}
		}
	}
	return names, odd
}

// validUnit tells whether s can be the name of one unit: systemd.unit(5) allows these
// characters, and patterns and options are none.
func validUnit(s string) bool {
	if s == "" || len(s) > 255 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(`:-_.\@`, r):
		default:
			return false
		}
	}
	return true
}

// unitState is what a unit's properties say.
type unitState struct {
	name                              string
	load, active, sub, result, status string
	restarts                          int
	needs                             []string
	known, unhealthy                  bool
}

// bad tells whether the unit is not as it should be.
func (s unitState) bad() bool {
	return s.known && (s.active != "active" || s.load != "loaded") || s.unhealthy
}

// String says how the unit is, for a person.
func (s unitState) String() string {
	switch {
	case !s.known:
		return s.name + " is unknown"
	case s.load == "not-found":
		return s.name + " does not exist"
	case s.active == "active":
		return s.name + " is active and not healthy"
	}
	var more []string
	if s.result != "" && s.result != "success" {
		more = append(more, s.result)
	}
	if s.status != "" && s.status != "0" {
		more = append(more, "status "+s.status)
	}
	if s.restarts > 0 {
		more = append(more, fmt.Sprintf("restarted %d times", s.restarts))
	}
	text := s.name + " is " + s.active
	if s.sub != "" && s.sub != s.active {
		text += "/" + s.sub
	}
	if len(more) > 0 {
		text += " (" + strings.Join(more, ", ") + ")"
	}
	return text
}

// unitStates reads the units' properties. A unit whose properties are missing is not
// known.
func unitStates(units []string, files []found) []unitState {
	states := make([]unitState, len(units))
	for i, u := range units {
		states[i].name = u
		for _, f := range files {
			if f.name != "units/"+u+"/properties" {
				continue
			}
			s := &states[i]
			for line := range strings.Lines(string(f.data)) {
				key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
				switch key {
				case "Requires", "Requisite", "BindsTo":
					s.needs = append(s.needs, strings.Fields(value)...)
					continue
				}
				value = clip(value, 100)
				switch key {
				case "LoadState":
					s.load = value
				case "ActiveState":
					s.active, s.known = value, true
				case "SubState":
					s.sub = value
				case "Result":
					s.result = value
				case "ExecMainStatus":
					s.status = value
				case "NRestarts":
					s.restarts, _ = strconv.Atoi(value)
				}
			}
		}
	}
	return states
}

// maxNeeded bounds how many further units are looked at.
const maxNeeded = 8

// needed returns the units that failed and that one that fails cannot do without, except
// those that are known already. list is what systemctl list-units writes of failed units.
func needed(states []unitState, list []byte) []string {
	var out []string
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if len(out) == maxNeeded || !validUnit(name) || slices.Contains(out, name) ||
			slices.ContainsFunc(states, func(s unitState) bool { return s.name == name }) {
			continue
		}
		if slices.ContainsFunc(states, func(s unitState) bool { return s.bad() && slices.Contains(s.needs, name) }) {
			out = append(out, name)
		}
	}
	return out
}
