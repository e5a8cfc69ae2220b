package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/tardigrade-recovery/tardigrade/model/detector"
)

// Score says which detector to measure on how large a fleet.
type Score struct {
	Detector    string
	Dims, Hosts int
	// Models is how many models there are; hosts that are alike share one.
	Models int
	// Learn is the number of samples that a model learns from.
	Learn int
	// Samples is how many are scored in all, at least one for each host.
	Samples int
}

// ScoreResult is what it costs on one core.
type ScoreResult struct {
	Detector string `json:"detector"`
	Dims     int    `json:"dims"`
	Hosts    int    `json:"hosts"`
	Models   int    `json:"models"`
	Samples  int    `json:"samples"`
	// PerS is by CPU time, PerSWall by the clock on the wall, which others who use this machine
	// slow down.
	PerS     float64 `json:"samples_per_s"`
	PerSWall float64 `json:"samples_per_s_wall"`
	Micros   float64 `json:"us_per_sample"`
	Allocs   float64 `json:"allocs_per_sample"`
	// HostBytes is what the heap holds for a host, with its share of the models, and ModelBytes
	// what one model is.
	HostBytes  float64 `json:"bytes_per_host"`
	ModelBytes int     `json:"model_bytes"`
	TrainS     float64 `json:"train_s_per_model"`
}

// Run learns the models, then scores samples of all hosts in turn, as they come from a fleet: between two
// samples of a host are those of all others. Only the scoring counts, on one core and
// with the collector of garbage at rest.
func (o Score) Run(ctx context.Context) (ScoreResult, error) {
	r := ScoreResult{Detector: o.Detector, Dims: o.Dims, Hosts: o.Hosts, Models: o.Models}
	d, err := detector.Find(o.Detector)
	if err != nil {
		return r, err
	}
	switch {
	case d.Fit == nil:
		return r, fmt.Errorf("the detector %s scores whole series only", d.Name)
	case o.Dims < 1 || o.Dims > 512 || o.Hosts < 1 || o.Hosts > 1_000_000 || o.Models < 1 || o.Models > o.Hosts || o.Learn < 20 || o.Learn > 1<<16 || o.Samples < 1:
		return r, fmt.Errorf("%d dims, %d hosts, %d models, %d samples to learn and %d to score: 1 to 512 dims, 1 to 1000000 hosts, 1 model to as many as hosts, 20 to 65536 samples to learn and at least 1 to score are possible", o.Dims, o.Hosts, o.Models, o.Learn, o.Samples)
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // also what pools kept
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	fleet := make([]telemetry, o.Hosts)
	for i := range fleet {
		fleet[i] = newTelemetry(o.Dims, i)
	}
	x := make([]float64, o.Hosts*o.Dims)
	before, began := heap(), CPUTime()
	models := make([]detector.Model, o.Models)
	for k := range models {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		rows := make([][]float64, o.Learn)
		for i := range rows {
			rows[i] = make([]float64, o.Dims)
			fleet[k].next(rows[i])
		}
		if models[k], err = d.Fit(rows); err != nil {
			return r, err
		}
	}
	r.TrainS = (CPUTime() - began).Seconds() / float64(o.Models)
	scorers := make([]detector.Scorer, o.Hosts)
	for i := range scorers {
		scorers[i] = models[i%o.Models].Scorer()
	}
	r.HostBytes = (float64(heap()) - float64(before)) / float64(o.Hosts)
	r.ModelBytes = models[0].Bytes()

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var cpu, wall time.Duration
	var mallocs uint64
	sum := 0.0
	for round := 0; r.Samples < o.Samples || round < 2; round++ {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		for i := range fleet {
			fleet[i].next(x[i*o.Dims : (i+1)*o.Dims])
		}
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		t0, c0 := time.Now(), CPUTime()
		for i, s := range scorers {
			sum += s.Score(x[i*o.Dims : (i+1)*o.Dims])
		}
		c1, t1 := CPUTime(), time.Now()
		runtime.ReadMemStats(&m1)
		if round == 0 { // not counted
			continue
		}
		cpu, wall = cpu+c1-c0, wall+t1.Sub(t0)
		mallocs += m1.Mallocs - m0.Mallocs
		r.Samples += o.Hosts
	}
	if math.IsNaN(sum) {
		return r, errors.New("a score was not a number")
	}
	r.PerS = float64(r.Samples) / cpu.Seconds()
	r.PerSWall = float64(r.Samples) / wall.Seconds()
	r.Micros = 1e6 / r.PerS
	// What the runtime allocates for itself now and then is none of the detector's.
	r.Allocs = math.Round(100*float64(mallocs)/float64(r.Samples)) / 100
	return r, nil
}

// CPUTime is the CPU time that the process has used so far.
func CPUTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// factors is how many hidden causes move the columns of a host.
const factors = 4

// telemetry generates samples of a host: a daily cycle and a few hidden causes
// (Ornstein-Uhlenbeck processes from seconds to hours) that most columns share, noise of their
// own, counters that burst now and then, and columns that never move.
type telemetry struct {
	r       *rand.Rand
	n       float64
	level   [factors]float64
	phase   float64
	columns *[]column
}

type column struct {
	base, daily, noise float64
	weight             [factors]float64
	bursts             bool
}

// newTelemetry returns a host; all hosts have columns of the same kind, which depend on
// the number of columns alone.
func newTelemetry(dims, host int) telemetry {
	r := rand.New(rand.NewPCG(uint64(dims), 1))
	columns := make([]column, dims)
	for i := range columns {
		c := column{base: math.Exp(4 * r.NormFloat64())}
		switch i % 8 {
		case 7:
		case 6:
			c.bursts = true
		default:
			c.daily, c.noise = 0.3*r.Float64()*c.base, 0.05*c.base*r.Float64()
			for k := range c.weight {
				c.weight[k] = 0.1 * c.base * r.NormFloat64()
			}
		}
		columns[i] = c
	}
	t := telemetry{r: rand.New(rand.NewPCG(uint64(host), 2)), columns: &columns}
	t.phase = 2 * math.Pi * t.r.Float64()
	return t
}

func (t *telemetry) next(x []float64) {
	t.n++
	tau := 2.0
	for k := range t.level {
		keep := math.Exp(-1 / tau)
		t.level[k] = keep*t.level[k] + math.Sqrt(1-keep*keep)*t.r.NormFloat64()
		tau *= 6
	}
	day := math.Sin(2*math.Pi*t.n/1440 + t.phase)
	for i, c := range *t.columns {
		v := c.base + c.daily*day
		if c.noise > 0 {
			v += c.noise * t.r.NormFloat64()
		}
		for k, w := range c.weight {
			v += w * t.level[k]
		}
		if c.bursts {
			if v = 0; t.r.IntN(50) == 0 {
				v = c.base * t.r.ExpFloat64()
			}
		}
		x[i] = v
	}
}
