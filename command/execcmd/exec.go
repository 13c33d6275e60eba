// Package execcmd holds the command that has agents run a program.
package execcmd

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/client/job"
	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "exec", Args: "[-|COMMAND...]", Synopsis: "Run a command on many machines", Client: true, Server: true, Setup: setup,
		Help: "Has agents run a command and prints what it prints there. With - as the command, a script is read from standard input. " +
			"Agents do this only with disable_remote_exec = false in their configuration. It exits with 2 when the command failed, or did not " +
			"end, on any node.",
	}}
}

// Times of the session that holds the job together.
const (
	sessionTTL   = "15s"
	renewEvery   = 5 * time.Second
	cleanupLimit = 5 * time.Second
)

// A request is one run of the command.
type request struct {
	call                *verb.Call
	client              *api.Client
	prefix              string
	node, service, tag  string
	wait, replicateWait time.Duration
	verbose             bool
	job                 job.Job
}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	node := f.String("node", "", "`regexp` of the names of nodes to run on")
	service := f.String("service", "", "`regexp` of services; only nodes with one run the command")
	tag := f.String("tag", "", "`regexp` of tags that the service must have, with -service")
	prefix := f.String("prefix", "_rexec", "`prefix` of the keys that carry the job and what comes of it")
	shell := f.Bool("shell", true, "run the command with a shell")
	wait := f.Duration("wait", 2*time.Second, "`time` without news after which nothing more is expected")
	replicate := f.Duration("wait-repl", 200*time.Millisecond, "`time` for the job to reach all servers before agents are told")
	verbose := f.Bool("verbose", false, "tell what happens")
	return func(c *verb.Call) error {
		r := &request{
			call: c, prefix: *prefix, node: *node, service: *service, tag: *tag, wait: *wait, replicateWait: *replicate, verbose: *verbose,
		}
		r.job.Wait = *wait
		switch {
		case len(c.Args) == 1 && c.Args[0] == "-":
			if !*shell {
				return verb.Errorf("Cannot configure -shell=false when reading from stdin")
			}
			script, err := io.ReadAll(c.In)
			if err != nil {
				return verb.Errorf("Failed to read stdin: %w", err)
			}
			r.job.Script = script
		case *shell:
			r.job.Command = strings.Join(c.Args, " ")
		default:
			r.job.Args = c.Args
		}
		if r.job.Command == "" && len(r.job.Args) == 0 && len(r.job.Script) == 0 {
			return verb.Usagef("Must specify a command to execute")
		}
		if err := r.check(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		r.client = client
		return r.run()
	}
}

// check refuses filters that cannot be.
func (r *request) check() error {
	if r.tag != "" && r.service == "" {
		return verb.Errorf("Cannot provide tag filter without service filter.")
	}
	for what, expr := range map[string]string{"node": r.node, "service": r.service, "tag": r.tag} {
		if _, err := regexp.Compile(expr); err != nil {
			return verb.Errorf("Failed to compile %s filter regexp: %w", what, err)
		}
	}
	switch {
	case strings.Trim(r.prefix, "/") == "":
		return verb.Errorf("Must specify a prefix")
	case r.wait <= 0:
		return verb.Errorf("-wait must be positive")
	}
	return nil
}

// say tells what happens, when that is asked for.
func (r *request) say(format string, args ...any) {
	if r.verbose {
		r.call.Printf("==> "+format+"\n", args...)
	}
}

func (r *request) run() error {
	ctx, cancel := r.call.Interruptible()
	defer cancel()
	session, err := r.open(ctx)
	if err != nil {
		return verb.Errorf("Failed to create session: %w", err)
	}
	r.say("Created remote execution session: %s", session)
	n := job.Notice{Prefix: r.prefix, Session: session}
	defer r.cleanup(n)
	renewing, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.renew(renewing, session)
	}()
	defer func() { stop(); <-ended }()
	if err := r.upload(ctx, n); err != nil {
		return verb.Errorf("Failed to create job file: %w", err)
	}
	r.say("Uploaded remote execution spec")
	select { // the event may be faster than the log
	case <-time.After(r.replicateWait):
	case <-ctx.Done():
		return verb.Errorf("Interrupted")
	}
	payload, err := json.Marshal(n)
	if err != nil {
		return err
	}
	id, _, err := r.client.Event().Fire(&api.UserEvent{
		Name: job.EventName, Payload: payload, NodeFilter: r.node, ServiceFilter: r.service, TagFilter: r.tag,
	}, r.call.Write().WithContext(ctx))
	if err != nil {
		return verb.Errorf("Failed to fire event: %w", err)
	}
	r.say("Fired remote execution event: %s", id)
	return r.follow(ctx, n)
}

// open makes the session. That of another datacenter belongs to one of its servers, since the agent has no node there.
func (r *request) open(ctx context.Context) (string, error) {
	e := &api.SessionEntry{Name: "Remote Exec", TTL: sessionTTL, Behavior: api.SessionBehaviorDelete}
	self, err := r.client.Agent().Self()
	if err != nil {
		return "", err
	}
	own, _ := self["Config"]["Datacenter"].(string)
	name, _ := self["Config"]["NodeName"].(string)
	e.Name = fmt.Sprintf("Remote Exec via %s@%s", name, own)
	if asked := r.call.Config().Datacenter; asked != "" && asked != own {
		servers, _, err := r.client.Health().Service("consul", "", true, r.call.Query())
		if err != nil {
			return "", err
		}
		if len(servers) == 0 {
			return "", fmt.Errorf("datacenter %s has no server that is passing", asked)
		}
		e.Node = servers[0].Node.Node
	}
	id, _, err := r.client.Session().CreateNoChecks(e, r.call.Write().WithContext(ctx))
	return id, err
}

// renew keeps the session until ctx ends.
func (r *request) renew(ctx context.Context, session string) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, _, err := r.client.Session().Renew(session, r.call.Write().WithContext(ctx)); err != nil && ctx.Err() == nil {
				r.call.Warnf("Failed to renew session: %v", err)
			}
		}
	}
}

func (r *request) upload(ctx context.Context, n job.Notice) error {
	spec, err := json.Marshal(r.job)
	if err != nil {
		return err
	}
	at, _ := n.Keys("")
	ok, _, err := r.client.KV().Acquire(&api.KVPair{Key: at, Value: spec, Session: n.Session}, r.call.Write().WithContext(ctx))
	if err == nil && !ok {
		err = errors.New("the key is locked")
	}
	return err
}

// cleanup removes the session and the keys, also when the command was interrupted.
func (r *request) cleanup(n job.Notice) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.call.Context), cleanupLimit)
	defer cancel()
	w := r.call.Write().WithContext(ctx)
	if _, err := r.client.Session().Destroy(n.Session, w); err != nil {
		r.call.Warnf("Failed to destroy session: %v", err)
	}
	at, _ := n.Keys("")
	if _, err := r.client.KV().DeleteTree(strings.TrimSuffix(at, "job"), w); err != nil {
		r.call.Warnf("Failed to remove job data: %v", err)
	}
}
