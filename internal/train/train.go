// Package train makes model files from the past of a fleet or from a table. It is what a
// training job runs, in a process of its own; see package jobs.
package train

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector/influx"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/history"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// Spec says what to train, on what. It travels as JSON.
type Spec struct {
	Kind registry.Kind `json:"kind"`
	// One of these says where the data are.
	Directory string  `json:"directory,omitempty"` // of telemetry, or of series
	CSV       string  `json:"csv,omitempty"`
	Influx    *Influx `json:"influx,omitempty"`
	// Series is the name of a series in a directory of series, where it has several.
	Series string `json:"series,omitempty"`
	// Label is the column of a CSV that is 1 for what is to be predicted, or for what is no
	// normal sample; "" for an anomaly model of a CSV that is normal throughout.
	Label string `json:"label,omitempty"`
	// From and To limit a directory of telemetry.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Incidents are the labels, beside those that the data have themselves.
	Incidents []fleet.Incident `json:"incidents,omitempty"`
	// Source names the data for a person, where the place says little.
	Source string `json:"source,omitempty"`
	// Code is the version of the program, and Parent the champion.
	Code   string `json:"code"`
	Parent string `json:"parent,omitempty"`
	Seed   uint64 `json:"seed"`
}

// Influx is a range of an InfluxDB.
type Influx struct {
	URL         string         `json:"url"`
	Org         string         `json:"org,omitempty"`
	Bucket      string         `json:"bucket"`
	Token       string         `json:"token,omitempty"`
	CA          string         `json:"ca,omitempty"`
	From        time.Time      `json:"from"`
	To          time.Time      `json:"to"`
	StepSeconds float64        `json:"step_s"`
	Hosts       []fleet.HostID `json:"hosts,omitempty"`
}

// Progress is told what is being done, and how much of all is done, 0..1.
type Progress func(stage string, done float64)

func unfit(format string, args ...any) error {
	return fmt.Errorf("nothing can be learned from these data: "+format, args...)
}

// Check says what is wrong with a spec before anything is read.
func (s Spec) Check() error {
	if !s.Kind.Valid() {
		return fmt.Errorf("the kind %q is not anomaly or failure", s.Kind)
	}
	n := 0
	for _, given := range []bool{s.Directory != "", s.CSV != "", s.Influx != nil} {
		if given {
			n++
		}
	}
	switch {
	case n != 1:
		return errors.New("name one source of data: a directory, a CSV file, or a range of InfluxDB")
	case s.Kind == registry.KindFailure && s.CSV != "" && s.Label == "":
		return errors.New("a failure model learns from a label: name its column")
	case s.Influx != nil && !s.Influx.From.Before(s.Influx.To):
		return fmt.Errorf("the range from %s to %s is empty", s.Influx.From.Format(time.RFC3339), s.Influx.To.Format(time.RFC3339))
	}
	return nil
}

// Run trains and returns the model file.
func Run(ctx context.Context, s Spec, progress Progress) ([]byte, registry.Header, error) {
	if progress == nil {
		progress = func(string, float64) {}
	}
	h := registry.Header{Kind: s.Kind, Trained: time.Now().UTC().Truncate(time.Second), Code: s.Code, Parent: s.Parent, Source: s.Source, Metrics: map[string]float64{}}
	if err := s.Check(); err != nil {
		return nil, h, err
	}
	var state []byte
	var err error
	switch s.Kind {
	case registry.KindAnomaly:
		state, err = trainAnomaly(ctx, s, &h, progress)
	case registry.KindFailure:
		state, err = trainFailure(ctx, s, &h, progress)
	}
	if err != nil {
		return nil, h, err
	}
	file, err := registry.Encode(h, state)
	progress("done", 1)
	return file, h, err
}

// open opens the past that a spec names.
func (s Spec) open(ctx context.Context) (history.Source, error) {
	if s.Influx != nil {
		return history.FromInflux(ctx, history.Influx{
			Config: influx.Config{URL: s.Influx.URL, Org: s.Influx.Org, Bucket: s.Influx.Bucket, Token: s.Influx.Token, CA: s.Influx.CA, Timeout: 2 * time.Minute},
			From:   s.Influx.From, To: s.Influx.To, Window: time.Duration(s.Influx.StepSeconds * float64(time.Second)), Only: s.Influx.Hosts,
		})
	}
	return history.Directory(s.Directory, s.From, s.To)
}
