package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A preparedQuery is a query as it is stored.
type preparedQuery struct {
	*query.Query
	// compiled is the query ready to be rendered, made when it is first executed. What cannot be compiled is stored all
	// the same: whether it can may depend on the version of this program, and replicas must not.
	compiled func() (*query.Compiled, error)
}

func newPreparedQuery(q *query.Query) *preparedQuery {
	return &preparedQuery{q, sync.OnceValues(func() (*query.Compiled, error) { return query.Compile(q) })}
}

// queries holds the prepared queries by ID. The index "name" has all that have a name, "template" the templates in a
// form that a name's longest prefix is found in, "session" those that end with a session.
var queries = mvcc.NewTable("prepared-query", func(buf []byte, q *preparedQuery) ([]byte, bool) {
	return appendName(buf, q.ID), true
}, mvcc.Index[*preparedQuery]{Name: "name", Unique: true, Key: func(buf []byte, q *preparedQuery) ([]byte, bool) {
	return appendName(buf, q.Name), q.Name != ""
}}, mvcc.Index[*preparedQuery]{Name: "template", Unique: true, Key: func(buf []byte, q *preparedQuery) ([]byte, bool) {
	return append(buf, strings.ToLower(q.Name)...), q.IsTemplate()
}}, mvcc.Index[*preparedQuery]{Name: "session", Key: func(buf []byte, q *preparedQuery) ([]byte, bool) {
	return mvcc.String(buf, strings.ToLower(q.Session)), q.Session != ""
}})

// Query returns the query with this ID, nil when there is none, with the index of the last change of any; a waiter is
// woken by that one alone.
func (v *View) Query(id string) (uint64, *query.Query) {
	p, ok := queries.First(v.tx, "id", nameKey(id))
	if !ok {
		return v.peeked(queries.Name()), nil
	}
	return v.peeked(queries.Name()), p.Query
}

// Queries returns all queries, ordered by ID, with the index of the last change of one.
func (v *View) Queries() (uint64, []*query.Query) {
	var all []*query.Query
	for p := range queries.All(v.tx, "id") {
		all = append(all, p.Query)
	}
	return v.peeked(queries.Name()), all
}

// errTemplateID reports that a template was asked for by its ID, which gives no name to render it for.
var errTemplateID = errors.New("prepared query templates can only be resolved up by name, not by ID")

// ResolveQuery finds the query that a request is about: by ID, else by its exact name, else the template with the
// longest name that begins the one asked for. A template is rendered for that. It returns nil when there is none, and
// records no watch.
func (v *View) ResolveQuery(idOrName string) (*query.Query, error) {
	if len(idOrName) > query.MaxName {
		return nil, nil
	}
	if catalog.CheckUUID(idOrName) == nil {
		if p, ok := queries.Peek(v.tx, "id", nameKey(idOrName)); ok {
			if p.IsTemplate() {
				return nil, errTemplateID
			}
			return p.Query, nil
		}
	}
	p, ok := queries.Peek(v.tx, "name", nameKey(idOrName))
	if !ok {
		if p, ok = queries.Longest(v.tx, "template", []byte(strings.ToLower(idOrName))); !ok {
			return nil, nil
		}
	}
	if !p.IsTemplate() {
		return p.Query, nil
	}
	c, err := p.compiled()
	if err != nil {
		return nil, err
	}
	return c.Render(idOrName)
}

// SetQuery adds or replaces a valid query and keeps it. Content equal to what is there changes nothing.
func (t *Tx) SetQuery(q *query.Query) error {
	if q.ID == "" {
		return errors.New("Missing Query ID")
	}
	other := func(index string, key []byte) bool {
		p, ok := queries.Peek(t.tx, index, key)
		return ok && !strings.EqualFold(p.ID, q.ID)
	}
	switch {
	case q.Name != "" && other("name", nameKey(q.Name)):
		return fmt.Errorf("name '%s' aliases an existing query name", q.Name)
	case q.Name == "" && q.IsTemplate() && other("template", nil):
		return errors.New("a query template with an empty name already exists")
	case q.Name != "" && other("id", nameKey(q.Name)):
		// Queries are found by ID or by name: nobody gets to answer for another's ID.
		return fmt.Errorf("name '%s' aliases an existing query ID", q.Name)
	case q.Session != "" && t.session(q.Session) == nil:
		return errBadSession(q.Session)
	}
	q.Indexes = catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	if old, ok := queries.Peek(t.tx, "id", nameKey(q.ID)); ok {
		if q.Same(old.Query) {
			return nil
		}
		q.CreateIndex = old.CreateIndex
	}
	queries.Insert(t.tx, newPreparedQuery(q))
	t.mark(queries.Name())
	return nil
}

// DeleteQuery removes a query; it reports whether there was one.
func (t *Tx) DeleteQuery(id string) bool {
	p, ok := queries.Peek(t.tx, "id", nameKey(id))
	if !ok {
		return false
	}
	queries.Delete(t.tx, p)
	t.mark(queries.Name())
	return true
}

// deleteQueriesOf removes the queries that end with a session.
func (t *Tx) deleteQueriesOf(session string) {
	for _, p := range slices.Collect(queries.PeekGet(t.tx, "session", sessionKey(session))) {
		t.DeleteQuery(p.ID)
	}
}

// storedQueries describes the table of queries.
func storedQueries(kind uint64) subject {
	return subject{
		schema: queries, name: queries.Name(), kind: kind,
		dump: func(v *View, emit func([]byte) error) error {
			for p := range queries.PeekPrefix(v.tx, "id", nil) {
				data, err := rpc.Marshal(p.Query)
				if err != nil {
					return fmt.Errorf("encode prepared query: %w", err)
				}
				if err := emit(data); err != nil {
					return err
				}
			}
			return nil
		},
		load: func(t *Tx, version uint64, data []byte) error {
			if version != 1 {
				return fmt.Errorf("prepared query has version %d, not known to this server", version)
			}
			q := new(query.Query)
			if err := rpc.Unmarshal(data, q); err != nil {
				return fmt.Errorf("decode prepared query: %w", err)
			}
			queries.Insert(t.tx, newPreparedQuery(q))
			return nil
		},
	}
}
