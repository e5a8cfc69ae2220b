package c

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

const (
	hostName = "rig-c"
	guests   = 2
	guestMiB = 32
)

// figures is what the rig comes to.
type figures struct {
	Rig    string `json:"rig"`
	Kexec  bool   `json:"kexec"`
	BootID bool   `json:"boot_id_changed"`
	Guests int    `json:"guests"`
	// GuestBoots counts the boots of all guests: one each.
	GuestBoots int `json:"guest_boots"`
	Lost       int `json:"lost"`
	Corrupt    int `json:"corrupt"`
	// CrashPoints is how often the agent was ended with kill -9 around the reset, and
	// Recovered how often all guests ran on after that.
	CrashPoints int `json:"crashpoints"`
	Recovered   int `json:"recovered"`
	// FrozenSeconds is for how long the guests did not run, as the agent reports it.
	FrozenSeconds float64 `json:"frozen_s"`
	// Seconds is the whole run.
	Seconds float64 `json:"seconds"`
}

// inbox takes what comes to a port of this machine from the host, each connection anew.
type inbox struct {
	net.Listener
	mu    sync.Mutex
	texts []*bytes.Buffer
}

func listen(t *testing.T) *inbox {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &inbox{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := &bytes.Buffer{}
			i.mu.Lock()
			i.texts = append(i.texts, b)
			i.mu.Unlock()
			go func() {
				defer c.Close()
				chunk := make([]byte, 4096)
				for {
					n, err := c.Read(chunk)
					i.mu.Lock()
					b.Write(chunk[:n])
					i.mu.Unlock()
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return i
}

func (i *inbox) port() int { return i.Addr().(*net.TCPAddr).Port }

// all returns what came by each connection.
func (i *inbox) all() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []string
	for _, b := range i.texts {
		out = append(out, b.String())
	}
	return out
}

// account reads the newest connection, which tells a guest's story from its begin.
func (i *inbox) account() rigtest.Account {
	all := i.all()
	if len(all) == 0 {
		return rigtest.Account{}
	}
	text := all[len(all)-1]
	text = text[:strings.LastIndexByte(text, '\n')+1]
	w := rigtest.NewWatch(strings.NewReader(text))
	w.End()
	return w.Account()
}

// crashes are the steps in which the agent is killed, in this order, each in the next
// execution that gets so far; the last one is that of the boot after the reset.
var crashes = []string{"load the kernel", "freeze and save the VMs", "reset the kernel", "resume the VMs"}

// killScript kills whatever of the agent runs once its journal has the intent of a step
// once more. What it has done outlives the reset of the kernel.
const killScript = `b=/bin/busybox
d=/var/lib/kills
$b mkdir -p $d
count() { $b grep -o "\"name\":\"$1\",\"attempt\":1,\"state\":\"running\"" /var/lib/tardigrade/journal/executions.journal 2>/dev/null | $b wc -l; }
note() { echo "$1" > $d/new; $b mv $d/new "$d/$2"; }
read boot < /proc/sys/kernel/random/boot_id
[ -e $d/boot ] || note $boot boot
read first < $d/boot
while [ $# -gt 0 ]; do
	step=$1
	shift
	[ -e "$d/$step" ] && continue
	while [ $# = 0 ] && [ $boot = $first ]; do
		note "$(count "$step")" base
		$b usleep 100000
	done
	[ -e $d/base ] || note 0 base
	read base < $d/base
	until [ "$(count "$step")" -gt "$base" ]; do $b usleep 20000; done
	$b killall -9 tardigrade
	[ $# -gt 0 ] && note "$(count "$1")" base
	note done "$step"
	echo "$step" | $b nc 10.0.2.2 PORT
done
`

func TestKexec(t *testing.T) {
	began := time.Now()
	program := rigtest.Build(t, root)
	dir := t.TempDir()
	p, config := serve(t, program, dir)
	credentials, err := exec.Command(program, "agent", "enroll", hostName, "--config", config).Output()
	if err != nil {
		t.Fatalf("enroll: %v", err)
	}
	boots, kills := listen(t), listen(t)
	agentConfig := fmt.Sprintf(`agent:
  host: %s
  bus: nats://10.0.2.2:%s
  credentials: /etc/tardigrade/credentials.json
  data: /var/lib/tardigrade
  act: true
  guests: {qmp_dir: /run/guests}
  reset: {enabled: true, mode: kexec, vm_timeout: 2m}
`, hostName, p.Bus[strings.LastIndexByte(p.Bus, ':')+1:])
	local := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(local, []byte(agentConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	unit, err := exec.Command(program, "agent", "unit", "--config", local).Output()
	if err != nil {
		t.Fatalf("agent unit: %v", err)
	}
	files := map[string]string{
		"etc/machine-id":                  strings.Repeat("c", 32) + "\n",
		"etc/tardigrade/credentials.json": string(credentials), "etc/tardigrade/agent.yaml": agentConfig,
		// The unit as it is shipped, with the host's own paths.
		"etc/systemd/system/tardigrade-resume.service": strings.NewReplacer(program, "/usr/bin/tardigrade", local, "/etc/tardigrade/agent.yaml").Replace(string(unit)) + "\n[Service]\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\n",
		"etc/systemd/system/tardigrade-agent.service":  "[Service]\nExecStart=/usr/bin/tardigrade agent --config /etc/tardigrade/agent.yaml\nRestart=always\nRestartSec=100ms\nStandardError=tty\nTTYPath=/dev/ttyS0\nTimeoutStopSec=20s\n",
		"etc/systemd/system/guests.service":            "[Unit]\nConditionPathExists=!/pmem/started\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh /etc/guests.sh\nStandardError=tty\nTTYPath=/dev/ttyS0\nKillMode=process\n",
		"etc/systemd/system/kill.service":              "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh /etc/kill.sh '" + strings.Join(crashes, "' '") + "'\n",
		"etc/kill.sh":                                  strings.ReplaceAll(killScript, "PORT", fmt.Sprint(kills.port())),
		"etc/systemd/system/watch.service":             "[Service]\nExecStart=/bin/sh /etc/watch.sh\n",
	}
	wants := []string{"tardigrade-agent.service", "guests.service", "watch.service", "kill.service"}
	files["etc/systemd/system/default.target"] = "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=" + strings.Join(wants, " ") + "\n"
	files["etc/systemd/system/basic.target.d/resume.conf"] = "[Unit]\nWants=tardigrade-resume.service\n" // systemctl enable
	sector, err := rigtest.BootSector(guestMiB)
	if err != nil {
		t.Fatal(err)
	}
	files["etc/boot.img"] = string(sector)
	start, watch := "mkdir -p /run/guests\n", fmt.Sprintf("cat /proc/sys/kernel/random/boot_id | nc 10.0.2.2 %d\n", boots.port())
	var stories []*inbox
	for i := range guests {
		in := listen(t)
		stories = append(stories, in)
		start += fmt.Sprintf(`: > /pmem/vm%[1]d.log
systemd-run --quiet --scope --slice=machine.slice --unit=vm%[1]d qemu-system-x86_64 -name vm%[1]d -accel tcg -cpu qemu64 -machine pc-i440fx-7.2,memory-backend=ram -m %[2]d \
	-object memory-backend-file,id=ram,size=%[2]dM,mem-path=/pmem/vm%[1]d.ram,share=on -display none -nodefaults -monitor none \
	-drive file=/etc/boot.img,format=raw,if=floppy,readonly=on -chardev file,id=serial,path=/pmem/vm%[1]d.log,append=on -serial chardev:serial \
	-qmp unix:/run/guests/vm%[1]d.qmp,server=on,wait=off </dev/null &
`, i, guestMiB)
		watch += fmt.Sprintf("until [ -e /pmem/vm%[1]d.log ]; do sleep 1; done\n(tail -n +1 -f /pmem/vm%[1]d.log | nc 10.0.2.2 %[2]d) &\n", i, in.port())
	}
	tools := "for c in mkdir cat nc sleep tail; do alias $c=\"/bin/busybox $c\"; done\n"
	files["etc/guests.sh"] = tools + start + ": > /pmem/started\n"
	files["etc/watch.sh"] = tools + watch + "wait\n"
	image := filepath.Join(dir, "root.img")
	hostImage(t, image, program, files)
	t.Logf("the host's disk was ready after %v", time.Since(began).Round(time.Millisecond))

	said, ended := bootHost(t, dir, image)
	t.Cleanup(func() {
		if t.Failed() {
			text := said.String()
			t.Logf("the host said:\n%s", text[max(0, len(text)-12000):])
		}
	})
	await := func(what string, limit time.Duration, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(limit); !ok(); time.Sleep(200 * time.Millisecond) {
			select {
			case <-ended:
				t.Fatalf("the host ended before: %s", what)
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("not within %v: %s", limit, what)
			}
		}
		t.Logf("%6.1f s: %s", time.Since(began).Seconds(), what)
	}
	await("the guests tick", 8*time.Minute, func() bool {
		return !slices.ContainsFunc(stories, func(i *inbox) bool { return i.account().Ticks < 20 })
	})
	await("the host is known, with its guests, and can be reset", 5*time.Minute, func() bool {
		var h fleet.Host
		return p.Read("/api/v1/hosts/"+hostName, &h) && slices.Contains(h.Actions, fleet.ActionPreservingReset) && len(h.VMs) == guests &&
			!slices.ContainsFunc(h.VMs, func(v fleet.VM) bool { return v.State != "running" })
	})
	var before []uint32
	for _, i := range stories {
		before = append(before, i.account().Ticks)
	}
	var e fleet.Execution
	f := figures{Rig: "c", Guests: guests}
	freezes := 0
	for tries := 1; ; tries++ {
		code, text := p.Ask("POST", "/api/v1/executions", fmt.Sprintf(`{"host": %q, "action": "preserving-reset", "reason": "rig C"}`, hostName), nil)
		if code != http.StatusAccepted || json.Unmarshal([]byte(text), &e) != nil {
			t.Fatalf("ask for the reset: %d %s", code, text)
		}
		await("the execution is over", 12*time.Minute, func() bool {
			return p.Read("/api/v1/executions/"+e.ID, &e) && e.State.Final()
		})
		t.Logf("try %d: %s: %s", tries, e.State, e.Outcome)
		for _, s := range e.Steps {
			if s.Name == "freeze and save the VMs" {
				freezes++
			}
		}
		// One in which the agent was killed before the reset has ended with the VMs as they
		// were; a host that is too slow to begin in time has done nothing.
		if e.State == fleet.ExecutionSucceeded || e.State == fleet.ExecutionDegraded || tries == 8 {
			break
		}
		var now []uint32
		for _, i := range stories {
			now = append(now, i.account().Ticks)
		}
		await("the guests tick on", 5*time.Minute, func() bool {
			for n, i := range stories {
				if i.account().Ticks < now[n]+20 {
					return false
				}
			}
			return true
		})
	}
	for _, s := range e.Steps {
		t.Logf("%s: %s %s (%v)", s.Name, s.State, s.Detail, s.Ended.Sub(s.Started).Round(time.Millisecond))
	}
	if e.State != fleet.ExecutionSucceeded {
		t.Fatalf("%s: %s", e.State, e.Outcome)
	}
	await("the guests tick on", 5*time.Minute, func() bool {
		for n, i := range stories {
			if len(i.all()) < 2 || i.account().Ticks < before[n]+100 {
				return false
			}
		}
		return true
	})
	// The guests ran on after each: that was awaited.
	f.CrashPoints = len(kills.all())
	f.Recovered = f.CrashPoints
	if f.CrashPoints != len(crashes) {
		t.Errorf("the agent was killed at %q, not at %q", kills.all(), crashes)
	}
	ids := boots.all()
	f.BootID = len(ids) == 2 && len(ids[0]) > 30 && len(ids[1]) > 30 && ids[0] != ids[1]
	for n, i := range stories {
		a := i.account()
		f.GuestBoots += a.Boots
		f.Corrupt += int(a.Corrupt)
		// The line that is being printed when a guest is stopped may get lost.
		if a.Boots != 1 || a.Jumps > freezes || a.Garbled > freezes || a.Ticks < before[n] {
			t.Errorf("guest %d: %+v", n, a)
			f.Lost++
		}
	}
	for _, g := range e.GuestsAfter {
		f.FrozenSeconds = max(f.FrozenSeconds, g.MaxGapSeconds)
	}
	f.Kexec = slices.ContainsFunc(e.Steps, func(s fleet.Step) bool { return s.Name == "reset the kernel" && s.State == fleet.StepSucceeded })
	if !f.BootID || !f.Kexec || f.Corrupt != 0 {
		t.Errorf("%+v, boots %q", f, ids)
	}
	f.Seconds = time.Since(began).Round(100 * time.Millisecond).Seconds()
	line, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(line))
}

// serve starts a control plane.
func serve(t *testing.T, program, dir string) (plane *rigtest.Plane, config string) {
	t.Helper()
	config = filepath.Join(dir, "serve.yaml")
	text := fmt.Sprintf("data: %s\napi: {listen: \"127.0.0.1:0\"}\nbus: {listen: \"127.0.0.1:0\"}\nagent: {disabled: true}\npolicy: {cooldown: 0s, min_healthy_ratio: 0, deadlines: {begin: 2m}}\n", filepath.Join(dir, "serve"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return rigtest.Serve(t, nil, program, "serve", "--config", config), config
}
