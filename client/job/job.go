// Package job runs what sarn exec asks an agent to run. What is to be run, and what comes of it, is kept in keys of a
// session that ends with the request (spec/cli.md section 2.8). An event tells the agents that there is something to do.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/program"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// EventName is the name of the events that tell of jobs.
const EventName = "_rexec"

// A Notice is the payload of such an event: where the job is.
type Notice struct {
	Prefix  string
	Session string
}

// A Job is what is to be run: a line for the shell, else words, else a script.
type Job struct {
	Command string
	Args    []string
	Script  []byte
	Wait    time.Duration // how often the agent shows that it is still at it; 0 for never
}

// Keys returns where a job is, and the prefix of what a node says about it.
func (n Notice) Keys(node string) (job, answers string) {
	base := strings.TrimSuffix(n.Prefix, "/") + "/" + n.Session + "/"
	return base + "job", base + node + "/"
}

// Names of keys behind the prefix of a node.
const (
	Ack    = "ack"  // it has taken the job
	Output = "out/" // followed by the number of the piece, five hexadecimal digits
	Exit   = "exit" // the exit code as text
)

// FailedToStart is the exit code of what cannot be started.
const FailedToStart = 255

// Bounds of what an agent takes on, and of what it sends.
const (
	maxRunning = 16
	maxDone    = 256 // remembered, so that an event told twice runs nothing twice
	pieceSize  = 4 << 10
	pieceTime  = 500 * time.Millisecond
)

// Config tunes a Runner. A zero field takes its default.
type Config struct {
	Node   string     // name of this node; required
	Caller rpc.Caller // required
	// Token returns the secret that keys are read and written with; default the anonymous token.
	Token func() string
	// Start prepares a program, whose context ends with the agent; default program.Command.
	Start   func(ctx context.Context, words ...string) *exec.Cmd
	TempDir string       // for scripts; default the system's
	Logger  hclog.Logger // default discards
}

// A Runner runs jobs. Make one with New. It is safe for concurrent use.
type Runner struct {
	cfg   Config
	todo  chan Notice
	mu    sync.Mutex
	known map[string]bool // sessions whose job is being run
	done  []string        // the last sessions whose job was run, oldest first
}

// New returns a runner. Nothing happens until Run.
func New(cfg Config) *Runner {
	if cfg.Token == nil {
		cfg.Token = func() string { return "" }
	}
	if cfg.Start == nil {
		cfg.Start = program.Command
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Runner{cfg: cfg, todo: make(chan Notice, maxRunning), known: map[string]bool{}}
}

// Offer takes an event that tells of a job. It does not wait; what is too much is refused, and logged.
func (r *Runner) Offer(e *event.Event) {
	n, err := parse(e.Payload)
	if err != nil {
		r.cfg.Logger.Warn("event does not tell of a job", "event", e.ID, "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[n.Session] || slices.Contains(r.done, n.Session) {
		return
	}
	if len(r.known) >= maxRunning {
		r.cfg.Logger.Warn("job refused: too many run already", "session", n.Session)
		return
	}
	r.known[n.Session] = true
	r.todo <- n // has room for all that are known
}

// parse reads the payload of an event.
func parse(payload []byte) (n Notice, err error) {
	if err := json.Unmarshal(payload, &n); err != nil {
		return n, err
	}
	if err := catalog.CheckUUID(n.Session); err != nil {
		return n, fmt.Errorf("session: %w", err)
	}
	if strings.Trim(n.Prefix, "/") == "" {
		return n, errors.New("no prefix")
	}
	return n, nil
}

// Run runs jobs until ctx ends, which ends them too.
func (r *Runner) Run(ctx context.Context) error {
	var g errgroup.Group
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case n := <-r.todo:
			g.Go(func() error {
				defer func() {
					r.mu.Lock()
					defer r.mu.Unlock()
					delete(r.known, n.Session)
					if len(r.done) == maxDone {
						r.done = slices.Delete(r.done, 0, 1)
					}
					r.done = append(r.done, n.Session)
				}()
				log := r.cfg.Logger.With("session", n.Session)
				if err := r.run(ctx, n, log); err != nil && ctx.Err() == nil {
					log.Warn("job failed", "error", err)
				}
				return nil
			})
		}
	}
}

