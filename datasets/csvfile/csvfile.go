// Package csvfile reads CSV text as people hand it over: plain or compressed by gzip, with or
// without a byte-order mark, cut off, or no text at all.
package csvfile

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// mostRow bounds a row, in bytes, before it is in memory.
const mostRow = 4 << 20

// File refuses what is no file: a pipe may be waited for without end, and a device read.
func File(stat func(string) (fs.FileInfo, error), path string) error {
	info, err := stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is a directory, a pipe or a device, not a file", path)
	}
	return err
}

// errUTF16 is the error of what begins with the byte-order mark of UTF-16.
var errUTF16 = errors.New("the text is UTF-16: save it as UTF-8")

// New returns a reader of the text, which reuses its records. Errors of it, and of the reader,
// are for [Reason].
func New(r io.Reader) (*csv.Reader, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	if head, _ := in.Peek(2); string(head) == "\x1f\x8b" {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		in = bufio.NewReaderSize(z, 1<<16)
	}
	if head, _ := in.Peek(3); string(head) == "\ufeff" {
		_, _ = in.Discard(len(head))
	} else if strings.HasPrefix(string(head), "\xff\xfe") || strings.HasPrefix(string(head), "\xfe\xff") {
		return nil, errUTF16
	}
	c := csv.NewReader(&limited{r: in})
	c.ReuseRecord = true
	return c, nil
}

// Reason says in words what an error means. The end of the file, where there should be more,
// means that the file is empty.
func Reason(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the file is cut off: %w", err)
	case errors.Is(err, io.EOF):
		return errors.New("the file is empty: its first row must name the columns")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return fmt.Errorf("the file is damaged: %w", err)
	}
	return err
}

// limited refuses rows that are longer than any sane one. One goes over an end of a line
// within quotation marks.
type limited struct {
	r      io.Reader
	row    int // bytes since the last end of a row
	line   int // ends of lines before it
	at     int // and up to here
	quoted bool
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	for _, b := range p[:n] {
		switch b {
		case '"':
			l.quoted = !l.quoted
		case '\n':
			if l.at++; !l.quoted {
				l.row, l.line = 0, l.at
			}
		}
		if l.row++; l.row > mostRow {
			why := "no table has so many columns"
			if l.quoted {
				why = "a quotation mark is not closed"
			}
			return 0, fmt.Errorf("line %d: a row of more than %d MiB: %s", l.line+1, mostRow>>20, why)
		}
	}
	return n, err
}
