package rigtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
)

// The account of the management controllers of tests.
const (
	BMCUser     = "operator"
	BMCPassword = "not-a-secret"
)

// BMC is a management controller (OpenIPMI's simulator) whose host has power, and
// which writes into Log, one word a line, when that is switched "on" and "off".
type BMC struct {
	// Address is where it listens on the loopback device.
	Address string
	Log     string

	t *testing.T
}

// StartBMC starts a management controller, in a network namespace unless that is "".
// It ends with the test.
func StartBMC(t *testing.T, namespace string) *BMC {
	t.Helper()
	dir, err := os.MkdirTemp("", "bmc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	port := "9623"
	if namespace == "" {
		r, err := loopback.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Release)
		port = r.Port
	}
	b := &BMC{Address: "127.0.0.1:" + port, Log: filepath.Join(dir, "power"), t: t}
	// What the simulator asks for the power, and tells to switch it: SCRIPT MC get power,
	// or SCRIPT MC set power 0 or 1.
	switcher := fmt.Sprintf(`#!/bin/sh
case "$2 $3 $4" in
"get power ") case $(tail -n 1 %[1]s) in on) echo power:1 ;; *) echo power:0 ;; esac ;;
"set power 0") echo off >> %[1]s ;;
"set power 1") echo on >> %[1]s ;;
esac
`, b.Log)
	lan := fmt.Sprintf(`name "rig"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %s
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "%s 0x20"
  user 1 false "" "x" user 10
  user 2 true "%s" "%s" admin 10
`, port, filepath.Join(dir, "switch"), BMCUser, BMCPassword)
	emu := "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"
	for name, text := range map[string]string{"switch": switcher, "power": "on\n", "lan.conf": lan, "rig.emu": emu} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	argv := []string{"ipmi_sim", "-n", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "rig.emu"), "-s", dir}
	if namespace != "" {
		argv = append([]string{"ip", "netns", "exec", namespace}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	number, _ := strconv.Atoi(port)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		sockets, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/udp", cmd.Process.Pid))
		if strings.Contains(string(sockets), fmt.Sprintf("0100007F:%04X ", number)) {
			return b
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(out.Name())
			t.Fatalf("ipmi_sim does not listen within a minute: is openipmi installed? It says: %s", said)
		}
	}
}

// Words are what it wrote so far.
func (b *BMC) Words() []string {
	text, err := os.ReadFile(b.Log)
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	return strings.Fields(string(text))
}

// Await waits until the last words are these.
func (b *BMC) Await(words string, limit time.Duration) {
	b.t.Helper()
	want := strings.Fields(words)
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		got := b.Words()
		if len(got) >= len(want) && strings.Join(got[len(got)-len(want):], " ") == strings.Join(want, " ") {
			return
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(filepath.Join(filepath.Dir(b.Log), "output"))
			b.t.Fatalf("the power was switched %q, not %q at last, within %v; ipmi_sim says: %s", got, words, limit, said)
		}
	}
}
