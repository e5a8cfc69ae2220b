// Package a is rig A: real guests in QEMU that the agent's own runner moves into new
// QEMU processes, and that must not notice more than a pause. `make rig-a` runs it.
package a
