package qmp

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// Stat is what a guest used. All but MemoryBytes are counters since its QEMU started;
// what cannot be told is NaN.
type Stat struct {
	ID      string
	Running bool
	// MemoryBytes is the host's memory that its process holds.
	MemoryBytes float64
	// CPUSeconds is the CPU time of its process, and StealSeconds the time for which the
	// threads of its virtual CPUs were ready to run and waited for a CPU of the host.
	CPUSeconds, StealSeconds                    float64
	BlockReadBytes, BlockWriteBytes, BlockError float64
}

// tick is the unit of CPU time in /proc, which is the same on all of Linux' platforms
// that run VMs.
const tick = 0.01

// Stats reads what the guests use, from QEMU and from /proc.
func (g *Guests) Stats(ctx context.Context) ([]Stat, error) {
	guests, err := g.Guests(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Stat, len(guests))
	for i, guest := range guests {
		unknown := math.NaN()
		out[i] = Stat{ID: guest.ID, Running: guest.State == "running" && guest.Alive, MemoryBytes: unknown, CPUSeconds: unknown, StealSeconds: unknown,
			BlockReadBytes: unknown, BlockWriteBytes: unknown, BlockError: unknown}
		if guest.State == "shut-off" {
			continue
		}
		// A guest that does not answer has been noted above; here it lacks values.
		_ = g.stat(ctx, guest, &out[i])
	}
	return out, nil
}

func (g *Guests) stat(ctx context.Context, guest fleet.GuestReport, s *Stat) error {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	c, err := Dial(ctx, g.socket(guest.ID))
	if err != nil {
		return err
	}
	defer c.Close()
	pid, err := c.peer()
	if err != nil {
		return err
	}
	var threads []struct {
		ID int `json:"thread-id"`
	}
	if err := c.Execute("query-cpus-fast", nil, &threads); err != nil {
		return err
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if stat, err := os.ReadFile(filepath.Join(dir, "stat")); err == nil {
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 21 {
			user, err := strconv.ParseFloat(fields[11], 64)
			system, err2 := strconv.ParseFloat(fields[12], 64)
			pages, err3 := strconv.ParseFloat(fields[21], 64)
			if err == nil && err2 == nil {
				s.CPUSeconds = (user + system) * tick
			}
			if err3 == nil {
				s.MemoryBytes = pages * float64(os.Getpagesize())
			}
		}
	}
	steal, known := 0.0, len(threads) > 0
	for _, t := range threads {
		var ran, waited uint64
		text, err := os.ReadFile(filepath.Join(dir, "task", strconv.Itoa(t.ID), "schedstat"))
		if err == nil {
			_, err = fmt.Sscan(string(text), &ran, &waited)
		}
		known = known && err == nil
		steal += float64(waited) / 1e9
	}
	if known {
		s.StealSeconds = steal
	}
	var blocks []struct {
		Stats struct {
			Read       float64 `json:"rd_bytes"`
			Write      float64 `json:"wr_bytes"`
			FailedRead float64 `json:"failed_rd_operations"`
			FailedWrit float64 `json:"failed_wr_operations"`
			FailedSync float64 `json:"failed_flush_operations"`
		} `json:"stats"`
	}
	if err := c.Execute("query-blockstats", nil, &blocks); err != nil {
		return err
	}
	s.BlockReadBytes, s.BlockWriteBytes, s.BlockError = 0, 0, 0
	for _, b := range blocks {
		s.BlockReadBytes += b.Stats.Read
		s.BlockWriteBytes += b.Stats.Write
		s.BlockError += b.Stats.FailedRead + b.Stats.FailedWrit + b.Stats.FailedSync
	}
	return nil
}
