package intention_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// intentions makes the entry of a destination.
func intentions(destination string, sources ...*entry.IntentionSource) *entry.ServiceIntentions {
	e := &entry.ServiceIntentions{Sources: sources}
	e.Kind, e.Name = entry.KindServiceIntentions, destination
	e.Normalize()
	return e
}

func allow(name string) *entry.IntentionSource {
	return &entry.IntentionSource{Name: name, Action: entry.Allow}
}

func deny(name string) *entry.IntentionSource {
	return &entry.IntentionSource{Name: name, Action: entry.Deny}
}

func TestDecide(t *testing.T) {
	db := intentions("db", deny("web"), allow("*"), &entry.IntentionSource{Name: "l7", Permissions: []*entry.IntentionPermission{{Action: entry.Allow}, {Action: entry.Deny}}},
		&entry.IntentionSource{Name: "web", Peer: "p", Action: entry.Allow})
	all := intentions("*", deny("*"), allow("cron"))
	tests := []struct {
		name         string
		own, all     *entry.ServiceIntentions
		source, peer string
		def          intention.Default
		allowed      bool
		reason       string
	}{
		{"exact wins", db, all, "web", "", intention.Default{Allow: true}, false, "Matched L4 intention: default/web => default/db (Precedence: 9, Action: DENY)"},
		{"any source of the destination", db, all, "cron", "", intention.Default{}, true, "Matched L4 intention: default/* => default/db (Precedence: 8, Action: ALLOW)"},
		{"source for any destination", nil, all, "cron", "", intention.Default{}, true, "Matched L4 intention: default/cron => default/* (Precedence: 6, Action: ALLOW)"},
		{"any for any", nil, all, "x", "", intention.Default{Allow: true}, false, "Matched L4 intention: default/* => default/* (Precedence: 5, Action: DENY)"},
		{"rules about requests do not allow", db, all, "l7", "", intention.Default{Allow: true}, false, "Matched L7 intention: default/l7 => default/db (Precedence: 9, Permissions: 2)"},
		{"a peer's service is another", db, all, "web", "p", intention.Default{}, true, "Matched L4 intention: peer:p/web => default/db (Precedence: 9, Action: ALLOW)"},
		{"wildcards are local", db, all, "cron", "p", intention.Default{Allow: true}, true, "Default behavior configured by ACLs"},
		{"default", nil, nil, "a", "", intention.Default{Allow: true}, true, "Default behavior configured by ACLs"},
		{"default policy", nil, nil, "a", "", intention.Default{Explicit: true}, false, "Default intention policy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := intention.Decide(intention.To(tt.own, tt.all), tt.source, tt.peer, tt.def)
			if got.Allowed != tt.allowed || got.Reason != tt.reason {
				t.Errorf("got %v %q, want %v %q", got.Allowed, got.Reason, tt.allowed, tt.reason)
			}
		})
	}
}

// A pair is one fact of the naive model.
type pair struct{ source, destination string }

// naive decides as the documentation says it in words: the exact pair, else any source to this destination, else this
// source to any destination, else any to any, else the default.
func naive(facts map[pair]string, source, destination string, def bool) bool {
	for _, p := range []pair{{source, destination}, {"*", destination}, {source, "*"}, {"*", "*"}} {
		if action, ok := facts[p]; ok {
			return action == entry.Allow
		}
	}
	return def
}

