// Package collector samples a host: it reads what announces failures from
// gopsutil, /proc, /sys and cgroups, and turns it into [fleet.Sample] values.
//
// Every metric is in the [Catalogue], with a unit, a kind and where it comes
// from. Each source has a file of its own and one method. Counters are turned
// into rates per second of running time. What a host does not have, or what
// cannot be known yet (the first rate after a start), is NaN and never 0.
//
// A source that hangs, as a read from a stuck device does, is abandoned when
// its deadline passes: the sample goes out without it, its [SourceReport] says
// so, and it is not started again while the hanging call lasts.
package collector
