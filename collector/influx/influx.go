// Package influx keeps telemetry in InfluxDB, 1.8 with its v2 API or 2.x, and
// reads it back. It is the only package that knows influxdb-client-go.
//
// # How samples are stored
//
// The metrics of a whole host are the fields of one point of the measurement
// "host". A metric that there is one of for each disk, unit or VM goes to the
// measurement named as the first word of the metric ("unit" for
// unit_memory_bytes), with the tag instance. All points have the tag host, and
// simulated=true where the host does not exist; the field boot of "host" has
// the boot's id. The time is the sample's, in nanoseconds. A missing value is
// left out. Writing a sample again changes nothing.
//
// # Errors
//
// A [*WriteError] tells what InfluxDB refuses for good, sample by sample, from
// what it could not take at the moment.
package influx

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	influxdb2 "github.com/influxdata/influxdb-client-go/v2"
	"github.com/influxdata/influxdb-client-go/v2/api"
	apihttp "github.com/influxdata/influxdb-client-go/v2/api/http"
	"github.com/influxdata/influxdb-client-go/v2/domain"
)

// Config says where InfluxDB is.
type Config struct {
	// URL such as http://127.0.0.1:8086.
	URL string
	// Org is the organisation of InfluxDB 2.x; 1.8 has none and takes any.
	Org string
	// Bucket is the bucket of InfluxDB 2.x, or "database/retention-policy" of 1.8.
	Bucket string
	// Token of InfluxDB 2.x, or "user:password" of 1.8; empty without
	// authentication.
	Token string
	// CA is a PEM file of the authorities that certify an https server; "" means the system's.
	CA string
	// Timeout bounds one request; 0 means 20 seconds.
	Timeout time.Duration
}

// Client writes to and reads from one bucket. It is safe for concurrent use.
type Client struct {
	config  Config
	client  influxdb2.Client
	write   api.WriteAPIBlocking
	query   api.QueryAPI
	layouts layouts
}

// Open returns a client. It does not connect: a database that is down is no
// reason not to start. The error says what is wrong with the configuration.
func Open(c Config) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("influx: url %q is not of the form http://host:8086", c.URL)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("influx: url of %s must have no user, query or fragment; put \"user:password\" into the token", u.Host)
	}
	if c.Bucket == "" {
		return nil, errors.New(`influx: the bucket is empty: name one, or "database/retention-policy" for InfluxDB 1.8`)
	}
	if c.Timeout < 0 {
		return nil, fmt.Errorf("influx: timeout %s is negative", c.Timeout)
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 8
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("influx: ca: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("influx: ca: %s has no PEM certificate", c.CA)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	options := influxdb2.DefaultOptions().
		SetHTTPClient(&http.Client{Transport: transport, Timeout: c.Timeout}).
		SetLogLevel(0). // errors are returned, and logged by whoever handles them
		SetApplicationName("tardigrade")
	client := influxdb2.NewClientWithOptions(strings.TrimRight(c.URL, "/"), c.Token, options)
	return &Client{
		config: c,
		client: client,
		write:  client.WriteAPIBlocking(c.Org, c.Bucket),
		query:  client.QueryAPI(c.Org),
	}, nil
}

// Close lets go of idle connections.
func (c *Client) Close() error {
	c.client.Close()
	c.client.Options().HTTPClient().CloseIdleConnections()
	return nil
}

// Check tells whether the server is up and lets this client read the bucket.
// The error is an [*Error] that says what to do.
func (c *Client) Check(ctx context.Context) error {
	health, err := c.client.Health(ctx)
	if err != nil {
		return c.explain("check", err)
	}
	if health.Status != domain.HealthCheckStatusPass {
		message := "no reason given"
		if health.Message != nil {
			message = *health.Message
		}
		return &Error{Class: Transient, Op: "check", URL: c.config.URL, Hint: "look at the log of InfluxDB", Err: fmt.Errorf("its health is %q: %s", health.Status, message)}
	}
	rows, err := c.query.Query(ctx, "from(bucket: "+quote(c.config.Bucket)+`) |> range(start: -1s) |> filter(fn: (r) => r._measurement == "host" and r._field == "boot") |> limit(n: 1)`)
	if err != nil {
		return c.explain("check", err)
	}
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		return c.explain("check", err)
	}
	return rows.Close()
}

// Class is what an error calls for.
type Class string

// The classes of errors.
const (
	// Transient errors go away: try again with backoff.
	Transient Class = "transient"
	// Refused is what InfluxDB will never take: put it aside.
	Refused Class = "refused"
	// Unauthorized needs another token, and then a new try.
	Unauthorized Class = "unauthorized"
	// NotFound needs the bucket, the database or the organisation to be made, and
	// then a new try.
	NotFound Class = "not-found"
)

// Error is an error of InfluxDB or on the way to it.
type Error struct {
	Class Class
	// Op is what was tried: "check", "write" or "query".
	Op  string
	URL string
	// Hint says what an operator can do.
	Hint string
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("influx: %s at %s: %v (%s)", e.Op, e.URL, e.Err, e.Hint)
}

func (e *Error) Unwrap() error { return e.Err }

// explain classifies an error of the client.
func (c *Client) explain(op string, err error) *Error {
	e := &Error{Class: Transient, Op: op, URL: c.config.URL, Err: err}
	var answer *apihttp.Error
	if !errors.As(err, &answer) || answer.StatusCode == 0 {
		e.Hint = "is InfluxDB running and reachable under this URL?"
		var unknown *tls.CertificateVerificationError
		switch {
		case errors.Is(err, context.Canceled):
			e.Hint = "the caller gave up"
		case errors.As(err, &unknown):
			e.Hint = "set influx.ca to the file of the authority that certifies this server"
		case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
			e.Hint = "the server speaks http there, not https"
		case strings.Contains(err.Error(), "HTTP request to an HTTPS server"):
			e.Hint = "the server speaks https there, not http"
		}
		return e
	}
	if answer.Err == nil && answer.Message != "" {
		e.Err = fmt.Errorf("status %d: %s: %w", answer.StatusCode, firstLine(answer.Message), err)
	}
	message := strings.ToLower(answer.Error())
	switch status := answer.StatusCode; {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		e.Class = Unauthorized
		e.Hint = fmt.Sprintf(`the token is wrong or may not use bucket %q: set one that may read and write it ("user:password" for InfluxDB 1.8)`, c.config.Bucket)
	case status == http.StatusNotFound,
		// InfluxDB 1.8 answers 400 or 500 to some requests on what does not exist.
		strings.Contains(message, "database not found"),
		strings.Contains(message, "retention policy not found"),
		strings.Contains(message, "no database"),
		strings.Contains(message, "invalid retention policy"),
		strings.Contains(message, "could not find bucket"):
		e.Class = NotFound
		e.Hint = fmt.Sprintf(`create bucket %q in organisation %q, or for InfluxDB 1.8 the database and retention policy of that name, or correct the configuration`, c.config.Bucket, c.config.Org)
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		e.Hint = "InfluxDB is overloaded or failing: look at its log, its disk and its memory; this is tried again"
	case status >= 400:
		e.Class = Refused
		e.Hint = "InfluxDB will not take this however often it is tried: the reason is in its answer"
	default:
		e.Hint = "this is not an answer of InfluxDB: is the URL that of a proxy or of another server?"
	}
	return e
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 500 {
		s = s[:500] + "…"
	}
	return s
}
