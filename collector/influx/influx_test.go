package influx

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/collector/influx/influxtest"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
	"github.com/tardigrade-recovery/tardigrade/internal/rigtest"
)

func open(t *testing.T, s *influxtest.Server, change ...func(*Config)) *Client {
	t.Helper()
	c := Config{URL: s.URL, Org: "any", Bucket: s.Bucket, Token: s.Token}
	for _, f := range change {
		f(&c)
	}
	client, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// flux asks the server in Flux, without the client under test.
func flux(t *testing.T, s *influxtest.Server, query string) []map[string]string {
	t.Helper()
	req, err := http.NewRequest("POST", s.URL+"/api/v2/query", strings.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.flux")
	req.Header.Set("Accept", "application/csv")
	if s.Token != "" {
		req.Header.Set("Authorization", "Token "+s.Token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %s %v", query, resp.StatusCode, body, err)
	}
	r := csv.NewReader(strings.NewReader(string(body)))
	r.FieldsPerRecord = -1
	lines, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]string
	var head []string
	for _, l := range lines {
		if slices.Contains(l, "_value") || slices.Contains(l, "_time") && slices.Contains(l, "table") {
			head = l
			continue
		}
		if head == nil || len(l) != len(head) || strings.HasPrefix(l[0], "#") {
			continue
		}
		row := make(map[string]string)
		for i, k := range head {
			row[k] = l[i]
		}
		rows = append(rows, row)
	}
	return rows
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// odd are names that a careless encoder gets wrong.
var odd = []string{`a b`, `a,b`, `a=b`, `a\x2db`, `"quoted"`, `${1+1}`, `ümlaut`, `/mnt/with space,and=all`}

func sampleOf(host string, at time.Time, values map[string]float64) fleet.Sample {
	var names []string
	for n := range values {
		names = append(names, n)
	}
	slices.Sort(names)
	s := fleet.Sample{Host: fleet.HostID(host), Time: at, Boot: "0f3c9a52-1111-4222-8333-944444444444", Schema: fleet.NewSchema(names)}
	for _, n := range names {
		s.Values = append(s.Values, values[n])
	}
	return s
}

func collect(t *testing.T, c *Client, host string, metrics []string, from, to time.Time, step time.Duration) []Row {
	t.Helper()
	var rows []Row
	for r, err := range c.Query(t.Context(), fleet.HostID(host), metrics, from, to, step) {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r)
	}
	return rows
}

func TestWriteAndReadBack(t *testing.T) {
	s := influxtest.Start(t)
	c := open(t, s)
	if err := c.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{
		"cpu_busy_ratio":                 0.25,
		"memory_available_bytes":         25276502016,
		"swap_used_ratio":                math.NaN(),
		"disk_utilization_ratio{sda}":    1e-9,
		"unit_memory_bytes{x.service}":   4096,
		"unit_cpus_used{x.service}":      math.NaN(),
		"unit_memory_bytes{all.service}": math.NaN(),
	}
	for i, o := range odd {
		values["filesystem_available_ratio{"+o+"}"] = float64(i) + 0.5
	}
	first := sampleOf("host-1", t0, values)
	simulated := sampleOf("sim_2", t0, map[string]float64{"cpu_busy_ratio": 0.75})
	simulated.Simulated = true
	for range 2 { // writing again changes nothing
		if err := c.Write(t.Context(), []fleet.Sample{first, simulated}); err != nil {
			t.Fatal(err)
		}
	}

	all := flux(t, s, `from(bucket: "telemetry/autogen") |> range(start: 2026-03-01T00:00:00Z, stop: 2026-03-02T00:00:00Z) |> filter(fn: (r) => r._measurement == "host")`)
	got := make(map[string]string)
	for _, r := range all {
		got[r["host"]+" "+r["simulated"]+" "+r["_field"]+" "+r["_time"]] = r["_value"]
	}
	at := "2026-03-01T12:00:00.123456789Z"
	want := map[string]string{
		"host-1  cpu_busy_ratio " + at:         "0.25",
		"host-1  memory_available_bytes " + at: "25276502016",
		"host-1  boot " + at:                   first.Boot,
		"sim_2 true cpu_busy_ratio " + at:      "0.75",
		"sim_2 true boot " + at:                first.Boot,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the measurement host has\n%v, want\n%v", got, want)
	}
	units := flux(t, s, `from(bucket: "telemetry/autogen") |> range(start: 2026-03-01T00:00:00Z, stop: 2026-03-02T00:00:00Z) |> filter(fn: (r) => r._measurement == "unit")`)
	if len(units) != 1 || units[0]["instance"] != "x.service" || units[0]["_field"] != "unit_memory_bytes" || units[0]["_value"] != "4096" {
		t.Errorf("the measurement unit has %v", units)
	}

	// The client reads back what is not missing, exactly.
	rows := collect(t, c, "host-1", nil, t0, t0.Add(time.Second), 0)
	known := 0
	for _, v := range values {
		if !math.IsNaN(v) {
			known++
		}
	}
	if len(rows) != known {
		t.Errorf("%d rows for %d values: %v", len(rows), known, rows)
	}
	for _, r := range rows {
		if r.Host != "host-1" || !r.Time.Equal(t0) || r.Value != values[r.Series] {
			t.Errorf("row %+v, want %v at %v", r, values[r.Series], t0)
		}
	}
	for i, o := range odd {
		series := "filesystem_available_ratio{" + o + "}"
		rows := collect(t, c, "host-1", []string{series}, t0, t0.Add(time.Second), 0)
		if len(rows) != 1 || rows[0].Series != series || rows[0].Value != float64(i)+0.5 {
			t.Errorf("%s: %v", series, rows)
		}
	}
	if rows := collect(t, c, "host-1", []string{"filesystem_available_ratio"}, t0, t0.Add(time.Second), 0); len(rows) != len(odd) {
		t.Errorf("all instances of a metric: %v", rows)
	}
	if rows := collect(t, c, "", []string{"cpu_busy_ratio"}, t0, t0.Add(time.Second), 0); len(rows) != 2 {
		t.Errorf("all hosts: %v", rows)
	}
	// The end of a range does not belong to it.
	if rows := collect(t, c, "", nil, t0.Add(-time.Hour), t0, 0); len(rows) != 0 {
		t.Errorf("before the sample: %v", rows)
	}
}

func TestServerAggregatesAcrossChunks(t *testing.T) {
	s := influxtest.Start(t)
	c := open(t, s)
	schema := fleet.NewSchema([]string{"load_1m"})
	start := time.Date(2026, 3, 1, 0, 0, 30, 0, time.UTC)
	var samples []fleet.Sample
	const n = 3 * 24 * 60 // three days, one a minute
	for i := range n {
		samples = append(samples, fleet.Sample{Host: "h", Time: start.Add(time.Duration(i) * time.Minute), Schema: schema, Values: []float64{float64(i)}})
	}
	if err := c.Write(t.Context(), samples); err != nil {
		t.Fatal(err)
	}
	rows := collect(t, c, "h", []string{"load_1m"}, start, start.Add(n*time.Minute), 0)
	if len(rows) != n {
		t.Fatalf("%d of %d samples", len(rows), n)
	}
	for i, r := range rows {
		if r.Value != float64(i) || !r.Time.Equal(samples[i].Time) {
			t.Fatalf("row %d is %+v", i, r)
		}
	}
	rows = collect(t, c, "h", []string{"load_1m"}, start, start.Add(n*time.Minute), 7*time.Minute)
	type window struct{ sum, n float64 }
	windows := make(map[int64]*window) // by number since the epoch
	for i, sample := range samples {
		k := sample.Time.Unix() / 420
		if windows[k] == nil {
			windows[k] = &window{}
		}
		windows[k].sum += float64(i)
		windows[k].n++
	}
	if len(rows) != len(windows) {
		t.Errorf("%d windows, want %d", len(rows), len(windows))
	}
	for _, r := range rows {
		w := windows[r.Time.Unix()/420]
		if w == nil || math.Abs(r.Value-w.sum/w.n) > 1e-9 {
			t.Errorf("the window at %v has the mean %v, want that of %+v", r.Time, r.Value, w)
		}
	}
	// The reader may stop at any row.
	count := 0
	for _, err := range c.Query(t.Context(), "h", nil, start, start.Add(n*time.Minute), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if count++; count == 10 {
			break
		}
	}
	if count != 10 {
		t.Errorf("%d rows read", count)
	}
}

func TestRefusedSamplesAreNamed(t *testing.T) {
	s := influxtest.Start(t)
	c := open(t, s)
	good := func(i int) fleet.Sample {
		return sampleOf("h", t0.Add(time.Duration(i)*time.Second), map[string]float64{"cpu_busy_ratio": float64(i)})
	}
	if err := c.Write(t.Context(), []fleet.Sample{good(0)}); err != nil {
		t.Fatal(err)
	}
	// Another program has stored a field of another type.
	line := fmt.Sprintf("host,host=h load_1m=\"text\" %d\n", t0.UnixNano())
	resp, err := http.Post(s.URL+"/api/v2/write?bucket=telemetry/autogen&org=x", "text/plain", strings.NewReader(line))
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp, err)
	}
	resp.Body.Close()

	samples := make([]fleet.Sample, 40)
	for i := range samples {
		samples[i] = good(i)
	}
	conflict := map[string]float64{"cpu_busy_ratio": 7, "load_1m": 1}
	samples[5] = sampleOf("h", t0.Add(5*time.Second), conflict)
	samples[6] = fleet.Sample{Host: "bad host", Time: t0, Schema: samples[0].Schema, Values: samples[0].Values}
	samples[7] = fleet.Sample{Host: "h", Time: t0, Schema: samples[0].Schema, Values: nil}
	samples[8] = sampleOf("h", t0, map[string]float64{"x\nhost,host=other cpu_busy_ratio": 1})
	samples[9] = sampleOf("h", time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC), map[string]float64{"cpu_busy_ratio": 1})
	samples[10] = sampleOf("h", t0, map[string]float64{"unit_memory_bytes{a\nb}": 1})
	samples[33] = sampleOf("h", t0.Add(33*time.Second), conflict)
	err = c.Write(t.Context(), samples)
	var failed *WriteError
	if !errors.As(err, &failed) || failed.Cause != nil {
		t.Fatalf("error %v", err)
	}
	var refused []int
	for _, r := range failed.Refused {
		refused = append(refused, r.Index)
		if r.Err == nil || r.Err.Error() == "" {
			t.Errorf("no reason for sample %d", r.Index)
		}
	}
	if want := []int{5, 6, 7, 8, 9, 10, 33}; !slices.Equal(refused, want) {
		t.Errorf("refused %v, want %v", refused, want)
	}
	if !strings.Contains(failed.Refused[0].Err.Error(), "load_1m") {
		t.Errorf("the reason does not name the field: %v", failed.Refused[0].Err)
	}
	// All others are stored.
	stored := make(map[int]bool)
	for _, r := range collect(t, c, "h", []string{"cpu_busy_ratio"}, t0, t0.Add(time.Hour), 0) {
		stored[int(r.Time.Sub(t0).Seconds())] = true
	}
	for i := range samples {
		if !slices.Contains(refused, i) && !stored[i] {
			t.Errorf("sample %d was not refused and is not stored", i)
		}
	}
	if rows := collect(t, c, "other", nil, t0.Add(-time.Hour), t0.Add(time.Hour), 0); len(rows) != 0 {
		t.Errorf("a sample wrote for another host: %v", rows)
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca, cert, key := rigtest.NewAuthority(t).Write(dir, "127.0.0.1")
	s := influxtest.StartWithTLS(t, ca, cert, key)
	c := open(t, s, func(c *Config) { c.CA = ca })
	sample := []fleet.Sample{sampleOf("h", t0, map[string]float64{"cpu_busy_ratio": 1})}
	if err := c.Write(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
	if rows := collect(t, c, "h", nil, t0.Add(-time.Hour), t0.Add(time.Hour), 0); len(rows) != 1 {
		t.Errorf("it came back as %v", rows)
	}
	for name, x := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"another authority": {func(c *Config) { c.CA = "" }, "influx.ca"},
		"http":              {func(c *Config) { c.URL, c.CA = strings.Replace(c.URL, "https", "http", 1), "" }, "speaks https"},
	} {
		if err := open(t, s, x.change).Check(t.Context()); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := influxtest.Start(t)
	if err := open(t, plain, func(c *Config) { c.URL = strings.Replace(c.URL, "http", "https", 1) }).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "speaks http") {
		t.Errorf("https to a server without it: %v", err)
	}
	for _, file := range []string{filepath.Join(dir, "nothing"), key} {
		if _, err := Open(Config{URL: s.URL, Bucket: s.Bucket, CA: file}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s as authority: %v", file, err)
		}
	}
}

