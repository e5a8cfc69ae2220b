package simulator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

const (
	gib         = float64(1 << 30)
	mib         = float64(1 << 20)
	page        = 4096.0
	day         = 86400.0
	mostFaults  = 3      // at a time on one host
	handleLimit = 400000 // open files
	leastFree   = 0.012  // of the memory, under which a host crashes
	hotCelsius  = 88     // from where the CPUs throttle
)

// host is the state of one host.
type host struct {
	n      int
	id     fleet.HostID
	domain string

	// What it is made of.
	cpus, memory, vmBytes     float64
	base, amplitude           float64 // of the load
	phaseCos, phaseSin        float64 // of the day
	readRate, writeRate       float64 // bytes a second at full load
	netRate, ambient          float64
	unitBase                  [unitCount]float64 // bytes
	backupHour, backupSeconds float64
	deployHour                float64
	backups, deploys          bool

	noise, arrivals, jobs *rand.Rand

	// What it is doing.
	vms                        []int
	slow, fast, io, net        float64
	load1, load5, temp, cached float64
	warm                       [unitCount]float64 // 0 after a start, 1 with warm caches
	restarted                  [unitCount]float64 // when it is up again
	restarts                   [unitCount]int
	justRestarted              [unitCount]bool
	faults                     []fault
	boots, migrations          int
	bootID                     string
	wentDown, upAt             float64
	tainted                    bool

	nextFault, nextJob  float64
	job, backup, deploy benign
}

// fault is a fault that lasts; index is its place in the history.
type fault struct {
	index    int
	kind     Kind
	t        trait
	rate     float64 // of the level, per second at the mean load
	level    float64
	span     float64 // what level 1 amounts to, in bytes or files
	unit     int     // whose restart may cure it
	fatal    bool
	attempts [3]int  // of recycle, reset, migrate
	moments  int     // how many of levels it has passed
	repairAt float64 // 0 where nobody is about to
	how      Ending  // of the repair
}

// benign is something that looks like a fault.
type benign struct {
	start, end float64
	size       float64
	date       int // the day for which it was done
}

func (b *benign) on(now float64) bool { return b.end > now }

func newHost(f *Fleet, n int) *host {
	c := stream(f.cfg.Seed, n, 4)
	h := &host{
		n: n, id: fleet.HostID(fmt.Sprintf("%s%04d", f.cfg.Prefix, n+1)), domain: fmt.Sprintf("rack-%02d", n%f.cfg.FaultDomains+1),
		noise: stream(f.cfg.Seed, n, 1), arrivals: stream(f.cfg.Seed, n, 2), jobs: stream(f.cfg.Seed, n, 5),
		faults: make([]fault, 0, mostFaults+len(f.cfg.Script)), upAt: -1, wentDown: -1,
	}
	if f.cfg.Hosts < 100 {
		h.id = fleet.HostID(fmt.Sprintf("%s%02d", f.cfg.Prefix, n+1))
	}
	h.memory = hostMemory(c)
	h.cpus = h.memory / (4 * gib)
	h.vmBytes = vmBytes(h.memory, f.cfg.VMsPerHost)
	h.base, h.amplitude = 0.18+0.2*c.Float64(), 0.05+0.12*c.Float64()
	h.phaseSin, h.phaseCos = math.Sincos(2 * math.Pi * (c.NormFloat64() * 1.5) / 24)
	h.readRate, h.writeRate, h.netRate = (40+60*c.Float64())*mib, (30+50*c.Float64())*mib, (80+120*c.Float64())*mib
	h.ambient = 34 + 6*c.Float64()
	for u := range h.unitBase {
		h.unitBase[u] = (80 + 420*c.Float64()) * mib
		h.warm[u] = 1
	}
	h.backupHour, h.backupSeconds = 5*c.Float64(), 1200+4200*c.Float64()
	h.deployHour = 9 + 7*c.Float64()
	h.backups, h.deploys = c.Float64() < f.cfg.BenignRate, c.Float64() < f.cfg.BenignRate
	h.backup.date, h.deploy.date = -1, -1
	h.slow, h.fast, h.io, h.net = c.NormFloat64(), c.NormFloat64(), c.NormFloat64(), c.NormFloat64()
	h.cached = 0.15 * h.memory
	load := h.load(f.calendarAtStart(), 0)
	h.temp = h.ambient + 30*load
	h.load1, h.load5 = load*h.cpus, load*h.cpus
	h.nextFault = h.gap(h.arrivals, f.cfg.FaultRate/(30*day))
	h.nextJob = h.gap(h.jobs, f.cfg.BenignRate/day)
	h.reboot(f.cfg.Seed)
	return h
}

