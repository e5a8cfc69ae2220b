// Package kexec resets the kernel of this host without its firmware, so that memory
// that the new kernel does not take stays as it is. It uses kexec-tools, and lets
// systemd end the services first where systemd runs the host.
package kexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel is what the host is reset into. It is safe for concurrent use.
type Kernel struct {
	// Image, Initrd and Append are the kernel, its initial RAM disk and its command line;
	// "" means those of the running kernel, as they lie in /boot and as its own command
	// line is.
	Image, Initrd, Append string
	// MarkPrefix precedes the mark on the command line, and what an earlier reset left
	// there with it is removed.
	MarkPrefix string
	// Root is where /proc, /sys, /boot and /run are found; "" means /.
	Root string
	// Command runs a program and returns what it said; nil runs it on this host.
	Command func(ctx context.Context, name string, args ...string) (said string, err error)
}

func (k *Kernel) path(p string) string { return filepath.Join("/", k.Root, p) }

func (k *Kernel) run(ctx context.Context, name string, args ...string) (string, error) {
	if k.Command != nil {
		return k.Command(ctx, name, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	text := strings.TrimSpace(said.String())
	if err != nil {
		return text, fmt.Errorf("%s %s: %w: %.500s", name, strings.Join(args, " "), err, text)
	}
	return text, nil
}

// files are the kernel and the initial RAM disk.
func (k *Kernel) files() (image, initrd string, err error) {
	image, initrd = k.Image, k.Initrd
	if image == "" || initrd == "" {
		release, err := os.ReadFile(k.path("/proc/sys/kernel/osrelease"))
		if err != nil {
			return "", "", fmt.Errorf("find out which kernel runs: %w", err)
		}
		if image == "" {
			image = k.path("/boot/vmlinuz-" + strings.TrimSpace(string(release)))
		}
		if initrd == "" {
			initrd = k.path("/boot/initrd.img-" + strings.TrimSpace(string(release)))
		}
	}
	var missing []error
	for _, f := range [][2]string{{"kernel", image}, {"initrd", initrd}} {
		if _, err := os.Stat(f[1]); err != nil {
			missing = append(missing, fmt.Errorf("what the host would be reset into is missing: %w: set agent.reset.%s", err, f[0]))
		}
	}
	return image, initrd, errors.Join(missing...)
}

// Missing says what this host lacks for a reset, nothing if all is there.
func (k *Kernel) Missing() []string {
	var out []string
	if _, err := exec.LookPath("kexec"); err != nil {
		out = append(out, "the program kexec (package kexec-tools) is not installed")
	}
	if _, err := os.Stat(k.path("/sys/kernel/kexec_loaded")); err != nil {
		out = append(out, "the kernel was built without kexec")
	}
	if b, err := os.ReadFile(k.path("/proc/sys/kernel/kexec_load_disabled")); err == nil && strings.TrimSpace(string(b)) != "0" {
		out = append(out, "kexec is switched off until the next boot (kernel.kexec_load_disabled)")
	}
	if os.Geteuid() != 0 {
		out = append(out, "only root may reset the kernel")
	}
	if _, _, err := k.files(); err != nil {
		out = append(out, err.Error())
	}
	return out
}

// Load loads the new kernel, with the mark on its command line.
func (k *Kernel) Load(ctx context.Context, mark string) error {
	image, initrd, err := k.files()
	if err != nil {
		return err
	}
	line := k.Append
	if line == "" {
		b, err := os.ReadFile(k.path("/proc/cmdline"))
		if err != nil {
			return fmt.Errorf("read the kernel's command line: %w", err)
		}
		line = string(b)
	}
	var words []string
	for _, w := range strings.Fields(line) {
		if !strings.HasPrefix(w, k.MarkPrefix) && !strings.HasPrefix(w, "BOOT_IMAGE=") {
			words = append(words, w)
		}
	}
	words = append(words, k.MarkPrefix+mark)
	if _, err := k.run(ctx, "kexec", "-s", "-l", image, "--initrd="+initrd, "--command-line="+strings.Join(words, " ")); err != nil {
		return err
	}
	loaded, err := os.ReadFile(k.path("/sys/kernel/kexec_loaded"))
	if err != nil || strings.TrimSpace(string(loaded)) != "1" {
		return fmt.Errorf("kexec loaded a kernel and the running one has none loaded (%.20q, %v)", loaded, err)
	}
	return nil
}

// Unload takes back what Load did.
func (k *Kernel) Unload(ctx context.Context) error {
	if b, err := os.ReadFile(k.path("/sys/kernel/kexec_loaded")); err == nil && strings.TrimSpace(string(b)) != "1" {
		return nil
	}
	_, err := k.run(ctx, "kexec", "-s", "-u")
	return err
}

// systemd tells whether systemd runs this host.
func (k *Kernel) systemd() bool {
	_, err := os.Stat(k.path("/run/systemd/system"))
	return err == nil
}

// Reset begins the reset. With systemd it returns when the host has begun to end its
// services; if systemd does not take it, or does not run, the kernel is replaced at
// once, after a sync.
func (k *Kernel) Reset(ctx context.Context) error {
	loaded, err := os.ReadFile(k.path("/sys/kernel/kexec_loaded"))
	if err != nil || strings.TrimSpace(string(loaded)) != "1" {
		return errors.New("no kernel is loaded to reset into")
	}
	var refused error
	if k.systemd() {
		if _, refused = k.run(ctx, "systemctl", "kexec"); refused == nil {
			return nil
		}
		// It may have begun all the same.
		if under, err := k.Underway(ctx); err == nil && under {
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		return errors.Join(err, refused)
	}
	unix.Sync()
	_, err = k.run(ctx, "kexec", "-e")
	if err != nil {
		err = errors.Join(refused, err)
	}
	return err
}

// Underway tells whether the host is about to end.
func (k *Kernel) Underway(ctx context.Context) (bool, error) {
	if !k.systemd() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The status says anything but zero for states other than running; the word counts.
	said, err := k.run(ctx, "systemctl", "is-system-running")
	switch said {
	case "stopping":
		return true, nil
	case "initializing", "starting", "running", "degraded", "maintenance":
		return false, nil
	}
	return false, fmt.Errorf("ask systemd whether the host is about to end: it says %.100q (%w)", said, err)
}
