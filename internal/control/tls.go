package control

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

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

// ClientTLS loads the roots by which a client knows its server, nil where none
// are configured.
func ClientTLS(key string, c config.TLS) (*tls.Config, error) {
	if c.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("%s.ca: %w", key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s.ca: %s has no PEM certificate", key, c.CA)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}
