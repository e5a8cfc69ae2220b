// Package rigtest has what tests of real recoveries share: a guest that proves that
// it lost nothing, and a watcher of its word.
package rigtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
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
	// Repeats counts the ticks that had been there already: the guest ran twice.
	Repeats int
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
	ended chan struct{}
}

// NewWatch reads from a guest's serial port until it ends.
func NewWatch(serial io.Reader) *Watch {
	w := &Watch{moved: make(chan struct{}, 1), ended: make(chan struct{})}
	go w.read(serial)
	return w
}

// End waits until the serial port has ended.
func (w *Watch) End() { <-w.ended }

func (w *Watch) read(serial io.Reader) {
	lines := bufio.NewScanner(serial)
	for lines.Scan() {
		w.line(strings.TrimSpace(lines.Text()), time.Now())
		select {
		case w.moved <- struct{}{}:
		default:
		}
	}
	defer close(w.ended)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err = lines.Err(); w.err == nil {
		w.err = io.EOF
	}
}

// WatchAll reads what a guest prints through every QEMU that carries it, one after
// the other, as they connect to the listener: what the second says is looked at once
// the first has ended, with the times at which it was said. So a guest that runs in
// two of them at once repeats itself.
func WatchAll(l net.Listener) *Watch {
	w := &Watch{moved: make(chan struct{}, 1)}
	type said struct {
		text []byte
		at   time.Time
	}
	carriers := make(chan chan said, 64)
	go func() {
		defer close(carriers)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			told := make(chan said, 1<<16)
			carriers <- told
			go func() {
				defer close(told)
				defer c.Close()
				for {
					b := make([]byte, 512)
					n, err := c.Read(b)
					if n > 0 {
						told <- said{b[:n], time.Now()}
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	go func() {
		var rest []byte // a guest may be moved in the middle of a line
		for told := range carriers {
			for s := range told {
				rest = append(rest, s.text...)
				for {
					line, after, whole := bytes.Cut(rest, []byte("\n"))
					if !whole {
						break
					}
					w.line(strings.TrimSpace(string(line)), s.at)
					rest = after
				}
				select {
				case w.moved <- struct{}{}:
				default:
				}
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = io.EOF
	}()
	return w
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
		if tick <= w.told.Ticks {
			w.told.Repeats++
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
