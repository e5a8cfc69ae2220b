package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

// A certificate that nobody renews is told of before its end, and a renewed one is used without a restart.
func TestACertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.API.TLS = config.TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	now := time.Now()
	write := func(serial int64, end time.Time) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: now.Add(-90 * 24 * time.Hour), NotAfter: end}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for file, block := range map[string]*pem.Block{c.API.TLS.Cert: {Type: "CERTIFICATE", Bytes: der}, c.API.TLS.Key: {Type: "PRIVATE KEY", Bytes: private}} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1, now.Add(6*24*time.Hour))
	server, err := ServerTLS("api.tls", c.API.TLS)
	if err != nil {
		t.Fatal(err)
	}
	if why := expiring(c, now); !strings.Contains(why, "api.tls") || strings.Contains(why, "bus.tls") {
		t.Errorf("six days before its end: %q", why)
	}
	uses := func(serial int64) {
		t.Helper()
		if got, err := server.GetCertificate(nil); err != nil || got.Leaf.SerialNumber.Int64() != serial {
			t.Errorf("not the certificate %d: %v", serial, err)
		}
	}
	uses(1)
	write(2, now.Add(90*24*time.Hour))
	uses(2)
	if why := expiring(c, now); why != "" {
		t.Errorf("after it was renewed: %q", why)
	}
	if err := os.Remove(c.API.TLS.Key); err != nil {
		t.Fatal(err)
	}
	uses(1)
	if why := expiring(c, now); !strings.Contains(why, "no such file") {
		t.Errorf("without its key: %q", why)
	}
}
