package collector

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A drive's own account of its health: the SMART / Health Information log of the NVM
// Express Base Specification 2.0 (section 5.16.1.3), and the SMART attributes of ATA
// drives by the SAT-4 ATA PASS-THROUGH (16) command. The numbers of ATA attributes and
// the form of their raw values are the vendors'; those below are used alike by nearly all.
var smartMetrics = each("disk",
	gauge("smart_reallocated_sectors", "1", "sectors that the drive replaced", "ATA SMART attribute 5"),
	gauge("smart_pending_sectors", "1", "sectors that the drive could not read and waits to replace", "ATA SMART attribute 197"),
	gauge("smart_uncorrectable_errors", "1", "errors of the medium that the drive could not correct", "ATA SMART attribute 198, NVMe media errors"),
	gauge("smart_reported_uncorrectable_errors", "1", "errors that the drive reported to the host", "ATA SMART attribute 187"),
	gauge("smart_command_timeouts", "1", "commands that the drive gave up", "ATA SMART attribute 188"),
	ratio("smart_wear_ratio", "share of its rated life that a drive has used; may exceed 1", "NVMe percentage used, ATA SMART attribute 231 or 233"),
	ratio("smart_spare_ratio", "share of its spare capacity that a drive has left", "NVMe available spare"),
	gauge("smart_critical_warning", "1", "whether the drive says that it is failing, read-only or out of spare", "NVMe critical warning"),
	gauge("smart_temperature_celsius", "celsius", "temperature of the drive", "NVMe composite temperature, ATA SMART attribute 194"),
	gauge("smart_power_on_hours", "1", "hours for which the drive was on", "NVMe power on hours, ATA SMART attribute 9"),
)

// smartSource asks the drives. A drive that hangs holds up this source alone.
type smartSource struct{ h *host }

func newSMARTSource(h *host) source { return &smartSource{h} }

var (
	nvmeDisk = regexp.MustCompile(`^(nvme[0-9]+)n[0-9]+$`)
	scsiDisk = regexp.MustCompile(`^sd[a-z]+$`)
)

func (s *smartSource) collect(ctx context.Context, f *frame) error {
	entries, err := os.ReadDir(filepath.Join(s.h.sys, "block"))
	if err != nil {
		return errNoData
	}
	found := 0
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		disk := e.Name()
		var values map[string]float64
		switch m := nvmeDisk.FindStringSubmatch(disk); {
		case m != nil:
			values, err = s.ask(m[1], s.h.smart.nvme, parseNVMe)
		case scsiDisk.MatchString(disk):
			values, err = s.ask(disk, s.h.smart.ata, parseATA)
		default:
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", disk, err))
			continue
		}
		if len(values) == 0 || !f.admit(disk) {
			continue
		}
		found++
		for name, v := range values {
			f.setOf(name, disk, v)
		}
	}
	if found == 0 && len(errs) == 0 {
		return errNoData
	}
	return errors.Join(errs...)
}

// ask reads one page of a device and understands it. A device that has no such page,
// as virtual ones do, has no values.
func (s *smartSource) ask(device string, read func(path string, page []byte) error, parse func([]byte) (map[string]float64, error)) (map[string]float64, error) {
	page := make([]byte, 512)
	err := read(filepath.Join(s.h.dev, device), page)
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, errNoSMART):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return parse(page)
}

var errNoSMART = errors.New("the drive has no SMART")

// drives is how drives are asked; tests have their own.
type drives struct {
	nvme, ata func(path string, page []byte) error
}

// parseNVMe understands log page 2.
func parseNVMe(p []byte) (map[string]float64, error) {
	if len(p) < 512 {
		return nil, fmt.Errorf("the health log has %d bytes, not 512", len(p))
	}
	kelvin := binary.LittleEndian.Uint16(p[1:])
	out := map[string]float64{
		"smart_critical_warning":     flag01(p[0] != 0),
		"smart_spare_ratio":          float64(p[3]) / 100,
		"smart_wear_ratio":           float64(p[5]) / 100,
		"smart_power_on_hours":       wide(p[128:144]),
		"smart_uncorrectable_errors": wide(p[160:176]),
	}
	if kelvin > 0 {
		out["smart_temperature_celsius"] = float64(kelvin) - 273
	}
	return out, nil
}

// wide is a little-endian number of 128 bits, rounded.
func wide(b []byte) float64 {
	return float64(binary.LittleEndian.Uint64(b)) + float64(binary.LittleEndian.Uint64(b[8:]))*(1<<64)
}