func TestErrorsOfARealServer(t *testing.T) {
	s := influxtest.StartWithAuth(t)
	sample := []fleet.Sample{sampleOf("h", t0, map[string]float64{"cpu_busy_ratio": 1})}
	if err := open(t, s).Write(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		class  Class
		says   string
	}{
		{"wrong password", func(c *Config) { c.Token = "admin:wrong" }, Unauthorized, "token"},
		{"no token", func(c *Config) { c.Token = "" }, Unauthorized, "token"},
		{"no such database", func(c *Config) { c.Bucket = "nowhere/autogen" }, NotFound, `create bucket "nowhere/autogen"`},
		{"no such retention policy", func(c *Config) { c.Bucket = "telemetry/nowhere" }, NotFound, "create bucket"},
		{"nobody listens", func(c *Config) { c.URL = "http://" + unused(t) }, Transient, "is InfluxDB running"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := open(t, s, c.change)
			err := client.Write(t.Context(), sample)
			var failed *WriteError
			if !errors.As(err, &failed) || failed.Cause == nil || len(failed.Refused) > 0 {
				t.Fatalf("error of the write: %v", err)
			}
			if failed.Cause.Class != c.class || !strings.Contains(err.Error(), c.says) {
				t.Errorf("write: class %s, want %s; %q should say %q", failed.Cause.Class, c.class, err, c.says)
			}
			var e *Error
			if err := client.Check(t.Context()); !errors.As(err, &e) || e.Class != c.class {
				t.Errorf("check: error %v, want class %s", err, c.class)
			}
			for _, err := range client.Query(t.Context(), "", nil, t0, t0.Add(time.Hour), 0) {
				if !errors.As(err, &e) || e.Class != c.class {
					t.Errorf("query: error %v, want class %s", err, c.class)
				}
			}
		})
	}
}

