package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
	"github.com/tardigrade-recovery/tardigrade/model/registry"
)

// State is where a job stands.
type State string

// The states. The last four are final.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
	Lost      State = "lost" // the control plane ended while it ran
)

// Final tells whether the state never changes again.
func (s State) Final() bool {
	switch s {
	case Succeeded, Failed, Cancelled, Lost:
		return true
	}
	return false
}

// Job is a training that was asked for.
type Job struct {
	ID    string        `json:"id"`
	Kind  registry.Kind `json:"kind"`
	State State         `json:"state"`
	// By is who asked for it, and Why.
	By  string `json:"by"`
	Why string `json:"why,omitempty"`
	// Data names what it is trained on, as it was asked for.
	Data string `json:"data"`
	// Dataset is the name of the data set that it is trained on, "" for what is stored.
	Dataset string `json:"dataset,omitempty"`
	// From and To are the range of time, zero where the data have all of it.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// StepSeconds is the length of the windows whose means it learns from, and Hosts limits
	// it to these.
	StepSeconds float64        `json:"step_s,omitempty"`
	Hosts       []fleet.HostID `json:"hosts,omitempty"`
	Created     time.Time      `json:"created"`
	Started     time.Time      `json:"started,omitzero"`
	Ended       time.Time      `json:"ended,omitzero"`
	// Stage is what it is doing, and Done how much of all is done, 0..1.
	Stage string  `json:"stage,omitempty"`
	Done  float64 `json:"done"`
	// Error is why it failed, and Model the version that it made.
	Error string `json:"error,omitempty"`
	Model string `json:"model,omitempty"`
}

// Store keeps jobs. What Put returned nil for is durable.
type Store interface {
	Put(ctx context.Context, j Job) error
	All() []Job
	Delete(ctx context.Context, id string) error
}

const (
	mostQueued = 20
	mostKept   = 200 // of those that ended
)

// The errors of a queue.
var (
	ErrNotFound = errors.New("there is no job")
	ErrFull     = errors.New("too many jobs wait already")
	ErrEnded    = errors.New("the job has ended already")
)

// Queue runs jobs one after the other. It is safe for concurrent use.
type Queue struct {
	store Store
	run   func(ctx context.Context, j Job, progress func(stage string, done float64)) (model string, err error)
	log   *slog.Logger

	mu     sync.Mutex
	jobs   map[string]Job
	cancel map[string]context.CancelCauseFunc // of what runs
	wake   chan struct{}
}

// errCancelled is why the context of a cancelled job ends.
var errCancelled = errors.New("cancelled")

// NewQueue reads what there is: a job that ran when the process ended is lost, and says so;
// one that waited is still waiting. run does the work.
func NewQueue(ctx context.Context, s Store, run func(context.Context, Job, func(string, float64)) (string, error), log *slog.Logger) (*Queue, error) {
	q := &Queue{store: s, run: run, log: log, jobs: make(map[string]Job), cancel: make(map[string]context.CancelCauseFunc), wake: make(chan struct{}, 1)}
	for _, j := range s.All() {
		if j.State == Running {
			j.State, j.Ended, j.Error = Lost, time.Now().UTC(), "the control plane ended while it ran; ask for it again"
			if err := s.Put(ctx, j); err != nil {
				return nil, fmt.Errorf("jobs: %w", err)
			}
		}
		q.jobs[j.ID] = j
	}
	q.poke()
	return q, nil
}

