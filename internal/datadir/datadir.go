// Package datadir guards the directory in which a process keeps everything
// durable: one process at a time, of a format that this release understands.
package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Format is the version of the directory's layout that this release writes.
const Format = 1

// Dir is an open, locked data directory.
type Dir struct {
	Path string
	lock *os.File
}

// Open makes the directory where it is missing, locks it, and checks that it is
// writable and not of a newer release. The lock ends with [Dir.Close], or with
// the process.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w; choose another with --data, or make it writable for this user", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s is not writable: %w; choose another with --data, or make it writable for this user", path, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(lock.Name())
		lock.Close()
		return nil, fmt.Errorf("data directory %s is in use by another tardigrade (process %s): stop it, or choose another directory with --data",
			path, strings.TrimSpace(string(owner)))
	}
	d := &Dir{Path: path, lock: lock}
	if err := d.check(); err != nil {
		lock.Close()
		return nil, err
	}
	lock.Truncate(0)
	fmt.Fprintf(lock, "%d\n", os.Getpid())
	return d, nil
}

// Existing opens a directory that must exist already.
func Existing(path string) (*Dir, error) {
	if _, err := os.Stat(filepath.Join(path, "format")); err != nil {
		return nil, fmt.Errorf("%s is not a data directory of tardigrade: %w; name the right one with --data", path, err)
	}
	return Open(path)
}

func (d *Dir) check() error {
	file := filepath.Join(d.Path, "format")
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(file, []byte(strconv.Itoa(Format)+"\n"), 0o600); err != nil {
			return fmt.Errorf("data directory %s is not writable: %w", d.Path, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(data)))
	switch {
	case err != nil || v < 1:
		return fmt.Errorf("data directory %s: the file %q should have a number and has %q: this is not a data directory of tardigrade", d.Path, file, strings.TrimSpace(string(data)))
	case v > Format:
		return fmt.Errorf("data directory %s was written by a newer release (format %d, this one knows %d): upgrade tardigrade, or choose another directory with --data", d.Path, v, Format)
	}
	return nil
}

// Sub makes and returns a directory inside.
func (d *Dir) Sub(name string) (string, error) {
	p := filepath.Join(d.Path, name)
	if err := os.MkdirAll(p, 0o700); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return p, nil
}

// Close gives the directory free.
func (d *Dir) Close() error { return d.lock.Close() }

// WriteFile writes a file whole or not at all, readable for its owner alone.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
