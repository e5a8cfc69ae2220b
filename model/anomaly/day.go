package anomaly

import "math"

// day is what a host does at each time of the day, and how far it usually is from that. It
// goes on learning: services change their days.
type day struct {
	period, slots int
	phase         int       // of the next sample, 0..period-1
	profile       []int16   // a slot after the other; unseen slots have unseen in each column
	total         []int32   // of the current slot's samples
	count         int32     // of samples in it
	base, size    []float32 // the tail of the distances, which follows the host
}

const (
	mostSlots  = 72
	unseen     = math.MinInt16
	dayRate    = 0.3         // of a day's weight in the profile
	dayStep    = 3 * steps   // most that a day moves it, times dayRate
	dayMemory  = 6000        // samples over which the tail of the distances is forgotten
	dayTeaches = 10          // excess that teaches, in sizes
	dayLeast   = float32(.2) // least size of the tail
	leastDays  = 3           // that must be learned
	leastDaily = 0.1         // see findPeriod
)

func newDay(m *Model) day {
	if m.period == 0 {
		return day{}
	}
	d := day{period: m.period, slots: min(mostSlots, m.period), phase: m.phase, total: make([]int32, m.columns)}
	d.profile = append(d.profile, m.profile...)
	d.base = append(d.base, m.excess[untimely].base...)
	d.size = append(d.size, m.excess[untimely].size...)
	return d
}

func (d *day) bytes() int {
	return 2*len(d.profile) + 4*(len(d.total)+len(d.base)+len(d.size))
}

func (d *day) slot(phase int) int { return phase * d.slots / d.period }

// compare fills dst with how far each column of the sample, as logarithmic z-score in
// steps, is outside of what the days before had within a slot of this time, and takes the
// sample in.
func (d *day) compare(now []int16, dst []float32) {
	c := len(now)
	slot := d.slot(d.phase)
	at := d.profile[slot*c : (slot+1)*c]
	before := d.profile[(slot+d.slots-1)%d.slots*c:][:c]
	after := d.profile[(slot+1)%d.slots*c:][:c]
	known := at[0] != unseen
	if !known {
		clear(dst)
	} else {
		if before[0] == unseen {
			before = at
		}
		if after[0] == unseen {
			after = at
		}
		for i, v := range now {
			low, high := min(at[i], before[i], after[i]), max(at[i], before[i], after[i])
			dst[i] = float32(max(int32(v)-int32(high), int32(low)-int32(v), 0)) * (1.0 / steps)
		}
	}
	for i, v := range now {
		d.total[i] += int32(v)
	}
	d.count++
	if d.phase++; d.phase == d.period {
		d.phase = 0
	}
	if d.slot(d.phase) == slot && d.slots > 1 {
		return
	}
	for i, t := range d.total {
		mean := t / d.count
		if known {
			mean = int32(at[i]) + int32(math.RoundToEven(dayRate*float64(max(-dayStep, min(dayStep, mean-int32(at[i]))))))
		}
		at[i] = int16(max(-math.MaxInt16, min(math.MaxInt16, mean)))
	}
	clear(d.total)
	d.count = 0
}

// adapt moves the tails of the distances.
func (d *day) adapt(distances []float32) {
	const over = 1 - tailQuantile
	base, size := d.base[:len(distances)], d.size[:len(distances)]
	for i, v := range distances {
		step := size[i] * (1.0 / (over * dayMemory))
		excess := v - base[i]
		if excess <= 0 {
			base[i] = max(0, base[i]-over*step)
			continue
		}
		base[i] += tailQuantile * step
		size[i] = max(dayLeast, size[i]+(min(excess, dayTeaches*size[i])-size[i])*(1.0/(over*dayMemory)))
	}
}

// jump moves to another time of the day. A slot that was begun and left early is not learned.
func (d *day) jump(phase int) {
	if d.period == 0 || phase == d.phase {
		return
	}
	if phase < d.phase || d.slot(phase) != d.slot(d.phase) {
		clear(d.total)
		d.count = 0
	}
	d.phase = phase
}

// days are how many samples a day can have: from one each hour to one each 10 s.
var days = [...]int{24, 48, 72, 96, 144, 288, 480, 720, 1440, 2880, 4320, 5760, 8640}

// findPeriod returns how many samples a day has by what the columns, logarithmic z-scores in
// steps, do again after so many samples and not after half as many; 0 if nothing speaks
// for a daily course. The shortest of those that fit about equally well is taken.
func findPeriod(rows []int16, columns int, among []int) int {
	n := len(rows) / columns
	var fits [len(days)]float64
	best := 0.0
	mean, power := make([]float64, columns), make([]float64, columns)
	for r := range n {
		for i, v := range rows[r*columns : (r+1)*columns] {
			mean[i] += float64(v) / float64(n)
		}
	}
	for r := range n {
		for i, v := range rows[r*columns : (r+1)*columns] {
			power[i] += (float64(v) - mean[i]) * (float64(v) - mean[i]) / float64(n)
		}
	}
	product := make([]float64, columns)
	again := func(lag int) []float64 {
		clear(product)
		for r := lag; r < n; r++ {
			a, b := rows[r*columns:(r+1)*columns], rows[(r-lag)*columns:(r-lag+1)*columns]
			for i := range product {
				product[i] += (float64(a[i]) - mean[i]) * (float64(b[i]) - mean[i])
			}
		}
		for i := range product {
			product[i] /= float64(n-lag) * max(power[i], 1)
		}
		return product
	}
	moving := 0
	for _, p := range power {
		if p > 1 {
			moving++
		}
	}
	half := make([]float64, columns)
	for k, p := range among {
		if n < leastDays*p {
			continue
		}
		copy(half, again(p/2))
		for i, v := range again(p) {
			if power[i] > 1 {
				fits[k] += max(0, min(1, v-max(half[i], 0))) / float64(moving)
			}
		}
		best = max(best, fits[k])
	}
	if best < leastDaily {
		return 0
	}
	for k, p := range among {
		if fits[k] >= 0.9*best {
			return p
		}
	}
	return 0
}
