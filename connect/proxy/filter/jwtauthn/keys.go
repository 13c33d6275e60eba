package jwtauthn

import (
	"container/list"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/internal/pause"
)

// algorithms are those that are accepted, with the kind of key and, of elliptic curves, the bits of the curve.
var algorithms = map[string]struct {
	kind string
	bits int
}{
	"RS256": {"RSA", 0}, "RS384": {"RSA", 0}, "RS512": {"RSA", 0},
	"PS256": {"RSA", 0}, "PS384": {"RSA", 0}, "PS512": {"RSA", 0},
	"ES256": {"EC", 256}, "ES384": {"EC", 384}, "ES512": {"EC", 521},
	"HS256": {"oct", 0}, "HS384": {"oct", 0}, "HS512": {"oct", 0},
	"EdDSA": {"OKP", 0},
}

// maxKeys bounds the keys of a set: a token without a key's name is tried with each.
const maxKeys = 100

// A Keys is a set of keys that tokens are verified with. It does not change.
type Keys struct{ keys []key }

type key struct {
	id, alg string // empty fits any
	kind    string
	bits    int
	value   any
}

// ParseKeys reads a JSON Web Key Set. Keys of kinds that no accepted algorithm uses are left out; a set without any
// other is an error.
func ParseKeys(b []byte) (*Keys, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("Jwks is an invalid JSON") // what it says could be a key
	}
	out := &Keys{}
	for _, raw := range set.Keys {
		var j jose.JSONWebKey
		if len(raw) > 64<<10 || json.Unmarshal(raw, &j) != nil || j.Use != "" && j.Use != "sig" {
			continue
		}
		k := key{id: j.KeyID, alg: j.Algorithm}
		if _, symmetric := j.Key.([]byte); !symmetric {
			j = j.Public()
		}
		switch v := j.Key.(type) {
		case *rsa.PublicKey:
			k.kind = "RSA"
		case *ecdsa.PublicKey:
			k.kind, k.bits = "EC", v.Curve.Params().BitSize
		case ed25519.PublicKey:
			k.kind = "OKP"
		case []byte:
			if len(v) == 0 {
				continue
			}
			k.kind = "oct"
		default:
			continue
		}
		k.value = j.Key
		if out.keys = append(out.keys, k); len(out.keys) > maxKeys {
			return nil, fmt.Errorf("Jwks has more than %d keys", maxKeys)
		}
	}
	if len(out.keys) == 0 {
		return nil, errors.New("Jwks doesn't have any valid public key")
	}
	return out, nil
}

// verify checks the signature of a token.
func (k *Keys) verify(t *token) status {
	a := algorithms[t.alg]
	var jws *jose.JSONWebSignature
	for i := range k.keys {
		c := &k.keys[i]
		if t.kid != "" && c.id != "" && t.kid != c.id || c.alg != "" && c.alg != t.alg || c.kind != a.kind || c.bits != a.bits {
			continue
		}
		if jws == nil {
			var err error
			if jws, err = jose.ParseSignedCompact(t.raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(t.alg)}); err != nil {
				return notVerified
			}
		}
		if _, err := jws.Verify(c.value); err == nil {
			return ok
		}
	}
	if jws == nil {
		return noKey
	}
	return notVerified
}

// A verified remembers tokens whose signature was good, by their hash, for as long as the keys stay the same.
type verified struct {
	size int

	mu   sync.Mutex
	keys *Keys
	by   map[[sha256.Size]byte]*list.Element
	used list.List // of *verifiedToken, the last used first
}

type verifiedToken struct {
	hash  [sha256.Size]byte
	token *token
}

// defaultCache is how many tokens of a provider are remembered.
const defaultCache = 100

func (v *verified) get(hash [sha256.Size]byte, keys *Keys) *token {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys != keys {
		return nil
	}
	e := v.by[hash]
	if e == nil {
		return nil
	}
	v.used.MoveToFront(e)
	return e.Value.(*verifiedToken).token
}

func (v *verified) put(hash [sha256.Size]byte, keys *Keys, t *token) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys != keys || v.by == nil {
		v.keys, v.by = keys, map[[sha256.Size]byte]*list.Element{}
		v.used.Init()
	}
	if v.by[hash] != nil {
		return
	}
	v.by[hash] = v.used.PushFront(&verifiedToken{hash, t})
	if v.used.Len() > v.size {
		old := v.used.Remove(v.used.Back()).(*verifiedToken)
		delete(v.by, old.hash)
	}
}

