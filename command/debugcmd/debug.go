// Package debugcmd holds the command that collects what helps to find out what is wrong with an agent.
package debugcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/internal/version"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "debug", Synopsis: "Collect what tells about an agent in one archive", Client: true, Setup: setup,
		Help: "Watches an agent for a while and saves what it says in one archive: its configuration without secrets, its machine, the " +
			"members it knows, metrics, its log from level debug on, and profiles. Nothing leaves the machine.\n\n" +
			"Profiles need enable_debug in the agent's configuration or a token with operator:read. Without them they are left out.",
	}}
}

// What can be collected. All but the last three are there at once.
var targets = []string{"agent", "host", "members", "metrics", "logs", "pprof"}

// fast are the targets that no time is needed for.
var fast = []string{"agent", "host", "members"}

// Least durations.
const (
	minDuration = 10 * time.Second
	minInterval = 5 * time.Second
)

// journalTimeout is how long the system's journal may take to answer.
const journalTimeout = time.Minute

// Modes of what is written: logs and configuration are for their owner.
const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// stamp is the form of times in names of files.
const stamp = "2006-01-02T15-04-05Z0700"

// A job is one collection.
type job struct {
	call     *verb.Call
	client   *api.Client
	dir      string
	capture  []string
	duration time.Duration
	interval time.Duration
	since    time.Duration // what is wanted of the journal; 0 for nothing

	mu sync.Mutex // of warnings, which come from several at once
}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	capture := verb.Strings(f, "capture", "`what` to collect: agent, host, members, metrics, logs or pprof; repeatable, default all")
	duration := f.Duration("duration", 5*time.Minute, "`time` to collect for, at least 10s")
	interval := f.Duration("interval", 30*time.Second, "`time` between profiles, at least 5s")
	archive := f.Bool("archive", true, "make one file of the folder, and remove that")
	since := f.Duration("since", 0, "`time` before the start whose lines of the system's journal are added, for an agent on this machine that is a systemd unit sarn or consul; 0 for none")
	output := f.String("output", "", "`path` of the folder; default consul-debug-TIME in the working folder")
	return func(c *verb.Call) error {
		if n := len(c.Args); n > 0 {
			return verb.Usagef("Too many arguments provided, expected 0")
		}
		j := &job{call: c, dir: *output, capture: *capture, duration: *duration, interval: *interval, since: *since}
		if j.dir == "" {
			j.dir = "consul-debug-" + time.Now().Format(stamp)
		}
		if len(j.capture) == 0 {
			j.capture = targets
		}
		if err := j.check(); err != nil {
			return verb.Errorf("Capture validation failed: %w", err)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		j.client = client
		if _, err := client.Agent().NodeName(); err != nil {
			return verb.Errorf("Error querying the agent: %w", err)
		}
		return j.run(*archive)
	}
}

// check refuses what cannot be collected.
func (j *job) check() error {
	for _, target := range j.capture {
		if !slices.Contains(targets, target) {
			return fmt.Errorf("target not found: %s", target)
		}
	}
	switch {
	case j.duration < minDuration:
		return errors.New("duration must be longer than 10s")
	case j.since < 0:
		return errors.New("since can't be negative")
	case j.interval < minInterval:
		return errors.New("interval must be longer than 10s")
	case j.duration < j.interval:
		return fmt.Errorf("duration (%s) must be longer than interval (%s)", j.duration, j.interval)
	}
	for _, path := range []string{j.dir, j.dir + ".tar.gz"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("output directory already exists: %s", path)
		}
	}
	return nil
}

func (j *job) wants(target string) bool { return slices.Contains(j.capture, target) }

// warn tells of what could not be collected.
func (j *job) warn(what string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.call.Warnf("==> Not collected: %s: %v", what, err)
}

func (j *job) run(archive bool) error {
	ctx, cancel := j.call.Interruptible()
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(j.dir), dirMode); err != nil {
		return err
	}
	if err := os.Mkdir(j.dir, dirMode); err != nil {
		return err
	}
	j.call.Printf("==> Collecting %s from the agent\n", strings.Join(j.capture, ", "))
	if err := j.once(); err != nil {
		return err
	}
	if j.since > 0 {
		j.journal(ctx)
	}
	if slices.ContainsFunc(j.capture, func(t string) bool { return !slices.Contains(fast, t) }) {
		j.call.Printf("    for %s, profiles every %s; interrupt to stop early\n", j.duration, j.interval)
		done := j.call.Waiting("Collecting")
		j.watch(ctx)
		done()
	}
	path := j.dir
	if archive {
		path = j.dir + ".tar.gz"
		if err := pack(j.dir, path); err != nil {
			os.Remove(path)
			return verb.Errorf("Error making the archive, %s is left: %w", j.dir, err)
		}
		if err := os.RemoveAll(j.dir); err != nil {
			return err
		}
	}
	j.call.Printf("==> Saved debug archive: %s\n", path)
	if ctx.Err() != nil {
		return verb.Errorf("Interrupted: the archive has what was collected until then")
	}
	return nil
}

