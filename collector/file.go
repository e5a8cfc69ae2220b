package collector

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// maxFile is the most that is read of one kernel file: /proc/interrupts of a
// machine with hundreds of CPUs stays below it.
const maxFile = 4 << 20

// errTooLarge is the error of a kernel file that does not end.
var errTooLarge = errors.New("file is larger than 4 MiB, which no kernel file that is sampled should be")

// file is a kernel file that is kept open and read again from its start, which
// costs no allocation and no path lookup.
type file struct {
	path string
	f    *os.File
	buf  []byte
}

// read returns the content, which is valid until the next read. A file that was
// replaced, as those of a device that comes back, is opened again.
func (k *file) read() ([]byte, error) {
	if k.f != nil {
		if b, err := k.readOpen(); err == nil {
			return b, nil
		}
		k.close()
	}
	f, err := os.Open(k.path)
	if err != nil {
		return nil, err
	}
	k.f = f
	b, err := k.readOpen()
	if err != nil {
		k.close()
	}
	return b, err
}

func (k *file) readOpen() ([]byte, error) {
	if k.buf == nil {
		k.buf = make([]byte, 512)
	}
	n := 0
	for {
		if n == len(k.buf) {
			if n >= maxFile {
				return nil, errTooLarge
			}
			grown := make([]byte, max(4096, 2*n))
			copy(grown, k.buf)
			k.buf = grown
		}
		m, err := k.f.ReadAt(k.buf[n:], int64(n))
		n += m
		if errors.Is(err, io.EOF) {
			return k.buf[:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (k *file) close() {
	if k.f != nil {
		k.f.Close()
		k.f = nil
	}
}

// number reads a file that holds one unsigned number.
func (k *file) number() (uint64, error) {
	b, err := k.read()
	if err != nil {
		return 0, err
	}
	v, ok := parseUint(trimSpace(b))
	if !ok {
		return 0, errors.New(k.path + " does not hold a number")
	}
	return v, nil
}

// cutLine splits off the first line.
func cutLine(b []byte) (line, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// cutField splits off the first field between blanks; it is empty at the end.
func cutField(b []byte) (field, rest []byte) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	j := i
	for j < len(b) && b[j] != ' ' && b[j] != '\t' && b[j] != '\n' {
		j++
	}
	return b[i:j], b[j:]
}

func trimSpace(b []byte) []byte { return bytes.TrimSpace(b) }

// parseUint parses a decimal number; ok is false for anything else, an overflow
// included.
func parseUint(b []byte) (v uint64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := uint64(c - '0')
		if v > (1<<64-1-d)/10 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}

// parseHex parses a hexadecimal number without prefix.
func parseHex(b []byte) (v uint64, ok bool) {
	if len(b) == 0 || len(b) > 16 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		case c >= 'A' && c <= 'F':
			v = v<<4 | uint64(c-'A'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

// cutUint splits off a field that is an unsigned number.
func cutUint(b []byte) (v uint64, rest []byte, ok bool) {
	field, rest := cutField(b)
	v, ok = parseUint(field)
	return v, rest, ok
}

// parseDecimal parses an unsigned number with an optional fraction.
func parseDecimal(b []byte) (float64, bool) {
	whole, fraction, _ := bytes.Cut(b, []byte("."))
	w, ok := parseUint(whole)
	if !ok || len(fraction) > 9 {
		return 0, false
	}
	v := float64(w)
	if len(fraction) > 0 {
		n, ok := parseUint(fraction)
		if !ok {
			return 0, false
		}
		scale := 1.0
		for range fraction {
			scale *= 10
		}
		v += float64(n) / scale
	}
	return v, true
}
