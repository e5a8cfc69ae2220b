// Package telemetry keeps the samples of many hosts in a directory, small enough
// for a month of a fleet and quick to write and to read host by host.
//
// # The directory
//
//	manifest.json   version, series, start, interval, hosts, number of samples and of blocks
//	telemetry.bin   the samples, in blocks
//	faults.jsonl    the truth, where there is one: a JSON object a line; see [simulator.Fault]
//
// The manifest is written last: a directory without one is not whole and is refused.
//
// # telemetry.bin
//
// The magic "TGTELEM1", then blocks until the end. All integers are little-endian.
// A block has the samples of one host in order of time:
//
//	uint32  number of the host in the manifest
//	uint32  rows, at most 4096
//	uint32  length of the payload
//	uint32  CRC-32C of the first two numbers and the payload
//	payload, compressed by Zstandard (RFC 8878):
//	  rows × int64   time in Unix milliseconds, each after the first as the difference to the one before
//	  uint16         boots; then for each: uint16 first row, uint8 length, the boot id
//	  columns × 3 × rows bytes: for each column the third byte of each value, then the second, then the first
//
// A value is an IEEE 754 binary32 of which the upper three bytes are kept, rounded to 10
// bits of mantissa: its relative error is at most 2^-11, 0.05 %. Missing is NaN. The
// bytes of one significance stand together because that is what compresses: exponents
// of a column hardly change.
package telemetry
