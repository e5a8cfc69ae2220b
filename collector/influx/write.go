package influx

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// A request has no more than so many bytes or lines, whichever comes first.
const (
	maxBatchBytes = 1 << 20
	maxBatchLines = 5000
)

// Refusal is a sample that InfluxDB will never take as it is.
type Refusal struct {
	// Index is the sample's in the slice that was to be written.
	Index int
	Err   error
}

// WriteError tells what of a Write did not reach InfluxDB.
type WriteError struct {
	// Refused are the samples that are not to be tried again. Some points of such
	// a sample may have been stored.
	Refused []Refusal
	// Cause is nil where all other samples were stored. If not, it says why not,
	// and which of them were stored is unknown: write all but the refused again,
	// which changes nothing in those that were.
	Cause *Error
}

func (e *WriteError) Error() string {
	var parts []string
	if n := len(e.Refused); n > 0 {
		parts = append(parts, fmt.Sprintf("influx: %d samples refused for good, the first of them because: %v", n, e.Refused[0].Err))
	}
	if e.Cause != nil {
		parts = append(parts, e.Cause.Error())
	}
	return strings.Join(parts, "; ")
}

// Unwrap gives the cause and the reasons of the refusals.
func (e *WriteError) Unwrap() []error {
	var errs []error
	if e.Cause != nil {
		errs = append(errs, e.Cause)
	}
	for _, r := range e.Refused {
		errs = append(errs, r.Err)
	}
	return errs
}

// Write stores samples and returns once InfluxDB has accepted them all. The
// error is a [*WriteError].
func (c *Client) Write(ctx context.Context, samples []fleet.Sample) error {
	var failed WriteError
	buf := make([]byte, 0, 64<<10)
	var batch []encoded
	lines := 0
	flush := func() bool {
		if len(batch) == 0 {
			return true
		}
		failed.Cause = c.send(ctx, buf, batch, &failed)
		buf, batch, lines = buf[:0], batch[:0], 0
		return failed.Cause == nil
	}
	for i := range samples {
		start := len(buf)
		more, n, err := c.layouts.encode(buf, &samples[i])
		if err != nil {
			failed.Refused = append(failed.Refused, Refusal{i, fmt.Errorf("sample of host %.128q at %s cannot be stored: %w", string(samples[i].Host), samples[i].Time.Format(time.RFC3339Nano), err)})
			continue
		}
		buf = more
		if n == 0 {
			continue
		}
		batch = append(batch, encoded{index: i, start: start, end: len(buf)})
		if lines += n; lines >= maxBatchLines || len(buf) >= maxBatchBytes {
			if !flush() {
				return &failed
			}
		}
	}
	if !flush() || len(failed.Refused) > 0 {
		slices.SortFunc(failed.Refused, func(a, b Refusal) int { return a.Index - b.Index })
		return &failed
	}
	return nil
}

// encoded is where the lines of a sample are in a buffer.
type encoded struct{ index, start, end int }

// send writes a batch. InfluxDB says of a refusal neither which point it means
// nor whether it took the others, so a refused batch is halved until it is known
// which samples are at fault.
func (c *Client) send(ctx context.Context, buf []byte, batch []encoded, failed *WriteError) *Error {
	err := c.write.WriteRecord(ctx, string(buf[batch[0].start:batch[len(batch)-1].end]))
	if err == nil {
		return nil
	}
	e := c.explain("write", err)
	if e.Class != Refused {
		return e
	}
	if len(batch) == 1 {
		failed.Refused = append(failed.Refused, Refusal{batch[0].index, e})
		return nil
	}
	half := len(batch) / 2
	if cause := c.send(ctx, buf, batch[:half], failed); cause != nil {
		return cause
	}
	return c.send(ctx, buf, batch[half:], failed)
}

// layout is how the samples of one schema become lines.
type layout struct {
	lines []line
	err   error
}

// line is a point: its measurement and tags, and which values are its fields.
type line struct {
	measurement string // escaped
	instance    string // escaped, with its tag key, or empty
	fields      []field
}

type field struct {
	key   string // escaped, with the "="
	value int    // index into Sample.Values
}

// layouts remembers the layout of the schemas in use.
type layouts struct {
	mu sync.Mutex
	of map[*fleet.Schema]*layout
}

const maxLayouts = 1024

