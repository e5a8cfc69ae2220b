package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/datadir"
	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/predictor"
)

// models keeps what was learned of each host in a file of its own, so that a
// restart of the control plane starts no learning anew.
type models struct {
	dir string
	log *slog.Logger
}

// saveModelsEvery bounds what a crash forgets; the stream of samples makes up for it.
const saveModelsEvery = 5 * time.Minute

func (m models) path(id fleet.HostID) string { return filepath.Join(m.dir, string(id)+".model") }

// restore gives a new predictor what is known of its host. A file that cannot be
// used is said and left alone, and the host is learned anew.
func (m models) restore(id fleet.HostID, p *predictor.Predictor) {
	data, err := os.ReadFile(m.path(id))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = p.Restore(data)
	}
	if err != nil {
		m.log.Warn("the model of a host is not used, it is learned anew", "host", id, "file", m.path(id), "err", err)
	}
}

// remove takes away what was learned of a host.
func (m models) remove(id fleet.HostID) error {
	if err := os.Remove(m.path(id)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// saveModels saves all models regularly, and once more at the end.
func (p *Plane) saveModels(ctx context.Context) {
	tick := time.NewTicker(saveModelsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		failed := 0
		var first error
		p.predictions.each(func(id fleet.HostID, learned *predictor.Predictor) {
			data, err := learned.Save()
			if err == nil && data != nil {
				err = datadir.WriteFile(p.models.path(id), data)
			}
			if err != nil {
				if failed++; failed == 1 {
					first = fmt.Errorf("host %s: %w", id, err)
				}
			}
		})
		if failed > 0 {
			p.log.Error("models were not saved; a restart learns these hosts anew", "hosts", failed, "err", first)
		}
		if ctx.Err() != nil {
			return
		}
	}
}
