package control

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"runtime"
	"sync"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// predictions scores every sample of the fleet as it comes in, and keeps the
// newest sample and prediction of each host. Hosts are spread over a few
// workers, each of which takes its hosts' samples in order.
type predictions struct {
	make    func(fleet.HostID, bool) (*predictor.Predictor, error)
	decided func(context.Context, *fleet.Sample, fleet.Prediction)
	failed  func(fleet.HostID, error)
	// roster has the models of the registry, and rebooted is told of a host's first sample of
	// another boot, with the time of the last one before.
	roster   *roster
	rebooted func(context.Context, time.Time, *fleet.Sample)

	seed  maphash.Seed
	lanes []chan fleet.Sample

	mu    sync.RWMutex
	hosts map[fleet.HostID]*hostState
}

type hostState struct {
	mu         sync.Mutex
	predictor  *predictor.Predictor
	sample     fleet.Sample
	prediction fleet.Prediction
	refused    int
	forecast   *forecast
	boot       string
	before     string // the boot before that
	twins      bool   // two machines speak for the host, and that was said
	last       time.Time
	scored     time.Time // when sample was, by the clock of the control plane
}

func newPredictions(make_ func(fleet.HostID, bool) (*predictor.Predictor, error),
	decided func(context.Context, *fleet.Sample, fleet.Prediction), failed func(fleet.HostID, error)) *predictions {
	p := &predictions{make: make_, decided: decided, failed: failed, seed: maphash.MakeSeed(), hosts: make(map[fleet.HostID]*hostState)}
	for range runtime.GOMAXPROCS(0) {
		p.lanes = append(p.lanes, make(chan fleet.Sample, 1024))
	}
	return p
}

// run works until ctx ends.
func (p *predictions) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, lane := range p.lanes {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case s := <-lane:
					p.score(ctx, s)
				}
			}
		})
	}
	wg.Wait()
}

// offer hands a sample to its host's worker. It waits where the worker is behind:
// the stream keeps what comes meanwhile.
func (p *predictions) offer(ctx context.Context, s fleet.Sample) {
	lane := p.lanes[maphash.String(p.seed, string(s.Host))%uint64(len(p.lanes))]
	select {
	case lane <- s:
	case <-ctx.Done():
	}
}

func (p *predictions) score(ctx context.Context, s fleet.Sample) {
	h := p.state(s.Host)
	h.mu.Lock()
	if h.predictor == nil {
		made, err := p.make(s.Host, s.Simulated)
		if err != nil {
			h.mu.Unlock()
			p.failed(s.Host, err)
			return
		}
		h.predictor, h.forecast = made, newForecast()
	}
	if before := h.last; h.boot != "" && h.boot != s.Boot && s.Time.After(before) {
		// A boot that is over does not come back.
		if s.Boot != h.before {
			defer func() { p.rebooted(ctx, before, &s) }() // after the host's lock is given back
		} else if !h.twins {
			h.twins = true
			defer p.failed(s.Host, errors.New("two machines send samples under this name: enroll each of them under a name of its own"))
		}
		h.before = h.boot
	}
	if s.Time.After(h.last) {
		h.boot, h.last = s.Boot, s.Time
	}
	out, err := h.predictor.Observe(&s)
	if err == nil || errors.Is(err, predictor.ErrKnown) { // its features are not part of what was restored
		h.forecast.features.Observe(&s)
	}
	if err == nil {
		h.forecast.improve(p.roster, &out)
	}
	if errors.Is(err, predictor.ErrKnown) {
		h.mu.Unlock()
		return
	}
	if err != nil {
		h.refused++
		first := h.refused == 1
		h.mu.Unlock()
		if first {
			p.failed(s.Host, err)
		}
		return
	}
	h.refused = 0
	h.sample, h.prediction, h.scored = s, out, time.Now()
	h.mu.Unlock()
	p.decided(ctx, &s, out)
}

func (p *predictions) state(id fleet.HostID) *hostState {
	p.mu.RLock()
	h := p.hosts[id]
	p.mu.RUnlock()
	if h != nil {
		return h
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h = p.hosts[id]; h == nil {
		h = &hostState{}
		p.hosts[id] = h
	}
	return h
}

// find returns the newest prediction and sample of a host; stale if the sample
// is older than limit, or came longer ago, whatever the host's clock says.
func (p *predictions) find(id fleet.HostID, limit time.Duration) (fleet.Prediction, fleet.Sample, bool) {
	p.mu.RLock()
	h := p.hosts[id]
	p.mu.RUnlock()
	if h == nil {
		return fleet.Prediction{}, fleet.Sample{}, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sample.Schema == nil {
		return fleet.Prediction{}, fleet.Sample{}, false
	}
	out := h.prediction
	if time.Since(h.sample.Time) > limit || time.Since(h.scored) > limit {
		out.State = fleet.PredictionStale
	}
	return out, h.sample, true
}

// remove forgets a host.
func (p *predictions) remove(id fleet.HostID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.hosts, id)
}

// lastSeen is when the newest sample of a host was taken; zero for one that never sent any.
func (p *predictions) lastSeen(id fleet.HostID) time.Time {
	h := p.state(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// recovered tells a host's predictor that an action ended well.
func (p *predictions) recovered(id fleet.HostID) {
	h := p.state(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.predictor != nil {
		h.predictor.Recovered()
		h.forecast.features.Recovered()
	}
}

// each calls f with the predictor of each host, one at a time.
func (p *predictions) each(f func(fleet.HostID, *predictor.Predictor)) {
	p.mu.RLock()
	hosts := maps.Clone(p.hosts)
	p.mu.RUnlock()
	for id, h := range hosts {
		h.mu.Lock()
		if h.predictor != nil && !h.sample.Simulated {
			f(id, h.predictor)
		}
		h.mu.Unlock()
	}
}
