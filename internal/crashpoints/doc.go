// Package crashpoints has the tests that end real processes with kill -9 at each of
// their writes, start them again, and look at what became of the host.
package crashpoints