// unused is an address where nobody listens.
func unused(t *testing.T) string {
	r, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	return r.Address()
}

// TestOutage kills the server under load and writes all again after its return.
func TestOutage(t *testing.T) {
	s := influxtest.Start(t)
	c := open(t, s, func(c *Config) { c.Timeout = 5 * time.Second })
	batch := func(n int) []fleet.Sample {
		var b []fleet.Sample
		for i := range 200 {
			b = append(b, sampleOf("h", t0.Add(time.Duration(n*200+i)*time.Second), map[string]float64{"cpu_busy_ratio": float64(i)}))
		}
		return b
	}
	failures := 0
	for n := range 10 {
		if n == 4 {
			s.Kill()
		}
		for {
			err := c.Write(t.Context(), batch(n))
			if err == nil {
				break
			}
			var failed *WriteError
			if !errors.As(err, &failed) || failed.Cause == nil || failed.Cause.Class != Transient || len(failed.Refused) > 0 {
				t.Fatalf("batch %d: %v", n, err)
			}
			if n < 4 {
				continue // it is slow: this machine is busy
			}
			if failures++; failures == 3 {
				s.Run()
			}
		}
	}
	if failures < 3 {
		t.Errorf("%d failures: the outage was not seen", failures)
	}
	if rows := collect(t, c, "h", []string{"cpu_busy_ratio"}, t0, t0.Add(time.Hour), 0); len(rows) != 2000 {
		t.Errorf("%d of 2000 samples are stored", len(rows))
	}
}

