package collector

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/shirou/gopsutil/v3/mem"
)

var memoryMetrics = []Metric{
	gauge("memory_total_bytes", "bytes", "RAM that the kernel manages", "gopsutil mem.VirtualMemory"),
	gauge("memory_available_bytes", "bytes", "RAM that programs can get without swapping", "gopsutil mem.VirtualMemory"),
	ratio("memory_available_ratio", "memory_available_bytes of memory_total_bytes", "gopsutil mem.VirtualMemory"),
	gauge("memory_free_bytes", "bytes", "RAM that nothing uses", "gopsutil mem.VirtualMemory"),
	gauge("memory_cached_bytes", "bytes", "page cache and reclaimable slab", "gopsutil mem.VirtualMemory"),
	gauge("memory_buffers_bytes", "bytes", "buffers of block devices", "gopsutil mem.VirtualMemory"),
	gauge("memory_active_bytes", "bytes", "RAM used lately", "gopsutil mem.VirtualMemory"),
	gauge("memory_inactive_bytes", "bytes", "RAM not used lately, reclaimed first", "gopsutil mem.VirtualMemory"),
	gauge("memory_anonymous_bytes", "bytes", "memory of programs that no file backs", "/proc/meminfo AnonPages"),
	gauge("memory_shared_bytes", "bytes", "shared memory and tmpfs, guests' RAM in /dev/shm included", "gopsutil mem.VirtualMemory"),
	gauge("memory_mapped_bytes", "bytes", "files mapped into programs", "gopsutil mem.VirtualMemory"),
	gauge("memory_dirty_bytes", "bytes", "RAM that waits to be written to disks", "gopsutil mem.VirtualMemory"),
	gauge("memory_writeback_bytes", "bytes", "RAM that is being written to disks", "gopsutil mem.VirtualMemory"),
	gauge("memory_slab_bytes", "bytes", "kernel objects", "gopsutil mem.VirtualMemory"),
	gauge("memory_slab_unreclaimable_bytes", "bytes", "kernel objects that cannot be dropped: grows when the kernel leaks", "gopsutil mem.VirtualMemory"),
	gauge("memory_page_tables_bytes", "bytes", "page tables", "gopsutil mem.VirtualMemory"),
	gauge("memory_kernel_stack_bytes", "bytes", "kernel stacks of tasks", "/proc/meminfo KernelStack"),
	gauge("memory_per_cpu_bytes", "bytes", "memory that the kernel keeps for each CPU", "/proc/meminfo Percpu"),
	gauge("memory_vmalloc_used_bytes", "bytes", "virtually contiguous kernel memory", "gopsutil mem.VirtualMemory"),
	gauge("memory_unevictable_bytes", "bytes", "memory that is locked or cannot be swapped", "/proc/meminfo Unevictable"),
	gauge("memory_committed_bytes", "bytes", "memory promised to programs", "gopsutil mem.VirtualMemory"),
	gauge("memory_commit_ratio", "ratio", "memory_committed_bytes of the commit limit; may exceed 1", "gopsutil mem.VirtualMemory"),
	gauge("memory_hardware_corrupted_bytes", "bytes", "RAM taken out of use because the hardware corrupted it", "/proc/meminfo HardwareCorrupted"),
	gauge("memory_anonymous_huge_bytes", "bytes", "transparent huge pages", "gopsutil mem.VirtualMemory"),
	gauge("huge_pages_total_bytes", "bytes", "memory set aside as huge pages", "gopsutil mem.VirtualMemory"),
	gauge("huge_pages_free_bytes", "bytes", "huge pages that nobody uses", "gopsutil mem.VirtualMemory"),
	gauge("swap_total_bytes", "bytes", "swap space", "gopsutil mem.VirtualMemory"),
	gauge("swap_used_bytes", "bytes", "swap space in use", "gopsutil mem.VirtualMemory"),
	ratio("swap_used_ratio", "swap_used_bytes of swap_total_bytes; missing without swap", "gopsutil mem.VirtualMemory"),
	gauge("swap_cached_bytes", "bytes", "memory that is both in RAM and in swap", "gopsutil mem.VirtualMemory"),
}

// memorySource reads memory through gopsutil, and the lines that gopsutil does
// not know from /proc/meminfo.
type memorySource struct{ meminfo *file }

func newMemorySource(h *host) source {
	return &memorySource{h.kept(filepath.Join(h.proc, "meminfo"))}
}

func (s *memorySource) close() error { s.meminfo.close(); return nil }

