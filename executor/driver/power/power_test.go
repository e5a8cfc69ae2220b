package power

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

func TestPower(t *testing.T) {
	sim := rigtest.StartBMC(t, "")
	b, err := New(sim.Address, rigtest.BMCUser, rigtest.BMCPassword)
	if err != nil {
		t.Fatal(err)
	}
	b.Timeout = 20 * time.Second // where this machine is busy
	is := func(on bool) {
		t.Helper()
		if got, err := b.Status(t.Context()); err != nil || got != on {
			t.Fatalf("on: %v, %v", got, err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is(true)
	must(b.Cycle(t.Context()))
	is(true)
	sim.Await("on off on", time.Minute)
	must(b.Off(t.Context()))
	is(false)
	must(b.Off(t.Context())) // again
	must(b.On(t.Context()))
	is(true)
	sim.Await("on off on off off on", time.Minute)
	must(b.Off(t.Context()))
	must(b.Cycle(t.Context())) // one that is off gets power
	is(true)
}

func TestPowerThatDoesNotAnswer(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	b, err := New(silent.LocalAddr().String(), "u", "p")
	if err != nil {
		t.Fatal(err)
	}
	b.Timeout = 100 * time.Millisecond
	if _, err := b.Status(t.Context()); err == nil || !strings.Contains(err.Error(), silent.LocalAddr().String()) {
		t.Errorf("%v", err)
	}
	b.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := b.Cycle(ctx); err == nil {
		t.Error("cycled what does not answer")
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestWrongPasswordIsRefused(t *testing.T) {
	sim := rigtest.StartBMC(t, "")
	b, err := New(sim.Address, rigtest.BMCUser, "wrong")
	if err != nil {
		t.Fatal(err)
	}
	b.Timeout = 300 * time.Millisecond
	if err := b.Cycle(t.Context()); err == nil {
		t.Error("a wrong password was taken")
	}
	if got := sim.Words(); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct{ address, user, password string }{
		{"", "u", "p"}, {"h:0", "u", "p"}, {"h:x", "u", "p"}, {"h", "u", strings.Repeat("p", 21)}, {"h", strings.Repeat("u", 17), "p"},
	} {
		if _, err := New(c.address, c.user, c.password); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	if b, err := New("192.0.2.9", "u", "p"); err != nil || b.port != 623 {
		t.Errorf("%+v, %v", b, err)
	}
}
