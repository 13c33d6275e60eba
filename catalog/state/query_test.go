package state_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/state"
)

// queryID returns the UUID of a digit.
func queryID(digit string) string {
	x := strings.Repeat(digit, 12)
	return x[:8] + "-" + x[:4] + "-" + x[:4] + "-" + x[:4] + "-" + x
}

func (s *store) query(q query.Query) error {
	var err error
	s.write(func(tx *state.Tx) { err = tx.Try(func() error { return tx.SetQuery(&q) }) })
	return err
}

func (s *store) mustQuery(q query.Query) {
	s.t.Helper()
	if err := s.query(q); err != nil {
		s.t.Fatal(err)
	}
}

// prefixed returns a template that shows which one it is.
func prefixed(digit, name string) query.Query {
	return query.Query{ID: queryID(digit), Name: name, Template: query.Template{Type: query.NamePrefixMatch}, Service: query.Service{Service: digit + ":${name.suffix}"}}
}

func plain(digit, name string) query.Query {
	return query.Query{ID: queryID(digit), Name: name, Service: query.Service{Service: digit}}
}

func TestQueriesResolve(t *testing.T) {
	s := newStore(t)
	s.mustQuery(prefixed("1", "geo-"))
	s.mustQuery(prefixed("2", "Geo-db"))
	s.mustQuery(plain("3", "geo-db-main"))
	s.mustQuery(plain("4", "Web"))
	broken := prefixed("5", "broken-")
	broken.Template.Regexp = "("
	s.mustQuery(broken)
	check := func(t *testing.T, tests [][2]string) {
		t.Helper()
		for _, tt := range tests {
			q, err := s.View().ResolveQuery(tt[0])
			got := ""
			switch {
			case err != nil:
				got = err.Error()
			case q != nil:
				got = q.Service.Service
			}
			if got != tt[1] {
				t.Errorf("%s: %q, want %q", tt[0], got, tt[1])
			}
		}
	}
	check(t, [][2]string{
		{queryID("3"), "3"},
		{strings.ToUpper(queryID("a")), ""},
		{"WEB", "4"},
		{"web-x", ""},
		{"geo-db-main", "3"},
		{"geo-db-other", "2:geo-db-other"}, // the prefix is cut in its own case alone
		{"Geo-db-other", "2:-other"},
		{"geo-web", "1:web"},
		{"geo-", "1:"},
		{"geo", ""},
		{"", ""},
		{queryID("1"), "prepared query templates can only be resolved up by name, not by ID"},
		{"broken-x", "Bad Regexp: error parsing regexp: missing closing ): `(`"},
	})
	s.mustQuery(prefixed("6", ""))
	check(t, [][2]string{{"web-x", "6:web-x"}, {"geo-web", "1:web"}, {"", "6:"}, {strings.Repeat("x", query.MaxName+1), ""}})
	// Replaced under another name, a query leaves the old one.
	s.mustQuery(plain("1", "other"))
	check(t, [][2]string{{"geo-web", "6:geo-web"}, {"other", "1"}, {queryID("1"), "1"}})
	s.write(func(tx *state.Tx) {
		if !tx.DeleteQuery(queryID("6")) || tx.DeleteQuery(queryID("6")) {
			t.Error("deleting a query twice")
		}
	})
	check(t, [][2]string{{"geo-web", ""}, {"geo-db", "2:geo-db"}})
}

