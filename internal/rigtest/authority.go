package rigtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates for tests, which hold for an hour.
type Authority struct {
	// Cert is its own certificate in PEM.
	Cert []byte

	t      *testing.T
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// NewAuthority makes an authority.
func NewAuthority(t *testing.T) *Authority {
	t.Helper()
	a := &Authority{t: t}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "an authority of tests"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	der, a.key = a.sign(template, template, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.Cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// sign completes a template; a nil by means that it signs itself.
func (a *Authority) sign(template, parent *x509.Certificate, by crypto.Signer) (der []byte, key *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if by == nil {
		by = key
	}
	a.serial++
	template.SerialNumber, template.NotBefore, template.NotAfter, template.BasicConstraintsValid = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour), true
	if der, err = x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by); err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

// Certify makes a certificate for a machine at these IP addresses, as a server and as a
// client, and its key, both in PEM.
func (a *Authority) Certify(addresses ...string) (cert, key []byte) {
	a.t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: addresses[0]}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	der, private := a.sign(template, a.cert, a.key)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// Write is Certify into the files cert.pem and key.pem of a directory, and the authority's
// own into ca.pem.
func (a *Authority) Write(dir string, addresses ...string) (ca, cert, key string) {
	a.t.Helper()
	c, k := a.Certify(addresses...)
	ca, cert, key = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, data := range map[string][]byte{ca: a.Cert, cert: c, key: k} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return ca, cert, key
}

// Libvirt is what libvirt and its QEMU want of a machine, by the names that they look for.
func (a *Authority) Libvirt(addresses ...string) map[string]string {
	a.t.Helper()
	cert, key := a.Certify(addresses...)
	return map[string]string{
		"cacert.pem": string(a.Cert), "servercert.pem": string(cert), "serverkey.pem": string(key), "clientcert.pem": string(cert), "clientkey.pem": string(key),
		"ca-cert.pem": string(a.Cert), "server-cert.pem": string(cert), "server-key.pem": string(key), "client-cert.pem": string(cert), "client-key.pem": string(key),
	}
}
