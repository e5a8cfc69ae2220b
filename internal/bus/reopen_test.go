package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

// TestStreamsThatAFullDiskBroke fills a file system of the test's own to the last byte, lets
// writes fail, and makes room again.
func TestStreamsThatAFullDiskBroke(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=64m")
	b := open(t, Options{
		Dir: filepath.Join(dir, "bus"), SampleBytes: 8 << 20, SampleAge: time.Hour,
		Agents: func(host fleet.HostID, token string) bool { return host == "h1" && token == "secret" },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	wg.Go(func() { b.WatchSpace(ctx) })

	type note struct{ Text string }
	var mu sync.Mutex
	said := map[string]string{}
	say := func(key, text string) { mu.Lock(); said[key] = text; mu.Unlock() }
	heard := func(key, text string) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if said[key] != text {
				return fmt.Errorf("%s is %.20q", key, said[key])
			}
			return nil
		}
	}
	notes, err := OpenTable[note](ctx, b, "NOTES", nil)
	if err != nil {
		t.Fatal(err)
	}
	quiet, err := OpenTable(ctx, b, "QUIET", func(key string, n note) { say("quiet "+key, n.Text) })
	if err != nil {
		t.Fatal(err)
	}
	leases, err := OpenLeases(ctx, b, "LEASES", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := leases.Acquire(ctx, "h1", "x1")
	if err != nil {
		t.Fatal(err)
	}
	audit := OpenAudit(b)
	if err := b.AdmitHost(ctx, "h1"); err != nil {
		t.Fatal(err)
	}
	a := agent(t, b, "h1", "secret")
	wg.Go(func() {
		b.Reports(ctx, func(_ context.Context, r fleet.Report) error { say("report", r.Detail); return nil })
	})
	wg.Go(func() {
		a.Commands(ctx, func(_ context.Context, c fleet.Command) error { say("command", c.ID); return nil })
	})
	wg.Go(func() {
		b.Samples(ctx, time.Now().Add(-time.Minute), func(s fleet.Sample) { say("sample", s.Boot) })
	})
	// round uses what must go on by itself afterwards.
	round := func(n string) {
		t.Helper()
		if err := a.PublishReport(ctx, fleet.Report{Host: "h1", Command: "c" + n, Seq: 1, Detail: n}); err != nil {
			t.Errorf("round %s: a report: %v", n, err)
		}
		eventually(t, "a report comes, round "+n, heard("report", n))
		s := sampleAt("h1", time.Now(), 1)
		s.Boot = n
		if err := agentPublish(ctx, a, s); err != nil {
			t.Errorf("round %s: a sample: %v", n, err)
		}
		eventually(t, "a sample comes, round "+n, heard("sample", n))
		if err := b.Send(ctx, fleet.Command{ID: n, Host: "h1"}); err != nil {
			t.Errorf("round %s: a command: %v", n, err)
		}
		eventually(t, "a command comes, round "+n, heard("command", n))
		if _, err := quiet.Put(ctx, "k", note{n}); err != nil {
			t.Errorf("round %s: a record: %v", n, err)
		}
		eventually(t, "a change is told, round "+n, heard("quiet k", n))
		if err := leases.Renew(ctx, lease, "x1"); err != nil {
			t.Errorf("round %s: %v", n, err)
		}
	}
	round("1")

	empty := smalldisk.Fill(t, dir, 100<<10)
	eventually(t, "the disk is full", func() error {
		if b.Full() == "" {
			return errors.New("it is not")
		}
		return nil
	})

	// Write until it fails.
	text := strings.Repeat("x", 8<<10)
	var kept []string
	for err = nil; err == nil; {
		key := fmt.Sprint("k", len(kept))
		if _, err = notes.Create(ctx, key, note{key + text}); err == nil {
			kept = append(kept, key)
		}
	}
	if !errors.Is(err, ErrUnwritable) || len(kept) == 0 {
		t.Errorf("after %d records: %v", len(kept), err)
	}
	records := 0
	for err = nil; err == nil; records++ {
		err = audit.Append(ctx, "ann", "approve", text, nil)
	}
	records--
	if !errors.Is(err, ErrUnwritable) {
		t.Errorf("after %d records of the trail: %v", records, err)
	}
	// What is refused now is refused at once, with the reason, the time and what to do.
	limited, done := context.WithCancel(ctx)
	done()
	if _, err := notes.Put(limited, "k", note{"x"}); !errors.Is(err, ErrUnwritable) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a record is refused with %v", err)
	}
	if err := audit.Append(limited, "ann", "approve", "x", nil); !errors.Is(err, ErrUnwritable) {
		t.Errorf("a record of the trail is refused with %v", err)
	}
	why := b.Unwritable()
	for _, part := range []string{"the table NOTES takes no writes since 20", "the stream AUDIT takes no writes since 20", "no space left on device", "make room on the disk of " + dir} {
		if !strings.Contains(why, part) {
			t.Errorf("it says %q, without %q", why, part)
		}
	}

	empty()
	eventually(t, "all can be written", func() error {
		if why := b.Unwritable(); why != "" {
			return errors.New(why)
		}
		return nil
	})
	round("2")
	if _, err := notes.Put(ctx, "after", note{"x"}); err != nil {
		t.Error(err)
	}
	if err := audit.Append(ctx, "ann", "approve", "after", nil); err != nil {
		t.Error(err)
	}

	// What was acknowledged is there, now and after a restart.
	check := func(b *Bus, notes *Table[note]) {
		t.Helper()
		for _, k := range kept {
			if n, _, err := notes.Load(t.Context(), k); err != nil || n.Text != k+text {
				t.Errorf("%s is %.20q, %v", k, n.Text, err)
			}
		}
		if n, _, err := notes.Load(t.Context(), "after"); err != nil || n.Text != "x" {
			t.Errorf("what came after is %.20q, %v", n.Text, err)
		}
		n, last := 0, ""
		if err := OpenAudit(b).Verify(t.Context(), func(_ uint64, r AuditRecord) { n++; last = r.Subject }); err != nil {
			t.Error(err)
		}
		// The record whose write failed may be there as well: nobody was told.
		if n != records+1 && n != records+2 || last != "after" {
			t.Errorf("%d records of the trail, of which %d were acknowledged; the last is about %.20q", n, records+1, last)
		}
	}
	check(b, notes)
	cancel()
	wg.Wait()
	b.Close()
	b = open(t, Options{Dir: filepath.Join(dir, "bus"), SampleBytes: 8 << 20, SampleAge: time.Hour})
	notes, err = OpenTable[note](t.Context(), b, "NOTES", nil)
	if err != nil {
		t.Fatal(err)
	}
	check(b, notes)
}

