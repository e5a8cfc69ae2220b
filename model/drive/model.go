package drive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/tardigrade-recovery/tardigrade/model/gbdt"
)

// Horizon is how far ahead failures are predicted, in hours.
const Horizon = 30 * day

// Drive is the life of a drive as far as it was watched, in power-on hours.
type Drive struct {
	Model  string
	SizeTB float64       // NaN where it isn't known
	Seen   []Observation // in order, at least one
	// From is the instant before which the drive is neither learned from nor judged; what it said earlier is known.
	From   float64
	End    float64 // when it failed, or was last seen
	Failed bool
}

// instants calls each with every observation that is an instant at which the model is asked: each
// time the drive says something new, and is still working.
func (d *Drive) instants(each func(k int, now float64)) {
	for k, o := range d.Seen {
		if o.Hours >= d.From && o.Hours < d.End {
			each(k, o.Hours)
		}
	}
}

// label says whether the drive fails within the horizon after an instant. That is not known of
// one that was seen working for less than that.
func (d *Drive) label(now float64) (fails, known bool) {
	if d.Failed {
		return d.End-now <= Horizon, true
	}
	return false, now+Horizon <= d.End
}

// Model predicts failures of drives. It is safe for concurrent use.
type Model struct {
	rates rates
	trees *gbdt.Model
}

// mostInstants is how many instants are learned from. Where there are more, those after which the
// drive goes on working are drawn at random.
const mostInstants = 1_000_000

// quietShare is the share that is learned from of the instants at which a drive counts nothing that goes wrong,
// and never fails: most are such, and those that are drawn weigh as much as all.
const quietShare = 0.15

// ahead is what the averaged models learn: a failure within so many hours. The longer horizon
// says more of which drives fail, the shorter one more of when. For both, the outcome of an instant counts as
// known where it is for Horizon. Each has other random features, and the last learns from the drives' peaks: that
// finds more drives at few false alarms, and orders instants worse.
var ahead = [...]float64{Horizon, 2 * Horizon, Horizon, Horizon}

const averaged = len(ahead)

// Train learns from drives. Progress, where it is not nil, is called after each tree.
func Train(ctx context.Context, drives []Drive, seed uint64, progress func(done, of int)) (*Model, error) {
	m := &Model{rates: learn(drives)}
	all := m.examples(drives, seed)
	if len(all.X) == 0 {
		return nil, fmt.Errorf("drives: none of %d drives was watched for long enough to learn from", len(drives))
	}
	c := gbdt.Config{Trees: 140, Leaves: 40, Rate: 0.07, L2: 5, FeatureShare: 0.25, Features: Features()}
	var parts []*gbdt.Model
	for k := range averaged {
		c.Seed = seed*uint64(averaged) + uint64(k)
		if progress != nil {
			c.Progress = func(done, of int) { progress(k*of+done, averaged*of) }
		}
		within := ahead[k]
		for i, left := range all.left {
			all.Y[i] = left <= within
		}
		data := all.Data
		if k == averaged-1 {
			others, err := gbdt.Average(parts...)
			if err != nil {
				return nil, fmt.Errorf("drives: %w", err)
			}
			risk := make([]float64, len(all.X))
			gbdt.NewScorer(others).Raw(risk, all.X)
			data = all.peaks(risk)
		}
		one, err := gbdt.Train(ctx, data, c)
		if err != nil {
			return nil, fmt.Errorf("drives: %w", err)
		}
		parts = append(parts, one)
	}
	var err error
	if m.trees, err = gbdt.Average(parts...); err != nil {
		return nil, fmt.Errorf("drives: %w", err)
	}
	return m, nil
}

// examples are instants to learn from.
type examples struct {
	gbdt.Data           // Y is set for each horizon anew
	left      []float64 // how many hours after each the drive failed: infinity where it did not
	drive     []int     // whose they are, in order
}

// examples draws the instants to learn from. A drive weighs as much as the square root of how often it said
// something; otherwise the few that say much would count for most.
func (m *Model) examples(drives []Drive, seed uint64) (e examples) {
	all := 0
	for i := range drives {
		drives[i].instants(func(int, float64) { all++ })
	}
	r := rand.New(rand.NewPCG(seed, 0xd15c))
	for i := range drives {
		d := &drives[i]
		said := 0
		d.instants(func(int, float64) { said++ })
		weight := 1 / math.Sqrt(float64(said))
		d.instants(func(k int, now float64) {
			fails, known := d.label(now)
			if !known {
				return
			}
			share := 1.0
			if !fails {
				share = min(1, mostInstants/float64(all))
				if !d.Failed && quiet(d.Seen[k]) {
					share *= quietShare
				}
			}
			if share < 1 && r.Float64() >= share {
				return
			}
			x := make([]float64, len(Features()))
			fill(x, d.Seen[:k+1], now, d.SizeTB, m.rates.of(d.Model))
			until := math.Inf(1)
			if d.Failed {
				until = d.End - now
			}
			e.X, e.Weight = append(e.X, x), append(e.Weight, weight/share)
			e.left, e.drive = append(e.left, until), append(e.drive, i)
		})
	}
	e.Y = make([]bool, len(e.X))
	return e
}

