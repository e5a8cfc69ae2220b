package predictor

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// A model file is the line "tardigrade host model 1", a line of JSON with its
// [Header], the detector's state, and the SHA-256 of all before it.
const magic = "tardigrade host model "

// FileVersion is the version of the format that this release writes and reads.
const FileVersion = 1

// mostSeries bounds what a file may claim.
const mostSeries = 1 << 17

// ErrModelFile is wrapped by the errors about files that cannot be used.
var ErrModelFile = errors.New("model file cannot be used")

// Header says what a model file is of.
type Header struct {
	Host  fleet.HostID `json:"host"`
	Model string       `json:"model"`
	// Until is the time of the last sample that it learned from.
	Until  time.Time `json:"until"`
	Series []string  `json:"series"`
	// Alarm is what the host's episodes have taught its threshold.
	Alarm AlarmState `json:"alarm,omitzero"`
}

// Save returns what was learned of the host, as a model file. Before the first
// sample there is nothing to save, and it returns nil.
func (p *Predictor) Save() ([]byte, error) {
	if p.detector == nil {
		return nil, nil
	}
	header, err := json.Marshal(Header{Host: p.host, Model: p.cfg.Model, Until: p.last.UTC(), Series: p.names, Alarm: p.alarm.known})
	if err != nil {
		return nil, fmt.Errorf("save the model of %s: %w", p.host, err)
	}
	state, err := p.detector.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("save the model of %s: %w", p.host, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%d\n%s\n", magic, FileVersion, header)
	b.Write(state)
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	return b.Bytes(), nil
}

// ReadFile checks a model file and returns what it is of, and the detector's state.
func ReadFile(data []byte) (Header, []byte, error) {
	fail := func(format string, args ...any) (Header, []byte, error) {
		return Header{}, nil, fmt.Errorf("%w: %s", ErrModelFile, fmt.Sprintf(format, args...))
	}
	first, rest, ok := bytes.Cut(data, []byte("\n"))
	if !ok || !bytes.HasPrefix(first, []byte(magic)) {
		return fail("it is not a model of tardigrade")
	}
	if version := string(first[len(magic):]); version != fmt.Sprint(FileVersion) {
		return fail("it has the version %.20q, and this release reads %d: train it anew, or run the release that wrote it", version, FileVersion)
	}
	if len(rest) < sha256.Size {
		return fail("it is cut off after %d bytes", len(data))
	}
	body := len(data) - sha256.Size
	if sum := sha256.Sum256(data[:body]); !bytes.Equal(sum[:], data[body:]) {
		return fail("its checksum is wrong: it is damaged or cut off")
	}
	head, state, ok := bytes.Cut(rest[:len(rest)-sha256.Size], []byte("\n"))
	if !ok {
		return fail("it has no header")
	}
	var h Header
	if err := json.Unmarshal(head, &h); err != nil {
		return fail("its header: %v", err)
	}
	if err := h.Host.Validate(); err != nil {
		return fail("its header: %v", err)
	}
	if !h.Alarm.valid() {
		return fail("its header: what it knows of alarms is impossible: %+v", h.Alarm)
	}
	if len(h.Series) > mostSeries {
		return fail("it has %d series, at most %d are possible", len(h.Series), mostSeries)
	}
	seen := make(map[string]bool, len(h.Series))
	for _, name := range h.Series {
		if seen[name] {
			return fail("it has the series %.100q twice", name)
		}
		seen[name] = true
	}
	return h, state, nil
}

// Restore takes over what was learned of the host earlier. It must come before the
// first [Predictor.Observe]; after an error the predictor is as it was. Samples
// that the model knows already still count as evidence.
func (p *Predictor) Restore(data []byte) error {
	if p.detector != nil {
		return fmt.Errorf("the predictor of %s has begun already", p.host)
	}
	h, state, err := ReadFile(data)
	if err != nil {
		return err
	}
	switch {
	case h.Host != p.host:
		return fmt.Errorf("%w: it is of host %s, not of %s", ErrModelFile, h.Host, p.host)
	case h.Model != p.cfg.Model:
		return fmt.Errorf("%w: it is of the model %.50q, and %q is in use", ErrModelFile, h.Model, p.cfg.Model)
	}
	d, err := p.cfg.NewDetector(p.host, h.Series)
	if err != nil {
		return fmt.Errorf("detector of %s: %w", p.host, err)
	}
	if err := d.UnmarshalBinary(state); err != nil {
		return fmt.Errorf("%w: %w", ErrModelFile, err)
	}
	p.detector, p.names, p.learnedUntil = d, h.Series, h.Until
	if h.Alarm.Level == p.alarm.level { // else it was asked for so many alarms that its episodes were others
		p.alarm.known = h.Alarm
		p.alarm.bend()
	}
	for i, name := range p.names {
		p.columns[name] = i
	}
	p.x, p.shares = make([]float64, len(p.names)), make([]float64, len(p.names))
	return nil
}
