// Package rigtest has what tests of real recoveries share: a guest that proves that
// it lost nothing, and a watcher of its word.
package rigtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Account is what a guest said so far.
type Account struct {
	Boots int
	// Ticks is the number of the newest tick.
	Ticks uint32
	// Corrupt is the number of words of RAM that were wrong.
	Corrupt uint32
	// Jumps counts the ticks that did not follow the one before by one.
	Jumps int
	// MaxGap is the longest time between two ticks since the last [Watch.Reset].
	MaxGap time.Duration
	// Garbled counts the lines that could not be read.
	Garbled int
}

// Watch reads what a [BootSector] guest prints.
type Watch struct {
	mu    sync.Mutex
	told  Account
	last  time.Time
	err   error
	moved chan struct{}
}

// NewWatch reads from a guest's serial port until it ends.
func NewWatch(serial io.Reader) *Watch {
	w := &Watch{moved: make(chan struct{}, 1)}
	go w.read(serial)
	return w
}

func (w *Watch) read(serial io.Reader) {
	lines := bufio.NewScanner(serial)
	for lines.Scan() {
		w.line(strings.TrimSpace(lines.Text()), time.Now())
		select {
		case w.moved <- struct{}{}:
		default:
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err = lines.Err(); w.err == nil {
		w.err = io.EOF
	}
}

func (w *Watch) line(text string, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if text == "boot" {
		w.told.Boots++
		w.told.Ticks = 0
		return
	}
	var tick, corrupt uint32
	if n, err := fmt.Sscanf(text, "%08x %08x", &tick, &corrupt); n != 2 || err != nil {
		w.told.Garbled++
		return
	}
	if !w.last.IsZero() {
		w.told.MaxGap = max(w.told.MaxGap, now.Sub(w.last))
		if tick != w.told.Ticks+1 {
			w.told.Jumps++
		}
	}
	w.last, w.told.Ticks, w.told.Corrupt = now, tick, corrupt
}

// Account returns what was said so far; the time since the last tick counts as a gap.
func (w *Watch) Account() Account {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.told
	if !w.last.IsZero() {
		a.MaxGap = max(a.MaxGap, time.Since(w.last))
	}
	return a
}

// Reset forgets the longest gap.
func (w *Watch) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told.MaxGap = 0
}

// Await waits until the guest ticked n times more.
func (w *Watch) Await(ctx context.Context, n uint32) error {
	from := w.Account().Ticks
	for w.Account().Ticks < from+n {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("the guest has not ticked %d times more since tick %d (%+v, %v): %w", n, from, w.told, w.err, ctx.Err())
		case <-w.moved:
		}
	}
	return nil
}
