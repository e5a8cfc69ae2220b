// Package diagnose is Phase 2: it collects what is needed to find out why a host
// does not come right, into one archive, and says what most likely happened.
//
// A host that is being diagnosed is ill: its disks may be full or hang, its service
// manager may not answer. So each source of evidence has a time limit and a size
// limit of its own and is read beside the others; one that fails or hangs is noted
// in the archive's manifest and never keeps the rest from being collected. The
// archive is made in memory and is bounded.
//
// The archive is a tar compressed with zstd. Its first file is manifest.json (see
// [Manifest]); the others follow in an order that depends only on the configuration
// and on what is found. Secrets are redacted from every file before it is added.
package diagnose

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Uploads takes archives to the control plane. A nil error means that the whole
// archive is safe there. sha256 is that of all bytes of r, in hex.
type Uploads interface {
	UploadBundle(ctx context.Context, name string, r io.Reader, sha256 string) error
}

// Config is what a [Collector] works with. The zero value of everything but Host
// and Uploads is usable.
type Config struct {
	Host    fleet.HostID
	Uploads Uploads
	// Units are the services to look at, after those that a command names.
	Units []string
	// Healthy, if not nil, tells of each configured unit whether it is active and
	// healthy now.
	Healthy func(ctx context.Context) map[string]bool
	// Telemetry, if not nil, returns the newest samples of this host, oldest first.
	Telemetry func() []fleet.Sample
	// Dir, if not "", is where an archive is left that could not be uploaded.
	Dir string

	// Window is how far back the evidence of the fault goes; 0 means 30 minutes.
	Window time.Duration
	// Baseline is how much of the time before the window says what is usual on this
	// host; 0 means 24 hours.
	Baseline time.Duration
	// Limit bounds the collection as a whole, without the upload; 0 means a minute.
	// Where the command's deadline is near, two thirds of what is left are used.
	Limit time.Duration
	// SourceLimit bounds each source; 0 means 15 seconds.
	SourceLimit time.Duration
	// MaxBytes bounds the evidence in an archive before compression; 0 means 32 MiB.
	// What is concluded from it comes on top, with at most half a MiB.
	MaxBytes int
	// MaxSourceBytes bounds each source; 0 means 4 MiB. Of what is larger the end is
	// kept, where the newest lines are.
	MaxSourceBytes int
	// MaxLines bounds how many lines of each journal are read; 0 means 20,000 for the
	// host and a tenth of it for a unit.
	MaxLines int

	// Root is the directory under which /proc, /sys, /dev and /var are found; "" means
	// "/".
	Root string
	// Run runs a program and returns what it wrote, which may be incomplete if the
	// error is not nil. nil means to run it on this host.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Clock defaults to time.Now, Log to slog.Default().
	Clock func() time.Time
	Log   *slog.Logger
}

// Collector carries out diagnoses. It is safe for concurrent use.
type Collector struct{ cfg Config }

// ErrConfig means that a Collector cannot work with what it was given.
var ErrConfig = errors.New("the diagnosis is not configured properly")

