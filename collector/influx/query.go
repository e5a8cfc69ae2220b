package influx

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Row is one value of one series.
type Row struct {
	Host   fleet.HostID
	Series string
	// Time is the sample's, or the start of the window of an aggregated value
	// (the start of the range where the window begins before it).
	Time time.Time
	// Value is the sample's, or the mean over the window.
	Value float64
}

// chunk is the longest range that one request asks for, so that neither side
// holds more than that at a time.
const chunk = 24 * time.Hour

// Query reads what was stored of a host, or of all hosts where host is empty,
// from a time (inclusive) to another (exclusive). A metric is a series such as
// "cpu_busy_ratio" or "unit_memory_bytes{a.service}"; the bare name of a metric
// with instances means all of them, and no metrics at all means everything. With
// a step the server answers the mean over windows of that length, aligned to
// the clock; a step of 0 asks for every value.
//
// Rows come as they are read from the server, one day after another; within a
// day one series after another, each in the order of time. An error, which is
// an [*Error], ends the sequence. The caller may stop at any row.
func (c *Client) Query(ctx context.Context, host fleet.HostID, metrics []string, from, to time.Time, step time.Duration) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		filter, err := c.filter(host, metrics, from, to, step)
		if err != nil {
			yield(Row{}, &Error{Class: Refused, Op: "query", URL: c.config.URL, Hint: "correct the question", Err: err})
			return
		}
		length := chunk
		if step > 0 {
			length = max(chunk/step, 1) * step
		}
		for start := from; start.Before(to); {
			// Chunks end where windows do, so that no window is cut in two.
			end := start.Add(length)
			if step > 0 {
				end = windowStart(end, step)
			}
			if end.After(to) {
				end = to
			}
			if !c.rows(ctx, filter, start, end, step, yield) {
				return
			}
			start = end
		}
	}
}

// filter makes the part of the question that is the same for each chunk. Every
// name from outside is either of letters, digits and '_' or goes through quote.
func (c *Client) filter(host fleet.HostID, metrics []string, from, to time.Time, step time.Duration) (string, error) {
	if !from.Before(to) {
		return "", fmt.Errorf("the range from %s to %s is empty", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	if from.Before(earliest) || to.After(latest) {
		return "", fmt.Errorf("the range from %s to %s is beyond what InfluxDB can hold", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	if step < 0 || step > 0 && step < time.Millisecond {
		return "", fmt.Errorf("the step %s is neither 0 nor at least a millisecond", step)
	}
	var b strings.Builder
	if host != "" {
		if err := host.Validate(); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " |> filter(fn: (r) => r.host == %s)", quote(string(host)))
	}
	b.WriteString(` |> filter(fn: (r) => r._field != "boot")`)
	if len(metrics) == 0 {
		return b.String(), nil
	}
	if len(metrics) > 1000 {
		return "", fmt.Errorf("%d metrics are too many for one question: ask for at most 1000", len(metrics))
	}
	b.WriteString(" |> filter(fn: (r) => ")
	for i, series := range metrics {
		metric, instance := fleet.SplitSeries(series)
		if err := checkName(series, metric); err != nil {
			return "", err
		}
		if i > 0 {
			b.WriteString(" or ")
		}
		fmt.Fprintf(&b, "(r._field == %s", quote(metric))
		if instance != "" {
			fmt.Fprintf(&b, " and r._measurement == %s and r.instance == %s", quote(measurementOf(metric, instance)), quote(storedInstance(instance)))
		}
		b.WriteString(")")
	}
	b.WriteString(")")
	return b.String(), nil
}

// rows asks for one chunk and passes the rows on. It tells whether to go on.
func (c *Client) rows(ctx context.Context, filter string, start, end time.Time, step time.Duration, yield func(Row, error) bool) bool {
	flux := fmt.Sprintf("from(bucket: %s) |> range(start: %s, stop: %s)%s", quote(c.config.Bucket), fluxTime(start), fluxTime(end), filter)
	if step > 0 {
		flux += fmt.Sprintf(` |> aggregateWindow(every: %dns, fn: mean, createEmpty: false, timeSrc: "_start")`, step.Nanoseconds())
	}
	flux += ` |> keep(columns: ["host", "instance", "_field", "_time", "_value"])`
	result, err := c.query.Query(ctx, flux)
	if err != nil {
		yield(Row{}, c.explain("query", err))
		return false
	}
	defer result.Close()
	// Rows of a table share their names, which are joined once.
	var lastMetric, lastInstance, series string
	for result.Next() {
		values := result.Record().Values()
		value, ok := values["_value"].(float64)
		at, _ := values["_time"].(time.Time)
		// What is no number was not written by this package, and InfluxDB 1.8
		// takes the end of a range for a part of it.
		if !ok || !at.Before(end) {
			continue
		}
		host, _ := values["host"].(string)
		metric, _ := values["_field"].(string)
		instance, _ := values["instance"].(string)
		if metric != lastMetric || instance != lastInstance || series == "" {
			lastMetric, lastInstance, series = metric, instance, fleet.SeriesName(metric, instance)
		}
		if !yield(Row{Host: fleet.HostID(host), Series: series, Time: at.UTC(), Value: value}, nil) {
			return false
		}
	}
	if err := result.Err(); err != nil {
		yield(Row{}, c.explain("query", err))
		return false
	}
	// A stream that the server cut off in the middle looks like its end.
	if err := ctx.Err(); err != nil {
		yield(Row{}, c.explain("query", errors.Join(err, context.Cause(ctx))))
		return false
	}
	return true
}

// windowStart is the start of the window that a time is in. Flux counts windows
// from the Unix epoch.
func windowStart(t time.Time, step time.Duration) time.Time {
	ns := t.UnixNano()
	into := ns % int64(step)
	if into < 0 {
		into += int64(step)
	}
	return time.Unix(0, ns-into).UTC()
}

func fluxTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }

// quote makes a Flux string literal of which no byte but letters, digits and a
// few harmless marks stands for itself, so that no name can end the literal or
// begin an interpolation.
func quote(s string) string {
	const hex = "0123456789abcdef"
	b := make([]byte, 0, len(s)+2)
	b = append(b, '"')
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.', c == '/', c == ' ':
			b = append(b, c)
		default:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		}
	}
	return string(append(b, '"'))
}
