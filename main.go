// Tardigrade keeps virtual machines alive when their host starts to fail.
package main

import (
	"os"

	"github.com/tardigrade-recovery/tardigrade/internal/cli"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(cli.Main(version)) }
