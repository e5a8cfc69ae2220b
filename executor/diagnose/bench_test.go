package diagnose

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkRootCause searches a journal of a size as the limits allow it.
func BenchmarkRootCause(b *testing.B) {
	var text strings.Builder
	for i := 0; text.Len() < 4<<20; i++ {
		switch i % 4 {
		case 0:
			fmt.Fprintf(&text, "%snova[%d]: heartbeat %d sent to controller 10.0.0.%d, token=abc%d\n", stamp, i, i, i%256, i)
		case 1:
			fmt.Fprintf(&text, "%ssystemd[1]: session-%d.scope: Succeeded.\n", stamp, i)
		case 2:
			fmt.Fprintf(&text, "%skernel: audit: type=1400 audit(%d): apparmor=\"ALLOWED\" operation=\"open\"\n", stamp, i)
		default:
			fmt.Fprintf(&text, "%snginx[%d]: GET /v1/servers/%d status=200 error=none\n", stamp, i, i)
		}
	}
	c, err := New(Config{Host: "kvm01", Uploads: &uploads{}})
	if err != nil {
		b.Fatal(err)
	}
	data := []byte(text.String())
	b.Run("redact", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			Redact(data)
		}
	})
	b.Run("search", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			c.rootCause(now, nil, []evidenceFile{{name: "journal.log", data: data}}, data)
		}
	})
}
