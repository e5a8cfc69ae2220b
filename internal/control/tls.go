package control

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/tardigrade-recovery/tardigrade/internal/bus"
	"github.com/tardigrade-recovery/tardigrade/internal/config"
)

// ServerTLS loads the certificate of a listener, nil where none is configured.
func ServerTLS(key string, c config.TLS) (*tls.Config, error) {
	if c.Cert == "" && c.Key == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; cert and key must name PEM files that belong together", key, err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

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
	if own, err := ServerTLS("bus.tls", c.TLS); err != nil {
		return o, err
	} else if own != nil && o.TLS == nil {
		o.TLS = own
	} else if own != nil {
		o.TLS.Certificates = own.Certificates
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
