package b

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The addresses of the control plane and of the hosts.
const controlAddress = "10.213.77.1"

var addresses = []string{"10.213.77.11", "10.213.77.12"}

// network is a bridge in a network namespace, which is the control plane's, and a
// namespace for each host that is plugged into it.
type network struct{ control, one, two string }

func newNetwork(t *testing.T) network {
	t.Helper()
	var b [3]byte
	rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	n := network{"tgb" + id + "c", "tgb" + id + "1", "tgb" + id + "2"}
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	for _, ns := range []string{n.control, n.one, n.two} {
		ip("netns add " + ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		ip("-n " + ns + " link set lo up")
	}
	ip("-n " + n.control + " link add br0 type bridge")
	ip("-n " + n.control + " addr add " + controlAddress + "/24 dev br0")
	ip("-n " + n.control + " link set br0 up")
	for i, ns := range []string{n.one, n.two} {
		port := "port" + string(rune('1'+i))
		ip("-n " + n.control + " link add " + port + " type veth peer name host0 netns " + ns)
		ip("-n " + n.control + " link set " + port + " master br0 up")
		ip("-n " + ns + " addr add " + addresses[i] + "/24 dev host0")
		ip("-n " + ns + " link set host0 up")
	}
	return n
}

func path(namespace string) string { return "/run/netns/" + namespace }

// in runs f on a thread that is in a network namespace meanwhile.
func in(namespace string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// A thread that cannot be brought back stays locked, and ends with this goroutine.
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer unix.Close(home)
		fd, err := unix.Open(path(namespace), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// dialer connects from within a network namespace.
func dialer(namespace string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = in(namespace, func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}
