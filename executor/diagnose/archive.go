package diagnose

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// manifestVersion is the format of the archive.
const manifestVersion = 1

// Manifest is manifest.json, the first file of an archive: whose archive it is, and
// what became of each source.
type Manifest struct {
	Version   int          `json:"version"`
	Host      fleet.HostID `json:"host"`
	Execution string       `json:"execution"`
	Command   string       `json:"command"`
	Attempt   int          `json:"attempt"`
	Reason    string       `json:"reason,omitempty"`
	Units     []string     `json:"units"`
	// Time is when the collection began, by the host's clock.
	Time  time.Time `json:"time"`
	Files []File    `json:"files"`
}

// File is one file of an archive, or a source that gave none: then Size is 0, SHA256
// is "" and Error says why.
type File struct {
	Name string `json:"name"`
	// Size is in bytes; SHA256 is in hex.
	Size   int    `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	// Truncated is true if the source had more than is in the file.
	Truncated bool `json:"truncated,omitempty"`
	// Redacted counts the secrets that were replaced.
	Redacted int `json:"redacted,omitempty"`
	// Error says why a source failed; what it gave until then is in the file.
	Error string `json:"error,omitempty"`
}

// content is a file that is to be packed.
type content struct {
	File
	data []byte
	// absent is true for a source that gave nothing to pack.
	absent bool
}

// pack makes the archive. The same files and manifest give the same bytes.
func pack(m Manifest, files []content) ([]byte, error) {
	for i := range files {
		f := &files[i]
		if !f.absent {
			sum := sha256.Sum256(f.data)
			f.Size, f.SHA256 = len(f.data), hex.EncodeToString(sum[:])
		}
		m.Files = append(m.Files, f.File)
	}
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	var out bytes.Buffer
	// One goroutine: the result then depends on the input alone, and a host that is ill
	// has no processors to spare.
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, fmt.Errorf("compress the archive: %w", err)
	}
	t := tar.NewWriter(z)
	write := func(name string, data []byte) error {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(data)), ModTime: m.Time, Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("write %s into the archive: %w", name, err)
		}
		_, err := t.Write(data)
		return err
	}
	if err := write("manifest.json", append(head, '\n')); err != nil {
		return nil, err
	}
	for _, f := range files {
		if f.absent {
			continue
		}
		if err := write(f.Name, f.data); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, fmt.Errorf("end the archive: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress the archive: %w", err)
	}
	return out.Bytes(), nil
}
