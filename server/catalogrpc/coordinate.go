package catalogrpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/transport"
)

// Of the coordinates that come in one period, so many are written, a batch to a command; the rest is left out, and comes
// again (spec/state.md section 8).
const (
	coordinateBatch   = 128
	coordinateBatches = 5
)

// Coordinates gathers the coordinates that nodes send all the time, and writes them together now and then. It is safe for
// concurrent use; without leadership it takes none.
type Coordinates struct {
	period time.Duration

	mu      sync.Mutex
	leading bool
	pending map[coordinateKey]*catalog.NodeCoordinate // the latest of each
}

type coordinateKey struct{ node, segment string }

// NewCoordinates returns a keeper of coordinates that writes once in period.
func NewCoordinates(period time.Duration) *Coordinates {
	return &Coordinates{period: period, pending: map[coordinateKey]*catalog.NodeCoordinate{}}
}

// add takes coordinates to be written. It reports false when nobody will.
func (c *Coordinates) add(updates []*catalog.NodeCoordinate) bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leading {
		return false
	}
	for _, u := range updates {
		key := coordinateKey{u.Node, u.Segment}
		if _, known := c.pending[key]; known || len(c.pending) < coordinateBatch*coordinateBatches {
			c.pending[key] = u
		}
	}
	return true
}

// lead begins or ends taking coordinates. Those that were not written are forgotten.
func (c *Coordinates) lead(leading bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leading = leading
	clear(c.pending)
}

// take returns what is to be written, a batch after the other.
func (c *Coordinates) take() (batches []*catalog.CoordinateUpdate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last *catalog.CoordinateUpdate
	for _, u := range c.pending {
		if last == nil || len(last.Updates) == coordinateBatch {
			last = &catalog.CoordinateUpdate{}
			batches = append(batches, last)
		}
		last.Updates = append(last.Updates, u)
	}
	clear(c.pending)
	return batches
}

// Duty writes what has come.
func (c *Coordinates) Duty() leader.Duty {
	return leader.Duty{Name: "coordinates", Run: func(ctx context.Context, l *leader.Leader) error {
		c.lead(true)
		defer c.lead(false)
		for pause.For(ctx, c.period) {
			for _, batch := range c.take() {
				if _, err := l.Apply(ctx, fsm.UpdateCoordinates, batch); err != nil && ctx.Err() == nil {
					l.Log.Debug("coordinates are not written", "nodes", len(batch.Updates), "error", err)
				}
			}
		}
		return nil
	}}
}

func applyCoordinates(tx *state.Tx, req *catalog.CoordinateUpdate) (*struct{}, error) {
	tx.SetCoordinates(req.Updates)
	return nil, nil
}

func (h *handlers) updateCoordinates(ctx context.Context, c *transport.Call, req *catalog.CoordinateUpdate) (*struct{}, acl.Permit, error) {
	command := &catalog.CoordinateUpdate{}
	view := c.Store.View()
	permit := acl.Open() // when there is nothing to be done
	for _, u := range req.Updates {
		if u == nil || u.Coord == nil {
			return nil, acl.Permit{}, errors.New("invalid coordinate")
		}
		if err := u.Coord.Validate(); err != nil {
			return nil, acl.Permit{}, err
		}
		vetter := NewVetter(c.Authorizer, view)
		if err := vetter.writeNode(u.Node); err != nil {
			return nil, acl.Permit{}, err
		}
		permit = vetter.Permit()
		if n := view.Node(u.Node); n != nil {
			own := *u // the caller's may be changed when it has its answer
			own.Node = n.Node
			command.Updates = append(command.Updates, &own)
		}
	}
	if len(command.Updates) == 0 || h.cfg.Coordinates.add(command.Updates) {
		return done, permit, nil
	}
	if _, err := c.Apply(ctx, permit, fsm.UpdateCoordinates, command); err != nil {
		return nil, acl.Permit{}, err
	}
	return done, permit, nil
}
