// Package authmethod turns an outside proof of identity into an identity that binding rules select on (spec/acl.md
// sections 9 to 11): a JSON Web Token, the token of a Kubernetes service account, or a signed request to AWS.
package authmethod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/server/authmethod/awsiam"
	"github.com/sarnmesh/sarn/server/authmethod/jwt"
	"github.com/sarnmesh/sarn/server/authmethod/kubernetes"
)

// Env is what validators reach the outside with: issuers of tokens, API servers and AWS.
type Env struct {
	// Dial opens connections. Nil refuses all of them.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy returns the proxy for a request, as http.ProxyFromEnvironment does; nil takes none.
	Proxy  func(*http.Request) (*url.URL, error)
	Logger hclog.Logger // default discards
}

// A Validator checks proofs for one auth method. It is safe for concurrent use.
type Validator interface {
	// Login checks a proof. The error has the text that the client is shown, and no secret.
	Login(ctx context.Context, bearer string) (*Identity, error)
	// Blank returns an identity in which every field and variable is there and empty, to check selectors and
	// templates against.
	Blank() *Identity
}

// Types returns the types of auth methods, in order.
func Types() []string { return []string{acl.MethodAWSIAM, acl.MethodJWT, acl.MethodKubernetes} }

// New checks the configuration of a method that is to be written, and reaches the URL that its keys come from, if it
// has one. Errors have the texts of the specification, without "Invalid Auth Method: ".
func New(ctx context.Context, m *acl.AuthMethod, env Env) (Validator, error) {
	v, err := open(m, env)
	if err != nil {
		return nil, err
	}
	if j, ok := v.(*jwtMethod); ok {
		if err := j.v.Check(ctx); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Blank returns the blank identity of a method, to check binding rules with. It reaches nothing.
func Blank(m *acl.AuthMethod) (*Identity, error) {
	v, err := open(m, Env{})
	if err != nil {
		return nil, err
	}
	return v.Blank(), nil
}

// Redact returns the method as those see it who may not write it: without the token that a method of type kubernetes
// asks with.
func Redact(m *acl.AuthMethod) *acl.AuthMethod {
	if m.Type != acl.MethodKubernetes {
		return m
	}
	shown := *m
	shown.Config = maps.Clone(m.Config)
	for key := range shown.Config {
		if strings.EqualFold(key, "ServiceAccountJWT") {
			shown.Config[key] = acl.Hidden
		}
	}
	return &shown
}

// open makes a validator without reaching anything.
func open(m *acl.AuthMethod, env Env) (Validator, error) {
	way := fetch.Way{Dial: env.Dial, Proxy: env.Proxy}
	logger := env.Logger
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	b := base{slots: make(chan struct{}, maxLogins), log: logger.With("method", m.Name)}
	switch m.Type {
	case acl.MethodJWT:
		var conf jwt.Config
		if err := decode(m.Config, &conf); err != nil {
			return nil, err
		}
		v, err := jwt.New(conf, way)
		if err != nil {
			return nil, err
		}
		return &jwtMethod{b, v}, nil
	case acl.MethodKubernetes:
		var conf kubernetes.Config
		if err := decode(m.Config, &conf); err != nil {
			return nil, err
		}
		v, err := kubernetes.New(conf, way)
		if err != nil {
			return nil, err
		}
		return &kubernetesMethod{b, v}, nil
	case acl.MethodAWSIAM:
		var conf awsiam.Config
		if err := decode(m.Config, &conf); err != nil {
			return nil, err
		}
		v, err := awsiam.New(conf, way)
		if err != nil {
			return nil, err
		}
		return &awsMethod{b, v, conf}, nil
	}
	return nil, fmt.Errorf("Type should be one of: [%s]", strings.Join(Types(), " ")) //nolint:staticcheck // clients match the text
}

// decode reads the settings of a method. Errors name keys, never values, some of which are secrets.
func decode(config map[string]any, into any) error {
	b, err := json.Marshal(config)
	if err != nil {
		return errors.New("error decoding config: a value is not one of JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("error decoding config: %w", err)
	}
	return nil
}

// maxLogins bounds how many logins of one method ask the outside at the same time. More wait, as long as their callers
// do: logins need no token, so anybody can start one.
const maxLogins = 32

// base is what validators have in common.
type base struct {
	slots chan struct{}
	log   hclog.Logger
}

// run checks a proof when there is a slot, and logs why it was refused.
func (b *base) run(ctx context.Context, check func() (*Identity, error)) (*Identity, error) {
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	id, err := check()
	if err != nil {
		b.log.Debug("login refused", "error", err)
	}
	return id, err
}

// A Cache keeps validators, with the keys that they have fetched, from one login to the next. It is safe for concurrent
// use.
type Cache struct {
	env Env

	mu     sync.Mutex
	byName map[string]cached
}

type cached struct {
	index     uint64
	validator Validator
}

// NewCache returns an empty cache.
func NewCache(env Env) *Cache { return &Cache{env: env, byName: map[string]cached{}} }

// Get returns the validator of a stored method, a new one if the method was written since. It reaches nothing.
func (c *Cache) Get(m *acl.AuthMethod) (Validator, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.byName[m.Name]; ok && have.index == m.ModifyIndex {
		return have.validator, nil
	}
	v, err := open(m, c.env)
	if err != nil {
		return nil, err
	}
	c.byName[m.Name] = cached{m.ModifyIndex, v}
	return v, nil
}

// Forget drops the validator of a method that was deleted.
func (c *Cache) Forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byName, name)
}
