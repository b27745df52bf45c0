package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// limits is what the disk can do at best, measured in the same run.
type limits struct {
	SequentialMB       float64 `json:"sequential_mb_per_second"`
	ScatteredPerSecond float64 `json:"scattered_4k_writes_per_second"`
	FsyncMS            float64 `json:"write_and_fsync_ms"`
}

const probeSize = 256 * mib

// meter measures the disk under the images. In the same run, because disks of virtual
// machines change from hour to hour.
func (b *bench) meter(ctx context.Context) error {
	path := filepath.Join(b.Lab.ImageDir(), "limits")
	defer os.Remove(path)
	took, err := b.fill(path, probeSize)
	if err != nil {
		return err
	}
	b.limits.SequentialMB = probeSize / 1e6 / took.Seconds()
	seconds, err := b.write(ctx, path, "raw", 4096, scattered, scatteredStep)
	if err != nil {
		return err
	}
	b.limits.ScatteredPerSecond = scattered / seconds
	b.limits.FsyncMS, err = fsyncTime(path)
	return err
}

// fill makes a file full of data, past the page cache, and durable. O_DIRECT and fsync:
// the page cache would measure the memory.
func (b *bench) fill(path string, size int64) (time.Duration, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	const chunk = 4 * mib
	// A mapping begins at a page, as direct I/O wants.
	buffer, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buffer) //nolint:errcheck // it is gone with the process
	for i := range buffer {
		buffer[i] = byte(i*7 + i>>12)
	}
	began := time.Now()
	for at := int64(0); at < size; at += chunk {
		if _, err := file.WriteAt(buffer, at); err != nil {
			return 0, err
		}
	}
	err = file.Sync()
	return time.Since(began), err
}

// fsyncTime is what one small write that is made durable takes, in milliseconds.
func fsyncTime(path string) (float64, error) {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var all []float64
	for i := range 50 {
		began := time.Now()
		if _, err := file.WriteAt([]byte(strconv.Itoa(i)), int64(i)*8192); err != nil {
			return 0, err
		}
		if err := file.Sync(); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(began).Microseconds())/1000)
	}
	return median(all), nil
}
