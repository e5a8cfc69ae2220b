package b

import (
	"fmt"
	"net/http"
	"os"
	"testing"
)

// Variables that make this test's program play a service of a host.
const (
	serviceVariable = "TARDIGRADE_RIG_SERVICE"
	listenVariable  = "TARDIGRADE_RIG_LISTEN"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(serviceVariable); name != "" {
		fmt.Fprintln(os.Stderr, name+":", serve(name, os.Getenv(listenVariable)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// store is the file system that the services of a host share.
const store = "/var/lib/store"

// serve is a service that writes its state at the start and answers health checks.
func serve(name, listen string) error {
	state := store + "/" + name + ".state"
	err := os.WriteFile(state+".new", make([]byte, 64<<10), 0o600)
	if err == nil {
		err = os.Rename(state+".new", state)
	}
	if err != nil {
		return fmt.Errorf("save the state: %w", err)
	}
	return http.ListenAndServe(listen, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "well") }))
}
