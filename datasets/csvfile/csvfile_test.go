package csvfile

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
)

func zip(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

func read(text string) (out []string, err error) {
	r, err := New(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	for {
		row, err := r.Read()
		if err == io.EOF && len(out) > 0 {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, strings.Join(row, "|"))
	}
}

func TestTextIsReadHoweverItIsHandedOver(t *testing.T) {
	const text = "a,b\r\n1,\"2,5\"\r\n\r\n"
	for name, given := range map[string]string{
		"plain": text, "byte-order mark": "\ufeff" + text, "gzip": zip(text), "gzip of a byte-order mark": zip("\ufeff" + text), "two gzips": zip(text[:5]) + zip(text[5:]),
	} {
		if got, err := read(given); err != nil || strings.Join(got, ";") != "a|b;1|2,5" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestWhatIsWrongIsSaidInWords(t *testing.T) {
	whole := zip(strings.Repeat("1,2\n", 5000))
	for name, c := range map[string]struct{ text, want string }{
		"empty":         {"", "is empty"},
		"gzip of empty": {zip(""), "is empty"},
		"head only":     {whole[:2], "cut off"},
		"half":          {whole[:len(whole)/2], "cut off"},
		"no checksum":   {whole[:len(whole)-3], "cut off"},
		"no gzip":       {whole[:2] + "hello, world", "damaged"},
		"checksum":      {whole[:len(whole)-8] + "12345678", "damaged"},
		"UTF-16":        {"\xff\xfea\x00,\x00", "save it as UTF-8"},
		"a long line":   {"a\n" + strings.Repeat("1,", mostRow), "line 2: a row of more than 4 MiB: no table"},
		"an open quote": {"a\n1\n\"" + strings.Repeat("1\n", mostRow), "line 3: a row of more than 4 MiB: a quotation mark is not closed"},
	} {
		if _, err := read(c.text); err == nil || !strings.Contains(Reason(err).Error(), c.want) {
			t.Errorf("%s: %v, not %q", name, err, c.want)
		}
	}
}
