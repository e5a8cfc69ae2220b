package diagnose

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// telemetry is a source of the samples from before the diagnosis, as CSV with a line for
// each sample and a column for each series; a value that is missing is empty.
func (c *Collector) telemetry(max int) source {
	const file = "telemetry.csv"
	return source{name: file, max: max, collect: func(ctx context.Context, b *bin) error {
		if c.cfg.Telemetry == nil {
			return errNothing
		}
		samples := c.cfg.Telemetry()
		if len(samples) == 0 {
			return errNothing
		}
		var names []string
		column := make(map[string]int)
		for _, s := range samples {
			for _, n := range s.Schema.Names() {
				if _, known := column[n]; !known {
					column[n] = len(names)
					names = append(names, n)
				}
			}
		}
		var head, out bytes.Buffer
		w := csv.NewWriter(&head)
		w.Write(append([]string{"time"}, names...))
		w.Flush()
		// The newest count most: lines are added from the end until there is no more room.
		var lines [][]byte
		left := max - head.Len()
		row := make([]string, 1+len(names))
		for _, s := range slices.Backward(samples) {
			if err := ctx.Err(); err != nil {
				return err
			}
			clear(row)
			row[0] = s.Time.UTC().Format(time.RFC3339Nano)
			for i, n := range s.Schema.Names() {
				if v := s.Values[i]; !math.IsNaN(v) {
					row[1+column[n]] = strconv.FormatFloat(v, 'g', 6, 64)
				}
			}
			out.Reset()
			w := csv.NewWriter(&out)
			w.Write(row)
			w.Flush()
			if left -= out.Len(); left < 0 {
				break
			}
			lines = append(lines, bytes.Clone(out.Bytes()))
		}
		slices.Reverse(lines)
		b.add(file, append(head.Bytes(), bytes.Join(lines, nil)...), 0)
		if len(lines) < len(samples) {
			b.note(file, fmt.Errorf("%d older samples are left out", len(samples)-len(lines)))
		}
		return nil
	}}
}

// prediction is a source of the prediction that led to the execution.
func (c *Collector) prediction(max int, p *fleet.Prediction) source {
	const file = "prediction.json"
	return source{name: file, max: max, collect: func(_ context.Context, b *bin) error {
		if p == nil {
			return errNothing
		}
		data, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return err
		}
		b.add(file, append(data, '\n'), 0)
		return nil
	}}
}

// vmcores is a source of what a crash of the kernel left through kdump: the end of the
// kernel's log from each, and a list of the dumps themselves. These hold the memory of
// the host and stay there.
func (c *Collector) vmcores(max int) source {
	const dir = "vmcore"
	return source{name: dir, max: max, collect: func(ctx context.Context, b *bin) error {
		files, err := c.list("/var/crash", "*")
		if err != nil {
			return err
		}
		slices.SortStableFunc(files, func(x, y listed) int { return y.info.ModTime().Compare(x.info.ModTime()) })
		const mostLogs, mostListed = 8, 100
		var list bytes.Buffer
		logs := 0
		for i, f := range files {
			if i < mostListed {
				fmt.Fprintf(&list, "%s %d bytes %s\n", f.info.ModTime().UTC().Format(time.RFC3339), f.info.Size(), safeName(f.name))
			}
			if !strings.Contains(f.name, "dmesg") || logs == mostLogs {
				continue
			}
			logs++
			name := dir + "/" + safeName(f.name)
			data, err := readEnd(ctx, c.path("/var/crash/"+f.name), max/(mostLogs+1))
			if len(data) > 0 {
				b.addDated(name, data, max/(mostLogs+1), f.info.ModTime())
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				b.note(name, err)
			}
		}
		b.add(dir+"/list.txt", list.Bytes(), 0)
		return nil
	}}
}

const (
	// maxUnpacked bounds what is decompressed of an archive, and maxConclusion a file of
	// its conclusions.
	maxUnpacked   = 256 << 20
	maxConclusion = 4 << 20
)

// ErrNoConclusion means that an archive has no root cause in it.
var ErrNoConclusion = errors.New("the archive of diagnostics has no root cause in it")

// ReadRootCause returns the root cause of an archive, and as what a person reads, in
// Markdown. The archive may come from anywhere.
func ReadRootCause(archive io.Reader) (cause RootCause, markdown string, err error) {
	z, err := zstd.NewReader(archive, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderMaxWindow(32<<20))
	if err != nil {
		return cause, "", fmt.Errorf("read the archive of diagnostics: %w", err)
	}
	defer z.Close()
	known := false
	for r := tar.NewReader(io.LimitReader(z, maxUnpacked)); !known || markdown == ""; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return cause, "", fmt.Errorf("read the archive of diagnostics: %w", err)
		}
		if h.Name != "root-cause.json" && h.Name != "root-cause.md" {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(r, maxConclusion+1))
		if err == nil && len(data) > maxConclusion {
			err = fmt.Errorf("it is larger than %d bytes", maxConclusion)
		}
		if err == nil && h.Name == "root-cause.json" {
			if err = json.Unmarshal(data, &cause); err == nil && cause.Version != rootCauseVersion {
				err = fmt.Errorf("it has version %d, and this release reads %d", cause.Version, rootCauseVersion)
			}
			known = err == nil
		} else if err == nil {
			markdown = string(bytes.ToValidUTF8(data, []byte("?")))
		}
		if err != nil {
			return cause, "", fmt.Errorf("read %s of the archive of diagnostics: %w", h.Name, err)
		}
	}
	if !known || markdown == "" {
		return cause, "", ErrNoConclusion
	}
	return cause, markdown, nil
}
