package state_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/internal/testkit"
)

func defaults(name, protocol string) *entry.ServiceDefaults {
	e := &entry.ServiceDefaults{Protocol: protocol}
	e.Kind, e.Name = entry.KindServiceDefaults, name
	return e
}

// write runs f in the transaction with an index.
func write(t testing.TB, s *state.Store, index uint64, f func(tx *state.Tx) error) {
	t.Helper()
	tx := s.Write(index)
	defer tx.Abort()
	if err := f(tx); err != nil {
		t.Fatal(err)
	}
	tx.Commit()
}

func set(t testing.TB, s *state.Store, index uint64, e entry.Entry) (changed bool) {
	t.Helper()
	write(t, s, index, func(tx *state.Tx) (err error) {
		changed, err = tx.SetEntry(e)
		return err
	})
	return changed
}

func TestEntryIndexes(t *testing.T) {
	s := state.New()
	if !set(t, s, 5, defaults("web", "http")) || !set(t, s, 6, defaults("api", "http")) {
		t.Fatal("new entries changed nothing")
	}
	if set(t, s, 7, defaults("web", "http")) {
		t.Error("equal content changed something")
	}
	v := s.View()
	web := v.Entry(entry.KindServiceDefaults, "web").Head()
	if web.CreateIndex != 5 || web.ModifyIndex != 5 || web.Hash == 0 {
		t.Errorf("web %+v", web)
	}
	set(t, s, 8, defaults("web", "grpc"))
	v = s.View()
	if h := v.Entry(entry.KindServiceDefaults, "web").Head(); h.CreateIndex != 5 || h.ModifyIndex != 8 || h.Hash == web.Hash {
		t.Errorf("changed web %+v", h)
	}
	if index, list := v.Entries(entry.KindServiceDefaults); index != 8 || len(list) != 2 || list[0].Head().Name != "api" {
		t.Errorf("index %d, list %v", index, list)
	}
	write(t, s, 9, func(tx *state.Tx) error {
		if !tx.DeleteEntry(entry.KindServiceDefaults, "web") || tx.DeleteEntry(entry.KindServiceDefaults, "none") {
			t.Error("deleting tells what is not so")
		}
		return nil
	})
	v = s.View()
	e := v.Entry(entry.KindServiceDefaults, "web")
	if got := v.EntryIndex(entry.KindServiceDefaults, e); e != nil || got != 9 || v.EntriesGone(entry.KindServiceDefaults, entry.KindMesh) != 9 {
		t.Errorf("after the delete: %v, index %d", e, got)
	}
	if index, _ := v.Entries(entry.KindMesh); index != 0 {
		t.Errorf("another kind has index %d", index)
	}
}

func TestReadOfOneEntryWakesForItAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := state.New()
		set(t, s, 1, defaults("web", "http"))
		for _, name := range []string{"web", "absent"} {
			v := s.WatchView()
			v.Entry(entry.KindServiceDefaults, name)
			woken := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			go func() { woken <- v.Wait(ctx) }()
			if name == "web" { // who waits for what is not there may be woken for others
				set(t, s, 2, defaults("zzz-other", "tcp"))
				synctest.Wait()
				if len(woken) != 0 {
					t.Fatalf("woken by another entry: %v", <-woken)
				}
			}
			set(t, s, 3, defaults(name, "grpc"))
			if err := <-woken; err != nil {
				t.Errorf("%s: not woken: %v", name, err)
			}
			cancel()
		}
	})
}

