package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// output is standard output. It remembers that what was printed is not there, so that no command
// is a success whose answer nobody got.
type output struct {
	file     *os.File
	terminal bool
	err      error
}

func newOutput(f *os.File) *output { return &output{file: f, terminal: isTerminal(f)} }

// Write writes to a terminal only what it shows: names and notes come from others.
func (o *output) Write(p []byte) (int, error) {
	text := string(p)
	if o.terminal {
		text = shown(text)
	}
	if _, err := o.file.WriteString(text); err != nil {
		o.err = err
		return 0, err
	}
	return len(p), nil
}

// isTerminalWriter tells whether what is printed is read by a person.
func isTerminalWriter(w io.Writer) bool {
	o, ok := w.(*output)
	return ok && o.terminal
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// shown is a text with what would command a terminal, or can't be seen, written as Go does.
func shown(text string) string {
	plain := func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsGraphic(r) }
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case plain(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}

// longestError is how much is shown of an error, in bytes: what is quoted in one may be a whole file.
const longestError = 16 << 10

func shownError(err error) string {
	text := err.Error()
	if len(text) > longestError {
		text = strings.ToValidUTF8(text[:longestError], "") + "…"
	}
	return shown(text)
}
