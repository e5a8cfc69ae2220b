package api

import (
	"os/exec"
	"testing"
)

// The page's functions that touch no page run in Node.js as they are.
func TestPageFunctions(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "node", "--test", "page_test.mjs").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
