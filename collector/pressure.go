package collector

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
)

// Documentation/accounting/psi.rst describes the files and their totals.
var pressureMetrics = []Metric{
	ratio("pressure_cpu_some_ratio", "share of time in which a task waited for a CPU", "/proc/pressure/cpu"),
	ratio("pressure_memory_some_ratio", "share of time in which a task waited for memory", "/proc/pressure/memory"),
	ratio("pressure_memory_full_ratio", "share of time in which all tasks waited for memory", "/proc/pressure/memory"),
	ratio("pressure_io_some_ratio", "share of time in which a task waited for I/O", "/proc/pressure/io"),
	ratio("pressure_io_full_ratio", "share of time in which all tasks waited for I/O", "/proc/pressure/io"),
	ratio("pressure_irq_full_ratio", "share of time in which interrupts held all tasks up", "/proc/pressure/irq"),
}

type pressureSource struct {
	files [4]struct {
		file       *file
		some, full string // metric, or empty
	}
}

func newPressureSource(h *host) source {
	s := &pressureSource{}
	for i, r := range [...]struct{ name, some, full string }{
		{"cpu", "pressure_cpu_some_ratio", ""}, // "full" of the CPU is undefined for a whole host
		{"memory", "pressure_memory_some_ratio", "pressure_memory_full_ratio"},
		{"io", "pressure_io_some_ratio", "pressure_io_full_ratio"},
		{"irq", "", "pressure_irq_full_ratio"},
	} {
		s.files[i].file = h.kept(filepath.Join(h.proc, "pressure", r.name))
		s.files[i].some, s.files[i].full = r.some, r.full
	}
	return s
}

func (s *pressureSource) close() error {
	for _, p := range s.files {
		p.file.close()
	}
	return nil
}

func (s *pressureSource) collect(_ context.Context, f *frame) error {
	var errs error
	read := 0
	for i := range s.files {
		p := &s.files[i]
		b, err := p.file.read()
		if err != nil {
			// A kernel with psi=0 has the files and refuses to read them.
			if !errors.Is(err, fs.ErrNotExist) && !isUnsupported(err) {
				errs = errors.Join(errs, err)
			}
			continue
		}
		read++
		for len(b) > 0 {
			var line []byte
			line, b = cutLine(b)
			kind, rest := cutField(line)
			metric := ""
			switch string(kind) {
			case "some":
				metric = p.some
			case "full":
				metric = p.full
			}
			_, total, ok := bytes.Cut(rest, []byte("total="))
			if metric == "" || !ok {
				continue
			}
			if us, _, ok := cutUint(total); ok {
				d, seconds := f.delta(metric, "", us, counter64)
				f.set(metric, clampRatio(d/1e6/seconds))
			}
		}
	}
	if read == 0 && errs == nil {
		return errNoData
	}
	return errs
}
