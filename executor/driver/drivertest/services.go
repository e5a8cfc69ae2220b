// Package drivertest has the tests that every driver passes, the real ones and the
// simulated ones, and boots a small systemd host for the former.
package drivertest

import (
	"context"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
)

// services is what a driver of services has.
type services interface {
	Observe(ctx context.Context, unit string) (driver.UnitState, error)
	Restart(ctx context.Context, unit string) error
	Verify(ctx context.Context, unit string) error
	Healthy(ctx context.Context) map[string]bool
}

// Bench is a host with services for [Services] to work on.
type Bench struct {
	Services services
	// Good and Other work, Broken never starts, and Missing does not exist.
	Good, Other, Broken, Missing string
	// Hang makes Good fail its health check until it is restarted, and Stop ends it.
	Hang, Stop func(t *testing.T)
}

// Services tests a driver of services. All tests work on one host, one after the
// other.
func Services(t *testing.T, b Bench) {
	s := b.Services
	observe := func(t *testing.T, unit string) driver.UnitState {
		t.Helper()
		st, err := s.Observe(t.Context(), unit)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	restart := func(t *testing.T, unit string) {
		t.Helper()
		if err := s.Restart(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
	}
	working := func(t *testing.T, unit string) {
		t.Helper()
		if st := observe(t, unit); !st.Active || st.Busy || st.Invocation == "" || st.Refusal != "" || st.Detail == "" {
			t.Fatalf("%s: %+v", unit, st)
		}
		if !s.Healthy(t.Context())[unit] {
			t.Fatalf("%s is not healthy", unit)
		}
	}
	t.Run("a restart is seen and leaves others alone", func(t *testing.T) {
		working(t, b.Good)
		good, other := observe(t, b.Good), observe(t, b.Other)
		restart(t, b.Good)
		working(t, b.Good)
		if observe(t, b.Good).Invocation == good.Invocation {
			t.Error("the invocation is the same after a restart")
		}
		if observe(t, b.Other) != other {
			t.Error("another unit changed")
		}
	})
	t.Run("a stopped service is started", func(t *testing.T) {
		b.Stop(t)
		if st := observe(t, b.Good); st.Active || st.Invocation != "" || st.Refusal != "" {
			t.Fatalf("stopped: %+v", st)
		}
		if s.Healthy(t.Context())[b.Good] {
			t.Error("a stopped service is healthy")
		}
		if err := s.Verify(t.Context(), b.Good); err == nil {
			t.Error("a stopped service was verified")
		}
		restart(t, b.Good)
		working(t, b.Good)
	})
	t.Run("a hung service is cured by a restart", func(t *testing.T) {
		b.Hang(t)
		if !observe(t, b.Good).Active {
			t.Fatal("a service that hangs is active all the same")
		}
		if healthy, known := s.Healthy(t.Context())[b.Good]; healthy || !known {
			t.Errorf("healthy %v, known %v", healthy, known)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := s.Verify(ctx, b.Good); err == nil {
			t.Error("a hung service was verified")
		}
		restart(t, b.Good)
		working(t, b.Good)
	})
	t.Run("a service that cannot start is given up soon", func(t *testing.T) {
		begin := time.Now()
		err := s.Restart(t.Context(), b.Broken)
		if verr := s.Verify(t.Context(), b.Broken); err == nil && verr == nil {
			t.Error("a broken service came up")
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
		if observe(t, b.Broken).Active {
			t.Error("a broken service is active")
		}
	})
	t.Run("what does not exist is refused", func(t *testing.T) {
		if st := observe(t, b.Missing); st.Refusal == "" || st.Active {
			t.Errorf("%+v", st)
		}
		if err := s.Restart(t.Context(), b.Missing); err == nil {
			t.Error("a unit that does not exist was restarted")
		}
	})
	t.Run("nothing outlives its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		if _, err := s.Observe(ctx, b.Good); err == nil {
			t.Error("observed")
		}
		if err := s.Verify(ctx, b.Broken); err == nil {
			t.Error("verified")
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
