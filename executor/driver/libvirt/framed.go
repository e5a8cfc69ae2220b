package libvirt

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// A message has a length, which counts itself, and a header of six words (libvirt's
// src/rpc/virnetprotocol.x); libvirt sends none that is longer than maxMessage.
const (
	minMessage = 4 + 24
	maxMessage = 32<<20 + 4
)

// framed checks the length of each message before the decoder trusts it: one that is
// too short would end the program, and one that is too long would take its memory.
type framed struct {
	net.Conn
	head []byte // of the message, still to be handed out
	left int    // bytes of the message after that
}

func (f *framed) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(f.head) == 0 && f.left == 0 {
		head := make([]byte, 4)
		if _, err := io.ReadFull(f.Conn, head); err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(head)
		if n < minMessage || n > maxMessage {
			f.Close()
			return 0, fmt.Errorf("a message of %d bytes is not libvirt's", n)
		}
		f.head, f.left = head, int(n)-len(head)
	}
	if len(f.head) > 0 {
		n := copy(p, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err := f.Conn.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}
