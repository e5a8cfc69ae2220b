// Package e2e has the stories that Tardigrade exists for, told by its real parts:
// the built program as control plane and as agent, a systemd host, QEMU guests and
// an InfluxDB server. It has tests only.
package e2e
