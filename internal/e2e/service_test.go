package e2e

import (
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"
)

// roleVariable makes this test's program play a service of the host.
const roleVariable = "TARDIGRADE_E2E_SERVICE"

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVariable); name != "" {
		serviceMain(name, os.Getenv("LISTEN"))
	}
	os.Exit(m.Run())
}

// The faults of a service, by the name of a file that brings them.
const (
	leakMiB   = 4 // each leakEvery
	leakEvery = 250 * time.Millisecond
)

func faultFile(service, fault string) string { return "/share/faults/" + service + "." + fault }

// serviceMain is a service with a health check. It leaks memory or stops answering
// once the file of the fault appears, and a restart cures it, since it takes the
// file away at its start. With the file "broken" it does not start at all.
func serviceMain(name, listen string) {
	if _, err := os.Stat(faultFile(name, "broken")); err == nil {
		fmt.Fprintf(os.Stderr, "%s: cannot open its store: no space left on device\n", name)
		os.Exit(3)
	}
	for _, fault := range []string{"leak", "hang"} {
		os.Remove(faultFile(name, fault))
	}
	var leaked [][]byte
	go func() {
		for range time.Tick(leakEvery) {
			if _, err := os.Stat(faultFile(name, "leak")); err != nil {
				continue
			}
			block := make([]byte, leakMiB<<20)
			for i := 0; i < len(block); i += 4096 {
				block[i] = 1
			}
			leaked = append(leaked, block)
		}
	}()
	err := http.ListenAndServe(listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(faultFile(name, "hang")); err == nil {
			<-r.Context().Done() // answers nobody
			return
		}
		fmt.Fprintln(w, "well, with", len(leaked), "blocks")
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
