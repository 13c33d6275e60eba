package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"time"
)

// NodeID stands for the process that runs all sidecars. It is also the ID under
// which that process's admin server answers.
const NodeID = "sarn-node-proxy"

// nodeList is what the process that runs all sidecars is told.
type nodeList struct {
	// earlier are those that an agent before this one wanted, by ID; nil once
	// there was time enough to register them anew. Of Run alone.
	earlier map[string]Sidecar

	changed chan struct{} // closed at the next change; guarded by Supervisor.mu, like ids
	ids     []string
}

// listed is the form of the list in its file.
type listed struct{ Proxies []Sidecar }

// loadList reads what an agent before this one wanted.
func (s *Supervisor) loadList() {
	b, err := os.ReadFile(s.file(NodeID, "list"))
	if err != nil {
		return // there was none
	}
	var l listed
	if err := json.Unmarshal(b, &l); err != nil {
		s.log.Warn("list of an earlier agent not read", "error", err)
		return
	}
	s.node.earlier = map[string]Sidecar{}
	for _, w := range l.Proxies {
		s.node.earlier[w.ID] = w
	}
}

// listForNode tells the process that runs all sidecars which, and returns the processes that should run.
func (s *Supervisor) listForNode(wanted []Sidecar) []Sidecar {
	all := maps.Clone(s.node.earlier)
	if all == nil {
		all = map[string]Sidecar{}
	}
	for _, w := range wanted {
		all[w.ID] = w
	}
	var l listed
	for _, id := range slices.Sorted(maps.Keys(all)) {
		l.Proxies = append(l.Proxies, all[id])
	}
	if err := s.writeList(l); err != nil {
		s.log.Error("list of sidecars not written", "error", err)
	}
	var ids []string // those that this agent knows of
	for _, w := range wanted {
		ids = append(ids, w.ID)
	}
	slices.Sort(ids)
	s.mu.Lock()
	if !slices.Equal(ids, s.node.ids) || s.node.changed == nil {
		if s.node.changed != nil {
			close(s.node.changed)
		}
		s.node.ids, s.node.changed = ids, make(chan struct{})
	}
	s.mu.Unlock()
	if len(l.Proxies) == 0 {
		return nil
	}
	return []Sidecar{{ID: NodeID}}
}

func (s *Supervisor) writeList(l listed) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	path := s.file(NodeID, "list")
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return replaceFile(path, b)
}

// tellNodeReady tells of each sidecar that has become ready in p, until p has ended.
func (s *Supervisor) tellNodeReady(ctx context.Context, p Process) {
	told := map[string]bool{}
	var since time.Time // when the list changed
	var last <-chan struct{}
	for {
		s.mu.Lock()
		ids, changed := s.node.ids, s.node.changed
		s.mu.Unlock()
		if changed != last {
			since, last = time.Now(), changed
		}
		maps.DeleteFunc(told, func(id string, _ bool) bool { return !slices.Contains(ids, id) })
		waiting := false
		for _, id := range ids {
			switch {
			case told[id]:
			case s.starter.Ready(ctx, p.Record(), id):
				told[id] = true
				s.cfg.OnReady(id)
			default:
				waiting = true
			}
		}
		var again <-chan time.Time
		if waiting && time.Since(since) < readyTime {
			again = time.After(readyPoll)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}