// hostMemory is one of memories, and vmBytes what each of n VMs has of it.
func hostMemory(r *rand.Rand) float64 { return memories[r.IntN(len(memories))] }

var memories = [...]float64{64 * gib, 128 * gib, 256 * gib}

func vmBytes(memory float64, n int) float64 {
	return 512 * mib * math.Floor(0.5*memory/(512*mib)/math.Max(float64(n), 1))
}

func (f *Fleet) calendarAtStart() *calendar {
	c := f.calendar(f.cfg.Start)
	return &c
}

// gap draws the time to the next event of a Poisson process.
func (h *host) gap(r *rand.Rand, perSecond float64) float64 {
	if perSecond <= 0 {
		return math.Inf(1)
	}
	return r.ExpFloat64() / perSecond
}

func (h *host) reboot(seed uint64) {
	h.boots++
	a, b := mix(seed^uint64(h.n)<<20^uint64(h.boots)), mix(seed+uint64(h.n)<<20+uint64(h.boots))
	h.bootID = fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", a>>32, a>>16&0xffff, a&0xfff, b>>52, b&0xffffffffffff)
	h.tainted = false
}

func (h *host) down(now float64) bool { return now < h.upAt }

// load is the share of the CPUs that the host's own VMs want at the calendar's time.
func (h *host) load(c *calendar, vms float64) float64 {
	l := (h.base + h.amplitude*(c.cos*h.phaseCos-c.sin*h.phaseSin)) * c.week
	l += 0.03*h.slow + 0.012*h.fast
	if vms > 0 {
		l *= vms
	}
	return min(max(l, 0.01), 0.97)
}