// peaks are the examples as alarms are judged: what counts is whether the highest risk of a drive is above a
// threshold. All drives weigh the same, and the instants of one share its weight by the odds of their risk, which is in log
// odds. An alarm on a drive that fails some time after the horizon is no false one: such instants are left out.
func (e *examples) peaks(risk []float64) (d gbdt.Data) {
	for from := 0; from < len(e.X); {
		begin, top, drive := len(d.X), math.Inf(-1), e.drive[from]
		for ; from < len(e.X) && e.drive[from] == drive; from++ {
			if e.Y[from] || math.IsInf(e.left[from], 1) {
				d.X, d.Y, d.Weight = append(d.X, e.X[from]), append(d.Y, e.Y[from]), append(d.Weight, risk[from])
				top = max(top, risk[from])
			}
		}
		sum := 0.0
		for i := begin; i < len(d.X); i++ {
			d.Weight[i] = math.Exp(d.Weight[i] - top)
			sum += d.Weight[i]
		}
		for i := begin; i < len(d.X); i++ {
			d.Weight[i] /= sum
		}
	}
	return d
}

// Probability is about that of a failure within Horizon after the last of what was seen of a drive, in
// order. It orders drives by risk; as a number it is rather too high: one of the models looks further ahead, and one learns from peaks.
func (m *Model) Probability(model string, sizeTB float64, seen []Observation) float64 {
	x := make([]float64, len(m.trees.Features()))
	fill(x, seen, seen[len(seen)-1].Hours, sizeTB, m.rates.of(model))
	return m.trees.Predict(x)
}

// A saved model is, little-endian: the magic, the version, the overall rate, the number of
// rates, each of them (length and bytes of the name, the rate), the trees, and the SHA-256 of all that.
const (
	magic        = "TGDRIVE\x00"
	stateVersion = 1
	headBytes    = len(magic) + 4
	mostModels   = 100_000
)

// ErrDamaged says that a saved model is not what was written.
var ErrDamaged = errors.New("drives: the saved model is damaged: train again, or restore it from a copy")

var le = binary.LittleEndian

// MarshalBinary returns the model as bytes.
func (m *Model) MarshalBinary() ([]byte, error) {
	b := le.AppendUint32([]byte(magic), stateVersion)
	b = le.AppendUint64(b, math.Float64bits(m.rates.overall))
	names := m.rates.names()
	b = le.AppendUint32(b, uint32(len(names)))
	for _, name := range names {
		if len(name) > math.MaxUint16 {
			return nil, fmt.Errorf("drives: a model's name has %d bytes", len(name))
		}
		b = le.AppendUint16(b, uint16(len(name)))
		b = append(b, name...)
		b = le.AppendUint64(b, math.Float64bits(m.rates.models[name]))
	}
	trees, err := m.trees.MarshalBinary()
	if err != nil {
		return nil, err
	}
	b = append(b, trees...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// Unmarshal returns the model that was saved. One that was trained on other features is refused.
func Unmarshal(b []byte) (*Model, error) {
	if len(b) < headBytes+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w (it does not begin as one)", ErrDamaged)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if v := le.Uint32(b[len(magic):]); v != stateVersion {
		return nil, fmt.Errorf("drives: the saved model has version %d, this release reads %d: train again with this release", v, stateVersion)
	}
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w (its checksum does not match)", ErrDamaged)
	}
	return decode(body[headBytes:])
}

// decode reads a body. What it allocates is bounded by what the body holds.
func decode(b []byte) (*Model, error) {
	if len(b) < 12 {
		return nil, fmt.Errorf("%w (its rates)", ErrDamaged)
	}
	rate := func(b []byte) (float64, bool) {
		v := math.Float64frombits(le.Uint64(b))
		return v, v >= 0 && !math.IsInf(v, 0)
	}
	m := &Model{rates: rates{models: make(map[string]float64)}}
	var ok bool
	m.rates.overall, ok = rate(b)
	n := le.Uint32(b[8:])
	b = b[12:]
	if !ok || n > mostModels {
		return nil, fmt.Errorf("%w (its rates)", ErrDamaged)
	}
	for range n {
		if len(b) < 2 {
			return nil, fmt.Errorf("%w (its rates)", ErrDamaged)
		}
		size := int(le.Uint16(b))
		if len(b) < 2+size+8 {
			return nil, fmt.Errorf("%w (its rates)", ErrDamaged)
		}
		v, ok := rate(b[2+size:])
		if !ok {
			return nil, fmt.Errorf("%w (its rates)", ErrDamaged)
		}
		m.rates.models[string(b[2:2+size])] = v
		b = b[2+size+8:]
	}
	var err error
	if m.trees, err = gbdt.Unmarshal(b); err != nil {
		return nil, fmt.Errorf("drives: %w", err)
	}
	if err := m.trees.Accept(Features()); err != nil {
		return nil, fmt.Errorf("drives: %w", err)
	}
	return m, nil
}

// rates are failures a year of drives of each model, as far as known.
type rates struct {
	overall float64
	models  map[string]float64
}

// strength is how many years of an average drive the rate of a model begins with.
const strength = 50

// learn finds the rates: of a model that is rare, near to that of all drives.
func learn(drives []Drive) rates {
	var years, failed float64
	of := make(map[string][2]float64)
	for _, d := range drives {
		c := of[d.Model]
		y := (d.End - d.Seen[0].Hours) / (365.25 * day)
		c[0] += y
		years += y
		if d.Failed {
			c[1]++
			failed++
		}
		of[d.Model] = c
	}
	r := rates{overall: failed / max(years, 1), models: make(map[string]float64)}
	for model, c := range of {
		r.models[model] = (c[1] + strength*r.overall) / (c[0] + strength)
	}
	return r
}

func (r rates) of(model string) float64 {
	if v, ok := r.models[model]; ok {
		return v
	}
	return r.overall
}

func (r rates) names() []string {
	var out []string
	for m := range r.models {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}
