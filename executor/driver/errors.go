package driver

import "errors"

// Class says what may follow an error.
type Class string

// The classes.
const (
	// ClassTransient: nothing was done, and the same may work in a moment.
	ClassTransient Class = "transient"
	// ClassPermanent: it did not work, and would not if it were tried again.
	ClassPermanent Class = "permanent"
	// ClassUnknown: it may have been done or not. Look first; never try again blindly.
	ClassUnknown Class = "unknown"
)

type classified struct {
	error
	class Class
}

func (c classified) Unwrap() error { return c.error }

// As gives an error a class. nil stays nil.
func As(c Class, err error) error {
	if err == nil {
		return nil
	}
	return classified{err, c}
}

// ClassOf is the class that an error was given last. An error without a class is
// ClassUnknown: whoever did not say how it ended does not know.
func ClassOf(err error) Class {
	if c, ok := errors.AsType[classified](err); ok {
		return c.class
	}
	return ClassUnknown
}