func TestQueriesRefused(t *testing.T) {
	s := newStore(t)
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1"})
	s.session(kv.Session{ID: sessionA, Node: "n1"})
	s.mustQuery(plain("1", "web"))
	s.mustQuery(prefixed("2", ""))
	bound := func(digit, session string) query.Query {
		q := plain(digit, "")
		q.Session = session
		return q
	}
	tests := []struct {
		name string
		q    query.Query
		want string
	}{
		{"a name in another case", plain("9", "Web"), "name 'Web' aliases an existing query name"},
		{"a template's name is a name too", prefixed("9", "WEB"), "name 'WEB' aliases an existing query name"},
		{"another's ID", plain("9", queryID("1")), "name '" + queryID("1") + "' aliases an existing query ID"},
		{"one's own ID", plain("3", queryID("3")), ""},
		{"a second template for all", prefixed("9", ""), "a query template with an empty name already exists"},
		{"no such session", bound("9", sessionB), `invalid session "` + sessionB + `"`},
		{"a session, in another case", bound("4", strings.ToUpper(sessionA)), ""},
		{"no ID", query.Query{Name: "x"}, "Missing Query ID"},
		{"the same again", plain("1", "WEB"), ""},
		{"the template for all again", prefixed("2", ""), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := s.query(tt.q); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestQueriesEndWithTheirSession(t *testing.T) {
	s := newStore(t)
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1"})
	s.session(kv.Session{ID: sessionA, Node: "n1"})
	s.session(kv.Session{ID: sessionB, Node: "n1"})
	for digit, session := range map[string]string{"1": sessionA, "2": strings.ToUpper(sessionA), "3": sessionB, "4": ""} {
		q := plain(digit, "q"+digit)
		q.Session = session
		s.mustQuery(q)
	}
	s.write(func(tx *state.Tx) { tx.DestroySession(sessionA) })
	index, all := s.View().Queries()
	if len(all) != 2 || all[0].Name != "q3" || all[1].Name != "q4" || index != s.index {
		t.Errorf("index %d of %d: %v", index, s.index, all)
	}
	s.write(func(tx *state.Tx) { tx.DeleteNode("n1") })
	if _, all := s.View().Queries(); len(all) != 1 {
		t.Errorf("after the node went: %v", all)
	}
}

func TestQueryReadsBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		woken := func(v *state.View) bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return v.Wait(ctx) == nil
		}
		if index, all := s.View().Queries(); index != 0 || len(all) != 0 {
			t.Errorf("empty: %d, %v", index, all)
		}
		s.mustQuery(plain("1", "a"))
		created := s.index
		one, list := s.WatchView(), s.WatchView()
		one.Query(queryID("1"))
		list.Queries()

		s.mustQuery(plain("1", "a"))
		if index, q := s.View().Query(queryID("1")); index != created || q.ModifyIndex != created || woken(one) || woken(list) {
			t.Errorf("an identical write: index %d, modified %d, created %d", index, q.ModifyIndex, created)
		}
		s.mustQuery(plain("2", "b"))
		if index, q := s.View().Query(queryID("1")); index != s.index || q.ModifyIndex != created || woken(one) || !woken(list) {
			t.Errorf("another was added: index %d, modified %d", index, q.ModifyIndex)
		}
		s.mustQuery(plain("1", "A"))
		if index, q := s.View().Query(queryID("1")); index != s.index || q.CreateIndex != created || q.ModifyIndex != s.index || !woken(one) {
			t.Errorf("replaced: index %d, %+v", index, q.Indexes)
		}
		one = s.WatchView()
		one.Query(queryID("1"))
		s.write(func(tx *state.Tx) { tx.DeleteQuery(queryID("1")) })
		if index, q := s.View().Query(queryID("1")); index != s.index || q != nil || !woken(one) {
			t.Errorf("deleted: index %d, %v", index, q)
		}
	})
}

func TestQueriesInSnapshots(t *testing.T) {
	s := newStore(t)
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1"})
	s.session(kv.Session{ID: sessionA, Node: "n1"})
	s.mustQuery(prefixed("1", "geo-"))
	bound := plain("2", "web")
	bound.Session, bound.Token = sessionA, "secret"
	s.mustQuery(bound)
	var buf bytes.Buffer
	if err := s.View().Dump(&buf); err != nil {
		t.Fatal(err)
	}
	restored := &store{state.New(), t, s.index}
	if err := restored.Restore(&buf); err != nil {
		t.Fatal(err)
	}
	q, err := restored.View().ResolveQuery("geo-x")
	if err != nil || q == nil || q.Service.Service != "1:x" {
		t.Errorf("template: %v, %v", q, err)
	}
	if _, q := restored.View().Query(queryID("2")); q == nil || q.Token != "secret" || q.Session != sessionA || q.CreateIndex == 0 {
		t.Errorf("query: %+v", q)
	}
	restored.write(func(tx *state.Tx) { tx.DestroySession(sessionA) })
	if index, all := restored.View().Queries(); len(all) != 1 || index != restored.index {
		t.Errorf("after the session: %d, %v", index, all)
	}
}
