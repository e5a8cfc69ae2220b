// Package c is rig C: a host in a virtual machine of its own, with memory that a reset
// keeps, guests in it, and the real agent, which resets the host's kernel by kexec under
// the guests, on a command of a real control plane, though it is killed around that. `make rig-c`
// runs it.
package c
