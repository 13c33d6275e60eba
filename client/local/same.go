package local

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
)

// serverTag reports whether a tagged address belongs to the servers.
func serverTag(tag string) bool { return strings.HasPrefix(tag, "consul-") }

// OwnAddresses returns the tagged addresses that are the agent's to say: those of a definition, without what the servers add.
func OwnAddresses(m map[string]catalog.ServiceAddress) map[string]catalog.ServiceAddress {
	own := make(map[string]catalog.ServiceAddress, len(m))
	for tag, a := range m {
		if !serverTag(tag) {
			own[tag] = a
		}
	}
	return own
}

// sameInstance reports whether two instances say the same, but for indexes and what belongs to the servers.
func sameInstance(a, b *catalog.Service) bool {
	return a == b || a.Kind == b.Kind && a.ID == b.ID && a.Service == b.Service && slices.Equal(a.Tags, b.Tags) &&
		a.Address == b.Address && a.Port == b.Port && a.SocketPath == b.SocketPath && a.EnableTagOverride == b.EnableTagOverride &&
		maps.Equal(a.Meta, b.Meta) && maps.Equal(OwnAddresses(a.TaggedAddresses), OwnAddresses(b.TaggedAddresses)) &&
		weights(a) == weights(b) && sameLocality(a.Locality, b.Locality) && a.Connect.Native == b.Connect.Native &&
		sameProxy(&a.Proxy, &b.Proxy)
}

func weights(s *catalog.Service) catalog.Weights {
	if s.Weights == nil {
		return *catalog.DefaultWeights()
	}
	return *s.Weights
}

func sameLocality(a, b *catalog.Locality) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// sameProxy compares by JSON where the quick comparison fails: numbers of opaque settings come back from the catalog
// in other types, and empty lists as nil.
func sameProxy(a, b *catalog.Proxy) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}

// sameCheck reports whether two checks say the same, but for what the servers derive.
func sameCheck(a, b *catalog.Check) bool {
	return a.CheckID == b.CheckID && a.Name == b.Name && a.Status == b.Status && a.Notes == b.Notes && a.Output == b.Output &&
		a.ServiceID == b.ServiceID && a.Type == b.Type && a.Interval == b.Interval && a.Timeout == b.Timeout &&
		a.ExposedPort == b.ExposedPort
}

// sameDef reports whether two definitions are run alike.
func sameDef(a, b *definition.Check) bool { return reflect.DeepEqual(a, b) }
