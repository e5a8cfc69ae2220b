// Package jobs runs trainings: one at a time, each in a process of its own with limited
// memory and time, so that nothing that happens there touches the control plane. Whatever else
// should not be done in a process that goes on, such as what golearn does, runs likewise ([Child.Process]).
package jobs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tardigrade-recovery/tardigrade/internal/train"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// Child says how the process of a training is run. The program is one that calls [Serve]:
// this one, by its hidden command.
type Child struct {
	Program string
	Args    []string
	// MemoryMiB is how much memory the process may have, at least 64.
	MemoryMiB int
	// Timeout ends it; 0 means 6 hours.
	Timeout time.Duration
	// Dir is where the model file lies while it is written.
	Dir string
}

// order is what the process reads; message is a line that it writes.
type order struct {
	MemoryMiB int        `json:"memory_mib"`
	Spec      train.Spec `json:"spec"`
}

type message struct {
	Stage string  `json:"stage,omitempty"`
	Done  float64 `json:"done,omitempty"`
	Error string  `json:"error,omitempty"` // ends it
}

const (
	leastMemory    = 64 // MiB
	mostMemory     = 1 << 20
	defaultTimeout = 6 * time.Hour
	modelDescr     = 3 // the descriptor to which the process writes the model file
	mostLine       = 1 << 20
	mostErrors     = 64 << 10 // of what the process says at its end
)

// ErrMemory is returned where a training wanted more memory than it may have.
var ErrMemory = errors.New("the training ran out of memory")

// Run trains in a process and returns the model file. Cancelling ctx kills the process.
func (c Child) Run(ctx context.Context, s train.Spec, progress train.Progress) ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(c.Dir, "model-*")
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	var last message
	err = c.Process(ctx, order{c.MemoryMiB, s}, []*os.File{out}, func(line []byte) {
		var m message
		if json.Unmarshal(line, &m) != nil {
			return
		}
		if last = m; m.Error == "" && progress != nil {
			progress(m.Stage, m.Done)
		}
	})
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case last.Error != "":
		return nil, errors.New(last.Error)
	case err != nil:
		return nil, err
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	file, err := io.ReadAll(io.LimitReader(out, registry.MostBytes+1))
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	if _, _, err := registry.Decode(file); err != nil {
		return nil, fmt.Errorf("what the training process wrote: %w", err)
	}
	return file, nil
}

// Process runs the program with an order as JSON on its standard input and files as its
// descriptors from 3 on, and calls line with each line of its standard output. Cancelling ctx
// kills the process, and so does the end of this one. The program must limit its own memory, see
// [Limit].
func (c Child) Process(ctx context.Context, order any, files []*os.File, line func([]byte)) error {
	if c.MemoryMiB < leastMemory || c.MemoryMiB > mostMemory {
		return fmt.Errorf("a training needs at least %d MiB, and may have %d at most, not %d", leastMemory, mostMemory, c.MemoryMiB)
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the training took longer than %v", timeout))
	defer cancel()
	stdin, err := json.Marshal(order)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, c.Program, c.Args...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%dMiB", collectFrom(c.MemoryMiB)), "GOMAXPROCS=1", "GOTRACEBACK=none")
	cmd.WaitDelay = 5 * time.Second
	said := &tail{}
	cmd.Stderr = said
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	// The process dies with the thread that started it, so that one stays.
	err = onOneThread(func() error {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
		text := bufio.NewScanner(lines)
		text.Buffer(nil, mostLine)
		for text.Scan() {
			line(text.Bytes())
		}
		return cmd.Wait()
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && said.ofMemory():
		return fmt.Errorf("%w: it may have %d MiB: allow more, or take fewer hosts or rows, or a shorter range", ErrMemory, c.MemoryMiB)
	case killed(err):
		return fmt.Errorf("the training process was killed by somebody else (%w): the kernel does that where the machine runs out of memory, its log says so; let it have less memory, or take fewer hosts or rows, or a shorter range", err)
	case err != nil:
		return fmt.Errorf("the training process ended with %w: %s", err, said.last())
	}
	return nil
}

func killed(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// arenaMiB is the size of the pieces by which Go's heap grows on 64-bit Linux, all of which
// counts against the limit.
const arenaMiB = 64

// collectFrom is the size in MiB from which on Go collects garbage as often as it must, so that a
// process does not reach its limit while most of its memory is garbage.
func collectFrom(limitMiB int) int { return max(limitMiB*9/10-arenaMiB, limitMiB/2) }

func onOneThread(f func() error) error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// A goroutine that ends locked takes its thread with it, and other processes that it has started.
		defer runtime.UnlockOSThread()
		ended <- f()
	}()
	return <-ended
}

// tail keeps the end of what a process says.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if n := len(t.text); n > mostErrors {
		t.text = append(t.text[:0], t.text[n-mostErrors/2:]...)
	}
	return len(p), nil
}

// ofMemory says whether a process ended because it may have no more memory, which also Go's runtime may
// find out by a fault.
func (t *tail) ofMemory() bool {
	for _, words := range []string{"out of memory", "cannot allocate memory", "pthread_create failed"} {
		if bytes.Contains(t.text, []byte(words)) {
			return true
		}
	}
	return bytes.HasPrefix(t.text, []byte("SIGSEGV: segmentation violation"))
}

func (t *tail) last() string {
	text := strings.TrimSpace(string(t.text))
	if text == "" {
		return "it said nothing"
	}
	if i := strings.IndexByte(text, '\n'); i >= 0 {
		text = text[:i]
	}
	return text
}

// Limit limits the memory of this process: more ends it.
func Limit(memoryMiB int) error {
	// Writable memory of its own, which is what a Go program grows by. Address space would
	// count what the runtime only reserves.
	limit := uint64(memoryMiB) << 20
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return fmt.Errorf("limit the memory of a training: %w", err)
	}
	return nil
}

// Serve is the process's side: it reads an order from in, writes progress to out and the
// model file to descriptor 3. A training that fails is said in a message, not by an error.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return fmt.Errorf("the order of a training: %w", err)
	}
	if err := Limit(o.MemoryMiB); err != nil {
		return err
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10) // scoring goes first
	lines := json.NewEncoder(out)
	var said time.Time
	file, _, err := train.Run(ctx, o.Spec, func(stage string, done float64) {
		if now := time.Now(); now.Sub(said) > 100*time.Millisecond {
			said = now
			_ = lines.Encode(message{Stage: stage, Done: done})
		}
	})
	if err != nil {
		return lines.Encode(message{Error: err.Error()})
	}
	model := os.NewFile(modelDescr, "model")
	if model == nil {
		return errors.New("a training has nowhere to write its model to")
	}
	if _, err := model.Write(file); err != nil {
		return lines.Encode(message{Error: fmt.Sprintf("write the model: %v", err)})
	}
	return model.Close()
}
