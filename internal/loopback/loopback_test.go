package loopback

import (
	"net"
	"testing"
)

func TestAReservedPortIsFreeAndReservedOnce(t *testing.T) {
	r, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.LookupPort("tcp", r.Port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reserve(port); err == nil {
		t.Errorf("port %d was reserved twice", port)
	}
	l, err := net.Listen("tcp", r.Address())
	if err != nil {
		t.Fatalf("the reserved port is not free: %v", err)
	}
	r.Release()
	if _, err := reserve(port); err == nil {
		t.Errorf("port %d was reserved while a server listens on it", port)
	}
	l.Close()
	again, err := reserve(port)
	if err != nil {
		t.Fatalf("a released port: %v", err)
	}
	again.Release()
}

func TestAPortThatUDPUsesIsNotReserved(t *testing.T) {
	r, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	r.Release()
	udp, err := net.ListenPacket("udp", r.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	port, _ := net.LookupPort("udp", r.Port)
	if _, err := reserve(port); err == nil {
		t.Errorf("port %d was reserved while UDP uses it", port)
	}
}