func TestDecisionsAgreeWithTheNaiveModel(t *testing.T) {
	seed := testkit.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	names := []string{"*", "a", "b", "c", "d"}
	for range 2000 {
		facts := map[pair]string{}
		for range rng.IntN(10) {
			facts[pair{names[rng.IntN(5)], names[rng.IntN(5)]}] = []string{entry.Allow, entry.Deny}[rng.IntN(2)]
		}
		entries := map[string]*entry.ServiceIntentions{}
		for _, d := range names {
			var sources []*entry.IntentionSource
			for _, i := range rng.Perm(len(names)) {
				if action, ok := facts[pair{names[i], d}]; ok {
					sources = append(sources, &entry.IntentionSource{Name: names[i], Action: action})
				}
			}
			if sources != nil {
				entries[d] = intentions(d, sources...)
			}
		}
		def := rng.IntN(2) == 0
		for _, s := range names[1:] {
			var list []*entry.ServiceIntentions
			for _, d := range names {
				if entries[d] != nil {
					list = append(list, entries[d])
				}
			}
			from := intention.From(s, list)
			for _, d := range names[1:] {
				to := intention.To(entries[d], entries["*"])
				got := intention.Decide(to, s, "", intention.Default{Allow: def})
				if want := naive(facts, s, d, def); got.Allowed != want {
					t.Fatalf("%s to %s: %v (%s), want %v; facts %v", s, d, got.Allowed, got.Reason, want, facts)
				}
				// Seen from the source it is the same intention.
				i := slices.IndexFunc(from, func(n *intention.Intention) bool { return n.DestinationName == d || n.DestinationName == "*" })
				switch {
				case i < 0 && got.By != nil, i >= 0 && got.By == nil:
					t.Fatalf("%s to %s: decided by %v, but the source's list has %d", s, d, got.By, i)
				case i >= 0 && (from[i].SourceName != got.By.SourceName || from[i].DestinationName != got.By.DestinationName):
					t.Fatalf("%s to %s: decided by %v, from the source's list %v", s, d, got.By, from[i])
				}
			}
		}
	}
}

func TestOrderOfLists(t *testing.T) {
	list := intention.To(
		intentions("api", allow("web"), allow("other"), deny("*"), &entry.IntentionSource{Name: "a", Peer: "p", Action: entry.Allow}),
		intentions("*", allow("web"), deny("*")),
	)
	var got []string
	for _, n := range list {
		got = append(got, fmt.Sprintf("%s%s>%s %d", n.SourcePeer, n.SourceName, n.DestinationName, n.Precedence))
	}
	want := []string{"other>api 9", "web>api 9", "pa>api 9", "*>api 8", "web>* 6", "*>* 5"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLegacyFieldsShow(t *testing.T) {
	s := allow("web")
	s.LegacyID, s.LegacyMeta = "11111111-2222-3333-4444-555555555555", map[string]string{"a": "b"}
	n := intention.FromEntry(intentions("db", s, deny("x")))
	if n[0].ID != s.LegacyID || len(n[0].Hash) != 32 || n[0].Meta["a"] != "b" {
		t.Errorf("legacy intention %+v", n[0])
	}
	if n[1].ID != "" || n[1].Hash != nil {
		t.Errorf("other intention %+v", n[1])
	}
}

func TestCallable(t *testing.T) {
	e := func(name string, sources ...*entry.IntentionSource) *entry.ServiceIntentions {
		return &entry.ServiceIntentions{Header: entry.Header{Name: name}, Sources: sources}
	}
	entries := []*entry.ServiceIntentions{
		e("a", &entry.IntentionSource{Name: "web", Action: entry.Allow}),
		e("b", &entry.IntentionSource{Name: "web", Permissions: []*entry.IntentionPermission{{Action: entry.Allow}}}),
		e("c", &entry.IntentionSource{Name: "*", Action: entry.Deny}),
		e("d", &entry.IntentionSource{Name: "other", Action: entry.Allow}),
	}
	names := []string{"a", "b", "c", "d"}
	for _, tt := range []struct {
		def  bool
		want []string
	}{{false, []string{"a", "b"}}, {true, []string{"a", "b", "d"}}} {
		for _, x := range entries {
			x.Normalize()
		}
		if got := intention.Callable("web", names, entries, intention.Default{Allow: tt.def}); !slices.Equal(got, tt.want) {
			t.Errorf("default allow %t: %q, want %q", tt.def, got, tt.want)
		}
	}
}