// TestAnswersOfInfluxDB2 has a server answer as the documentation of the API of
// InfluxDB 2.x says (POST /api/v2/write, responses).
func TestAnswersOfInfluxDB2(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		class  Class
	}{
		{204, "", ""},
		{400, `{"code":"invalid","message":"partial write error (1 accepted): unable to parse"}`, Refused},
		{401, `{"code":"unauthorized","message":"unauthorized access"}`, Unauthorized},
		{403, `{"code":"forbidden","message":"insufficient permissions for write"}`, Unauthorized},
		{404, `{"code":"not found","message":"bucket \"b\" not found"}`, NotFound},
		{404, `{"code":"not found","message":"organization name \"o\" not found"}`, NotFound},
		{413, `{"code":"request too large","message":"cannot read data: points in batch is too large"}`, Refused},
		{422, `{"code":"unprocessable entity","message":"failure writing points to database: partial write: points beyond retention policy dropped=1"}`, Refused},
		{429, `{"code":"too many requests","message":"limit reached"}`, Transient},
		{500, `{"code":"internal error","message":"unexpected error"}`, Transient},
		{503, `{"code":"unavailable","message":"service unavailable"}`, Transient},
		{502, "<html>a proxy</html>", Transient},
	} {
		t.Run(fmt.Sprint(c.status, c.body), func(t *testing.T) {
			var got url.Values
			var token string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got, token = r.URL.Query(), r.Header.Get("Authorization")
				if strings.HasPrefix(c.body, "{") {
					w.Header().Set("Content-Type", "application/json")
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			}))
			defer server.Close()
			client, err := Open(Config{URL: server.URL + "/", Org: "o", Bucket: "b", Token: "abc=="})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			err = client.Write(t.Context(), []fleet.Sample{sampleOf("h", t0, map[string]float64{"cpu_busy_ratio": 1})})
			if got.Get("bucket") != "b" || got.Get("org") != "o" || token != "Token abc==" {
				t.Errorf("asked for %v with %q", got, token)
			}
			var failed *WriteError
			switch {
			case c.class == "":
				if err != nil {
					t.Errorf("error %v", err)
				}
			case !errors.As(err, &failed):
				t.Errorf("error %v", err)
			case c.class == Refused:
				if len(failed.Refused) != 1 || failed.Cause != nil {
					t.Errorf("error %v", err)
				}
			default:
				if failed.Cause == nil || failed.Cause.Class != c.class || len(failed.Refused) > 0 {
					t.Errorf("error %v", err)
				}
			}
		})
	}
}

