package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/command/agent/config"
)

// tokens are the secrets the agent uses itself. Those set over the API win over the configured ones and are kept in the
// data folder when that is asked for.
type tokens struct {
	path string // empty keeps nothing
	log  hclog.Logger

	mu         sync.Mutex
	configured map[httpapi.AgentToken]string
	set        map[httpapi.AgentToken]string
}

func newTokens(s *config.Settings, log hclog.Logger) (*tokens, error) {
	t := &tokens{log: log, set: map[httpapi.AgentToken]string{}}
	t.configure(s)
	if !s.ACL.EnableTokenPersistence || s.DataDir == "" {
		return t, nil
	}
	t.path = filepath.Join(s.DataDir, "acl-tokens.json")
	data, err := os.ReadFile(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &t.set)
	}
	if err != nil {
		return nil, fmt.Errorf("read persisted tokens: %w", err)
	}
	return t, nil
}

// configure takes over the tokens of a configuration; what was set over the API without being persisted gives way
// to those.
func (t *tokens) configure(s *config.Settings) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := s.ACL.Tokens
	before := t.configured
	t.configured = map[httpapi.AgentToken]string{
		httpapi.TokenDefault: c.Default, httpapi.TokenAgent: c.Agent, httpapi.TokenRecovery: c.AgentRecovery,
		httpapi.TokenReplication: c.Replication, httpapi.TokenDNS: c.DNS, httpapi.TokenRegistration: c.FileRegistration,
	}
	for kind, set := range t.set {
		switch {
		case t.path == "":
			if set != t.configured[kind] {
				t.log.Info("a token set over the API gives way to the configuration", "token", string(kind), "configured", t.configured[kind] != "")
			}
			delete(t.set, kind)
		case before != nil && before[kind] != t.configured[kind]:
			t.log.Warn("a changed token of the configuration has no effect: one set over the API was persisted and wins", "token", string(kind))
		}
	}
}

func (t *tokens) get(kind httpapi.AgentToken) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if secret, ok := t.set[kind]; ok {
		return secret
	}
	return t.configured[kind]
}

func (t *tokens) put(kind httpapi.AgentToken, secret string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	set := maps.Clone(t.set)
	set[kind] = secret
	if t.path != "" {
		data, err := json.Marshal(set)
		if err != nil {
			return err
		}
		if err := writeFile(t.path, data); err != nil {
			return err
		}
	}
	if secret == "" && t.configured[kind] != "" && t.path == "" {
		t.log.Info("a token was removed over the API: the next reload of the configuration brings it back", "token", string(kind))
	}
	t.set = set
	return nil
}

// Default implements local.Tokens.
func (t *tokens) Default() string { return t.get(httpapi.TokenDefault) }

// Agent implements local.Tokens.
func (t *tokens) Agent() string {
	if secret := t.get(httpapi.TokenAgent); secret != "" {
		return secret
	}
	return t.Default()
}

// Registration implements local.Tokens.
func (t *tokens) Registration() string { return t.get(httpapi.TokenRegistration) }

// recovery is the token that works on this agent without servers.
func (t *tokens) recovery() string { return t.get(httpapi.TokenRecovery) }

// dns is the token questions are asked with.
func (t *tokens) dns() string {
	if secret := t.get(httpapi.TokenDNS); secret != "" {
		return secret
	}
	return t.Default()
}