// New returns a Collector.
func New(cfg Config) (*Collector, error) {
	if err := cfg.Host.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if cfg.Uploads == nil {
		return nil, fmt.Errorf("%w: there is nowhere to send archives to", ErrConfig)
	}
	for _, d := range []struct {
		value *time.Duration
		usual time.Duration
	}{{&cfg.Window, 30 * time.Minute}, {&cfg.Baseline, 24 * time.Hour}, {&cfg.Limit, time.Minute}, {&cfg.SourceLimit, 15 * time.Second}} {
		if *d.value < 0 {
			return nil, fmt.Errorf("%w: a time limit is negative", ErrConfig)
		}
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	for _, n := range []struct {
		value *int
		usual int
	}{{&cfg.MaxBytes, 32 << 20}, {&cfg.MaxSourceBytes, 4 << 20}, {&cfg.MaxLines, 20_000}} {
		if *n.value < 0 {
			return nil, fmt.Errorf("%w: a size limit is negative", ErrConfig)
		}
		if *n.value == 0 {
			*n.value = n.usual
		}
	}
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Run == nil {
		cfg.Run = program(cfg.MaxSourceBytes + 1)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Collector{cfg: cfg}, nil
}

// Diagnose collects the archive of an execution and uploads it. bundle is its name
// and summary says in a few sentences what was found. An error means that the archive
// did not arrive; it has the summary in it, since that is known all the same.
func (c *Collector) Diagnose(ctx context.Context, cmd fleet.Command) (bundle, summary string, err error) {
	archive, summary, err := c.Collect(ctx, cmd)
	if err != nil {
		return "", "", fmt.Errorf("diagnose host %s (execution %s, attempt %d): %w", c.cfg.Host, cmd.Execution, cmd.Attempt, err)
	}
	bundle = BundleName(cmd)
	if err := c.upload(ctx, bundle, archive); err != nil {
		return "", "", fmt.Errorf("upload the diagnostics of host %s (execution %s, attempt %d, %s): %w; what was found: %s",
			c.cfg.Host, cmd.Execution, cmd.Attempt, c.leave(bundle, archive), err, summary)
	}
	return bundle, summary, nil
}

// Collect makes the archive and does not upload it. It fails only if ctx ends before
// there is one.
func (c *Collector) Collect(ctx context.Context, cmd fleet.Command) (archive []byte, summary string, err error) {
	limit := c.cfg.Limit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)*2/3)
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	now := c.cfg.Clock()
	units, odd := unitNames(cmd.Units, c.cfg.Units)
	healthy := c.health(limited)
	found := c.collect(limited, append(c.sources(units, now), c.prediction(c.share(1, 1), cmd.Prediction)))
	m := Manifest{
		Version: manifestVersion, Host: c.cfg.Host, Execution: cmd.Execution, Command: cmd.ID, Attempt: cmd.Attempt,
		Reason: string(redactOnly([]byte(clip(cmd.Reason, 1000)))), Units: units, Time: now.UTC(),
	}
	for _, name := range odd {
		m.Files = append(m.Files, File{Name: "units/" + clip(fmt.Sprintf("%q", name), 100), Error: "this is not the name of a unit"})
	}
	states := unitStates(units, found)
	known := healthy()
	for i := range states {
		ok, asked := known[states[i].name]
		states[i].unhealthy = asked && !ok
	}
	for _, f := range found {
		if f.name != "failed-units.txt" {
			continue
		}
		// A service that fails since another does says nothing about the reason.
		if more := needed(states, f.data); len(more) > 0 {
			part := c.share(2, len(more))
			found = slices.Concat(c.collect(limited, c.unitSources(more, part, part, now.Add(-c.cfg.Window))), found)
			states = append(states, unitStates(more, found)...)
			m.Units = append(m.Units, more...)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	var files []content
	var search []evidenceFile
	var baseline []byte
	for _, f := range found {
		text, redacted := Redact(f.data)
		switch {
		case f.hidden && f.note == "":
			baseline = text
			continue
		case f.hidden:
			baseline, f.absent = text, true
		case !f.absent:
			search = append(search, evidenceFile{f.name, text, f.modified})
		}
		files = append(files, content{
			File: File{Name: f.name, Truncated: f.truncated, Redacted: redacted, Error: f.note},
			data: text, absent: f.absent,
		})
	}
	cause := c.rootCause(now, states, search, baseline)
	cause.Execution = cmd.Execution
	rendered, err := cause.json()
	if err != nil {
		return nil, "", err
	}
	files = append(files, content{File: File{Name: "root-cause.json"}, data: rendered}, content{File: File{Name: "root-cause.md"}, data: cause.markdown(states)})
	archive, err = pack(m, files)
	if err != nil {
		return nil, "", err
	}
	return archive, summarize(states, cause), nil
}

// rootCause looks for the cause in what was collected. baseline is the host's journal
// from before the window.
func (c *Collector) rootCause(now time.Time, states []unitState, files []evidenceFile, baseline []byte) RootCause {
	from := now.Add(-c.cfg.Window)
	a := newAnalysis(from, now, states)
	a.learnPrograms(files)
	var m miner
	before, oldest := 0, from
	a.search(evidenceFile{name: baselineFile, data: baseline}, func(l *line, _, matched bool) {
		if l.time.IsZero() {
			return
		}
		before++
		if l.time.Before(oldest) {
			oldest = l.time
		}
		if matched {
			return
		}
		if t := m.learn(l.program, l.text); t != nil {
			t.before++
		}
	})
	a.baseline = from.Sub(oldest)
	for _, f := range files {
		a.search(f, func(l *line, fresh, matched bool) {
			if matched || !fresh || l.time.IsZero() {
				return
			}
			t := m.learn(l.program, l.text)
			if t == nil {
				return
			}
			if t.within++; t.within == 1 {
				t.first, t.example = l.time.UTC(), evidence(l)
			}
			t.last = l.time.UTC()
			t.related = t.related || a.bad[unitOf(l.file)]
		})
	}
	return RootCause{
		Version: rootCauseVersion, Host: c.cfg.Host, From: from.UTC(), To: now.UTC(), Lines: a.lines, BaselineLines: before,
		Suspects: a.suspects(m.unusual(before, c.cfg.Window, a.baseline)),
	}
}

// BundleName is the name of the archive that a command makes. It is the same when the
// command is carried out again after a crash, and different for each attempt.
func BundleName(cmd fleet.Command) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", r) {
			return r
		}
		return '-'
	}, clip(cmd.Execution, 128))
	if name == "" {
		name = "diagnosis"
	}
	return fmt.Sprintf("%s-%d.tar.zst", name, cmd.Attempt)
}

// uploadAttempts is how often an upload is begun; between two of them a second goes by.
const uploadAttempts = 3

func (c *Collector) upload(ctx context.Context, name string, archive []byte) error {
	hash := sha256.Sum256(archive)
	sum := hex.EncodeToString(hash[:])
	for attempt := 1; ; attempt++ {
		err := c.cfg.Uploads.UploadBundle(ctx, name, bytes.NewReader(archive), sum)
		if err == nil || attempt == uploadAttempts || ctx.Err() != nil {
			return err
		}
		c.cfg.Log.Warn("the diagnostics did not arrive; they are sent again", "bundle", name, "attempt", attempt, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// leave keeps an archive on this host and says where.
func (c *Collector) leave(name string, archive []byte) string {
	if c.cfg.Dir == "" {
		return "not kept on the host"
	}
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return "not kept on the host either: " + err.Error()
	}
	path := filepath.Join(c.cfg.Dir, name)
	if err := os.WriteFile(path, archive, 0o600); err != nil {
		return "not kept on the host either: " + err.Error()
	}
	return "kept on the host as " + path
}

// health asks for the units' health in the background. What it returns waits for the
// answer at most as long as for any source; nil means that there is none.
func (c *Collector) health(ctx context.Context) func() map[string]bool {
	if c.cfg.Healthy == nil {
		return func() map[string]bool { return nil }
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.SourceLimit)
	answer := make(chan map[string]bool, 1)
	go func() { answer <- c.cfg.Healthy(ctx) }()
	return func() map[string]bool {
		defer cancel()
		select {
		case known := <-answer:
			return known
		default:
		}
		select {
		case known := <-answer:
			return known
		case <-ctx.Done():
			return nil
		}
	}
}

// clip cuts s to at most n bytes, at the border of a character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