// Remote says where keys are fetched from.
type Remote struct {
	Cluster   string
	Authority string
	Path      string
	Timeout   time.Duration
	Cache     time.Duration // how long keys are good; 0 is 10 minutes
	Async     bool          // fetch before they are needed, and again before they are no longer good
	Refetch   time.Duration // after a failure; 0 is 1 second
	Retries   uint32        // of one fetch
	BackOff   time.Duration // before the first retry, then twice as much; 0 is 1 second
	MaxOff    time.Duration // 0 is 10 times BackOff
}

const (
	defaultCacheTime = 10 * time.Minute
	defaultRefetch   = time.Second
	// maxKeySet bounds the answer that holds keys.
	maxKeySet = 1 << 20
	// early is how long before their end keys are fetched again.
	early = 5 * time.Second
)

// A remote holds keys that come from elsewhere.
type remote struct {
	conf        *Remote
	env         *filter.Env
	good, wrong *stats.Counter
	current     atomic.Pointer[fetched]

	mu      sync.Mutex
	running chan struct{} // closed when the fetch under way ends; nil if none is
	again   time.Time     // not before: the last one failed
	retired bool          // the filter is no longer used, but for exchanges that began before
}

type fetched struct {
	keys    *Keys
	expires time.Time
}

// get returns the keys, which it may have to wait for.
func (r *remote) get(ctx context.Context) *Keys {
	if f := r.current.Load(); f != nil && time.Now().Before(f.expires) {
		return f.keys
	}
	select {
	case <-r.fetch():
	case <-ctx.Done():
	}
	if f := r.current.Load(); f != nil && time.Now().Before(f.expires) {
		return f.keys
	}
	r.mu.Lock()
	retired := r.retired
	r.mu.Unlock()
	if retired {
		// Nothing goes on for the filter any more, so the exchange asks itself.
		if keys, err := r.once(ctx); err == nil {
			return keys
		}
	}
	return nil
}

// fetch starts a fetch unless one is under way or has just failed. The channel is closed when it has ended.
func (r *remote) fetch() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running != nil {
		return r.running
	}
	done := make(chan struct{})
	if r.retired || time.Now().Before(r.again) {
		close(done)
		return done
	}
	r.running = done
	r.env.Go(func(ctx context.Context) {
		keys, err := r.try(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case err != nil && ctx.Err() != nil:
			r.retired = true
		case err != nil:
			r.wrong.Inc()
			r.again = time.Now().Add(r.refetch())
			r.env.Logger.Warn("keys of tokens not fetched", "cluster", r.conf.Cluster, "error", err)
		default:
			r.good.Inc()
			r.current.Store(&fetched{keys, time.Now().Add(r.cache())})
		}
		r.running = nil
		close(done)
	})
	return done
}

func (r *remote) cache() time.Duration {
	if r.conf.Cache > 0 {
		return r.conf.Cache
	}
	return defaultCacheTime
}

func (r *remote) refetch() time.Duration {
	if r.conf.Refetch > 0 {
		return r.conf.Refetch
	}
	return defaultRefetch
}

// try fetches with the retries that are allowed.
func (r *remote) try(ctx context.Context) (*Keys, error) {
	off := r.conf.BackOff
	if off <= 0 {
		off = time.Second
	}
	most := r.conf.MaxOff
	if most <= 0 {
		most = 10 * off
	}
	for n := uint32(0); ; n++ {
		keys, err := r.once(ctx)
		if err == nil || n >= r.conf.Retries {
			return keys, err
		}
		if !pause.For(ctx, off) {
			return nil, ctx.Err()
		}
		off = min(2*off, most)
	}
}

func (r *remote) once(ctx context.Context) (*Keys, error) {
	if r.conf.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.conf.Timeout)
		defer cancel()
	}
	req := &message.Request{Version: message.HTTP11, Method: "GET", Scheme: "http", Authority: r.conf.Authority, Path: r.conf.Path}
	a, err := r.env.Client.Do(ctx, r.conf.Cluster, req, nil, maxKeySet)
	if err != nil {
		return nil, err
	}
	if a.Status != 200 {
		return nil, fmt.Errorf("status %d", a.Status)
	}
	return ParseKeys(a.Body)
}

// run keeps the keys fresh until ctx ends.
func (r *remote) run(ctx context.Context) {
	for {
		select {
		case <-r.fetch():
		case <-ctx.Done():
			return
		}
		wait := r.refetch()
		if f := r.current.Load(); f != nil {
			if left := time.Until(f.expires) - early; left > wait {
				wait = left
			} else if r.cache() <= early {
				wait = max(wait, r.cache()/2)
			}
		}
		if !pause.For(ctx, wait) {
			return
		}
	}
}
