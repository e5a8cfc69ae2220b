package diagnose

import (
	"bytes"
	"regexp"
)

// mask is what a secret is replaced by.
const mask = "[redacted]"

// secretWord is part of the names of things that are secret.
const secretWord = `(?:pass(?:word|wd|phrase|code)?|pwd|secrets?|tokens?|api[_-]?keys?|access[_-]?keys?|private[_-]?keys?|credentials?|session[_-]?id|cookie)`

// The patterns keep their first group and replace what follows it.
var secretPatterns = []struct {
	hint []string // one of them is in every line that matches; lower case
	also string   // so is this
	re   *regexp.Regexp
}{
	// "Authorization: Bearer abc", "authorization=Basic abc"
	{[]string{"authorization"}, "", regexp.MustCompile(`(?i)(authorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|digest|negotiate|token|aws4-hmac-sha256)\s+)?)[^\s"',;]+`)},
	{[]string{"bearer"}, "", regexp.MustCompile(`(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{6,}`)},
	// "https://user:pass@host"
	{[]string{"://"}, "", regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"'<>]*:)[^\s@"'<>]+@`)},
	// "DB_PASSWORD=abc", `"token": "abc"`, "client-secret='a b'"
	{hints, "", regexp.MustCompile(`(?i)(` + secretWord + `(?:[_.-][A-Za-z0-9_.-]*)?\\?["']?\s*(?::=|=>|=|:)\s*)(?:\\?"(?:[^"\\]|\\[^"])*\\?"|'[^']*'|[^\s"',;&)\]}]+)`)},
	// "--password abc"
	{hints, "-", regexp.MustCompile(`(?i)(--?[A-Za-z0-9-]*` + secretWord + `\s+)(?:"[^"]*"|'[^']*'|[^\s"'-][^\s"']*)`)},
	// "identified by 'abc'"
	{[]string{"identified"}, "", regexp.MustCompile(`(?i)(identified\s+by\s+(?:password\s+)?)(?:"[^"]*"|'[^']*'|[^\s"';]+)`)},
	// Keys that say by their form what they are: of AWS, GitHub, GitLab, Slack and JSON web tokens.
	{[]string{"akia", "asia", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "xox", "eyj"}, "",
		regexp.MustCompile(`()\b(?:A(?:KIA|SIA)[0-9A-Z]{16}|gh[posur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abposr]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)`)},
}

var hints = []string{
	"pass", "pwd", "secret", "token", "credential", "cookie", "sessionid", "session_id", "session-id", "apikey", "api_key", "api-key",
	"accesskey", "access_key", "access-key", "privatekey", "private_key", "private-key",
}

var (
	keyBegin = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----`)
	keyEnd   = regexp.MustCompile(`-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----`)
	// keyLine ends in what a line of a private key is, keyHead is one of its headers.
	keyLine = regexp.MustCompile(`(?:^|[\s"'])[A-Za-z0-9+/]{4,}={0,2}["',]*$`)
	keyHead = regexp.MustCompile(`(?:Proc-Type|DEK-Info|Version|Comment): `)
)

// ofKey tells whether a line may be one of a private key.
func ofKey(line []byte) bool {
	line = bytes.TrimRight(line, "\r \t")
	return len(line) == 0 || line[len(line)-1] == ':' || keyLine.Match(line) || keyHead.Match(line)
}

// maxRedactLine is how much of a line is searched for secrets, and kept.
const maxRedactLine = 64 << 10

// maxKeyLines bounds a private key: an RSA key of 16,384 bits has about 200 lines.
const maxKeyLines = 400

// Redact replaces secrets by "[redacted]" and counts them: values of what is called a
// password, token, secret, credential or key, headers of authorization, passwords in
// URLs, private keys, and keys that are known by their form. It works by rules and
// may miss what no rule describes. The number of lines stays the same; of a line of more
// than 64 KiB the rest is left out.
func Redact(text []byte) (clean []byte, secrets int) {
	lines := bytes.Split(text, []byte("\n"))
	lower := make([]byte, 0, 256)
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if len(line) > maxRedactLine {
			line = append(line[:maxRedactLine:maxRedactLine], " [cut]"...)
			lines[i] = line
		}
		if bytes.Contains(line, []byte("-----")) {
			if n, last := redactKey(lines, i); n > 0 {
				secrets += n
				i = last
				continue
			}
		}
		lower = appendLower(lower[:0], line)
		for _, p := range secretPatterns {
			if !containsAny(lower, p.hint) || !bytes.Contains(lower, []byte(p.also)) {
				continue
			}
			at := p.re.FindAllSubmatchIndex(line, -1)
			if at == nil {
				continue
			}
			var out []byte
			from := 0
			for _, m := range at {
				if bytes.Equal(line[m[3]:m[1]], []byte(mask)) || bytes.HasPrefix(line[m[3]:m[1]], []byte(mask)) {
					continue
				}
				out = append(out, line[from:m[3]]...)
				out = append(out, mask...)
				if line[m[1]-1] == '@' {
					out = append(out, '@')
				}
				from = m[1]
				secrets++
			}
			line = append(out, line[from:]...)
			lines[i] = line
		}
	}
	return bytes.Join(lines, []byte("\n")), secrets
}

func redactOnly(text []byte) []byte {
	clean, _ := Redact(text)
	return clean
}

// redactKey redacts the private key that begins or ends in line i and returns its last
// line. A key of which the beginning or the end was cut off is known by its lines.
func redactKey(lines [][]byte, i int) (n, last int) {
	if begin := keyBegin.FindIndex(lines[i]); begin != nil {
		head := lines[i][:begin[1]:begin[1]]
		if end := keyEnd.FindIndex(lines[i][begin[1]:]); end != nil {
			lines[i] = append(append(head, mask...), lines[i][begin[1]+end[0]:]...)
			return 1, i
		}
		lines[i] = append(head, mask...)
		last = i
		inside := true
		for j := i + 1; j < len(lines) && j <= i+maxKeyLines; j++ {
			if keyEnd.Match(lines[j]) {
				last = j - 1
				break
			}
			// Without an end, the key goes on for as long as the lines look like one.
			if inside = inside && ofKey(lines[j]); inside {
				last = j
			}
		}
		for j := i + 1; j <= last; j++ {
			lines[j] = []byte(mask)
		}
		return 1, last
	}
	if end := keyEnd.FindIndex(lines[i]); end != nil {
		n := 0
		for j := i - 1; j >= 0 && j >= i-maxKeyLines && ofKey(lines[j]); j-- {
			lines[j] = []byte(mask)
			n = 1
		}
		if n > 0 {
			return 1, i
		}
	}
	return 0, i
}

func appendLower(dst, s []byte) []byte {
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

func containsAny(s []byte, any []string) bool {
	for _, a := range any {
		if bytes.Contains(s, []byte(a)) {
			return true
		}
	}
	return false
}
