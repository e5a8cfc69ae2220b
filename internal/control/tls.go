package control

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

// ownCertificate loads a certificate, and returns how to load it again: what is renewed is in use from the
// next connection on. It is nil where none is configured.
func ownCertificate(key string, c config.TLS) (func() (*tls.Certificate, error), error) {
	if c.Cert == "" && c.Key == "" {
		return nil, nil
	}
	first, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; cert and key must name PEM files that belong together", key, err)
	}
	return func() (*tls.Certificate, error) {
		if now, err := tls.LoadX509KeyPair(c.Cert, c.Key); err == nil {
			return &now, nil
		}
		return &first, nil // one of the two files may be a renewed one already
	}, nil
}

// ServerTLS loads the certificate of a listener, nil where none is configured.
func ServerTLS(key string, c config.TLS) (*tls.Config, error) {
	own, err := ownCertificate(key, c)
	if own == nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own() }}, nil
}

// expiring says which of the control plane's own certificates needs to be renewed, "" where none does.
func expiring(c config.Config, now time.Time) string {
	var out []string
	for _, t := range []struct {
		key string
		config.TLS
	}{{"api.tls", c.API.TLS}, {"bus.tls", c.Bus.TLS}} {
		if t.Cert == "" {
			continue
		}
		if pair, err := tls.LoadX509KeyPair(t.Cert, t.Key); err != nil {
			out = append(out, fmt.Sprintf("%s: %v", t.key, err))
		} else if end := pair.Leaf.NotAfter; end.Sub(now) < min(renewBefore, end.Sub(pair.Leaf.NotBefore)/4) {
			out = append(out, fmt.Sprintf("%s: the certificate is good until %s: renew its file, no restart is needed", t.key, end.UTC().Format(time.RFC3339)))
		}
	}
	return strings.Join(out, "; ")
}

// renewBefore is how long before its end a certificate counts as one that nobody renews; of one that is
// good for a short time only, it is a quarter of that.
const renewBefore = 7 * 24 * time.Hour

// BusOptions are those of the configuration.
func BusOptions(c config.Bus) (bus.Options, error) {
	o := bus.Options{
		Listen: c.Listen, URL: c.URL, CredentialsFile: c.Credentials, Replicas: c.Replicas,
		SampleAge: c.SampleAge.D(), SampleBytes: c.SampleMiB << 20,
	}
	var err error
	if c.URL == "" {
		o.TLS, err = ServerTLS("bus.tls", c.TLS)
		return o, err
	}
	if o.TLS, err = ClientTLS("bus.tls.ca", c.TLS.CA); err != nil {
		return o, err
	}
	if own, err := ownCertificate("bus.tls", c.TLS); err != nil {
		return o, err
	} else if own != nil {
		if o.TLS == nil {
			o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		o.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() }
	}
	if c.Callout != "" {
		seed, err := os.ReadFile(c.Callout)
		if err != nil {
			return o, fmt.Errorf("bus.callout: %w", err)
		}
		o.Callout = bus.Callout{Seed: strings.TrimSpace(string(seed)), Account: c.Account}
	}
	return o, nil
}

// ClientTLS loads the roots by which a client knows its server from a PEM file, which key
// names in errors; nil, the system's, where the file is "".
func ClientTLS(key, file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: %s has no PEM certificate", key, file)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}
