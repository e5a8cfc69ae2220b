// Package power switches hosts off and on through their baseboard management
// controllers, by IPMI 2.0 over the network. It works while the host does not.
//
// Newer versions of the library need a version of another module that the reference
// forest of package model/golearn cannot be built with.
package power

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/bougou/go-ipmi"
)

// BMC is a host's management controller. It is safe for concurrent use: each call
// opens a session of its own.
type BMC struct {
	host           string
	port           int
	user, password string
	// Timeout bounds the wait for one answer; 0 means 2 s.
	Timeout time.Duration
}

// New returns the controller at an address, with the port 623 unless it has one.
func New(address, user, password string) (*BMC, error) {
	host, port := address, 623
	if h, p, err := net.SplitHostPort(address); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("the address of a management controller, %q, has no proper port", address)
		}
		host, port = h, int(n)
	}
	if host == "" {
		return nil, errors.New("a management controller has no address")
	}
	if len(password) > 20 {
		return nil, errors.New("the password of a management controller is longer than the 20 bytes of IPMI 2.0")
	}
	if _, err := ipmi.NewClient(host, port, user, password); err != nil {
		return nil, fmt.Errorf("management controller %s: %w", address, err)
	}
	return &BMC{host: host, port: port, user: user, password: password}, nil
}

// do runs one command in a session of its own.
func (b *BMC) do(ctx context.Context, what string, f func(context.Context, *ipmi.Client) error) error {
	timeout := b.Timeout
	if timeout <= 0 {
		timeout = 2 * time.Second
	}
	c, err := ipmi.NewClient(b.host, b.port, b.user, b.password)
	if err != nil {
		return err
	}
	c.WithUDPProxy(legacy{ctx}).WithTimeout(timeout).WithRetry(2, timeout/4)
	err = c.Connect(ctx)
	if err == nil {
		err = f(ctx, c)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		_ = c.Close(end) // the controller ends idle sessions itself
		cancel()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s through the management controller at %s: %w", what, net.JoinHostPort(b.host, strconv.Itoa(b.port)), err)
	}
	return nil
}

// Status tells whether the host has power.
func (b *BMC) Status(ctx context.Context) (on bool, err error) {
	err = b.do(ctx, "ask for the power state", func(ctx context.Context, c *ipmi.Client) error {
		s, err := c.GetChassisStatus(ctx)
		if err == nil {
			on = s.PowerIsOn
		}
		return err
	})
	return on, err
}

// Off takes the power away at once and returns when the host has none.
func (b *BMC) Off(ctx context.Context) error {
	return b.bring(ctx, "switch off", ipmi.ChassisControlPowerDown, false)
}

// On gives the host power and returns when it has it.
func (b *BMC) On(ctx context.Context) error {
	return b.bring(ctx, "switch on", ipmi.ChassisControlPowerUp, true)
}

// Cycle takes the power away, makes sure that it is gone, and gives it back. A host
// that had no power gets it.
func (b *BMC) Cycle(ctx context.Context) error {
	if err := b.Off(ctx); err != nil {
		return err
	}
	return b.On(ctx)
}

// bring commands a power state and waits until it is there.
func (b *BMC) bring(ctx context.Context, what string, command ipmi.ChassisControl, on bool) error {
	err := b.do(ctx, what, func(ctx context.Context, c *ipmi.Client) error {
		_, err := c.ChassisControl(ctx, command)
		return err
	})
	if err != nil {
		return err
	}
	for {
		is, err := b.Status(ctx)
		if err == nil && is == on {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: the host's power did not change: %w", what, context.Cause(ctx)), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
