package control

import (
	"path/filepath"
	"testing"

	"github.com/tardigrade-recovery/tardigrade/internal/smalldisk"
)

// Credentials that could not be made do not end the earlier ones.
func TestEnrollOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, "size=256k")
	c, err := Enroll(dir, "h1")
	if err != nil {
		t.Fatal(err)
	}
	smalldisk.Fill(t, dir, 0)
	if _, err := Enroll(dir, "h1"); err == nil {
		t.Fatal("credentials were made on a full disk")
	}
	if known := (&tokens{dir: filepath.Join(dir, "agents")}); !known.check("h1", c.Token) {
		t.Error("the earlier credentials are good no more")
	}
}
