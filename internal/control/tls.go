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