// errGone reports that nobody waits for the answer any more.
var errGone = errors.New("the session of the job has ended")

func (r *Runner) run(ctx context.Context, n Notice, log hclog.Logger) error {
	at, answers := n.Keys(r.cfg.Node)
	j, err := r.fetch(ctx, at)
	if err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	put := func(key, value string) error { return r.put(ctx, answers+key, value, n.Session) }
	if err := put(Ack, ""); err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	words, cleanup, err := r.words(j)
	if err != nil {
		log.Warn("job cannot be started", "error", err)
		return errors.Join(put(Output+"00000", err.Error()+"\n"), put(Exit, fmt.Sprint(FailedToStart)))
	}
	defer cleanup()
	log.Info("running a job")
	out := newPieces(j.Wait)
	cmd := r.cfg.Start(ctx, words...)
	cmd.Stdout, cmd.Stderr = out, out
	code := 0
	sent := make(chan error, 1)
	go func() {
		sent <- out.send(func(number int, text string) error { return put(fmt.Sprintf("%s%05x", Output, number), text) })
	}()
	switch err := cmd.Run(); {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
	case cmd.ProcessState == nil:
		fmt.Fprintln(out, err)
		code = FailedToStart
	default:
		if code = cmd.ProcessState.ExitCode(); code < 0 { // ended by a signal
			code = FailedToStart
		}
	}
	out.close()
	if err := <-sent; err != nil {
		return fmt.Errorf("send output: %w", err)
	}
	log.Info("job ended", "exit", code)
	return put(Exit, fmt.Sprint(code))
}

// fetch reads a job, from any server first: the event may be faster than the log.
func (r *Runner) fetch(ctx context.Context, key string) (*Job, error) {
	for _, mode := range []read.Mode{read.Stale, read.Consistent} {
		reply, err := kv.GetCall.Call(ctx, r.cfg.Caller, &kv.GetRequest{
			Options: read.Options{Target: read.Target{Token: r.cfg.Token()}, Mode: mode}, Key: key,
		})
		if err != nil {
			return nil, err
		}
		if reply.Entry == nil {
			continue
		}
		j := new(Job)
		if err := json.Unmarshal(reply.Entry.Value, j); err != nil {
			return nil, err
		}
		return j, nil
	}
	return nil, errors.New("there is none")
}

// put writes a key for as long as the session lives.
func (r *Runner) put(ctx context.Context, key, value, session string) error {
	reply, err := kv.ApplyCall.Call(ctx, r.cfg.Caller, &kv.ApplyRequest{
		Target: read.Target{Token: r.cfg.Token()}, Op: kv.OpLock,
		Entry: kv.Entry{Key: key, Value: []byte(value), Session: session},
	})
	if err != nil {
		return err
	}
	if !reply.OK {
		return errGone
	}
	return nil
}

// words returns what a job runs, and what removes the file of its script.
func (r *Runner) words(j *Job) (words []string, cleanup func(), err error) {
	nothing := func() {}
	switch {
	case len(j.Args) > 0:
		return j.Args, nothing, nil
	case j.Command != "":
		return program.Shell(j.Command), nothing, nil
	case len(j.Script) == 0:
		return nil, nil, errors.New("the job has nothing to run")
	}
	f, err := os.CreateTemp(r.cfg.TempDir, "sarn-job-")
	if err != nil {
		return nil, nil, err
	}
	cleanup = func() { os.Remove(f.Name()) }
	err = f.Chmod(0o750)
	if err == nil {
		_, err = f.Write(j.Script)
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		cleanup()
		return nil, nil, err
	}
	return program.Shell(f.Name()), cleanup, nil
}