// TestOpeningAnewFails leaves a disk with room again but without an inode, so that JetStream
// cannot be started on it.
func TestOpeningAnewFails(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=64m,nr_inodes=2000")
	b := open(t, Options{Dir: filepath.Join(dir, "bus"), SampleBytes: 8 << 20, SampleAge: time.Hour})
	log := make(lines, 100)
	b.log = slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	said := make(chan string, 10)
	notes, err := OpenTable(ctx, b, "NOTES", func(_, text string) { said <- "note " + text })
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		err := b.Reports(ctx, func(_ context.Context, r fleet.Report) error { said <- "report " + r.Detail; return nil })
		if err != nil {
			said <- "reports end: " + err.Error()
		}
	})
	heard := func(want string) {
		t.Helper()
		var others []string // a report may come twice
		for late := time.After(time.Minute); ; {
			select {
			case got := <-said:
				if got == want {
					return
				}
				others = append(others, got)
			case <-late:
				t.Fatalf("%q did not come within a minute, but %q", want, others)
			}
		}
	}
	round := func(n int) {
		t.Helper()
		if err := b.PublishReport(ctx, fleet.Report{Host: "h1", Command: "c1", Seq: n, Detail: fmt.Sprint(n)}); err != nil {
			t.Errorf("report %d: %v", n, err)
		}
		heard(fmt.Sprint("report ", n))
		if _, err := notes.Put(ctx, "k", fmt.Sprint(n)); err != nil {
			t.Errorf("note %d: %v", n, err)
		}
		heard(fmt.Sprint("note ", n))
	}
	round(1)

	empty := smalldisk.Fill(t, dir, 0)
	if err := b.Conn.Publish(subjectAudit, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	eventually(t, "the stream is broken", func() error {
		if !b.takeStock(now) {
			return errors.New("it is not")
		}
		return nil
	})
	empty()
	inodes := filepath.Join(dir, "inodes")
	for err = os.Mkdir(inodes, 0o700); err == nil; {
		_, err = os.MkdirTemp(inodes, "")
	}

	b.lookAtStreams(now, true)
	b.lookAtStreams(now.Add(time.Second), true)
	why := b.Unwritable()
	for _, part := range []string{"the whole bus takes no writes since 20", "(opening it anew failed: storage directory is not writable)", "make room on the disk of " + dir} {
		if !strings.Contains(why, part) {
			t.Errorf("it says %q, without %q", why, part)
		}
	}
	if _, err := notes.Put(ctx, "k", "x"); !errors.Is(err, ErrUnwritable) {
		t.Errorf("a note is refused with %v", err)
	}
	if err := os.RemoveAll(inodes); err != nil {
		t.Fatal(err)
	}
	b.lookAtStreams(now.Add(reopenEvery), true)
	if why := b.Unwritable(); why != "" {
		t.Errorf("it says %q", why)
	}
	round(2)
	var logged []string
	for len(log) > 0 {
		logged = append(logged, <-log)
	}
	if all := strings.Join(logged, ""); !strings.Contains(all, `level=ERROR msg="the bus could not be opened anew: make room`) || !strings.Contains(all, "the bus takes writes again") {
		t.Errorf("the log is %s", all)
	}
}