// parseATA understands the page of SMART READ DATA: 30 attributes of 12 bytes from
// byte 2 on, each its number, two bytes of flags, the normalised and the worst value and
// six bytes raw; the checksum byte makes the sum of all 512 bytes 0.
func parseATA(p []byte) (map[string]float64, error) {
	if len(p) < 512 {
		return nil, fmt.Errorf("the SMART data has %d bytes, not 512", len(p))
	}
	var sum byte
	for _, b := range p[:512] {
		sum += b
	}
	if sum != 0 {
		return nil, errors.New("the checksum of the SMART data is wrong")
	}
	out := make(map[string]float64)
	for i := range 30 {
		a := p[2+12*i : 14+12*i]
		var raw uint64
		for j := 5; j >= 0; j-- {
			raw = raw<<8 | uint64(a[5+j])
		}
		switch a[0] {
		case 5:
			out["smart_reallocated_sectors"] = float64(raw)
		case 9:
			out["smart_power_on_hours"] = float64(raw & 0xffffffff) // minutes may follow above
		case 187:
			out["smart_reported_uncorrectable_errors"] = float64(raw)
		case 188:
			out["smart_command_timeouts"] = float64(raw & 0xffff) // longer ones are counted above
		case 194:
			out["smart_temperature_celsius"] = float64(raw & 0xff) // least and most may follow above
		case 197:
			out["smart_pending_sectors"] = float64(raw)
		case 198:
			out["smart_uncorrectable_errors"] = float64(raw)
		case 231, 233: // the normalised value counts down from 100
			if a[3] <= 100 {
				out["smart_wear_ratio"] = float64(100-a[3]) / 100
			}
		}
	}
	return out, nil
}

func flag01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// nvmeAdminCommand is struct nvme_admin_cmd of linux/nvme_ioctl.h.
type nvmeAdminCommand struct {
	opcode, flags     uint8
	reserved1         uint16
	namespace         uint32
	cdw2, cdw3        uint32
	metadata, address uint64
	metadataLen, len  uint32
	cdw10, cdw11      uint32
	cdw12, cdw13      uint32
	cdw14, cdw15      uint32
	timeoutMS, result uint32
}

const nvmeIoctlAdmin = 0xc0484e41 // _IOWR('N', 0x41, struct nvme_admin_cmd)

// nvmeHealth reads the SMART / Health Information log of a controller.
func nvmeHealth(path string, page []byte) error {
	c := nvmeAdminCommand{
		opcode: 0x02, namespace: 0xffffffff, // Get Log Page, of the whole controller
		address: uint64(uintptr(unsafe.Pointer(&page[0]))), len: uint32(len(page)),
		cdw10: 0x02 | uint32(len(page)/4-1)<<16, timeoutMS: 2000,
	}
	err := ioctl(path, nvmeIoctlAdmin, unsafe.Pointer(&c))
	runtime.KeepAlive(page)
	return err
}

// sgIO is struct sg_io_hdr of scsi/sg.h.
type sgIO struct {
	interfaceID, direction   int32
	commandLen, maxSenseLen  uint8
	iovecCount               uint16
	dataLen                  uint32
	data, command, sense     uintptr
	timeoutMS, flags         uint32
	packID                   int32
	user                     uintptr
	status, maskedStatus     uint8
	messageStatus, senseLen  uint8
	hostStatus, driverStatus uint16
	residual                 int32
	duration, info           uint32
}

const (
	sgIoctl         = 0x2285
	sgFromDevice    = -3
	sgStatusChecked = 2
)

// ataSMART reads the SMART data of an ATA drive behind the SCSI layer.
func ataSMART(path string, page []byte) error {
	command := [16]byte{
		0:  0x85,           // ATA PASS-THROUGH (16)
		1:  4 << 1,         // PIO data-in
		2:  0x0e,           // transfer length in sectors, in the count field, from the device
		4:  0xd0,           // features: SMART READ DATA
		6:  1,              // one sector
		10: 0x4f, 12: 0xc2, // the signature of SMART
		14: 0xb0, // SMART
	}
	var sense [32]byte
	h := sgIO{
		interfaceID: 'S', direction: sgFromDevice, commandLen: uint8(len(command)), maxSenseLen: uint8(len(sense)), dataLen: uint32(len(page)),
		data: uintptr(unsafe.Pointer(&page[0])), command: uintptr(unsafe.Pointer(&command[0])), sense: uintptr(unsafe.Pointer(&sense[0])), timeoutMS: 2000,
	}
	err := ioctl(path, sgIoctl, unsafe.Pointer(&h))
	runtime.KeepAlive(page)
	runtime.KeepAlive(&command)
	runtime.KeepAlive(&sense)
	switch {
	case err != nil:
		return err
	case h.hostStatus != 0 || h.status == sgStatusChecked && h.driverStatus != 0:
		return errNoSMART // not an ATA drive, or one without SMART
	case h.status != 0:
		return fmt.Errorf("the drive answers with status %#x", h.status)
	}
	return nil
}

func ioctl(path string, request uintptr, argument unsafe.Pointer) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument)); errno != 0 {
		return &os.PathError{Op: "ioctl", Path: path, Err: errno}
	}
	return nil
}