func TestVirtualIPsOfEntries(t *testing.T) {
	s := state.New()
	address := func(service string) string {
		if ip := s.View().VirtualIP(service, ""); ip != nil {
			return ip.Address()
		}
		return ""
	}
	set(t, s, 1, defaults("a", ""))
	set(t, s, 2, defaults("b", ""))
	resolver := &entry.ServiceResolver{Header: entry.Header{Kind: entry.KindServiceResolver, Name: "b"}}
	set(t, s, 3, resolver)
	gateway := &entry.TerminatingGateway{Header: entry.Header{Kind: entry.KindTerminatingGateway, Name: "tg"}, Services: []entry.LinkedService{{Name: "*"}, {Name: "c"}}}
	set(t, s, 4, gateway)
	wild := &entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions, Name: "*"}}
	set(t, s, 5, wild)
	if address("a") != "240.0.0.1" || address("b") != "240.0.0.2" || address("c") != "240.0.0.3" || address("*") != "" || address("tg") != "" {
		t.Errorf("addresses %q %q %q %q %q", address("a"), address("b"), address("c"), address("*"), address("tg"))
	}
	remove := func(index uint64, kind entry.Kind, name string) {
		write(t, s, index, func(tx *state.Tx) error { tx.DeleteEntry(kind, name); return nil })
	}
	remove(6, entry.KindServiceDefaults, "b")
	if address("b") != "240.0.0.2" {
		t.Error("freed while another entry names it")
	}
	remove(7, entry.KindServiceResolver, "b")
	remove(8, entry.KindServiceDefaults, "a")
	if address("a") != "" || address("b") != "" {
		t.Error("not freed")
	}
	// Freed ones first, then the next above.
	set(t, s, 9, defaults("d", ""))
	set(t, s, 10, defaults("e", ""))
	set(t, s, 11, defaults("f", ""))
	if address("d") != "240.0.0.1" || address("e") != "240.0.0.2" || address("f") != "240.0.0.4" {
		t.Errorf("addresses %q %q %q", address("d"), address("e"), address("f"))
	}
	set(t, s, 12, &entry.TerminatingGateway{Header: entry.Header{Kind: entry.KindTerminatingGateway, Name: "tg"}})
	if address("c") != "" {
		t.Error("a service that is no longer linked keeps its address")
	}
}

func TestManualVirtualIPsMove(t *testing.T) {
	s := state.New()
	set(t, s, 1, defaults("a", ""))
	set(t, s, 2, defaults("b", ""))
	assign := func(index uint64, service string, addresses ...string) (found bool, from []state.AddressOwner) {
		write(t, s, index, func(tx *state.Tx) error {
			found, from = tx.SetManualVirtualIPs(service, "", addresses)
			return nil
		})
		return found, from
	}
	if found, from := assign(3, "a", "1.1.1.1", "1.1.1.2"); !found || from != nil {
		t.Errorf("found %v, from %v", found, from)
	}
	if found, from := assign(4, "b", "1.1.1.2"); !found || len(from) != 1 || from[0].Service != "a" {
		t.Errorf("found %v, from %v", found, from)
	}
	if got := s.View().VirtualIP("a", "").Manual; len(got) != 1 || got[0] != "1.1.1.1" {
		t.Errorf("left: %v", got)
	}
	if found, _ := assign(5, "none", "1.1.1.3"); found {
		t.Error("a service without a virtual IP was found")
	}
}

// Virtual IPs are unique and stay what they are, whatever comes and goes; a failed command leaves nothing behind.
func TestVirtualIPsAgainstAModel(t *testing.T) {
	seed := testkit.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := state.New()
	model := map[string]string{}
	for i := range 3000 {
		name := fmt.Sprint("s", rng.IntN(40))
		tx := s.Write(uint64(i + 1))
		failed := rng.IntN(5) == 0
		err := tx.Try(func() error {
			if rng.IntN(2) == 0 {
				if _, err := tx.SetEntry(defaults(name, fmt.Sprint(rng.IntN(3)))); err != nil {
					t.Fatal(err)
				}
			} else {
				tx.DeleteEntry(entry.KindServiceDefaults, name)
			}
			if failed {
				return context.Canceled
			}
			return nil
		})
		tx.Commit()
		v := s.View()
		has := v.Entry(entry.KindServiceDefaults, name) != nil
		ip := v.VirtualIP(name, "")
		if has != (ip != nil) {
			t.Fatalf("step %d: %s has an entry: %v, an address: %v", i, name, has, ip)
		}
		before, had := model[name]
		switch {
		case err != nil && had != has, had && has && ip.Address() != before:
			t.Fatalf("step %d (%v): %s had %q, has %v", i, err, name, before, ip)
		case has:
			model[name] = ip.Address()
		default:
			delete(model, name)
		}
		_, all := v.VirtualIPs()
		seen := map[uint32]bool{}
		for _, a := range all {
			if seen[a.Offset] || a.Offset < 1 || a.Offset > 40 {
				t.Fatalf("step %d: offset %d of %s", i, a.Offset, a.Service)
			}
			seen[a.Offset] = true
		}
		if len(all) != len(model) {
			t.Fatalf("step %d: %d addresses for %d services", i, len(all), len(model))
		}
	}
	// All of it survives a snapshot, the free addresses too.
	var buf bytes.Buffer
	if err := s.View().Dump(&buf); err != nil {
		t.Fatal(err)
	}
	restored := state.New()
	if err := restored.Restore(&buf); err != nil {
		t.Fatal(err)
	}
	for _, store := range []*state.Store{s, restored} {
		for i := range 50 {
			set(t, store, uint64(4000+i), defaults(fmt.Sprint("n", i), ""))
		}
	}
	_, want := s.View().VirtualIPs()
	_, got := restored.View().VirtualIPs()
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	_, wantEntries := s.View().Entries(entry.KindServiceDefaults)
	_, gotEntries := restored.View().Entries(entry.KindServiceDefaults)
	if d := cmp.Diff(wantEntries, gotEntries); d != "" {
		t.Error(d)
	}
}

