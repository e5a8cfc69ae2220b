package qmp

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// played is a guest whose QEMU, and whose /proc, are played.
type played struct {
	p       *Preserver
	answers map[string]string
	args    []string
	memory  string
	// root and net are what its process has for a root directory and a network.
	root, net string
	program   string
}

func newPlayed(t *testing.T) *played {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &played{program: "/bin/true", root: "/", net: "net:[1]", p: &Preserver{Sockets: dir, Dir: filepath.Join(dir, "plan"), Proc: filepath.Join(dir, "proc")}, memory: filepath.Join(dir, "ram")}
	if err := os.WriteFile(g.memory, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	g.args = []string{"qemu", "-machine", "pc-q35-7.2", "-qmp", "unix:" + dir + "/web.qmp,server=on,wait=off", "-object", "memory-backend-file,id=ram,share=on"}
	g.answers = map[string]string{
		"qmp_capabilities": `"return": {}`, "query-status": `"return": {"status": "running", "running": true}`, "query-name": `"return": {"name": "web"}`,
		"query-memory-size-summary":    `"return": {"base-memory": 4096}`,
		"query-machines":               `"return": [{"name": "pc-q35-7.2", "alias": "q35"}, {"name": "microvm"}]`,
		"qom-list":                     `"return": [{"name": "net0", "type": "child<virtio-net-pci>"}]`,
		"query-migrate":                `"return": {}`,
		"query-version":                `"return": {"qemu": {"major": 7, "minor": 2, "micro": 0}}`,
		"query-migrate-capabilities\"": `"return": [{"capability": "xbzrle", "state": false}, {"capability": "x-ignore-shared", "state": false}]`,
		"query-memdev":                 `"return": [{"id": "ram", "size": 4096, "share": true}]`,
		"qom-get":                      fmt.Sprintf(`"return": %q`, g.memory),
	}
	return g
}

func (g *played) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(g.p.Proc, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// check plays the guest to a preserver.
func (g *played) check(t *testing.T) (Plan, error) {
	t.Helper()
	pid := strconv.Itoa(os.Getpid())
	g.write(t, pid+"/cmdline", strings.Join(g.args, "\x00")+"\x00")
	g.write(t, pid+"/environ", "HOME=/\x00")
	g.write(t, pid+"/cgroup", "0::/machine.slice/web.scope\n")
	g.write(t, pid+"/stat", pid+" (qemu) S"+strings.Repeat(" 1", 18)+" 4711 0\n")
	g.write(t, "sys/kernel/random/boot_id", "boot1\n")
	g.write(t, pid+"/status", "Name:\tqemu\nUid:\t0\t64055\t0\t0\nGid:\t0\t103\t0\t0\nGroups:\t103 994 \n")
	g.write(t, pid+"/oom_score_adj", "-500\n")
	for name, to := range map[string]string{pid + "/cwd": "/", pid + "/exe": g.program + " (deleted)", pid + "/root": g.root,
		pid + "/ns/net": g.net, pid + "/ns/pid": "pid:[1]", pid + "/ns/user": "user:[1]", "self/ns/net": "net:[1]", "self/ns/pid": "pid:[1]", "self/ns/user": "user:[1]"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(g.p.Proc, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(g.p.Proc, name)); err != nil {
			t.Fatal(err)
		}
	}
	answers := map[string]string{}
	for command, answer := range g.answers {
		answers[strings.TrimSuffix(command, `"`)] = answer
	}
	serve(t, filepath.Join(g.p.Sockets, "web.qmp"), qemu(answers))
	return g.p.Check(t.Context())
}

func TestCheckChoosesTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*played)
		way    Way
		next   bool
	}{
		"QEMU 7.2":               {func(*played) {}, WayShared, true},
		"QEMU 8.1":               {func(g *played) { g.answers["query-version"] = `"return": {"qemu": {"major": 8, "minor": 1}}` }, WayShared, true},
		"QEMU 8.2":               {func(g *played) { g.answers["query-version"] = `"return": {"qemu": {"major": 8, "minor": 2}}` }, WayReboot, true},
		"QEMU 10.0":              {func(g *played) { g.answers["query-version"] = `"return": {"qemu": {"major": 10, "minor": 0}}` }, WayReboot, true},
		"private RAM":            {func(g *played) { g.answers["query-memdev"], g.p.FullSave = `"return": []`, true }, WayFull, true},
		"a reset of the kernel":  {func(g *played) { g.p.Reset, g.p.FullSave = true, true }, WayFull, true},
		"a tap device":           {func(g *played) { g.args = append(g.args, "-netdev", "tap,ifname=tap0") }, WayShared, false},
		"a monitor beside QMP":   {func(g *played) { g.args = append(g.args, "-monitor", "unix:/run/m,server=on") }, WayShared, false},
		"a console that listens": {func(g *played) { g.args = append(g.args, "-serial", "unix:/run/s,server=on,wait=off") }, WayShared, false},
		"VNC":                    {func(g *played) { g.args = append(g.args, "-vnc", ":1") }, WayShared, false},
		"a pid file":             {func(g *played) { g.args = append(g.args, "-pidfile", "/run/web.pid") }, WayShared, false},
		"a vhost device":         {func(g *played) { g.args = append(g.args, "-device", "vhost-vsock-pci,guest-cid=3") }, WayShared, false},
		"forwarded ports":        {func(g *played) { g.args = append(g.args, "-netdev", "user,id=n,hostfwd=tcp::22-:22") }, WayShared, false},
		"a user's network":       {func(g *played) { g.args = append(g.args, "-netdev", "user,id=n") }, WayShared, true},
		"a log that is emptied":  {func(g *played) { g.args = append(g.args, "-chardev", "file,id=l,path=/l") }, WayShared, false},
		"a log that grows":       {func(g *played) { g.args = append(g.args, "-chardev", "file,id=l,path=/l,append=on") }, WayShared, true},
		"how it came there":      {func(g *played) { g.args = append(g.args, "-daemonize", "-incoming", "defer", "--loadvm", "x") }, WayShared, true},
		"disks": {func(g *played) {
			g.args = append(g.args, "-drive", "file=/a.img,if=virtio", "-device", "virtio-rng-pci")
		}, WayShared, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newPlayed(t)
			c.change(g)
			plan, err := g.check(t)
			if err != nil || len(plan.Guests) != 1 {
				t.Fatalf("%+v, %v", plan, err)
			}
			one := plan.Guests[0]
			if one.Way != c.way || (one.Next != "") != c.next || one.Args[0] != "/bin/true" || one.Cgroup != "/machine.slice/web.scope" || one.Started != "4711" || !one.Running ||
				one.UID != 64055 || one.GID != 103 || !slices.Equal(one.Groups, []uint32{103, 994}) || one.OOMScore != -500 {
				t.Errorf("%+v", one)
			}
			if slices.Contains(one.Args, "-incoming") || slices.Contains(one.Args, "-daemonize") || slices.Contains(one.Args, "--loadvm") || slices.Contains(one.Args, "x") {
				t.Errorf("%q", one.Args)
			}
			if one.Way != WayFull && (len(one.Memory) != 1 || one.Memory[0].Bytes != 4096 || one.Memory[0].Inode == 0) {
				t.Errorf("%+v", one.Memory)
			}
		})
	}
}

