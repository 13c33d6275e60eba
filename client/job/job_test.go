//go:build unix

package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/client/job"
	"github.com/sarnmesh/sarn/internal/rpc"
)

const session = "11111111-2222-3333-4444-555555555555"

// A store answers the calls of a runner.
type store struct {
	mu    sync.Mutex
	keys  map[string][]byte
	gone  bool // the session has ended
	wrote chan string
}

func (s *store) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch req := req.(type) {
	case *kv.GetRequest:
		if req.Token != "secret" {
			return errors.New("no token")
		}
		if v, ok := s.keys[req.Key]; ok {
			resp.(*kv.GetReply).Entry = &kv.Entry{Key: req.Key, Value: v}
		}
		return nil
	case *kv.ApplyRequest:
		if req.Token != "secret" || req.Op != kv.OpLock || req.Entry.Session != session {
			return fmt.Errorf("write of %+v", req)
		}
		if resp.(*kv.ApplyReply).OK = !s.gone; !s.gone {
			s.keys[req.Entry.Key] = req.Entry.Value
			s.wrote <- req.Entry.Key
		}
		return nil
	}
	return fmt.Errorf("call of %s", d.Name)
}

// perform runs a job and returns what the node said, and the keys it used. seen gets each key as it is written; nil is
// for who does not want to know.
func perform(t *testing.T, j job.Job, seen func(key string)) (output, exit string, keys []string) {
	t.Helper()
	t.Setenv("SHELL", "/bin/sh")
	data, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	s := &store{keys: map[string][]byte{"p/" + session + "/job": data}, wrote: make(chan string, 1000)}
	r := job.New(job.Config{Node: "n1", Caller: s, Token: func() string { return "secret" }, TempDir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	e := &event.Event{Payload: []byte(`{"Prefix": "p", "Session": "` + session + `"}`)}
	r.Offer(e)
	r.Offer(e) // the same again changes nothing
	for key := range s.wrote {
		if seen != nil {
			seen(key)
		}
		if strings.HasSuffix(key, "/n1/exit") {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	prefix := "p/" + session + "/n1/"
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			keys = append(keys, name)
			if strings.HasPrefix(name, "out/") {
				output += string(s.keys[key])
			}
		}
	}
	return output, string(s.keys[prefix+"exit"]), keys
}

func TestJobs(t *testing.T) {
	for _, tt := range []struct {
		name         string
		job          job.Job
		output, exit string
	}{
		{"line", job.Job{Command: "echo out; echo err >&2; exit 3"}, "out\nerr\n", "3"},
		{"words", job.Job{Args: []string{"/bin/echo", "a  b", "$HOME"}}, "a  b $HOME\n", "0"},
		{"script", job.Job{Script: []byte("echo from-$((1+1))\n")}, "from-2\n", "0"},
		{"script with an interpreter", job.Job{Script: []byte("#!/bin/sh\necho $0 | grep -c sarn-job-\n")}, "1\n", "0"},
		{"nothing", job.Job{}, "the job has nothing to run\n", "255"},
		{"cannot be started", job.Job{Args: []string{"/nowhere/at/all"}}, "fork/exec /nowhere/at/all: no such file or directory\n", "255"},
		{"killed", job.Job{Command: "kill -9 $$"}, "", "255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if output, exit, keys := perform(t, tt.job, nil); output != tt.output || exit != tt.exit || keys[0] != "ack" {
				t.Errorf("output %q, exit %q, keys %q; want %q, %q", output, exit, keys, tt.output, tt.exit)
			}
		})
	}
}

func TestMuchOutputGoesInPieces(t *testing.T) {
	output, exit, keys := perform(t, job.Job{Command: "i=0; while [ $i -lt 2000 ]; do echo 0123456789012345678901234567890123456789012345678901234567890123456789012345678; i=$((i+1)); done"}, nil)
	if len(output) != 2000*80 || exit != "0" {
		t.Errorf("%d bytes of output, exit %q", len(output), exit)
	}
	if pieces := len(keys) - 2; pieces < 2000*80/4096 || keys[len(keys)-1] != fmt.Sprintf("out/%05x", pieces-1) {
		t.Errorf("%d pieces, the last is %s", pieces, keys[len(keys)-1])
	}
}

func TestSilentJobsShowThatTheyLive(t *testing.T) {
	end := filepath.Join(t.TempDir(), "end") // once this is there, the job ends
	j := job.Job{Command: "until [ -e '" + end + "' ]; do sleep 0.1; done", Wait: 100 * time.Millisecond}
	output, exit, keys := perform(t, j, func(key string) {
		if strings.HasSuffix(key, "/n1/out/00001") {
			if err := os.WriteFile(end, nil, 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	if output != "" || exit != "0" || len(keys) < 4 {
		t.Errorf("output %q, exit %q, keys %q", output, exit, keys)
	}
}

func TestNoticesThatAreNone(t *testing.T) {
	s := &store{wrote: make(chan string, 1)}
	r := job.New(job.Config{Node: "n1", Caller: s})
	for _, payload := range []string{"", "{", `{"Prefix": "p"}`, `{"Prefix": "/", "Session": "` + session + `"}`, `{"Prefix": "p", "Session": "../x"}`} {
		r.Offer(&event.Event{Payload: []byte(payload)})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
	if len(s.wrote) > 0 {
		t.Errorf("wrote %s", <-s.wrote)
	}
}

func FuzzOffer(f *testing.F) {
	f.Add([]byte(`{"Prefix": "p", "Session": "` + session + `"}`))
	f.Add([]byte(`{"Session": 1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r := job.New(job.Config{Node: "n1", Caller: &store{}})
		for range 40 { // more than it takes on
			r.Offer(&event.Event{Payload: payload})
		}
	})
}
