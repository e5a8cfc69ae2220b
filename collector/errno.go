package collector

import (
	"errors"
	"syscall"
)

// isUnsupported tells whether the kernel has a file but nothing to say in it.
func isUnsupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.ENODEV)
}