func TestCheckBlocks(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*played)
		says   string
	}{
		"hardware": {func(g *played) { g.answers["qom-list"] = `"return": [{"name": "gpu0", "type": "child<vfio-pci>"}]` }, "gpu0 is hardware that is passed through"},
		"a vDPA device": {func(g *played) {
			g.answers["qom-list"] = `"return": [{"name": "net1", "type": "child<vhost-vdpa-device-pci>"}]`
		}, "net1"},
		"a USB device":       {func(g *played) { g.answers["qom-list"] = `"return": [{"name": "key", "type": "child<usb-host>"}]` }, "key"},
		"QEMU's own reasons": {func(g *played) { g.answers["query-migrate"] = `"return": {"blocked-reasons": ["virtfs is mounted"]}` }, "virtfs is mounted"},
		"an alias":           {func(g *played) { g.args[2] = "q35" }, "machine type is q35, without a version"},
		"an old style":       {func(g *played) { g.args[2] = "accel=kvm,type=microvm" }, "machine type is microvm"},
		"no machine":         {func(g *played) { g.args[1] = "-name" }, "machine type is the default"},
		"libvirt's files":    {func(g *played) { g.args = append(g.args, "-netdev", "tap,fd=27,id=n") }, "open files (tap,fd=27,id=n)"},
		"files added":        {func(g *played) { g.args = append(g.args, "-add-fd", "set=1,fd=5") }, "open files (-add-fd)"},
		"RAM that goes":      {func(g *played) { g.args[6] += ",discard-data=on" }, "discard-data"},
		"private RAM":        {func(g *played) { g.answers["query-memdev"] = `"return": [{"id": "ram", "size": 4096, "share": false}]` }, "not a shared file"},
		"no RAM file":        {func(g *played) { g.answers["query-memdev"] = `"return": []` }, "private to its process"},
		"RAM in tmpfs":       {func(g *played) { g.p.Reset = true }, "does not survive a reset of the kernel"},
		"no such capability": {func(g *played) { g.answers[`query-migrate-capabilities"`] = `"return": []` }, "this QEMU can only write its whole RAM"},
		"a guest on its way": {func(g *played) { g.answers["query-status"] = `"return": {"status": "inmigrate", "running": false}` }, "it is inmigrate"},
		"another network":    {func(g *played) { g.net = "net:[2]" }, "net namespace of its own"},
		"no program":         {func(g *played) { g.program = "/usr/bin/no-qemu" }, "no-qemu is gone"},
		"another root":       {func(g *played) { g.root = "/proc" }, "another file for its QEMU"},
		"a broken answer":    {func(g *played) { g.answers["qom-list"] = `"return": 7` }, "qom-list"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newPlayed(t)
			c.change(g)
			_, err := g.check(t)
			if err == nil || !strings.Contains(err.Error(), "VM web cannot be preserved: ") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A VM that nobody asked about would end with the kernel.
func TestCheckFindsStrangers(t *testing.T) {
	for _, reset := range []bool{false, true} {
		g := newPlayed(t)
		g.p.Reset, g.p.FullSave = reset, true
		for pid, exe := range map[string]string{"99901": "/usr/bin/qemu-system-aarch64 (deleted)", "99902": "/usr/bin/qemu-img", "99903": "/usr/bin/bash"} {
			g.write(t, pid+"/stat", pid+" (x) S 1")
			if err := os.Symlink(exe, filepath.Join(g.p.Proc, pid, "exe")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := g.check(t)
		if !reset && err != nil || reset && (err == nil || !strings.Contains(err.Error(), "99901 (qemu-system-aarch64)") || strings.Contains(err.Error(), "99902")) {
			t.Errorf("reset %v: %v", reset, err)
		}
	}
}

// planned is the plan of a guest that is out, with a state that is whole.
func planned(t *testing.T, reset bool) (*played, Plan) {
	t.Helper()
	g := newPlayed(t)
	plan, err := g.check(t)
	if err != nil {
		t.Fatal(err)
	}
	plan.Reset, plan.Guests[0].Next = reset, ""
	plan.Guests[0].Args[0] = "/bin/false" // what is started says so
	if err := g.p.writePlan(plan); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(g.p.statePath("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("the state of the devices")
	if err := seal(f); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(g.p.Sockets, "web.qmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(g.p.Proc, strconv.Itoa(os.Getpid()), "stat")); err != nil {
		t.Fatal(err)
	}
	return g, plan
}

func TestResumeTrustsNothing(t *testing.T) {
	const launched = "its new QEMU ended at once"
	for name, c := range map[string]struct {
		reset  bool
		change func(*testing.T, *played, Plan)
		says   string
	}{
		"all is there": {false, func(*testing.T, *played, Plan) {}, launched},
		"after the reset": {true, func(t *testing.T, g *played, plan Plan) {
			g.write(t, "sys/kernel/random/boot_id", "boot2\n")
			g.write(t, "cmdline", "quiet "+MarkPrefix+plan.ID+"\n")
		}, launched},
		"another boot": {true, func(t *testing.T, g *played, plan Plan) {
			g.write(t, "sys/kernel/random/boot_id", "boot2\n")
			g.write(t, "cmdline", "quiet "+MarkPrefix+plan.ID+"0\n")
		}, "came up by another way"},
		"a boot without a reset": {false, func(t *testing.T, g *played, plan Plan) {
			g.write(t, "sys/kernel/random/boot_id", "boot2\n")
			g.write(t, "cmdline", "quiet "+MarkPrefix+plan.ID+"\n")
		}, "came up by another way"},
		"other RAM": {false, func(t *testing.T, g *played, _ Plan) {
			if err := os.WriteFile(g.memory+".new", make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(g.memory+".new", g.memory); err != nil {
				t.Fatal(err)
			}
		}, "its RAM is not in "},
		"RAM of another size": {false, func(t *testing.T, g *played, _ Plan) {
			if err := os.Truncate(g.memory, 8192); err != nil {
				t.Fatal(err)
			}
		}, "its RAM is not in "},
		"no RAM": {false, func(t *testing.T, g *played, _ Plan) { os.Remove(g.memory) }, "its RAM is not in "},
		"no state": {false, func(t *testing.T, g *played, _ Plan) {
			os.Rename(g.p.statePath("web"), g.p.statePath("web")+".part")
		}, "its state was not complete"},
		"half a state": {false, func(t *testing.T, g *played, _ Plan) { os.Truncate(g.p.statePath("web"), 30) }, "it is damaged"},
		"a bit of the state": {false, func(t *testing.T, g *played, _ Plan) {
			b, _ := os.ReadFile(g.p.statePath("web"))
			b[3] ^= 1
			os.WriteFile(g.p.statePath("web"), b, 0o600)
		}, "it is damaged"},
		"a bit of the plan": {false, func(t *testing.T, g *played, _ Plan) {
			b, _ := os.ReadFile(g.p.planPath())
			b[30] ^= 1
			os.WriteFile(g.p.planPath(), b, 0o600)
		}, "cannot be followed"},
	} {
		t.Run(name, func(t *testing.T) {
			g, plan := planned(t, c.reset)
			c.change(t, g, plan)
			before := files(t, g.p.Dir)
			err := g.p.Resume(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v", err)
			}
			after := files(t, g.p.Dir)
			delete(after, "web.log")
			if !maps.Equal(before, after) {
				t.Errorf("not kept: %v, now %v", slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
			}
		})
	}
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func TestOnePlanAtATime(t *testing.T) {
	g, plan := planned(t, false)
	if err := g.p.Save(context.Background(), plan); err == nil || !strings.Contains(err.Error(), "agent resume") {
		t.Error(err)
	}
	if _, err := g.p.Move(context.Background(), plan); err == nil || !strings.Contains(err.Error(), "agent resume") {
		t.Error(err)
	}
	if err := g.p.Forget(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, g.p.Dir); len(left) != 0 {
		t.Error(left)
	}
	if err := g.p.Forget(); err != nil {
		t.Error(err)
	}
}

func TestGiveUp(t *testing.T) {
	g, _ := planned(t, false)
	if _, err := g.p.GiveUp(t.Context(), []string{"other"}); err == nil || !strings.Contains(err.Error(), "[web]") {
		t.Error(err)
	}
	kept, err := g.p.GiveUp(t.Context(), []string{"web"})
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(files(t, kept))); !slices.Equal(got, []string{"web.json", "web.state"}) {
		t.Errorf("kept %v", got)
	}
	if err := g.p.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if err := g.p.Forget(); err != nil {
		t.Error(err)
	}
}

func FuzzPlan(f *testing.F) {
	good, err := encodePlan(Plan{Version: 1, ID: "a", Guests: []Preserved{{Args: []string{"qemu"}, Way: WayShared}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}\n"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		plan, err := decodePlan(data)
		if err != nil {
			return
		}
		if plan.Version != planVersion {
			t.Errorf("version %d", plan.Version)
		}
		for _, g := range plan.Guests {
			if g.ID == "" || strings.Contains(g.ID, "/") || len(g.Args) == 0 {
				t.Errorf("%+v", g)
			}
		}
	})
}
