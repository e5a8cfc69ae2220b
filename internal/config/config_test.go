package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDefaultsAreValidAndSafe(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Policy.Mode != "approve" || c.Agent.Act || c.Agent.Migrate.URI != "" || c.Agent.Migrate.Accept || c.Bus.Listen != "" || !strings.HasPrefix(c.API.Listen, "127.0.0.1:") {
		t.Errorf("an empty configuration must act on nothing and listen on loopback alone: %+v", c)
	}
}

func TestParse(t *testing.T) {
	c := Default()
	err := c.Parse([]byte(`
influx: {url: "http://127.0.0.1:8086", org: o, bucket: tg/autogen, token: "u:p"}
agent:
  host: h1
  interval: 250ms
  units:
    - {name: a.service, health: {tcp: "127.0.0.1:9000", timeout: 2s}}
    - {name: b.service}
policy: {mode: automatic, cooldown: 0s}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Agent.Interval.D() != 250*time.Millisecond || len(c.Agent.Units) != 2 || c.Agent.Units[0].Health.Timeout.D() != 2*time.Second {
		t.Errorf("agent %+v", c.Agent)
	}
	if c.Policy.Mode != "automatic" || c.Policy.Cooldown != 0 || c.Policy.MaxConcurrent != 1 {
		t.Errorf("policy %+v: what the file does not say keeps its default", c.Policy)
	}
}

func TestAFileThatSaysNothingLeavesTheDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# api: {}\n", "---\n# later\n", "policy:\n", "\ufeffdata: .tardigrade\n"} {
		c := Default()
		if err := c.Parse([]byte(text)); err != nil || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: %v, %+v", text, err, c)
		}
	}
}

// What stands around a mistake may be a password.
func TestErrorsHaveNoSecrets(t *testing.T) {
	for _, text := range []string{
		"influx:\n  token: s3cret\n  buckt: x\n", "influx: {token: [s3cret]}", "influx:\n  token: s3cret\n\tbucket: x\n",
		"bus: {url: \"nats://u:s3cret@h\", x: 1}", "influx: {bucket: b, url: \"ht!tp://u:s3cret@h\"}",
	} {
		c := Default()
		if err := c.Parse([]byte(text)); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Eight lines can name a hundred million values.
func TestAliasesAreCounted(t *testing.T) {
	text := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 7 {
		text += fmt.Sprintf("a%d: &a%[1]d [%s*a%d]\n", i+1, strings.Repeat(fmt.Sprintf("*a%d,", i), 9), i)
	}
	c := Default()
	if err := c.Parse([]byte(text + "agent: {include: *a7}\n")); err == nil || !strings.Contains(err.Error(), "more than 200000 keys and values") {
		t.Error(err)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown key", "agent: {intervall: 1s}", "intervall"},
		{"unknown section", "agnet: {}", "agnet"},
		{"duration without a unit", "agent: {interval: 5}", "not a duration"},
		{"word for a duration", "model: {learn: soon}", "not a duration"},
		{"negative duration", "policy: {cooldown: -5s}", "negative"},
		{"two buses", "bus: {url: 'tls://n1:4222', listen: '127.0.0.1:4222'}", "give one of them"},
		{"a key for no cluster", "bus: {callout: /seed}", "bus.url"},
		{"replicas on one machine", "bus: {replicas: 3}", "bus.replicas"},
		{"interval too short", "agent: {interval: 1ms}", "out of range"},
		{"little to learn failures from", "model: {train_range_failure: 1m}", "train_range_failure"},
		{"no number of alarms", "model: {false_alarms_per_month: .nan}", "model.false_alarms_per_month"},
		{"no horizon", "model: {horizon: 0s}", "model.horizon"},
		{"samples without a bound", "bus: {sample_mib: -1}", "bus.sample_mib"},
		{"samples for no time", "bus: {sample_age: 0s}", "bus.sample_age"},
		{"no distance", "model: {drift: {ks: 0}}", "model.drift"},
		{"a measure that there is not", "model: {drift: {kuiper: 0.2}}", "kuiper"},
		{"unknown detector", "model: {detector: best}", "default or fast"},
		{"mode of a reset", "agent: {reset: {mode: warm}}", "hypervisor or kexec"},
		{"time of a reset", "agent: {reset: {vm_timeout: 10m}}", "agent.reset.vm_timeout"},
		{"power without a controller", "power: {cycle_emptied: true}", "power.hosts"},
		{"controller without a password", "power: {hosts: {h: {address: a}}}", "password_file"},
		{"two hypervisors", "agent: {guests: {qmp_dir: /a, libvirt: /b}}", "not both"},
		{"migration without a target", "agent: {migrate: {uri: 'qemu+tls://h/system'}}", "{host}"},
		{"no migration at a time", "agent: {migrate: {parallel: 0}}", "agent.migrate.parallel"},
		{"shared somewhere", "agent: {migrate: {shared: [vms]}}", "absolute path"},
		{"host name", "agent: {host: 'a b'}", "agent.host"},
		{"not a unit", "agent: {units: [{name: libvirtd}]}", "libvirtd.service"},
		{"two health checks", "agent: {units: [{name: a.service, health: {tcp: 'a:1', http: 'http://a'}}]}", "give one of"},
		{"a health check on D-Bus and another", "agent: {units: [{name: a.service, health: {dbus: a.b, http: 'http://a'}}]}", "give one of"},
		{"include without discover", "agent: {include: ['x*.service']}", "agent.discover"},
		{"exclude what is no pattern", "agent: {exclude: ['[']}", "agent.exclude[0]"},
		{"influx without a bucket", "influx: {url: 'http://127.0.0.1:8086'}", "influx.bucket"},
		{"influx with a bad address", "influx: {url: 'localhost:8086', bucket: b}", "influx.url"},
		{"mode", "policy: {mode: auto}", "automatic"},
		{"role", "api: {tokens: [{name: a, sha256: " + strings.Repeat("a", 64) + ", role: root}]}", "role"},
		{"token in plain text", "api: {tokens: [{name: a, sha256: secret, role: admin}]}", "sha256sum"},
		{"listen", "api: {listen: '8080'}", "ADDRESS:PORT"},
		{"limit", "policy: {max_concurrent: 0}", "policy.freeze"},
		{"not YAML", "agent: [", ""},
		{"a list", "- a", ""},
		{"a fraction", "agent: {units: [], migrate: {parallel: 1.5}}", "1.5 is not a whole number"},
		{"another type", "bus: [1]", "mapping"},
		{"two documents", "data: a\n---\ndata: b\n", "2 documents"},
		{"nested without end", "data: a\nbus: " + strings.Repeat("[", 100_000), "nested more than 100 deep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Default()
			err := d.Parse([]byte(c.file))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one that says %q", err, c.want)
			}
		})
	}
}

func TestAMissingFileIsAnError(t *testing.T) {
	if _, err := Load(t.TempDir() + "/none.yaml"); err == nil {
		t.Error("a missing file was taken for an empty one")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("agent: {interval: 1s}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Default()
		if c.Parse(data) == nil && c.Validate() != nil {
			t.Error("accepted a configuration that is not valid")
		}
	})
}
