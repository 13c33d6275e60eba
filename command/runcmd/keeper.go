package runcmd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/command/servicescmd"
	"github.com/sarnmesh/sarn/command/verb"
)

const (
	// aliveFor is how long the agent believes what it heard last of this process.
	aliveFor = 10 * time.Second
	// beat is how often it hears of it.
	beat = 3 * time.Second
	// retryBeat is how soon it is told again what it did not hear.
	retryBeat = time.Second
	// patience is how long the agent is asked for what must end.
	patience = 5 * time.Second

	// runMeta is the key of the mark in a service's metadata.
	runMeta = "sarn-run"
)

// A registry is what a keeper asks an agent for.
type registry interface {
	// mark returns the mark of a registered service, and whether there is such a service.
	mark(ctx context.Context, id string) (string, bool, error)
	register(ctx context.Context, svc *definition.Service) error
	deregister(ctx context.Context, id string) error
	// tell says how a service is; known is false if the agent has no such check.
	tell(ctx context.Context, id, status, note string) (known bool, err error)
}

// A keeper keeps services registered and says how they are, until it is told to take them away.
type keeper struct {
	registry registry
	services []*definition.Service
	run      string // the mark of this run
	warnf    func(format string, args ...any)

	mu           sync.Mutex
	tried        bool // to register
	status, note string
	changed      chan struct{} // receives after a change of them
	told         chan struct{} // closed once the agent heard of the present status
}

func newKeeper(r registry, services []*definition.Service, run string, warnf func(string, ...any)) *keeper {
	return &keeper{
		registry: r, services: services, run: run, warnf: warnf,
		status: api.HealthCritical, note: "The program is not started yet",
		changed: make(chan struct{}, 1), told: make(chan struct{}),
	}
}

// say sets how the services are. The channel is closed once the agent knows.
func (k *keeper) say(status, note string) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status, k.note, k.told = status, note, make(chan struct{})
	select {
	case k.changed <- struct{}{}:
	default:
	}
	return k.told
}

// start registers the services. Those of the same ID that are there go first, with whatever belongs to them.
func (k *keeper) start(ctx context.Context) error {
	for _, svc := range k.services {
		id := svc.ServiceID()
		mark, there, err := k.registry.mark(ctx, id)
		if err != nil {
			return err
		}
		if there {
			if mark != "" {
				k.warnf("==> %s is registered by another sarn run: taking it over. Give each instance on a machine its own -id.", id)
			}
			if err := k.registry.deregister(ctx, id); err != nil {
				return err
			}
		}
		k.mu.Lock()
		k.tried = true
		k.mu.Unlock()
		if err := k.registry.register(ctx, svc); err != nil {
			return fmt.Errorf("register %s: %w", id, err)
		}
	}
	return nil
}

// errReplaced says that the services belong to another run by now.
var errReplaced = errors.New("another sarn run has taken over the service")

// keep tells the agent again and again how the services are, and registers them again where it has forgotten them, until
// ctx ends. It returns errReplaced when they are not this run's any more.
func (k *keeper) keep(ctx context.Context) error {
	failing := false
	for {
		k.mu.Lock()
		status, note, told := k.status, k.note, k.told
		k.mu.Unlock()
		err := k.tell(ctx, status, note)
		wait := beat
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errReplaced):
			return err
		case err != nil:
			wait = retryBeat
			if !failing {
				k.warnf("==> The agent does not answer, will go on trying: %v", err)
			}
		default:
			if failing {
				k.warnf("==> The agent answers again")
			}
			k.mu.Lock()
			if k.told == told {
				select {
				case <-told:
				default:
					close(told)
				}
			}
			k.mu.Unlock()
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-time.After(wait):
		}
	}
}

// tell says once how each service is.
func (k *keeper) tell(ctx context.Context, status, note string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, svc := range k.services {
		id := svc.ServiceID()
		mark, there, err := k.registry.mark(ctx, id)
		switch {
		case err != nil:
			return err
		case there && mark != k.run:
			return errReplaced
		case !there:
			if err := k.registry.register(ctx, svc); err != nil {
				return err
			}
		}
		known, err := k.registry.tell(ctx, id, status, note)
		if err == nil && !known { // somebody took the check away
			if err = k.registry.register(ctx, svc); err == nil {
				_, err = k.registry.tell(ctx, id, status, note)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leave takes the services away, unless they are another run's by now.
func (k *keeper) leave(ctx context.Context) error {
	k.mu.Lock()
	tried := k.tried
	k.mu.Unlock()
	if !tried {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := k.leaveOnce(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryBeat / 2):
		}
	}
}

func (k *keeper) leaveOnce(ctx context.Context) error {
	for _, svc := range k.services {
		id := svc.ServiceID()
		mark, there, err := k.registry.mark(ctx, id)
		if err != nil {
			return err
		}
		if !there || mark != k.run {
			continue
		}
		if err := k.registry.deregister(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// ---------------------------------------------------------------- the agent

// An agent is the registry of a real agent.
type agent struct {
	client *api.Client
	token  string
}

func (a *agent) query(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{Token: a.token}).WithContext(ctx)
}

func (a *agent) mark(ctx context.Context, id string) (string, bool, error) {
	svc, _, err := a.client.Agent().Service(id, a.query(ctx))
	switch {
	case notFound(err):
		return "", false, nil
	case err != nil:
		return "", false, err
	}
	return svc.Meta[runMeta], true, nil
}

func (a *agent) register(ctx context.Context, svc *definition.Service) error {
	body, err := servicescmd.Request(svc)
	if err != nil {
		return err
	}
	_, err = a.client.Raw().Write("/v1/agent/service/register", body, nil, (&api.WriteOptions{Token: a.token}).WithContext(ctx))
	return err
}

func (a *agent) deregister(ctx context.Context, id string) error {
	err := a.client.Agent().ServiceDeregisterOpts(id, a.query(ctx))
	if notFound(err) {
		return nil
	}
	return err
}

func (a *agent) tell(ctx context.Context, id, status, note string) (bool, error) {
	err := a.client.Agent().UpdateTTLOpts(aliveID(id), note, status, a.query(ctx))
	if notFound(err) {
		return false, nil
	}
	return err == nil, err
}

// inCatalog waits until the servers know the services of a run.
func (a *agent) inCatalog(ctx context.Context, services []*definition.Service, run string) error {
	for _, svc := range services {
		o := a.query(ctx)
		o.Filter = fmt.Sprintf("ServiceMeta[%q] == %q", runMeta, run)
		for {
			found, meta, err := a.client.Catalog().Service(svc.Name, "", o)
			switch {
			case ctx.Err() != nil:
				return verb.Errorf("the servers do not know %s; the token has to have service:read and node:read for it to be seen", svc.ServiceID())
			case err == nil && len(found) > 0:
			case err == nil:
				o.WaitIndex, o.WaitTime = meta.LastIndex, 2*time.Second
				continue
			case denied(err):
				return err
			default:
				select {
				case <-ctx.Done():
				case <-time.After(retryBeat / 2):
				}
				continue
			}
			break
		}
	}
	return nil
}

func status(err error) int {
	if s := (api.StatusError{}); errors.As(err, &s) {
		return s.Code
	}
	return 0
}

func notFound(err error) bool { return status(err) == http.StatusNotFound }

// denied reports whether asking again would not help.
func denied(err error) bool {
	s := status(err)
	return s >= 400 && s < 500 && s != http.StatusTooManyRequests
}
