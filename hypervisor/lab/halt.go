package lab

import (
	"context"
	"os"
)

// halt is a boot sector in x86's 16-bit code: no interrupts any more (cli), the
// timer stopped (its channel 0 waits for a count), and the processor halted. Firmware
// that finds nothing to boot waits in a loop that every tick of the timer wakes: a
// hundred such guests took most of a processor.
var halt = [512]byte{
	0xfa,       // cli
	0xb0, 0x30, // mov $0x30, %al
	0xe6, 0x43, // out %al, $0x43
	0xf4,       // again: hlt
	0xeb, 0xfd, // jmp again
	510: 0x55, 511: 0xaa,
}

// installHalt puts it into a disk's first sector.
func (l *Lab) installHalt(ctx context.Context, d DiskSpec) error {
	file, err := os.CreateTemp(l.dir, "halt-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.Write(halt[:]); err != nil {
		return err
	}
	return l.writeImage(ctx, d.Path, d.Format, file.Name(), 0, int64(len(halt)))
}
