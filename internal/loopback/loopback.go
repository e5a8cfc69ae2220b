// Package loopback picks ports for servers that must be told theirs before they start,
// as InfluxDB, libvirtd and ipmi_sim must.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// The ports to pick from lie below those that Linux gives to ":0" and to outgoing
// connections (net.ipv4.ip_local_port_range, from 32768 on), so that none of these can
// take a port between its reservation and the server's start.
const lowest, highest = 20000, 32767

// Reservation is a port on 127.0.0.1 that nobody uses, by TCP or UDP, and that no other
// Reservation on this machine is for until it is released.
type Reservation struct {
	// Port is its number in decimal.
	Port string

	lock net.Listener
}

// Reserve reserves a port.
func Reserve() (*Reservation, error) {
	var err error
	for range 100 {
		var r *Reservation
		if r, err = reserve(lowest + rand.IntN(highest-lowest+1)); err == nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("reserve a port on loopback: 100 of %d to %d were in use, the last: %w", lowest, highest, err)
}

// reserve takes the same port on 127.0.0.2 for as long as the reservation lasts, which
// keeps other reservations away, and looks whether it is free on 127.0.0.1.
func reserve(port int) (*Reservation, error) {
	r := &Reservation{Port: strconv.Itoa(port)}
	lock, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", r.Port))
	if err != nil {
		return nil, err
	}
	tcp, err := net.Listen("tcp", r.Address())
	if err != nil {
		lock.Close()
		return nil, err
	}
	tcp.Close()
	udp, err := net.ListenPacket("udp", r.Address())
	if err != nil {
		lock.Close()
		return nil, err
	}
	udp.Close()
	r.lock = lock
	return r, nil
}

// Address is the reserved address, such as 127.0.0.1:20001.
func (r *Reservation) Address() string { return net.JoinHostPort("127.0.0.1", r.Port) }

// Release lets others reserve the port. Call it when the server has ended.
func (r *Reservation) Release() { r.lock.Close() }
