package rigtest

import (
	"encoding/binary"
	"fmt"
)

// patternKey, exclusive-or its address, is what each word of RAM has.
const patternKey = 0x5a5aa5a5

// BootSector is a guest in 512 bytes. It fills its RAM from 1 MiB up to mib MiB with
// a pattern (each word its address, exclusive-or a constant), and then, 100 times a
// second, verifies the next 64 KiB of it and prints a line on the first serial port:
// the number of the tick and the number of wrong words that it ever saw, as eight
// hexadecimal digits each. Before all that it prints "boot". So a counter that goes
// on by one says that the guest neither stopped for good nor started anew, and a
// second "boot" that it did.
//
// It runs in 16-bit real mode with a 4 GiB limit on ES, so that it reaches all RAM
// without page tables.
func BootSector(mib int) ([]byte, error) {
	if mib < 2 || mib > 3072 {
		return nil, fmt.Errorf("boot sector: %d MiB of RAM: 2 to 3072 are possible", mib)
	}
	const (
		key   = patternKey
		first = 1 << 20
	)
	end := uint32(mib) << 20
	a := &assembler{at: map[string]int{}}
	dword := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

	a.op(0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c) // cli; ax = ds = ss = 0; sp = 7c00
	a.op(0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92)                         // A20 on, by port 92
	a.abs([]byte{0x0f, 0x01, 0x16}, "gdtr")                          // lgdt [gdtr]
	a.op(0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0)             // cr0 |= 1: protected mode
	a.op(0xeb, 0x00, 0xbb, 0x08, 0x00, 0x8e, 0xc3)                   // jmp $+2; es = the flat segment
	a.op(0x24, 0xfe, 0x0f, 0x22, 0xc0, 0x31, 0xdb, 0x8e, 0xc3)       // cr0 &^= 1; es = 0, its limit stays
	for _, c := range []byte("boot\n") {
		a.op(0xb0, c) // al = c
		a.call("putc")
	}
	a.op(0x66, 0xbf).op(dword(first)...) // edi = first
	a.label("fill")
	a.op(0x66, 0x89, 0xf8)             // eax = edi
	a.op(0x66, 0x35).op(dword(key)...) // eax ^= key
	a.op(0x26, 0x67, 0x66, 0x89, 0x07) // es:[edi] = eax
	a.op(0x66, 0x83, 0xc7, 0x04)       // edi += 4
	a.op(0x66, 0x81, 0xff).op(dword(end)...)
	a.jump(0x72, "fill")                              // while edi < end
	a.abs([]byte{0xc7, 0x06, 0x20, 0x00}, "tick")     // interrupt 8 goes to tick
	a.op(0xc7, 0x06, 0x22, 0x00, 0x00, 0x00)          // in segment 0
	a.op(0xb0, 0x34, 0xe6, 0x43)                      // timer 0: rate generator
	a.op(0xb0, 0x9c, 0xe6, 0x40, 0xb0, 0x2e)          // 1193182 Hz / 11932 = 100 Hz
	a.op(0xe6, 0x40)                                  //
	a.op(0xb0, 0xfe, 0xe6, 0x21)                      // no interrupt but the timer's
	a.op(0xb0, 0xff, 0xe6, 0xa1, 0xfb)                // of the second controller none; sti
	a.op(0x66, 0x31, 0xdb, 0x66, 0x31, 0xed)          // ebx = ticks = 0; ebp = wrong words = 0
	a.op(0x66, 0xbe).op(dword(first)...)              // esi = next word to verify
	a.label("loop").op(0xf4, 0x66, 0x43)              // hlt; ebx++
	a.op(0xb9, 0x00, 0x40)                            // cx = 16384 words
	a.label("verify").op(0x66, 0x89, 0xf0)            // eax = esi
	a.op(0x66, 0x35).op(dword(key)...)                // eax ^= key
	a.op(0x26, 0x67, 0x66, 0x3b, 0x06)                // compare with es:[esi]
	a.jump(0x74, "right")                             //
	a.op(0x66, 0x45)                                  // ebp++
	a.label("right").op(0x66, 0x83, 0xc6, 0x04)       // esi += 4
	a.op(0x66, 0x81, 0xfe).op(dword(end)...)          //
	a.jump(0x72, "next")                              //
	a.op(0x66, 0xbe).op(dword(first)...)              // round again
	a.label("next").jump(0xe2, "verify")              // loop
	a.op(0x66, 0x89, 0xd8).call("hex")                // print ebx
	a.op(0xb0, ' ').call("putc")                      //
	a.op(0x66, 0x89, 0xe8).call("hex")                // print ebp
	a.op(0xb0, '\n').call("putc")                     //
	a.jump(0xeb, "loop")                              //
	a.label("hex").op(0xb9, 0x08, 0x00)               // cx = 8 digits
	a.label("digit").op(0x66, 0xc1, 0xc0, 0x04)       // eax <<<= 4
	a.op(0x66, 0x50, 0x24, 0x0f, 0x04, '0', 0x3c, 58) // push eax; al = '0' + its low digit
	a.jump(0x72, "decimal")                           //
	a.op(0x04, 'a'-'0'-10)                            // a to f
	a.label("decimal").call("putc")                   //
	a.op(0x66, 0x58).jump(0xe2, "digit")              // pop eax; loop
	a.op(0xc3)                                        // ret
	a.label("putc").op(0x50, 0xba, 0xfd, 0x03)        // push ax; dx = line status
	a.label("wait").op(0xec, 0xa8, 0x20)              // until the transmitter is free
	a.jump(0x74, "wait")                              //
	a.op(0x58, 0xba, 0xf8, 0x03, 0xee, 0xc3)          // pop ax; out; ret
	a.label("tick").op(0x50, 0xb0, 0x20, 0xe6, 0x20)  // acknowledge the interrupt
	a.op(0x58, 0xcf)                                  // iret
	a.label("gdtr").op(15, 0).abs(nil, "gdt")         // two entries of 8 bytes
	a.op(0, 0)                                        //
	a.label("gdt").op(0, 0, 0, 0, 0, 0, 0, 0)         // the null entry
	a.op(0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0)          // data, base 0, limit 4 GiB
	return a.sector()
}

