package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/api"
	"github.com/tardigrade-recovery/tardigrade/executor"
	"github.com/tardigrade-recovery/tardigrade/executor/placement"
	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// cordons keeps hosts from being given VMs, from the end of an action that emptied them
// or did not help until they have proved to be healthy.
type cordons struct {
	table       *bus.Table[fleet.Cordon]
	audit       auditor
	policies    *policies
	predictions *predictions
	log         *slog.Logger

	mu sync.Mutex
	// well says since when a cordoned host has been healthy without a break.
	well map[fleet.HostID]time.Time
}

// automatic is who cordons after executions.
const automatic = "policy:automatic"

// find is the cordon of a host that is in force.
func (c *cordons) find(host fleet.HostID) (fleet.Cordon, bool) {
	cordon, _, ok := c.table.Find(string(host))
	return cordon, ok && cordon.Lifted.IsZero()
}

// emptied tells whether an execution moved the VMs of its host away.
func emptied(e fleet.Execution) bool {
	if e.State != fleet.ExecutionSucceeded || len(e.Steps) == 0 {
		return false
	}
	return e.Steps[len(e.Steps)-1].Phase == fleet.PhaseMigrate
}

// ended cordons the host of an execution that emptied it, or after which a person is
// needed. It may be told of the same execution again.
func (c *cordons) ended(ctx context.Context, e fleet.Execution) {
	reason := ""
	switch {
	case emptied(e):
		reason = "its VMs were moved away: " + e.Reason
	case e.State == fleet.ExecutionHandedOver, e.State == fleet.ExecutionDegraded:
		reason = fmt.Sprintf("a person was called: %s (%s)", e.Outcome, e.Reason)
	}
	if reason == "" || time.Since(e.Ended) > triedFor {
		return
	}
	if old, _, ok := c.table.Find(string(e.Host)); ok && (old.Execution == e.ID || old.Since.After(e.Ended)) {
		return
	}
	if _, err := c.set(ctx, fleet.Cordon{Host: e.Host, Simulated: e.Simulated, By: automatic, Reason: reason, Execution: e.ID, Emptied: emptied(e)}); err != nil {
		c.log.Error("a host could not be cordoned", "host", e.Host, "execution", e.ID, "err", err)
	}
}

// set cordons a host. That only makes things safer: it is in force before it is audited.
func (c *cordons) set(ctx context.Context, cordon fleet.Cordon) (fleet.Cordon, error) {
	cordon.Since = time.Now().UTC()
	if _, err := c.table.Put(ctx, string(cordon.Host), cordon); err != nil {
		return cordon, fmt.Errorf("cordon host %s: %w", cordon.Host, err)
	}
	c.mu.Lock()
	delete(c.well, cordon.Host)
	c.mu.Unlock()
	c.log.Warn("a host is cordoned", "host", cordon.Host, "by", cordon.By, "reason", cordon.Reason)
	return cordon, c.audit.Append(ctx, cordon.By, "cordon", string(cordon.Host), cordon)
}

// lift ends the cordon of a host.
func (c *cordons) lift(ctx context.Context, host fleet.HostID, who string) (fleet.Cordon, error) {
	if err := c.audit.Append(ctx, who, "cordon.lifted", string(host), nil); err != nil {
		return fleet.Cordon{}, err
	}
	cordon, err := c.table.Change(ctx, string(host), func(c *fleet.Cordon) error {
		c.Lifted, c.LiftedBy = time.Now().UTC(), who
		return nil
	})
	if err == nil {
		c.log.Info("a cordon was lifted", "host", host, "by", who)
	}
	return cordon, err
}

// sweep lifts the cordons of hosts that have been healthy for long enough.
func (c *cordons) sweep(ctx context.Context) {
	policy := c.policies.current()
	for _, cordon := range c.table.All() {
		if !cordon.Lifted.IsZero() {
			continue
		}
		prediction, sample, known := c.predictions.find(cordon.Host, policy.EvidenceMaxAge.D())
		healthy := known && prediction.State == fleet.PredictionScoring && prediction.Signature == fleet.SignatureNone && !prediction.Anomalous && sample.Time.After(cordon.Since)
		c.mu.Lock()
		since, counting := c.well[cordon.Host]
		if !healthy {
			delete(c.well, cordon.Host)
		} else if !counting {
			since = time.Now()
			c.well[cordon.Host] = since
		}
		c.mu.Unlock()
		if !healthy || policy.UncordonAfter == 0 || time.Since(since) < policy.UncordonAfter.D() {
			continue
		}
		if _, err := c.lift(ctx, cordon.Host, automatic); err != nil {
			c.log.Error("a cordon could not be lifted, trying again", "host", cordon.Host, "err", err)
		}
	}
}

// placer shows the fleet to the placement of VMs.
type placer struct {
	policies    *policies
	hosts       *hosts
	predictions *predictions
	cordons     *cordons
}

func (p placer) Place(_ context.Context, id fleet.HostID, busy map[fleet.HostID]string) ([]fleet.Target, error) {
	limit := p.policies.current().EvidenceMaxAge.D()
	var from placement.Host
	var all []placement.Host
	for _, h := range p.hosts.all() {
		one := placement.Host{Host: h, Unfit: busy[h.ID], AvailableBytes: math.NaN(), BusyRatio: math.NaN()}
		if c, ok := p.cordons.find(h.ID); ok && one.Unfit == "" {
			one.Unfit = "it is cordoned: " + c.Reason
		}
		if prediction, sample, ok := p.predictions.find(h.ID, limit); ok {
			failing := prediction.State == fleet.PredictionScoring && prediction.Signature != fleet.SignatureNone
			one.Healthy = prediction.State != fleet.PredictionStale && !failing && !prediction.Anomalous
			one.AvailableBytes, _ = sample.Value("memory_available_bytes")
			one.BusyRatio, _ = sample.Value("cpu_busy_ratio")
		}
		all = append(all, one)
		if h.ID == id {
			from = one
		}
	}
	if from.ID == "" {
		return nil, fmt.Errorf("host %s is not known", id)
	}
	return placement.Choose(from, all)
}

var _ executor.Placement = placer{}

// Cordon keeps VMs from being moved to a host.
func (p *Plane) Cordon(ctx context.Context, host fleet.HostID, reason, who string) (fleet.Cordon, error) {
	h, err := p.Host(ctx, host)
	if err != nil {
		return fleet.Cordon{}, err
	}
	c, err := p.cordons.set(ctx, fleet.Cordon{Host: host, Simulated: h.Simulated, By: who, Reason: reason})
	return c, problem(err)
}

// Uncordon lets VMs be moved to a host again.
func (p *Plane) Uncordon(ctx context.Context, host fleet.HostID, who string) (fleet.Cordon, error) {
	if _, ok := p.cordons.find(host); !ok {
		return fleet.Cordon{}, api.ErrNotFound.Errorf("host %q is not cordoned", host)
	}
	c, err := p.cordons.lift(ctx, host, who)
	if errors.Is(err, bus.ErrNotFound) {
		err = api.ErrNotFound.Errorf("host %q is not cordoned", host)
	}
	return c, problem(err)
}