func TestAuthorityState(t *testing.T) {
	s := state.New()
	write(t, s, 3, func(tx *state.Tx) error {
		tx.SetCARoots([]*trust.Root{{ID: "a", Active: true}})
		tx.SetCAProvider(&trust.ProviderState{ID: "a", PrivateKey: "k"})
		tx.SetCAConfig(&trust.Configuration{ClusterID: "c", Provider: "consul"})
		return nil
	})
	write(t, s, 4, func(tx *state.Tx) error {
		tx.SetCARoots([]*trust.Root{{ID: "a", Active: true}})
		return nil
	})
	v := s.View()
	if index, roots := v.CARoots(); index != 3 || roots[0].ModifyIndex != 3 {
		t.Errorf("rewriting a root as it was: index %d, %+v", index, roots[0])
	}
	write(t, s, 5, func(tx *state.Tx) error {
		tx.SetCARoots([]*trust.Root{{ID: "b", Active: true}})
		tx.SetCAConfig(&trust.Configuration{ClusterID: "another", Provider: "consul", ForceWithoutCrossSigning: true})
		return nil
	})
	write(t, s, 6, func(tx *state.Tx) error { // as it was
		tx.SetCAConfig(&trust.Configuration{Provider: "consul", ForceWithoutCrossSigning: true})
		return nil
	})
	v = s.View()
	if index, roots := v.CARoots(); index != 5 || len(roots) != 1 || roots[0].CreateIndex != 5 {
		t.Errorf("index %d, roots %+v", index, roots)
	}
	if v.CAProvider("a") != nil {
		t.Error("the key of a root that is gone is still there")
	}
	if index, c := v.CAConfig(); index != 5 || c.ClusterID != "c" || c.CreateIndex != 3 {
		t.Errorf("configuration %+v", c)
	}
}

func TestIntentionsTo(t *testing.T) {
	s := state.New()
	intentions := func(name string) *entry.ServiceIntentions {
		return &entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions, Name: name}}
	}
	set(t, s, 1, intentions("web"))
	set(t, s, 2, intentions("*"))
	set(t, s, 3, intentions("db"))
	v := s.View()
	if index, own, all := v.IntentionsTo("web"); index != 2 || own == nil || all == nil {
		t.Errorf("to web: %d %v %v", index, own, all)
	}
	if index, own, all := v.IntentionsTo("*"); index != 2 || own != nil || all == nil {
		t.Errorf("to any: %d %v %v", index, own, all)
	}
	write(t, s, 4, func(tx *state.Tx) error { tx.DeleteEntry(entry.KindServiceIntentions, "web"); return nil })
	if index, own, _ := s.View().IntentionsTo("web"); index != 4 || own != nil {
		t.Errorf("after the delete: %d %v", index, own)
	}
	if index, list := s.View().Intentions(); index != 4 || len(list) != 2 {
		t.Errorf("all: %d %v", index, list)
	}
}