// step advances the host to f.now and fills x; false while the host is down.
func (h *host) step(f *Fleet, c *calendar, x []float64) bool {
	now, dt := f.now, f.dt
	h.arrive(f)
	h.repairs(f)
	if h.down(now) {
		return false
	}
	h.benign(f, c)

	r, n := &f.rates, h.noise
	h.slow = r.slow*h.slow + r.slowKick*n.NormFloat64()
	h.fast = r.fast*h.fast + r.fastKick*n.NormFloat64()
	h.io = r.noise*h.io + r.noiseKick*n.NormFloat64()
	h.net = r.noise*h.net + r.noiseKick*n.NormFloat64()

	share := 1.0
	if home := f.cfg.VMsPerHost; home > 0 {
		share = float64(len(h.vms)) / float64(home)
	}
	load := h.load(c, share)
	if len(h.vms) == 0 && f.cfg.VMsPerHost > 0 {
		load = 0.01
	}

	// Faults.
	var e effects
	for i := 0; i < len(h.faults); i++ {
		if crashed, gone := h.develop(f, i, load/(h.base*c.week+0.02), &e); crashed {
			f.crash(h, h.faults[i].index)
			return false
		} else if gone {
			i--
		}
	}

	// CPUs.
	jobCPU := 0.0
	if h.job.on(now) {
		jobCPU = 0.25 * h.job.size
	}
	speed := 1 - 0.5*e.throttle
	guest := min(load/speed+e.noisy, 0.97)
	user := guest + 0.01 + jobCPU + 0.3*e.spin/h.cpus
	system := 0.008 + 0.06*load + 0.05*e.reclaim + 0.1*e.blocked
	softirq := 0.002 + 0.015*load
	busy := user + system + softirq
	if busy > 0.995 {
		scale := 0.995 / busy
		user, system, softirq, guest, busy = user*scale, system*scale, softirq*scale, guest*scale, 0.995
	}
	busy *= 1 + 0.015*n.NormFloat64()
	busy = min(busy, 0.999)
	queue := busy * busy / (1 - min(busy, 0.98)) // of an M/M/1 server

	// Disks.
	ioLoad := max(0.02, load*(1+0.2*h.io))
	backupRead := 0.0
	if h.backup.on(now) {
		backupRead = 120 * mib * h.backup.size
	}
	read := h.readRate*ioLoad + backupRead
	write := h.writeRate * ioLoad * (1 + 0.1*n.NormFloat64())
	slowdown := 1 + e.diskSlow
	util := min(0.98, (0.02+read/(1500*mib)+write/(900*mib))*slowdown)
	latency := 0.00012 * slowdown / (1 - 0.8*util)
	iowait := min((1-busy)*0.9, 0.3*util*util+0.2*e.blocked)

	// Memory.
	var units, unitBytes float64
	for u := range unitCount {
		x := x[hostColumns+u*unitColumns:]
		h.warm[u] += r.warm * (1 - h.warm[u])
		up := now >= h.restarted[u]
		b := h.unitBase[u]*(0.6+0.4*h.warm[u])*(1+0.04*load+0.003*n.NormFloat64()) + e.leaked[u]
		cpu := 0.03 + 0.25*load*(1+0.15*n.NormFloat64())
		tasks := 24 + 12*load
		restarts := 0.0
		if h.justRestarted[u] {
			h.justRestarted[u], restarts = false, 1/dt
		}
		if e.hung[u] > 0 {
			cpu *= 1 - min(1, 1.2*e.hung[u])
			tasks += 400 * e.hung[u] * e.hung[u]
			b += 40 * mib * e.hung[u]
		}
		healthy := up && e.hung[u] < unhealthyLevel && !e.starved[u]
		x[unitActive], x[unitHealthy] = flag(up), flag(healthy)
		if !up {
			b, cpu, tasks = 4*mib, 0, 1
		}
		if !healthy {
			unitBytes++
		}
		x[unitMemory], x[unitCPUs], x[unitTasks], x[unitRestarts] = pages(b), max(cpu, 0), math.Round(tasks), restarts
		units += b
	}
	unhealthy := unitBytes
	jobBytes := 0.0
	if h.job.on(now) {
		jobBytes = 0.1 * h.memory * h.job.size * (now - h.job.start) / (h.job.end - h.job.start)
	}
	var guests float64
	for _, v := range h.vms {
		guests += f.vms[v].bytes
	}
	kernel := 0.02*h.memory + 0.004*h.memory*load
	slab := 0.004*h.memory*(1+0.1*load+0.004*n.NormFloat64()) + e.slab
	available := 0.98*h.memory - guests - units - jobBytes - kernel - slab
	if available < leastFree*h.memory {
		f.crash(h, h.hungriest())
		return false
	}
	available *= 1 - 0.002*math.Abs(n.NormFloat64())
	want := 0.18 * h.memory * (1 + 0.15*load)
	if h.backup.on(now) {
		want += 0.25 * h.memory
	}
	h.cached += r.cache * (want - h.cached)
	h.cached = min(h.cached, 0.9*available)
	short := max(0, 1-available/(0.08*h.memory)) // 0 with room, 1 with none
	e.reclaim = short

	// Network and the rest.
	netLoad := max(0.01, load*(1+0.15*h.net))
	receive := h.netRate * netLoad * (1 - 0.6*e.drops)
	transmit := 0.8*h.netRate*netLoad*(1+0.05*n.NormFloat64())*(1-0.6*e.drops) + 0.9*backupRead
	packets := receive / 900
	h.temp += r.heat * (h.ambient + 32*busy + e.heat - h.temp)
	temp := h.temp + 0.4*n.NormFloat64()
	h.load1 += r.load1 * (busy*h.cpus + 60*e.blocked + 8*util - h.load1)
	h.load5 += r.load5 * (h.load1 - h.load5)
	blocked := 0.3*util + 0.2*h.cpus*util*e.diskSlow/40 + 40*e.blocked
	if e.blocked > 0.2 {
		h.tainted = true
	}
	wait := min(1, 0.02*queue+1.2*e.noisy*guest)

	x[cpuUser], x[cpuSystem], x[cpuIOWait], x[cpuSoftIRQ] = user*(1+0.01*n.NormFloat64()), system*(1+0.03*n.NormFloat64()), iowait, softirq*(1+0.04*n.NormFloat64())
	x[cpuGuest], x[cpuBusy] = guest*(1+0.01*n.NormFloat64()), busy
	x[cpuBusiest] = min(1, busy+(0.12+e.spin*0.5)*(1+0.2*n.NormFloat64()))
	x[load1], x[load5], x[load1PerCPU] = h.load1, h.load5, h.load1/h.cpus
	x[contextSwitches] = h.cpus * (900 + 9000*load) * (1 + 0.03*n.NormFloat64())
	x[interrupts] = h.cpus * (500 + 5000*load + 0.01*packets) * (1 + 0.025*n.NormFloat64())
	x[forks] = (3 + 12*load) * (1 + 0.15*n.NormFloat64())
	x[tasksRunning] = math.Round(1 + busy*h.cpus*0.6 + 0.5*queue*math.Abs(n.NormFloat64()))
	x[tasksBlocked] = h.poisson(blocked)
	x[memTotal], x[memAvailable], x[memAvailableRatio] = h.memory, pages(available), available/h.memory
	x[memCached], x[memFree] = pages(h.cached), pages(available-0.9*h.cached)
	x[memAnonymous] = pages(guests + units + jobBytes)
	x[memDirty] = pages(write * 1.5 * (1 + 0.2*math.Abs(n.NormFloat64())) * (1 + e.diskSlow/4))
	x[memSlabUnreclaimable], x[memCorrupted] = pages(slab), e.corrupted*page
	x[pageFaults] = (2000 + 24000*load) * (1 + 0.05*n.NormFloat64())
	x[majorFaults] = h.poisson((0.2+400*short*short)*dt) / dt
	x[reclaimDirect] = 60000 * short * short * (1 + 0.3*math.Abs(n.NormFloat64()))
	x[allocStalls] = h.poisson(200*short*short*dt) / dt
	x[pressureCPU] = wait * (1 + 0.1*n.NormFloat64())
	x[pressureMemory] = min(1, 0.6*short*short)
	x[pressureMemoryFull] = min(1, 0.3*short*short)
	x[pressureIO] = min(1, (0.4*util*util+0.5*e.blocked+0.3*short*short)*(1+0.08*math.Abs(n.NormFloat64())))
	x[pressureIOFull] = 0.5 * x[pressureIO]
	x[disksRead], x[disksWrite] = read, max(write, 0)
	x[diskReadLatency] = latency * (1 + 0.1*math.Abs(n.NormFloat64()))
	x[diskWriteLatency] = 0.6 * latency * (1 + 0.12*math.Abs(n.NormFloat64()))
	x[diskUtilization], x[diskQueue] = util, util/(1-0.9*util)
	errors := h.poisson(e.ioErrors*dt) / dt
	x[diskErrors], x[diskErrorsOf] = errors, errors
	x[fsAvailable], x[fsReadOnly] = 0.55-0.05*load, flag(e.readOnly)
	x[netReceive], x[netTransmit], x[netReceivePackets] = receive, max(transmit, 0), packets*(1+0.02*n.NormFloat64())
	x[netErrors] = h.poisson(30*e.drops*dt) / dt
	x[netDrops] = h.poisson((0.002+200*e.drops)*dt) / dt
	x[netLinkChanges] = h.poisson(e.flaps*dt) / dt
	x[netLinksDown] = flag(x[netLinkChanges] > 0 && n.Float64() < 0.3)
	x[tcpRetransmits] = min(1, (0.0008+0.0015*load)*(1+0.1*math.Abs(n.NormFloat64()))+0.15*e.drops)
	x[tcpConnections] = math.Round(150 + 900*load)
	files := 9000 + 6000*load + 150*float64(len(h.vms)) + e.files
	x[fileHandles], x[fileHandlesRatio] = math.Round(files), files/handleLimit
	x[threads] = math.Round(600 + 20*h.cpus + 20*float64(len(h.vms)) + 40*load + 400*e.pile)
	x[kernelTainted] = flag(h.tainted)
	x[kernelWarnings] = h.poisson(e.warnings*dt) / dt
	x[kernelHungTasks] = h.poisson(e.hungTasks*dt) / dt
	x[edacCorrected] = h.poisson(e.corrected*dt) / dt
	x[edacUncorrected] = h.poisson(e.uncorrected*dt) / dt
	x[temperature] = temp
	x[throttles] = h.poisson(e.throttle*20*dt) / dt
	x[unitsUnhealthy] = unhealthy
	running := float64(len(h.vms))
	x[vmsTotal], x[vmsRunning], x[vmsCPUs], x[vmsMemory] = running, running, guest*h.cpus, guests
	x[vmSteal] = min(1, 0.5*wait+0.9*e.noisy)
	f.tally.SlowVMSeconds += 0.3 * e.noisy * running * dt
	return true
}

