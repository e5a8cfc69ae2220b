package bus

import (
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
)

// Agents are in an account of their own, from which they reach what is imported into it, and nothing
// else. Their permissions alone would not confine them: a server checks to which subject a client
// publishes, but not to which one it wants the answer. In the account of the control plane that answer could
// be a record of the audit trail or of a table, or ask the server to delete a stream. Here it stays in the
// agents' account, or comes to a subject of another host, where nothing that does not name that host counts.
const agentsAccount = "AGENTS"

// imports are the subjects that agents may publish to. What fetches a command asks for one at a time, so that each
// has one answer at most.
var imports = []string{
	subjectSamples + "*", subjectReports + "*", subjectHosts + "*", subjectBundles + "*",
	// No agent asks for this, but where it is imported the server does not answer beside it that the agents' account
	// has no JetStream.
	"$JS.API.INFO",
	"$JS.API.CONSUMER.INFO." + StreamCommands + ".*", "$JS.API.CONSUMER.MSG.NEXT." + StreamCommands + ".*", "$JS.ACK." + StreamCommands + ".>",
}

// isolate makes the agents' account on the embedded server. JetStream must run: it looks for accounts
// when it starts, and would want to be told which of several is its own.
func (b *Bus) isolate() (*server.Account, error) {
	own := b.server.GlobalAccount()
	agents, err := b.server.RegisterAccount(agentsAccount)
	for _, subject := range imports {
		if err == nil {
			err = own.AddServiceExport(subject, []*server.Account{agents})
		}
		if err == nil {
			err = agents.AddServiceImport(own, subject, subject)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make the account of the agents: %w", err)
	}
	return agents, nil
}
