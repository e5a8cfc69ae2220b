package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// AdmitHost makes the queue from which the agent of a host fetches its commands.
func (b *Bus) AdmitHost(ctx context.Context, host fleet.HostID) error {
	_, err := b.JS.CreateOrUpdateConsumer(ctx, StreamCommands, jetstream.ConsumerConfig{
		Durable: consumerName(host), FilterSubject: subjectCommands + string(host),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 3 * time.Second, MaxAckPending: 1,
	})
	if err != nil {
		return fmt.Errorf("make the command queue of host %s: %w", host, err)
	}
	return nil
}

// Send stores a command for a host agent. Sending it twice is harmless.
func (b *Bus) Send(ctx context.Context, c fleet.Command) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := b.writable(StreamCommands); err != nil {
		return fmt.Errorf("send command %s: %w", c.ID, err)
	}
	b.onWrite(StreamCommands, false)
	defer b.onWrite(StreamCommands, true)
	// What the command says anew must not be taken for the same message.
	id := fmt.Sprintf("%s/%d/%t", c.ID, c.Token, c.CancelledBy != "")
	_, err = b.JS.Publish(ctx, subjectCommands+string(c.Host), data, jetstream.WithMsgID(id))
	if err = b.wrote(StreamCommands, err); err != nil {
		return fmt.Errorf("send command %s: %w", c.ID, err)
	}
	return nil
}

// PublishReport stores a report of any host; it is how simulated hosts speak.
func (b *Bus) PublishReport(ctx context.Context, r fleet.Report) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = b.JS.Publish(ctx, subjectReports+string(r.Host), data, jetstream.WithMsgID(fmt.Sprintf("%s/%d", r.Command, r.Seq)))
	return err
}