func (s *memorySource) collect(ctx context.Context, f *frame) error {
	// gopsutil answers 0 for a line that is not there: it is asked only about
	// what this kernel has.
	has, err := s.readMeminfo(f)
	if err != nil {
		return err
	}
	m, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return err
	}
	if m.Total == 0 {
		return errors.New("/proc/meminfo does not say how much memory there is")
	}
	put := func(line memLine, metric string, v uint64) {
		if has[line] {
			f.set(metric, float64(v))
		}
	}
	put(memTotal, "memory_total_bytes", m.Total)
	f.set("memory_available_bytes", float64(m.Available))
	f.set("memory_available_ratio", clampRatio(share(float64(m.Available), float64(m.Total))))
	put(memFree, "memory_free_bytes", m.Free)
	put(memCached, "memory_cached_bytes", m.Cached)
	put(memBuffers, "memory_buffers_bytes", m.Buffers)
	put(memActive, "memory_active_bytes", m.Active)
	put(memInactive, "memory_inactive_bytes", m.Inactive)
	put(memShmem, "memory_shared_bytes", m.Shared)
	put(memMapped, "memory_mapped_bytes", m.Mapped)
	put(memDirty, "memory_dirty_bytes", m.Dirty)
	put(memWriteback, "memory_writeback_bytes", m.WriteBack)
	put(memSlab, "memory_slab_bytes", m.Slab)
	put(memUnreclaimable, "memory_slab_unreclaimable_bytes", m.Sunreclaim)
	put(memPageTables, "memory_page_tables_bytes", m.PageTables)
	put(memVmalloc, "memory_vmalloc_used_bytes", m.VmallocUsed)
	put(memCommitted, "memory_committed_bytes", m.CommittedAS)
	if has[memCommitted] && has[memCommitLimit] {
		f.set("memory_commit_ratio", share(float64(m.CommittedAS), float64(m.CommitLimit)))
	}
	put(memAnonHuge, "memory_anonymous_huge_bytes", m.AnonHugePages)
	put(memHugeTotal, "huge_pages_total_bytes", m.HugePagesTotal*m.HugePageSize)
	put(memHugeTotal, "huge_pages_free_bytes", m.HugePagesFree*m.HugePageSize)
	put(memSwapTotal, "swap_total_bytes", m.SwapTotal)
	if has[memSwapTotal] && m.SwapFree <= m.SwapTotal {
		used := float64(m.SwapTotal - m.SwapFree)
		f.set("swap_used_bytes", used)
		f.set("swap_used_ratio", share(used, float64(m.SwapTotal)))
	}
	put(memSwapCached, "swap_cached_bytes", m.SwapCached)
	return nil
}

// memLine is a line of /proc/meminfo.
type memLine int

const (
	memTotal memLine = iota
	memFree
	memCached
	memBuffers
	memActive
	memInactive
	memShmem
	memMapped
	memDirty
	memWriteback
	memSlab
	memUnreclaimable
	memPageTables
	memVmalloc
	memCommitted
	memCommitLimit
	memAnonHuge
	memHugeTotal
	memSwapTotal
	memSwapCached
	memLines
)

var meminfoLines = map[string]memLine{
	"MemTotal:": memTotal, "MemFree:": memFree, "Cached:": memCached, "Buffers:": memBuffers, "Active:": memActive,
	"Inactive:": memInactive, "Shmem:": memShmem, "Mapped:": memMapped, "Dirty:": memDirty, "Writeback:": memWriteback,
	"Slab:": memSlab, "SUnreclaim:": memUnreclaimable, "PageTables:": memPageTables, "VmallocUsed:": memVmalloc,
	"Committed_AS:": memCommitted, "CommitLimit:": memCommitLimit, "AnonHugePages:": memAnonHuge,
	"HugePages_Total:": memHugeTotal, "SwapTotal:": memSwapTotal, "SwapCached:": memSwapCached,
}

var meminfoOwn = map[string]string{
	"AnonPages:":         "memory_anonymous_bytes",
	"KernelStack:":       "memory_kernel_stack_bytes",
	"Percpu:":            "memory_per_cpu_bytes",
	"Unevictable:":       "memory_unevictable_bytes",
	"HardwareCorrupted:": "memory_hardware_corrupted_bytes",
}

func (s *memorySource) readMeminfo(f *frame) (has [memLines]bool, err error) {
	b, err := s.meminfo.read()
	if err != nil {
		return has, err
	}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, rest := cutField(line)
		v, _, ok := cutUint(rest)
		if !ok {
			continue
		}
		if l, ok := meminfoLines[string(key)]; ok {
			has[l] = true
		} else if metric, ok := meminfoOwn[string(key)]; ok {
			f.set(metric, float64(v)*1024)
		}
	}
	return has, nil
}

