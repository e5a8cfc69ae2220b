package libvirt

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/tardigrade-recovery/tardigrade/executor/driver"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

func sorted(words []string) string {
	slices.Sort(words)
	return strings.Join(slices.Compact(words), " ")
}

// ErrMove means that a guest did not move. Where it is then, [Host.Locate] tells.
var ErrMove = errors.New("the guest was not moved")

// Move moves a running or paused guest to another host and returns once that is
// decided: nil where it runs there and not here any more, an error that wraps [ErrMove]
// where libvirt says that it failed. The daemons do it among themselves, so when ctx
// ends, or this process does, the move goes on: [Host.Locate] sees it and [Host.Abort]
// ends it. progress, if not nil, is called now and then.
//
// Where the target has no post-copy, the guest moves without that.
func (h *Host) Move(ctx context.Context, guest string, to fleet.Target, progress func(driver.Progress)) (driver.Progress, error) {
	told, err := h.move(ctx, guest, to, progress, h.cfg.Move.PostCopyAfter)
	if h.cfg.Move.PostCopyAfter > 0 && errors.Is(err, ErrMove) && noPostCopy.MatchString(err.Error()) {
		// It was refused before anything began.
		return h.move(ctx, guest, to, progress, 0)
	}
	return told, err
}

// noPostCopy is what QEMU says on a host whose kernel does not let it have post-copy.
var noPostCopy = regexp.MustCompile(`(?i)post-?copy is not supported`)

func (h *Host) move(ctx context.Context, guest string, to fleet.Target, progress func(driver.Progress), postCopyAfter time.Duration) (driver.Progress, error) {
	var last driver.Progress
	fail := func(err error) (driver.Progress, error) {
		return last, fmt.Errorf("move guest %s to %s: %w", guest, to.Host, err)
	}
	uri, err := fill(h.cfg.Move.URI, to.Address)
	if err != nil {
		return fail(err)
	}
	s, err := dial(ctx, h.cfg.URI)
	if err != nil {
		return fail(err)
	}
	defer s.close()
	d, err := find(s, guest)
	if err != nil {
		return fail(err)
	}
	params, flags, err := h.request(s, d, to, postCopyAfter > 0)
	if err != nil {
		return fail(err)
	}
	if ms := h.cfg.Move.Downtime.Milliseconds(); ms > 0 {
		if err := s.DomainMigrateSetMaxDowntime(d, uint64(ms), 0); err != nil {
			return fail(fmt.Errorf("limit the time for which it stands still: %w", err))
		}
	}
	done := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := s.DomainMigratePerform3Params(d, rpc.OptString{uri}, params, nil, flags)
		done <- err
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	postcopied := postCopyAfter == 0
	for {
		select {
		case err = <-done:
			if ctx.Err() != nil {
				return fail(context.Cause(ctx))
			}
			if err == nil {
				h.completed(ctx, guest, uri, &last)
				return last, nil
			}
			var refused rpc.Error
			if errors.As(err, &refused) {
				err = fmt.Errorf("%w: libvirt says: %s", ErrMove, strings.TrimSpace(refused.Message))
			}
			return fail(err)
		case <-tick.C:
			_, stats, err := s.DomainGetJobStats(d, 0)
			if err != nil || len(stats) == 0 {
				continue
			}
			last = read(stats)
			if progress != nil {
				progress(last)
			}
			if !postcopied && time.Since(begin) > postCopyAfter && last.Iteration > 1 {
				postcopied = s.DomainMigrateStartPostCopy(d, 0) == nil
			}
		}
	}
}