// Hosts calls handle for each announcement of a host until ctx ends. The
// announced ID is always the one that the agent's credentials stand for.
func (b *Bus) Hosts(ctx context.Context, handle func(fleet.Host)) error {
	sub, err := b.Conn.Subscribe(subjectHosts+"*", func(m *nats.Msg) {
		var h fleet.Host
		if err := json.Unmarshal(m.Data, &h); err != nil || string(h.ID) != strings.TrimPrefix(m.Subject, subjectHosts) {
			b.log.Warn("refused a host announcement", "subject", m.Subject, "host", h.ID, "err", err)
			return
		}
		handle(h)
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return sub.Unsubscribe()
}

// Reports calls handle for each report, in order, until ctx ends; a report comes
// again until handle returned nil.
func (b *Bus) Reports(ctx context.Context, handle func(context.Context, fleet.Report) error) error {
	return b.consume(ctx, StreamReports, jetstream.ConsumerConfig{
		// A report that a crash interrupted comes again after AckWait, and holds up the
		// others until then; one that is taken twice changes nothing.
		Durable: "executor", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 3 * time.Second, MaxAckPending: 1,
	}, func(m jetstream.Msg) {
		var r fleet.Report
		if err := json.Unmarshal(m.Data(), &r); err != nil || string(r.Host) != strings.TrimPrefix(m.Subject(), subjectReports) {
			b.log.Error("refused a report that is damaged or speaks for another host", "subject", m.Subject(), "host", r.Host, "err", err)
			m.Term()
			return
		}
		if err := handle(ctx, r); err != nil {
			b.log.Warn("report not taken, it will come again", "command", r.Command, "err", err)
			m.NakWithDelay(time.Second)
			return
		}
		m.Ack()
	})
}

// Samples calls handle for each sample from the instant since on, in order, and
// for ever after, until ctx ends. Damaged samples are logged and left out.
func (b *Bus) Samples(ctx context.Context, since time.Time, handle func(fleet.Sample)) error {
	var d Decoder
	c, err := b.JS.OrderedConsumer(ctx, StreamSamples, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
	if err != nil {
		return fmt.Errorf("read samples: %w", err)
	}
	cc, err := c.Consume(func(m jetstream.Msg) {
		for _, s := range b.decode(&d, m) {
			handle(s)
		}
	})
	if err != nil {
		return fmt.Errorf("read samples: %w", err)
	}
	defer cc.Stop()
	<-ctx.Done()
	return nil
}

// decode returns the samples of a message, none where it is refused.
func (b *Bus) decode(d *Decoder, m jetstream.Msg) []fleet.Sample {
	samples, err := d.Decode(m.Data())
	if err == nil && string(samples[0].Host) != strings.TrimPrefix(m.Subject(), subjectSamples) {
		err = fmt.Errorf("it speaks for host %s", samples[0].Host)
	}
	if err != nil {
		b.log.Warn("refused a message of samples", "subject", m.Subject(), "err", err)
		return nil
	}
	return samples
}

// History reads the samples of one host in [from, to) from the stream's
// retention, in the order in which they came, until each returns false: one that was
// late comes after newer ones.
func (b *Bus) History(ctx context.Context, host fleet.HostID, from, to time.Time, each func(fleet.Sample) bool) error {
	s, err := b.JS.Stream(ctx, StreamSamples)
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	subject := subjectSamples + string(host)
	last, err := s.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	if last.Time.Before(from) {
		return nil
	}
	c, err := b.JS.OrderedConsumer(ctx, StreamSamples, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &from,
	})
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	var d Decoder
	for silent := 0; ; {
		batch, err := fetch(ctx, c.Fetch, 500, 2*time.Second)
		if err != nil {
			return fmt.Errorf("read history: %w", err)
		}
		n := 0
		for m := range batch.Messages() {
			n++
			for _, sample := range b.decode(&d, m) {
				if sample.Time.Before(to) && !sample.Time.Before(from) && !each(sample) {
					return nil
				}
			}
			if meta, err := m.Metadata(); err == nil && meta.Sequence.Stream >= last.Sequence {
				return nil
			}
		}
		if n > 0 {
			silent = 0
			continue
		}
		// Nothing came in time: a bus that is busy is asked again, unless the rest is gone meanwhile.
		if _, err := s.GetMsg(ctx, last.Sequence); errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read history: %w", err)
		}
		if silent++; silent == historyTries {
			return errors.New("read history: the bus does not send what it has")
		}
	}
}

// historyTries is how often in a row the bus may send nothing of what it has.
const historyTries = 15

const (
	// ingestBytes is about how much of the stream is written to InfluxDB at once.
	ingestBytes = 3 << 20
	// ingestWorkers write at the same time, so that one reads and encodes while
	// another waits.
	ingestWorkers = 2
	// ingestWait is when a batch comes again that was neither acknowledged nor is
	// still being written, because the process died.
	ingestWait = 30 * time.Second
)

// Ingest drains the sample stream into write, batch by batch, and acknowledges a batch
// only once write returned nil; otherwise it comes again. It keeps its place across
// restarts. write is called by several goroutines, and the order of batches is not kept.
func (b *Bus) Ingest(ctx context.Context, write func(context.Context, []fleet.Sample) error) error {
	c, err := b.JS.CreateOrUpdateConsumer(ctx, StreamSamples, jetstream.ConsumerConfig{
		Durable: "influx", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ingestWait, MaxAckPending: 100_000,
	})
	if err != nil {
		return fmt.Errorf("make the ingest queue: %w", err)
	}
	var d Decoder
	var wg sync.WaitGroup
	for range ingestWorkers {
		wg.Go(func() {
			for ctx.Err() == nil {
				batch, err := fetch(ctx, c.FetchBytes, ingestBytes, time.Second)
				if err != nil {
					pause(ctx, time.Second)
					continue
				}
				b.ingest(ctx, &d, batch, write)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// ingest writes one batch and acknowledges it.
func (b *Bus) ingest(ctx context.Context, d *Decoder, batch jetstream.MessageBatch, write func(context.Context, []fleet.Sample) error) {
	var samples []fleet.Sample
	var messages []jetstream.Msg
	for m := range batch.Messages() {
		if s := b.decode(d, m); s != nil {
			samples, messages = append(samples, s...), append(messages, m)
			continue
		}
		if err := b.DeadLetter(ctx, strings.TrimPrefix(m.Subject(), subjectSamples), m.Data(), "the message of samples is damaged"); err != nil {
			m.Nak()
			continue
		}
		m.Ack()
	}
	if len(samples) == 0 {
		return
	}
	wait := 250 * time.Millisecond
	for write(ctx, samples) != nil {
		for _, m := range messages {
			m.InProgress()
		}
		if !pause(ctx, wait) {
			for _, m := range messages {
				m.Nak()
			}
			return
		}
		wait = min(2*wait, ingestWait/2)
	}
	for _, m := range messages {
		m.Ack()
	}
}

// DeadLetter keeps a message that cannot be stored for good, with the reason.
func (b *Bus) DeadLetter(ctx context.Context, host string, data []byte, reason string) error {
	_, err := b.JS.PublishMsg(ctx, &nats.Msg{Subject: subjectDead + host, Data: data, Header: nats.Header{"Tardigrade-Reason": {reason}}})
	if err != nil {
		return fmt.Errorf("keep a refused sample: %w", err)
	}
	return nil
}

// DeadSample is a message of samples that could not be stored for good.
type DeadSample struct {
	Sequence uint64
	// Time is when it was put aside, Host who sent it, and Reason why.
	Time   time.Time
	Host   fleet.HostID
	Reason string
	Data   []byte
}

// DeadLetters calls each with what is put aside, oldest first, until it returns false.
func (b *Bus) DeadLetters(ctx context.Context, each func(DeadSample) bool) error {
	s, err := b.JS.Stream(ctx, StreamDead)
	if err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	state := s.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		d, err := b.DeadLetterAt(ctx, seq)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !each(d) {
			break
		}
	}
	return nil
}

// DeadLetterAt returns one of them, or [ErrNotFound].
func (b *Bus) DeadLetterAt(ctx context.Context, sequence uint64) (DeadSample, error) {
	s, err := b.JS.Stream(ctx, StreamDead)
	if err != nil {
		return DeadSample{}, fmt.Errorf("read the dead letters: %w", err)
	}
	m, err := s.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return DeadSample{}, fmt.Errorf("dead letter %d: %w", sequence, ErrNotFound)
	}
	if err != nil {
		return DeadSample{}, fmt.Errorf("read dead letter %d: %w", sequence, err)
	}
	return DeadSample{
		Sequence: m.Sequence, Time: m.Time, Host: fleet.HostID(strings.TrimPrefix(m.Subject, subjectDead)),
		Reason: m.Header.Get("Tardigrade-Reason"), Data: m.Data,
	}, nil
}

// RetryDeadLetter puts a dead letter back into the stream of samples, and then takes it
// away. A crash in between leaves it in both, which does no harm.
func (b *Bus) RetryDeadLetter(ctx context.Context, sequence uint64) error {
	d, err := b.DeadLetterAt(ctx, sequence)
	if err != nil {
		return err
	}
	if _, err := b.JS.PublishMsg(ctx, &nats.Msg{Subject: subjectSamples + string(d.Host), Data: d.Data}); err != nil {
		return fmt.Errorf("put dead letter %d back: %w", sequence, err)
	}
	s, err := b.JS.Stream(ctx, StreamDead)
	if err == nil {
		err = s.DeleteMsg(ctx, sequence)
	}
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("take dead letter %d away, which is back in the stream: %w", sequence, err)
	}
	return nil
}

func (b *Bus) consume(ctx context.Context, stream string, cfg jetstream.ConsumerConfig, handle func(jetstream.Msg)) error {
	for {
		again := b.again()
		c, err := b.JS.CreateOrUpdateConsumer(ctx, stream, cfg)
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		cc, err := c.Consume(handle)
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		select {
		case <-ctx.Done():
			cc.Drain()
			<-cc.Closed()
			return nil
		case <-again: // the server forgot what was asked of it
			cc.Drain()
			<-cc.Closed()
		}
	}
}

const (
	// maxBundle bounds a diagnostics archive.
	maxBundle = 1 << 30
	// maxUploads bounds the archives of a host that are on their way at a time.
	maxUploads = 4
)

// Bundles keeps the diagnostics archives that agents upload.
type Bundles struct {
	b     *Bus
	store jetstream.ObjectStore
	dir   string

	mu      sync.Mutex
	uploads map[string]*upload
}

type upload struct {
	file *os.File
	sum  hash.Hash
	size int64
	last time.Time
}

// OpenBundles opens the store; dir is where half-received archives lie.
func OpenBundles(ctx context.Context, b *Bus, dir string) (*Bundles, error) {
	store, err := b.JS.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: "BUNDLES", Replicas: b.replicas, Storage: jetstream.FileStorage})
	if err != nil {
		return nil, fmt.Errorf("open the bundle store: %w", err)
	}
	return &Bundles{b: b, store: store, dir: dir, uploads: make(map[string]*upload)}, nil
}

// Serve receives uploads until ctx ends.
func (s *Bundles) Serve(ctx context.Context) error {
	sub, err := s.b.Conn.Subscribe(subjectBundles+"*", func(m *nats.Msg) {
		var p bundlePiece
		answer := ""
		host := strings.TrimPrefix(m.Subject, subjectBundles)
		if err := json.Unmarshal(m.Data, &p); err != nil {
			answer = "the piece is not JSON: " + err.Error()
		} else if err := s.receive(ctx, host, p); err != nil {
			answer = err.Error()
			s.b.log.Warn("bundle upload", "host", host, "bundle", p.Name, "err", err)
		}
		m.Respond([]byte(answer))
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return sub.Unsubscribe()
}

func (s *Bundles) receive(ctx context.Context, host string, p bundlePiece) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetOld()
	key := host + "/" + p.Name
	u := s.uploads[key]
	if p.Offset == 0 && p.SHA256 == "" {
		if u != nil {
			u.discard()
			delete(s.uploads, key)
		}
		if err := s.b.Room(); err != nil {
			return err
		}
		others := 0
		for k := range s.uploads {
			if strings.HasPrefix(k, host+"/") {
				others++
			}
		}
		if others >= maxUploads {
			return fmt.Errorf("%d bundles of the host are on their way already", others)
		}
		f, err := os.CreateTemp(s.dir, "bundle-*")
		if err != nil {
			return fmt.Errorf("keep the bundle: %w", err)
		}
		u = &upload{file: f, sum: sha256.New()}
		s.uploads[key] = u
	}
	if u == nil || p.Offset != u.size && !(p.Offset < u.size && p.Offset+int64(len(p.Data)) <= u.size) {
		return fmt.Errorf("unexpected piece at byte %d; start again from 0", p.Offset)
	}
	u.last = time.Now()
	if p.SHA256 == "" {
		if p.Offset < u.size {
			return nil // a piece sent again
		}
		err := s.b.Room()
		if u.size+int64(len(p.Data)) > maxBundle {
			err = fmt.Errorf("the bundle is larger than %d bytes", int64(maxBundle))
		}
		if err != nil {
			u.discard()
			delete(s.uploads, key)
			return err
		}
		if _, err := u.file.Write(p.Data); err != nil {
			return fmt.Errorf("keep the bundle: %w", err)
		}
		u.sum.Write(p.Data)
		u.size += int64(len(p.Data))
		return nil
	}
	defer u.discard()
	delete(s.uploads, key)
	if got := hex.EncodeToString(u.sum.Sum(nil)); got != p.SHA256 {
		return fmt.Errorf("the bundle's checksum is %s, the agent said %s; start again", got, p.SHA256)
	}
	if err := s.b.RoomFor(u.size); err != nil {
		return err
	}
	if _, err := u.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := s.store.Put(ctx, jetstream.ObjectMeta{Name: host + "/" + p.Name}, u.file)
	return s.b.wrote(filesPrefix+"BUNDLES", err)
}

func (s *Bundles) forgetOld() {
	for k, u := range s.uploads {
		if time.Since(u.last) > time.Hour {
			u.discard()
			delete(s.uploads, k)
		}
	}
}

func (u *upload) discard() {
	u.file.Close()
	os.Remove(u.file.Name())
}

// Open streams an archive of a host; [ErrNotFound] if there is none.
func (s *Bundles) Open(ctx context.Context, host fleet.HostID, name string) (io.ReadCloser, error) {
	r, err := s.store.Get(ctx, string(host)+"/"+name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, fmt.Errorf("bundle %s of host %s: %w", name, host, ErrNotFound)
	}
	return r, err
}
