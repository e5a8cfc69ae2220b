// Package executor carries out actions on hosts. It has a pure state machine
// ([Next]) that says what follows what, and a [Coordinator] that drives it: it
// asks the guard, takes the host's lease, stores each new state before it acts on
// it, sends commands to host agents, takes their reports, and after a crash goes
// on with every execution that is not final.
//
// What acts on a host lives in the sub-packages: host is the agent's side,
// driver/... its tools, journal its memory, diagnose its look at what went wrong,
// and guard decides what is allowed.
package executor