// once collects what is there at once.
func (j *job) once() error {
	for _, part := range []struct{ target, file, path string }{
		{"agent", "agent", "/v1/agent/self"}, {"host", "host", "/v1/agent/host"}, {"members", "members", "/v1/agent/members"},
		{"", "listpeers", "/v1/operator/raft/configuration"},
	} {
		if part.target != "" && !j.wants(part.target) {
			continue
		}
		var answer json.RawMessage
		q := j.call.Query()
		q.AllowStale = true // also while there is no leader
		if _, err := j.client.Raw().Query(part.path, &answer, q); err != nil {
			j.warn(part.file, err)
			continue
		}
		if err := j.save(part.file+".json", answer); err != nil {
			return err
		}
	}
	index, err := json.Marshal(map[string]any{
		"Version": version.Human(), "Started": time.Now().UTC(), "Interval": j.interval.String(), "Duration": j.duration.String(),
		"Targets": j.capture,
	})
	if err != nil {
		return err
	}
	return j.save("index.json", index)
}

// journal saves what the system's journal has about agents on this machine.
func (j *job) journal(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	j.record(ctx, "journal.log", func() (io.ReadCloser, error) {
		from := "@" + strconv.FormatInt(time.Now().Add(-j.since).Unix(), 10)
		cmd := exec.CommandContext(ctx, "journalctl", "--no-pager", "--quiet", "--output=short-iso-precise", "--since="+from, "--unit=sarn", "--unit=consul")
		text, err := cmd.Output()
		return io.NopCloser(bytes.NewReader(text)), err
	})
}

// save writes a file of JSON.
func (j *job) save(name string, text json.RawMessage) error {
	pretty, err := json.MarshalIndent(text, "", "    ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(j.dir, name), append(pretty, '\n'), fileMode)
}

// watch collects what takes time, until that is over or ctx ends.
func (j *job) watch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, j.duration)
	defer cancel()
	var all sync.WaitGroup
	if j.wants("metrics") {
		all.Go(func() {
			j.record(ctx, "metrics.json", func() (io.ReadCloser, error) { return j.client.Agent().MetricsStream(ctx) })
		})
	}
	if j.wants("logs") {
		all.Go(func() { j.logs(ctx) })
	}
	if j.wants("pprof") {
		all.Go(func() { j.profiles(ctx) })
	}
	all.Wait()
}

// record copies a stream into a file until it or ctx ends.
func (j *job) record(ctx context.Context, name string, open func() (io.ReadCloser, error)) {
	in, err := open()
	if err != nil {
		if ctx.Err() == nil {
			j.warn(name, err)
		}
		return
	}
	defer in.Close()
	path := filepath.Join(j.dir, name)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		j.warn(name, err)
		return
	}
	n, err := io.Copy(out, in)
	if closing := out.Close(); err == nil {
		err = closing
	}
	if err != nil && ctx.Err() == nil {
		j.warn(name, err)
	}
	if n == 0 {
		os.Remove(path)
	}
}

// logs follows the agent's log.
func (j *job) logs(ctx context.Context) {
	stop := make(chan struct{})
	lines, err := j.client.Agent().Monitor("DEBUG", stop, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		j.warn("logs", err)
		return
	}
	defer close(stop)
	out, err := os.OpenFile(filepath.Join(j.dir, "consul.log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		j.warn("logs", err)
		return
	}
	defer out.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-lines:
			if !ok || line == "" { // the client tells the end of the stream so
				if ctx.Err() == nil {
					j.warn("logs", errors.New("the agent ended the stream"))
				}
				return
			}
			if _, err := fmt.Fprintln(out, line); err != nil {
				j.warn("logs", err)
				return
			}
		}
	}
}

// profiles records a profile of the processor and a trace over the whole time, and snapshots every interval.
func (j *job) profiles(ctx context.Context) {
	debug := j.client.Debug()
	fetch := func(ctx context.Context, kind string, seconds int) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return debug.PProf(ctx, kind, seconds) }
	}
	probe, err := debug.PProf(ctx, "cmdline", 0)
	if err != nil {
		if ctx.Err() == nil {
			j.warn("pprof, which needs enable_debug or a token with operator:read", err)
		}
		return
	}
	probe.Close()
	// What takes the whole time answers at its end: leave it that long and a little more.
	seconds := int(j.duration / time.Second)
	long, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.duration+10*time.Second)
	defer cancel()
	interrupted := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})
	defer interrupted()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { j.record(long, "profile.prof", fetch(long, "profile", seconds)) })
	all.Go(func() { j.record(long, "trace.out", fetch(long, "trace", seconds)) })
	tick := time.NewTicker(j.interval)
	defer tick.Stop()
	snapshots := []struct {
		name string
		take func() ([]byte, error)
	}{{"heap", debug.Heap}, {"goroutine", debug.Goroutine}}
	for ctx.Err() == nil {
		folder := time.Now().Format(stamp)
		if err := os.Mkdir(filepath.Join(j.dir, folder), dirMode); err != nil {
			j.warn("profiles", err)
			return
		}
		for _, kind := range snapshots {
			j.record(ctx, filepath.Join(folder, kind.name+".prof"), func() (io.ReadCloser, error) {
				data, err := kind.take()
				return io.NopCloser(bytes.NewReader(data)), err
			})
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