// assembler lays out machine code that is loaded at 7c00.
type assembler struct {
	code []byte
	at   map[string]int
	fix  []fixup
}

type fixup struct {
	pos   int
	label string
	size  int  // bytes: 1 or 2
	rel   bool // relative to the end of the field
}

func (a *assembler) op(b ...byte) *assembler {
	a.code = append(a.code, b...)
	return a
}

func (a *assembler) label(name string) *assembler {
	a.at[name] = len(a.code)
	return a
}

func (a *assembler) field(op []byte, label string, size int, rel bool) *assembler {
	a.code = append(a.code, op...)
	a.fix = append(a.fix, fixup{len(a.code), label, size, rel})
	a.code = append(a.code, make([]byte, size)...)
	return a
}

func (a *assembler) jump(op byte, label string) *assembler {
	return a.field([]byte{op}, label, 1, true)
}
func (a *assembler) call(label string) *assembler { return a.field([]byte{0xe8}, label, 2, true) }
func (a *assembler) abs(op []byte, label string) *assembler {
	return a.field(op, label, 2, false)
}

const origin = 0x7c00

// sector resolves the labels and adds the boot signature.
func (a *assembler) sector() ([]byte, error) {
	for _, f := range a.fix {
		to, ok := a.at[f.label]
		if !ok {
			return nil, fmt.Errorf("boot sector: no label %q", f.label)
		}
		v := origin + to
		if f.rel {
			v = to - (f.pos + f.size)
		}
		if f.size == 1 {
			if v < -128 || v > 127 {
				return nil, fmt.Errorf("boot sector: %q is too far away", f.label)
			}
			a.code[f.pos] = byte(v)
			continue
		}
		binary.LittleEndian.PutUint16(a.code[f.pos:], uint16(v))
	}
	if len(a.code) > 510 {
		return nil, fmt.Errorf("boot sector: %d bytes do not fit in 510", len(a.code))
	}
	out := make([]byte, 512)
	copy(out, a.code)
	out[510], out[511] = 0x55, 0xaa
	return out, nil
}
