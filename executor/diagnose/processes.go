package diagnose

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxTasks bounds the threads that are looked at.
	maxTasks = 100_000
	// maxStacks bounds the kernel stacks that are read.
	maxStacks = 200
	// stillBlocked is after what time a thread that was seen in the state D is looked at
	// again: to wait for a disk for a moment is usual.
	stillBlocked = time.Second
)

// task is a thread.
type task struct {
	pid, tid, parent int
	name             string
	state            byte
	// started is in clock ticks since boot: with tid it identifies the thread.
	started uint64
}

// processes is a source of the state of each process, and of the kernel's stacks of the
// threads that are blocked in it (state D). Only files are read for which the kernel
// does not wait for the process's memory map, since that may be what is locked.
func (c *Collector) processes(max int) source {
	const file = "processes.txt"
	return source{name: file, max: max, collect: func(ctx context.Context, b *bin) error {
		proc := c.path("/proc")
		pids, err := numbers(proc)
		if err != nil {
			return err
		}
		var list bytes.Buffer
		var blocked []task
		states := make(map[byte]int)
		tasks := 0
		for _, pid := range pids {
			if ctx.Err() != nil || tasks >= maxTasks {
				break
			}
			p, ok := readTask(filepath.Join(proc, strconv.Itoa(pid), "stat"), pid)
			if !ok {
				continue // it ended
			}
			fmt.Fprintf(&list, "%7d %7d %c %s\n", p.tid, p.parent, p.state, p.name)
			tids, _ := numbers(filepath.Join(proc, strconv.Itoa(pid), "task"))
			if len(tids) == 0 {
				tids = []int{pid}
			}
			for _, tid := range tids {
				t := p
				if tid != pid {
					if t, ok = readTask(filepath.Join(proc, strconv.Itoa(pid), "task", strconv.Itoa(tid), "stat"), pid); !ok {
						continue
					}
				}
				tasks++
				states[t.state]++
				if t.state == 'D' {
					blocked = append(blocked, t)
				}
			}
		}
		var head bytes.Buffer
		fmt.Fprintf(&head, "%d processes, %d threads:", bytes.Count(list.Bytes(), []byte("\n")), tasks)
		for _, s := range slices.Sorted(maps.Keys(states)) {
			fmt.Fprintf(&head, " %d %c", states[s], s)
		}
		head.WriteString("\n")
		if len(blocked) > 0 {
			// What is known goes first, in case that more never comes.
			c.stillBlocked(ctx, &head, proc, blocked)
		}
		head.WriteString("\n    PID    PPID S COMMAND\n")
		head.Write(list.Bytes())
		text := head.Bytes()
		if len(text) > max {
			// The head is what counts here, not the end.
			text = text[:max]
		}
		b.add(file, text, 0)
		if len(text) < head.Len() {
			b.note(file, fmt.Errorf("the list is cut after %d bytes", max))
		}
		return ctx.Err()
	}}
}

// stillBlocked looks again at threads that were blocked and writes where in the kernel
// they are.
func (c *Collector) stillBlocked(ctx context.Context, out *bytes.Buffer, proc string, tasks []task) {
	wait := time.NewTimer(stillBlocked)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		fmt.Fprintf(out, "%d threads were blocked; there was no time to look at them again\n", len(tasks))
		return
	}
	stacks := 0
	for _, t := range tasks {
		dir := filepath.Join(proc, strconv.Itoa(t.pid), "task", strconv.Itoa(t.tid))
		again, ok := readTask(filepath.Join(dir, "stat"), t.pid)
		if !ok {
			dir = filepath.Join(proc, strconv.Itoa(t.pid))
			again, ok = readTask(filepath.Join(dir, "stat"), t.pid)
		}
		if !ok || again.state != 'D' || again.tid != t.tid || again.started != t.started {
			continue
		}
		where, _ := readEnd(ctx, filepath.Join(dir, "wchan"), 100)
		fmt.Fprintf(out, "blocked: process %d thread %d (%s) in state D for at least %v, in %s\n", t.pid, t.tid, t.name, stillBlocked, oneLine(where))
		if stacks++; stacks > maxStacks {
			continue
		}
		stack, err := readEnd(ctx, filepath.Join(dir, "stack"), 4096)
		if err != nil {
			fmt.Fprintf(out, "    no stack: %v\n", err)
		}
		for line := range bytes.Lines(stack) {
			fmt.Fprintf(out, "    %s\n", oneLine(line))
		}
	}
}

func oneLine(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, string(bytes.TrimSpace(b)))
}

// readTask reads a file stat: "12 (a name) S 1 ...", see proc(5).
func readTask(path string, pid int) (task, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return task{}, false
	}
	begin, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if begin < 1 || end < begin {
		return task{}, false
	}
	tid, err := strconv.Atoi(string(bytes.TrimSpace(data[:begin])))
	fields := bytes.Fields(data[end+1:])
	if err != nil || len(fields) < 20 || len(fields[0]) != 1 {
		return task{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	started, err2 := strconv.ParseUint(string(fields[19]), 10, 64)
	if err1 != nil || err2 != nil {
		return task{}, false
	}
	return task{pid: pid, tid: tid, parent: parent, name: oneLine(data[begin+1 : end]), state: fields[0][0], started: started}, true
}

// numbers lists the entries of a directory that are numbers, in order.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if v, e := strconv.Atoi(n); e == nil && v > 0 {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	if len(out) > 0 {
		err = nil
	}
	return out, err
}
