package diagnose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// fixture fills the root of a host.
func fixture(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(-10*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
}

func stat(tid int, name string, state byte) string {
	return fmt.Sprintf("%d (%s) %c 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %d 0 0\n", tid, name, state, 1000+tid)
}

// illHost is a host with something in every place that is looked at.
func illHost() map[string]string {
	return map[string]string{
		"dev/kmsg":             "6,1,100,-;Linux version 6.12.0\n SUBSYSTEM=none\n4,2,999000000,-;I/O error, dev sda, sector 7 op 0x0:(READ)\n30,3,999500000,-;systemd[1]: Started x.\nnonsense\n",
		"proc/uptime":          "1000.00 900.00\n",
		"proc/meminfo":         "MemTotal: 1 kB\n",
		"proc/loadavg":         "9.0 9.0 9.0 1/2 3\n",
		"proc/pressure/io":     "some avg10=99.00\n",
		"proc/net/tcp":         "  sl  local_address\n",
		"proc/net/unix":        "Num       RefCount\n",
		"proc/12/stat":         stat(12, "qemu (vm) 1", 'S'),
		"proc/12/task/12/stat": stat(12, "qemu (vm) 1", 'S'),
		"proc/12/task/13/stat": stat(13, "CPU 0/KVM", 'D'), "proc/12/task/13/wchan": "io_schedule", "proc/12/task/13/stack": "[<0>] io_schedule+0x46/0x70\n[<0>] ext4_file_read_iter+0x1/0x2\n",
		"proc/7/stat":               stat(7, "bash", 'R'),
		"proc/self/stat":            "x",
		"proc/8/stat":               "garbage",
		"sys/fs/pstore/dmesg-efi-1": "Panic#1 Part1\n<0>[  1.0] Kernel panic - not syncing: Fatal exception\npassword=hunter2\n",
		"var/lib/systemd/pstore/1700000000/dmesg.txt":    "<6>[ 1.0] older\n",
		"var/lib/systemd/coredump/core.nova.0.1.2.3.zst": strings.Repeat("x", 1234),
		"var/log/libvirt/qemu/vm1.log":                   "2026-11-23 17:20:00.000+0000: starting up\nqemu: kvm run failed Bad address\n",
		"var/log/libvirt/qemu/vm1.log.0":                 "rotated\n",
		"var/log/libvirt/libvirtd.log":                   "2026-11-23 17:20:00.000+0000: 1: info : hello\n",
	}
}

func TestTheWholeHostIsCollected(t *testing.T) {
	cfg, _ := config(t)
	fixture(t, cfg.Root, illHost())
	if err := syscall.Mkfifo(filepath.Join(cfg.Root, "var/log/libvirt/qemu/pipe.log"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(cfg.Root, "var/log/libvirt/qemu/link.log")); err != nil {
		t.Fatal(err)
	}
	var calls []string
	answers := programs{
		"systemctl show":                 failedUnit("exit-code"),
		"systemctl list-units":           "nova.service loaded failed failed Nova\n",
		"journalctl --unit=nova.service": stamp + "nova[7]: bye\n",
		"journalctl --since":             stamp + "nova[7]: bye\n",
		"df -P -T":                       "Filesystem Type 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 ext4 1 1 0 50% /\n",
		"df -P -i":                       "Filesystem Inodes IUsed IFree IUse% Mounted on\n",
	}
	lines := make(chan string, 100)
	cfg.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
		lines <- strings.Join(append([]string{name}, args...), " ")
		return answers.run(ctx, name, args...)
	}
	cfg.Healthy = func(context.Context) map[string]bool { return map[string]bool{"nova.service": false, "other": false} }
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	archive, summary, err := c.Collect(t.Context(), command("nova.service"))
	if err != nil {
		t.Fatal(err)
	}
	close(lines)
	for l := range lines {
		calls = append(calls, l)
	}
	m, files, order := unpack(t, archive)
	want := []string{
		"manifest.json", "units/nova.service/properties", "units/nova.service/journal.log", "journal.log", "kernel.log", "pstore/dmesg-efi-1",
		"pstore/kept/1700000000_dmesg.txt", "processes.txt", "failed-units.txt", "filesystems.txt", "inodes.txt", "coredumps.txt", "proc/meminfo", "proc/loadavg", "proc/uptime",
		"proc/pressure/io", "sockets/tcp", "sockets/unix", "libvirt/libvirtd.log", "libvirt/qemu/vm1.log", "root-cause.json", "root-cause.md",
	}
	if !slices.Equal(order, want) {
		t.Errorf("the archive has\n%v\nwant\n%v", order, want)
	}
	for _, f := range m.Files {
		if f.Error != "" || f.Truncated {
			t.Errorf("%+v", f)
		}
	}
	for name, text := range map[string]string{
		"kernel.log": "2026-11-23T17:13:20.000100+0000 kvm01 kernel: <6> Linux version 6.12.0\n" +
			"2026-11-23T17:29:59.000000+0000 kvm01 kernel: <4> I/O error, dev sda, sector 7 op 0x0:(READ)\n2026-11-23T17:29:59.500000+0000 kvm01 systemd[1]: Started x.\n",
		"pstore/dmesg-efi-1": "Panic#1 Part1\n<0>[  1.0] Kernel panic - not syncing: Fatal exception\npassword=[redacted]\n",
		"coredumps.txt":      "2026-11-23T17:20:00Z 1234 bytes core.nova.0.1.2.3.zst\n",
		"processes.txt": "2 processes, 3 threads: 1 D 1 R 1 S\n" +
			"blocked: process 12 thread 13 (CPU 0/KVM) in state D for at least 1s, in io_schedule\n    [<0>] io_schedule+0x46/0x70\n    [<0>] ext4_file_read_iter+0x1/0x2\n" +
			"\n    PID    PPID S COMMAND\n      7       1 R bash\n     12       1 S qemu (vm) 1\n",
	} {
		if files[name] != text {
			t.Errorf("%s:\n%s\nwant:\n%s", name, files[name], text)
		}
	}
	for _, w := range []string{
		"systemctl show --no-pager -- nova.service",
		"journalctl --unit=nova.service --since=@1795453200 --lines=2000 --output=short-iso-precise --no-pager --quiet",
		"journalctl --since=@1795366800 --until=@1795453200 --lines=20000 --output=short-iso-precise --no-pager --quiet",
	} {
		if !slices.Contains(calls, w) {
			t.Errorf("%q was not run, but %q", w, calls)
		}
	}
	var r RootCause
	if err := json.Unmarshal([]byte(files["root-cause.json"]), &r); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.Suspects {
		names = append(names, s.Rule)
		for _, e := range s.Evidence {
			all := strings.Split(files[e.File], "\n")
			if e.Line < 1 || e.Line > len(all) || all[e.Line-1] != e.Text {
				t.Errorf("%s: %s:%d is not %q", s.Rule, e.File, e.Line, e.Text)
			}
		}
	}
	if !slices.Equal(names, []string{"kernel-panic", "disk-io", "guest-crash", "blocked", "unit-failed"}) {
		t.Errorf("suspects: %v", names)
	}
	if !strings.Contains(summary, "nova.service is failed") || !strings.Contains(summary, "Most likely cause: the kernel panicked (kernel-fault, 1 lines, first at 17:20:00Z)") || !strings.Contains(summary, "Also: a disk reports I/O errors.") {
		t.Errorf("summary: %s", summary)
	}
	if md := files["root-cause.md"]; !strings.Contains(md, "1. **the kernel panicked** (kernel-fault") || !strings.Contains(md, "pstore/dmesg-efi-1:2: <0>[  1.0] Kernel panic") {
		t.Errorf("root-cause.md:\n%s", md)
	}
}

func TestAProcessThatIsBlockedForAMomentIsNoSign(t *testing.T) {
	cfg, _ := config(t)
	fixture(t, cfg.Root, map[string]string{"proc/12/stat": stat(12, "jbd2", 'D')})
	synctest.Test(t, func(t *testing.T) {
		go func() {
			time.Sleep(stillBlocked / 2)
			if err := os.WriteFile(filepath.Join(cfg.Root, "proc/12/stat"), []byte(stat(12, "jbd2", 'S')), 0o600); err != nil {
				t.Error(err)
			}
		}()
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		archive, _, err := c.Collect(t.Context(), command())
		if err != nil {
			t.Fatal(err)
		}
		if _, files, _ := unpack(t, archive); strings.Contains(files["processes.txt"], "blocked:") || !strings.Contains(files["processes.txt"], "1 D") {
			t.Errorf("%s", files["processes.txt"])
		}
	})
}

func TestSourcesThatHangOrFailDoNotKeepTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := config(t)
		fixture(t, cfg.Root, illHost())
		release := make(chan struct{})
		cfg.SourceLimit = 5 * time.Second
		cfg.Healthy = func(context.Context) map[string]bool { <-release; return nil }
		cfg.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
			switch line := name + " " + strings.Join(args, " "); {
			case strings.Contains(line, "show"): // hangs and does not heed its context, as a process in state D
				<-release
				return []byte(activeUnit), nil
			case strings.Contains(line, "--unit"): // gives something, then hangs until it is told to stop
				<-ctx.Done()
				return []byte(stamp + "nova[7]: the last words\n"), ctx.Err()
			case name == "df":
				panic("a bug")
			case strings.HasPrefix(line, "journalctl --since"):
				return []byte(stamp + "kernel: Out of memory: Killed process 7 (java)\n"), nil
			}
			return nil, errors.New("exit status 1: Failed to connect to bus")
		}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		archive, summary, err := c.Collect(t.Context(), command("nova.service", "ovs.service"))
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 3*cfg.SourceLimit {
			t.Errorf("it took %v", took)
		}
		m, files, _ := unpack(t, archive)
		for name, want := range map[string]string{
			"units/nova.service/properties": "it hangs", "units/nova.service/journal.log": "deadline exceeded", "units/ovs.service/properties": "it hangs",
			"filesystems.txt": "panicked: a bug", "failed-units.txt": "Failed to connect to bus",
		} {
			if f := m.file(t, name); !strings.Contains(f.Error, want) {
				t.Errorf("%s: %q, want %q", name, f.Error, want)
			}
		}
		if got := files["units/nova.service/journal.log"]; !strings.Contains(got, "the last words") {
			t.Errorf("what a source gave before it hung is lost: %q", got)
		}
		if !strings.Contains(summary, "the kernel panicked") || files["journal.log"] == "" {
			t.Errorf("summary: %s", summary)
		}
		close(release)
		synctest.Wait()
	})
}

func TestTheWholeHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := config(t)
		release := make(chan struct{})
		cfg.Run = func(context.Context, string, ...string) ([]byte, error) { <-release; return nil, nil }
		var units []string
		for i := range 50 {
			units = append(units, fmt.Sprintf("u%d.service", i))
		}
		cfg.Units = units
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for name, limit := range map[string]struct{ deadline, want time.Duration }{
			"its own":             {time.Hour, time.Minute},
			"that of the command": {30 * time.Second, 20 * time.Second},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), limit.deadline)
			begin := time.Now()
			archive, _, err := c.Collect(ctx, command())
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took < limit.want || took > limit.want+time.Second {
				t.Errorf("%s: it took %v", name, took)
			}
			m, _, _ := unpack(t, archive)
			if f := m.file(t, "units/u49.service/journal.log"); !strings.Contains(f.Error, "not begun") {
				t.Errorf("%s: %+v", name, f)
			}
			cancel()
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, _, err := c.Collect(ctx, command()); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		close(release)
		synctest.Wait()
	})
}

func TestWhatIsTooLargeIsCutToItsEnd(t *testing.T) {
	cfg, _ := config(t)
	cfg.MaxBytes, cfg.MaxSourceBytes = 1<<20, 100_000
	fixture(t, cfg.Root, illHost())
	huge := filepath.Join(cfg.Root, "var/log/libvirt/qemu/vm1.log")
	f, err := os.Create(huge)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("\nqemu: the last line\n"), 1<<30); err != nil {
		t.Fatal(err)
	}
	line := stamp + "nova[7]: " + strings.Repeat("x", 80) + "\n"
	flood := strings.Repeat(line, 50_000) + stamp + "nova[7]: the last line\n"
	cfg.Run = programs{"journalctl": flood, "systemctl": strings.Repeat("a=b\n", 1<<20), "df": flood}.run
	var units []string
	for i := range 40 {
		units = append(units, fmt.Sprintf("u%d.service", i))
	}
	m, files, _ := collect(t, cfg, command(units...))
	total := 0
	for _, f := range m.Files {
		total += f.Size
	}
	if total > cfg.MaxBytes+512<<10 {
		t.Errorf("the archive has %d bytes", total)
	}
	for _, name := range []string{"libvirt/qemu/vm1.log", "journal.log", "units/u7.service/journal.log"} {
		f, text := m.file(t, name), files[name]
		if !f.Truncated || f.Size == 0 || f.Size > cfg.MaxSourceBytes || !strings.HasSuffix(text, "the last line\n") {
			t.Errorf("%+v: %q", f, text[max(0, len(text)-40):])
		}
	}
	if first, _, _ := strings.Cut(files["journal.log"], "\n"); first+"\n" != line {
		t.Errorf("the first line was cut: %q", first)
	}
}

