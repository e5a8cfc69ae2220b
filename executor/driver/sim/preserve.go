package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// freeze is for how long a simulated guest does not run while it changes its process.
const freeze = 20 * time.Millisecond

// Preserver takes the guests of a simulated host out of the way of a reset, and
// brings them back.
type Preserver struct {
	h *Host

	mu   sync.Mutex
	mark string
	// out are the guests that are saved; true for those whose state does not load.
	out     map[string]bool
	blocked map[string]string
}

// Preserver is the host's.
func (h *Host) Preserver() *Preserver {
	return &Preserver{h: h, out: map[string]bool{}, blocked: map[string]string{}}
}

// Block makes a guest one that cannot be preserved, and "" undoes it.
func (p *Preserver) Block(id, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked[id] = why; why == "" {
		delete(p.blocked, id)
	}
}

// Damage makes the saved state of a guest useless, and its guest lost with it.
func (p *Preserver) Damage(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, out := p.out[id]; out {
		p.out[id] = true
	}
}

// Check names the guests that cannot be preserved.
func (p *Preserver) Check(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.check(ctx)
}

func (p *Preserver) check(ctx context.Context) error {
	guests, err := p.h.Guests(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range guests {
		if why := p.blocked[g.ID]; why != "" && g.State != "shut-off" {
			errs = append(errs, fmt.Errorf("VM %s cannot be preserved: %s", g.ID, why))
		}
	}
	return errors.Join(errs...)
}

// begin refuses what would come between an earlier reset and its end.
func (p *Preserver) begin(ctx context.Context, mark string) ([]string, error) {
	if err := p.check(ctx); err != nil {
		return nil, err
	}
	if p.mark != "" {
		return nil, errors.New("guests of an earlier reset are out")
	}
	guests, err := p.h.Guests(ctx)
	if err != nil {
		return nil, err
	}
	p.mark = mark
	var running []string
	for _, g := range guests {
		if g.State == "running" {
			running = append(running, g.ID)
		}
	}
	return running, nil
}

// Move gives each guest that runs a new process.
func (p *Preserver) Move(ctx context.Context, mark string) (map[string]time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	running, err := p.begin(ctx, mark)
	if err != nil {
		return nil, err
	}
	frozen := map[string]time.Duration{}
	for _, id := range running {
		frozen[id] = freeze
	}
	return frozen, nil
}

// Save takes out each guest that runs.
func (p *Preserver) Save(ctx context.Context, mark string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	running, err := p.begin(ctx, mark)
	if err != nil {
		return err
	}
	for _, id := range running {
		p.out[id] = false
		p.h.Lose(id)
	}
	return nil
}

// Saved tells whether guests are out, or were and are not forgotten.
func (p *Preserver) Saved() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mark != "", nil
}

// Resume brings the guests back that are out.
func (p *Preserver) Resume(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mark == "" {
		return errors.New("no guest is out")
	}
	var errs []error
	for id, damaged := range p.out {
		if damaged {
			errs = append(errs, fmt.Errorf("VM %s: its state does not load and is kept", id))
			continue
		}
		p.h.found(id)
		delete(p.out, id)
	}
	return errors.Join(errs...)
}

// Forget ends the reset.
func (p *Preserver) Forget() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mark = ""
	clear(p.out)
	return nil
}

// found is the opposite of [Host.Lose].
func (h *Host) found(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.guests {
		if h.guests[i].ID == id {
			h.guests[i].State, h.guests[i].Alive = "running", true
		}
	}
}