// request is what libvirt is asked for.
func (h *Host) request(s *session, d rpc.Domain, to fleet.Target, postCopy bool) ([]rpc.TypedParam, rpc.DomainMigrateFlags, error) {
	flags := rpc.MigratePeer2peer | rpc.MigrateAbortOnError
	state, _, err := s.DomainGetState(d, 0)
	if err != nil {
		return nil, 0, err
	}
	if stateName(state) == "running" {
		flags |= rpc.MigrateLive
	}
	persistent, err := s.DomainIsPersistent(d)
	if err != nil {
		return nil, 0, err
	}
	if persistent != 0 {
		flags |= rpc.MigratePersistDest | rpc.MigrateUndefineSource
	}
	params := []rpc.TypedParam{{Field: rpc.MigrateParamDestName, Value: *rpc.NewTypedParamValueString(d.Name)}}
	m := h.cfg.Move
	if m.DataURI != "" {
		data, err := fill(m.DataURI, to.Address)
		if err != nil {
			return nil, 0, err
		}
		params = append(params, rpc.TypedParam{Field: rpc.MigrateParamURI, Value: *rpc.NewTypedParamValueString(data)})
	}
	if m.MiBPerSecond > 0 {
		params = append(params, rpc.TypedParam{Field: rpc.MigrateParamBandwidth, Value: *rpc.NewTypedParamValueUllong(uint64(m.MiBPerSecond))})
	}
	if m.AutoConverge {
		flags |= rpc.MigrateAutoConverge
	}
	if postCopy {
		flags |= rpc.MigratePostcopy
	}
	if m.TLS {
		flags |= rpc.MigrateTLS
	}
	return params, flags, nil
}

// completed asks the target how long the guest stood still; where it does not tell,
// that stays unknown.
func (h *Host) completed(ctx context.Context, guest, uri string, p *driver.Progress) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	_ = h.with(ctx, uri, func(s *session) error {
		d, err := find(s, guest)
		if err != nil {
			return err
		}
		_, stats, err := s.DomainGetJobStats(d, rpc.DomainJobStatsCompleted)
		if err == nil {
			*p = read(stats)
		}
		return err
	})
}

// read takes the figures of a job (virDomainGetJobStats).
func read(stats []rpc.TypedParam) driver.Progress {
	var p driver.Progress
	for _, s := range stats {
		v, ok := number(s.Value)
		if !ok || v < 0 || v > 1<<62 {
			continue
		}
		switch s.Field {
		case rpc.DomainJobMemoryTotal:
			p.TotalBytes = int64(v)
		case rpc.DomainJobMemoryIteration:
			p.Iteration = int(v)
		case rpc.DomainJobDowntime:
			p.DowntimeSeconds = v / 1000
		}
	}
	return p
}

// Abort ends a move from here; the guest stays. That there is none is no error.
func (h *Host) Abort(ctx context.Context, guest string) error {
	return h.on(ctx, guest, "stop the move of", func(s *session, d rpc.Domain) error {
		err := s.DomainAbortJob(d)
		var refused rpc.Error
		if errors.As(err, &refused) && rpc.ErrorNumber(refused.Code) == rpc.ErrOperationInvalid {
			return nil
		}
		return err
	})
}

// Locate looks for a guest on both sides of a move. Only a source that cannot be
// asked is an error; a target that cannot be is in the answer.
func (h *Host) Locate(ctx context.Context, guest string, to fleet.Target) (driver.Location, error) {
	uri, err := fill(h.cfg.Move.URI, to.Address)
	if err != nil {
		return driver.Location{}, err
	}
	var at driver.Location
	here, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	err = h.with(here, h.cfg.URI, func(s *session) error {
		at.Here, at.Moving, at.Committed, err = locate(s, guest)
		return err
	})
	if err != nil {
		return driver.Location{}, fmt.Errorf("look for guest %s: %w", guest, err)
	}
	there, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	err = h.with(there, uri, func(s *session) error {
		at.There, _, _, err = locate(s, guest)
		return err
	})
	if err != nil {
		at.There, at.Trouble = driver.Unknown, err.Error()
	}
	return at, because(ctx, nil)
}

// locate is a guest's state on one side, whether it is on its way from or to it, and
// whether its source is beyond the point of no return.
func locate(s *session, guest string) (state string, moving, committed bool, err error) {
	d, err := find(s, guest)
	if rpc.IsNotFound(err) {
		return "", false, false, nil
	}
	if err != nil {
		return "", false, false, err
	}
	n, reason, err := s.DomainGetState(d, 0)
	if rpc.IsNotFound(err) {
		return "", false, false, nil
	}
	if err != nil {
		return "", false, false, err
	}
	kind, _, _, _, _, _, _, _, _, _, _, _, err := s.DomainGetJobInfo(d)
	if err != nil {
		kind = 0
	}
	moving = rpc.DomainJobType(kind) == rpc.DomainJobBounded || rpc.DomainJobType(kind) == rpc.DomainJobUnbounded
	committed = rpc.DomainState(n) == rpc.DomainPaused && rpc.DomainPausedReason(reason) == rpc.DomainPausedPostcopy
	return stateName(n), moving, moving && committed, nil
}