// effects is what the faults of a host do at one instant.
type effects struct {
	leaked                   [unitCount]float64 // bytes
	hung                     [unitCount]float64 // 0..1
	starved                  [unitCount]bool    // of open files
	pile, spin               float64
	slab, files, corrupted   float64
	blocked, diskSlow, drops float64
	noisy, heat, throttle    float64
	reclaim                  float64
	readOnly                 bool
	warnings, hungTasks      float64 // per second, as those that follow
	ioErrors, flaps          float64
	corrected, uncorrected   float64
}

const (
	unhealthyLevel = 0.35 // of a hang, from where its health check fails
	starvedLevel   = 0.95 // of a descriptor leak
)

// develop moves fault i on by one step. crashed tells that it took the host down,
// gone that it ended by itself and is no longer at i.
func (h *host) develop(f *Fleet, i int, pace float64, e *effects) (crashed, gone bool) {
	x := &h.faults[i]
	x.level += x.rate * f.dt * min(max(pace, 0.3), 2)
	l := x.level
	if l >= 1 {
		if x.fatal {
			return true, false
		}
		f.end(h, i, Subsided, "")
		return false, true
	}
	if l >= x.t.visible {
		past := &f.history[x.index]
		if past.Effect.IsZero() {
			past.Effect = f.time(f.now)
		}
		if f.cfg.Moments && (len(past.Moments) == 0 || x.moments < len(levels) && l >= levels[x.moments]) {
			for x.moments < len(levels) && l >= levels[x.moments] {
				x.moments++
			}
			past.Moments = append(past.Moments, Moment{f.time(f.now), l, f.would(h, x)})
		}
	}
	switch x.kind {
	case MemoryLeak:
		e.leaked[x.unit] += l * x.span
	case ServiceHang:
		e.hung[x.unit] = max(e.hung[x.unit], l)
		e.pile += l * l
	case DescriptorLeak:
		e.files += l * x.span
		e.starved[x.unit] = e.starved[x.unit] || l > starvedLevel
	case KernelMemoryLeak:
		e.slab += l * x.span
	case LockUp:
		e.blocked += l * l
		e.hungTasks += rateFor(f.dt, 0.6, 0.008) * l
		e.warnings += rateFor(f.dt, 0.3, 0.003) * l
		e.spin += l
	case DiskWear:
		e.diskSlow += 40 * l * l
		e.ioErrors += rateFor(f.dt, 4, 0.05) * l * l
		e.readOnly = e.readOnly || l > 0.97
	case ECCStorm:
		e.corrected += rateFor(f.dt, 5, 0.5) * l * l
		e.corrupted += math.Floor(400 * l * l)
		if l > 0.85 {
			e.uncorrected += rateFor(f.dt, 0.1, 0.002)
		}
	case LinkFlaps:
		e.flaps += rateFor(f.dt, 0.5, 0.02) * (0.2 + l)
		e.drops = min(1, e.drops+0.3*l)
	case Overheating:
		e.heat += 60 * l
		if h.temp > hotCelsius {
			e.throttle = min(1, e.throttle+(h.temp-hotCelsius)/12)
		}
	case NoisyNeighbour:
		e.noisy = min(0.8, e.noisy+0.7*math.Min(1, 3*l))
	}
	return false, false
}

