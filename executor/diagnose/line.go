package diagnose

import (
	"bytes"
	"strings"
	"time"
)

// isoPrecise is how journalctl(1) writes times as short-iso-precise.
const isoPrecise = "2006-01-02T15:04:05.000000-0700"

// origin is who wrote a line. What a program writes cannot pass for a message of the
// kernel.
type origin uint8

const (
	fromProgram origin = iota
	fromKernel
	fromManager // systemd itself, or a unit's properties
	fromUs      // what was found out by looking, as of blocked processes
	origins
)

// line is one line of the evidence.
type line struct {
	file   string
	number int // from 1
	time   time.Time
	origin origin
	// program is who wrote the line, as far as the journal tells, without its process.
	program, pid string
	text         string
	raw          []byte
	modified     time.Time // of the file, zero if it says nothing
}

// maxLine bounds what is looked at of a line.
const maxLine = 4096

// eachLine calls f for each line of a file.
func eachLine(file evidenceFile, f func(*line)) {
	l := line{file: file.name, modified: file.modified}
	parse := parserOf(file.name)
	if parse == nil {
		return
	}
	for raw := range bytes.Lines(file.data) {
		raw = bytes.TrimRight(raw, "\r\n")
		l.number++
		if len(raw) == 0 {
			continue
		}
		l.raw = raw[:min(len(raw), maxLine)]
		parse(&l)
		f(&l)
	}
}

// parserOf returns what reads the lines of a file, nil for one that is not searched.
func parserOf(file string) func(*line) {
	switch {
	case file == "kernel.log":
		return parseKernel
	case strings.HasSuffix(file, "/journal.log"), file == "journal.log", file == baselineFile:
		return parseJournal
	case strings.HasPrefix(file, "pstore/"), strings.HasPrefix(file, "vmcore/") && file != "vmcore/list.txt":
		return parsePstore
	case strings.HasPrefix(file, "libvirt/"):
		return parseLibvirt
	case strings.HasPrefix(file, "units/") && strings.HasSuffix(file, "/properties"):
		return func(l *line) {
			l.origin, l.program, l.text = fromManager, unitOf(file), ""
			if s := string(l.raw); strings.HasPrefix(s, "Result=") { // the others are as a person wrote them
				l.text = s
			}
		}
	case file == "processes.txt", file == "filesystems.txt", file == "inodes.txt":
		return func(l *line) { l.origin, l.text = fromUs, string(l.raw) }
	}
	return nil
}

// parseJournal reads "2026-11-23T17:29:00.123456+0000 host program[12]: text". The
// further lines of a message begin with blanks and belong to it.
func parseJournal(l *line) {
	s := string(l.raw)
	if s[0] == ' ' || s[0] == '\t' {
		l.text = strings.TrimSpace(s)
		return
	}
	l.time, l.origin, l.program, l.pid, l.text = time.Time{}, fromProgram, "", "", s
	stamp, rest, ok := strings.Cut(s, " ")
	if !ok {
		return
	}
	t, ok := parseTime(stamp)
	if !ok {
		return
	}
	l.time, l.text = t, rest
	_, rest, ok = strings.Cut(rest, " ") // the host
	if !ok {
		return
	}
	head, text, ok := strings.Cut(rest, ": ")
	if !ok {
		if head, ok = strings.CutSuffix(rest, ":"); !ok {
			return
		}
	}
	l.text = text
	if i := strings.LastIndexByte(head, '['); i >= 0 && strings.HasSuffix(head, "]") {
		head, l.pid = head[:i], head[i+1:len(head)-1]
	}
	l.program = head
	switch {
	case head == "kernel" && l.pid == "": // journald adds the process to all that is not the kernel's
		l.origin = fromKernel
	case head == "systemd" && l.pid == "1":
		l.origin = fromManager
	}
}

// parseKernel reads what kernelLog gives: lines as of the journal, with the level
// before the text, or those of dmesg.
func parseKernel(l *line) {
	parseJournal(l)
	if l.origin == fromKernel {
		l.text = cutLevel(l.text)
		return
	}
	// "2026-11-23T17:29:00,123456+00:00 text" from dmesg, or no time at all.
	s := string(l.raw)
	if stamp, text, ok := strings.Cut(s, " "); ok && strings.Contains(stamp, ",") {
		if t, ok := parseTime(strings.Replace(stamp, ",", ".", 1)); ok {
			l.time, l.origin, l.program, l.pid, l.text = t, fromKernel, "kernel", "", text
			return
		}
	}
	if text, ok := strings.CutPrefix(s, "kernel: "); ok {
		l.time, l.origin, l.program, l.pid, l.text = time.Time{}, fromKernel, "kernel", "", cutLevel(text)
	}
}

// parsePstore reads "<6>[   12.345678] text", which was written when the kernel died.
func parsePstore(l *line) {
	l.origin, l.program, l.time = fromKernel, "kernel", l.modified
	s := strings.TrimSpace(cutLevel(string(l.raw)))
	if strings.HasPrefix(s, "[") {
		if _, text, ok := strings.Cut(s, "] "); ok {
			s = text
		}
	}
	l.text = s
}

// parseLibvirt reads "2026-11-23 17:29:00.123+0000: text" and lines without a time,
// which are from no later than the file's last change.
func parseLibvirt(l *line) {
	s := string(l.raw)
	l.text, l.time = s, l.modified
	const layout = "2006-01-02 15:04:05.000-0700"
	if len(s) > len(layout) && s[len(layout)] == ':' {
		if t, err := time.Parse(layout, s[:len(layout)]); err == nil {
			l.time, l.text = t, strings.TrimSpace(s[len(layout)+1:])
		}
	}
}

// cutLevel cuts "<6>" off.
func cutLevel(s string) string {
	if len(s) > 2 && s[0] == '<' {
		if i := strings.IndexByte(s[:min(len(s), 5)], '>'); i > 0 {
			return strings.TrimPrefix(s[i+1:], " ")
		}
	}
	return s
}

// parseTime reads the times of journalctl and dmesg, which write the zone in two ways.
func parseTime(s string) (time.Time, bool) {
	if len(s) < 20 || len(s) > 40 || s[4] != '-' || s[10] != 'T' {
		return time.Time{}, false
	}
	for _, layout := range []string{isoPrecise, "2006-01-02T15:04:05.999999999Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
