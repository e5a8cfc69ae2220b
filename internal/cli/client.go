package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tardigrade-recovery/tardigrade/internal/control"
)

// client asks a running control plane.
type client struct {
	server, tokenFile, ca string
}

// flags adds the flags that say where the control plane is, to a command and those under it.
func (c *client) flags(cmd *cobra.Command) { c.add(cmd.PersistentFlags()) }

// localFlags adds them to the command alone.
func (c *client) localFlags(cmd *cobra.Command) { c.add(cmd.Flags()) }

func (c *client) add(f *pflag.FlagSet) {
	f.StringVar(&c.server, "server", "http://127.0.0.1:8080", "`address` of the control plane")
	f.StringVar(&c.tokenFile, "token-file", "", "`file` with the token, where the control plane asks for one (or TARDIGRADE_TOKEN)")
	f.StringVar(&c.ca, "ca", "", "`file` with the certificates (PEM) by which to know the control plane, instead of the system's")
}

// longest is the largest answer that is read.
const longest = 256 << 20

// rawFile is a body that is no JSON.
type rawFile []byte

// do sends a request and decodes the answer into result, if that is not nil.
func (c *client) do(ctx context.Context, method, path string, body, result any) error {
	answer, err := c.send(ctx, method, path, body)
	if err != nil || result == nil {
		return err
	}
	if file, ok := result.(*rawFile); ok {
		*file = answer
		return nil
	}
	if err := json.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("the control plane's answer is not understood: %w", err)
	}
	return nil
}

// send sends a request and returns the answer as it is.
func (c *client) send(ctx context.Context, method, path string, body any) ([]byte, error) {
	u, err := url.Parse(c.server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, usageError{fmt.Errorf("--server %q is not an http or https address", c.server)}
	}
	var data []byte
	kind := "application/json"
	if file, ok := body.(rawFile); ok {
		data, kind = file, "application/octet-stream"
	} else if body != nil {
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.server, "/")+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	token := os.Getenv("TARDIGRADE_TOKEN")
	if c.tokenFile != "" {
		text, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--token-file: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	roots, err := control.ClientTLS("--ca", c.ca)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = roots
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if errors.As(err, new(*tls.CertificateVerificationError)) {
		return nil, fmt.Errorf("ask the control plane: %w; --ca names the certificates by which to know it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the control plane: %w; is it running there (tardigrade serve)? --server names another", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, longest))
	if err != nil {
		return nil, fmt.Errorf("ask the control plane: %w", err)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, errors.New("the control plane asks for a valid token: name its file by --token-file, or set TARDIGRADE_TOKEN")
	}
	if resp.StatusCode >= 300 {
		var p struct{ Detail string }
		if json.Unmarshal(answer, &p) == nil && p.Detail != "" {
			return nil, errors.New(p.Detail)
		}
		text, _, _ := strings.Cut(string(answer[:min(len(answer), 200)]), "\n")
		return nil, fmt.Errorf("%s answers %s: %s", c.server, resp.Status, text)
	}
	return answer, nil
}