// rateFor is the rate of an event: dense where a host is sampled each second and its
// faults are over in minutes, sparse where they take days.
func rateFor(dt, dense, sparse float64) float64 {
	if dt < 10 {
		return dense
	}
	return sparse
}

// hungriest is the history index of the fault that holds most memory, -1 if none does.
func (h *host) hungriest() int {
	best, most := -1, 0.0
	for _, x := range h.faults {
		if held := x.level * x.span; (x.kind == MemoryLeak || x.kind == KernelMemoryLeak) && held > most {
			best, most = x.index, held
		}
	}
	return best
}

// poisson draws a count; for a mean over 30 by the normal approximation.
func (h *host) poisson(mean float64) float64 {
	if mean <= 0 {
		return 0
	}
	if mean > 30 {
		return max(0, math.Round(mean+math.Sqrt(mean)*h.noise.NormFloat64()))
	}
	limit, p, k := math.Exp(-mean), h.noise.Float64(), 0.0
	for p > limit {
		p *= h.noise.Float64()
		k++
	}
	return k
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func pages(bytes float64) float64 { return max(0, float64(int64(bytes/page))*page) }

// arrive begins the random fault that is due. One that finds the host down or
// with too many faults is left out.
func (h *host) arrive(f *Fleet) {
	for f.now >= h.nextFault {
		r := h.arrivals
		h.nextFault += h.gap(r, f.cfg.FaultRate/(30*day))
		kind, t := drawKind(r)
		lasts := t.least.Seconds() * math.Pow(float64(t.most)/float64(t.least), r.Float64())
		unit, fatal := r.IntN(unitCount), r.Float64() < t.fatal
		if !h.down(f.now) && len(h.faults) < mostFaults {
			f.begin(h, kind, lasts, unit, fatal)
		}
	}
}

// repairs ends the faults whose repair is over, and calls the VMs home once the
// host is sound.
func (h *host) repairs(f *Fleet) {
	by := false
	for i := len(h.faults) - 1; i >= 0; i-- {
		if x := &h.faults[i]; x.repairAt > 0 && f.now >= x.repairAt {
			by = by || x.how == Repaired
			f.end(h, i, x.how, "")
			if len(h.faults) == 0 {
				f.home(h)
			}
		}
	}
	if by {
		f.tally.HandOverVMSeconds += f.cfg.HandOverSeconds * float64(len(h.vms))
	}
}

// benign begins and ends what looks like a fault.
func (h *host) benign(f *Fleet, c *calendar) {
	now := f.now
	if h.backups && h.backup.date != c.date && c.hour >= h.backupHour && c.hour < h.backupHour+1 {
		h.backup = benign{start: now, end: now + h.backupSeconds*(0.8+0.4*h.jobs.Float64()), size: 0.5 + 0.5*h.jobs.Float64(), date: c.date}
		f.note(h, Backup, h.backup.end)
	}
	if h.deploys && h.deploy.date != c.date && c.hour >= h.deployHour && c.hour < h.deployHour+1 {
		h.deploy.date = c.date
		if (c.date+h.n%5)%5 == 0 && c.week == 1 {
			for u := range unitCount {
				h.restart(u, now+2)
				f.release(h, u)
			}
			f.note(h, Deploy, now+600)
		}
	}
	for now >= h.nextJob {
		lasts := 600 + 3000*h.jobs.Float64()
		size := 0.3 + 0.7*h.jobs.Float64()
		h.nextJob += h.gap(h.jobs, f.cfg.BenignRate/day)
		if !h.job.on(now) {
			h.job = benign{start: now, end: now + lasts, size: size}
			f.note(h, BatchJob, h.job.end)
		}
	}
}

// restart stops a unit until it is up again, with cold caches.
func (h *host) restart(u int, until float64) {
	h.restarted[u], h.warm[u] = until, 0
	h.restarts[u]++
	h.justRestarted[u] = true
}

func unitIndex(name string) int { return slices.Index(unitNames[:], name) }
