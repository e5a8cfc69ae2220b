package diagnose

import (
	"bytes"
	"strings"
	"testing"
)

func TestSecretsAreRedacted(t *testing.T) {
	key := "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
	for _, c := range []struct{ in, want string }{
		{"password=hunter2", "password=[redacted]"},
		{"password = hunter2 next", "password = [redacted] next"},
		{"DB_PASSWORD=hunter2 USER=root", "DB_PASSWORD=[redacted] USER=root"},
		{`{"password":"hunter2 and more","user":"root"}`, `{"password":[redacted],"user":"root"}`},
		{`{\"token\": \"hunter2\"}`, `{\"token\": [redacted]}`},
		{"client_secret: 'hunter2 too'", "client_secret: [redacted]"},
		{"api-key=hunter2; next", "api-key=[redacted]; next"},
		{"GET /v1?access_token=hunter2&x=1", "GET /v1?access_token=[redacted]&x=1"},
		{"mysqld --password hunter2 --verbose", "mysqld --password [redacted] --verbose"},
		{"mysqld --password=hunter2 --verbose", "mysqld --password=[redacted] --verbose"},
		{"Authorization: Bearer hunter2hunter2", "Authorization: Bearer [redacted]"},
		{"authorization: basic aHVudGVyMg==", "authorization: basic [redacted]"},
		{`-H "Authorization: token hunter2"`, `-H "Authorization: token [redacted]"`},
		{"with bearer eyJhbGciOi.eyJzdWIiOi.hunter2", "with bearer [redacted]"},
		{"postgres://nova:hunter2@db:5432/x", "postgres://nova:[redacted]@db:5432/x"},
		{"amqp://:hunter2@mq", "amqp://:[redacted]@mq"},
		{"two http://a:hunter2@b and http://c:hunter2@d", "two http://a:[redacted]@b and http://c:[redacted]@d"},
		{"CREATE USER x IDENTIFIED BY 'hunter2'", "CREATE USER x IDENTIFIED BY [redacted]"},
		{"uses AKIAIOSFODNN7EXAMPLE now", "uses [redacted] now"},
		{"ghp_abcdefghijklmnopqrstuvwxyz0123456789 is", "[redacted] is"},
		{"Set-Cookie: hunter2; Path=/", "Set-Cookie: [redacted]; Path=/"},
		{"-----BEGIN RSA PRIVATE KEY-----\n" + key + "\nhunter2=\n-----END RSA PRIVATE KEY-----\nnext", "-----BEGIN RSA PRIVATE KEY-----[redacted]\n[redacted]\n[redacted]\n-----END RSA PRIVATE KEY-----\nnext"},
		{"-----BEGIN PRIVATE KEY-----\\n" + key + "\\n-----END PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----[redacted]-----END PRIVATE KEY-----"},
		{"-----BEGIN OPENSSH PRIVATE KEY-----\n" + key + "\nthe next message is here: fine!", "-----BEGIN OPENSSH PRIVATE KEY-----[redacted]\n[redacted]\nthe next message is here: fine!"},
		{key + "\n-----END PRIVATE KEY-----\nnext", "[redacted]\n-----END PRIVATE KEY-----\nnext"},
		// What has no secret stays as it is.
		{"Failed password for root from 10.0.0.1 port 22", ""},
		{"12 tests passed: all", ""},
		{"https://example.com:8080/path", ""},
		{"kernel: keyboard: can't emulate rawmode for keycode 240", ""},
		{"-----BEGIN CERTIFICATE-----\n" + key + "\n-----END CERTIFICATE-----", ""},
		{"password is too short", ""},
		{"", ""},
	} {
		want := c.want
		if want == "" {
			want = c.in
		}
		clean, n := Redact([]byte(c.in))
		if string(clean) != want {
			t.Errorf("%q\n became %q\n   want %q", c.in, clean, want)
		}
		if (n > 0) != (c.in != want) {
			t.Errorf("%q: %d secrets were counted", c.in, n)
		}
		if strings.Contains(string(clean), "hunter2") {
			t.Errorf("%q: the secret is still there", c.in)
		}
	}
}

func FuzzRedact(f *testing.F) {
	for _, s := range []string{"password=a", "x://a:b@c", "Authorization: Bearer abc", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "\xff\x00token=\xff\"", `"secret":"a\"b"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		clean, n := Redact(data)
		if !bytes.Equal(data, before) {
			t.Fatal("the text was changed in place")
		}
		if bytes.Count(clean, []byte("\n")) != bytes.Count(data, []byte("\n")) {
			t.Fatalf("%q has other lines than %q", clean, data)
		}
		if n == 0 && !bytes.Equal(clean, data) && len(data) <= maxRedactLine {
			t.Fatalf("%q became %q with no secret", data, clean)
		}
	})
}

func FuzzSearch(f *testing.F) {
	for _, file := range []string{"journal.log", "kernel.log", "pstore/dmesg-efi-1", "libvirt/qemu/a.log", "units/a.service/properties", "processes.txt", baselineFile} {
		f.Add(file, []byte(stamp+"kernel: Out of memory: Killed process 7 (java)\n  more\n<0>[1.0] Kernel panic - not syncing: \xff\n"))
	}
	f.Fuzz(func(t *testing.T, file string, data []byte) {
		cfg, _ := config(t)
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		states := unitStates([]string{"a.service"}, []found{{name: file, data: data}, {name: "units/a.service/properties", data: data}})
		r := c.rootCause(now, states, []evidenceFile{{name: file, data: data}}, data)
		out, err := r.json()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Suspects) > maxSuspects || len(out) > 600_000 || len(summarize(states, r)) > maxSummary {
			t.Fatalf("%d suspects, %d bytes", len(r.Suspects), len(out))
		}
		for i, s := range r.Suspects {
			if !(s.Score > 0 && s.Score <= 1) || i > 0 && s.Score > r.Suspects[i-1].Score {
				t.Fatalf("scores: %+v", r.Suspects)
			}
		}
		r.markdown(states)
		kmsgLine(data, now, true, "h")
	})
}
