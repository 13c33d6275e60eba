package execcmd

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/client/job"
	"github.com/sarnmesh/sarn/command/verb"
)

// news is what came from the agents.
type news struct {
	printer
	acked, ended, failed int
	seen                 map[string]bool // keys
}

// A printer prints whole lines with the node they are of.
type printer struct {
	call *verb.Call
	rest map[string]string // by node, what has no end of line yet
}

func (p *printer) print(node, text string) {
	lines := strings.Split(p.rest[node]+text, "\n")
	for _, line := range lines[:len(lines)-1] {
		p.call.Printf("    %s: %s\n", node, line)
	}
	p.rest[node] = lines[len(lines)-1]
}

func (p *printer) flush(node string) {
	if p.rest[node] != "" {
		p.print(node, "\n")
	}
}

// follow prints what agents answer until all that took the job have ended, or there was no news for a while.
func (r *request) follow(ctx context.Context, n job.Notice) error {
	at, _ := n.Keys("")
	base := strings.TrimSuffix(at, "job")
	got := &news{printer: printer{r.call, map[string]string{}}, seen: map[string]bool{at: true}}
	last := time.Now()
	var index uint64
	for ctx.Err() == nil {
		patience := r.wait
		if got.acked > got.ended {
			patience *= 2
		}
		left := time.Until(last.Add(patience))
		if left <= 0 {
			break
		}
		polling, cancel := context.WithTimeout(ctx, left)
		q := &api.QueryOptions{WaitIndex: index, WaitTime: left, AllowStale: r.call.Stale()}
		keys, meta, err := r.client.KV().Keys(base, "", q.WithContext(polling))
		late := polling.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil || late && err != nil:
			continue
		case err != nil:
			return verb.Errorf("Failed to query keys: %w", err)
		}
		index = meta.LastIndex
		fresh, err := r.take(ctx, got, base, keys)
		if err != nil {
			return verb.Errorf("Failed to read an answer: %w", err)
		}
		if fresh {
			last = time.Now()
		}
	}
	for node := range got.rest {
		got.flush(node)
	}
	r.call.Printf("%d / %d node(s) completed / acknowledged\n", got.ended, got.acked)
	switch {
	case ctx.Err() != nil:
		return verb.Errorf("Interrupted")
	case got.failed > 0 || got.ended < got.acked:
		return verb.Exit(2, nil)
	case got.acked == 0:
		r.call.Warnf("No agent took the command. Agents take one only with disable_remote_exec = false.")
	}
	return nil
}

// take reads the keys that are new: output before the exit code that follows it.
func (r *request) take(ctx context.Context, got *news, base string, keys []string) (fresh bool, err error) {
	var exits []string
	read := func(key string) (string, error) {
		pair, _, err := r.client.KV().Get(key, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil || pair == nil {
			return "", errors.Join(err, errMissing(pair))
		}
		return string(pair.Value), nil
	}
	for _, key := range keys {
		if got.seen[key] {
			continue
		}
		got.seen[key], fresh = true, true
		name := strings.TrimPrefix(key, base)
		switch node, what := split(name); {
		case what == job.Ack:
			got.acked++
			r.say("node %s has taken the job", node)
		case what == job.Exit:
			exits = append(exits, key)
		case strings.HasPrefix(what, job.Output):
			text, err := read(key)
			if err != nil {
				return fresh, err
			}
			got.print(node, text)
			if text == "" {
				r.say("node %s is still at it", node)
			}
		}
	}
	for _, key := range exits {
		code, err := read(key)
		if err != nil {
			return fresh, err
		}
		node, _ := split(strings.TrimPrefix(key, base))
		got.ended++
		if code != "0" {
			got.failed++
		}
		got.flush(node)
		r.call.Printf("==> %s: finished with exit code %s\n", node, code)
	}
	return fresh, nil
}

// errMissing reports a key that went away between being listed and being read: the session has ended.
func errMissing(pair *api.KVPair) error {
	if pair == nil {
		return errors.New("the session of the job has ended")
	}
	return nil
}

// split returns the node and the rest of a key behind that of the job.
func split(name string) (node, what string) {
	if before, after, ok := strings.Cut(name, "/"+job.Output); ok {
		return before, job.Output + after
	}
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}