func (l *layouts) layout(s *fleet.Schema) *layout {
	l.mu.Lock()
	known := l.of[s]
	l.mu.Unlock()
	if known != nil {
		return known
	}
	made := newLayout(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil || len(l.of) >= maxLayouts {
		l.of = make(map[*fleet.Schema]*layout)
	}
	l.of[s] = made
	return made
}

func newLayout(s *fleet.Schema) *layout {
	l := &layout{}
	type point struct{ measurement, instance string }
	index := make(map[point]int)
	seen := make(map[string]bool, s.Len())
	for i, name := range s.Names() {
		metric, instance := fleet.SplitSeries(name)
		if err := checkName(name, metric); err != nil {
			l.err = err
			return l
		}
		if seen[name] {
			l.err = fmt.Errorf("series %.200q is there twice", name)
			return l
		}
		seen[name] = true
		p := point{measurementOf(metric, instance), instance}
		j, ok := index[p]
		if !ok {
			j = len(l.lines)
			index[p] = j
			ln := line{measurement: p.measurement}
			if instance != "" {
				ln.instance = ",instance=" + escape(storedInstance(instance))
			}
			l.lines = append(l.lines, ln)
		}
		l.lines[j].fields = append(l.lines[j].fields, field{metric + "=", i})
	}
	return l
}

// measurementOf is where a metric is stored.
func measurementOf(metric, instance string) string {
	if instance == "" {
		return "host"
	}
	first, _, _ := strings.Cut(metric, "_")
	return first
}

// checkName says what is wrong with the name of a series. A metric is made of
// letters, digits and '_', so it needs no escaping anywhere.
func checkName(series, metric string) error {
	if metric == "" || len(series) > 512 || !utf8.ValidString(series) {
		return fmt.Errorf("series name %.200q is empty, longer than 512 bytes or no UTF-8", series)
	}
	for i, r := range metric {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || i > 0 && (r >= '0' && r <= '9' || r == '_') {
			continue
		}
		return fmt.Errorf("metric %.200q has the character %q", metric, r)
	}
	if metric == "boot" || metric == "time" {
		return fmt.Errorf("metric %q has a name that the database uses itself", metric)
	}
	for _, r := range series {
		if unicode.IsControl(r) {
			return fmt.Errorf("series name %.200q has a control character", series)
		}
	}
	return nil
}

// storedInstance is the instance as the database has it. The line protocol
// cannot say a backslash before a comma, an equals sign, a blank or the end of
// the value: those become '_'.
func storedInstance(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if c == '\\' && (i+1 == len(b) || strings.IndexByte(`,= \`, b[i+1]) >= 0) {
			b[i] = '_'
		}
	}
	return string(b)
}

// escape makes a tag value of the line protocol.
func escape(s string) string {
	if !strings.ContainsAny(s, ",= ") {
		return s
	}
	return strings.NewReplacer(",", `\,`, "=", `\=`, " ", `\ `).Replace(s)
}

// earliest and latest are the times that InfluxDB can hold.
var (
	earliest = time.Unix(0, math.MinInt64+2)
	latest   = time.Unix(0, math.MaxInt64-1)
)

// encode appends a sample in line protocol and tells how many lines it has.
func (l *layouts) encode(buf []byte, s *fleet.Sample) ([]byte, int, error) {
	if err := s.Host.Validate(); err != nil {
		return buf, 0, err
	}
	if s.Time.Before(earliest) || s.Time.After(latest) {
		return buf, 0, fmt.Errorf("its time %v is out of range", s.Time)
	}
	if s.Schema.Len() != len(s.Values) {
		return buf, 0, fmt.Errorf("it has %d values for %d series", len(s.Values), s.Schema.Len())
	}
	layout := l.layout(s.Schema)
	if layout.err != nil {
		return buf, 0, layout.err
	}
	lines := 0
	for i := range layout.lines {
		ln := &layout.lines[i]
		start := len(buf)
		buf = append(buf, ln.measurement...)
		buf = append(buf, ",host="...)
		buf = append(buf, s.Host...)
		buf = append(buf, ln.instance...)
		if s.Simulated {
			buf = append(buf, ",simulated=true"...)
		}
		separator := byte(' ')
		for _, f := range ln.fields {
			v := s.Values[f.value]
			if math.IsNaN(v) || math.IsInf(v, 0) {
				continue
			}
			buf = append(buf, separator)
			buf = append(buf, f.key...)
			buf = strconv.AppendFloat(buf, v, 'g', -1, 64)
			separator = ','
		}
		if separator == ' ' {
			buf = buf[:start]
			continue
		}
		if ln.measurement == "host" && ln.instance == "" && plain(s.Boot) {
			buf = append(buf, `,boot="`...)
			buf = append(buf, s.Boot...)
			buf = append(buf, '"')
		}
		buf = append(buf, ' ')
		buf = strconv.AppendInt(buf, s.Time.UnixNano(), 10)
		buf = append(buf, '\n')
		lines++
	}
	return buf, lines, nil
}

// plain tells whether a boot id is one: hexadecimal digits and dashes.
func plain(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "0123456789abcdefABCDEF-") == ""
}