func TestProgramsAreBounded(t *testing.T) {
	run := program(1000)
	out, err := run(t.Context(), "sh", "-c", "head -c 1000000000 /dev/zero; echo; echo the end")
	if err != nil || len(out) != 1000 || !strings.HasSuffix(string(out), "\x00\nthe end\n") {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	if out, err := run(t.Context(), "sh", "-c", "echo some; echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: why") || string(out) != "some\n" {
		t.Errorf("%q, %v", out, err)
	}
	// What it wrote may be there only a moment after its end.
	if out, err := run(t.Context(), "sh", "-c", "echo some; (sleep 0.1; echo more) & exit 0"); err != nil || string(out) != "some\nmore\n" {
		t.Errorf("%q, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	// The child keeps the pipe open after its parent was killed.
	if _, err := run(ctx, "sh", "-c", "echo some; sleep 60 & wait"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("a program was waited for %v longer than its time limit", took)
	}
	if _, err := run(t.Context(), "/there/is/no/such"); err == nil {
		t.Error("a program that does not exist was run")
	}
}

func TestBundleName(t *testing.T) {
	for id, want := range map[string]string{
		"01JX": "01JX-2.tar.zst", "../../x": "------x-2.tar.zst", "": "diagnosis-2.tar.zst", "a b/ü": "a-b---2.tar.zst", strings.Repeat("a", 1000): strings.Repeat("a", 128) + "-2.tar.zst",
	} {
		if got := BundleName(fleet.Command{Execution: id, Attempt: 2}); got != want {
			t.Errorf("%q: %s, want %s", id, got, want)
		}
	}
}

func TestTheKernelsLogComesFromElsewhereWhereItCannotBeRead(t *testing.T) {
	for name, answers := range map[string]programs{
		"journal": {"journalctl --dmesg": stamp + "kernel: Kernel panic - not syncing: x\n"},
		"dmesg":   {"dmesg": "2026-11-23T17:29:30,000000+00:00 Kernel panic - not syncing: x\n"},
	} {
		cfg, _ := config(t)
		cfg.Run = answers.run
		m, files, summary := collect(t, cfg, command())
		if f := m.file(t, "kernel.log"); f.Error != "" || !strings.Contains(files["kernel.log"], "Kernel panic") || !strings.Contains(summary, "first at 17:29:30Z") {
			t.Errorf("%s: %+v; %s", name, f, summary)
		}
	}
	cfg, _ := config(t)
	m, _, _ := collect(t, cfg, command())
	if f := m.file(t, "kernel.log"); !strings.Contains(f.Error, "kmsg") || !strings.Contains(f.Error, "dmesg") {
		t.Errorf("%+v", f)
	}
}

func TestTheServiceThatAFailingOneNeedsIsLookedAt(t *testing.T) {
	cfg, _ := config(t)
	bind := at(-2*time.Minute) + "ovs[9]: bind: Address already in use\n"
	failed := at(-2*time.Minute) + "systemd[1]: ovs.service: Failed with result 'exit-code'.\n"
	depends := at(-time.Minute) + "systemd[1]: Dependency failed for nova.service - Nova.\n"
	cfg.Run = programs{
		"systemctl show --no-pager -- nova.service": "LoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\nRequires=sysinit.target ovs.service\n",
		"systemctl show --no-pager -- ovs.service":  failedUnit("exit-code"),
		"systemctl list-units":                      "ovs.service   loaded failed failed Open vSwitch\nother.service loaded failed failed Other\n--evil loaded failed failed x\n",
		"journalctl --unit=nova.service":            depends,
		"journalctl --unit=ovs.service":             bind + failed,
		"journalctl --since":                        at(-3*time.Minute) + "systemd[1]: other.service: Main process exited, code=dumped, status=11/SEGV\n" + bind + failed + depends,
	}.run
	m, files, summary := collect(t, cfg, command("nova.service"))
	if !slices.Equal(m.Units, []string{"nova.service", "ovs.service"}) || files["units/ovs.service/journal.log"] == "" || files["units/other.service/properties"] != "" {
		t.Errorf("%v", m.Units)
	}
	for _, want := range []string{"nova.service is inactive/dead; ovs.service is failed", "Most likely cause: a service cannot have its address"} {
		if !strings.Contains(summary, want) {
			t.Errorf("%q is not in the summary: %s", want, summary)
		}
	}
}
