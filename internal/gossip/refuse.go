package gossip

import (
	"fmt"
	"sync"
)

// A Guard keeps members out of a LAN pool that do not belong there: those of another datacenter, and those with the
// node ID of another member. Feed it the pool's events and use Refuse in the pool's configuration.
type Guard struct {
	datacenter, name, id string

	mu  sync.Mutex
	ids map[string]string // of alive members: node ID to name
}

// NewGuard returns a guard for the member of this name and node ID.
func NewGuard(datacenter, name, id string) *Guard {
	return &Guard{datacenter: datacenter, name: name, id: id, ids: map[string]string{}}
}

// Observe learns of members.
func (g *Guard) Observe(e Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range e.Members {
		id := m.Tags["id"]
		switch e.Kind {
		case Joined, Updated:
			if id != "" {
				g.ids[id] = m.Name
			}
		case Departed, Lost, Reaped:
			if g.ids[id] == m.Name {
				delete(g.ids, id)
			}
		}
	}
}

// Refuse returns why a member must stay out.
func (g *Guard) Refuse(m Member) error {
	if m.Name == g.name {
		return nil
	}
	if dc := m.Tags["dc"]; dc != g.datacenter {
		return fmt.Errorf("Member '%s' part of wrong datacenter '%s'", m.Name, dc)
	}
	id := m.Tags["id"]
	if id == "" || m.Status == Left {
		return nil
	}
	if id == g.id {
		return fmt.Errorf("Member '%s' has conflicting node ID '%s' with this agent's ID", m.Name, id)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if other, taken := g.ids[id]; taken && other != m.Name {
		return fmt.Errorf("Member '%s' has conflicting node ID '%s' with member '%s'", m.Name, id, other)
	}
	return nil
}