func TestHostileQuestions(t *testing.T) {
	s := influxtest.Start(t)
	c := open(t, s)
	if err := c.Write(t.Context(), []fleet.Sample{
		sampleOf("mine", t0, map[string]float64{"cpu_busy_ratio": 1}),
		sampleOf("theirs", t0, map[string]float64{"cpu_busy_ratio": 2, "unit_memory_bytes{a}": 3}),
	}); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{`mine" or r.host == "theirs`, `mine") |> drop(`, "mine\n", "${1}"} {
		for r, err := range c.Query(t.Context(), fleet.HostID(host), nil, t0, t0.Add(time.Second), 0) {
			if err == nil {
				t.Errorf("host %q gave %v", host, r)
			}
		}
	}
	for _, metric := range []string{`x" or r.host == "theirs`, `cpu_busy_ratio) or (true`, `_value`, "", "é"} {
		for r, err := range c.Query(t.Context(), "mine", []string{metric}, t0, t0.Add(time.Second), 0) {
			if err == nil {
				t.Errorf("metric %q gave %v", metric, r)
			}
		}
	}
	// An instance may be anything; it stays a name.
	for _, instance := range []string{`a" or true or r.instance == "`, `") or (r) => true`, `${r.host}`, `\`, `\"`, `a\x22`} {
		rows := collect(t, c, "mine", []string{"unit_memory_bytes{" + instance + "}"}, t0, t0.Add(time.Second), 0)
		if len(rows) != 0 {
			t.Errorf("instance %q gave %v", instance, rows)
		}
	}
	for _, c2 := range []struct {
		from, to time.Time
		step     time.Duration
	}{{t0, t0, 0}, {t0, t0.Add(-1), 0}, {t0, t0.Add(time.Hour), -time.Second}, {t0, t0.Add(time.Hour), 1}, {time.Time{}, t0, 0}} {
		for _, err := range c.Query(t.Context(), "mine", nil, c2.from, c2.to, c2.step) {
			var e *Error
			if !errors.As(err, &e) || e.Class != Refused {
				t.Errorf("%+v: error %v", c2, err)
			}
		}
	}
}

