package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// AuditRecord is one entry of the audit trail. Each record carries the hash of
// the one before it, so that a changed or missing record is seen.
type AuditRecord struct {
	Time    time.Time       `json:"time"`
	Actor   string          `json:"actor"`
	Event   string          `json:"event"`
	Subject string          `json:"subject"`
	Detail  json.RawMessage `json:"detail,omitempty"`
	// Previous is the hash of the record before, "" for the first.
	Previous string `json:"previous"`
	// Hash is the hex SHA-256 of the record without this field.
	Hash string `json:"hash"`
}

func (r AuditRecord) sum() (string, error) {
	r.Hash = ""
	data, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:]), nil
}

// Audit is the append-only audit trail. It is safe for concurrent use, also by
// several processes: an append states which record it follows.
type Audit struct {
	bus *Bus

	mu       sync.Mutex
	sequence uint64
	previous string
	loaded   bool
}

// OpenAudit opens the trail.
func OpenAudit(b *Bus) *Audit { return &Audit{bus: b} }

// Append adds a record and returns once it is on disk. detail is anything that
// marshals to JSON, or nil.
func (a *Audit) Append(ctx context.Context, actor, event, subject string, detail any) error {
	r := AuditRecord{Time: time.Now().UTC(), Actor: actor, Event: event, Subject: subject}
	if detail != nil {
		data, err := json.Marshal(detail)
		if err != nil {
			return fmt.Errorf("audit %s: %w", event, err)
		}
		r.Detail = data
	}
	if err := a.bus.writable(StreamAudit); err != nil {
		return fmt.Errorf("audit %s: %w", event, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		if err := a.load(ctx); err != nil {
			return fmt.Errorf("audit %s: %w", event, err)
		}
		r.Previous = a.previous
		sum, err := r.sum()
		if err != nil {
			return fmt.Errorf("audit %s: %w", event, err)
		}
		r.Hash = sum
		data, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("audit %s: %w", event, err)
		}
		a.bus.onWrite(StreamAudit, false)
		ack, err := a.bus.JS.PublishMsg(ctx, &nats.Msg{Subject: subjectAudit, Data: data, Header: nats.Header{
			jetstream.ExpectedLastSeqHeader: {strconv.FormatUint(a.sequence, 10)},
		}})
		a.bus.onWrite(StreamAudit, true)
		var api *jetstream.APIError
		if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
			a.loaded = false // somebody else appended: follow that record
			continue
		}
		if err = a.bus.wrote(StreamAudit, err); err != nil {
			a.loaded = false
			return fmt.Errorf("audit %s: %w", event, err)
		}
		a.sequence, a.previous = ack.Sequence, sum
		return nil
	}
}

func (a *Audit) load(ctx context.Context) error {
	if a.loaded {
		return nil
	}
	s, err := a.bus.JS.Stream(ctx, StreamAudit)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	a.sequence, a.previous = info.State.LastSeq, ""
	if info.State.Msgs > 0 {
		m, err := s.GetMsg(ctx, info.State.LastSeq)
		if err != nil {
			return err
		}
		var r AuditRecord
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return fmt.Errorf("the last audit record (sequence %d) is damaged: %w", m.Sequence, err)
		}
		a.previous = r.Hash
	}
	a.loaded = true
	return nil
}

// Verify reads the whole trail, calls each with every record, and returns an
// error that names the first record which breaks the chain.
func (a *Audit) Verify(ctx context.Context, each func(sequence uint64, r AuditRecord)) error {
	s, err := a.bus.JS.Stream(ctx, StreamAudit)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	previous := ""
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if err != nil {
			return fmt.Errorf("audit record %d cannot be read: %w", seq, err)
		}
		var r AuditRecord
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return fmt.Errorf("audit record %d is damaged: %w", seq, err)
		}
		sum, err := r.sum()
		if err != nil {
			return err
		}
		if sum != r.Hash {
			return fmt.Errorf("audit record %d was changed: its hash is %s, it should be %s", seq, r.Hash, sum)
		}
		if r.Previous != previous {
			return fmt.Errorf("audit record %d does not follow record %d: a record was taken out or put in", seq, seq-1)
		}
		previous = r.Hash
		if each != nil {
			each(seq, r)
		}
	}
	return nil
}
