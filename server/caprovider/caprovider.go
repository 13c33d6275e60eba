// Package caprovider makes the certificate authority's providers: the built-in one here, those that speak to an outside
// authority in the packages below. What they sign is rebuilt and checked by connect/ca; what they keep is replicated as
// trust.ProviderState.
package caprovider

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
)

// A Kind is one sort of provider. Its methods may be called at the same time.
type Kind interface {
	// Establish makes the root that the settings ask for, and what signs under it, or finds them where they are already:
	// a result with the root of w.Current means that the root stays. The leader calls it when the configuration changes.
	Establish(ctx context.Context, w Wanted) (*trust.ProviderState, error)
	// Open returns the provider of what was established, on any server. It speaks to nobody yet.
	Open(kept *trust.ProviderState, clusterID string) (ca.Provider, error)
	// Close ends what providers of this kind share. They can be opened again.
	Close()
}

// Wanted is what a provider is to be.
type Wanted struct {
	Config    map[string]any // as the operator gave it
	Settings  ca.Settings    // the part of Config that every provider has
	ClusterID string
	// Current is what the provider of the active root keeps, nil when that is of another kind; Root is the active root.
	Current *trust.ProviderState
	Root    *trust.Root
	New     bool // another root is wanted, even if the settings did not change
}

// A Reader decodes the settings of one provider. Letter case of keys does not matter. The first problem is kept.
type Reader struct {
	config map[string]any
	err    error
}

// Read returns a reader of settings.
func Read(config map[string]any) *Reader { return &Reader{config: config} }

// Err returns the first problem met, nil if there was none.
func (r *Reader) Err() error { return r.err }

// Value returns a setting as it is, nil when it is not given. Given twice, in two spellings, it is a problem: who reads it
// must find what another did who checked it.
func (r *Reader) Value(key string) any {
	var value any
	found := false
	for k, v := range r.config {
		if !strings.EqualFold(k, key) {
			continue
		}
		if found {
			r.fail(key, "is given twice, in two spellings")
			return nil
		}
		value, found = v, true
	}
	return value
}

func (r *Reader) fail(key, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("error decoding config: '%s' %s", key, fmt.Sprintf(format, args...))
	}
}

// Text returns a setting that is text, "" when it is not given.
func (r *Reader) Text(key string) string {
	switch v := r.Value(key).(type) {
	case nil:
	case string:
		return v
	case []byte:
		return string(v)
	default:
		r.fail(key, "expected type 'string', got %T", v)
	}
	return ""
}

// Bool returns a setting that is true or false, false when it is not given.
func (r *Reader) Bool(key string) bool {
	switch v := r.Value(key).(type) {
	case nil:
	case bool:
		return v
	case string:
		b, err := strconv.ParseBool(v)
		if err != nil {
			r.fail(key, "cannot parse %q as a bool", v)
		}
		return b
	default:
		r.fail(key, "expected type 'bool', got %T", v)
	}
	return false
}

// Texts returns a setting that is a list of texts.
func (r *Reader) Texts(key string) []string {
	switch v := r.Value(key).(type) {
	case nil:
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		out := make([]string, len(v))
		for i, e := range v {
			text, ok := e.(string)
			if !ok {
				r.fail(key, "expected a list of strings, got a %T", e)
			}
			out[i] = text
		}
		return out
	default:
		r.fail(key, "expected a list of strings, got %T", v)
	}
	return nil
}

// Map returns a setting that is a block of settings, nil when it is not given. A block of HCL is a list of one.
func (r *Reader) Map(key string) map[string]any {
	value := r.Value(key)
	switch v := value.(type) {
	case []any:
		if len(v) == 1 {
			value = v[0]
		}
	case []map[string]any:
		if len(v) == 1 {
			value = v[0]
		}
	}
	switch v := value.(type) {
	case nil:
	case map[string]any:
		return v
	case map[any]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[fmt.Sprint(k)] = e
		}
		return out
	default:
		r.fail(key, "expected a map, got %T", v)
	}
	return nil
}

// Copy returns a copy of what a provider keeps, to be changed.
func Copy(kept *trust.ProviderState) *trust.ProviderState {
	c := *kept
	c.Config, c.State = maps.Clone(kept.Config), maps.Clone(kept.State)
	return &c
}