var vmstatMetrics = []Metric{
	rate("page_faults_per_second", "1/s", "page faults of all kinds", "/proc/vmstat pgfault"),
	rate("major_page_faults_per_second", "1/s", "page faults that had to read a disk", "/proc/vmstat pgmajfault"),
	rate("page_in_bytes_per_second", "bytes/s", "read from block devices", "/proc/vmstat pgpgin"),
	rate("page_out_bytes_per_second", "bytes/s", "written to block devices", "/proc/vmstat pgpgout"),
	rate("swap_in_bytes_per_second", "bytes/s", "read back from swap", "/proc/vmstat pswpin"),
	rate("swap_out_bytes_per_second", "bytes/s", "written to swap", "/proc/vmstat pswpout"),
	rate("reclaim_scanned_kswapd_pages_per_second", "1/s", "pages that the background reclaim looked at", "/proc/vmstat pgscan_kswapd"),
	rate("reclaim_scanned_direct_pages_per_second", "1/s", "pages that programs had to look at themselves to get memory", "/proc/vmstat pgscan_direct"),
	rate("reclaim_stolen_pages_per_second", "1/s", "pages that reclaim freed", "/proc/vmstat pgsteal_kswapd and pgsteal_direct"),
	rate("reclaim_refaulted_pages_per_second", "1/s", "pages that were reclaimed and needed again soon", "/proc/vmstat workingset_refault_*"),
	rate("allocation_stalls_per_second", "1/s", "allocations that waited for reclaim", "/proc/vmstat allocstall_*"),
	rate("compaction_stalls_per_second", "1/s", "allocations that waited for compaction", "/proc/vmstat compact_stall"),
	rate("compaction_failures_per_second", "1/s", "compactions that did not help", "/proc/vmstat compact_fail"),
	rate("huge_page_fallbacks_per_second", "1/s", "huge pages that could not be had", "/proc/vmstat thp_fault_fallback"),
	rate("numa_misses_per_second", "1/s", "allocations on a node that was not meant", "/proc/vmstat numa_miss"),
	rate("oom_kills_per_second", "1/s", "processes killed for want of memory", "/proc/vmstat oom_kill"),
	rate("balloon_inflated_pages_per_second", "1/s", "pages given back to the hypervisor underneath", "/proc/vmstat balloon_inflate"),
}

// vmstatRates says which counters of /proc/vmstat make a metric; several add up.
var vmstatRates = []struct {
	metric   string
	factor   float64
	counters []string
}{
	{"page_faults_per_second", 1, []string{"pgfault"}},
	{"major_page_faults_per_second", 1, []string{"pgmajfault"}},
	{"page_in_bytes_per_second", 1024, []string{"pgpgin"}},
	{"page_out_bytes_per_second", 1024, []string{"pgpgout"}},
	{"swap_in_bytes_per_second", pageSize, []string{"pswpin"}},
	{"swap_out_bytes_per_second", pageSize, []string{"pswpout"}},
	{"reclaim_scanned_kswapd_pages_per_second", 1, []string{"pgscan_kswapd"}},
	{"reclaim_scanned_direct_pages_per_second", 1, []string{"pgscan_direct"}},
	{"reclaim_stolen_pages_per_second", 1, []string{"pgsteal_kswapd", "pgsteal_direct"}},
	{"reclaim_refaulted_pages_per_second", 1, []string{"workingset_refault", "workingset_refault_anon", "workingset_refault_file"}},
	{"allocation_stalls_per_second", 1, []string{"allocstall", "allocstall_dma", "allocstall_dma32", "allocstall_normal", "allocstall_movable", "allocstall_device"}},
	{"compaction_stalls_per_second", 1, []string{"compact_stall"}},
	{"compaction_failures_per_second", 1, []string{"compact_fail"}},
	{"huge_page_fallbacks_per_second", 1, []string{"thp_fault_fallback"}},
	{"numa_misses_per_second", 1, []string{"numa_miss"}},
	{"oom_kills_per_second", 1, []string{"oom_kill"}},
	{"balloon_inflated_pages_per_second", 1, []string{"balloon_inflate"}},
}

var pageSize = float64(os.Getpagesize())

type vmstatSource struct {
	vmstat *file
	index  map[string]int // counter to entry of vmstatRates
	sums   []uint64
	found  []bool
}

func newVMStatSource(h *host) source {
	s := &vmstatSource{
		vmstat: h.kept(filepath.Join(h.proc, "vmstat")),
		index:  make(map[string]int),
		sums:   make([]uint64, len(vmstatRates)),
		found:  make([]bool, len(vmstatRates)),
	}
	for i, r := range vmstatRates {
		for _, c := range r.counters {
			s.index[c] = i
		}
	}
	return s
}

func (s *vmstatSource) close() error { s.vmstat.close(); return nil }

func (s *vmstatSource) collect(_ context.Context, f *frame) error {
	b, err := s.vmstat.read()
	if err != nil {
		return err
	}
	clear(s.sums)
	clear(s.found)
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, rest := cutField(line)
		if i, ok := s.index[string(key)]; ok {
			if v, _, ok := cutUint(rest); ok {
				s.sums[i] += v
				s.found[i] = true
			}
		}
	}
	for i, r := range vmstatRates {
		if s.found[i] {
			f.rate(r.metric, s.sums[i], r.factor)
		}
	}
	return nil
}
