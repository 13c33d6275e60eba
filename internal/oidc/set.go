package oidc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
)

const (
	fresh    = 10 * time.Minute // keys are fetched again when older
	usable   = time.Hour        // keys are used no longer when older, whatever fails
	pause    = 10 * time.Second // between fetches: a flood of unknown tokens asks no more often
	pauseBad = time.Second      // after one that failed, when there are no keys
)

// ErrNoKey reports that no known key signed the token.
var ErrNoKey = errors.New("no known key successfully validated the token signature")

// A Source fetches keys.
type Source func(ctx context.Context) ([]Key, error)

// A Set is a set of keys that is fetched when it is needed, again when it is ten minutes old, and when a token was
// signed by none of them; while there are keys, once in ten seconds at most. While fetching fails, keys are used until
// they are an hour old. A Set is safe for concurrent use.
type Set struct {
	source Source

	mu      sync.Mutex
	keys    []Key
	fetched time.Time     // when keys were
	next    time.Time     // no fetch before
	err     error         // of the last fetch
	running chan struct{} // closed when the fetch under way has ended; nil if none is
}

// NewSet returns a set that has fetched nothing yet.
func NewSet(source Source) *Set { return &Set{source: source} }

// Verify returns the claims of a token that one of the keys signed. The error is ErrNoKey, or says why there are no
// keys.
func (s *Set) Verify(ctx context.Context, t *Token) (Claims, error) {
	keys, at := s.current()
	if keys == nil || time.Since(at) >= fresh {
		// Who has keys does not wait for another's fetch.
		if err := s.fetch(ctx, keys == nil); err != nil && keys == nil {
			return nil, err
		}
		keys, at = s.current()
	}
	if c, ok := t.Verify(keys); ok {
		return c, nil
	}
	if err := s.Fetch(ctx); err != nil {
		return nil, fmt.Errorf("%w; its keys may have changed: %w", ErrNoKey, err)
	}
	if newer, when := s.current(); !when.Equal(at) {
		if c, ok := t.Verify(newer); ok {
			return c, nil
		}
	}
	return nil, ErrNoKey
}

// current returns the keys, none if they are too old, and when they were fetched.
func (s *Set) current() ([]Key, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.fetched) >= usable {
		return nil, s.fetched
	}
	return s.keys, s.fetched
}

// Fetch fetches the keys, unless the last fetch is too short ago: then it returns what that one did. One fetch goes on
// at a time, and others wait for it.
func (s *Set) Fetch(ctx context.Context) error { return s.fetch(ctx, true) }

func (s *Set) fetch(ctx context.Context, wait bool) error {
	s.mu.Lock()
	if running := s.running; running != nil {
		s.mu.Unlock()
		if !wait {
			return nil
		}
		select {
		case <-running:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	}
	if time.Now().Before(s.next) {
		defer s.mu.Unlock()
		return s.err
	}
	done := make(chan struct{})
	s.running = done
	s.mu.Unlock()

	keys, err := []Key(nil), errors.New("fetching the keys was broken off")
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		now := time.Now()
		if s.err = err; err == nil {
			s.keys, s.fetched, s.next = keys, now, now.Add(pause)
		} else if s.next = now.Add(pauseBad); time.Since(s.fetched) < usable {
			s.next = now.Add(pause)
		}
		s.running = nil
		close(done)
	}()
	// Others wait for this one, so it goes on when the caller no longer does.
	fetching, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetch.Timeout)
	defer cancel()
	keys, err = s.source(fetching)
	return err
}