func (q *Queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Submit puts a job into the queue. Its ID, state and times are filled in.
func (q *Queue) Submit(ctx context.Context, j Job) (Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	waiting := 0
	for _, other := range q.jobs {
		if other.State == Queued {
			waiting++
		}
	}
	if waiting >= mostQueued {
		return Job{}, fmt.Errorf("%w: %d", ErrFull, waiting)
	}
	j.ID, j.State, j.Created = ulid.Make().String(), Queued, time.Now().UTC()
	if err := q.put(ctx, j); err != nil {
		return Job{}, err
	}
	q.forget(ctx)
	q.poke()
	return j, nil
}

// put stores a job. q.mu is held.
func (q *Queue) put(ctx context.Context, j Job) error {
	if err := q.store.Put(ctx, j); err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	q.jobs[j.ID] = j
	return nil
}

// forget drops the oldest that ended. q.mu is held.
func (q *Queue) forget(ctx context.Context) {
	var ended []string
	for id, j := range q.jobs {
		if j.State.Final() {
			ended = append(ended, id)
		}
	}
	slices.Sort(ended) // the IDs are ULIDs, which sort by time
	for i := 0; i < len(ended)-mostKept; i++ {
		if q.store.Delete(ctx, ended[i]) == nil {
			delete(q.jobs, ended[i])
		}
	}
}

// All returns the jobs, newest first.
func (q *Queue) All() []Job {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]Job, 0, len(q.jobs))
	for _, j := range q.jobs {
		out = append(out, j)
	}
	slices.SortFunc(out, func(a, b Job) int {
		if a.ID > b.ID {
			return -1
		}
		return 1
	})
	return out
}

// Find returns a job.
func (q *Queue) Find(id string) (Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	j, ok := q.jobs[id]
	if !ok {
		return Job{}, fmt.Errorf("%w %q", ErrNotFound, id)
	}
	return j, nil
}

// Busy says whether a job of a kind waits or runs.
func (q *Queue) Busy(kind registry.Kind) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.jobs {
		if j.Kind == kind && !j.State.Final() {
			return true
		}
	}
	return false
}

// Cancel ends a job. One that runs ends a moment later.
func (q *Queue) Cancel(ctx context.Context, id, who string) (Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	j, ok := q.jobs[id]
	switch {
	case !ok:
		return Job{}, fmt.Errorf("%w %q", ErrNotFound, id)
	case j.State.Final():
		return j, fmt.Errorf("%w: %s is %s since %s", ErrEnded, id, j.State, j.Ended.Format(time.RFC3339))
	case j.State == Running:
		q.cancel[id](fmt.Errorf("%w by %s", errCancelled, who))
		return j, nil
	}
	j.State, j.Ended, j.Error = Cancelled, time.Now().UTC(), "cancelled by "+who
	return j, q.put(ctx, j)
}

// Run works until ctx ends; what runs then is killed and lost.
func (q *Queue) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		}
		for ctx.Err() == nil {
			j, ok := q.next(ctx)
			if !ok {
				break
			}
			q.do(ctx, j)
		}
	}
}

// next takes the oldest job that waits.
func (q *Queue) next(ctx context.Context) (Job, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var found Job
	for _, j := range q.jobs {
		if j.State == Queued && (found.ID == "" || j.ID < found.ID) {
			found = j
		}
	}
	if found.ID == "" {
		return found, false
	}
	found.State, found.Started = Running, time.Now().UTC()
	if err := q.put(ctx, found); err != nil {
		q.log.Error("a job could not be begun", "err", err)
		return found, false
	}
	return found, true
}

// progressEvery is how often progress is stored.
const progressEvery = time.Second

func (q *Queue) do(ctx context.Context, j Job) {
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q.mu.Lock()
	q.cancel[j.ID] = cancel
	q.mu.Unlock()
	var stored time.Time
	stage := ""
	model, err := q.run(work, j, func(s string, done float64) {
		now := time.Now()
		if s == stage && now.Sub(stored) < progressEvery {
			return
		}
		stage, stored = s, now
		q.mu.Lock()
		defer q.mu.Unlock()
		j.Stage, j.Done = s, done
		_ = q.put(ctx, j)
	})
	j.Ended = time.Now().UTC()
	switch {
	case err == nil:
		j.State, j.Model, j.Done, j.Stage = Succeeded, model, 1, ""
	case errors.Is(context.Cause(work), errCancelled):
		j.State, j.Error = Cancelled, context.Cause(work).Error()
	case ctx.Err() != nil:
		j.State, j.Error = Lost, "the control plane ended while it ran; ask for it again"
	default:
		j.State, j.Error = Failed, err.Error()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.cancel, j.ID)
	// Also where ctx has ended, as long as the store goes on.
	ending, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	if err := q.put(ending, j); err != nil {
		q.log.Error("the end of a job could not be stored", "job", j.ID, "err", err)
	}
	q.log.Info("a training ended", "job", j.ID, "kind", j.Kind, "state", j.State, "model", j.Model, "err", j.Error)
}