func TestQueryEndsWithItsContext(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "#datatype,string,long,dateTime:RFC3339,double,string,string\r\n#group,false,false,false,false,true,true\r\n#default,_result,,,,,\r\n,result,table,_time,_value,_field,host\r\n,,0,2026-03-01T12:00:00Z,1,cpu_busy_ratio,h\r\n")
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(release)
	client, err := Open(Config{URL: server.URL, Bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rows := 0
	var last error
	for r, err := range client.Query(ctx, "h", nil, t0, t0.Add(time.Hour), 0) {
		if last = err; err == nil {
			rows++
			if r.Series != "cpu_busy_ratio" || r.Value != 1 {
				t.Errorf("row %+v", r)
			}
			cancel()
		}
	}
	if rows != 1 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d rows, error %v", rows, last)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, c := range []struct {
		config Config
		says   string
	}{
		{Config{}, "http://host:8086"},
		{Config{URL: "localhost:8086", Bucket: "b"}, "http://host:8086"},
		{Config{URL: "ftp://x", Bucket: "b"}, "http://host:8086"},
		{Config{URL: "http://user:secret@x", Bucket: "b"}, "into the token"},
		{Config{URL: "http://x"}, "bucket is empty"},
		{Config{URL: "http://x", Bucket: "b", Timeout: -1}, "negative"},
	} {
		_, err := Open(c.config)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: error %v should say %q", c.config, err, c.says)
		}
	}
}

// FuzzEncode has any name and value make either an error or exactly one line of
// line protocol for each point.
func FuzzEncode(f *testing.F) {
	f.Add("cpu_busy_ratio", "h", 1.0)
	for _, o := range odd {
		f.Add("unit_memory_bytes{"+o+"}", "host", math.NaN())
	}
	f.Add(`disk_queue{a\}`, "h", 0.0)
	f.Fuzz(func(t *testing.T, series, host string, v float64) {
		var l layouts
		s := sampleOf(host, t0, map[string]float64{series: v})
		b, n, err := l.encode(nil, &s)
		if err != nil {
			if len(b) != 0 {
				t.Errorf("%q with error %v", b, err)
			}
			return
		}
		if strings.Count(string(b), "\n") != n || n > 1 {
			t.Fatalf("%d lines: %q", n, b)
		}
		if n == 1 && !strings.HasSuffix(string(b), fmt.Sprintf(" %d\n", t0.UnixNano())) {
			t.Errorf("no time at the end of %q", b)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("metric_%d_ratio", i))
	}
	for i := range 50 {
		names = append(names, fmt.Sprintf("unit_%d_bytes{u%d.service}", i%10, i/10))
	}
	s := fleet.Sample{Host: "host-1", Time: t0, Boot: "0f3c9a52", Schema: fleet.NewSchema(names), Values: make([]float64, len(names))}
	for i := range s.Values {
		s.Values[i] = float64(i) * 1.000001
	}
	var l layouts
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, _, err = l.encode(buf[:0], &s); err != nil {
			b.Fatal(err)
		}
	}
}
