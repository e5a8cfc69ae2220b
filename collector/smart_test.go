package collector

import (
	"context"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nvmePage is a health log after the NVM Express specification.
func nvmePage(warning, spare, used byte, kelvin uint16, hours, media uint64) []byte {
	p := make([]byte, 512)
	p[0], p[3], p[5] = warning, spare, used
	binary.LittleEndian.PutUint16(p[1:], kelvin)
	binary.LittleEndian.PutUint64(p[128:], hours)
	binary.LittleEndian.PutUint64(p[160:], media)
	return p
}

// ataPage is SMART data with attributes of a number, a normalised and a raw value.
func ataPage(attributes ...[3]uint64) []byte {
	p := make([]byte, 512)
	for i, a := range attributes {
		at := p[2+12*i:]
		at[0], at[3] = byte(a[0]), byte(a[1])
		for j := range 6 {
			at[5+j] = byte(a[2] >> (8 * j))
		}
	}
	var sum byte
	for _, b := range p {
		sum += b
	}
	p[511] = -sum
	return p
}

func TestSMART(t *testing.T) {
	sys, proc := t.TempDir(), t.TempDir()
	write(t, filepath.Join(proc, "stat"), "")
	for _, disk := range []string{"nvme0n1", "nvme1n1", "sda", "sdb", "sdc", "vda", "loop0"} {
		write(t, filepath.Join(sys, "block", disk, "size"), "1")
	}
	asked := map[string]int{}
	answer := func(pages map[string]any) func(string, []byte) error {
		return func(path string, page []byte) error {
			name := filepath.Base(path)
			asked[name]++
			switch a := pages[name].(type) {
			case []byte:
				copy(page, a)
				return nil
			case error:
				return a
			}
			return unix.ENOTTY
		}
	}
	h := &host{clock: now, statfs: statfs, adjust: adjtimex, smart: drives{
		nvme: answer(map[string]any{"nvme0": nvmePage(4, 3, 117, 345, 26000, 12)}), // the second controller has none
		ata: answer(map[string]any{
			"sda": ataPage([3]uint64{5, 90, 40}, [3]uint64{9, 70, 0x0123_0000_6590}, [3]uint64{187, 99, 2}, [3]uint64{188, 100, 0x0001_0001_0003},
				[3]uint64{194, 40, 0x0032_0014_0026}, [3]uint64{197, 100, 8}, [3]uint64{198, 100, 8}, [3]uint64{233, 64, 0}),
			"sdb": errNoSMART,
			"sdc": append([]byte{1}, make([]byte, 511)...), // damaged on the way
		}),
	}}
	s, err := newSampler(Config{Host: "h", HostProc: proc, HostSys: sys, HostDev: t.TempDir(), Deadline: time.Minute}, h)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sample, reports := s.Sample(t.Context())
	for series, want := range map[string]float64{
		"smart_critical_warning{nvme0n1}": 1, "smart_spare_ratio{nvme0n1}": 0.03, "smart_wear_ratio{nvme0n1}": 1.17, "smart_temperature_celsius{nvme0n1}": 72,
		"smart_power_on_hours{nvme0n1}": 26000, "smart_uncorrectable_errors{nvme0n1}": 12,
		"smart_reallocated_sectors{sda}": 40, "smart_power_on_hours{sda}": 26000, "smart_reported_uncorrectable_errors{sda}": 2, "smart_command_timeouts{sda}": 3,
		"smart_temperature_celsius{sda}": 38, "smart_pending_sectors{sda}": 8, "smart_uncorrectable_errors{sda}": 8, "smart_wear_ratio{sda}": 0.36,
	} {
		if v, ok := sample.Value(series); !ok || v < want-1e-9 || v > want+1e-9 {
			t.Errorf("%s is %v, %v; want %v", series, v, ok, want)
		}
	}
	for _, disk := range []string{"nvme1n1", "sdb", "sdc", "vda", "loop0"} {
		for _, name := range sample.Schema.Names() {
			if v, ok := sample.Value(name); ok && strings.HasPrefix(name, "smart_") && strings.Contains(name, "{"+disk+"}") {
				t.Errorf("%s is %v", name, v)
			}
		}
	}
	for _, r := range reports {
		if r.Source == "smart" && (r.Err == nil || !strings.Contains(r.Err.Error(), "sdc") || strings.Contains(r.Err.Error(), "sdb")) {
			t.Errorf("reported: %v", r.Err)
		}
	}
	if asked["vda"]+asked["loop0"] != 0 {
		t.Errorf("asked %v", asked)
	}
	// It is asked again minutes later only.
	s.Sample(context.Background())
	if asked["sda"] != 1 {
		t.Errorf("sda was asked %d times", asked["sda"])
	}
}

func TestSMARTPagesThatAreShort(t *testing.T) {
	for name, parse := range map[string]func([]byte) (map[string]float64, error){"nvme": parseNVMe, "ata": parseATA} {
		if _, err := parse(make([]byte, 100)); err == nil {
			t.Errorf("%s: a page of 100 bytes was understood", name)
		}
	}
}

func TestDevicesThatAreNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	write(t, path, "no device")
	for name, read := range map[string]func(string, []byte) error{"nvme": nvmeHealth, "ata": ataSMART} {
		if err := read(path, make([]byte, 512)); !errors.Is(err, unix.ENOTTY) {
			t.Errorf("%s: %v", name, err)
		}
		if err := read(path+"-missing", make([]byte, 512)); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
