package power

import (
	"context"
	"net"
)

// legacy sends what belongs to no session in the format of IPMI 1.5, as IPMI 2.0
// (section 13.15.1) demands; some controllers ignore it in the format of 2.0, which the
// library uses. Answers are understood in either.
type legacy struct{ ctx context.Context }

// Dial makes legacy a dialer of the library.
func (l legacy) Dial(network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(l.ctx, network, address)
	if err != nil {
		return nil, err
	}
	return legacyConn{c}, nil
}

type legacyConn struct{ net.Conn }

func (c legacyConn) Write(p []byte) (int, error) {
	if _, err := c.Conn.Write(older(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// older turns a packet of 2.0 without a session into one of 1.5; others stay.
func older(p []byte) []byte {
	const (
		rmcp   = 4  // bytes of the header of both
		header = 16 // with the session's: its type, the payload's, ID, sequence, length
	)
	if len(p) <= header || len(p) > header+255 || p[rmcp] != 0x06 || p[rmcp+1] != 0x00 || [4]byte(p[rmcp+2:]) != [4]byte{} {
		return p
	}
	out := append([]byte{}, p[:rmcp]...)
	out = append(out, make([]byte, 1+4+4)...) // no authentication, sequence, session
	out = append(out, byte(len(p)-header))
	return append(out, p[header:]...)
}
