package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/drift"
)

// A model file is the line "tardigrade model 1", a line of JSON with its [Header], the
// estimator's own bytes, and the SHA-256 of all before it.
const magic = "tardigrade model "

// FileVersion is the version of the format that this release writes and reads.
const FileVersion = 1

const (
	// MostBytes bounds a model file.
	MostBytes  = 256 << 20
	mostHeader = 32 << 20
	mostSeries = 1 << 16
)

// ErrFile is wrapped by the errors about files that cannot be used.
var ErrFile = errors.New("model file cannot be used")

// Kind is what a model predicts.
type Kind string

// The kinds.
const (
	KindAnomaly Kind = "anomaly" // how unusual a sample is
	KindFailure Kind = "failure" // whether the host fails within the horizons
)

// Kinds lists them.
func Kinds() []Kind { return []Kind{KindAnomaly, KindFailure} }

// Valid says whether it is one of them.
func (k Kind) Valid() bool { return k == KindAnomaly || k == KindFailure }

// Header says what a model is, and where it comes from.
type Header struct {
	Kind Kind `json:"kind"`
	// Trained is when.
	Trained time.Time `json:"trained"`
	// Source is what it was trained on, for a person; From and To its range of time, zero
	// where the data have no times; Hosts and Rows how much it was.
	Source string    `json:"source"`
	From   time.Time `json:"from,omitzero"`
	To     time.Time `json:"to,omitzero"`
	Hosts  int       `json:"hosts"`
	Rows   int       `json:"rows"`
	// StepSeconds is the time between two samples, 0 where it is not known.
	StepSeconds float64 `json:"step_s,omitempty"`
	// Series is the schema: the estimator's columns in order.
	Series []string `json:"series"`
	// Code is the version of the program that trained it.
	Code string `json:"code"`
	// Parent is the version that was champion then, "" for none.
	Parent string `json:"parent,omitempty"`
	// Metrics are of data that it was not trained on.
	Metrics map[string]float64 `json:"metrics"`
	// LeftOut says what the data could not teach it, such as a signature that too few have.
	LeftOut []string `json:"left_out,omitempty"`
	// Reference is the distribution of its training data, for drift.
	Reference *drift.Reference `json:"reference,omitempty"`
}

// Encode returns the model file of an estimator's bytes.
func Encode(h Header, state []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	header, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("model file: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%d\n%s\n", magic, FileVersion, header)
	b.Write(state)
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	return b.Bytes(), nil
}

// Decode checks a model file and returns what it is, and the estimator's bytes.
func Decode(data []byte) (Header, []byte, error) {
	var h Header
	fail := func(format string, args ...any) (Header, []byte, error) {
		return Header{}, nil, fmt.Errorf("%w: %s", ErrFile, fmt.Sprintf(format, args...))
	}
	if len(data) > MostBytes {
		return fail("it has %d bytes, at most %d are possible", len(data), MostBytes)
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
	if !ok || len(head) > mostHeader {
		return fail("it has no header, or one of more than %d bytes", mostHeader)
	}
	if err := json.Unmarshal(head, &h); err != nil {
		return fail("its header: %v", err)
	}
	if err := h.check(); err != nil {
		return Header{}, nil, err
	}
	return h, state, nil
}

func (h *Header) check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrFile, fmt.Sprintf(format, args...))
	}
	switch {
	case !h.Kind.Valid():
		return fail("its kind %.50q is not anomaly or failure", h.Kind)
	case len(h.Series) == 0 || len(h.Series) > mostSeries:
		return fail("it has %d series, 1 to %d are possible", len(h.Series), mostSeries)
	case h.To.Before(h.From) || h.Rows < 0 || h.Hosts < 0 || !(h.StepSeconds >= 0) || math.IsInf(h.StepSeconds, 0):
		return fail("its range of time, its rows or its step are impossible")
	}
	seen := make(map[string]bool, len(h.Series))
	for _, name := range h.Series {
		if seen[name] || name == "" {
			return fail("the series %.100q is empty or twice there", name)
		}
		seen[name] = true
	}
	for name, v := range h.Metrics {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fail("its metric %.50q is not a number", name)
		}
	}
	if h.Reference != nil {
		if err := h.Reference.Check(); err != nil {
			return fail("its reference: %v", err)
		}
	}
	return nil
}

// ID is the name of the version that a model file is: its kind and the begin of its
// checksum, so that the same file is the same version.
func ID(kind Kind, data []byte) string { return string(kind) + "-" + Sum(data)[:12] }

// Sum is the hex SHA-256 of a file.
func Sum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
