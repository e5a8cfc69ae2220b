// Command render writes the pages of the analyses: go run ./notebooks-go/render [PAGE…].
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/tardigrade-recovery/tardigrade/notebooks-go/explore"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/models"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/page"
	"github.com/tardigrade-recovery/tardigrade/notebooks-go/policies"
)

// seed is that of all pages, so that they are the same each time.
const seed = 1

func pages() map[string]func() (page.Page, error) {
	return map[string]func() (page.Page, error){
		"explore":  func() (page.Page, error) { return explore.Page(seed) },
		"models":   func() (page.Page, error) { return models.Page(context.Background(), seed) },
		"policies": func() (page.Page, error) { return policies.Page(context.Background(), policies.Small(seed)) },
	}
}

func main() {
	out := flag.String("out", "notebooks-go/pages", "`directory` to write to")
	public := flag.String("series", "", "`directory` of labelled series of real hosts (go doc ./datasets/series): writes a page of them instead")
	source := flag.String("source", "", "`text` for that page: what the series are, and where from")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Writes the pages of the analyses, all of them unless some are named: render [--out DIR] [PAGE…], or render [--out DIR] --series DIR")
		flag.PrintDefaults()
	}
	flag.Parse()
	err := error(nil)
	if *public != "" {
		err = writeSeries(*out, *public, *source)
	} else {
		err = write(*out, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

func writeSeries(dir, from, source string) error {
	p, err := explore.PublicPage(from, source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return p.Write(dir)
}

var order = []string{"explore", "models", "policies"}

func write(dir string, names []string) error {
	if len(names) == 0 {
		names = order
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		make := pages()[name]
		if make == nil {
			return fmt.Errorf("there is no page %q; there are: %s", name, strings.Join(order, ", "))
		}
		p, err := make()
		if err == nil {
			err = p.Write(dir)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
