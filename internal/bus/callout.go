package bus

import (
	"encoding/json"
	"fmt"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Callout is how an external cluster asks which agents are admitted (NATS's auth callout:
// authorization.auth_callout in the servers' configuration).
type Callout struct {
	// Seed is of the account key that the servers know as issuer; "" leaves the agents to
	// the cluster's own configuration.
	Seed string
	// Account is the one for the agents; it must not be the control plane's own, see [imports].
	Account string
}

const subjectCallout = "$SYS.REQ.USER.AUTH"

// answer answers the cluster's questions. Of several control planes one does.
func (b *Bus) answer(c Callout, agents func(fleet.HostID, string) bool) error {
	key, err := nkeys.FromSeed([]byte(c.Seed))
	if err != nil {
		return fmt.Errorf("bus.callout: %w; the file must hold the seed of an account key (SA...)", err)
	}
	public, err := key.PublicKey()
	if err != nil || !nkeys.IsValidPublicAccountKey(public) {
		return fmt.Errorf("bus.callout: the seed is not of an account key (SA...)")
	}
	own, err := b.account()
	if err != nil {
		return fmt.Errorf("bus.account: ask the cluster for the control plane's own account: %w", err)
	}
	if own == c.Account {
		return fmt.Errorf("bus.account: the agents are to be in %s, which is the account of the control plane: give them one of their own, as docs/bus.md says", own)
	}
	_, err = b.Conn.QueueSubscribe(subjectCallout, "tardigrade", func(m *nats.Msg) {
		q, err := jwt.DecodeAuthorizationRequestClaims(string(m.Data))
		if err != nil {
			b.log.Warn("the cluster asked in a way that is not understood", "err", err)
			return
		}
		out := jwt.NewAuthorizationResponseClaims(q.UserNkey)
		out.Audience = q.Server.ID
		host := fleet.HostID(q.ConnectOptions.Username)
		if agents == nil || host.Validate() != nil || !agents(host, q.ConnectOptions.Password) {
			out.Error = "not an enrolled host, or not its token"
		} else if out.Jwt, err = admission(q.UserNkey, c.Account, host).Encode(key); err != nil {
			out.Error = err.Error()
		}
		text, err := out.Encode(key)
		if err == nil {
			err = m.Respond([]byte(text))
		}
		if err != nil {
			b.log.Warn("the cluster was not told about an agent", "host", host, "err", err)
		}
	})
	return err
}

// account is the one that the control plane is in.
func (b *Bus) account() (string, error) {
	m, err := b.Conn.Request("$SYS.REQ.USER.INFO", nil, clusterPatience)
	if err != nil {
		return "", err
	}
	var info struct {
		Data struct {
			Account string `json:"account"`
		} `json:"data"`
	}
	err = json.Unmarshal(m.Data, &info)
	return info.Data.Account, err
}

// admission confines an agent as the embedded server does.
func admission(user, account string, host fleet.HostID) *jwt.UserClaims {
	u, may := jwt.NewUserClaims(user), agentPermissions(host)
	u.Name, u.Audience = string(host), account
	u.Pub.Allow.Add(may.Publish.Allow...)
	u.Sub.Allow.Add(may.Subscribe.Allow...)
	return u
}
