package control

import (
	"encoding/json"
	"sync"

	"github.com/tardigrade-recovery/tardigrade/api"
)

// events tells followers of changes. A follower that is too slow is cut off: it
// must read the state anew.
type events struct {
	mu        sync.Mutex
	followers map[chan api.Event]struct{}
}

// followerBuffer is how many events a follower may be behind.
const followerBuffer = 256

func newEvents() *events { return &events{followers: make(map[chan api.Event]struct{})} }

// follow returns a channel of events, closed when the follower is cut off, and
// how to end it.
func (e *events) follow() (<-chan api.Event, func()) {
	ch := make(chan api.Event, followerBuffer)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.followers[ch] = struct{}{}
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.drop(ch)
	}
}

func (e *events) drop(ch chan api.Event) {
	if _, ok := e.followers[ch]; ok {
		delete(e.followers, ch)
		close(ch)
	}
}

func (e *events) emit(kind, id string, v any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.followers) == 0 {
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		return
	}
	for ch := range e.followers {
		select {
		case ch <- api.Event{Kind: kind, ID: id, Data: data}:
		default:
			e.drop(ch)
		}
	}
}
