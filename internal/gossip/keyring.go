package gossip

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"
)

// openKeyring makes the key ring from the file, or from the key when there is no file, which it then creates.
func (p *Pool) openKeyring() error {
	if n := len(p.cfg.Key); n != 0 && n != 16 && n != 24 && n != 32 {
		return ErrKeySize
	}
	var keys [][]byte
	if p.cfg.KeyringPath != "" {
		stored, err := ReadKeyring(p.cfg.KeyringPath)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		default:
			keys = stored
			if len(p.cfg.Key) > 0 && !slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(p.cfg.Key) }) {
				p.cfg.Logger.Warn("the configured gossip key is not in the key ring, which wins", "file", p.cfg.KeyringPath)
			}
		}
	}
	if len(keys) == 0 {
		if len(p.cfg.Key) == 0 {
			return nil
		}
		keys = [][]byte{p.cfg.Key}
		if p.cfg.KeyringPath != "" {
			if err := writeKeyring(p.cfg.KeyringPath, keys); err != nil {
				return err
			}
		}
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return fmt.Errorf("gossip: key ring: %w", err)
	}
	p.keyring = ring
	return nil
}

// ReadKeyring reads a key ring file: a JSON list of base64 keys, the primary one first.
func ReadKeyring(path string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	keys, err := parseKeyring(data)
	if err != nil {
		return nil, fmt.Errorf("gossip: key ring %s: %w", path, err)
	}
	return keys, nil
}

// parseKeyring decodes the content of a key ring file. Its errors do not repeat the content.
func parseKeyring(data []byte) ([][]byte, error) {
	var texts []string
	if err := json.Unmarshal(data, &texts); err != nil {
		return nil, errors.New("not a JSON list of keys")
	}
	keys := make([][]byte, len(texts))
	for i, text := range texts {
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("key %d is not base64", i+1)
		}
		if err := memberlist.ValidateKey(key); err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, ErrKeySize)
		}
		keys[i] = key
	}
	if len(keys) == 0 {
		return nil, errors.New("no key")
	}
	return keys, nil
}

// writeKeyring creates the file, readable by its owner alone.
func writeKeyring(path string, keys [][]byte) error {
	texts := make([]string, len(keys))
	for i, k := range keys {
		texts[i] = base64.StdEncoding.EncodeToString(k)
	}
	data, err := json.MarshalIndent(texts, "", "  ")
	if err != nil {
		return fmt.Errorf("gossip: key ring: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("gossip: key ring folder: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("gossip: key ring: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("gossip: key ring: %w", err)
	}
	return nil
}

// Encrypted reports whether the pool has a key.
func (p *Pool) Encrypted() bool { return p.keyring != nil }

// PrimaryKey returns the key that messages are encrypted with, base64; empty without encryption. It is a secret.
func (p *Pool) PrimaryKey() string {
	if p.keyring == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(p.keyring.GetPrimaryKey())
}

// A KeyOp is something to do with the keys of the whole pool.
type KeyOp int

const (
	ListKeys KeyOp = iota
	InstallKey
	UseKey // makes an installed key the primary one
	RemoveKey
)

// A KeyReport is what the members answered to a KeyOp.
type KeyReport struct {
	Messages    map[string]string // by member, of those that had one
	Keys        map[string]int    // installed keys and on how many members
	PrimaryKeys map[string]int
	Nodes       int // members asked
	Responses   int
	Failures    int
}

// keyTexts are what clients match on (spec/state.md section 11.3), for what the library says.
var keyTexts = map[string]string{
	"removing the primary key is not allowed":   "Removing the primary key is not allowed",
	"requested key is not in the keyring":       "Requested key is not in the keyring",
	"keyring is empty (encryption not enabled)": "Keyring is empty (encryption not enabled)",
}

// Keys performs an operation on every member's key ring; key is base64. The report is meaningful also beside an error.
func (p *Pool) Keys(op KeyOp, key string, relay uint8) (*KeyReport, error) {
	s := p.running()
	if s == nil {
		return nil, ErrNotRunning
	}
	km, opts := s.KeyManager(), &serf.KeyRequestOptions{RelayFactor: relay}
	var resp *serf.KeyResponse
	var err error
	switch op {
	case ListKeys:
		resp, err = km.ListKeysWithOptions(opts)
	case InstallKey:
		resp, err = km.InstallKeyWithOptions(key, opts)
	case UseKey:
		resp, err = km.UseKeyWithOptions(key, opts)
	case RemoveKey:
		resp, err = km.RemoveKeyWithOptions(key, opts)
	}
	if resp == nil {
		return nil, err
	}
	for member, text := range resp.Messages {
		if known, ok := keyTexts[text]; ok {
			resp.Messages[member] = known
		}
	}
	return &KeyReport{
		Messages: resp.Messages, Keys: resp.Keys, PrimaryKeys: resp.PrimaryKeys,
		Nodes: resp.NumNodes, Responses: resp.NumResp, Failures: resp.NumErr,
	}, err
}
