// Package b is rig B: two systemd hosts in network namespaces, each with libvirtd, an
// agent and services, and one control plane that recycles, diagnoses, migrates and
// power-cycles them.
package b
